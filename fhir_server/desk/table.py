"""What an operator asks of inbox, outbox and destinations, and what monitoring asks: one table for all faces.

Each operation takes the store and plain arguments and returns JSON-ready values. What needs another room is handed it
and stands in that room's table: `inbox_replay` how to take a message in, `outbox_replay` and `outbox_regenerate` how
the workflow looks at resources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fhir_server import watch
from fhir_server.desk import inbox, lanes, outbox, story
from fhir_server.desk.words import Args, Json
from fhir_server.store.engine import Store


def metrics(store: Store, args: Args) -> Json:
    """What `/metrics` shows, as data; `name` narrows."""
    found = [one for one in watch.metrics(store) if args.get("name", "") in one.name]
    return [{"name": one.name, "labels": dict(one.labels), "value": one.value} for one in found]


OPERATIONS: Mapping[str, Callable[[Store, Args], Json]] = {
    "inbox-list": inbox.inbox_list,
    "inbox-refuse": inbox.inbox_refuse,
    "inbox-show": inbox.inbox_show,
    "outbox-list": outbox.outbox_list,
    "outbox-show": outbox.outbox_show,
    "outbox-retry": outbox.outbox_retry,
    "outbox-hold": outbox.outbox_hold,
    "outbox-cancel": outbox.outbox_cancel,
    "outbox-release": outbox.outbox_release,
    "lane-list": lanes.lane_list,
    "lane-pause": lanes.lane_pause,
    "lane-resume": lanes.lane_resume,
    "lane-policy": lanes.lane_policy,
    "alerts": watch.alerts,
    "metrics": metrics,
    "trace": story.trace,
}

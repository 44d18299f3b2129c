"""The operator's JSON API: POST /admin/{operation} with the arguments as a JSON object. The command line speaks it.

Every operation runs as the person who calls and leaves an audit row. One that changes something leaves it in its first
transaction: they are both there or neither. One that reads, or does its work elsewhere (a job), leaves it before, so
that nothing happens unseen. One that failed leaves a row that says so.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any, cast

from fhir_server import explaining, upkeep, watch
from fhir_server.changes import Hub, view_of
from fhir_server.context import Caller
from fhir_server.desk.outbox import outbox_regenerate
from fhir_server.desk.table import OPERATIONS
from fhir_server.desk.words import limit_of
from fhir_server.errors import Fault, Forbidden, Malformed, NotFound, PasserelleError, Unsupported
from fhir_server.imaging import studies
from fhir_server.rest.http import Request, Response
from fhir_server.store import parameters
from fhir_server.store.audit import AuditRow
from fhir_server.store.engine import Store
from fhir_server.store.session import Snapshot, Tx
from fhir_server.store.view import instant_of
from fhir_server.teleexpertise import overtaken
from fhir_server.teleexpertise.case import Context

log = logging.getLogger("passerelle.admin")
Args = Mapping[str, str]
Operation = Callable[[Hub, Caller, Args], Any]
_JOBS = upkeep.Jobs()


def answer(hub: Hub, request: Request, more: Mapping[str, Operation] | None = None) -> Response:
    """Answer one operation; an error is `{"error": text}` with its HTTP status. `more`: operations of other rooms."""
    try:
        _admitted(hub, request.caller)
        return _json(200, run(hub, request.caller, request.path.strip("/"), _arguments(request), more))
    except PasserelleError as error:
        return _json(error.status, {"error": error.diagnostics})
    except Exception:
        log.exception("operation %s failed", request.path)
        return _json(500, {"error": Fault().diagnostics})


def metrics(hub: Hub, request: Request) -> Response:
    """GET /metrics: the traffic for Prometheus, text format 0.0.4. It names destinations, and no patient."""
    try:
        _admitted(hub, request.caller)
    except PasserelleError as error:
        return _json(error.status, {"error": error.diagnostics})
    kind = ("content-type", "text/plain; version=0.0.4; charset=utf-8")
    return Response(200, (kind,), watch.text(watch.metrics(hub.store)).encode())


def _admitted(hub: Hub, caller: Caller) -> None:
    """In the demo everybody may look behind the scenes; else it takes the role `admin`."""
    if hub.settings.auth != "none" and "admin" not in caller.roles:
        raise Forbidden("operations are for the role `admin`, which your access token does not give you")


class _As:
    """The store with everything done in the name of one caller, for operations that know no callers. `told` goes into
    the first transaction, as what it is about."""

    def __init__(self, store: Store, caller: Caller, told: AuditRow | None = None) -> None:
        self._store, self._caller, self.told = store, caller, told

    def read(self, _: Caller) -> Any:
        return self._store.read(self._caller)

    def write(self, _: Caller, work: Callable[[Tx], Any]) -> Any:
        told = self.told
        if told is None:
            return self._store.write(self._caller, work)

        def both(tx: Tx) -> Any:
            tx.audit(told)
            return work(tx)

        result = self._store.write(self._caller, both)
        self.told = None
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def names(more: Mapping[str, Operation] | None = None) -> list[str]:
    """Every operation."""
    return sorted([*OPERATIONS, *_HUB_OPERATIONS, *upkeep.JOBS, *(more or {})])


def run(hub: Hub, caller: Caller, name: str, args: Args, more: Mapping[str, Operation] | None = None) -> Any:
    """Run one operation by name, audited. Raises NotFound listing the known ones."""
    if name not in names(more):
        raise NotFound(f"no operation {name[:80]}; known: {', '.join(names(more))}")
    changes = not (name.endswith(_READING) or name in upkeep.JOBS or name in ("note", *_ELSEWHERE))
    if not changes and name != "job-show":
        audited(hub, caller, name, args)
    mine = _As(hub.store, caller, _row(name, args) if changes else None)
    try:
        result = _done(hub, cast(Store, mine), caller, name, args, more or {})
    except PasserelleError as error:
        audited(hub, caller, name, args, failed=error.diagnostics)
        raise
    except Exception as defect:
        audited(hub, caller, name, args, failed=f"a defect of this server ({type(defect).__name__})")
        raise
    if mine.told is not None:  # it changed nothing
        audited(hub, caller, name, args)
    return result


def _done(hub: Hub, mine: Store, caller: Caller, name: str, args: Args, more: Mapping[str, Operation]) -> Any:
    if name in upkeep.JOBS:
        return asdict(_JOBS.start(hub, name, args))
    if name in OPERATIONS:
        return OPERATIONS[name](mine, args)
    return (_HUB_OPERATIONS.get(name) or more[name])(replace(hub, store=mine), caller, args)


def audited(hub: Hub, caller: Caller, name: str, args: Args, *, failed: str = "") -> None:
    """One audit row of its own: reading what patients' messages say is audited too."""
    hub.store.write(caller, lambda tx: tx.audit(_row(name, args, failed=failed)))


def _row(name: str, args: Args, *, failed: str = "") -> AuditRow:
    """Who asked for which operation on what."""
    told = ", ".join(f"{key}={_said(key, value)}" for key, value in sorted(args.items()) if key != "id")
    kind, key = _entity(name, args)
    return AuditRow(
        "R" if name.endswith(_READING) else "E",
        event=name,
        entity_type=kind,
        entity_id=key,
        case_key=f"{kind}/{key}" if kind == "ServiceRequest" else "",
        outcome="8" if failed else "0",
        text=f"{name} {told}".strip() + (f": {failed}" if failed else ""),
    )


_READING = ("-list", "-show", "trace", "-count", "metrics", "-explain", "-echo")
_ELSEWHERE = ("send-hl7",)
"""What changes nothing here, and is audited before it goes."""
_CONTENT = ("content", "data")
"""Arguments that are what a message says of a patient: the trail tells their digest."""
_ENTITIES = {"trace": "ServiceRequest", "inbox": "MessageHeader", "outbox": "Communication", "lane": "Endpoint",
             "merges": "List", "send": "Endpoint"}  # fmt: skip


def _said(key: str, value: str) -> str:
    return f"sha256:{hashlib.sha256(value.encode()).hexdigest()}" if key in _CONTENT else value[:100]


def _entity(name: str, args: Args) -> tuple[str, str]:
    """What an operation is about, as a reference: (type, id). A message and a delivery have no resource of their own;
    they are named by the type that tells most of them."""
    if name == "studies-attach":
        return "ServiceRequest", args.get("request", "").removeprefix("ServiceRequest/")[:64]
    kind = _ENTITIES.get(name.partition("-")[0], "")
    lane = args.get("to", "") if name in _ELSEWHERE else args.get("lane", "")
    if kind == "Endpoint" and not lane.startswith("Endpoint/"):
        return "", ""  # a mailbox, or an address: the text names it
    key = (lane if kind == "Endpoint" else args.get("id", ""))[:73]
    return (kind, key.rpartition("/")[2]) if kind and key else ("", "")


def _studies_list(hub: Hub, _: Caller, args: Args) -> Any:
    return studies.listed(hub.store, args, limit_of(args))


def _conflicts_list(hub: Hub, _: Caller, args: Args) -> Any:
    return studies.conflicts(hub.store, args.get("study", ""), limit_of(args))


def _studies_attach(hub: Hub, _: Caller, args: Args) -> Any:
    return studies.attach(hub.store, args.get("study", ""), args.get("request", ""))


def _parameters_list(hub: Hub, _: Caller, __: Args) -> Any:
    """The search parameters of users: which are active, how far the others are, and why one is refused."""
    found = []
    for one in parameters.listed(hub.store):
        told = json.loads(one.definition)
        named = {"code": told.get("code", ""), "base": ", ".join(told.get("base", ()))}
        found.append(named | {name: getattr(one, name) for name in ("url", "state", "seen", "total", "note")})
    return found


def _partners_list(hub: Hub, caller: Caller, _: Args) -> Any:
    """Who knocked and is not declared by any establishment, the last first."""
    with hub.store.read(caller) as snapshot:
        found = snapshot.partners()
    return [asdict(one) | {"first_at": instant_of(one.first_at), "last_at": instant_of(one.last_at)} for one in found]


def _partners_forget(hub: Hub, caller: Caller, args: Args) -> Any:
    name = args.get("id", "")
    gone = hub.store.write(caller, lambda tx: tx.forget_partner(name))
    if not gone:
        raise NotFound(f"no new partner is called {name[:80]}; `passerelle partners list` shows them")
    return {"name": name, "forgotten": gone}


def _job_show(hub: Hub, _: Caller, args: Args) -> Any:
    job = _JOBS.get(hub, args.get("id", ""))
    if job is None:
        raise NotFound("no such job is known; the last twenty are remembered")
    return asdict(job)


def _note(_: Hub, __: Caller, args: Args) -> Any:
    """A line in the audit trail: what the command line does beside this server."""
    return {"noted": args.get("reason", "")}


def _regenerate(hub: Hub, caller: Caller, args: Args) -> Any:
    def context(snapshot: Snapshot) -> Context:
        handed = partial(overtaken.handed, snapshot)
        return Context(caller, view_of(snapshot), hub.settings, hub.sites, hub.clock(), handed)

    return outbox_regenerate(hub.store, args, context)


_HUB_OPERATIONS: Mapping[str, Operation] = {
    "conflicts-list": _conflicts_list,
    "job-show": _job_show,
    "note": _note,
    "outbox-regenerate": _regenerate,
    "parameters-list": _parameters_list,
    "partners-list": _partners_list,
    "partners-forget": _partners_forget,
    "search-explain": explaining.explain,
    "studies-list": _studies_list,
    "studies-attach": _studies_attach,
}


def _arguments(request: Request) -> Args:
    if request.method != "POST":
        raise Unsupported("operations are called with POST", http=405)
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise Unsupported("send the arguments as application/json", http=415)
    try:
        args = json.loads(request.body or b"{}")
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the arguments are no JSON: {error}") from error
    if not isinstance(args, dict):
        raise Malformed("the arguments are a JSON object")
    return {_text(key): _text(value) for key, value in args.items()}


def _text(value: object) -> str:
    """An argument as text a database takes."""
    return str(value).encode(errors="replace").decode().replace("\0", "\ufffd")


def _json(status: int, value: Any) -> Response:
    text = json.dumps(value, ensure_ascii=False)
    return Response(status, (("content-type", "application/json; charset=utf-8"),), text.encode("utf-8"))

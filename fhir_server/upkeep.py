"""What keeps an installation sound: check, reindex, backup, retention. Safe beside running servers.

They last, and tell how far they are: each takes the hub, plain arguments, and `tell`, which hears a line of progress
now and then; it returns JSON-ready values. `JOBS` is what the command line and the operator's API both read.
"""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fhir_server.changes import Hub
from fhir_server.errors import Conflict, Invalid, PasserelleError
from fhir_server.search import index
from fhir_server.search.rows import IndexRows
from fhir_server.store import backup as backups
from fhir_server.store import check as checking
from fhir_server.store import reindex as reindexing
from fhir_server.store import retention
from fhir_server.teleexpertise.scopes import scopes

Args = Mapping[str, str]
Tell = Callable[[str], None]
Json = dict[str, Any]
DAY = 86_400.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")


def extract(hub: Hub) -> Callable[[Json], IndexRows]:
    """The index and scope rows a resource ought to have: what the write path writes."""
    zone = hub.sites.default.time_zone

    def rows(resource: Json) -> IndexRows:
        found = index.rows(resource, zone=zone)
        found.scopes = scopes(resource)
        return found

    return rows


def meaning() -> int:
    """A number that changes when index rows mean something else."""
    return index.meaning()


def check(hub: Hub, args: Args, tell: Tell) -> Json:
    """Does everything derived agree with the resources? `deep` also reads all content and every old version; `repair`
    makes index rows anew where they do not, and looks again."""
    deep = _flag(args, "deep")
    tell("checking resources, versions, messages, deliveries, images and the audit chain")
    report = checking.check(hub.store, extract(hub), deep=deep)
    told: Json = {"stale": reindexing.stale(hub.store, meaning())}
    if _flag(args, "repair") and set(report.counts) & {"index", "mask", "scope"}:
        told = {"repaired": reindex(hub, {}, tell), "stale": False}
        report = checking.check(hub.store, extract(hub), deep=deep)
    return told | {"ok": report.ok} | asdict(report)


def reindex(hub: Hub, args: Args, tell: Tell) -> Json:
    """Make index rows, scopes and masks anew where they do not agree; goes on where an earlier run stopped."""
    done = reindexing.reindex(hub.store, extract(hub), meaning=meaning(), tell=tell)
    return asdict(done)


def backup(hub: Hub, args: Args, tell: Tell) -> Json:
    """A backup, while everything runs, into a new folder `name` under `backups` of the data folder; it is read again
    and compared before it is said to be good."""
    name = args.get("name") or f"{hub.clock():%Y%m%dT%H%M%S}"
    if not _NAME.fullmatch(name):
        raise Invalid("a backup's name has letters, digits, `-`, `_` and `.` only", expression="name", http=400)
    return backup_to(hub, Path(hub.settings.data_dir).resolve() / "backups" / name, tell)


def backup_to(hub: Hub, target: Path, tell: Tell) -> Json:
    """A backup into a folder that is new or empty. Raises Conflict when it is not."""
    made = backups.backup(hub.store, target, tell=tell)
    tell("reading it again")
    backups.verify(target, tell=tell)
    return {"folder": str(target), **{key: value for key, value in asdict(made).items() if key != "tables"}}


def retain(hub: Hub, args: Args, tell: Tell) -> Json:
    """Let settled messages and deliveries older than `keep_days` go, then content nothing refers to (second look
    after a day)."""
    text = args.get("keep_days") or str(hub.settings.keep_days)
    try:
        days = float(text)
    except ValueError:
        days = 0.0
    if not 1 <= days < 100_000:
        raise Invalid(f"keep_days={text}: say how many days (1 or more) stay", expression="keep_days", http=400)
    tell(f"pruning what was settled more than {days:g} days ago")
    pruned = retention.prune(hub.store, days * DAY)
    tell("looking for content nothing refers to")
    return asdict(pruned) | asdict(retention.collect(hub.store))


def _flag(args: Args, name: str) -> bool:
    return args.get(name, "").lower() in ("1", "true", "yes")


JOBS: Mapping[str, Callable[[Hub, Args, Tell], Json]] = {
    "check": check,
    "reindex": reindex,
    "backup": backup,
    "retention": retain,
}


@dataclass(slots=True)
class Job:
    """One run in this process. `told` is the last line of progress; `result` is there when it is done."""

    id: str
    name: str
    state: Literal["running", "done", "failed"] = "running"
    told: str = ""
    result: Json = field(default_factory=dict)


class Jobs:
    """The long operations a server runs for its operator: one at a time, the last twenty remembered."""

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._all: dict[str, Job] = {}

    def start(self, hub: Hub, name: str, args: Args) -> Job:
        """Begin one. Raises Conflict while another runs."""
        with self._gate:
            running = next((job for job in self._all.values() if job.state == "running"), None)
            if running is not None:
                raise Conflict(f"`{running.name}` is running ({running.told}); wait for it: job {running.id}")
            job = Job(uuid.uuid4().hex[:12], name)
            self._all[job.id] = job
            for old in list(self._all)[:-20]:
                del self._all[old]
        threading.Thread(target=self._run, args=(job, hub, args), name=f"job-{name}", daemon=True).start()
        return job

    def get(self, key: str) -> Job | None:
        return self._all.get(key)

    def _run(self, job: Job, hub: Hub, args: Args) -> None:
        def tell(line: str) -> None:
            job.told = line

        try:
            job.result = JOBS[job.name](hub, args, tell)
            job.state = "done"
        except PasserelleError as fault:
            job.told, job.state = fault.diagnostics, "failed"
        except Exception as fault:
            job.told, job.state = f"a defect of this server ({type(fault).__name__}); its log has more", "failed"
            raise

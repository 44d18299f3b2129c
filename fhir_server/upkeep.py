"""What keeps an installation sound: check, reindex, backup, retention. Safe beside running servers.

They last, and tell how far they are: each takes the hub, plain arguments, and `tell`, which hears a line of progress
now and then; it returns JSON-ready values. `JOBS` is what the command line and the operator's API both read.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fhir_server import soundness
from fhir_server.changes import Hub
from fhir_server.config import Settings
from fhir_server.errors import Conflict, Invalid, PasserelleError
from fhir_server.search import index, references
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
log = logging.getLogger("passerelle.upkeep")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")


def extract(hub: Hub) -> Callable[[Json], IndexRows]:
    """The index and scope rows a resource ought to have: what the write path writes, of what it would keep today."""
    zone, bases = hub.sites.default.time_zone, references.own_bases(hub.settings)

    def rows(resource: Json) -> IndexRows:
        found = index.rows(references.at_home(resource, bases), zone=zone)
        found.scopes = scopes(resource)
        return found

    return rows


def meaning(settings: Settings) -> int:
    """A number that changes when index rows mean something else, or other base URLs mean this server."""
    bases = sorted(set(references.declared_bases(settings)))
    return index.hash63(f"{index.meaning()} {bases}") if bases else index.meaning()


def check(hub: Hub, args: Args, tell: Tell) -> Json:
    """Does everything derived agree with the resources? `deep` also reads all content and every old version; `repair`
    makes index rows anew where they do not, and looks again."""
    deep = _flag(args, "deep")
    tell("checking resources, versions, messages, deliveries, images and the audit chain")
    report = checking.check(hub.store, extract(hub), deep=deep)
    told: Json = {"stale": reindexing.stale(hub.store, meaning(hub.settings))}
    if _flag(args, "repair") and set(report.counts) & {"index", "mask", "scope"}:
        told = {"repaired": reindex(hub, {}, tell), "stale": False}
        report = checking.check(hub.store, extract(hub), deep=deep)
    soundness.check(hub, report)
    return told | {"ok": report.ok} | asdict(report)


def reindex(hub: Hub, args: Args, tell: Tell) -> Json:
    """Make index rows, scopes and masks anew where they do not agree; goes on where an earlier run stopped."""
    done = reindexing.reindex(hub.store, extract(hub), meaning=meaning(hub.settings), tell=tell)
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
    """One run. `told` is the last line of progress; `result` is there when it is done."""

    id: str
    name: str
    state: Literal["running", "done", "failed"] = "running"
    told: str = ""
    result: Json = field(default_factory=dict)


class Jobs:
    """The long operations servers run for their operator: one at a time, the last twenty remembered.

    Each is a file in `jobs` of the data folder, so that every process of an installation can tell of it. Who runs one
    holds a lock there: a crash frees it, and a job that nobody holds a lock for is over.
    """

    def start(self, hub: Hub, name: str, args: Args) -> Job:
        """Begin one. Raises Conflict while another runs."""
        folder = _folder(hub)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = _locked(folder, fcntl.LOCK_EX)
        if held is None:
            running = next((job for job in _all(folder) if job.state == "running"), None)
            told = f"`{running.name}` is running ({running.told})" if running else "another operation begins"
            raise Conflict(f"{told}; wait for it{f': job {running.id}' if running else ''}")
        try:
            job = Job(uuid.uuid4().hex[:12], name)
            _keep(folder, job)
            for old in _files(folder)[20:]:
                old.unlink(missing_ok=True)
            threading.Thread(target=_run, args=(job, hub, args, held), name=f"job-{name}", daemon=True).start()
        except BaseException:
            os.close(held)
            raise
        return job

    def get(self, hub: Hub, key: str) -> Job | None:
        """What is known of a job, whichever process runs it."""
        folder = _folder(hub)
        job = _read(folder / f"{key}.json") if _KEY.fullmatch(key) else None
        if job is None or job.state != "running":
            return job
        held = _locked(folder, fcntl.LOCK_SH)
        if held is None:
            return job
        try:
            job = _read(folder / f"{key}.json")  # it may have ended a moment ago
        finally:
            os.close(held)
        if job is not None and job.state == "running":
            job.state, job.told = "failed", f"the process that ran it ended ({job.told}); begin it again"
        return job


_KEY = re.compile(r"[0-9a-f]{12}")


def _run(job: Job, hub: Hub, args: Args, held: int) -> None:
    """Run a job in a thread of its own; `held` is the lock, released when all is written."""
    folder = _folder(hub)

    def tell(line: str) -> None:
        job.told = line
        _told(folder, job)

    try:
        job.result = JOBS[job.name](hub, args, tell)
        job.state = "done"
    except PasserelleError as fault:
        job.told, job.state = fault.diagnostics, "failed"
    except Exception as fault:
        job.told, job.state = f"a defect of this server ({type(fault).__name__}); its log has more", "failed"
        raise
    finally:
        _told(folder, job)
        os.close(held)


def _told(folder: Path, job: Job) -> None:
    """Progress nobody can read stops no job."""
    try:
        _keep(folder, job)
    except OSError:
        log.exception("the state of job %s cannot be written", job.id)


def _folder(hub: Hub) -> Path:
    return hub.store.blobs.root.parent / "jobs"


def _locked(folder: Path, kind: int) -> int | None:
    """The lock's descriptor; None when somebody else holds it. Tries a few times: who asks holds it for an instant."""
    file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _ in range(5):
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return file
        except OSError:
            time.sleep(0.01)
    os.close(file)
    return None


def _keep(folder: Path, job: Job) -> None:
    """The file changes as a whole."""
    draft = folder / f"{job.id}.draft"
    draft.touch(0o600)
    draft.write_text(json.dumps(asdict(job)), encoding="utf-8")
    draft.replace(folder / f"{job.id}.json")


def _files(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)


def _all(folder: Path) -> list[Job]:
    return [job for path in _files(folder) if (job := _read(path))]


def _read(path: Path) -> Job | None:
    try:
        return Job(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None

"""`Prefer: respond-async`: the answer is worked out behind the client's back and fetched when it is ready.

202 with a status address; there 202 while it runs, then the manifest of what came out, or the error. Results are
bounded in number, bytes and time, and lie in a folder that all processes share, so that any of them answers for what
another worked out: what a crash or a bound took is said, not guessed at
(docs/adr/0049-asynchronous-answers-lie-in-a-folder.md). Large requests that wait here have a room of their own in each
process: those that are answered at once never wait for them.

Source: https://hl7.org/fhir/R4/async.html
"""

from __future__ import annotations

import logging
import os
import queue
import re
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from fhir_server.changes import Hub
from fhir_server.context import Caller, instant
from fhir_server.errors import NotFound, Throttled
from fhir_server.rest import room
from fhir_server.rest.http import Request, Response
from fhir_server.store.engine import Store
from profiles import json_text

log = logging.getLogger("passerelle.rest")
MOST_JOBS, MOST_BYTES, KEPT_SECONDS, THREADS = 50, 256 * 1024 * 1024, 3600.0, 2
# What the requests that wait or are worked on may weigh together; one that is heavier comes alone.
MOST_WEIGHT = room.MOST // 2
# Who works on a request shows so that often that it lives; after so long a silence it is taken for dead.
BEAT_SECONDS, SILENT_SECONDS = 5.0, 60.0
INTERACTIONS = frozenset(
    ("search-type", "search-system", "history-instance", "history-type", "history-system", "transaction")
)
NDJSON = "application/fhir+ndjson"
PREFIX = "_async"
Work = Callable[[Request], Response]
_KEY = re.compile(r"[0-9a-f]{32}")
_FORGOTTEN = (
    "nothing is known of this asynchronous request: results are kept for an hour at most, and a restart takes along "
    "what is being worked on; send the request again (after a write, look first what was done)"
)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is known of the requests, as files of one folder: KEY.asked (who, what, when; its time of change is the last
    sign of life), KEY.body and, once all is there, KEY.done (the answer's status and headers)."""

    folder: Path

    def begin(self, key: str, asked: dict[str, Any]) -> None:
        """Raises Throttled when too many are kept."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.sweep()
        if sum(1 for _ in self.folder.glob("*.asked")) >= MOST_JOBS:
            raise Throttled(f"{MOST_JOBS} asynchronous requests are kept already; delete one, or repeat later")
        self._write(key, "asked", json_text.write(asked).encode())

    def end(self, key: str, response: Response) -> None:
        """Keep the answer, unless the request was given up."""
        if self.lives(key):
            headers = [list(pair) for pair in response.headers]
            self._write(key, "body", response.body)
            self._write(key, "done", json_text.write({"status": response.status, "headers": headers}).encode())
            self.sweep()

    def lives(self, key: str) -> bool:
        """Whether it is known, with a sign of life when it is."""
        try:
            os.utime(self.folder / f"{key}.asked")
        except OSError:
            return False
        return True

    def asked(self, key: str) -> dict[str, Any] | None:
        """What `begin` was told; None for what is not known, or was cut off."""
        if not _KEY.fullmatch(key):
            return None
        self.sweep()
        try:
            return json_text.parse((self.folder / f"{key}.asked").read_bytes())
        except (OSError, ValueError):
            return None

    def answer(self, key: str) -> Response | None:
        """The answer, when it is there."""
        try:
            told = json_text.parse((self.folder / f"{key}.done").read_bytes())
            body = (self.folder / f"{key}.body").read_bytes()
        except OSError:
            return None
        return Response(told["status"], tuple((name, value) for name, value in told["headers"]), body)

    def drop(self, key: str) -> None:
        for kind in ("asked", "done", "body"):
            (self.folder / f"{key}.{kind}").unlink(missing_ok=True)

    def sweep(self) -> None:
        """Drop what is too old or cut off, and the oldest answers when all together are too large."""
        now, ended = time.time(), list[tuple[float, int, str]]()
        for path in self.folder.glob("*.*"):
            key, kind = path.stem, path.suffix
            try:
                age = now - path.stat().st_mtime
                if kind == ".asked" and not (self.folder / f"{key}.done").exists():
                    if age > SILENT_SECONDS:
                        self.drop(key)
                elif kind == ".done":
                    ended.append((-age, (self.folder / f"{key}.body").stat().st_size, key))
                elif kind not in (".asked", ".done") and age > KEPT_SECONDS + SILENT_SECONDS:
                    path.unlink(missing_ok=True)  # left by a crash
            except OSError:
                continue  # another process was faster
        held = sum(size for _, size, _ in ended)
        for age, size, key in sorted(ended):
            if held > MOST_BYTES or -age > KEPT_SECONDS:
                held -= size
                self.drop(key)

    def _write(self, key: str, kind: str, content: bytes) -> None:
        """The file appears whole, for this server's own user."""
        arriving = self.folder / f"{key}.{kind}-{secrets.token_hex(4)}"
        arriving.touch(0o600, exist_ok=False)
        arriving.write_bytes(content)
        arriving.replace(self.folder / f"{key}.{kind}")


@dataclass(slots=True)
class _Job:
    """A request in memory: what works it out, what it weighs, and whether that has begun."""

    work: Callable[[], Response]
    weight: int
    begun: bool = False


@dataclass(slots=True)
class _Jobs:
    """What this process works on, for one store."""

    kept: _Kept
    lock: threading.Lock = field(default_factory=threading.Lock)
    mine: dict[str, _Job] = field(default_factory=dict)
    waiting: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    threads: int = 0
    beating: bool = False

    def add(self, key: str, asked: dict[str, Any], job: _Job) -> None:
        """Raises Throttled when too many are kept, or too large ones are in memory."""
        with self.lock:
            held = sum(one.weight for one in self.mine.values())
            if job.weight and held and held + job.weight > MOST_WEIGHT:
                text = "too many large asynchronous requests wait already; repeat it later, or delete one that waits"
                raise Throttled(text)
            self.kept.begin(key, asked)
            if self.threads < THREADS:
                threading.Thread(target=self._serve, name=f"later-{self.threads + 1}", daemon=True).start()
                self.threads += 1
            if not self.beating:
                threading.Thread(target=self._beat, name="later-beat", daemon=True).start()
                self.beating = True
            self.mine[key] = job
        self.waiting.put(key)

    def _serve(self) -> None:
        while True:
            key = self.waiting.get()
            try:
                self._answered(key)
            except Exception:
                log.exception("the answer to an asynchronous request cannot be kept")
                with suppress(OSError):
                    self.kept.drop(key)
            finally:
                with self.lock:
                    self.mine.pop(key, None)

    def _answered(self, key: str) -> None:
        """Apart from the loop above, which must not hold a request while it waits for the next one."""
        with self.lock:
            job = self.mine.get(key)
            if job is None or not self.kept.lives(key):
                return
            job.begun = True
        self.kept.end(key, job.work())

    def give_up(self, key: str) -> None:
        """Drop what is kept of it. What has not begun leaves the memory at once, the rest when it has ended."""
        self.kept.drop(key)
        with self.lock:
            self._forget(key)

    def _forget(self, key: str) -> None:
        if key in self.mine and not self.mine[key].begun:
            del self.mine[key]

    def _beat(self) -> None:
        """A sign of life for each, as long as there is any; what another process gave up is given up."""
        while True:
            time.sleep(BEAT_SECONDS)
            with self.lock:
                if not self.mine:
                    self.beating = False
                    return
                for key in list(self.mine):
                    if not self.kept.lives(key):
                        self._forget(key)

    def get(self, key: str, caller: Caller) -> dict[str, Any]:
        asked = self.kept.asked(key)
        if asked is None or asked["owner"] != _owner(caller):
            raise NotFound(_FORGOTTEN, expression="Bundle")
        return asked


_OF_STORE: WeakKeyDictionary[Store, _Jobs] = WeakKeyDictionary()
_LOCK = threading.Lock()


def _jobs(hub: Hub) -> _Jobs:
    with _LOCK:
        return _OF_STORE.setdefault(hub.store, _Jobs(_Kept(hub.store.blobs.root.parent / "later")))


def _owner(caller: Caller) -> list[str]:
    return [caller.who, caller.display, caller.client]


def wanted(request: Request, interaction: str) -> bool:
    """Whether the client wants this request answered later, and it is one for which that is offered."""
    return interaction in INTERACTIONS and "respond-async" in request.prefers()


def start(hub: Hub, request: Request, answer: Work) -> Response:
    """202 with the status address; `answer` is called in a thread with the request as one to be answered at once.

    Raises Throttled when too many are kept, or too large ones wait.
    """
    kept = ", ".join(f"{name}={value}" if value else name for name, value in request.prefers().items())
    prefer = ", ".join(part for part in kept.split(", ") if part != "respond-async")
    now = replace(request, headers={**request.headers, "prefer": prefer})
    key = secrets.token_hex(16)
    asked = request.base + (request.path if request.path != "/" else "")
    told = {"owner": _owner(request.caller), "asked": asked, "began": instant(hub.clock())}
    _jobs(hub).add(key, told, _Job(lambda: answer(now), room.weight(request.body)))
    address = ("content-location", f"{request.base}/{PREFIX}/{key}")
    return Response(202, (address, ("retry-after", "1")))


def status(hub: Hub, request: Request) -> Response:
    """GET of the status address: 202, the manifest, or the error the request ended with."""
    key = request.path_args["job"]
    asked = _jobs(hub).get(key, request.caller)
    response = _jobs(hub).kept.answer(key)
    if response is None:
        return Response(202, (("x-progress", "in progress"), ("retry-after", "1")))
    if response.status >= 400:
        return response
    manifest = {
        "transactionTime": asked["began"],
        "request": asked["asked"],
        "requiresAccessToken": hub.settings.auth != "none",
        "output": [{"type": "Bundle", "url": f"{request.base}/{PREFIX}/{key}/1"}] if response.body else [],
        "error": [],
    }
    return Response(200, (("content-type", "application/json"),), json_text.write(manifest).encode())


def result(hub: Hub, request: Request) -> Response:
    """GET of an output: one resource a line (here one Bundle)."""
    key = request.path_args["job"]
    _jobs(hub).get(key, request.caller)
    response = _jobs(hub).kept.answer(key)
    if response is None or response.status >= 400 or request.path_args["part"] != "1":
        raise NotFound("this asynchronous request has no such output; its status lists them", expression="Bundle")
    return Response(200, (("content-type", NDJSON),), response.body + b"\n")


def cancel(hub: Hub, request: Request) -> Response:
    """DELETE of the status address: what has not begun is not begun, a result is dropped."""
    key = request.path_args["job"]
    _jobs(hub).get(key, request.caller)
    _jobs(hub).give_up(key)
    return Response(202)

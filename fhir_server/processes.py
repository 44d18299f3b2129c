"""Several processes that answer HTTP on one listening socket, watched over by the process that opened it.

A Python process computes on one processor at a time. Each child inherits the socket, is a server of its own with the
role `api`, and takes one connection at a time, so that the less busy one takes more. A child that dies is started
again; what waits in the socket's queue is taken by the others. A child whose parent dies leaves at once.

See docs/adr/0048-several-http-processes.md.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fhir_server.config import ConfigError

log = logging.getLogger("passerelle.processes")
PROGRAM = "fhir_server.commands.web_process"
READY = b"r"
# Pauses before a child is started again, doubled each time; one that lived this long has begun anew.
FIRST_PAUSE, LONGEST_PAUSE, SOUND_SECONDS = 0.2, 30.0, 30.0
START_SECONDS = 60.0


class Family:
    """The children of one listening socket."""

    def __init__(self, listening: socket.socket, count: int, stop_seconds: float) -> None:
        """`stop_seconds` bounds `close`."""
        self._listening, self._stop_seconds = listening, stop_seconds
        self._told: Mapping[str, Any] = {}
        self._begun = threading.Event()
        self._closing = threading.Event()
        self._children = [_Child(self, number) for number in range(1, count + 1)]

    def launch(self) -> None:
        """The children begin to load the program, which takes them longest; they serve when `start` tells them what."""
        for child in self._children:
            child.thread.start()

    def start(self, told: Mapping[str, Any]) -> None:
        """Returns when every child serves. Raises ConfigError when one does not. `told` is JSON-ready."""
        self._told = told
        self._begun.set()
        deadline = time.monotonic() + START_SECONDS
        for child in self._children:
            child.settled.wait(max(0.0, deadline - time.monotonic()))
        if not all(child.served for child in self._children):
            self.close()
            raise ConfigError("an HTTP process did not start; the log says why")

    def close(self) -> None:
        """Lets every child finish what is under way, for so many seconds; then it is killed."""
        self._closing.set()
        self._begun.set()
        deadline = time.monotonic() + self._stop_seconds
        for child in self._children:
            child.ask_to_stop()
        for child in self._children:
            if child.thread.is_alive():
                child.thread.join(max(0.0, deadline - time.monotonic()))
        for child in self._children:
            child.kill()
        self._listening.close()

    def pids(self) -> list[int]:
        """The processes that serve now."""
        return [child.process.pid for child in self._children if child.process and child.ready]


class _Child:
    """One child and the thread that watches over it."""

    def __init__(self, family: Family, number: int) -> None:
        self._family, self._number = family, number
        self._lock = threading.Lock()
        self.thread = threading.Thread(target=self._watch, name=f"http-{number}", daemon=True)
        self.settled = threading.Event()
        self.served = self.ready = False
        self.process: subprocess.Popen[bytes] | None = None

    def _watch(self) -> None:
        pause = FIRST_PAUSE
        closing = self._family._closing
        while not closing.is_set():
            began = time.monotonic()
            code = self._lived()
            if closing.is_set():
                return
            if not self.settled.is_set():  # it never served: the settings are wrong, not the moment
                self.settled.set()
                return
            pause = FIRST_PAUSE if time.monotonic() - began > SOUND_SECONDS else pause
            log.error("process http-%d ended (%s); it is started again in %.1f s", self._number, _why(code), pause)
            closing.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _lived(self) -> int:
        """Start the process, see it ready, wait for its end; its exit code."""
        family = self._family
        ours, theirs = socket.socketpair()
        with ours:
            with theirs, self._lock:
                if family._closing.is_set():
                    return 0
                self.process = _started(family._listening, theirs, self._number)
            family._begun.wait()
            if family._closing.is_set():  # it was never told what to serve; `close` ends it
                return self.process.wait()
            try:
                ours.sendall(json.dumps({**family._told, "number": self._number}).encode() + b"\n")
                ours.settimeout(START_SECONDS)
                self.ready = ours.recv(1) == READY
                self.served |= self.ready
            except OSError as fault:
                log.warning("process http-%d: %s", self._number, fault)
            if self.ready:
                log.info("process http-%d serves, pid %d", self._number, self.process.pid)
                self.settled.set()
            else:
                self.process.kill()
            code = self.process.wait()
            self.ready = False
            return code

    def ask_to_stop(self) -> None:
        with self._lock:
            if self.process is not None and self.process.poll() is None:
                self.process.terminate()

    def kill(self) -> None:
        with self._lock:
            if self.process is not None and self.process.poll() is None:
                log.error("process http-%d did not stop in time and is killed", self._number)
                self.process.kill()
                self.process.wait()


def _started(listening: socket.socket, control: socket.socket, number: int) -> subprocess.Popen[bytes]:
    descriptors = (listening.fileno(), control.fileno())
    places = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", PROGRAM, *map(str, descriptors), f"http-{number}"],
        pass_fds=descriptors,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": places},
        start_new_session=True,  # Ctrl-C is the parent's to pass on
    )


def _why(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"

"""The partners of the demo as processes of their own: the hospital's DPI and platform, and a mail operator.

A peer ends with the demo even when the demo is killed: this module starts the peer under Linux's parent-death signal.
"""

from __future__ import annotations

import ctypes
import os
import queue
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from fhir_server.config import ConfigError

_PR_SET_PDEATHSIG = 1
START_SECONDS = 15.0


class Peers:
    """The three processes; `start` returns when each listens."""

    def __init__(self, folder: Path, *, mllp: tuple[str, int], dpi: int, pfi: int, smtp: int, imap: int) -> None:
        self.folder = folder
        self.ports = (dpi, pfi, smtp, imap)
        host, port = mllp
        self._commands = {
            "dpi": ["conformance.peers.mllp", "--port", str(dpi), "--role", "dpi", "--record", str(folder / "dpi")],
            "pfi": [
                "conformance.peers.mllp", "--port", str(pfi), "--role", "pfi", "--record", str(folder / "pfi"),
                "--zam-to", f"{host}:{port}",
            ],
            "mail": [
                "conformance.peers.mail", "--data", str(folder / "mail"), "--smtp-port", str(smtp),
                "--imap-port", str(imap),
            ],
        }  # fmt: skip
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._said: dict[str, queue.SimpleQueue[bytes]] = {}

    def start(self) -> None:
        """Returns when each says that it listens. Raises ConfigError when one does not."""
        for name in self._commands:
            self._start_one(name)
        deadline = time.monotonic() + START_SECONDS
        for name, said in self._said.items():
            try:
                line = said.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                line = b""
            if not line:
                raise ConfigError(self._silent(name))

    def _start_one(self, name: str) -> None:
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "fhir_server.demo.peers", *self._commands[name]],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.processes[name], self._said[name] = process, queue.SimpleQueue()
        threading.Thread(target=_heard, args=(process, self._said[name]), name=f"peer-{name}", daemon=True).start()

    def _silent(self, name: str) -> str:
        dpi, pfi, smtp, imap = self.ports
        ports, options = {
            "dpi": (f"port {dpi}", "--dpi-port"),
            "pfi": (f"port {pfi}", "--pfi-port"),
            "mail": (f"ports {smtp} and {imap}", "--smtp-port and --imap-port"),
        }[name]
        return (
            f"the demo's peer `{name}` did not start on {ports}; stop the program that uses them, or choose others "
            f"with {options}"
        )

    def close(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()


def _heard(process: subprocess.Popen[bytes], said: queue.SimpleQueue[bytes]) -> None:
    """Pass on a peer's first line, which it prints once it listens (b'' when it ends before); drop the others."""
    assert process.stdout is not None
    with process.stdout as lines:
        said.put(lines.readline())
        for _ in lines:
            pass


def received(folder: Path, name: str) -> list[bytes]:
    """The HL7 messages a peer recorded, oldest first."""
    return [path.read_bytes() for path in sorted((folder / name).iterdir()) if path.is_file()]


def _main() -> None:
    """Run a peer module so that it ends when the process that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == 1:
            return
    module = sys.argv[1]
    sys.argv = [module, *sys.argv[2:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()

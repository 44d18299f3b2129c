"""The partners of the demo as processes of their own: the hospital's DPI and platform, and a mail operator.

A peer ends with the demo even when the demo is killed: this module starts the peer under Linux's parent-death signal.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1


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

    def start(self) -> None:
        for name in self._commands:
            self.start_one(name)
        self.wait()

    def start_one(self, name: str) -> None:
        """Start (again) one peer."""
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-m", "fhir_server.demo.peers", *self._commands[name]],
            stdout=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def stop_one(self, name: str) -> None:
        process = self.processes.pop(name)
        process.terminate()
        process.wait(10)

    def wait(self, seconds: float = 15.0) -> None:
        """Until every peer that was started accepts connections. Raises TimeoutError naming the port."""
        deadline = time.monotonic() + seconds
        names = ("dpi", "pfi", "mail", "mail")
        for name, port in zip(names, self.ports, strict=True):
            while name in self.processes:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    ended = self.processes[name].poll()
                    if ended is not None or time.monotonic() > deadline:
                        text = f"the demo's peer `{name}` does not listen on port {port}; is the port in use?"
                        raise TimeoutError(text) from None
                    time.sleep(0.02)

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

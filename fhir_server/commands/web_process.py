"""The program of one HTTP process among several: see `fhir_server.processes`, which starts it.

It is handed the listening socket and a socket to its parent; there it reads what to serve, says when it is ready, and
sees that its parent has ended.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import socket
import sys
import threading
from typing import Any

from fhir_server.commands.serving import settled, until_signalled


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM. Arguments: the two file descriptors, and a name for `ps`."""
    from fhir_server.app import Ports, Server
    from fhir_server.config import Settings
    from fhir_server.processes import READY

    importlib.import_module("fhir_server.web")  # now, while the parent opens the store, and not when it waits for this
    listening, control = (socket.socket(fileno=int(text)) for text in arguments[:2])
    with control.makefile("rb") as said:
        told: dict[str, Any] = json.loads(said.readline())
    logging.basicConfig(
        level=told["level"],
        format=f"%(asctime)s http-{told['number']}[{os.getpid()}] %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    stop = until_signalled()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_orphaned, args=(control,), name="parent", daemon=True).start()
    tables = {name: tuple(told["settings"][name]) for name in ("sites", "hl7_ports")}
    server = Server(Settings(**told["settings"] | tables))
    server.start(listening)
    server.bound = Ports(**told["bound"])
    settled()
    control.sendall(READY)
    stop.wait()
    server.close()
    return 0


def _orphaned(control: socket.socket) -> None:
    """Leave at once when the parent is gone: its successor needs the port."""
    try:
        while control.recv(64):
            pass
    except OSError:
        pass
    os._exit(1)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

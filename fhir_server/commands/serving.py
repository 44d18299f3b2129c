"""Running the server: `serve`, `demo`, `readyz`."""

from __future__ import annotations

import gc
import signal
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

from fhir_server.commands.output import Failed
from fhir_server.commands.settings import Args, loaded
from fhir_server.config import in_url

# So many new containers, a MiB or two, are looked at together.
_NEW_OBJECTS = 10_000


def serve(args: Args) -> int:
    """Run the roles of the settings in this process until SIGTERM or Ctrl-C; then finish what is under way."""
    from fhir_server.app import Server

    settings = loaded(args).settings
    server = Server(settings)
    stop = until_signalled()
    ports = server.start()
    settled()
    where = {
        "api": f"http://{in_url(settings.bind)}:{ports.http}/fhir",
        "mllp": "MLLP " + " ".join(str(port) for port in ports.hl7.values()),
        "dicom": f"DICOM {ports.dicom}",
    }
    told = [where.get(role, role) for role in ("api", "mllp", "dicom", "workers", "mailbox") if role in settings.duties]
    print(f"passerelle is ready: {', '.join(told)}", flush=True)
    stop.wait()
    server.close()
    return 0


def settled() -> None:
    """What was loaded to serve stays: from now on the search for unreachable cycles passes it by, and comes less
    often. A request leaves hardly any cycles behind, and looking for them at each 700 new objects took a third of the
    time of a large transaction (ADR 0068)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])


def until_signalled() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def demo(args: Args) -> int:
    """Run a filled demo on this machine: fictitious people and partners, nothing to configure."""
    from fhir_server.demo import people, play, run

    if args.play:
        return play.play(debug=args.debug)
    if args.clip:
        Path(args.clip).write_bytes(people.clip())
        family = people.PATIENTS[people.SCANNED][0]
        print(f"{args.clip}: an ultrasound clip of {family}, who waits for an opinion ({people.WAITING})")
        return 0
    settings = loaded(args, run.DEFAULTS).settings
    if args.smtp_port:
        settings = replace(settings, smtp=f"127.0.0.1:{args.smtp_port}")
    if args.imap_port:
        settings = replace(settings, imap=f"127.0.0.1:{args.imap_port}")
    return run.run(settings, fresh=args.fresh, stop=until_signalled(), dpi=args.dpi_port, pfi=args.pfi_port)


def readyz(args: Args, url: str = "") -> int:
    """Is the server ready? --wait goes on asking for so many seconds."""
    settings = loaded(args).settings
    port = settings.http_port if "api" in settings.duties else settings.health_port
    if not url and port < 1:
        raise Failed(f"roles={settings.roles} listens for no HTTP; set health_port, then ask again")
    url = url or f"http://{in_url(settings.bind)}:{port}/readyz"
    deadline = time.monotonic() + (args.wait or 0)
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                print(answer.read().decode().strip())
                return 0
        except (OSError, ValueError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            if time.monotonic() >= deadline:
                raise Failed(
                    f"{url}: {error}; start the server with `passerelle demo` or `passerelle serve`"
                ) from error
            time.sleep(0.1)

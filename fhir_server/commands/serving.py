"""Running the server: `serve`, `demo`, `readyz`."""

from __future__ import annotations

import gc
import signal
import ssl
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from fhir_server.commands.output import Failed
from fhir_server.commands.settings import Args, demo_or_own, loaded
from fhir_server.config import ConfigError, in_url
from fhir_server.store import folder

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
        "api": f"{settings.web_scheme}://{in_url(settings.bind)}:{ports.http}/fhir",
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


def readyz(args: Args) -> int:
    """Is the server ready? It is asked where the settings say that it listens, else at --port there, or at --url,
    wherever that is. --wait goes on asking for so many seconds."""
    url, tls = _asked_at(args)
    deadline = time.monotonic() + (args.wait or 0)
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5, context=tls) as answer:
                print(answer.read().decode().strip())
                return 0
        except (OSError, ValueError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            if time.monotonic() >= deadline:
                raise Failed(f"{url}: {error}; {_remedy(args)}") from error
            time.sleep(0.1)


def _remedy(args: Args) -> str:
    """What to try when nobody is ready: a server of the same data folder may listen elsewhere."""
    start = "start the server with `passerelle demo` or `passerelle serve`"
    if args.url is not None:
        return start
    told = folder.holder(Path(demo_or_own(args).data_dir).resolve()) or {}
    if told.get("http"):
        return f"process {told.get('pid')} serves this data folder at {told['http']}: --url {told['http']}"
    return f"{start}, or name where it listens by --port or --url"


def _asked_at(args: Args) -> tuple[str, ssl.SSLContext | None]:
    """The address to ask, of a URL without a path its /readyz; and whom to believe there, None = whom the system
    does."""
    port: int | None = getattr(args, "port", None)
    if args.url is not None:
        if port is not None:
            raise ConfigError("--port and --url name two places; give one of them")
        try:
            parts = urlsplit(args.url)
            if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
                return urlunsplit(parts if parts.path else parts._replace(path="/readyz")), None
        except ValueError:
            pass
        raise Failed(f"{args.url}: write http://host:port")
    settings = loaded(args).settings
    if port is None:
        port = settings.http_port if "api" in settings.duties else settings.health_port
        if port < 1:
            raise Failed(f"roles={settings.roles} listens for no HTTP; set health_port, or name the port by --port")
    elif not 0 < port < 65536:
        raise ConfigError(f"--port {port} is no port: 1 to 65535")
    if "api" not in settings.duties or settings.web_scheme == "http":
        return f"http://{in_url(settings.bind)}:{port}/readyz", None
    return f"https://{in_url(settings.bind)}:{port}/readyz", _anybody()


def _anybody() -> ssl.SSLContext:
    """Nothing secret is said, and a certificate that was renewed or has ended makes no server less ready."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context

"""The `passerelle` command. Exit 0 ok, 1 failed, 2 usage; every error ends with the next thing to try.

On SQLite one process serves a data folder: the operator's commands speak to it over HTTP when it runs, and open the
store themselves when it does not.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fhir_server.config import ConfigError, Loaded, Settings, load
from fhir_server.errors import PasserelleError

Args = argparse.Namespace
_SETTING_FLAGS = ("data_dir", "database_url", "bind", "http_port", "dicom_port", "mllp_port", "auth")


class Failed(Exception):
    """A command did not succeed; the text says why and what to try next."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    if not hasattr(args, "run"):
        args.group.print_help()
        return 2
    logging.basicConfig(
        level=logging.INFO if getattr(args, "verbose", False) else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    try:
        _one_distribution()
        return int(args.run(args) or 0)
    except ConfigError as error:
        print(f"passerelle: {error}", file=sys.stderr)
        return 2
    except Failed as error:
        print(f"passerelle: {error}", file=sys.stderr)
        return 1
    except PasserelleError as error:
        where = error.issues[0].expression
        print(f"passerelle: {error}{f' ({where})' if where else ''}", file=sys.stderr)
        return 1
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        print(f"passerelle: {named}{error.strerror or error}; check the path and its rights", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _one_distribution() -> None:
    """Refuse to run with a sibling package from elsewhere: this version was not tested with its rules."""
    home = Path(__file__).resolve().parent.parent
    for name in ("profiles", "hl7v2", "dicom_node", "mssante", "mappers", "conformance"):
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve().parent.parent if spec and spec.origin else None
        if found != home:
            raise Failed(
                f"package `{name}` comes from {found}, not from {home}; install Passerelle in an environment alone"
            )


def _loaded(args: Args, defaults: Mapping[str, Any] | None = None) -> Loaded:
    flags = {name: getattr(args, name) for name in _SETTING_FLAGS if getattr(args, name, None) is not None}
    file = Path(args.config) if getattr(args, "config", None) else None
    return load(flags, file=file, defaults=defaults)


def _serve(args: Args) -> int:
    """Run every role in this process until SIGTERM or Ctrl-C."""
    from fhir_server.app import Server

    settings = _loaded(args).settings
    server = Server(settings)
    stop = until_signalled()
    ports = server.start()
    print(
        f"passerelle is ready: http://{settings.bind}:{ports.http}/fhir, MLLP {ports.mllp}, DICOM {ports.dicom}",
        flush=True,
    )
    stop.wait()
    server.close()
    return 0


def until_signalled() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _demo(args: Args) -> int:
    from fhir_server.demo import play, run

    if args.play:
        return play.play()
    loaded = _loaded(args, run.DEFAULTS)
    return run.run(loaded.settings, fresh=args.fresh, stop=until_signalled())


def _config_show(args: Args) -> int:
    rows = _loaded(args).rows()
    if args.json:
        _print_json([dict(zip(("name", "value", "origin", "meaning"), row, strict=True)) for row in rows])
        return 0
    for name, value, origin, meaning in rows:
        print(f"{name:28} {value:32} {origin:24} {meaning}")
    return 0


def _config_init(args: Args) -> int:
    """Write a commented settings file with the demo's establishment as an example."""
    from dataclasses import fields

    target = Path(args.file)
    if target.exists():
        raise Failed(f"{target} exists; delete it first or name another file")
    lines = ["# Passerelle settings. A key is taken from: flag > PASSERELLE_<KEY> > this file > default.", ""]
    for spec in fields(Settings):
        if spec.name != "sites":
            lines += [f"# {spec.metadata['doc']}", f"# {spec.name} = {json.dumps(spec.default)}", ""]
    sample = (Path(__file__).parent / "demo" / "site.toml").read_text(encoding="utf-8")
    target.write_text("\n".join(lines) + "\n" + sample, encoding="utf-8")
    print(f"{target} written; edit it, then: passerelle serve --config {target}")
    return 0


def _db_status(args: Args) -> int:
    from fhir_server.store import schema

    settings = _loaded(args).settings
    status = schema.schema_status(settings.database)
    _show(args, {"state": status.state, "present": status.found or "(none)", "needed": status.needed})
    return 0


def _db_upgrade(args: Args) -> int:
    from fhir_server.store import schema

    settings = _loaded(args).settings
    Path(settings.data_dir).mkdir(parents=True, exist_ok=True)
    status = schema.upgrade(settings.database, backups=Path(settings.data_dir).resolve() / "backups")
    _show(args, {"state": status.state, "schema": status.needed})
    return 0


def operate(settings: Settings, name: str, arguments: Mapping[str, str]) -> Any:
    """Run an operator's operation: in the serving process when there is one, else on the store itself."""
    from fhir_server.store import folder

    data = Path(settings.data_dir).resolve()
    told = folder.holder(data) if settings.database.startswith("sqlite") else None
    if told and told.get("http"):
        return _post(f"{told['http']}/admin/{name}", arguments)
    if told:
        raise Failed(f"process {told.get('pid')} is starting on {data}; repeat in a moment")
    from fhir_server.changes import Hub
    from fhir_server.patients.sites import load_sites
    from fhir_server.rest.admin import run
    from fhir_server.store.engine import open_store

    if settings.database.startswith("sqlite") and not (data / "passerelle.db").exists() and not settings.database_url:
        raise Failed(f"there is no database in {data}; start one with `passerelle demo`, or name it with --data-dir")
    store = open_store(settings.database, data, migrate=False)
    try:
        return run(Hub(settings, store, load_sites(settings.sites, settings.default_site)), name, arguments)
    finally:
        store.close()


def _post(url: str, arguments: Mapping[str, str]) -> Any:
    request = urllib.request.Request(
        url, json.dumps(dict(arguments)).encode(), {"content-type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise Failed(_told(error)) from error
    except (OSError, ValueError) as error:
        raise Failed(f"{url} does not answer ({error}); is the server running? `passerelle readyz` tells") from error


def _told(error: urllib.error.HTTPError) -> str:
    """The words of a refusal, whatever answers at that address."""
    with error:
        try:
            told = json.load(error)["error"]
        except (ValueError, LookupError, TypeError):
            return f"{error.url} answered {error.code} {error.reason}; is that a Passerelle of this version?"
    return str(told)


def _demo_or_own(args: Args) -> Settings:
    """The settings in force; without an establishment of one's own, the demo's."""
    from fhir_server.demo import run as demo

    settings = _loaded(args).settings
    return settings if settings.sites else _loaded(args, demo.DEFAULTS).settings


def _operation(name: str, *, columns: Sequence[str] = ()) -> Callable[[Args], int]:
    def run(args: Args) -> int:
        arguments = {
            key: str(getattr(args, key))
            for key in ("id", "state", "channel", "lane", "key", "limit", "reason", "study", "request")
            if getattr(args, key, None)
        }
        result = operate(_demo_or_own(args), name, arguments)
        if args.json:
            _print_json(result)
        elif columns:
            _table(result, columns)
        else:
            _show(args, result)
        return 0

    return run


def _trace(args: Args) -> int:
    story = operate(_demo_or_own(args), "trace", {"id": args.id})
    if args.json:
        _print_json(story)
        return 0
    for line in story:
        print(f"{line['at'][:23]}Z  {line['kind']:12} {line['text']}")
    return 0


def _send_hl7(args: Args) -> int:
    """Send HL7 v2 files over MLLP and print the acknowledgement of each."""
    from hl7v2 import ack, mllp

    host, port, _ = _target(args.to, "mllp", "mllp://host:port")
    failed = False
    for name in args.files:
        try:
            raw = mllp.send((host, port), Path(name).read_bytes(), timeout=30)
        except mllp.MllpFault as fault:
            raise Failed(f"{name}: {fault.stage} {fault.code} {fault.text}; is a listener at {args.to}?") from fault
        told = ack.read(raw)
        failed = failed or told.code not in ("AA", "CA")
        words = "; ".join(f"{e.location} {e.code} {e.text}" for e in told.errors)
        print(f"{name}: {told.code} {told.control_id} {told.text} {words}".rstrip())
    return 1 if failed else 0


def _send_dicom(args: Args) -> int:
    """Send DICOM files by C-STORE and print the status of each."""
    from dicom_node import scu

    host, port, called = _dicom_target(args.to)
    try:
        results = scu.store((host, port), [Path(name) for name in args.files], called=called, calling=args.calling)
    except scu.DicomFault as fault:
        raise Failed(f"{fault.stage} {fault.code} {fault.text}; is a DICOM node at {args.to}?") from fault
    for uid, status in results:
        print(f"{uid}: 0x{status:04X}")
    return 0 if all(status == 0 for _, status in results) else 1


def _echo(args: Args) -> int:
    """C-ECHO a dicom:// address, or look at an http:// one."""
    if args.url.startswith("dicom:"):
        from dicom_node import scu

        host, port, called = _dicom_target(args.url)
        try:
            scu.echo((host, port), called=called, calling=args.calling)
        except scu.DicomFault as fault:
            told = f"{args.url}: {fault.stage} {fault.code} {fault.text}"
            raise Failed(f"{told}; check host, port and AE title") from fault
        print(f"{args.url} answers")
        return 0
    if args.url.startswith("http"):
        return _readyz(args, args.url)
    raise Failed(f"echo {args.url}: write dicom://AETITLE@host:port or http://host:port/readyz")


def _dicom_target(url: str) -> tuple[str, int, str]:
    host, port, title = _target(url, "dicom", "dicom://AETITLE@host:port")
    return host, port, title or "ANY-SCP"


def _target(url: str, scheme: str, form: str) -> tuple[str, int, str]:
    """(host, port, user) of an address. Raises Failed that says how to write it."""
    try:
        parts = urlsplit(url)
        if parts.scheme == scheme and parts.hostname and parts.port:
            return parts.hostname, parts.port, parts.username or ""
    except ValueError:
        pass
    raise Failed(f"{url}: write {form}")


def _readyz(args: Args, url: str = "") -> int:
    settings = _loaded(args).settings
    url = url or f"http://{settings.bind}:{settings.http_port}/readyz"
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


def _fhirpath(args: Args) -> int:
    """Evaluate a FHIRPath expression on a resource (JSON or XML file, - for standard input); a value a line."""
    from profiles import json_text
    from profiles.fhirpath import engine
    from profiles.fhirpath.errors import FhirPathError

    raw = sys.stdin.buffer.read() if args.file == "-" else Path(args.file).read_bytes()
    try:
        if raw.lstrip()[:1] == b"<":
            from profiles import xml_text

            resource = xml_text.from_xml(raw)
        else:
            resource = json_text.parse(raw)
        values = engine.compile(args.expression)(resource, trace=_traced)
    except FhirPathError as error:
        raise Failed(f"{error}; http://hl7.org/fhirpath/N1 has the grammar") from error
    except ValueError as error:
        raise Failed(f"{args.file}: {error}") from error
    if args.json:
        print(json_text.write([value if _plain(value) else str(value) for value in values]))
        return 0
    for value in values:
        print(value if isinstance(value, str) else json_text.write(value) if _plain(value) else value)
    return 0


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, dict | list | str | bool | int | Decimal)


def _traced(name: str, items: Any) -> None:
    print(f"trace {name}: {items}", file=sys.stderr)


def _conformance(args: Args) -> int:
    from conformance.__main__ import main as judge

    return int(judge(args.rest, prog="passerelle conformance"))


def _show(args: Args, value: Any) -> None:
    if getattr(args, "json", False) or not isinstance(value, dict):
        _print_json(value)
        return
    for key, item in value.items():
        text = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False, indent=1)
        print(f"{key:16} {text}" if "\n" not in text else f"{key}\n{text}")


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    if not rows:
        print("(none)")
        return
    cells = [[str(row.get(column, ""))[:60].replace("\n", " ") for column in columns] for row in rows]
    widths = [max(len(column), *(len(row[i]) for row in cells)) for i, column in enumerate(columns)]
    for row in [list(columns), *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


_INBOX = ("id", "received_at", "channel", "state", "message_type", "control_id", "sender", "error")
_OUTBOX = ("id", "created_at", "lane", "state", "attempts", "second_leg", "leg_state", "error")
_STUDIES = ("study_uid", "match_state", "instances", "accession", "patient_id", "request", "note")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="passerelle", description="FHIR R4 server and gateway for téléexpertise")
    parser.set_defaults(group=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    serve = _command(commands, "serve", "run the server", _serve, settings=True)
    serve.add_argument("--verbose", action="store_true", help="log every message and delivery")
    demo = _command(commands, "demo", "run a filled demo on this machine", _demo, settings=True)
    demo.add_argument("--fresh", action="store_true", help="forget what an earlier demo left")
    demo.add_argument("--play", action="store_true", help="replay the whole story on a fresh demo; exit 0 if it holds")
    config = _group(commands, "config", "settings")
    _command(config, "show", "every value and where it came from", _config_show, settings=True)
    init = _command(config, "init", "write a settings file to edit", _config_init)
    init.add_argument("file", nargs="?", default="passerelle.toml")
    db = _group(commands, "db", "the database schema")
    _command(db, "status", "the schema present and the one needed", _db_status, settings=True)
    _command(db, "upgrade", "bring the schema up to date", _db_upgrade, settings=True)
    inbox = _group(commands, "inbox", "messages received")
    _listing(_command(inbox, "list", "newest first", _operation("inbox-list", columns=_INBOX), settings=True))
    _command(inbox, "show", "one message", _operation("inbox-show"), settings=True).add_argument("id")
    outbox = _group(commands, "outbox", "deliveries")
    _listing(_command(outbox, "list", "newest first", _operation("outbox-list", columns=_OUTBOX), settings=True))
    for name, text in (
        ("show", "one delivery, its attempts, why it waits"),
        ("retry", "send a held or failed one again, the same bytes"),
        ("hold", "keep one back"),
        ("cancel", "give one up"),
    ):
        one = _command(outbox, name, text, _operation(f"outbox-{name}"), settings=True)
        one.add_argument("id")
        if name in ("hold", "cancel"):
            one.add_argument("--reason", default=f"{name} by an operator")
    studies = _group(commands, "studies", "images received")
    _listing(_command(studies, "list", "newest first", _operation("studies-list", columns=_STUDIES), settings=True))
    attach = _command(
        studies, "attach", "say which request a study belongs to", _operation("studies-attach"), settings=True
    )
    attach.add_argument("study")
    attach.add_argument("request")
    _command(commands, "trace", "the story of a request", _trace, settings=True).add_argument("id")
    send = _group(commands, "send", "play a partner")
    hl7 = _command(send, "hl7", "HL7 v2 files over MLLP", _send_hl7)
    dicom = _command(send, "dicom", "DICOM files by C-STORE", _send_dicom)
    for one in (hl7, dicom):
        one.add_argument("files", nargs="+")
        one.add_argument("--to", required=True, help="mllp://host:port, dicom://AETITLE@host:port")
    dicom.add_argument("--calling", default="STORESCU", help="our AE title")
    echo = _command(commands, "echo", "is somebody there? dicom://AE@host:port or http://...", _echo, settings=True)
    echo.add_argument("url")
    echo.add_argument("--calling", default="ECHOSCU", help="our AE title")
    echo.add_argument("--wait", type=float, default=0, help="seconds to go on trying")
    ready = _command(commands, "readyz", "is the server ready?", _readyz, settings=True)
    ready.add_argument("--wait", type=float, default=0, nargs="?", const=60, help="seconds to go on trying")
    path = _command(commands, "fhirpath", "evaluate a FHIRPath expression on a file", _fhirpath)
    path.add_argument("expression")
    path.add_argument("file", help="JSON or XML; - for standard input")
    judge = _command(commands, "conformance", "test any system: list, run, report", _conformance)
    judge.add_argument("rest", nargs=argparse.REMAINDER, help="see `passerelle conformance -- --help`")
    return parser


def _group(commands: Any, name: str, text: str) -> Any:
    parser = commands.add_parser(name, help=text)
    parser.set_defaults(group=parser)
    return parser.add_subparsers(title="commands", metavar="COMMAND")


def _command(
    commands: Any, name: str, text: str, run: Callable[[Args], int], *, settings: bool = False
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=run.__doc__ or text)
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="answer as JSON")
    if settings:
        parser.add_argument("--config", help="settings file (default passerelle.toml)")
        for flag in _SETTING_FLAGS:
            kind = int if flag.endswith("_port") else str
            parser.add_argument("--" + flag.replace("_", "-"), type=kind, default=None, help=argparse.SUPPRESS)
    return parser


def _listing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", help="only this state")
    parser.add_argument("--key", help="only rows with this INS, IPP, accession, MSH-10, case...")
    parser.add_argument("--limit", type=int, default=50)


if __name__ == "__main__":
    raise SystemExit(main())

"""The `passerelle` command: the table of commands, and what an error looks like.

Exit 0 done, 1 not done (the message says why and what to try next), 2 wrong call or settings, 130 interrupted.
What the commands do stands in `commands`.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fhir_server.commands import desk, explain, interfaces, judging, play, serving, settings, stock
from fhir_server.commands.output import Failed
from fhir_server.config import ConfigError, Settings, version
from fhir_server.errors import PasserelleError

Args = argparse.Namespace
_EXITS = "exit: 0 done, 1 not done, 2 wrong call or settings, 130 interrupted"


@dataclass(frozen=True, slots=True)
class Arg:
    """One argument as argparse takes it."""

    names: tuple[str, ...]
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """Its name in the parsed arguments."""
        return str(dict(self.options).get("dest", self.names[-1].lstrip("-").replace("-", "_")))


def arg(*names: str, **options: Any) -> Arg:
    return Arg(names, tuple(options.items()))


@dataclass(frozen=True, slots=True)
class Command:
    """One command by its path. With `operation` it asks the operator's desk and shows the answer, as a table of
    `columns` when there are some. `settings`: it obeys --config and the settings' flags."""

    path: str
    text: str
    run: Callable[[Args], int]
    args: tuple[Arg, ...] = ()
    settings: bool = True
    operation: str = ""
    columns: tuple[str, ...] = ()


def asks(path: str, text: str, *args: Arg, columns: Sequence[str] = (), name: str = "") -> Command:
    """A command of the operator's desk."""
    operation = name or path.replace(" ", "-")
    return Command(path, text, desk.operation, args, operation=operation, columns=tuple(columns))


ID = arg("id")
REASON = arg("--reason", help="why, for whoever asks later")
LANE = arg("lane", help="as `passerelle lane list` names it")
FILES = arg("files", nargs="+")
LISTING = (
    arg("--state", help="only this state"),
    arg("--key", help="only rows with this INS, IPP, accession, MSH-10, case..."),
    arg("--limit", type=int, default=50, help="how many (50)"),
)
_INBOX = ("id", "received_at", "channel", "state", "message_type", "control_id", "sender", "error")
_OUTBOX = ("id", "created_at", "lane", "state", "attempts", "second_leg", "leg_state", "error")
_STUDIES = ("study_uid", "match_state", "instances", "accession", "patient_id", "request", "note")
_CONFLICTS = ("sop_uid", "study_uid", "received_at", "calling_ae", "peer", "size", "same_study", "blob")
_LANES = ("name", "open", "stuck", "oldest", "failures", "paused", "paused_note", "on_stuck", "address")
_MERGES = ("id", "date", "survivor", "given_up", "moved", "state")
_PARAMETERS = ("code", "base", "state", "seen", "total", "note", "url")
_PARTNERS = ("channel", "name", "address", "outcome", "times", "first_at", "last_at", "reason")
_WAIT = "seconds to go on trying"
_LISTENING = ("serve", "demo")
_WHICH = ("data_dir", "database_url")

COMMANDS: tuple[Command, ...] = (
    Command("serve", "run the server", serving.serve, (arg("--verbose", action="store_true", help="log all"),)),
    Command(
        "demo",
        "run a filled demo on this machine",
        serving.demo,
        (
            arg("--fresh", action="store_true", help="forget what an earlier demo left"),
            arg("--play", action="store_true", help="replay the whole story on a fresh demo; exit 0 if it holds"),
            arg("--debug", action="store_true", help="with --play: also where in the program it broke"),
            arg("--dpi-port", type=int, default=2576, help="where the hospital's DPI listens (2576)"),
            arg("--pfi-port", type=int, default=2577, help="where its platform listens (2577)"),
            arg("--smtp-port", type=int, help="SMTP of the mail sandbox (1025)"),
            arg("--imap-port", type=int, help="IMAP of the mail sandbox (1143)"),
            arg("--clip", metavar="FILE", help="only write an ultrasound clip of one of its patients, to send"),
        ),
    ),
    Command("readyz", "is the server ready?", serving.readyz,
            (arg("--wait", type=float, default=0, nargs="?", const=60, help=_WAIT),
             arg("--port", type=int, help="ask there instead of at the port of the settings (http_port, health_port)"),
             arg("--url", help="ask http(s)://host:port, this machine or another"))),
    Command("config show", "every value and where it came from", settings.config_show),
    Command("config init", "write a settings file to edit", settings.config_init,
            (arg("file", nargs="?", default="passerelle.toml"),), settings=False),
    Command("db status", "the schema present and the one needed", settings.db_status),
    Command("db current", "the schema present; exit 1 when another is needed", settings.db_current),
    Command("db upgrade", "bring the schema up to date", settings.db_upgrade),
    Command(
        "check",
        "does everything derived agree with the resources?",
        stock.check,
        (
            arg("--deep", action="store_true", help="also hash all content and read every old version"),
            arg("--repair", action="store_true", help="make index rows anew where they disagree"),
        ),
    ),
    Command("reindex", "make index rows anew where they disagree", stock.reindex),
    Command("backup", "a backup into a new folder, while servers run", stock.backup, (arg("folder"),)),
    Command(
        "restore",
        "database and content from a backup, into empty places",
        stock.restore,
        (
            arg("folder"),
            arg("--no-pause", action="store_true", help="do not pause the destinations"),
            arg("--verify", action="store_true", help="only read the backup and compare"),
        ),
    ),
    Command("retention", "let settled messages, deliveries and unused content go", stock.retention,
            (arg("--keep-days", type=float, help="what is younger stays (setting keep_days)"),)),
    asks("inbox list", "messages received, newest first", *LISTING,
         arg("--channel", help="mllp, mail"), columns=_INBOX),
    Command("inbox show", "one message, its answer, why it was refused", desk.inbox_show,
            (ID, arg("--sources", action="store_true", help="also where each element it became came from"))),
    asks("inbox replay", "process a message that was not taken in once more", ID),
    asks("inbox refuse", "put one in error or in conflict away for good: no alert, gone in time", ID, REASON),
    asks("outbox list", "deliveries, newest first", *LISTING, arg("--lane", help="only this lane"), columns=_OUTBOX),
    asks("outbox show", "one delivery, its attempts, why it waits", ID),
    asks("outbox retry", "send a held or failed one again, the same bytes", ID),
    asks("outbox hold", "keep one back for a person", ID, REASON),
    asks("outbox release", "let a held one go as it is, in spite of the reason", ID),
    asks("outbox cancel", "give one up for good", ID, REASON),
    asks("outbox resend", "send the same bytes to the same destination once more, as a new delivery", ID,
         name="outbox-replay"),
    asks("outbox regenerate", "render a held or failed report, order answer or appointment message again from now", ID),
    asks("lane list", "destinations, what waits for them and for how long", arg("--lane", help="only this one"),
         columns=_LANES),
    asks("lane pause", "stop a destination before its next delivery", LANE, REASON),
    asks("lane resume", "let a paused destination go on", LANE),
    asks("lane echo", "whether a destination takes connections from the server; nothing is sent", LANE),
    asks("lane policy", "change what a destination wants", LANE,
         arg("--on-stuck", choices=("block", "skip"), help="a held message blocks the lane, or others pass"),
         arg("--on-silence", choices=("resend", "hold", "default"), help="sent and not answered: again, or a person"),
         arg("--per-second", type=float, help="at most so many a second; 0 = no limit"),
         arg("--answer-seconds", type=float, help="how long it may take to answer; 0 = send_timeout_seconds"),
         arg("--keep-open-seconds", type=float, help="how long an idle connection is kept; 0 = one a message")),
    asks("studies list", "images received, newest first", *LISTING, columns=_STUDIES),
    asks("studies conflicts", "images under the UID of another one, kept beside it, newest first",
         arg("--study", help="only those of this Study Instance UID"),
         arg("--limit", type=int, default=50, help="how many (50)"), name="conflicts-list", columns=_CONFLICTS),
    asks("studies attach", "say which request a study belongs to", arg("study"), arg("request")),
    asks("merges list", "records of patients that were merged, newest first",
         arg("--patient", help="only those of this Patient"),
         arg("--limit", type=int, default=50, help="how many (50)"), columns=_MERGES),
    asks("merges undo", "part two merged records: what was moved goes back", ID),
    asks("parameters list", "search parameters of your own: active, how far they are, why one is refused",
         columns=_PARAMETERS),
    asks("partners list", "who knocked and is not declared, the last first", columns=_PARTNERS),
    asks("partners forget", "take one off that list", ID),
    asks("alerts", "what needs a person now"),
    asks("metrics", "what /metrics shows", arg("--name", help="only names with this in them"),
         columns=("name", "labels", "value")),
    Command("interface-document", "what a partner must know of the HL7 v2 we send or take in",
            interfaces.interface_document, (arg("endpoint", help="id of an Endpoint, or mllp:NAME for a port"),)),
    Command("trace", "the story of a request, in order", desk.trace, (ID,)),
    Command("explain", "why a search answers what it does: words, SQL, plan, rows", explain.explain,
            (arg("query", help="as in an address: 'Observation?code=718-7&_sort=-date'"),),
            operation="search-explain"),
    Command("send hl7", "HL7 v2 files over MLLP", play.send_hl7,
            (FILES, arg("--to", required=True, help="mllp://host:port or mllps://host:port"))),
    Command("send dicom", "DICOM files by C-STORE", play.send_dicom,
            (FILES, arg("--to", required=True, help="dicom://AETITLE@host:port, dicoms:// over TLS"),
             arg("--calling", default="STORESCU", help="our AE title"))),
    Command("send fhir", "FHIR resources (JSON) to a base URL", play.send_fhir,
            (FILES, arg("--to", required=True, help="http://host:port/fhir"), arg("--token", help="access token"))),
    Command("send mail", "mail files to an SMTP server", play.send_mail,
            (FILES, arg("--to", required=True, help="smtp://host:port"),
             arg("--from", dest="sender", required=True, help="envelope sender"),
             arg("--recipient", nargs="+", required=True, help="envelope recipients"),
             arg("--security", choices=("none", "starttls", "tls"), help="instead of smtp_security"))),
    Command("echo", "is somebody there? dicom(s)://AE@host:port, mllp(s)://, smtp://, http://", play.echo,
            (arg("url"), arg("--calling", default="ECHOSCU", help="our AE title"),
             arg("--exchange", action="store_true", help="mllp: send a query, which the partner may record"),
             arg("--wait", type=float, default=0, help=_WAIT))),
    Command("fhirpath", "evaluate a FHIRPath expression on a file", judging.fhirpath,
            (arg("expression"), arg("file", help="JSON or XML; - for standard input")), settings=False),
    Command("conformance", "test any system: list, run, report", judging.conformance,
            (arg("rest", nargs=argparse.REMAINDER, help="see `passerelle conformance -- --help`"),), settings=False),
)  # fmt: skip
GROUPS = {
    "config": "settings",
    "db": "the database schema",
    "inbox": "messages received",
    "outbox": "deliveries",
    "lane": "destinations",
    "studies": "images received",
    "merges": "records of patients that were merged",
    "parameters": "search parameters of your own",
    "partners": "callers no establishment declares",
    "send": "play a partner",
}
_CHAPTERS = (
    ("Run", ("serve", "demo", "readyz", "config", "echo")),
    (
        "Look",
        (
            "trace",
            "explain",
            "inbox",
            "outbox",
            "lane",
            "studies",
            "merges",
            "parameters",
            "partners",
            "alerts",
            "metrics",
            "interface-document",
        ),
    ),
    ("Keep", ("check", "reindex", "backup", "restore", "retention", "db")),
    ("Try", ("send", "fhirpath", "conformance")),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = build()
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"] if words[1:] else []
        if not words:
            print(overview())
            return 0
    args = parser.parse_args(words)
    if not hasattr(args, "run"):
        args.group.print_help()
        return 2
    logging.basicConfig(
        level=logging.INFO if getattr(args, "verbose", False) else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    return _ran(args)


def _ran(args: Args) -> int:
    """The exit code of a command; whatever goes wrong is one line on standard error."""
    code = 1
    try:
        _one_distribution()
        return int(args.run(args) or 0)
    except ConfigError as error:
        told, code = str(error), 2
    except Failed as error:
        told = str(error)
    except PasserelleError as error:
        where = error.issues[0].expression
        told = f"{error}{f' ({where})' if where else ''}"
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        told = f"{named}{error.strerror or error}; check the path and its rights"
    except KeyboardInterrupt:
        return 130
    print(f"passerelle: {told}", file=sys.stderr)
    return code


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


def overview() -> str:
    """Every command in a line, by what one wants to do."""
    lines = ["passerelle: FHIR R4 server and gateway for téléexpertise", ""]
    for title, names in _CHAPTERS:
        lines.append(title)
        for command in COMMANDS:
            if command.path.split()[0] in names:
                lines.append(f"  {command.path:20} {command.text}")
        lines.append("")
    return "\n".join([*lines, "passerelle help COMMAND tells more; --json answers as JSON.", _EXITS])


def build() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="passerelle",
        description="FHIR R4 server and gateway for téléexpertise; `passerelle help` lists every command",
        epilog=_EXITS,
    )
    parser.set_defaults(group=parser)
    parser.add_argument("--version", action="version", version=f"passerelle {version()}")
    top = parser.add_subparsers(title="commands", metavar="COMMAND")
    groups: dict[str, Any] = {}
    for command in COMMANDS:
        group, _, name = command.path.rpartition(" ")
        if group and group not in groups:
            inner = top.add_parser(group, help=GROUPS[group])
            inner.set_defaults(group=inner)
            groups[group] = inner.add_subparsers(title="commands", metavar="COMMAND")
        _add(groups[group] if group else top, name, command)
    return parser


def _add(commands: Any, name: str, command: Command) -> None:
    about = command.run.__doc__ if not command.operation else None
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=command.text, description=about or command.text, epilog=_EXITS
    )
    parser.set_defaults(
        run=command.run,
        operation=command.operation,
        columns=command.columns,
        arguments=[one.key for one in command.args],
    )
    parser.add_argument("--json", action="store_true", help="answer as JSON")
    for one in command.args:
        parser.add_argument(*one.names, **dict(one.options))
    if command.settings:
        _add_settings(parser, settings.FLAGS, shown=command.path in _LISTENING)


def _add_settings(parser: argparse.ArgumentParser, flags: Iterable[str], *, shown: bool) -> None:
    """Flags that stand for settings; help names them all where a server starts, elsewhere those that say which
    installation is meant: the others would hide the rest."""
    parser.add_argument("--config", help="settings file (default passerelle.toml)")
    told = {spec.name: str(spec.metadata["doc"]).replace("%", "%%") for spec in fields(Settings)}
    for flag in flags:
        kind = int if flag.endswith("_port") else str
        text = told[flag] if shown or flag in _WHICH else argparse.SUPPRESS
        parser.add_argument("--" + flag.replace("_", "-"), type=kind, default=None, help=text)


if __name__ == "__main__":
    raise SystemExit(main())

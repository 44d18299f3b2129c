"""What keeps an installation sound: `check`, `reindex`, `backup`, `restore`, `retention`, each with progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fhir_server.commands.desk import followed, opened, serving, who
from fhir_server.commands.output import Failed, Progress, print_json, show
from fhir_server.commands.settings import Args, demo_or_own, loaded


def check(args: Args) -> int:
    """Do index rows, history, messages, deliveries, images, content and the audit chain agree with the resources?

    Beside a running server too. Exit 1 when something disagrees. --repair makes index rows anew where they do not.
    """
    wanted = {"deep": str(args.deep).lower(), "repair": str(args.repair).lower()}
    report = _ran(args, "check", wanted, here=not args.repair)
    if args.json:
        print_json(report)
    else:
        counts = ("resources", "versions", "journal", "messages", "deliveries", "instances", "content", "audit")
        print(", ".join(f"{report[name]} {name}" for name in counts))
        for problem in report["problems"]:
            print(f"{problem['kind']:9} {problem['subject']}: {problem['text']}")
        if report["stale"]:
            print("index rows were made by another version or under other base URLs: passerelle reindex")
        print("everything agrees" if report["ok"] else f"{sum(report['counts'].values())} disagreement(s)")
    if not report["ok"] and not args.json and not args.repair and set(report["counts"]) & {"index", "mask", "scope"}:
        print("try: passerelle check --repair")
    return 0 if report["ok"] else 1


def reindex(args: Args) -> int:
    """Make index rows anew where they do not agree with their resource; a run that was cut off goes on.

    With a server running on SQLite, the server does it; on PostgreSQL it runs beside the servers, which must all be
    of this version.
    """
    done = _ran(args, "reindex", {}, here=False)
    show(done, as_json=args.json)
    return 1 if done["failed"] else 0


def retention(args: Args) -> int:
    """Let settled messages and deliveries older than --keep-days go, and content nothing refers to (two looks, a day
    apart). What failed or is held stays."""
    wanted = {"keep_days": str(args.keep_days)} if args.keep_days is not None else {}
    show(_ran(args, "retention", wanted, here=False), as_json=args.json)
    return 0


def backup(args: Args) -> int:
    """Write a backup of database and content into a new folder, while servers run, and read it again."""
    from fhir_server.upkeep import backup_to

    target = Path(args.folder)
    show(
        _here(args, "backup", lambda hub, tell: backup_to(hub, target, tell), {"folder": args.folder}),
        as_json=args.json,
    )
    return 0


def restore(args: Args) -> int:
    """Make database and content from a backup; both places must be empty. Lanes are paused, so that nothing is sent
    twice before a person has looked; --no-pause leaves them open, --verify only reads the backup."""
    from fhir_server.store import backup as backups
    from fhir_server.store.blobs import blobs_of

    settings, source, tell = loaded(args).settings, Path(args.folder), Progress()
    try:
        if args.verify:
            made = backups.verify(source, tell=tell)
        else:
            data = Path(settings.data_dir).resolve()
            blobs, pause = blobs_of(settings, data), not args.no_pause
            made = backups.restore(source, data, settings.database, blobs=blobs, pause=pause, tell=tell)
    finally:
        tell.end()
    told = {"made_at": made.made_at, "schema": made.schema, "content": made.content, "damaged": list(made.damaged)}
    show(told, as_json=args.json)
    if not args.json and not args.verify:
        print("restored; next: passerelle db upgrade, passerelle check, then start the server"
              + ("" if args.no_pause else ", then resume the lanes: passerelle lane list"))  # fmt: skip
    return 0


def _ran(args: Args, name: str, arguments: Mapping[str, str], *, here: bool) -> Any:
    """One long operation: of the serving process when it must write on SQLite, else of this one."""
    from fhir_server import upkeep

    told = None if here else serving(demo_or_own(args))
    if told is None:
        return _here(args, name, lambda hub, tell: upkeep.JOBS[name](hub, arguments, tell), arguments)
    tell = Progress()
    try:
        return followed(told, name, arguments, tell)
    finally:
        tell.end()


def _here(args: Args, name: str, work: Callable[[Any, Progress], Any], arguments: Mapping[str, str]) -> Any:
    """Work in this process. Beside a server on SQLite nothing may be written: not even the audit row, which that
    server then writes."""
    from fhir_server.commands.desk import asked
    from fhir_server.rest.admin import audited

    settings, tell = demo_or_own(args), Progress()
    told = serving(settings)
    try:
        with opened(settings) as hub:
            if told is None:
                audited(hub, who(), name, arguments)
            else:
                asked(told, "note", {"id": name, "reason": " ".join(f"{k}={v}" for k, v in arguments.items())})
            return work(hub, tell)
    except OSError as fault:
        raise Failed(f"{fault.filename or name}: {fault.strerror or fault}; check the path and its rights") from fault
    finally:
        tell.end()

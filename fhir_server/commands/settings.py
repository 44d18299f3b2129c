"""Settings and schema: what a command works on, `config show|init`, `db status|current|upgrade`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fhir_server.commands.output import Failed, print_json, show
from fhir_server.config import Loaded, Settings, load

Args = argparse.Namespace
FLAGS = ("data_dir", "database_url", "bind", "http_port", "dicom_port", "mllp_port", "auth", "roles")


def loaded(args: Args, defaults: Mapping[str, Any] | None = None) -> Loaded:
    """The settings in force for this call."""
    flags = {name: getattr(args, name) for name in FLAGS if getattr(args, name, None) is not None}
    file = Path(args.config) if getattr(args, "config", None) else None
    return load(flags, file=file, defaults=defaults)


def demo_or_own(args: Args) -> Settings:
    """The settings in force; without an establishment of one's own the demo's, which standard error tells once."""
    from fhir_server.demo import run as demo

    own = loaded(args).settings
    if own.sites:
        return own
    theirs = loaded(args, demo.DEFAULTS).settings
    if theirs.database != own.database and not getattr(args, "demo_told", False):
        args.demo_told = True
        folder = Path(theirs.data_dir).resolve()
        print(f"passerelle: no establishment is configured, so this is the demo in {folder}", file=sys.stderr)
    return theirs


def config_show(args: Args) -> int:
    """Every setting, its value (secrets masked), and where it came from."""
    rows = loaded(args).rows()
    if args.json:
        print_json([dict(zip(("name", "value", "origin", "meaning"), row, strict=True)) for row in rows])
        return 0
    for name, value, origin, meaning in rows:
        print(f"{name:28} {value:32} {origin:24} {meaning}")
    return 0


def config_init(args: Args) -> int:
    """Write a commented settings file with the demo's establishment as an example."""
    target = Path(args.file)
    if target.exists():
        raise Failed(f"{target} exists; delete it first or name another file")
    lines = ["# Passerelle settings. A key is taken from: flag > PASSERELLE_<KEY> > this file > default.", ""]
    for spec in fields(Settings):
        if isinstance(spec.default, str | int | float):
            lines += [f"# {spec.metadata['doc']}", f"# {spec.name} = {json.dumps(spec.default)}", ""]
    sample = (Path(__file__).parent.parent / "demo" / "site.toml").read_text(encoding="utf-8")
    target.write_text("\n".join(lines) + "\n" + sample, encoding="utf-8")
    print(f"{target} written; edit it, then: passerelle serve --config {target}")
    return 0


def db_status(args: Args) -> int:
    """The schema the database has and the one this program needs."""
    from fhir_server.store import schema

    status = schema.schema_status(demo_or_own(args).database)
    show({"state": status.state, "present": status.found or "(none)", "needed": status.needed}, as_json=args.json)
    return 0


def db_current(args: Args) -> int:
    """The schema the database has, and nothing else; exit 1 when the program needs another."""
    from fhir_server.store import schema

    status = schema.schema_status(demo_or_own(args).database)
    show({"present": status.found}, as_json=True) if args.json else print(status.found or "(none)")
    return 0 if status.state == "current" else 1


def db_upgrade(args: Args) -> int:
    """Bring the schema up to date. SQLite: after a copy into `backups`, with no server running."""
    from fhir_server.store import folder, schema

    settings = loaded(args).settings
    data = Path(settings.data_dir).resolve()
    data.mkdir(parents=True, exist_ok=True)
    told = folder.holder(data) if settings.database.startswith("sqlite") else None
    if told is not None and schema.schema_status(settings.database).state != "current":
        raise Failed(f"process {told.get('pid', '?')} serves {data}; stop it first, it upgrades when it starts again")
    status = schema.upgrade(settings.database, backups=data / "backups")
    show({"state": status.state, "schema": status.needed}, as_json=args.json)
    return 0

"""The operator's operations: asked of the serving process when there is one, else done on the store itself.

On SQLite one process serves a data folder; whoever may read its lock file may ask it. On PostgreSQL a command opens
the database beside the servers.
"""

from __future__ import annotations

import getpass
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fhir_server.commands.output import Failed, Progress, print_json, show, table
from fhir_server.commands.settings import Args, demo_or_own
from fhir_server.config import Settings
from fhir_server.context import Caller
from fhir_server.security.certificates import towards
from fhir_server.store import folder

if TYPE_CHECKING:
    from fhir_server.changes import Hub

_ASK_SECONDS, _POLL_SECONDS = 60, 0.3


def who() -> Caller:
    """The person at the command line."""
    from fhir_server.security.identity import operator

    try:
        return operator(getpass.getuser())
    except (KeyError, OSError):
        return operator("")


def serving(settings: Settings) -> Mapping[str, Any] | None:
    """What the lock says of the process that serves a SQLite data folder, and what it is asked through: None when
    nobody does. Raises Failed while it is starting."""
    data = Path(settings.data_dir).resolve()
    told = folder.holder(data) if settings.database.startswith("sqlite") else None
    if told is not None and not told.get("http"):
        raise Failed(f"process {told.get('pid')} is starting on {data}; repeat in a moment")
    return told and {**told, "tls": towards(told.get("certificate", ""))}


@contextmanager
def opened(settings: Settings) -> Iterator[Hub]:
    """A hub of this process's own on the settings' database. Raises Failed when there is none."""
    from fhir_server.app import open_hub
    from fhir_server.patients.sites import load_sites

    data = Path(settings.data_dir).resolve()
    if settings.database.startswith("sqlite") and not (data / "passerelle.db").exists() and not settings.database_url:
        raise Failed(f"there is no database in {data}; start one with `passerelle demo`, or name it with --data-dir")
    hub = open_hub(settings, load_sites(settings.sites, settings.default_site), migrate=False)
    try:
        yield hub
    finally:
        hub.store.close()


def operate(settings: Settings, name: str, arguments: Mapping[str, str]) -> Any:
    """Run an operation by its name, audited, as the person at the command line."""
    told = serving(settings)
    if told is not None:
        return asked(told, name, arguments)
    from fhir_server import app

    with opened(settings) as hub:
        return app.operate(hub, who(), name, arguments)


def asked(told: Mapping[str, Any], name: str, arguments: Mapping[str, str]) -> Any:
    """The serving process's answer. Raises Failed with its words."""
    url = f"{told['http']}/admin/{name}"
    headers = {"content-type": "application/json", "x-operator": who().display.partition(" ")[0]}
    if told.get("token"):
        headers["authorization"] = f"passerelle-local {told['token']}"
    request = urllib.request.Request(url, json.dumps(dict(arguments)).encode(), headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=_ASK_SECONDS, context=told.get("tls")) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise Failed(_words(error)) from error
    except (OSError, ValueError) as error:
        raise Failed(f"{url} does not answer ({error}); is the server running? `passerelle readyz` tells") from error


def followed(told: Mapping[str, Any], name: str, arguments: Mapping[str, str], tell: Progress) -> Any:
    """The result of a long operation of the serving process, its progress shown. Raises Failed."""
    job = asked(told, name, arguments)
    while job["state"] == "running":
        time.sleep(_POLL_SECONDS)
        job = asked(told, "job-show", {"id": job["id"]})
        tell(job["told"])
    if job["state"] == "failed":
        raise Failed(job["told"])
    return job["result"]


def _words(error: urllib.error.HTTPError) -> str:
    """The words of a refusal, whatever answers at that address."""
    with error:
        try:
            told = json.load(error)["error"]
        except (ValueError, LookupError, TypeError):
            return f"{error.url} answered {error.code} {error.reason}; is that a Passerelle of this version?"
    return str(told)


def operation(args: Args) -> int:
    """Run the operation the command stands for and show what it answers."""
    arguments = {
        key: str(getattr(args, key)) for key in args.arguments if getattr(args, key, None) not in (None, False)
    }
    result = operate(demo_or_own(args), args.operation, arguments)
    columns: Sequence[str] = args.columns
    if args.json:
        print_json(result)
    elif columns:
        table(result, columns)
    else:
        show(result, as_json=False)
    return 0


def inbox_show(args: Args) -> int:
    """One message; with --sources also where each element that it became came from."""
    settings = demo_or_own(args)
    result = operate(settings, "inbox-show", {"id": args.id})
    told = operate(settings, "sources-show", {"id": args.id}) if args.sources else None
    if args.json:
        print_json(result | ({"sources": told} if told else {}))
        return 0
    show(result, as_json=False)
    if told:
        print(f"sources          by the mapper of version {told['mapper']}: {told['remark']}")
        for one in told["elements"]:
            print(f"  {one['element']} = {one['value']!r} <- {_origin(one)}")
        for place in told["left_out"]:
            print(f"  not looked at: {place}")
    return 0


def _origin(one: Mapping[str, Any]) -> str:
    if one["how"] == "fixed":
        return "fixed by the mapper"
    return ("it is there because of " if one["how"] == "condition" else "") + ", ".join(one["from"])


def trace(args: Args) -> int:
    """The story of a request in order: resources, messages, images, attempts, acknowledgements."""
    story = operate(demo_or_own(args), "trace", {"id": args.id})
    if args.json:
        print_json(story)
        return 0
    for line in story:
        source = f"  [{line['source']}]" if line["source"] else ""
        print(f"{line['at'][:23]}Z  {line['kind']:12} {line['text']}{source}")
    return 0

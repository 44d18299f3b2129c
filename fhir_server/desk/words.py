"""How the operator is answered: rows of the store as JSON-ready values, times as FHIR instants, and how arguments are
read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from fhir_server.context import instant
from fhir_server.errors import Invalid
from fhir_server.store.session import Snapshot
from fhir_server.store.view import EPOCH

Args = Mapping[str, str]
Json = Any
# The business keys every list has as columns, and can be narrowed by.
KEYS = ("ins", "ipp", "iep", "accession", "rpps", "finess", "msh-10")
_SHOWN = 4000


def id_of(args: Args) -> str:
    if not args.get("id"):
        raise Invalid("name the id", expression="id", http=400)
    return args["id"]


def key_of(args: Args) -> tuple[str, str]:
    """The business key a list is narrowed by: by its kind, or any kind."""
    named = [(kind, args[kind]) for kind in KEYS if args.get(kind)]
    if len(named) > 1:
        raise Invalid(f"one business key at a time, not {' and '.join(kind for kind, _ in named)}", http=400)
    return named[0] if named else ("", args.get("key", ""))


def limit_of(args: Args) -> int:
    text = args.get("limit", "50")
    return max(1, min(int(text), 1000)) if text.isdecimal() else 50


def with_keys(snapshot: Snapshot, box: str, rows: Sequence[Any]) -> Json:
    """Rows with their business keys as columns; several values of a kind are joined."""
    keys = snapshot.keys_of_many(box, [row.id for row in rows])
    return [
        plain(row) | {kind: ", ".join(value for name, value in keys[row.id] if name == kind) for kind in KEYS}
        for row in rows
    ]


def when(moment: int) -> str:
    return instant(EPOCH + timedelta(microseconds=moment)) if moment else ""


def plain(row: Any) -> dict[str, Any]:
    """A store row as JSON-ready values: microseconds become instants, bytes become text, lines a list."""
    out: dict[str, Any] = {}
    for name, value in asdict(row).items():
        if name == "at" or name.endswith(("_at", "_until")):
            out[name] = when(value)
        elif name == "left_out":
            out[name] = value.splitlines()
        elif isinstance(value, bytes):
            out[name] = text_of(value)
        else:
            out[name] = value
    return out


def text_of(raw: bytes) -> str:
    text = raw[:_SHOWN].decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    return text if len(raw) <= _SHOWN else f"{text}\n... ({len(raw)} bytes)"

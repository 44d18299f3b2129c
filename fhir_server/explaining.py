"""The operation `search-explain`: what a search was understood as, its SQL, the database's plan, what it met.

The search is run as the person who asks, so the rows are those this person would be answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qsl

from fhir_server.changes import Hub
from fhir_server.context import Caller
from fhir_server.errors import Malformed
from fhir_server.search import query
from fhir_server.search.references import own_bases

MAX_QUERY = 20_000


def explain(hub: Hub, caller: Caller, args: Mapping[str, str]) -> dict[str, Any]:
    """Explains `query`, written as in an address: `Observation?code=718-7&_sort=-date`, `?_type=Patient,Person`,
    `Patient/1/Observation?code=718-7`.

    Raises Malformed (400) when it cannot be read, and what a search raises.
    """
    text = args.get("query", "").removeprefix("/")
    if not text or len(text) > MAX_QUERY:
        raise Malformed(f"name a search of at most {MAX_QUERY} characters, such as Observation?code=718-7")
    path, _, asked = text.partition("?")
    kind, within = _place(path)
    try:
        pairs = parse_qsl(asked, keep_blank_values=True, max_num_fields=query.MAX_PARAMETERS)
    except ValueError as error:
        raise Malformed(f"the search cannot be read: {error}") from error
    zone, bases = hub.sites.default.time_zone, own_bases(hub.settings)
    plan = query.parse(kind, pairs, zone=zone, bases=bases, compartment=within)
    with hub.store.read(caller) as snapshot:
        found = asdict(snapshot.explain(plan))
    found["milliseconds"] = round(found.pop("seconds") * 1000, 2)
    return {"database": hub.store.engine, **found}


def _place(path: str) -> tuple[str, tuple[str, str] | None]:
    """The type and the compartment of a path: `Observation`, `Patient/1/Observation`, `Patient/1/*`."""
    of, _, rest = path.partition("/")
    key, slash, kind = rest.partition("/")
    return ("" if kind == "*" else kind, (of, key)) if slash else (path, None)

"""X-Provenance: a Provenance that comes in a header and is stored in the transaction of what it is about.

Source: https://hl7.org/fhir/R4/provenance.html#header
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence

from fhir_server.changes import Change
from fhir_server.errors import Invalid, Malformed
from fhir_server.rest.http import Request
from profiles import json_text

HEADER = "x-provenance"
MAX_BYTES = 65_536


def woven(request: Request, changes: Sequence[Change]) -> list[Change]:
    """The changes, and after them the Provenance of the header about all that are named by an id or made here.

    Raises Malformed or Invalid (400) naming `X-Provenance`.
    """
    text = request.headers.get(HEADER)
    if text is None:
        return list(changes)
    try:
        resource = json_text.parse(text, max_bytes=MAX_BYTES)
    except json_text.JsonError as error:
        raise Malformed(f"X-Provenance: {error}", expression=error.path or "Provenance") from error
    if resource.get("resourceType") != "Provenance":
        raise Invalid("X-Provenance holds a Provenance as JSON", expression="Provenance", http=400)
    if "target" in resource:
        raise Invalid(
            "X-Provenance has no target; the server sets it to what the request writes",
            expression="Provenance.target",
            http=400,
        )
    named = [change if change.full_url else dataclasses.replace(change, full_url=_address()) for change in changes]
    about = tuple(c.full_url for c in named if not (c.verb == "delete" and c.criteria))
    if not about:
        raise Invalid("X-Provenance goes with a request that creates, updates or deletes", http=400)
    content = {name: value for name, value in resource.items() if name != "id"}
    content["target"] = [{"reference": url} for url in about]
    return [*named, Change("create", "Provenance", resource=content, base=request.base, about=about)]


def _address() -> str:
    return f"urn:uuid:{uuid.uuid4()}"

"""What a message of a téléexpertise brings along: the Binaries its payload names, which stay as they were sent.

Source: https://hl7.org/fhir/R4/communication-definitions.html#Communication.payload
"""

from __future__ import annotations

import re

from fhir_server.errors import Invalid
from fhir_server.search.references import own_bases, relative
from fhir_server.teleexpertise.case import IS_CASE, Context, Resource, based_on, is_case

_BINARY = re.compile(r"Binary/[A-Za-z0-9\-.]{1,64}")
# A message that was not sent holds nothing fast.
_UNSENT = frozenset({"preparation", "not-done", "on-hold", "unknown"})


def case_of_attachment(binary: Resource, ctx: Context) -> Resource | None:
    """A téléexpertise one of whose messages names a Binary, by any of our addresses; None when none does."""
    own = f"Binary/{binary['id']}"
    addresses = (own, *(f"{base}/{own}" for base in own_bases(ctx.settings)))
    for query in (f"payload-attachment:below={','.join(addresses)}", f"payload-reference={own}"):
        for message in ctx.view.find("Communication", f"{query}&based-on:ServiceRequest.{IS_CASE}"):
            if message.get("status") in _UNSENT:
                continue
            for key in based_on(message):
                if is_case(request := ctx.view.get(key) or {}):
                    return request
    return None


def need_attachments(message: Resource, ctx: Context) -> None:
    """What a message brings along is here when it is sent, and is not deleted or changed beside it: it is read, so
    that its version is looked at again when writing. Raises Invalid (422)."""
    bases = own_bases(ctx.settings)
    for index, part in enumerate(message.get("payload", ())):
        for element, name in (("contentAttachment", "url"), ("contentReference", "reference")):
            url = str(part.get(element, {}).get(name, ""))
            local = _BINARY.match(relative(url, bases) or url)
            if local and ctx.view.get(local[0]) is None:
                text = f"{local[0]} is not stored here; send it first, or in the same Bundle"
                raise Invalid(text, expression=f"Communication.payload[{index}].{element}.{name}", code="not-found")

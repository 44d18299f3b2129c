"""What a message of a téléexpertise brings along: the Binaries its payload names, which stay as they were sent.

Source: https://hl7.org/fhir/R4/communication-definitions.html#Communication.payload
"""

from __future__ import annotations

from fhir_server.search.references import own_bases
from fhir_server.teleexpertise.case import Context, Resource, based_on, is_case

# A message that was not sent holds nothing fast.
_UNSENT = frozenset({"preparation", "not-done", "on-hold", "unknown"})


def case_of_attachment(binary: Resource, ctx: Context) -> Resource | None:
    """A téléexpertise one of whose messages names a Binary, by any of our addresses; None when none does."""
    own = f"Binary/{binary['id']}"
    addresses = (own, *(f"{base}/{own}" for base in own_bases(ctx.settings)))
    for query in (f"payload-attachment:below={','.join(addresses)}", f"payload-reference={own}"):
        for message in ctx.view.find("Communication", query):
            if message.get("status") in _UNSENT:
                continue
            for key in based_on(message):
                if is_case(request := ctx.view.get(key) or {}):
                    return request
    return None

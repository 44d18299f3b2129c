"""Search parameters of this server's own, beside those of the standard: what a message brings along.

R4 has none that leads from a Binary to the Communication whose payload names it; what a téléexpertise rests on is found
by them (docs/adr/0051-what-a-message-brings-along-stays.md). Everybody may search by them.
"""

from __future__ import annotations

from typing import Final

from profiles.definitions import SearchParameter

# Changes with the list below: rows of a new kind need a reindex.
VERSION: Final = "ours 1"
_COMMUNICATION: Final = ("Communication",)


def _parameter(code: str, kind: str, expression: str) -> SearchParameter:
    url = f"urn:passerelle:recherche:{code}"
    return SearchParameter(url, code, kind, expression, _COMMUNICATION, (), (), (), (), True, True, True)


PARAMETERS: Final = (
    _parameter("payload-attachment", "uri", "(Communication.payload.content as Attachment).url"),
    _parameter("payload-reference", "reference", "(Communication.payload.content as Reference)"),
)

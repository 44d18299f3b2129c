"""What came back for one HL7 v2 message that was sent by hand, the same for the API and for the command line.

Hides how an acknowledgement is told apart from an answer that settles nothing: one for another message, or one that
cannot be read. The message has left then, and what became of it is not known.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from hl7v2 import ack
from hl7v2.message import Unreadable

UNKNOWN = "sent, outcome unknown"


def acknowledged(raw: bytes) -> dict[str, Any]:
    """An acknowledgement of what was sent: `outcome` answered, its code, control id (MSA-2), text and errors, and the
    bytes as text."""
    read = ack.read(raw)
    errors = [{"location": one.location, "code": one.code, "text": one.text} for one in read.errors]
    said = {"code": read.code, "control_id": read.control_id, "text": read.text, "errors": errors}
    return {"outcome": "answered", **said, "answer": shown(raw)}


def unsettled(why: str, raw: bytes) -> dict[str, Any]:
    """Something else that came: `outcome` unknown and no code, in `text` why, in `control_id` what it says in MSA-2,
    and the bytes as text."""
    said = ""
    with suppress(Unreadable):
        said = ack.read(raw).control_id
    told = {"code": "", "control_id": said, "text": f"{UNKNOWN}: {why}", "errors": []}
    return {"outcome": "unknown", **told, "answer": shown(raw)}


def shown(raw: bytes) -> str:
    """The bytes of a message as text, a segment a line."""
    return raw.decode("utf-8", "replace").replace("\r", "\n")

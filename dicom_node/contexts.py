"""Which services and encodings this node takes: literal tables of UIDs, and the choice among what a peer proposes.

Hides the UID registry: callers ask "is this storage?" and "how is this transfer syntax written?".

Sources: PS3.6 annex A (UIDs), PS3.4 annex B (storage), PS3.5 annex A (transfer syntaxes), PS3.8 section 9.3.3.2
(results of a presentation context), PS3.18 tables 8.7.3-2 to 8.7.3-5 (media types).
https://dicom.nema.org/medical/dicom/current/output/chtml/part06/chapter_A.html
https://dicom.nema.org/medical/dicom/current/output/chtml/part18/sect_8.7.3.html
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
DEFLATED_LE = "1.2.840.10008.1.2.1.99"
EXPLICIT_BE = "1.2.840.10008.1.2.2"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"

# Our own implementation identity (PS3.7 D.3.3.2); a UUID-derived UID needs no registered root (PS3.5 B.2).
IMPLEMENTATION_UID = "2.25.196406322934851703221946286093171860145"
IMPLEMENTATION_VERSION = "PASSERELLE_0"

ACCEPTED, ABSTRACT_SYNTAX_NOT_SUPPORTED, TRANSFER_SYNTAXES_NOT_SUPPORTED = 0, 3, 4


@dataclass(frozen=True, slots=True)
class TransferSyntax:
    """How a data set is written. `media_type` is what one frame is called over HTTP; '' = never served as a frame."""

    uid: str
    media_type: str
    lossy: bool = False
    encapsulated: bool = True
    explicit: bool = True
    little: bool = True
    deflated: bool = False


def _family(media_type: str, lossy: bool, *suffixes: str) -> tuple[TransferSyntax, ...]:
    return tuple(TransferSyntax(f"1.2.840.10008.1.2.{suffix}", media_type, lossy) for suffix in suffixes)


_OCTETS = "application/octet-stream"
TRANSFER_SYNTAXES: dict[str, TransferSyntax] = {
    syntax.uid: syntax
    for syntax in (
        TransferSyntax(IMPLICIT_LE, _OCTETS, encapsulated=False, explicit=False),
        TransferSyntax(EXPLICIT_LE, _OCTETS, encapsulated=False),
        TransferSyntax(DEFLATED_LE, _OCTETS, encapsulated=False, deflated=True),
        TransferSyntax(EXPLICIT_BE, _OCTETS, encapsulated=False, little=False),
        *_family("image/jpeg", True, "4.50", "4.51"),
        *_family("image/jpeg", False, "4.57", "4.70"),
        *_family("image/jls", False, "4.80"),
        *_family("image/jls", True, "4.81"),
        *_family("image/jp2", False, "4.90"),
        *_family("image/jp2", True, "4.91"),
        *_family("image/jpx", False, "4.92"),
        *_family("image/jpx", True, "4.93"),
        *_family("", True, "4.94", "4.95", "4.204", "4.205"),
        *_family("video/mpeg", True, "4.100", "4.100.1", "4.101", "4.101.1"),
        *_family("video/mp4", True, "4.102", "4.102.1", "4.103", "4.103.1", "4.104", "4.104.1"),
        *_family("video/mp4", True, "4.105", "4.105.1", "4.106", "4.106.1"),
        *_family("video/H265", True, "4.107", "4.108"),
        *_family("image/jxl", False, "4.110"),
        *_family("image/jxl", True, "4.111", "4.112"),
        *_family("image/jphc", False, "4.201", "4.202"),
        *_family("image/jphc", True, "4.203"),
        *_family("image/dicom-rle", False, "5"),
        *_family("", False, "7.1", "7.2", "7.3"),
        *_family(_OCTETS, False, "8.1"),
    )
}
# PS3.6 keeps some identifiers of query, not of storage, under the storage arc.
_STORAGE_ARC = "1.2.840.10008.5.1.4.1.1."
_QUERIES = frozenset(_STORAGE_ARC + s for s in ["200.4", "200.5", "200.6", "201.2", "201.3", "201.4", "201.5", "201.6"])
_STORAGE_ELSEWHERE = frozenset({"1.2.840.10008.5.1.4.34.7", "1.2.840.10008.5.1.4.34.10"})
_STANDARD_ARC = "1.2.840.10008."


class Proposed(NamedTuple):
    """One presentation context of an A-ASSOCIATE-RQ."""

    id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


class Answered(NamedTuple):
    """Our answer to one presentation context; `transfer_syntax` is meaningful only when `result` is ACCEPTED."""

    id: int
    result: int
    abstract_syntax: str
    transfer_syntax: str


def valid_uid(text: str) -> bool:
    """PS3.5 section 9.1, tolerant of leading zeros in a component: 1 to 64 digits and dots, nothing else."""
    return 0 < len(text) <= 64 and text.isascii() and text.replace(".", "").isdigit()


def storage_class(uid: str, *, private: bool = True) -> bool:
    """True for a storage SOP class, known today or not, and (`private`) for a vendor's own class."""
    if uid.startswith(_STORAGE_ARC):
        return uid not in _QUERIES
    if uid.startswith(_STANDARD_ARC):
        return uid in _STORAGE_ELSEWHERE
    return private and valid_uid(uid)


def negotiate(proposed: Iterable[Proposed], *, private: bool = True) -> tuple[Answered, ...]:
    """Answer each context; of its transfer syntaxes take the sender's first one that we can store untouched."""
    return tuple(_answer(context, private) for context in proposed)


def _answer(context: Proposed, private: bool) -> Answered:
    uid = context.abstract_syntax
    if uid != VERIFICATION and not storage_class(uid, private=private):
        return Answered(context.id, ABSTRACT_SYNTAX_NOT_SUPPORTED, uid, IMPLICIT_LE)
    for syntax in context.transfer_syntaxes:
        if syntax in TRANSFER_SYNTAXES:
            return Answered(context.id, ACCEPTED, uid, syntax)
    return Answered(context.id, TRANSFER_SYNTAXES_NOT_SUPPORTED, uid, IMPLICIT_LE)

"""HL7 v2 messages in files, read just far enough to be judged; and what is known of French messages.

Hides separators, charsets and MLLP framing in captures. Independent of the product's own parser.

HL7 v2.5 chapter 2; IHE PAM National Extension France 2.11; CI-SIS "Transmission d'un document CDA-R2 en HL7 v2" 2.1
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

FILES_LIMIT = 2_000
SIZE_LIMIT = 64 * 1024 * 1024
# HL7 table 0211 -> Python codec, as far as IHE France and the CI-SIS use it.
CODECS: Mapping[str, str] = {"UNICODE UTF-8": "utf-8", "8859/15": "iso8859-15", "8859/1": "iso8859-1", "": "ascii"}
# Trigger event -> message structure (HL7 v2.5 and 2.6 table 0354), and the segments French messages must hold.
EVENTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    **{f"ADT^{event}": (f"ADT_{structure}", ("EVN", "PID", "PV1", "ZBE")) for event, structure in (
        ("A01", "A01"), ("A02", "A02"), ("A03", "A03"), ("A04", "A01"), ("A05", "A05"), ("A06", "A06"), ("A07", "A06"),
        ("A11", "A09"), ("A12", "A12"), ("A13", "A01"), ("A21", "A21"), ("A22", "A21"), ("A38", "A38"), ("A52", "A52"),
        ("A53", "A52"), ("A54", "A54"), ("A55", "A52"))},
    "ADT^A28": ("ADT_A05", ("EVN", "PID", "PV1")),
    "ADT^A31": ("ADT_A05", ("EVN", "PID", "PV1")),
    "ADT^A40": ("ADT_A39", ("EVN", "PID", "MRG")),
    "ADT^A47": ("ADT_A30", ("EVN", "PID", "MRG")),
    "ORU^R01": ("ORU_R01", ("PID", "OBR", "OBX")),
    "MDM^T02": ("MDM_T02", ("EVN", "PID", "PV1", "TXA", "OBX")),
    "MDM^T04": ("MDM_T02", ("EVN", "PID", "PV1", "TXA", "OBX")),
    "MDM^T10": ("MDM_T02", ("EVN", "PID", "PV1", "TXA", "OBX")),
    "ZAM^Z01": ("ZAM_Z01", ("EVN", "OBX")),
    "ZAM^Z02": ("ZAM_Z01", ("EVN", "OBX")),
    "ZAM^Z03": ("ZAM_Z01", ("EVN", "OBX")),
}  # fmt: skip


@dataclass(frozen=True)
class Message:
    """One message of a file; `name` says which."""

    name: str
    raw: bytes

    @cached_property
    def charset(self) -> str:
        """MSH-18, first repetition."""
        fields = self.raw.split(b"\r")[0].split(self.raw[3:4] or b"|")
        return fields[17].decode("latin-1").split("~")[0] if len(fields) > 17 else ""

    @cached_property
    def text(self) -> str:
        """The text, each wrong byte replaced."""
        return self.raw.decode(CODECS.get(self.charset, "utf-8"), "replace")

    @cached_property
    def segments(self) -> list[list[str]]:
        """Each segment as fields, numbered as in the standard (MSH-1 is the separator)."""
        mark = self.text[3:4] or "|"
        lines = [line.split(mark) for line in self.text.replace("\n", "\r").split("\r") if line]
        return [["MSH", mark, *fields[1:]] if fields[0] == "MSH" else fields for fields in lines]

    def all(self, name: str) -> Iterator[list[str]]:
        """The segments of a name."""
        return (fields for fields in self.segments if fields[0] == name)

    def field(self, name: str, number: int) -> str:
        """A field of the first such segment, '' when absent."""
        return next((_at(fields, number) for fields in self.all(name)), "")

    def repetitions(self, name: str, number: int) -> list[list[str]]:
        """The repetitions of a field that hold something, each as components."""
        marks = (self.field("MSH", 2) + "^~\\&")[:4] if self.field("MSH", 2) else "^~\\&"
        return [one.split(marks[0]) for one in self.field(name, number).split(marks[1]) if one]

    @property
    def kind(self) -> str:
        """Message code and trigger event, as in `ADT^A01`."""
        return "^".join([*self.field("MSH", 9).split("^"), "", ""][:2])

    @property
    def control_id(self) -> str:
        return self.field("MSH", 10)

    @property
    def is_answer(self) -> bool:
        """Whether this is an acknowledgement, which the checks on messages leave alone."""
        return self.kind.startswith("ACK")


def _at(fields: list[str], number: int) -> str:
    return fields[number] if number < len(fields) else ""


def component(parts: list[str], number: int) -> str:
    """A component by its number in the standard, '' when absent."""
    return _at(parts, number - 1)


def read(path: Path) -> list[Message]:
    """The messages of a file, or of the files of a folder and those below. Raises OSError, ValueError."""
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    if len(files) > FILES_LIMIT or sum(one.stat().st_size for one in files) > SIZE_LIMIT:
        raise ValueError(f"{path}: more than {FILES_LIMIT} files or {SIZE_LIMIT // 2**20} MiB; judge them in parts")
    found = [Message(one.name, raw) for one in files for raw in _messages(one.read_bytes())]
    return [one for one in found if not one.is_answer]


def _messages(data: bytes) -> list[bytes]:
    data = data.removeprefix(b"\xef\xbb\xbf")
    blocks = [block.split(b"\x1c")[0] for block in data.split(b"\x0b")[1:]] if data.startswith(b"\x0b") else [data]
    return [block for block in blocks if block.lstrip().startswith(b"MSH")]

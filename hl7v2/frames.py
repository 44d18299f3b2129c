"""MLLP frames out of a stream of bytes, and into one.

Hides the framing faults of real peers. `<VT> message <FS> <CR>` is the rule; accepted besides: dirt and NULs before
VT, FS with LF, with nothing or with the next VT behind it, several frames in one read, one frame in a thousand reads.
An FS followed by anything else is content, so that no message is ever cut short and taken for whole.

Source: HL7 v2 transport specification MLLP release 1, block format
(https://www.hl7.org/documentcenter/public/wg/inm/mllp_transport_specification.PDF).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

VT: Final = b"\x0b"
FS: Final = b"\x1c"
END: Final = b"\x1c\r"

MAX_FRAME: Final = 64 << 20
MAX_STRAY: Final = 64 << 10
_HEAD: Final = 64 << 10
_PIECE: Final = 16 << 10
"""Settled content of at least so many bytes is put aside until its frame ends, and copied once then."""
_SCAN: Final = re.compile(rb"\x0bMSH|\x1c(?=[\r\n\x0b\x00])|\x1c\Z")


@dataclass(frozen=True, slots=True)
class Frame:
    """The content of one frame; `complete` is false when a new frame began before this one had ended."""

    content: bytes
    complete: bool = True


class FrameTooLarge(Exception):
    """The frame exceeds the limit; `head` is its beginning, enough to answer it."""

    def __init__(self, head: bytes, limit: int) -> None:
        super().__init__(f"a frame exceeds {limit} bytes")
        self.head = head


class NotMllp(Exception):
    """Too many bytes without a start block; `head` is what came first."""

    def __init__(self, head: bytes) -> None:
        super().__init__("the bytes received have no MLLP start block (VT)")
        self.head = head


class Reader:
    """Takes bytes in (`feed`), gives frames out (`next`). Holds at most one frame and one read more."""

    __slots__ = ("_aside", "_buffer", "_inside", "_limit", "_pieces", "_scan", "stray", "stray_head")

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._buffer = bytearray()
        self._pieces: list[bytes] = []
        self._aside = 0
        self._limit = limit
        self._inside = False
        self._scan = 0
        self.stray = 0
        self.stray_head = b""

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._aside + len(self._buffer)

    @property
    def inside(self) -> bool:
        """A frame has begun and not ended."""
        return self._inside

    @property
    def ending(self) -> bool:
        """The last byte is an FS: the frame is over unless more content follows."""
        return self._inside and self._buffer.endswith(FS)

    @property
    def head(self) -> bytes:
        """The beginning of the unfinished frame."""
        return b"".join((*self._pieces[: _HEAD // _PIECE], self._buffer[:_HEAD]))[:_HEAD]

    def feed(self, data: bytes) -> None:
        if self._inside and not self._buffer and len(data) >= _PIECE and FS not in data and VT not in data:
            self._put_aside(data)
        else:
            self._buffer += data

    def next(self) -> Frame | None:
        """The next frame, or None when more bytes are needed. Raises FrameTooLarge or NotMllp."""
        if not self._inside and not self._start():
            return None
        match = self._stop()
        end = match.start() if match else len(self._buffer)
        if self._aside + end > self._limit:
            raise FrameTooLarge(self.head, self._limit)
        if match is None:
            # The last three bytes may be the beginning of VT MSH.
            began = self._buffer.find(VT, max(end - 3, 0))
            self._scan = end if began < 0 else began
            if self._scan >= _PIECE:
                self._put_aside(bytes(self._buffer[: self._scan]))
                del self._buffer[: self._scan]
                self._scan = 0
            return None
        if self._buffer[end] == VT[0]:
            return self._take(end, end + 1, complete=False)
        if end + 1 == len(self._buffer):
            self._scan = end
            return None
        after = end + 1 + (self._buffer[end + 1] in b"\r\n")
        return self._take(end, after, complete=True)

    def _stop(self) -> re.Match[bytes] | None:
        """Where the frame ends, or another begins. Most of a large frame has neither sign, and is passed at once."""
        places = [place for sign in (FS, VT) if (place := self._buffer.find(sign, self._scan)) >= 0]
        return _SCAN.search(self._buffer, min(places)) if places else None

    def flush(self) -> Frame | None:
        """The frame that ends with a lone FS, once nothing follows it."""
        return self._take(len(self._buffer) - 1, len(self._buffer), complete=True) if self.ending else None

    def _start(self) -> bool:
        begin = self._buffer.find(VT)
        passed = len(self._buffer) if begin < 0 else begin
        if passed:
            self.stray_head = (self.stray_head + bytes(self._buffer[:passed]).lstrip(b"\0\r\n "))[:_HEAD]
            self.stray += passed
            del self._buffer[:passed]
        if self.stray > MAX_STRAY:
            raise NotMllp(self.stray_head)
        if begin < 0:
            return False
        del self._buffer[:1]
        self._inside, self._scan = True, 0
        return True

    def _put_aside(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._aside += len(piece)

    def _take(self, end: int, after: int, *, complete: bool) -> Frame:
        content = b"".join((*self._pieces, self._buffer[:end]))
        self._pieces, self._aside = [], 0
        del self._buffer[:after]
        # After an abandoned frame the reader already stands behind the VT of the next one.
        self._inside = not complete
        self._scan, self.stray, self.stray_head = 0, 0, b""
        return Frame(content, complete)


def wrap(message: bytes) -> bytes:
    """The message in a frame. Raises ValueError when it holds VT or FS: it could not be read back."""
    if VT in message or FS in message:
        raise ValueError("the message contains an MLLP block character (VT or FS); escape it as \\X0B\\ or \\X1C\\")
    return VT + message + END

"""Content encrypted at rest, in the form `gcm-chunks-1`: chunks that can be read, and are authenticated, one by one.

    header    "gcm-chunks-1"; fingerprint of the key, 4; the key's id, 32 bytes, zero-padded; salt, 32; nonce prefix, 7
    chunk i   65,536 bytes of the content (the last one fewer, at least one chunk), encrypted, and a tag of 16

Each blob has its own key, HKDF-SHA256 of the named key and the salt, so no two blobs ever share a nonce. The nonce of a
chunk is the prefix, its number (4 bytes) and 1 for the last chunk, else 0; the associated data is the header, the
sha256 of the content, and again number and last-chunk flag. So a chunk that was altered, moved, left out, or taken from
another blob is refused. The fingerprint (HKDF of the key, never zero) tells content that another key of the same id was
used for from content that was altered, and finds that key under another id; it is zero in what was written before there
was one.

Sources: https://www.rfc-editor.org/rfc/rfc5869, https://csrc.nist.gov/pubs/sp/800/38/d/final,
https://eprint.iacr.org/2015/189 (STREAM)
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fhir_server import errors

FORM = "gcm-chunks-1"
CHUNK, TAG = 65_536, 16
_MAGIC = FORM.encode()
_PRINT, _KEY_ID, _SALT, _PREFIX = 4, 32, 32, 7
HEADER = len(_MAGIC) + _PRINT + _KEY_ID + _SALT + _PREFIX
_UNKNOWN = bytes(_PRINT)
NAMED = len(_MAGIC) + _PRINT + _KEY_ID
"""So many first bytes are the same in all that one key sealed."""
ID = re.compile(r"[a-z0-9][a-z0-9-]{0,31}\Z")


class Damaged(errors.Fault):
    """Stored content is not what was written. Restore it from a backup."""


class MissingKey(errors.Unavailable):
    """Stored content is encrypted with a key that is not there, or not under its id. Put the key back."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of 32 bytes by their id; what is written now is encrypted with `newest`, '' = not at all."""

    known: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    newest: str = ""

    def of(self, key_id: str) -> bytes:
        """Raises MissingKey."""
        if key_id not in self.known:
            raise MissingKey(f"Stored content is encrypted with the key {key_id}, which blob_keys does not have.")
        return self.known[key_id]


def read_keys(text: str) -> Keys:
    """Keys from lines `ID BASE64`, the newest last; blank lines and lines with # are none. Raises Invalid."""
    known: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key_id, _, written = line.strip().partition(" ")
        try:
            key = base64.b64decode(written.strip(), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if not ID.match(key_id) or len(key) != 32:
            raise errors.Invalid(
                f"blob_keys, line {number}: write an id (a-z, 0-9, -; at most 32), a space, and 32 bytes as base64."
            )
        if key_id in known:
            raise errors.Invalid(f"blob_keys, line {number}: the id {key_id} is there twice.")
        known[key_id] = key
    return Keys(known, next(reversed(known), ""))


@dataclass(frozen=True, slots=True)
class _Sealer:
    """The cipher of one blob, from its header."""

    header: bytes
    sha256: str
    cipher: AESGCM

    def nonce(self, number: int, last: bool) -> bytes:
        return self.header[-_PREFIX:] + number.to_bytes(4, "big") + bytes([last])

    def told(self, number: int, last: bool) -> bytes:
        return self.header + bytes.fromhex(self.sha256) + number.to_bytes(8, "big") + bytes([last])


def _sealer(header: bytes, sha256: str, key: bytes) -> _Sealer:
    salt = header[-_PREFIX - _SALT : -_PREFIX]
    own = HKDF(algorithm=SHA256(), length=32, salt=salt, info=b"passerelle " + FORM.encode()).derive(key)
    return _Sealer(header, sha256, AESGCM(own))


@lru_cache(maxsize=64)
def _fingerprint(key: bytes) -> bytes:
    told = HKDF(algorithm=SHA256(), length=_PRINT, salt=None, info=b"passerelle fingerprint").derive(key)
    return told if told != _UNKNOWN else bytes([0, 0, 0, 1])


def seal(pieces: Iterable[bytes], sha256: str, keys: Keys) -> Iterator[bytes]:
    """The stored bytes of content whose sha256 is known, made with the newest key."""
    key, named = keys.of(keys.newest), keys.newest.encode().ljust(_KEY_ID, b"\0")
    header = _MAGIC + _fingerprint(key) + named + secrets.token_bytes(_SALT + _PREFIX)
    sealer = _sealer(header, sha256, key)
    yield header
    number, waiting = 0, b""
    for chunk in cut(pieces, CHUNK):
        if number:
            yield sealer.cipher.encrypt(sealer.nonce(number - 1, False), waiting, sealer.told(number - 1, False))
        number, waiting = number + 1, chunk
    last = max(number - 1, 0)
    yield sealer.cipher.encrypt(sealer.nonce(last, True), waiting, sealer.told(last, True))


def cut(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of exactly `size`, the last one shorter."""
    held = bytearray()
    for piece in pieces:
        held += piece
        at = 0
        while len(held) - at >= size:
            yield bytes(held[at : at + size])
            at += size
        del held[:at]
    if held:
        yield bytes(held)


def plain_size(stored: int) -> int:
    """How long the content is whose stored form has `stored` bytes."""
    return max(0, stored - HEADER - TAG * _count(stored))


def _count(stored: int) -> int:
    return max(1, -(-(stored - HEADER) // (CHUNK + TAG)))


Raw = Callable[[int, int], Iterable[bytes]]


def unseal(raw: Raw, stored: int, sha256: str, keys: Keys, start: int, length: int) -> Iterator[bytes]:
    """`length` bytes of the content from `start`, as far as there are; only the chunks that hold them are read.

    `raw(from, count)` gives stored bytes, `stored` is how many there are. Raises Damaged, MissingKey.
    """
    sealer = _opened(b"".join(raw(0, HEADER)), sha256, keys)
    if stored < HEADER + TAG:
        raise Damaged(f"The content {sha256} was cut off.")
    if length <= 0:
        return
    last = _count(stored) - 1
    stop = min(start + length, plain_size(stored))
    first, final = min(last, start // CHUNK), min(last, max(0, stop - 1) // CHUNK)
    final = last if start >= stop else final  # that there is no more is proved by the last chunk
    begins = HEADER + first * (CHUNK + TAG)
    ends = min(stored, HEADER + (final + 1) * (CHUNK + TAG))
    for number, chunk in enumerate(cut(raw(begins, ends - begins), CHUNK + TAG), first):
        try:
            data = sealer.cipher.decrypt(
                sealer.nonce(number, number == last), chunk, sealer.told(number, number == last)
            )
        except (InvalidTag, ValueError) as fault:
            raise Damaged(f"The content {sha256} was altered: its chunk {number} does not verify.") from fault
        skip = max(0, start - number * CHUNK)
        yield data[skip : max(skip, stop - number * CHUNK)]
        first = number + 1
    if first <= final:
        raise Damaged(f"The content {sha256} was cut off.")


def _opened(header: bytes, sha256: str, keys: Keys) -> _Sealer:
    if len(header) != HEADER or not header.startswith(_MAGIC):
        raise Damaged(f"The content {sha256} was altered: it has no header of {FORM}.")
    known, rest = header[len(_MAGIC) : len(_MAGIC) + _PRINT], header[len(_MAGIC) + _PRINT :]
    named = rest[:_KEY_ID].rstrip(b"\0").decode("ascii", "replace")
    if not ID.match(named):
        raise Damaged(f"The content {sha256} was altered: its key's id is none.")
    return _sealer(header, sha256, _key(known, named, sha256, keys))


def _key(fingerprint: bytes, named: str, sha256: str, keys: Keys) -> bytes:
    """The key of that id; where that is another one by now, the key with the fingerprint, under whichever id."""
    key = keys.of(named)
    if fingerprint == _UNKNOWN:
        return key
    for one in (key, *keys.known.values()):
        if _fingerprint(one) == fingerprint:
            return one
    raise MissingKey(
        f"The content {sha256} is encrypted with another key than the one blob_keys has under the id {named}: put "
        "that key back under this id, and give the newer one an id of its own."
    )

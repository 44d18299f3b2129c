"""IHE_XDM.ZIP both ways: written always the same, read with every bound a hostile archive could break.

Layout and names: IHE ITI TF-2 3.32 (https://profiles.ihe.net/ITI/TF/Volume2/ITI-32.html) and the French volet
Échange de documents de santé: INDEX.HTM, README.TXT, IHE_XDM/SUBSET01/. Container: PKWARE APPNOTE 6.3.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

FILE_NAME = "IHE_XDM.ZIP"
SUBSET = "IHE_XDM/SUBSET01/"
EPOCH = (1980, 1, 1, 0, 0, 0)

_DOCUMENT = re.compile(r"DOC\d{4}\.XML")
_EXTRA = re.compile(r"[A-Z0-9_]{1,8}\.[A-Z0-9_]{1,3}")
_CENTRAL_HEADER = b"PK\x01\x02"
_ENCRYPTED = 0x1
_READABLE = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may weigh. Sizes in bytes; `ratio` is unpacked / packed, applied above `ratio_floor` bytes."""

    packed: int = 30 * 1024 * 1024
    entries: int = 100
    entry: int = 30 * 1024 * 1024
    total: int = 60 * 1024 * 1024
    ratio: int = 200
    ratio_floor: int = 1024 * 1024
    name: int = 255


DEFAULT_LIMITS = Limits()


class ArchiveRefused(ValueError):
    """The archive is damaged, hostile or too big; nothing of it was kept. `code` is a short fixed word."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def pack(files: Mapping[str, bytes], *, at: datetime | None = None) -> bytes:
    """Write IHE_XDM.ZIP: the same files give the same bytes.

    `files` maps short names (INDEX.HTM, README.TXT, METADATA.XML, DOC0001.XML, DOC0002.XML, ... and possibly a style
    sheet such as FSTYLE.XSL) to bytes, stored untouched. Order: INDEX.HTM, README.TXT, the two folders, documents,
    other files, METADATA.XML. `at` is the time written in the entries (1980-01-01 when absent).
    Raises ValueError when a mandatory file is missing or a name is not ISO 9660 level 1.
    """
    missing = [name for name in ("INDEX.HTM", "README.TXT", "METADATA.XML", "DOC0001.XML") if name not in files]
    if missing:
        raise ValueError(f"IHE_XDM.ZIP needs {', '.join(missing)}")
    bad = [name for name in files if not _EXTRA.fullmatch(name)]
    if bad:
        raise ValueError(f"not an 8.3 name in capitals: {', '.join(bad)}")
    documents = sorted(name for name in files if _DOCUMENT.fullmatch(name))
    others = sorted(set(files) - set(documents) - {"INDEX.HTM", "README.TXT", "METADATA.XML"})
    stamp = EPOCH if at is None else (at.year, at.month, at.day, at.hour, at.minute, at.second)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as target:
        for name in ("INDEX.HTM", "README.TXT"):
            target.writestr(_entry(name, stamp), files[name])
        for folder in ("IHE_XDM/", SUBSET):
            target.writestr(_entry(folder, stamp), b"")
        for name in (*documents, *others, "METADATA.XML"):
            target.writestr(_entry(SUBSET + name, stamp), files[name])
    return out.getvalue()


def _entry(name: str, stamp: tuple[int, int, int, int, int, int]) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, stamp)
    info.create_system = 0  # MS-DOS attributes: the same bytes whatever machine writes them
    folder = name.endswith("/")
    info.external_attr = 0x10 if folder else 0x20
    info.compress_type = zipfile.ZIP_STORED if folder else zipfile.ZIP_DEFLATED
    return info


def unpack(data: bytes, limits: Limits = DEFAULT_LIMITS) -> dict[str, bytes]:
    """Read every file of an archive, in its order, keyed by its path with `/` (folders left out).

    Memory is bounded by `limits.total`. Raises ArchiveRefused: not a zip, encrypted, damaged (CRC), too many entries,
    too big, too well compressed, overlapping, unknown method, or a name that is absolute, climbs, or comes twice.
    """
    if len(data) > limits.packed:
        raise ArchiveRefused("too-big", f"the archive weighs {len(data)} bytes, at most {limits.packed} are read")
    # The directory is counted before zipfile builds an object per entry; packed data may hold the mark by chance.
    if data.count(_CENTRAL_HEADER) > limits.entries + 16:
        raise ArchiveRefused("too-many", f"the archive holds more than {limits.entries} entries")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as source:
            infos = [info for info in source.infolist() if not info.is_dir()]
            names = _check(infos, len(data), limits)
            return {name: _content(source, info, limits) for name, info in zip(names, infos, strict=True)}
    except ArchiveRefused:
        raise
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError, ValueError) as problem:
        raise ArchiveRefused("damaged", f"the archive cannot be read: {problem}") from None


def _check(infos: list[zipfile.ZipInfo], packed: int, limits: Limits) -> list[str]:
    if len(infos) > limits.entries:
        raise ArchiveRefused("too-many", f"{len(infos)} files, at most {limits.entries} are read")
    names = [_safe_name(info.filename, limits) for info in infos]
    folded = [name.casefold() for name in names]
    if len(set(folded)) != len(folded):
        raise ArchiveRefused("name", "two files of the archive have the same name")
    total = sum(info.file_size for info in infos)
    if total > limits.total or any(info.file_size > limits.entry for info in infos):
        raise ArchiveRefused("too-big", f"the files would weigh {total} bytes once unpacked")
    # Entries that share the same packed bytes unpack to far more than the archive could hold.
    if sum(info.compress_size for info in infos) > packed:
        raise ArchiveRefused("bomb", "files of the archive overlap")
    if total > limits.ratio_floor and total > limits.ratio * packed:
        raise ArchiveRefused("bomb", f"{packed} bytes would unpack to {total}")
    for info in infos:
        if info.flag_bits & _ENCRYPTED:
            raise ArchiveRefused("encrypted", f"{info.filename} is protected by a password")
        if info.compress_type not in _READABLE:
            raise ArchiveRefused("method", f"{info.filename} uses the packing method {info.compress_type}")
    return names


def _safe_name(name: str, limits: Limits) -> str:
    path = name.replace("\\", "/")
    parts = path.split("/")
    if not path or len(path) > limits.name or "\0" in path or any(ord(c) < 32 for c in path):
        raise ArchiveRefused("name", "a file of the archive has an unreadable name")
    if path.startswith("/") or ":" in path or any(part in {"", ".", ".."} for part in parts):
        raise ArchiveRefused("name", f"{name!r} leaves the archive's own folders")
    return path


def _content(source: zipfile.ZipFile, info: zipfile.ZipInfo, limits: Limits) -> bytes:
    with source.open(info) as stream:
        content = stream.read(limits.entry + 1)
    if len(content) != info.file_size:
        raise ArchiveRefused("damaged", f"{info.filename} does not have its announced size")
    return content

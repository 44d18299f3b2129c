"""What the node accepts and what it reports: the values that cross between the DICOM node and its owner.

Sources: PS3.8 section 9.3.4 (rejections), PS3.7 section 9.1.1.1 (C-STORE parameters).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dicom_node.contexts import Answered
from dicom_node.header import Header


@dataclass(frozen=True, slots=True)
class Policy:
    """What the node accepts. Durations in seconds, sizes in bytes.

    `called`: AE titles we answer to beside `ae_title`; None = any. `callers`: calling AE title -> networks in CIDR
    form (none = any address); None = accept every caller from `networks` (() = from anywhere) and report it as not
    known. `min_rate`: bytes per second
    below which a message is given up after `idle_seconds`. `tls`: a server context, with its own demands on client
    certificates. `private_classes`: take storage of SOP classes outside the DICOM arc.
    """

    spool: Path
    ae_title: str = "PASSERELLE"
    called: frozenset[str] | None = frozenset()
    callers: Mapping[str, tuple[str, ...]] | None = None
    networks: tuple[str, ...] = ()
    private_classes: bool = True
    max_associations: int = 64
    max_per_address: int = 32
    max_pdu: int = 1 << 18
    max_object_bytes: int = 2 << 30
    max_operations: int = 16
    idle_seconds: float = 60.0
    artim_seconds: float = 15.0
    min_rate: float = 1024.0
    fsync: bool = True
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class AssociationInfo:
    """Who called, and what became of it. `ended` is '' while open, then `released`, `aborted` or `rejected`.

    `known` is True when the callers table holds this calling AE title and address. `reason` explains a rejection or
    an abort in words. `certificate` is the common name of the TLS client certificate.
    """

    calling: str
    called: str
    peer: str
    port: int
    known: bool = False
    ended: str = ""
    reason: str = ""
    implementation: str = ""
    certificate: str = ""
    contexts: tuple[Answered, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """One received object. `path` is a complete Part 10 file, on disk; the data set starts at `offset`.

    The callback owns the file: it renames it to keep it, and brings the directory entry to the disk itself; what is
    still at `path` afterwards is deleted. `sha256` and `size` are of the data set alone.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling: str
    called: str
    peer: str
    sha256: str
    size: int
    offset: int
    header: Header


OnStore = Callable[[StoreRequest], int]
OnAssociation = Callable[[AssociationInfo], None]
OnRelease = Callable[[AssociationInfo, tuple[str, ...]], None]

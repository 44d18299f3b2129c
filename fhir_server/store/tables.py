"""The tables, once, for both databases: what migrations are compared with and what every statement names.

Hides column types and indexes. Times are microseconds since 1970-01-01 UTC in 64-bit integers, flags are 0 or 1,
text compares byte by byte (`COLLATE "C"` on PostgreSQL, BINARY on SQLite). `txid` is the number of the writing
transaction: `pg_current_xact_id()` on PostgreSQL, a counter under the single writer on SQLite; readers that must
see rows in commit order stop below the oldest running one.

No foreign keys and no primary keys on index tables: they are derived, rewritten with their resource, and checked
by `passerelle check` instead of on every row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

METADATA = MetaData()

BIG: TypeEngine[int] = BigInteger().with_variant(Integer(), "sqlite")
TXT: TypeEngine[str] = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
REAL: TypeEngine[float] = Double()
BYTES: TypeEngine[bytes] = LargeBinary()


def _key(name: str) -> Column[int]:
    return Column(name, BIG, Identity(always=False), primary_key=True)


def _big(name: str, default: str | None = None) -> Column[int]:
    return Column(name, BIG, nullable=False, server_default=None if default is None else text(default))


def _text(name: str, default: str | None = None) -> Column[str]:
    return Column(name, TXT, nullable=False, server_default=None if default is None else text(f"'{default}'"))


def _flag(name: str) -> Column[int]:
    return Column(name, SmallInteger, nullable=False, server_default=text("0"))


def _small(name: str) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default=text("0"))


counter = Table("counter", METADATA, Column("name", TXT, primary_key=True), _big("value"))

_LIVE = text("deleted = 0")
resource = Table(
    "resource",
    METADATA,
    _key("rid"),
    _text("type"),
    _text("id"),
    Column("version", Integer, nullable=False),
    _big("last_updated"),
    _flag("deleted"),
    _text("method"),
    _small("mask"),
    _big("txid"),
    Column("text", TXT),
    UniqueConstraint("type", "id", name="resource_type_id"),
    Index("resource_recent", "type", "last_updated", "rid", postgresql_where=_LIVE, sqlite_where=_LIVE),
)
"""`mask` says which index tables hold rows of this resource (bit i = INDEX_TABLES[i])."""

history = Table(
    "history",
    METADATA,
    Column("rid", BIG, primary_key=True, autoincrement=False),
    Column("version", Integer, primary_key=True, autoincrement=False),
    _big("last_updated"),
    _flag("deleted"),
    _text("method"),
    _big("txid"),
    Column("text", TXT),
)
"""Superseded versions, append-only; the current one is in `resource`."""

journal = Table(
    "journal",
    METADATA,
    _key("seq"),
    _big("txid"),
    _big("rid"),
    Column("version", Integer, nullable=False),
    _text("type"),
    _big("at"),
    _text("method"),
    Index("journal_order", "txid", "seq"),
    Index("journal_type_at", "type", "at", "seq"),
    Index("journal_at", "at", "seq"),
)


@dataclass(frozen=True, slots=True)
class Bulk:
    """A table filled many rows at a time; `columns` are (name, PostgreSQL type) in the order of the row tuples."""

    table: str
    columns: tuple[tuple[str, str], ...]

    @property
    def names(self) -> str:
        return ", ".join(name for name, _ in self.columns)


_DOUBLE = "double precision"


def _index_table(name: str, *columns: tuple[str, str]) -> Bulk:
    types: dict[str, TypeEngine[Any]] = {"bigint": BIG, "text": TXT, _DOUBLE: REAL}
    made: list[Column[Any]] = [_big("pid"), _big("rid")]
    made.extend(Column(column, types[kind], nullable=False) for column, kind in columns)
    Table(name, METADATA, *made, Index(f"{name}_rid", "rid", "pid"))
    return Bulk(name, (("rid", "bigint"), ("pid", "bigint"), *columns))


IDX_STRING = _index_table("idx_string", ("folded", "text"), ("exact", "text"))
IDX_TOKEN = _index_table("idx_token", ("system", "text"), ("code", "text"), ("folded", "text"))
IDX_DATE = _index_table("idx_date", ("low", "bigint"), ("high", "bigint"))
IDX_NUMBER = _index_table("idx_number", ("low", _DOUBLE), ("high", _DOUBLE))
IDX_QUANTITY = _index_table(
    "idx_quantity",
    ("system", "text"),
    ("code", "text"),
    ("low", _DOUBLE),
    ("high", _DOUBLE),
    ("unit", "text"),
    ("canonical_low", _DOUBLE),
    ("canonical_high", _DOUBLE),
)
IDX_REFERENCE = _index_table(
    "idx_reference", ("type", "text"), ("id", "text"), ("url", "text"), ("system", "text"), ("value", "text")
)
IDX_URI = _index_table("idx_uri", ("uri", "text"))
IDX_COORDS = _index_table("idx_coords", ("latitude", _DOUBLE), ("longitude", _DOUBLE))

INDEX_TABLES = (IDX_STRING, IDX_TOKEN, IDX_DATE, IDX_NUMBER, IDX_QUANTITY, IDX_REFERENCE, IDX_URI, IDX_COORDS)
"""In the order of `IndexRows`' fields; the position is the bit in `resource.mask`."""

_SOUGHT: tuple[tuple[Bulk, str, tuple[str, ...], str | None], ...] = (
    (IDX_STRING, "idx_string_folded", ("pid", "folded", "rid"), None),
    (IDX_TOKEN, "idx_token_code", ("pid", "code", "system", "rid"), None),
    (IDX_DATE, "idx_date_low", ("pid", "low", "high", "rid"), None),
    (IDX_DATE, "idx_date_high", ("pid", "high", "rid"), None),
    (IDX_NUMBER, "idx_number_low", ("pid", "low", "high", "rid"), None),
    (IDX_QUANTITY, "idx_quantity_low", ("pid", "code", "low", "rid"), None),
    (IDX_QUANTITY, "idx_quantity_canonical", ("pid", "unit", "canonical_low", "rid"), "unit <> ''"),
    (IDX_REFERENCE, "idx_reference_id", ("pid", "id", "type", "rid"), "id <> ''"),
    (IDX_REFERENCE, "idx_reference_url", ("pid", "url", "rid"), "url <> ''"),
    (IDX_REFERENCE, "idx_reference_value", ("pid", "value", "system", "rid"), "value <> ''"),
    (IDX_URI, "idx_uri_uri", ("pid", "uri", "rid"), None),
    (IDX_COORDS, "idx_coords_latitude", ("pid", "latitude", "longitude", "rid"), None),
)
for _bulk, _name, _columns, _where in _SOUGHT:
    _table = METADATA.tables[_bulk.table]
    _partial = None if _where is None else text(_where)
    Index(_name, *(_table.c[column] for column in _columns), postgresql_where=_partial, sqlite_where=_partial)

scope = Table(
    "scope",
    METADATA,
    _big("rid"),
    _text("kind"),
    _text("key"),
    Index("scope_rid", "rid"),
    Index("scope_key", "kind", "key", "rid"),
)
"""What a resource belongs to. Kept when it is deleted: its history stays visible to the same people."""
SCOPE = Bulk("scope", (("rid", "bigint"), ("kind", "text"), ("key", "text")))

blob = Table(
    "blob",
    METADATA,
    Column("sha256", TXT, primary_key=True),
    _big("size"),
    _text("media_type", ""),
    _text("form", "plain"),
    _big("created_at"),
    _flag("kept"),
    _big("idle_since", "0"),
)
"""Which content belongs to the record. `kept`: for good, whether a row refers to it or not. `idle_since`: when a
clean-up first found that nothing refers to it, 0 = it is used."""


def _only(condition: str) -> dict[str, Any]:
    return {"postgresql_where": text(condition), "sqlite_where": text(condition)}


message_key = Table(
    "message_key",
    METADATA,
    _text("box"),
    _text("message"),
    _text("kind"),
    _text("value"),
    Index("message_key_message", "message", "box"),
    Index("message_key_value", "value", "kind", "message"),
)
"""Business keys of inbox rows (`box` in) and deliveries (`box` out): INS, IPP, accession, RPPS, case..."""
MESSAGE_KEY = Bulk("message_key", (("box", "text"), ("message", "text"), ("kind", "text"), ("value", "text")))

inbox = Table(
    "inbox",
    METADATA,
    _key("seq"),
    _text("id"),
    _text("channel"),
    _text("endpoint"),
    _text("peer", ""),
    _text("media_type", ""),
    _text("sha256"),
    _big("size"),
    Column("raw", BYTES),
    _text("sender", ""),
    _text("control_id", ""),
    _text("message_type", ""),
    _big("received_at"),
    _text("request_id", ""),
    _text("state"),
    _flag("original"),
    _text("rival", ""),
    _small("repeats"),
    _big("repeated_at", "0"),
    _big("settled_at", "0"),
    Column("ack", BYTES),
    _text("note", ""),
    _text("error", ""),
    _text("location", ""),
    _text("case_key", ""),
    UniqueConstraint("id", name="inbox_id"),
    Index("inbox_control", "sender", "control_id"),
    Index(
        "inbox_original",
        "sender",
        "control_id",
        unique=True,
        postgresql_where=text("original = 1 AND control_id <> ''"),
        sqlite_where=text("original = 1 AND control_id <> ''"),
    ),
    Index("inbox_state", "state", "seq"),
    Index("inbox_case", "case_key", postgresql_where=text("case_key <> ''"), sqlite_where=text("case_key <> ''")),
    Index("inbox_rival", "rival", **_only("rival <> ''")),
    Index("inbox_blob", "sha256", **_only("raw IS NULL")),
)
"""Everything received, original bytes first (`raw` up to 64 KiB, else the blob `sha256`)."""

lane = Table(
    "lane",
    METADATA,
    _key("id"),
    _text("name"),
    _text("endpoint"),
    _text("protocol"),
    _text("on_stuck", "block"),
    _big("next_seq", "0"),
    _big("ready_at", "0"),
    _big("lease_until", "0"),
    _text("lease_by", ""),
    _big("token", "0"),
    _flag("paused"),
    _text("paused_note", ""),
    _small("failures"),
    UniqueConstraint("name", name="lane_name"),
)

_OPEN = text("state IN ('queued', 'sending')")
_STUCK = text("state IN ('held', 'error')")
delivery = Table(
    "delivery",
    METADATA,
    Column("id", TXT, primary_key=True),
    Column("lane_id", BIG, ForeignKey("lane.id"), nullable=False),
    _big("lane_seq"),
    _text("state"),
    _text("endpoint"),
    _text("protocol"),
    _text("media_type", ""),
    _text("title", ""),
    Column("payload", BYTES),
    _text("sha256"),
    _big("size"),
    _text("patient", ""),
    _text("case_key", ""),
    _text("document", ""),
    _text("parent", ""),
    _text("second_leg", "none"),
    _text("leg_state", ""),
    _text("leg_text", ""),
    _big("leg_at", "0"),
    _text("leg_inbox", ""),
    _big("created_at"),
    _small("attempts"),
    _big("first_sent_at", "0"),
    _big("settled_at", "0"),
    _text("error_class", ""),
    _text("error", ""),
    Column("ack", BYTES),
    UniqueConstraint("lane_id", "lane_seq", name="delivery_order"),
    Index("delivery_open", "lane_id", "lane_seq", postgresql_where=_OPEN, sqlite_where=_OPEN),
    Index("delivery_stuck", "lane_id", "lane_seq", postgresql_where=_STUCK, sqlite_where=_STUCK),
    Index("delivery_state", "state", "created_at"),
    Index("delivery_recent", "created_at", "id"),
    Index("delivery_case", "case_key", postgresql_where=text("case_key <> ''"), sqlite_where=text("case_key <> ''")),
    Index("delivery_parent", "parent", **_only("parent <> ''")),
    Index("delivery_leg_inbox", "leg_inbox", **_only("leg_inbox <> ''")),
    Index("delivery_blob", "sha256", **_only("payload IS NULL")),
)

attempt = Table(
    "attempt",
    METADATA,
    _key("seq"),
    Column("delivery_id", TXT, ForeignKey("delivery.id"), nullable=False),
    Column("n", Integer, nullable=False),
    _text("worker"),
    _big("token"),
    _big("started_at"),
    _big("ended_at", "0"),
    _text("outcome", ""),
    _text("error_class", ""),
    _text("error", ""),
    Column("ack", BYTES),
    UniqueConstraint("delivery_id", "n", name="attempt_n"),
)

dicom_study = Table(
    "dicom_study",
    METADATA,
    Column("study_uid", TXT, primary_key=True),
    _text("accession", ""),
    _text("patient_id", ""),
    _text("issuer", ""),
    _text("calling_ae", ""),
    _small("instances"),
    _small("series"),
    _flag("dirty"),
    _big("dirty_at", "0"),
    _big("claimed_until", "0"),
    _text("match_state", "new"),
    _text("subject", ""),
    _text("request", ""),
    _text("imaging_study", ""),
    _text("note", ""),
    _big("first_at"),
    _big("last_at"),
    Index("dicom_study_accession", "accession"),
    Index("dicom_study_patient", "patient_id", "issuer"),
    Index("dicom_study_request", "request"),
    Index("dicom_study_dirty", "dirty_at", postgresql_where=text("dirty = 1"), sqlite_where=text("dirty = 1")),
)

dicom_instance = Table(
    "dicom_instance",
    METADATA,
    Column("sop_uid", TXT, primary_key=True),
    _text("study_uid"),
    _text("series_uid"),
    _text("sop_class"),
    _text("transfer_syntax"),
    _text("blob"),
    _big("size"),
    _text("data_sha256"),
    _text("header"),
    _text("frames", "[]"),
    _text("patient_id", ""),
    _text("issuer", ""),
    _text("accession", ""),
    _text("calling_ae", ""),
    _text("peer", ""),
    _big("received_at"),
    Index("dicom_instance_study", "study_uid", "series_uid"),
    Index("dicom_instance_blob", "blob"),
)

dicom_conflict = Table(
    "dicom_conflict",
    METADATA,
    _key("seq"),
    _text("sop_uid"),
    _text("study_uid"),
    _text("blob"),
    _big("size"),
    _text("data_sha256"),
    _text("calling_ae", ""),
    _text("peer", ""),
    _big("received_at"),
    Index("dicom_conflict_once", "sop_uid", "data_sha256", unique=True),
    Index("dicom_conflict_blob", "blob"),
)

audit = Table(
    "audit",
    METADATA,
    _key("seq"),
    _big("txid"),
    _big("recorded"),
    _text("action"),
    _text("event", ""),
    _text("who", ""),
    _text("display", ""),
    _text("role", ""),
    _text("channel", ""),
    _text("peer", ""),
    _text("request_id", ""),
    _text("entity_type", ""),
    _text("entity_id", ""),
    _small("entity_version"),
    _text("case_key", ""),
    _text("outcome", "0"),
    _text("text", ""),
    Index("audit_order", "txid", "seq"),
    Index("audit_recorded", "recorded", "seq"),
    Index("audit_entity", "entity_type", "entity_id"),
    Index("audit_case", "case_key", postgresql_where=text("case_key <> ''"), sqlite_where=text("case_key <> ''")),
)

audit_seal = Table(
    "audit_seal",
    METADATA,
    Column("n", Integer, primary_key=True, autoincrement=False),
    _big("last_txid"),
    _big("covered"),
    _text("previous"),
    _text("hash"),
    _big("sealed_at"),
)

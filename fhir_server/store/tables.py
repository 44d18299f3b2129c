"""The tables, once, for both databases: what migrations are compared with and what every statement names.

Hides column types and indexes. Times are microseconds since 1970-01-01 UTC in 64-bit integers, flags are 0 or 1,
text compares byte by byte (`COLLATE "C"` on PostgreSQL, BINARY on SQLite). `txid` is the number of the writing
transaction: `pg_current_xact_id()` on PostgreSQL, a counter under the single writer on SQLite; readers that must
see rows in commit order stop below the oldest running one.

No foreign keys and no primary keys on index tables: they are derived, rewritten with their resource, and checked
by `passerelle check` instead of on every row.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, ForeignKey, Index, Integer, SmallInteger, Table, UniqueConstraint, text
from sqlalchemy.types import TypeEngine

from fhir_server.store.columns import BIG, BYTES, DOUBLE, REAL, TXT, big, flag, key, only, small, txt
from fhir_server.store.columns import METADATA as METADATA
from fhir_server.store.columns import Bulk as Bulk

counter = Table("counter", METADATA, Column("name", TXT, primary_key=True), big("value"))

_LIVE = text("deleted = 0")
resource = Table(
    "resource",
    METADATA,
    key("rid"),
    txt("type"),
    txt("id"),
    Column("version", Integer, nullable=False),
    big("last_updated"),
    flag("deleted"),
    txt("method"),
    small("mask"),
    big("txid"),
    Column("text", TXT),
    UniqueConstraint("type", "id", name="resource_type_id"),
    Index("resource_recent", "type", "last_updated", "rid", postgresql_where=_LIVE, sqlite_where=_LIVE),
)
"""`mask` says which index tables hold rows of this resource (bit i = INDEX_TABLES[i])."""
_OF_VERSION = (
    ("version", "integer"),
    ("last_updated", "bigint"),
    ("deleted", "smallint"),
    ("method", "text"),
    ("mask", "integer"),
    ("text", "text"),
)
RESOURCE = Bulk("resource", (("rid", "bigint"), ("type", "text"), ("id", "text"), *_OF_VERSION), numbered=True)
VERSION = Bulk("resource", (("rid", "bigint"), *_OF_VERSION), numbered=True)
"""What of a resource's row is new with each version."""

history = Table(
    "history",
    METADATA,
    Column("rid", BIG, primary_key=True, autoincrement=False),
    Column("version", Integer, primary_key=True, autoincrement=False),
    big("last_updated"),
    flag("deleted"),
    txt("method"),
    big("txid"),
    Column("text", TXT),
)
"""Superseded versions, append-only; the current one is in `resource`."""

journal = Table(
    "journal",
    METADATA,
    key("seq"),
    big("txid"),
    big("rid"),
    Column("version", Integer, nullable=False),
    txt("type"),
    big("at"),
    txt("method"),
    Index("journal_order", "txid", "seq"),
    Index("journal_type_at", "type", "at", "seq"),
    Index("journal_at", "at", "seq"),
)


JOURNAL = Bulk(
    "journal",
    (("rid", "bigint"), ("version", "integer"), ("type", "text"), ("at", "bigint"), ("method", "text")),
    numbered=True,
)


def _index_table(name: str, *columns: tuple[str, str]) -> Bulk:
    types: dict[str, TypeEngine[Any]] = {"bigint": BIG, "text": TXT, DOUBLE: REAL, "smallint": SmallInteger()}
    made: list[Column[Any]] = [big("pid"), big("rid")]
    for column, kind in columns:
        default = text("1") if column == "loose" else None
        made.append(Column(column, types[kind], nullable=False, server_default=default))
    Table(name, METADATA, *made, Index(f"{name}_rid", "rid", "pid"))
    return Bulk(name, (("rid", "bigint"), ("pid", "bigint"), *columns))


IDX_STRING = _index_table("idx_string", ("folded", "text"), ("exact", "text"))
IDX_TOKEN = _index_table("idx_token", ("system", "text"), ("code", "text"), ("folded", "text"))
IDX_DATE = _index_table("idx_date", ("low", "bigint"), ("high", "bigint"), ("loose", "smallint"))
"""`loose`: whether a range of `low` finds the row, see `dates`."""

IDX_NUMBER = _index_table("idx_number", ("low", DOUBLE), ("high", DOUBLE))
IDX_QUANTITY = _index_table(
    "idx_quantity",
    ("system", "text"),
    ("code", "text"),
    ("low", DOUBLE),
    ("high", DOUBLE),
    ("unit", "text"),
    ("canonical_low", DOUBLE),
    ("canonical_high", DOUBLE),
)
IDX_REFERENCE = _index_table(
    "idx_reference", ("type", "text"), ("id", "text"), ("url", "text"), ("system", "text"), ("value", "text")
)
IDX_URI = _index_table("idx_uri", ("uri", "text"))
IDX_COORDS = _index_table("idx_coords", ("latitude", DOUBLE), ("longitude", DOUBLE))

Table(
    "idx_text",
    METADATA,
    key("n"),
    big("pid"),
    big("rid"),
    txt("words"),
    Index("idx_text_rid", "rid", "pid"),
)
IDX_TEXT = Bulk("idx_text", (("rid", "bigint"), ("pid", "bigint"), ("words", "text")))
"""Folded words for full text. `idx_text_words` indexes them: an FTS5 table kept by triggers on SQLite, a GIN index of
their tsvector on PostgreSQL; both are made by the migration, being of one database each."""

Table(
    "contained",
    METADATA,
    big("rid"),
    big("number"),
    txt("type"),
    txt("id"),
    Index("contained_rid", "rid"),
    Index("contained_number", "number", unique=True),
    Index("contained_type", "type", "id"),
)
CONTAINED = Bulk("contained", (("rid", "bigint"), ("number", "bigint"), ("type", "text"), ("id", "text")))
"""The contained resources of `rid`. Their index rows stand under `number`, which is negative: no resource has it, so
that a search finds them only when it asks for contained resources. See `resources.contained_numbers`."""

INDEX_TABLES = (
    IDX_STRING, IDX_TOKEN, IDX_DATE, IDX_NUMBER, IDX_QUANTITY, IDX_REFERENCE, IDX_URI, IDX_COORDS, IDX_TEXT,
    CONTAINED,
)  # fmt: skip
"""In the order of `IndexRows`' fields; the position is the bit in `resource.mask`."""

_SOUGHT: tuple[tuple[Bulk, str, tuple[str, ...], str | None], ...] = (
    (IDX_STRING, "idx_string_folded", ("pid", "folded", "rid"), None),
    (IDX_TOKEN, "idx_token_code", ("pid", "code", "system", "rid"), None),
    (IDX_DATE, "idx_date_low", ("pid", "low", "high", "rid"), None),
    (IDX_DATE, "idx_date_high", ("pid", "high", "rid"), None),
    (IDX_DATE, "idx_date_loose", ("pid", "loose", "low", "high", "rid"), "loose > 0"),
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

search_parameter = Table(
    "search_parameter",
    METADATA,
    Column("url", TXT, primary_key=True),
    txt("id"),
    txt("definition"),
    txt("state"),
    txt("note", ""),
    big("position"),
    big("since"),
    big("seen", "0"),
    big("total", "0"),
)
"""Search parameters of users, by their canonical URL: see `parameters`."""

scope = Table(
    "scope",
    METADATA,
    big("rid"),
    txt("kind"),
    txt("key"),
    Index("scope_rid", "rid"),
    Index("scope_key", "kind", "key", "rid"),
)
"""What a resource belongs to. Kept when it is deleted: its history stays visible to the same people."""
SCOPE = Bulk("scope", (("rid", "bigint"), ("kind", "text"), ("key", "text")))

blob = Table(
    "blob",
    METADATA,
    Column("sha256", TXT, primary_key=True),
    big("size"),
    txt("media_type", ""),
    txt("form", "plain"),
    txt("key_id", ""),
    big("created_at"),
    flag("kept"),
    big("idle_since", "0"),
)
"""Which content belongs to the record. `form` and `key_id`: how it was stored when it was recorded last. `kept`: for
good, whether a row refers to it or not. `idle_since`: when a clean-up first found that nothing refers to it, 0 = it is
used."""


message_key = Table(
    "message_key",
    METADATA,
    txt("box"),
    txt("message"),
    txt("kind"),
    txt("value"),
    Index("message_key_message", "message", "box"),
    Index("message_key_value", "value", "kind", "message"),
)
"""Business keys of inbox rows (`box` in) and deliveries (`box` out): INS, IPP, accession, RPPS, case...; and further
patient identifiers of studies (`box` study)."""
MESSAGE_KEY = Bulk("message_key", (("box", "text"), ("message", "text"), ("kind", "text"), ("value", "text")))

inbox = Table(
    "inbox",
    METADATA,
    key("seq"),
    txt("id"),
    txt("channel"),
    txt("endpoint"),
    txt("peer", ""),
    txt("media_type", ""),
    txt("sha256"),
    big("size"),
    Column("raw", BYTES),
    txt("sender", ""),
    txt("control_id", ""),
    txt("message_type", ""),
    big("received_at"),
    txt("request_id", ""),
    txt("state"),
    flag("original"),
    txt("rival", ""),
    small("repeats"),
    big("repeated_at", "0"),
    big("settled_at", "0"),
    Column("ack", BYTES),
    txt("note", ""),
    txt("error", ""),
    txt("location", ""),
    txt("case_key", ""),
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
    Index("inbox_rival", "rival", **only("rival <> ''")),
    Index("inbox_blob", "sha256", **only("raw IS NULL")),
)
"""Everything received, original bytes first (`raw` up to 64 KiB, else the blob `sha256`)."""

lane = Table(
    "lane",
    METADATA,
    key("id"),
    txt("name"),
    txt("endpoint"),
    txt("protocol"),
    txt("on_stuck", "block"),
    big("next_seq", "0"),
    big("ready_at", "0"),
    big("lease_until", "0"),
    txt("lease_by", ""),
    big("token", "0"),
    flag("paused"),
    txt("paused_note", ""),
    small("failures"),
    txt("on_silence", ""),
    big("gap", "0"),
    flag("pull"),
    big("answer_within", "0"),
    big("keep_open", "0"),
    UniqueConstraint("name", name="lane_name"),
)
"""One destination. `gap`: microseconds between the starts of two deliveries at least. `on_silence`: what to do when the
partner may have the bytes or not, '' = as the transport does. `pull`: the partner fetches; no worker sends.
`answer_within`: microseconds it has to answer, 0 = as the installation says. `keep_open`: microseconds an idle
connection to it is kept, 0 = not at all."""

_OPEN = text("state IN ('queued', 'sending')")
_STUCK = text("state IN ('held', 'error')")
delivery = Table(
    "delivery",
    METADATA,
    Column("id", TXT, primary_key=True),
    Column("lane_id", BIG, ForeignKey("lane.id"), nullable=False),
    big("lane_seq"),
    txt("state"),
    txt("endpoint"),
    txt("protocol"),
    txt("media_type", ""),
    txt("title", ""),
    Column("payload", BYTES),
    txt("sha256"),
    big("size"),
    txt("patient", ""),
    txt("case_key", ""),
    txt("document", ""),
    txt("parent", ""),
    txt("second_leg", "none"),
    txt("leg_state", ""),
    txt("leg_text", ""),
    big("leg_at", "0"),
    txt("leg_inbox", ""),
    big("created_at"),
    small("attempts"),
    big("first_sent_at", "0"),
    big("settled_at", "0"),
    txt("error_class", ""),
    txt("error", ""),
    Column("ack", BYTES),
    txt("ins", ""),
    small("document_version"),
    txt("cleared", ""),
    txt("left_out", ""),
    UniqueConstraint("lane_id", "lane_seq", name="delivery_order"),
    Index("delivery_open", "lane_id", "lane_seq", postgresql_where=_OPEN, sqlite_where=_OPEN),
    Index("delivery_stuck", "lane_id", "lane_seq", postgresql_where=_STUCK, sqlite_where=_STUCK),
    Index("delivery_state", "state", "created_at"),
    Index("delivery_recent", "created_at", "id"),
    Index("delivery_case", "case_key", postgresql_where=text("case_key <> ''"), sqlite_where=text("case_key <> ''")),
    Index("delivery_parent", "parent", **only("parent <> ''")),
    Index("delivery_leg_inbox", "leg_inbox", **only("leg_inbox <> ''")),
    Index("delivery_leg_waiting", "second_leg", "created_at", **only("leg_state = 'waiting'")),
    Index("delivery_blob", "sha256", **only("payload IS NULL")),
)
"""`ins` and `document_version`: what the frozen bytes say of the patient, and which version of `document` they tell.
A line each, `cleared` has the reasons for holding it that a person set aside, `left_out` what its bytes leave out."""

attempt = Table(
    "attempt",
    METADATA,
    key("seq"),
    Column("delivery_id", TXT, ForeignKey("delivery.id"), nullable=False),
    Column("n", Integer, nullable=False),
    txt("worker"),
    big("token"),
    big("started_at"),
    big("ended_at", "0"),
    txt("outcome", ""),
    txt("error_class", ""),
    txt("error", ""),
    Column("ack", BYTES),
    UniqueConstraint("delivery_id", "n", name="attempt_n"),
)

dicom_study = Table(
    "dicom_study",
    METADATA,
    Column("study_uid", TXT, primary_key=True),
    txt("accession", ""),
    txt("patient_id", ""),
    txt("issuer", ""),
    txt("calling_ae", ""),
    small("instances"),
    small("series"),
    flag("dirty"),
    big("dirty_at", "0"),
    big("claimed_until", "0"),
    txt("match_state", "new"),
    txt("subject", ""),
    txt("request", ""),
    txt("imaging_study", ""),
    txt("note", ""),
    big("first_at"),
    big("last_at"),
    Index("dicom_study_accession", "accession"),
    Index("dicom_study_patient", "patient_id", "issuer"),
    Index("dicom_study_request", "request"),
    Index("dicom_study_dirty", "dirty_at", postgresql_where=text("dirty = 1"), sqlite_where=text("dirty = 1")),
)

dicom_instance = Table(
    "dicom_instance",
    METADATA,
    Column("sop_uid", TXT, primary_key=True),
    txt("study_uid"),
    txt("series_uid"),
    txt("sop_class"),
    txt("transfer_syntax"),
    txt("blob"),
    big("size"),
    txt("data_sha256"),
    txt("header"),
    txt("frames", "[]"),
    txt("patient_id", ""),
    txt("issuer", ""),
    txt("accession", ""),
    txt("calling_ae", ""),
    txt("peer", ""),
    big("received_at"),
    Index("dicom_instance_study", "study_uid", "series_uid"),
    Index("dicom_instance_blob", "blob"),
)

dicom_conflict = Table(
    "dicom_conflict",
    METADATA,
    key("seq"),
    txt("sop_uid"),
    txt("study_uid"),
    txt("blob"),
    big("size"),
    txt("data_sha256"),
    txt("calling_ae", ""),
    txt("peer", ""),
    big("received_at"),
    Index("dicom_conflict_once", "sop_uid", "data_sha256", unique=True),
    Index("dicom_conflict_blob", "blob"),
)

audit = Table(
    "audit",
    METADATA,
    key("seq"),
    big("txid"),
    big("recorded"),
    txt("action"),
    txt("event", ""),
    txt("who", ""),
    txt("display", ""),
    txt("role", ""),
    txt("channel", ""),
    txt("peer", ""),
    txt("request_id", ""),
    txt("entity_type", ""),
    txt("entity_id", ""),
    small("entity_version"),
    txt("case_key", ""),
    txt("outcome", "0"),
    txt("text", ""),
    Index("audit_order", "txid", "seq"),
    Index("audit_recorded", "recorded", "seq"),
    Index("audit_entity", "entity_type", "entity_id"),
    Index("audit_case", "case_key", postgresql_where=text("case_key <> ''"), sqlite_where=text("case_key <> ''")),
)

AUDIT = Bulk(
    "audit",
    tuple(
        (column.name, {"recorded": "bigint", "entity_version": "integer"}.get(column.name, "text"))
        for column in audit.columns
        if column.name not in ("seq", "txid")
    ),
    numbered=True,
)

audit_seal = Table(
    "audit_seal",
    METADATA,
    Column("n", Integer, primary_key=True, autoincrement=False),
    big("last_txid"),
    big("covered"),
    txt("previous"),
    txt("hash"),
    big("sealed_at"),
)

partner = Table(
    "partner",
    METADATA,
    Column("channel", TXT, primary_key=True),
    Column("name", TXT, primary_key=True),
    Column("address", TXT, primary_key=True),
    txt("outcome"),
    txt("reason"),
    big("first_at"),
    big("last_at"),
    big("times"),
    Index("partner_last", "last_at"),
)
"""Callers no establishment declares, at most some hundred: see `partners`."""

"""The first schema.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG: Any = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TXT: Any = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def _key(name: str) -> sa.Column[int]:
    return sa.Column(name, BIG, sa.Identity(always=False), nullable=False)


def _big(name: str, default: str | None = None) -> sa.Column[int]:
    return sa.Column(name, BIG, server_default=None if default is None else sa.text(default), nullable=False)


def _text(name: str, default: str | None = None) -> sa.Column[str]:
    return sa.Column(name, TXT, server_default=None if default is None else sa.text(f"'{default}'"), nullable=False)


def _real(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Double(), nullable=False)


def _small(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), server_default=sa.text("0"), nullable=False)


def _flag(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.SmallInteger(), server_default=sa.text("0"), nullable=False)


def _where(condition: str) -> dict[str, Any]:
    return {"postgresql_where": sa.text(condition), "sqlite_where": sa.text(condition)}


def upgrade() -> None:
    _resources()
    _indexes()
    _messages()
    _images()
    _audit()
    op.execute("INSERT INTO counter (name, value) VALUES ('tx', 0), ('epoch', 1)")


def _resources() -> None:
    op.create_table(
        "blob",
        _text("sha256"),
        _big("size"),
        _text("media_type", ""),
        _text("form", "plain"),
        _big("created_at"),
        sa.PrimaryKeyConstraint("sha256"),
    )
    op.create_table("counter", _text("name"), _big("value"), sa.PrimaryKeyConstraint("name"))
    op.create_table(
        "history",
        sa.Column("rid", BIG, autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        _big("last_updated"),
        _flag("deleted"),
        _text("method"),
        _big("txid"),
        sa.Column("text", TXT, nullable=True),
        sa.PrimaryKeyConstraint("rid", "version"),
    )
    op.create_table(
        "journal",
        _key("seq"),
        _big("txid"),
        _big("rid"),
        sa.Column("version", sa.Integer(), nullable=False),
        _text("type"),
        _big("at"),
        _text("method"),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index("journal_at", "journal", ["at", "seq"])
    op.create_index("journal_order", "journal", ["txid", "seq"])
    op.create_index("journal_type_at", "journal", ["type", "at", "seq"])
    op.create_table(
        "resource",
        _key("rid"),
        _text("type"),
        _text("id"),
        sa.Column("version", sa.Integer(), nullable=False),
        _big("last_updated"),
        _flag("deleted"),
        _text("method"),
        _small("mask"),
        _big("txid"),
        sa.Column("text", TXT, nullable=True),
        sa.PrimaryKeyConstraint("rid"),
        sa.UniqueConstraint("type", "id", name="resource_type_id"),
    )
    op.create_index("resource_recent", "resource", ["type", "last_updated", "rid"], **_where("deleted = 0"))
    op.create_table("scope", _big("rid"), _text("kind"), _text("key"))
    op.create_index("scope_key", "scope", ["kind", "key", "rid"])
    op.create_index("scope_rid", "scope", ["rid"])


def _indexes() -> None:
    op.create_table("idx_coords", _big("pid"), _big("rid"), _real("latitude"), _real("longitude"))
    op.create_index("idx_coords_latitude", "idx_coords", ["pid", "latitude", "longitude", "rid"])
    op.create_index("idx_coords_rid", "idx_coords", ["rid", "pid"])
    op.create_table("idx_date", _big("pid"), _big("rid"), _big("low"), _big("high"))
    op.create_index("idx_date_high", "idx_date", ["pid", "high", "rid"])
    op.create_index("idx_date_low", "idx_date", ["pid", "low", "high", "rid"])
    op.create_index("idx_date_rid", "idx_date", ["rid", "pid"])
    op.create_table("idx_number", _big("pid"), _big("rid"), _real("low"), _real("high"))
    op.create_index("idx_number_low", "idx_number", ["pid", "low", "high", "rid"])
    op.create_index("idx_number_rid", "idx_number", ["rid", "pid"])
    op.create_table(
        "idx_quantity",
        _big("pid"),
        _big("rid"),
        _text("system"),
        _text("code"),
        _real("low"),
        _real("high"),
        _text("unit"),
        _real("canonical_low"),
        _real("canonical_high"),
    )
    op.create_index(
        "idx_quantity_canonical", "idx_quantity", ["pid", "unit", "canonical_low", "rid"], **_where("unit <> ''")
    )
    op.create_index("idx_quantity_low", "idx_quantity", ["pid", "code", "low", "rid"])
    op.create_index("idx_quantity_rid", "idx_quantity", ["rid", "pid"])
    op.create_table(
        "idx_reference",
        _big("pid"),
        _big("rid"),
        _text("type"),
        _text("id"),
        _text("url"),
        _text("system"),
        _text("value"),
    )
    op.create_index("idx_reference_id", "idx_reference", ["pid", "id", "type", "rid"], **_where("id <> ''"))
    op.create_index("idx_reference_rid", "idx_reference", ["rid", "pid"])
    op.create_index("idx_reference_url", "idx_reference", ["pid", "url", "rid"], **_where("url <> ''"))
    op.create_index("idx_reference_value", "idx_reference", ["pid", "value", "system", "rid"], **_where("value <> ''"))
    op.create_table("idx_string", _big("pid"), _big("rid"), _text("folded"), _text("exact"))
    op.create_index("idx_string_folded", "idx_string", ["pid", "folded", "rid"])
    op.create_index("idx_string_rid", "idx_string", ["rid", "pid"])
    op.create_table("idx_token", _big("pid"), _big("rid"), _text("system"), _text("code"), _text("folded"))
    op.create_index("idx_token_code", "idx_token", ["pid", "code", "system", "rid"])
    op.create_index("idx_token_rid", "idx_token", ["rid", "pid"])
    op.create_table("idx_uri", _big("pid"), _big("rid"), _text("uri"))
    op.create_index("idx_uri_rid", "idx_uri", ["rid", "pid"])
    op.create_index("idx_uri_uri", "idx_uri", ["pid", "uri", "rid"])


def _messages() -> None:
    op.create_table("message_key", _text("box"), _text("message"), _text("kind"), _text("value"))
    op.create_index("message_key_message", "message_key", ["message", "box"])
    op.create_index("message_key_value", "message_key", ["value", "kind", "message"])
    op.create_table(
        "inbox",
        _key("seq"),
        _text("id"),
        _text("channel"),
        _text("endpoint"),
        _text("peer", ""),
        _text("media_type", ""),
        _text("sha256"),
        _big("size"),
        sa.Column("raw", sa.LargeBinary(), nullable=True),
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
        sa.Column("ack", sa.LargeBinary(), nullable=True),
        _text("note", ""),
        _text("error", ""),
        _text("location", ""),
        _text("case_key", ""),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("id", name="inbox_id"),
    )
    op.create_index("inbox_case", "inbox", ["case_key"], **_where("case_key <> ''"))
    op.create_index("inbox_control", "inbox", ["sender", "control_id"])
    op.create_index(
        "inbox_original", "inbox", ["sender", "control_id"], unique=True, **_where("original = 1 AND control_id <> ''")
    )
    op.create_index("inbox_state", "inbox", ["state", "seq"])
    op.create_table(
        "lane",
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
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name", name="lane_name"),
    )
    op.create_table(
        "delivery",
        _text("id"),
        _big("lane_id"),
        _big("lane_seq"),
        _text("state"),
        _text("endpoint"),
        _text("protocol"),
        _text("media_type", ""),
        _text("title", ""),
        sa.Column("payload", sa.LargeBinary(), nullable=True),
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
        sa.Column("ack", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["lane_id"],
            ["lane.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("lane_id", "lane_seq", name="delivery_order"),
    )
    op.create_index("delivery_case", "delivery", ["case_key"], **_where("case_key <> ''"))
    op.create_index("delivery_open", "delivery", ["lane_id", "lane_seq"], **_where("state IN ('queued', 'sending')"))
    op.create_index("delivery_recent", "delivery", ["created_at", "id"])
    op.create_index("delivery_state", "delivery", ["state", "created_at"])
    op.create_index("delivery_stuck", "delivery", ["lane_id", "lane_seq"], **_where("state IN ('held', 'error')"))
    op.create_table(
        "attempt",
        _key("seq"),
        _text("delivery_id"),
        sa.Column("n", sa.Integer(), nullable=False),
        _text("worker"),
        _big("token"),
        _big("started_at"),
        _big("ended_at", "0"),
        _text("outcome", ""),
        _text("error_class", ""),
        _text("error", ""),
        sa.Column("ack", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["delivery_id"],
            ["delivery.id"],
        ),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("delivery_id", "n", name="attempt_n"),
    )


def _images() -> None:
    op.create_table(
        "dicom_conflict",
        _key("seq"),
        _text("sop_uid"),
        _text("study_uid"),
        _text("blob"),
        _big("size"),
        _text("data_sha256"),
        _text("calling_ae", ""),
        _text("peer", ""),
        _big("received_at"),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index("dicom_conflict_once", "dicom_conflict", ["sop_uid", "data_sha256"], unique=True)
    op.create_table(
        "dicom_instance",
        _text("sop_uid"),
        _text("study_uid"),
        _text("series_uid"),
        _text("sop_class"),
        _text("transfer_syntax"),
        _text("blob"),
        _big("size"),
        _text("data_sha256"),
        _text("header"),
        sa.Column("frames", TXT, server_default=sa.text("'[]'"), nullable=False),
        _text("patient_id", ""),
        _text("issuer", ""),
        _text("accession", ""),
        _text("calling_ae", ""),
        _text("peer", ""),
        _big("received_at"),
        sa.PrimaryKeyConstraint("sop_uid"),
    )
    op.create_index("dicom_instance_study", "dicom_instance", ["study_uid", "series_uid"])
    op.create_table(
        "dicom_study",
        _text("study_uid"),
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
        sa.PrimaryKeyConstraint("study_uid"),
    )
    op.create_index("dicom_study_accession", "dicom_study", ["accession"])
    op.create_index("dicom_study_dirty", "dicom_study", ["dirty_at"], **_where("dirty = 1"))
    op.create_index("dicom_study_patient", "dicom_study", ["patient_id", "issuer"])
    op.create_index("dicom_study_request", "dicom_study", ["request"])


def _audit() -> None:
    op.create_table(
        "audit",
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
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index("audit_case", "audit", ["case_key"], **_where("case_key <> ''"))
    op.create_index("audit_entity", "audit", ["entity_type", "entity_id"])
    op.create_index("audit_order", "audit", ["txid", "seq"])
    op.create_index("audit_recorded", "audit", ["recorded", "seq"])
    op.create_table(
        "audit_seal",
        sa.Column("n", sa.Integer(), autoincrement=False, nullable=False),
        _big("last_txid"),
        _big("covered"),
        _text("previous"),
        _text("hash"),
        _big("sealed_at"),
        sa.PrimaryKeyConstraint("n"),
    )

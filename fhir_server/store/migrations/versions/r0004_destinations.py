"""Destinations have policies, and a delivery knows what its bytes say of the patient and of the report.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BIG: Any = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TXT: Any = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("lane", sa.Column("on_silence", TXT, server_default=sa.text("''"), nullable=False))
    op.add_column("lane", sa.Column("gap", BIG, server_default=sa.text("0"), nullable=False))
    op.add_column("lane", sa.Column("pull", sa.SmallInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("delivery", sa.Column("ins", TXT, server_default=sa.text("''"), nullable=False))
    op.add_column("delivery", sa.Column("document_version", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("delivery", sa.Column("cleared", TXT, server_default=sa.text("''"), nullable=False))
    waiting = sa.text("leg_state = 'waiting'")
    op.create_index(
        "delivery_leg_waiting",
        "delivery",
        ["second_leg", "created_at"],
        postgresql_where=waiting,
        sqlite_where=waiting,
    )

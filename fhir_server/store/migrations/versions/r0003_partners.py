"""Who knocks at the wires: partners no establishment declares.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BIG: Any = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TXT: Any = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, TXT, nullable=False)


def upgrade() -> None:
    op.create_table(
        "partner",
        _text("channel"),
        _text("name"),
        _text("address"),
        _text("outcome"),
        _text("reason"),
        sa.Column("first_at", BIG, nullable=False),
        sa.Column("last_at", BIG, nullable=False),
        sa.Column("times", BIG, nullable=False),
        sa.PrimaryKeyConstraint("channel", "name", "address"),
    )
    op.create_index("partner_last", "partner", ["last_at"])

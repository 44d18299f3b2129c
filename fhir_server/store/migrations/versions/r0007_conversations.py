"""A destination says how long it may take to answer, and whether an idle connection to it is kept.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

BIG: Any = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("lane", sa.Column("answer_within", BIG, server_default=sa.text("0"), nullable=False))
    op.add_column("lane", sa.Column("keep_open", BIG, server_default=sa.text("0"), nullable=False))

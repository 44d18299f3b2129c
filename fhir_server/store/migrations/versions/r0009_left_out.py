"""A delivery tells what its bytes leave out of what they were made from.

Of those that are there already nobody wrote it down: it is empty.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TXT: Any = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("delivery", sa.Column("left_out", TXT, server_default=sa.text("''"), nullable=False))

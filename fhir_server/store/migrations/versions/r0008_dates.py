"""Date rows say whether a range of their beginnings finds them; an index knows each resource's type by its number.

What is there is marked as not looked at, as what the version before writes is: found as before, until a reindex has
looked at it.
PostgreSQL alone counts what a parameter finds without reading a resource: SQLite finds a row by its number anyway.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("idx_date", sa.Column("loose", sa.SmallInteger(), server_default=sa.text("1"), nullable=False))
    loose = sa.text("loose > 0")
    op.create_index(
        "idx_date_loose", "idx_date", ["pid", "loose", "low", "high", "rid"], postgresql_where=loose, sqlite_where=loose
    )
    if op.get_bind().dialect.name == "postgresql":
        op.create_index("resource_live", "resource", ["rid", "type"], postgresql_where=sa.text("deleted = 0"))

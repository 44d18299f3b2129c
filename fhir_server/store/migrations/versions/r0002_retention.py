"""What finished may go: who refers to a blob, a message or a delivery is found by index; blobs note since when unused.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIG: Any = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _where(condition: str) -> dict[str, Any]:
    return {"postgresql_where": sa.text(condition), "sqlite_where": sa.text(condition)}


def upgrade() -> None:
    op.add_column("blob", sa.Column("kept", sa.SmallInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("blob", sa.Column("idle_since", BIG, server_default=sa.text("0"), nullable=False))
    op.create_index("inbox_rival", "inbox", ["rival"], **_where("rival <> ''"))
    op.create_index("inbox_blob", "inbox", ["sha256"], **_where("raw IS NULL"))
    op.create_index("delivery_parent", "delivery", ["parent"], **_where("parent <> ''"))
    op.create_index("delivery_leg_inbox", "delivery", ["leg_inbox"], **_where("leg_inbox <> ''"))
    op.create_index("delivery_blob", "delivery", ["sha256"], **_where("payload IS NULL"))
    op.create_index("dicom_instance_blob", "dicom_instance", ["blob"])
    op.create_index("dicom_conflict_blob", "dicom_conflict", ["blob"])

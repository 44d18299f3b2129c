"""Full text, contained resources, and the search parameters of users.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

BIG: Any = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TXT: Any = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")

_SQLITE = (
    "CREATE VIRTUAL TABLE idx_text_words USING fts5(words, content='idx_text', content_rowid='n', "
    "tokenize='unicode61 remove_diacritics 0')",
    "CREATE TRIGGER idx_text_added AFTER INSERT ON idx_text BEGIN "
    "INSERT INTO idx_text_words (rowid, words) VALUES (new.n, new.words); END",
    "CREATE TRIGGER idx_text_gone AFTER DELETE ON idx_text BEGIN "
    "INSERT INTO idx_text_words (idx_text_words, rowid, words) VALUES ('delete', old.n, old.words); END",
)
_POSTGRESQL = "CREATE INDEX idx_text_words ON idx_text USING gin (to_tsvector('simple'::regconfig, words))"


def upgrade() -> None:
    op.create_table(
        "idx_text",
        sa.Column("n", BIG, sa.Identity(always=False), primary_key=True),
        sa.Column("pid", BIG, nullable=False),
        sa.Column("rid", BIG, nullable=False),
        sa.Column("words", TXT, nullable=False),
    )
    op.create_index("idx_text_rid", "idx_text", ["rid", "pid"])
    op.create_table(
        "contained",
        sa.Column("rid", BIG, nullable=False),
        sa.Column("number", BIG, nullable=False),
        sa.Column("type", TXT, nullable=False),
        sa.Column("id", TXT, nullable=False),
    )
    op.create_index("contained_rid", "contained", ["rid"])
    op.create_index("contained_number", "contained", ["number"], unique=True)
    op.create_index("contained_type", "contained", ["type", "id"])
    op.create_table(
        "search_parameter",
        sa.Column("url", TXT, primary_key=True),
        sa.Column("id", TXT, nullable=False),
        sa.Column("definition", TXT, nullable=False),
        sa.Column("state", TXT, nullable=False),
        sa.Column("note", TXT, server_default=sa.text("''"), nullable=False),
        sa.Column("position", BIG, nullable=False),
        sa.Column("since", BIG, nullable=False),
        sa.Column("seen", BIG, server_default=sa.text("0"), nullable=False),
        sa.Column("total", BIG, server_default=sa.text("0"), nullable=False),
    )
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else (_POSTGRESQL,):
        op.execute(statement)

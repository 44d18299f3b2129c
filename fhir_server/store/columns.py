"""How columns of the tables are declared, for both databases.

Hides the types each database has for a number, a text and bytes, and what a table needs to be filled in bulk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Identity,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Text,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

METADATA = MetaData()

BIG: TypeEngine[int] = BigInteger().with_variant(Integer(), "sqlite")
TXT: TypeEngine[str] = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
REAL: TypeEngine[float] = Double()
BYTES: TypeEngine[bytes] = LargeBinary()


def key(name: str) -> Column[int]:
    return Column(name, BIG, Identity(always=False), primary_key=True)


def big(name: str, default: str | None = None) -> Column[int]:
    return Column(name, BIG, nullable=False, server_default=None if default is None else text(default))


def txt(name: str, default: str | None = None) -> Column[str]:
    return Column(name, TXT, nullable=False, server_default=None if default is None else text(f"'{default}'"))


def flag(name: str) -> Column[int]:
    return Column(name, SmallInteger, nullable=False, server_default=text("0"))


def small(name: str) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default=text("0"))


@dataclass(frozen=True, slots=True)
class Bulk:
    """A table filled many rows at a time; `columns` are (name, PostgreSQL type) in the order of the row tuples.

    A `numbered` table has a column `txid` besides, for the number of the writing transaction.
    """

    table: str
    columns: tuple[tuple[str, str], ...]
    numbered: bool = False

    @property
    def names(self) -> str:
        return ", ".join(name for name, _ in self.columns)


DOUBLE = "double precision"


def only(condition: str) -> dict[str, Any]:
    return {"postgresql_where": text(condition), "sqlite_where": text(condition)}

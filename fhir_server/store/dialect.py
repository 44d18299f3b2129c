"""What differs between the two databases, and the narrow connection every statement goes through.

Statements are written once, with `?` placeholders, in the SQL both databases share; the few pieces that differ
are the fields of `Dialect`. No `?` and no `%` may stand inside a statement's own literals.

Sources: https://www.postgresql.org/docs/15/functions-info.html (snapshot functions), https://sqlite.org/lang.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

from fhir_server.store.tables import Bulk

Row = tuple[Any, ...]
TOO_LONG = "The database took too long for this; narrow the search, or ask for or send less at once."


@dataclass(frozen=True, slots=True)
class Dialect:
    """SQL pieces. `txid`: expression for the writing transaction's number. `settled`: condition on a `txid` column
    that is true for rows no running transaction can still precede. `snapshot`: the query whose single value names
    what is visible now; `visible`: condition (one parameter, that value) on a `txid` column. `unindexed`: a column
    that the planner shall look up through no index (SQLite knows no statistics; PostgreSQL plans by its own). `each`:
    a table of one column `value`, the elements of a JSON array (one parameter, its text) in their order. `words`: the
    condition (one parameter, the phrase) that a row `x` of idx_text has the words. `alone`: ends an EXISTS that
    shall be asked row by row, no join."""

    name: Literal["sqlite", "postgresql"]
    for_update: str
    for_share: str
    skip_locked: str
    txid: str
    settled: str
    snapshot: str
    visible: str
    unindexed: str
    each: str
    words: str
    alone: str


SQLITE = Dialect(
    name="sqlite",
    for_update="",
    for_share="",
    skip_locked="",
    txid="(SELECT value FROM counter WHERE name = 'tx')",
    settled="1 = 1",
    snapshot="SELECT value FROM counter WHERE name = 'tx'",
    visible="{column} <= ?",
    unindexed="+{}",
    each="json_each(?)",
    words="x.n IN (SELECT w.rowid FROM idx_text_words w WHERE idx_text_words MATCH ?)",
    alone="",
)


def postgresql(base: int = 0) -> Dialect:
    """PostgreSQL's, where stored transaction numbers are the cluster's own plus `base` (see `postgres.numbering`)."""
    plus = f" + {base}" if base else ""
    own = f"({{column}} - {base})" if base else "{column}"
    return Dialect(
        name="postgresql",
        for_update=" FOR UPDATE",
        for_share=" FOR SHARE",
        skip_locked=" FOR UPDATE SKIP LOCKED",
        txid=f"(pg_current_xact_id()::text::bigint{plus})",
        settled=f"{{column}} < pg_snapshot_xmin(pg_current_snapshot())::text::bigint{plus}",
        snapshot="SELECT pg_current_snapshot()::text",
        visible=f"CASE WHEN {{column}} <= {base} THEN true "
        f"ELSE pg_visible_in_snapshot({own}::text::xid8, ?::pg_snapshot) END",
        unindexed="{}",
        each="json_array_elements(?::json)",
        words="to_tsvector('simple'::regconfig, x.words) @@ to_tsquery('simple'::regconfig, ?)",
        alone=" OFFSET 0",
    )


class Session(Protocol):
    """One connection inside one transaction; used by one thread at a time.

    `run`, `fill`, `supersede`, `agree` and `clear` may travel later, with what follows; `rows`, `one` and `count` wait
    for their result.
    """

    @property
    def dialect(self) -> Dialect: ...

    def rows(self, sql: str, params: Sequence[object] = ()) -> list[Row]: ...

    def one(self, sql: str, params: Sequence[object] = ()) -> Row | None: ...

    def run(self, sql: str, params: Sequence[object] = ()) -> None: ...

    def count(self, sql: str, params: Sequence[object] = ()) -> int:
        """Runs the statement; the number of rows it changed."""
        ...

    def later(self, sql: str, params: Sequence[object] = ()) -> Callable[[], int]:
        """`count` for who asks for the number after other statements, and does not wait for it before."""
        ...

    def fill(self, bulk: Bulk, rows: Sequence[Row]) -> None:
        """Inserts many rows into one table."""
        ...

    def supersede(self, row: Row) -> None:
        """Puts the next version of a resource (a `VERSION` row) in its row; the one there goes to history."""
        ...

    def agree(self, rid: int, wanted: Mapping[Bulk, Sequence[Row]]) -> None:
        """Makes the rows of a resource in these tables the wanted ones; only what differs is written. Hold it."""
        ...

    def clear(self, bulks: Sequence[Bulk], rid: int) -> None:
        """Deletes the rows of one resource from tables that have a column `rid`."""
        ...

    def next_rid(self) -> int | None:
        """A number for a new resource; None where the database gives it with the row."""
        ...

    def steady(self) -> None:
        """Tells the database that the statements to come are the same in every such transaction, and find their rows
        by key whatever their values: their plans may be kept."""
        ...

    def linger(self) -> None:
        """Tells the database that content is read before the next statement, which may take minutes."""
        ...

    def stamp(self) -> None:
        """Gives this transaction its number; call before a statement that uses `Dialect.txid`."""
        ...

    def lock(self, keys: Sequence[int]) -> None:
        """Waits for and holds locks on 63-bit keys, in the given order, to the end of the transaction.

        The first is held together with others that hold it first, and against those that ask for it alone.
        """
        ...


@lru_cache(maxsize=4096)
def pyformat(sql: str) -> str:
    """The same statement with psycopg's placeholders."""
    return sql.replace("%", "%%").replace("?", "%s")


@lru_cache(maxsize=64)
def insert_sqlite(bulk: Bulk) -> str:
    values = ", ".join("?" for _ in bulk.columns)
    if bulk.numbered:
        return f"INSERT INTO {bulk.table} ({bulk.names}, txid) VALUES ({values}, {SQLITE.txid})"
    return f"INSERT INTO {bulk.table} ({bulk.names}) VALUES ({values})"


@lru_cache(maxsize=512)
def delete_postgresql(bulks: tuple[Bulk, ...]) -> str:
    """One statement that deletes from several tables the rows of one resource; a parameter each."""
    *first, last = (f"DELETE FROM {bulk.table} WHERE rid = %s" for bulk in bulks)
    named = ", ".join(f"t{n} AS ({one})" for n, one in enumerate(first))
    return f"WITH {named} {last}" if named else last


def marks(values: Sequence[object]) -> str:
    """`?, ?, ?` for as many values."""
    return ", ".join("?" for _ in values)


LIKE_SPECIAL = str.maketrans({"\\": "\\\\", "%": "\\%", "_": "\\_"})


def like(text: str) -> str:
    """The text with LIKE's own signs made literal (`ESCAPE '\\'`)."""
    return text.translate(LIKE_SPECIAL)

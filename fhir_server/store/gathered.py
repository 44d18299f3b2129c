"""What a write gathers on PostgreSQL, and the one statement in which it travels.

Hides how the rows of many tables, the next versions of many resources and the differences between index rows and those
that are stored become one statement of data-modifying CTEs over JSON (ADR 0038, 0068). All of them see the rows as they
were before the statement, so that a version that is replaced is copied as it was, and rows are compared with what was
there; who sends it holds the resources whose rows it replaces.

Source: https://www.postgresql.org/docs/15/queries-with.html#QUERIES-WITH-MODIFYING
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from fhir_server.store.dialect import Row
from fhir_server.store.tables import RESOURCE, VERSION, Bulk

# A text beyond this goes as a parameter of its own; it is sent when so much of shorter ones is gathered.
LARGE, MOST = 256 << 10, 4 << 20


class Gathered:
    """Rows that wait to be sent. `heavy`: there is so much text among them that they should be sent now."""

    def __init__(self) -> None:
        self._filling: dict[Bulk, list[Row]] = {}
        self._agreeing: dict[Bulk, tuple[list[int], list[Row]]] = {}
        self._versions: list[Row] = []
        self._text = 0

    def __bool__(self) -> bool:
        return bool(self._filling or self._versions or self._agreeing)

    @property
    def heavy(self) -> bool:
        return self._text > MOST

    @property
    def sizes(self) -> dict[str, int]:
        """How many rows there are, by table."""
        sizes = {bulk.table: len(rows) for bulk, (_, rows) in self._agreeing.items()}
        for bulk, rows in self._filling.items():
            sizes[bulk.table] = sizes.get(bulk.table, 0) + len(rows)
        return sizes

    def fill(self, bulk: Bulk, rows: Sequence[Row]) -> None:
        """Rows to insert."""
        self._filling.setdefault(bulk, []).extend(rows)
        if bulk is RESOURCE:
            self._text += sum(len(row[-1]) for row in rows)

    def supersede(self, row: Row) -> None:
        """A `VERSION` row: the next version of a resource, once."""
        self._versions.append(row)
        self._text += len(row[-1] or "")

    def agree(self, rid: int, wanted: Mapping[Bulk, Sequence[Row]]) -> None:
        """The rows of a resource in some tables, once. In the others it keeps what it has, whoever names these."""
        for bulk, rows in wanted.items():
            rids, every = self._agreeing.setdefault(bulk, ([], []))
            rids.append(rid)
            every.extend(rows)

    def statement(self, txid: str) -> tuple[str, list[str]]:
        """The statement with its parameters."""
        params: list[str] = []
        if self._versions:
            rids = _array(row[0] for row in self._versions)
            params += [as_json(VERSION, self._versions), rids, rids]
        for bulk, (numbers, rows) in self._agreeing.items():
            params += [as_json(bulk, rows), _array(numbers)]
        params += [as_json(bulk, rows) for bulk, rows in self._filling.items()]
        return statement(bool(self._versions), tuple(self._agreeing), tuple(self._filling), txid), params


def _array(numbers: Iterable[int]) -> str:
    return "{" + ",".join(map(str, numbers)) + "}"


@lru_cache(maxsize=4096)
def statement(versions: bool, agreeing: tuple[Bulk, ...], filling: tuple[Bulk, ...], txid: str) -> str:
    """The statement for a choice of tables, whatever the number of rows."""
    parts = _superseding(txid) if versions else []
    for number, bulk in enumerate(agreeing):
        parts += _agreeing(bulk, number)
    parts += [(f"t{number}", _insert(bulk, txid)) for number, bulk in enumerate(filling)]
    *first, (_, last) = parts
    named = ", ".join(f"{name} AS ({part})" for name, part in first)
    return f"WITH {named} {last}" if named else last


def _superseding(txid: str) -> list[tuple[str, str]]:
    old = ", ".join(name for name, _ in VERSION.columns if name != "mask")
    new = ", ".join(f"{name} = v.{name}" for name, _ in VERSION.columns if name != "rid")
    return [
        ("v", f"SELECT * FROM {_records(VERSION)}"),
        ("h", f"INSERT INTO history ({old}, txid) SELECT {old}, txid FROM resource WHERE rid = ANY(%s::bigint[])"),
        ("u", f"UPDATE resource r SET {new}, txid = {txid} FROM v WHERE r.rid = ANY(%s::bigint[]) AND r.rid = v.rid"),
    ]


def _agreeing(bulk: Bulk, number: int) -> list[tuple[str, str]]:
    """What is wanted; what goes, told from it by a hash; what comes, each looked up by the number of its resource."""
    table, wanted, listed = bulk.table, f"n{number}", ", ".join(name for name, _ in bulk.columns)
    there = f"SELECT 1 FROM {table} WHERE ({listed}) = ROW({wanted}.*) OFFSET 0"
    return [
        (wanted, f"SELECT {listed} FROM {_records(bulk)}"),
        (
            f"d{number}",
            f"DELETE FROM {table} WHERE rid = ANY(%s::bigint[]) AND ({listed}) NOT IN (SELECT * FROM {wanted})",
        ),
        (f"i{number}", f"INSERT INTO {table} ({listed}) SELECT * FROM {wanted} WHERE NOT EXISTS ({there})"),
    ]


def _insert(bulk: Bulk, txid: str) -> str:
    names = ", ".join(name for name, _ in bulk.columns)
    more, number = (", txid", f", {txid}") if bulk.numbered else ("", "")
    return f"INSERT INTO {bulk.table} ({names}{more}) SELECT {names}{number} FROM {_records(bulk)}"


def _records(bulk: Bulk) -> str:
    # Columns by the table's own row type, to be short: the driver reads texts of more than 4,096 signs anew each time.
    return f"json_populate_recordset(NULL::{bulk.table}, %s::json)"


def as_json(bulk: Bulk, rows: Sequence[Row]) -> str:
    """The rows as a parameter of the statement."""
    names = [name for name, _ in bulk.columns]
    try:
        return _JSON([dict(zip(names, row, strict=True)) for row in rows])
    except ValueError:  # JSON has no infinity; PostgreSQL reads the word
        return _JSON([dict(zip(names, map(_finite, row), strict=True)) for row in rows])


_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, check_circular=False).encode


def _finite(value: object) -> object:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

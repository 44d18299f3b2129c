"""The audit trail: compact rows written in the transaction they tell of, sealed afterwards in a hash chain.

A seal covers the committed transactions behind the previous one, row by row in order of (txid, seq), and carries the
hash of the previous seal: changing, removing or slipping in a row there breaks every later hash. Keep the last hash
elsewhere to notice that the end itself was cut off.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from fhir_server.store.dialect import Row
from fhir_server.store.tables import AUDIT
from fhir_server.store.view import View, lock, printable

SEAL_ROWS = 2000
_FIRST = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One event. `action` is C, R, U, D or E, `outcome` an AuditEvent outcome code (0, 4, 8, 12).

    Who, role, channel, peer and request id come from the caller unless given; `recorded` (microseconds) and `seq`
    are the store's.
    """

    action: str
    event: str = ""
    entity_type: str = ""
    entity_id: str = ""
    entity_version: int = 0
    case_key: str = ""
    outcome: str = "0"
    text: str = ""
    who: str = ""
    display: str = ""
    role: str = ""
    channel: str = ""
    peer: str = ""
    request_id: str = ""
    recorded: int = 0
    seq: int = 0


_COLUMNS = (
    "action, event, entity_type, entity_id, entity_version, case_key, outcome, text, who, display, role, channel, "
    "peer, request_id, recorded, seq"
)
_SEALED = f"{_COLUMNS}, txid"


def append(view: View, row: AuditRow) -> None:
    caller = view.caller
    view.db.stamp()
    told = {name: getattr(row, name) for name, _ in AUDIT.columns}
    told |= {
        "text": printable(row.text),
        "who": row.who or caller.who,
        "display": printable(row.display or caller.display, 200),
        "role": row.role or ",".join(sorted(caller.roles)),
        "channel": row.channel or caller.channel,
        "peer": printable(row.peer or caller.peer, 200),
        "request_id": row.request_id or caller.request_id,
        "recorded": row.recorded or view.now(),
    }
    view.db.fill(AUDIT, [tuple(told.values())])


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """All conditions hold together; '' and 0 mean any. `before` is the last row's (recorded, seq)."""

    action: str = ""
    who: str = ""
    entity_type: str = ""
    entity_id: str = ""
    case_key: str = ""
    request_id: str = ""
    seq: int = 0
    since: int = 0
    until: int = 0
    before: tuple[int, int] = (0, 0)
    limit: int = 50


def listed(view: View, wanted: AuditFilter) -> list[AuditRow]:
    """Newest first."""
    tests: list[tuple[str, Sequence[object]]] = [
        ("action = ?", (wanted.action,)),
        ("who = ?", (wanted.who,)),
        ("entity_type = ?", (wanted.entity_type,)),
        ("entity_id = ?", (wanted.entity_id,)),
        ("case_key <> '' AND case_key = ?", (wanted.case_key,)),
        ("request_id = ?", (wanted.request_id,)),
        ("seq = ?", (wanted.seq,)),
        ("recorded >= ?", (wanted.since,)),
        ("recorded < ?", (wanted.until,)),
        ("(recorded, seq) < (?, ?)", wanted.before),
    ]
    kept = [(sql, values) for sql, values in tests if any(values)]
    where = " WHERE " + " AND ".join(sql for sql, _ in kept) if kept else ""
    params = [value for _, values in kept for value in values]
    rows = view.db.rows(
        f"SELECT {_COLUMNS} FROM audit{where} ORDER BY recorded DESC, seq DESC LIMIT ?", (*params, wanted.limit)
    )
    return [AuditRow(*row) for row in rows]


def seal(view: View) -> int:
    """Seals the next batch of committed transactions; the number of rows, 0 when there is nothing more."""
    lock(view, "audit-seal")
    last = view.db.one("SELECT n, last_txid, hash FROM audit_seal ORDER BY n DESC LIMIT 1")
    n, txid, previous = (0, 0, _FIRST) if last is None else last
    settled = view.db.dialect.settled.format(column="txid")
    batch = f"SELECT txid FROM audit WHERE txid > ? AND {settled} ORDER BY txid, seq LIMIT ?"
    end = view.db.one(f"SELECT max(b.txid) FROM ({batch}) b", (txid, SEAL_ROWS))
    if end is None or end[0] is None:
        return 0
    rows = _covered(view, txid, end[0], -1)
    view.db.run(
        "INSERT INTO audit_seal (n, last_txid, covered, previous, hash, sealed_at) VALUES (?, ?, ?, ?, ?, ?)",
        (n + 1, end[0], len(rows), previous, chained(previous, rows), view.now()),
    )
    return len(rows)


def _covered(view: View, after: int, last: int, at_most: int) -> list[Row]:
    bound = f" LIMIT {at_most}" if at_most >= 0 else ""
    return view.db.rows(
        f"SELECT {_SEALED} FROM audit WHERE txid > ? AND txid <= ? ORDER BY txid, seq{bound}", (after, last)
    )


def chained(previous: str, rows: Sequence[Row]) -> str:
    """sha256, hexadecimal, over the previous hash and each row as a JSON array on its own line."""
    digest = hashlib.sha256(previous.encode())
    for row in rows:
        digest.update(b"\n" + json.dumps(list(row), ensure_ascii=False, separators=(",", ":")).encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `verify` found: the rows under an intact seal, those not sealed yet, the last hash, and the first
    broken seal (0 when none) with what is wrong with it."""

    sealed: int
    unsealed: int
    head: str
    broken: int = 0
    text: str = ""

    @property
    def ok(self) -> bool:
        return self.broken == 0


def verify(view: View) -> Verdict:
    """Recomputes the whole chain, batch by batch."""
    previous, txid, sealed, n = _FIRST, 0, 0, 0
    while True:
        found = view.db.one(
            "SELECT n, last_txid, covered, previous, hash FROM audit_seal WHERE n > ? ORDER BY n LIMIT 1", (n,)
        )
        if found is None:
            break
        number, last, covered, told, digest = found
        rows = _covered(view, txid, last, covered + 1)
        wrong = _wrong(number == n + 1 and told == previous, len(rows) - covered, chained(previous, rows) == digest)
        if wrong:
            return Verdict(sealed, 0, previous, number, f"Seal {number}: {wrong}.")
        previous, txid, sealed, n = digest, last, sealed + covered, number
    rest = view.db.one("SELECT count(*) FROM audit WHERE txid > ?", (txid,))
    return Verdict(sealed, int(rest[0]) if rest else 0, previous)


def _wrong(linked: bool, surplus: int, intact: bool) -> str:
    if not linked:
        return "it does not follow the seal before it"
    if surplus:
        return "audit rows were added to what it covers" if surplus > 0 else f"{-surplus} audit row(s) missing"
    return "" if intact else "an audit row in what it covers was changed"

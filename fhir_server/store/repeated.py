"""Identifiers that the index has under more than one resource: few of many, found without reading a resource."""

from __future__ import annotations

from collections.abc import Iterator

from fhir_server.store.session import Snapshot

_PAGE = 500
_SQL = (
    "SELECT code, system FROM idx_token WHERE pid = ? AND (code, system) > (?, ?) "
    "GROUP BY code, system HAVING count(DISTINCT rid) > 1 ORDER BY code, system LIMIT ?"
)


def repeated(snapshot: Snapshot, pid: int) -> Iterator[tuple[str, str]]:
    """(system, value) of the token parameter `pid` that several resources have, contained ones too, in order."""
    at = ("", "")
    while rows := snapshot.view.db.rows(_SQL, (pid, *at, _PAGE)):
        yield from ((str(system), str(code)) for code, system in rows)
        at = (str(rows[-1][0]), str(rows[-1][1]))

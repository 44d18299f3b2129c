"""Which installation this database belongs to: a number drawn once, carried along by backups and upgrades.

What must be unique among installations (the set identifier of a document, for one) is derived from it.
"""

from __future__ import annotations

import secrets

from fhir_server.context import SYSTEM
from fhir_server.store.engine import Store
from fhir_server.store.session import Tx

_NAME = "installation"


def identity(store: Store) -> str:
    """16 hexadecimal characters, always the same for one database; several processes that ask first agree."""
    with store.read(SYSTEM) as snapshot:
        row = snapshot.view.db.one("SELECT value FROM counter WHERE name = ?", (_NAME,))
    return f"{int(row[0]) if row else store.write(SYSTEM, _draw):016x}"


def _draw(tx: Tx) -> int:
    tx.view.db.run(
        "INSERT INTO counter (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING",
        (_NAME, secrets.randbits(62) + 1),
    )
    row = tx.view.db.one("SELECT value FROM counter WHERE name = ?", (_NAME,))
    assert row is not None
    return int(row[0])

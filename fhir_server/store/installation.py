"""Which installation this database belongs to: a number drawn once, carried along by backups and upgrades.

What must be unique among installations (the set identifier of a document, for one) is derived from it.
"""

from __future__ import annotations

import secrets

from fhir_server.context import SYSTEM
from fhir_server.errors import Unavailable
from fhir_server.store.engine import Store
from fhir_server.store.session import Tx

_NAME = "installation"


class Elsewhere(Unavailable):
    """The content of another installation lies there."""


def identity(store: Store) -> str:
    """16 hexadecimal characters, always the same for one database; several processes that ask first agree."""
    with store.read(SYSTEM) as snapshot:
        row = snapshot.view.db.one("SELECT value FROM counter WHERE name = ?", (_NAME,))
    return f"{int(row[0]) if row else store.write(SYSTEM, _draw):016x}"


def claim_content(store: Store) -> None:
    """Makes the place of content this installation's, or raises `Elsewhere`: a clean-up removes what the database does
    not know, so another's content in the same place would go."""
    ours = identity(store)
    owner = store.blobs.claim(ours)
    if owner != ours:
        raise Elsewhere(
            f"The content in {store.blobs.at.told} belongs to installation {owner[:40]}, and this is {ours}: give each "
            "a prefix of its own (blob_url). If that one is no more, delete the object `installation` there."
        )


def _draw(tx: Tx) -> int:
    tx.view.db.run(
        "INSERT INTO counter (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING",
        (_NAME, secrets.randbits(62) + 1),
    )
    row = tx.view.db.one("SELECT value FROM counter WHERE name = ?", (_NAME,))
    assert row is not None
    return int(row[0])

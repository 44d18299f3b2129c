"""Whose turn it is: one process at a time takes in what waits at a port, so that messages keep their order.

A turn is a lease with a token in the database. It is prolonged before each message and asked about once more in the
transaction that settles one: a process that was frozen and overtaken changes nothing when it wakes.
"""

from __future__ import annotations

from dataclasses import dataclass

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.store import inbox
from fhir_server.store.session import Tx


class TurnLost(Exception):
    """Another process has taken the turn over; what this one wanted to write is rolled back."""


@dataclass(slots=True)
class Turn:
    """The right to take in what waits under `name`, as long as `token` stands in the database."""

    hub: Hub
    name: str
    token: int

    def kept(self) -> bool:
        """Prolong it; False when it is gone."""
        self.token = self._ask(self.hub.settings.lease_seconds)
        return self.token > 0

    def check(self, tx: Tx) -> None:
        """Hold it to the end of this transaction. Raises TurnLost."""
        if not inbox.has_turn(tx.view, self.name, self.token):
            raise TurnLost(self.name)

    def give_back(self) -> None:
        if self.token:
            self._ask(0.0)

    def _ask(self, seconds: float) -> int:
        return self.hub.store.write(SYSTEM, lambda tx: inbox.turn(tx.view, self.name, self.token, seconds))


def taken(hub: Hub, name: str) -> Turn | None:
    """The turn under a name; None while another process has it."""
    turn = Turn(hub, name, 0)
    return turn if turn.kept() else None

"""The DICOM node: listens, gives each connection a thread, and reports to callbacks.

Hides threads, limits on the number of connections, and an orderly end. What happens on a connection is in
`association`.

Sources: PS3.8 section 9 (upper layer over TCP), PS3.4 annexes A (verification) and B (storage).
https://dicom.nema.org/medical/dicom/current/output/chtml/part08/chapter_9.html
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter
from contextlib import suppress
from ipaddress import ip_network
from time import monotonic

from dicom_node import spool
from dicom_node.association import Association
from dicom_node.policy import AssociationInfo, OnAssociation, OnRelease, OnStore, Policy, StoreRequest

__all__ = ["AssociationInfo", "Node", "OnAssociation", "OnRelease", "OnStore", "Policy", "StoreRequest"]

log = logging.getLogger("passerelle.dicom")


class Node:
    """A listening DICOM application entity, one thread per association.

    `on_store` returns a C-STORE status; an exception answers with its attribute `cstore`, else 0xA700.
    `on_association` hears of every association, rejected ones too; `on_release` of the end of an accepted one, with
    the Study Instance UIDs that were stored in it. Callbacks run in the association's thread.
    """

    def __init__(
        self,
        address: tuple[str, int],
        policy: Policy,
        on_store: OnStore,
        on_echo: OnAssociation | None = None,
        on_association: OnAssociation | None = None,
        on_release: OnRelease | None = None,
    ) -> None:
        self.policy, self.on_store = policy, on_store
        self.on_echo, self.on_association, self.on_release = on_echo, on_association, on_release
        self._closing = threading.Event()
        self._address = address
        for networks in (policy.networks, *(policy.callers or {}).values()):
            for network in networks:
                ip_network(network, strict=False)  # a wrong table fails here, not at the first caller
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._lock = threading.Lock()
        self._live: dict[Association, threading.Thread] = {}
        self._admitted: set[Association] = set()

    @property
    def port(self) -> int:
        """The bound TCP port, also when 0 was asked for."""
        assert self._listener is not None, "start the node first"
        return int(self._listener.getsockname()[1])

    @property
    def is_closing(self) -> bool:
        return self._closing.is_set()

    def start(self) -> None:
        """Bind and begin to accept. Raises OSError when the address is taken."""
        self.policy.spool.mkdir(parents=True, exist_ok=True)
        spool.sweep(self.policy.spool)
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        self._listener = socket.create_server(self._address, family=family, backlog=128)
        self._acceptor = threading.Thread(target=self._accept, name="dicom-accept", daemon=True)
        self._acceptor.start()

    def close(self, grace: float = 25.0) -> None:
        """Stop accepting, let objects under way end within `grace` seconds, abort the rest."""
        self._closing.set()
        if self._listener is None or self._acceptor is None:
            return
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        with self._lock:
            live = dict(self._live)
        for association in live:
            association.wake()
        until = monotonic() + grace
        for association, thread in live.items():
            thread.join(max(0.0, until - monotonic()))
            if thread.is_alive():
                association.cut()
                thread.join(5.0)

    def admit(self, association: Association) -> bool:
        """Count an association that negotiates; False when there are too many."""
        with self._lock:
            if len(self._admitted) >= self.policy.max_associations:
                return False
            self._admitted.add(association)
            return True

    def leave(self, association: Association) -> None:
        """The association is over; its connection may still be closing."""
        with self._lock:
            self._admitted.discard(association)

    def forget(self, association: Association) -> None:
        """The connection is closed."""
        with self._lock:
            self._live.pop(association, None)

    def _accept(self) -> None:
        assert self._listener is not None
        while not self._closing.is_set():
            try:
                sock, address = self._listener.accept()
            except OSError as fault:
                if not self._closing.wait(0.1):
                    log.warning("a connection could not be accepted: %s", fault)
                continue
            association = Association(self, sock, address[0], address[1])
            thread = threading.Thread(target=association.run, name=f"dicom-{address[0]}", daemon=True)
            with self._lock:
                # Connections that never associate are bounded as well, else they would exhaust threads.
                by_address = Counter(other.peer for other in self._live)
                full = len(self._live) >= 2 * self.policy.max_associations
                refused = full or by_address[address[0]] >= self.policy.max_per_address
                if not refused:
                    self._live[association] = thread
            if refused:
                log.warning("a connection from %s was closed: too many are open", address[0])
                sock.close()
                continue
            try:
                thread.start()
            except RuntimeError as fault:
                log.warning("a connection from %s was closed: %s", address[0], fault)
                self.forget(association)
                sock.close()

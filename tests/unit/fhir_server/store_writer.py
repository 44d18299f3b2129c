"""Writes groups of five resources with audit rows and one delivery each, and prints a group's number when committed.

Run by the SIGKILL test: `store_writer.py URL DATA_DIR FIRST_NUMBER`.
"""

from __future__ import annotations

import itertools
import sys
import threading
from functools import partial
from pathlib import Path

from fhir_server.context import SYSTEM
from fhir_server.search.rows import IndexRows
from fhir_server.store.audit import AuditRow
from fhir_server.store.engine import Store, open_store
from fhir_server.store.lanes import NewDelivery
from fhir_server.store.session import Tx


def group(tx: Tx, number: int) -> None:
    for part in range(5):
        rows = IndexRows(token=[(1, "", f"{number}-{part}", "")])
        tx.create({"resourceType": "Basic", "id": f"{number}-{part}"}, rows)
        tx.audit(AuditRow("C", entity_type="Basic", entity_id=f"{number}-{part}"))
    tx.send(NewDelivery("lane", "mllp://x", "mllp", str(number).encode()))


def work(store: Store, numbers: itertools.count[int]) -> None:
    while True:
        number = next(numbers)
        store.write(SYSTEM, partial(group, number=number))
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


def main() -> None:
    url, folder, first = sys.argv[1:]
    store = open_store(url, Path(folder), migrate=False)
    numbers = itertools.count(int(first))
    for _ in range(3):
        threading.Thread(target=work, args=(store, numbers)).start()


if __name__ == "__main__":
    main()

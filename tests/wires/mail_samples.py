"""The mail of one report as it leaves us, for the tests that hand it to an operator."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path

from mssante import envelope
from mssante.letter import Address, Letter

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data" / "mssante"
HOST = "127.0.0.1"
SENDER = "passerelle@expert.mssante.fr"
REQUESTER = "bernard.vacquier@requerant.mssante.fr"
DELIVERY = "AB7K2M4QX9ZT3WLR6PCD"
PDF = b"%PDF-1.4\n" + bytes(range(256)) * 40 + b"\n.\n..\r\n"
LETTER = Letter(
    label="CR de télémédecine", family="PAT-TROIS", given="DOMINIQUE", birth_date=date(1979, 3, 28),
    performed=date(2025, 1, 10), codes=("85208-7",), qualified=True, text="Bonjour.\n.\nfin\n",
)  # fmt: skip
FILES = {
    "INDEX.HTM": b"<html/>", "README.TXT": b"lisez", "DOC0001.XML": (DATA / "doc0001.xml").read_bytes(),
    "METADATA.XML": (DATA / "metadata.golden.xml").read_bytes(),
}  # fmt: skip
XDM = envelope.xdm_zip(FILES)


def message(recipient: str = REQUESTER) -> bytes:
    return envelope.mail(
        LETTER, delivery_id=DELIVERY, date=datetime(2025, 1, 10, 14, tzinfo=UTC), sender=Address(SENDER, "CH Expert"),
        recipients=[Address(recipient)], product="P", xdm=XDM, pdf=PDF,
    )  # fmt: skip


def until(found: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for a condition with a deadline."""
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, "not in time"
        threading.Event().wait(0.02)

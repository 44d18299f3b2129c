"""The sender of the HL7 topics: every message is answered, and what is not AA stops the run."""

from __future__ import annotations

import itertools
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.inserts import inserting, storing
from benchmarks.mllp_load import Refused, Senders
from benchmarks.topics_hl7 import numbered, oru
from fhir_server.context import SYSTEM
from fhir_server.store.engine import open_store
from fhir_server.store.inbox import InboxFilter, NewMessage
from fhir_server.store.schema import upgrade
from hl7v2 import ack
from hl7v2.conversation import new_control_id, utc_now
from hl7v2.mllp import Listener


def answer(raw: bytes, peer: str) -> bytes:
    return ack.build(raw, "AA", now=utc_now(), control_id=new_control_id())


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("enclosed", [b"", b"QUJD" * 400_000])
def test_every_message_is_sent_whole_and_once_over_all_connections(count: int, enclosed: bytes) -> None:
    taken: list[bytes] = []
    peers: Counter[str] = Counter()

    def take(raw: bytes, peer: str) -> bytes:
        taken.append(raw)
        peers[peer] += 1
        return answer(raw, peer)

    listener = Listener(("127.0.0.1", 0), take)
    listener.start()
    try:
        with closing(Senders(listener.port, count)) as senders:
            assert senders.send(numbered(number, enclosed) for number in range(12)) == 12
            assert senders.send(iter(())) == 0
            assert senders.send(numbered(number) for number in range(12, 14)) == 2
    finally:
        assert listener.close()
    wanted = [b"".join(numbered(number, enclosed)[1]) for number in range(12)]
    assert sorted(taken) == sorted([*wanted, *(b"".join(numbered(number)[1]) for number in (12, 13))])
    assert len(peers) == count
    if enclosed:
        assert wanted[3] == oru(3, enclosed)


@pytest.mark.parametrize("code", ["AE", "AR"])
def test_a_message_that_is_refused_stops_the_run(code: str) -> None:
    count = itertools.count()

    def take(raw: bytes, peer: str) -> bytes:
        if next(count) == 2:
            return ack.build(raw, code, now=utc_now(), control_id="X", text="no")  # type: ignore[arg-type]  # a word the test gives
        return answer(raw, peer)

    listener = Listener(("127.0.0.1", 0), take)
    listener.start()
    try:
        with closing(Senders(listener.port, 1)) as senders, pytest.raises(Refused, match=f"MSA.{code}"):
            senders.send(numbered(number) for number in range(9))
    finally:
        assert listener.close()


def test_the_answer_to_another_message_stops_the_run() -> None:
    listener = Listener(("127.0.0.1", 0), lambda raw, peer: answer(numbered(7)[1][0], peer))
    listener.start()
    try:
        with closing(Senders(listener.port, 1)) as senders, pytest.raises(Refused):
            senders.send(iter([numbered(8)]))
    finally:
        assert listener.close()


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgresql"))])
def test_the_limit_stores_what_the_store_does(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    database_url: str = request.getfixturevalue({"sqlite": "sqlite_url", "postgresql": "empty_postgres"}[kind])
    upgrade(database_url)  # a database of its own: the limit makes a table there
    control_id, parts = numbered(5)
    raw, large = b"".join(parts), b"".join(numbered(6, b"QUJD" * 30_000)[1])
    store = open_store(database_url, tmp_path / "data")
    keys = (("msh-10", control_id.decode()), ("iep", "V000000005"), ("finess", "990009999"))
    theirs = store.receive(
        NewMessage("mllp", raw, "mllp:bench", "p", "GAM|BENCH", control_id.decode() + "x", keys=keys)
    )
    for opened in (inserting, storing):
        with closing(opened(database_url, tmp_path)) as line:
            line.put(raw)
            line.put(large)
    with store.read(SYSTEM) as snapshot:
        big, ours, _ = snapshot.messages(InboxFilter())
        stored = snapshot.message(theirs.id)
        assert stored is not None and (ours.size, ours.sha256) == (stored.size, stored.sha256)
        assert (ours.control_id, ours.sender) == (control_id.decode(), stored.sender)
        assert snapshot.message_keys(ours.id) == snapshot.message_keys(theirs.id)
        assert snapshot.message_raw(ours.id) == raw
    assert (tmp_path / big.sha256).read_bytes() == large
    store.close()

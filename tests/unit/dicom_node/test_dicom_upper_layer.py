"""Protocol data units, with pynetdicom as the judge, and the connection under every cut of the byte stream."""

import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ, P_DATA_TF

from dicom_node import dimse
from dicom_node import upper_layer as ul
from dicom_node.contexts import (
    ACCEPTED,
    IMPLEMENTATION_UID,
    IMPLICIT_LE,
    JPEG_BASELINE,
    VERIFICATION,
    Proposed,
    negotiate,
)

US = "1.2.840.10008.5.1.4.1.1.6.1"
CONTEXTS = (Proposed(1, VERIFICATION, (IMPLICIT_LE,)), Proposed(3, US, (JPEG_BASELINE, IMPLICIT_LE)))


def test_our_request_is_read_by_pynetdicom() -> None:
    pdu = A_ASSOCIATE_RQ()
    pdu.decode(ul.request_pdu("PASSERELLE", "ECHO7", CONTEXTS, 131072))
    assert (pdu.called_ae_title.strip(), pdu.calling_ae_title.strip()) == ("PASSERELLE", "ECHO7")
    assert [(c.context_id, str(c.abstract_syntax)) for c in pdu.presentation_context] == [(1, VERIFICATION), (3, US)]
    assert [str(s) for s in pdu.presentation_context[1].transfer_syntax] == [JPEG_BASELINE, IMPLICIT_LE]
    assert pdu.user_information.maximum_length == 131072
    assert str(pdu.user_information.implementation_class_uid) == IMPLEMENTATION_UID


def test_a_request_survives_the_way_back() -> None:
    request = ul.parse_request(ul.request_pdu("A", "B", CONTEXTS, 4096)[6:])
    assert (request.called, request.calling, request.contexts, request.max_length) == ("A", "B", CONTEXTS, 4096)
    assert request.version == 1 and request.operations is None


@pytest.mark.parametrize(("wished", "granted"), [((16, 1), 8), ((0, 0), 8), ((3, 1), 3)])
def test_our_acceptance_is_read_by_pynetdicom(wished: tuple[int, int], granted: int) -> None:
    body = ul.request_pdu("PASSERELLE", "ECHO7", CONTEXTS, 0)[6:]
    window = struct.pack(">BxHHH", 0x53, 4, *wished)
    # the user information item is the last one: lengthen it by the window
    at = body.rindex(b"\x50\0")
    body = body[: at + 2] + struct.pack(">H", len(body) - at - 4 + len(window)) + body[at + 4 :] + window
    request = ul.parse_request(body)
    assert request.operations == wished
    made = ul.accept_pdu(request, body[4:36], negotiate(request.contexts), 1 << 18, 8)
    pdu = A_ASSOCIATE_AC()
    pdu.decode(made)
    assert [(c.context_id, c.result) for c in pdu.presentation_context] == [(1, 0), (3, 0)]
    assert str(pdu.presentation_context[1].transfer_syntax) == JPEG_BASELINE
    assert pdu.user_information.maximum_length == 1 << 18
    assert pdu.user_information.async_ops_window.maximum_number_operations_invoked == granted
    answers, max_length = ul.parse_accept(made[6:])
    assert answers == ((1, ACCEPTED, IMPLICIT_LE), (3, ACCEPTED, JPEG_BASELINE)) and max_length == 1 << 18


def test_a_rejection_names_source_and_reason() -> None:
    pdu = A_ASSOCIATE_RJ()
    pdu.decode(ul.reject_pdu(1, 1, 7))
    assert (pdu.result, pdu.source, pdu.reason_diagnostic) == (1, 1, 7)


def test_a_data_pdu_is_read_by_pynetdicom() -> None:
    pdu = P_DATA_TF()
    pdu.decode(ul.data_pdu(5, 3, b"abcd"))
    (item,) = pdu.presentation_data_value_items
    assert (item.presentation_context_id, item.presentation_data_value) == (5, b"\x03abcd")


def test_an_ae_title_cannot_break_a_log_line() -> None:
    body = bytearray(ul.request_pdu("A", "B", CONTEXTS, 0)[6:])
    body[20:36] = b"EVIL\nroot\x1b[2J".ljust(16)
    assert ul.parse_request(bytes(body)).calling == "EVIL?root?[2J"


@pytest.mark.parametrize(
    "contexts",
    [(Proposed(2, US, (IMPLICIT_LE,)),), (Proposed(1, US, (IMPLICIT_LE,)), Proposed(1, VERIFICATION, (IMPLICIT_LE,)))],
)
def test_wrong_context_ids_are_a_fault(contexts: tuple[Proposed, ...]) -> None:
    with pytest.raises(ul.PeerFault):
        ul.parse_request(ul.request_pdu("A", "B", contexts, 0)[6:])


@given(st.binary(max_size=400))
def test_garbage_is_a_fault_or_a_request(body: bytes) -> None:
    for data in (body, bytes(68) + body):
        for read in (ul.parse_request, ul.parse_accept):
            try:
                read(data)
            except ul.PeerFault:
                pass


@given(st.data())
def test_a_damaged_request_is_a_fault_or_a_request(data: st.DataObject) -> None:
    body = bytearray(ul.request_pdu("A", "B", CONTEXTS, 0)[6:])
    body[data.draw(st.integers(68, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        ul.parse_request(bytes(body[: data.draw(st.integers(0, len(body)))]))
    except ul.PeerFault:
        pass


def test_a_command_survives_the_way_back() -> None:
    command = dimse.parse(dimse.store_request(7, US, "1.2.3"))
    assert command == dimse.Command(dimse.C_STORE_RQ, 7, 0, US, "1.2.3", True, 0, "")
    answer = dimse.parse(dimse.response(command, 0xA900, "é" * 70))
    assert (answer.field, answer.responded_id, answer.status) == (0x8001, 7, 0xA900)
    assert (answer.sop_instance, answer.has_data_set, len(answer.comment)) == ("1.2.3", False, 64)


def test_our_commands_are_read_by_pydicom() -> None:
    from io import BytesIO

    from pydicom.filereader import read_dataset

    ds = read_dataset(BytesIO(dimse.store_request(7, US, "1.2.3")), True, True)
    assert (ds.CommandField, ds.MessageID, ds.AffectedSOPInstanceUID) == (1, 7, "1.2.3")
    assert ds.CommandGroupLength == len(dimse.store_request(7, US, "1.2.3")) - 12


@given(st.binary(max_size=200))
def test_a_garbage_command_is_a_fault_or_a_command(data: bytes) -> None:
    try:
        dimse.parse(data)
    except dimse.CommandFault:
        pass


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    with ours, theirs:
        yield ours, theirs


@settings(max_examples=40, deadline=None)
@given(
    contents=st.lists(st.binary(max_size=3000), min_size=1, max_size=8),
    cuts=st.lists(st.integers(1, 700), min_size=1, max_size=30),
    size=st.integers(16, 1024),
)
def test_fragments_are_the_same_however_the_stream_is_cut(contents: list[bytes], cuts: list[int], size: int) -> None:
    stream = b"".join(ul.data_pdu(1, 0, content) for content in contents)
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()

    def feed() -> None:
        position, turn = 0, 0
        while position < len(stream):
            step = cuts[turn % len(cuts)]
            theirs.sendall(stream[position : position + step])
            position, turn = position + step, turn + 1

    with ours, theirs:
        feeder = threading.Thread(target=feed)
        feeder.start()
        wire = ul.Connection(ours, size=size, idle=10, min_rate=1)
        found = []
        for _ in contents:
            kind, length = wire.pdu()
            count, context, control = wire.fragment()
            assert (kind, length, context, control) == (ul.P_DATA, count + 6, 1, 0)
            found.append(wire.take(count))
        feeder.join()
    assert found == contents


def test_silence_is_late(pair: tuple[socket.socket, socket.socket]) -> None:
    wire = ul.Connection(pair[0], size=64, idle=0.05, min_rate=1)
    with pytest.raises(ul.PeerLate):
        wire.pdu()


def test_a_trickle_is_late_although_it_never_stops(pair: tuple[socket.socket, socket.socket]) -> None:
    wire = ul.Connection(pair[0], size=64, idle=0.2, min_rate=1e6)
    stop = threading.Event()

    def trickle() -> None:
        while not stop.wait(0.02):
            pair[1].sendall(b"\x04")

    feeder = threading.Thread(target=trickle)
    feeder.start()
    try:
        with pytest.raises(ul.PeerLate):
            wire.take(1000)
    finally:
        stop.set()
        feeder.join()


def test_an_end_of_stream_is_gone(pair: tuple[socket.socket, socket.socket]) -> None:
    wire = ul.Connection(pair[0], size=64, idle=5, min_rate=1)
    pair[1].sendall(b"\x04\0\0")
    pair[1].close()
    with pytest.raises(ul.PeerGone):
        wire.pdu()

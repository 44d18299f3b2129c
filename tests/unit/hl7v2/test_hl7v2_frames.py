"""MLLP framing without sockets."""

from __future__ import annotations

import time
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hl7v2.frames import END, FS, MAX_STRAY, VT, Frame, FrameTooLarge, NotMllp, Reader, wrap

bodies = st.lists(st.binary(max_size=60).map(lambda b: b.replace(VT, b"").replace(FS, b"")), min_size=1, max_size=6)
dirt = st.binary(max_size=10).map(lambda b: b.replace(VT, b"\0"))


def drain(reader: Reader) -> list[Frame]:
    out = []
    while (frame := reader.next()) is not None:
        out.append(frame)
    return out


@settings(deadline=None)
@given(bodies, st.lists(dirt, min_size=6, max_size=6), st.lists(st.integers(1, 50), min_size=1, max_size=30))
def test_frames_survive_every_fragmentation_and_dirt(
    contents: list[bytes], noise: list[bytes], sizes: list[int]
) -> None:
    stream = b"".join(dirt + wrap(content) for dirt, content in zip(noise, contents, strict=False))
    reader, frames, position, turn = Reader(), [], 0, 0
    while position < len(stream):
        size = sizes[turn % len(sizes)]
        reader.feed(stream[position : position + size])
        frames += drain(reader)
        position, turn = position + size, turn + 1
    assert [frame.content for frame in frames] == contents
    assert all(frame.complete for frame in frames)
    assert not reader.inside


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(1, 20))
def test_any_bytes_end_in_frames_or_in_waiting(stream: bytes, size: int) -> None:
    whole, chopped = Reader(), Reader()
    whole.feed(stream)
    expected = drain(whole)
    got: list[Frame] = []
    for start in range(0, len(stream), size):
        chopped.feed(stream[start : start + size])
        got += drain(chopped)
    # An FS at the end of a read waits for what follows, so both readers agree on every cut.
    assert got == expected
    assert chopped.size == whole.size


def test_an_fs_is_the_end_only_when_nothing_else_follows() -> None:
    reader = Reader()
    reader.feed(VT + b"a" + FS)
    assert reader.next() is None and reader.ending
    reader.feed(b"b" + FS)
    assert reader.next() is None and reader.ending
    assert reader.flush() == Frame(b"a" + FS + b"b")
    assert reader.flush() is None


def test_a_restart_gives_the_unfinished_frame_and_then_the_new_one() -> None:
    reader = Reader()
    reader.feed(VT + b"MSH|one" + VT + b"MS")
    assert drain(reader) == []
    reader.feed(b"H|two" + END)
    assert drain(reader) == [Frame(b"MSH|one", complete=False), Frame(b"MSH|two")]


def test_the_limit_is_exact() -> None:
    reader = Reader(10)
    reader.feed(wrap(b"x" * 10) + VT + b"x" * 11)
    assert reader.next() == Frame(b"x" * 10)
    with pytest.raises(FrameTooLarge) as caught:
        reader.next()
    assert caught.value.head == b"x" * 11
    late = Reader(10)
    late.feed(wrap(b"x" * 11))
    with pytest.raises(FrameTooLarge):
        late.next()


def test_noise_is_bounded_and_shown() -> None:
    reader = Reader()
    reader.feed(b"\0\r\nMSH|" + b"x" * MAX_STRAY)
    with pytest.raises(NotMllp) as caught:
        reader.next()
    assert caught.value.head.startswith(b"MSH|")


def test_a_frame_full_of_separators_is_scanned_in_linear_time() -> None:
    for content in ((FS + b"a") * 2_000_000, (VT + b"M") * 2_000_000):
        reader = Reader()
        began = time.process_time()
        data = VT + content + END
        for start in range(0, len(data), 1 << 16):
            reader.feed(data[start : start + (1 << 16)])
            frame = reader.next()
        assert frame is not None and len(frame.content) == len(content)
        assert time.process_time() - began < 60


@pytest.mark.parametrize("sign", [VT, FS])
def test_a_message_with_block_characters_is_not_framed(sign: bytes) -> None:
    with pytest.raises(ValueError, match="block character"):
        wrap(b"a" + sign + b"b")


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from([b"", FS + b"a", VT + b"M", b"\r", b"y"]), max_size=12),
    st.lists(st.sampled_from([1, 2, 16_383, 16_384, 20_000]), max_size=5),
)
def test_a_large_frame_comes_back_whole_wherever_it_is_cut(parts: list[bytes], sizes: list[int]) -> None:
    content = b"MSH|" + b"x" * 40_000 + b"".join(part or b"x" * 20_000 for part in parts) + b"z"
    steps, stream, reader, frames = cycle([*sizes, 65_536]), wrap_loosely(content) * 2, Reader(), []
    while stream:
        step = next(steps)
        reader.feed(stream[:step])
        frames += drain(reader)
        stream = stream[step:]
        if reader.inside:
            assert reader.head == (content + END)[: min(reader.size, 64 << 10)]
    assert frames == [Frame(content), Frame(content)] and reader.size == 0


def wrap_loosely(content: bytes) -> bytes:
    """A frame whose content may hold FS and VT, as careless senders leave them."""
    return VT + content + END


@pytest.mark.parametrize("cut", range(5))
def test_a_restart_behind_a_large_beginning_is_seen_wherever_it_is_cut(cut: int) -> None:
    reader, beginning = Reader(), b"MSH|" + b"x" * 100_000
    reader.feed(VT + beginning)
    assert drain(reader) == []
    again = VT + b"MSH|two" + END
    reader.feed(b"y" * 20_000 + again[:cut])
    first = drain(reader)
    reader.feed(again[cut:])
    assert first + drain(reader) == [Frame(beginning + b"y" * 20_000, complete=False), Frame(b"MSH|two")]


def test_the_limit_holds_for_what_is_put_aside() -> None:
    reader = Reader(100_000)
    reader.feed(VT + b"h" * 50_000)
    assert reader.next() is None
    reader.feed(b"x" * 50_000)
    assert reader.next() is None and reader.size == 100_000
    reader.feed(b"x" * 20_000)
    with pytest.raises(FrameTooLarge) as caught:
        reader.next()
    assert caught.value.head == b"h" * 50_000 + b"x" * ((64 << 10) - 50_000)

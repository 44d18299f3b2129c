"""Bodies in memory: how many bytes may be on their way in, and the room large ones share: who waits, in which order,
for how long, and who passes by."""

from __future__ import annotations

import asyncio

import pytest

from fhir_server.errors import Throttled, Unavailable
from fhir_server.rest.room import LEAST, MIB, MOST, SMALL, Inflow, Room, weight


async def settled() -> None:
    """Lets every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_bodies_wait_in_the_order_they_came_and_none_overtakes() -> None:
    async def play() -> list[str]:
        room, told = Room(most=10), list[str]()

        async def come(name: str, heavy: int) -> None:
            await room.enter(heavy)
            told.append(name)

        await room.enter(8)
        tasks = [asyncio.create_task(come(name, heavy)) for name, heavy in (("nine", 9), ("one", 1), ("two", 2))]
        await settled()
        assert told == []  # one would fit, but came later
        room.leave(8)
        await settled()
        assert told == ["nine", "one"]
        room.leave(9)
        await asyncio.gather(*tasks)
        room.leave(1)
        room.leave(2)
        await room.enter(10)  # all was given back
        return told

    assert asyncio.run(play()) == ["nine", "one", "two"]


def test_what_is_heavier_than_the_room_goes_alone() -> None:
    async def play() -> None:
        room = Room(most=10)
        await room.enter(50)
        late = asyncio.create_task(room.enter(1))
        await settled()
        assert not late.done()
        room.leave(50)
        await late

    asyncio.run(play())


def test_who_waits_too_long_is_told_and_makes_way() -> None:
    async def play() -> None:
        room = Room(most=10, patience=0.05)
        await room.enter(10)
        with pytest.raises(Throttled, match="repeat it later"):
            await room.enter(10)
        room.leave(10)
        await room.enter(10)

    asyncio.run(play())


def test_too_much_that_waits_is_turned_away_at_once() -> None:
    async def play() -> None:
        room = Room(most=10, waiting=15)
        await room.enter(10)
        first = asyncio.create_task(room.enter(10))
        await settled()
        with pytest.raises(Throttled, match="wait already"):
            await room.enter(10)
        room.leave(10)
        await first

    asyncio.run(play())


def test_who_gives_up_leaves_nothing_behind() -> None:
    async def play() -> None:
        room = Room(most=10)
        await room.enter(10)
        waits, next_one = asyncio.create_task(room.enter(10)), asyncio.create_task(room.enter(10))
        await settled()
        waits.cancel()
        await settled()
        room.leave(10)
        await next_one
        admitted = asyncio.create_task(room.enter(10))
        await settled()
        room.leave(10)
        admitted.cancel()  # its turn came in the same moment
        with pytest.raises(asyncio.CancelledError):
            await admitted
        await room.enter(10)

    asyncio.run(play())


def test_a_body_weighs_what_its_values_will_take() -> None:
    assert weight(b"[" * (SMALL - 1)) == 0
    assert weight(b"x" * SMALL) == LEAST
    assert weight(b"x" * 40 * MIB) == 40 * MIB
    assert weight(b'{"a":1.5},' * MIB) == 48 * MIB
    assert weight(b"<a/>" * 2 * MIB) == 48 * MIB
    assert MOST // LEAST <= 8


def test_bodies_on_their_way_in_share_so_many_bytes_and_small_ones_find_place() -> None:
    inflow = Inflow(most=10 * MIB, kept_free=3 * MIB)
    large, late, small = inflow.open(), inflow.open(), inflow.open()
    large.add(6 * MIB)
    with pytest.raises(Unavailable, match="repeat it later"):
        late.add(2 * MIB)  # it would take what is kept for small ones
    late.close()
    small.add(SMALL)
    with pytest.raises(Unavailable):
        small.add(1)  # no small one any more
    more = [inflow.open() for _ in range(4)]
    for one in more[:3]:
        one.add(SMALL)
    with pytest.raises(Unavailable):
        more[3].add(1)  # ten in all
    large.close()
    large.close()  # it was given back already
    more[3].add(1)
    for one in (small, *more):
        one.close()
    inflow.open().add(7 * MIB)


def test_a_body_alone_may_be_as_large_as_bodies_may_be_and_small_ones_pass_by() -> None:
    inflow = Inflow(most=4 * MIB, kept_free=2 * MIB)
    alone, other = inflow.open(), inflow.open()
    small = [inflow.open() for _ in range(3)]
    small[0].add(10)
    for _ in range(9):
        alone.add(MIB)
    small[0].add(SMALL - 10)
    small[1].add(SMALL)
    alone.add(MIB)
    with pytest.raises(Unavailable):
        small[2].add(1)  # what is kept for small ones is taken
    small[0].close()
    small[2].add(1)
    with pytest.raises(Unavailable):
        other.add(SMALL + 1)  # a second large one
    for one in (alone, small[1], small[2]):
        one.close()
    assert (inflow._held, inflow._small) == (0, 0)


def test_a_body_that_grows_large_leaves_the_place_of_small_ones() -> None:
    inflow = Inflow(most=4 * MIB, kept_free=MIB)
    grown, small = inflow.open(), inflow.open()
    grown.add(SMALL)
    grown.add(8 * MIB)
    small.add(SMALL)
    grown.close()
    assert (inflow._held, inflow._small) == (SMALL, SMALL)
    small.close()
    assert (inflow._held, inflow._small) == (0, 0)

"""The room large bodies share: who waits, in which order, for how long, and who passes by."""

from __future__ import annotations

import asyncio

import pytest

from fhir_server.errors import Throttled
from fhir_server.rest.room import LEAST, MIB, MOST, SMALL, Room, weight


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

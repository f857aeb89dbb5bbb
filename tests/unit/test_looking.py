"""Looking for what comes soon: it is found, given up in time, and everybody else has a turn meanwhile."""

import pytest
import trio

from cmkfs.looking import Lookers, look_for


async def test_what_is_there_is_given_at_once() -> None:
    assert await look_for(lambda: b"here", 0.0) == b"here"


async def test_what_comes_meanwhile_is_found() -> None:
    came: list[bytes] = []

    async def bring() -> None:
        assert Lookers.count == 1
        await trio.lowlevel.checkpoint()
        came.append(b"here")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bring)
        assert await look_for(lambda: came[0] if came else None, 10.0) == b"here"
    assert Lookers.count == 0


async def test_what_does_not_come_is_given_up() -> None:
    assert await look_for(lambda: None, 0.001) is None
    assert Lookers.count == 0


async def test_an_error_is_the_callers_and_nobody_looks_any_more() -> None:
    def fails() -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        await look_for(fails, 10.0)
    assert Lookers.count == 0

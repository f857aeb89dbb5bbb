"""The idle lock: after so long without use, not sooner, and anew after an unlock."""

from collections.abc import Iterator

import pytest
import trio
import trio.testing

from cmkfs.fs.idle import whenever_idle
from cmkfs.fuse.session import Requests

SECONDS = 600.0


class Mount:
    """What the idle lock sees of a mount."""

    def __init__(self) -> None:
        self.epoch = 0
        self.locked_at: list[float] = []
        self.locked = trio.Event()

    async def lock(self) -> None:
        self.locked_at.append(trio.current_time())
        self.epoch += 1
        self.locked.set()

    async def run(self) -> None:
        await whenever_idle(SECONDS, lambda: self.epoch, self.lock)


@pytest.fixture(autouse=True)
def counters() -> Iterator[None]:
    before = Requests.by_kind["read"], Requests.quiet
    yield
    Requests.by_kind["read"], Requests.quiet = before


async def test_locks_once_the_time_is_over_and_not_again(autojump_clock: trio.testing.MockClock) -> None:
    mount = Mount()
    with trio.move_on_after(SECONDS * 1.1):
        await mount.run()
    (at,) = mount.locked_at
    assert SECONDS <= at <= SECONDS * 1.06


async def test_use_puts_it_off_and_a_monitor_does_not(autojump_clock: trio.testing.MockClock) -> None:
    mount = Mount()

    async def use() -> None:
        for _ in range(20):
            await trio.sleep(SECONDS / 2)
            Requests.by_kind["read"] += 1
        last = trio.current_time()
        while not mount.locked_at:
            await trio.sleep(SECONDS / 50)
            Requests.by_kind["read"] += 1
            Requests.quiet += 1
        assert last + SECONDS <= mount.locked_at[0] <= last + SECONDS * 1.11
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.run)
        nursery.start_soon(use)


async def test_after_an_unlock_the_time_begins_anew(autojump_clock: trio.testing.MockClock) -> None:
    mount = Mount()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.run)
        await mount.locked.wait()
        await trio.sleep(SECONDS * 0.9)
        mount.epoch += 1  # unlocked
        unlocked, mount.locked = trio.current_time(), trio.Event()
        await mount.locked.wait()
        assert mount.locked_at[1] - unlocked >= SECONDS
        nursery.cancel_scope.cancel()

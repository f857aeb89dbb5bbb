"""Many readers or one writer; writers do not starve; whoever gives up lets the others on."""

import pytest
import trio
import trio.testing

from cmkfs.fs.rwlock import RWLock


class Visitors:
    """Tasks that hold the lock until told to leave."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.lock = RWLock()
        self.inside: list[str] = []
        self._nursery = nursery
        self._leave: dict[str, trio.Event] = {}
        self._scopes: dict[str, trio.CancelScope] = {}

    async def come(self, name: str, *, writing: bool) -> None:
        self._leave[name] = trio.Event()
        self._nursery.start_soon(self._visit, name, writing)
        await trio.testing.wait_all_tasks_blocked()

    async def _visit(self, name: str, writing: bool) -> None:
        with trio.CancelScope() as self._scopes[name]:
            async with self.lock.writing() if writing else self.lock.reading():
                self.inside.append(name)
                try:
                    await self._leave[name].wait()
                finally:
                    self.inside.remove(name)

    async def leave(self, name: str) -> None:
        self._leave[name].set()
        await trio.testing.wait_all_tasks_blocked()

    async def give_up(self, name: str) -> None:
        self._scopes[name].cancel()
        await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
async def visitors(nursery: trio.Nursery) -> Visitors:
    return Visitors(nursery)


async def test_readers_share(visitors: Visitors) -> None:
    await visitors.come("one", writing=False)
    await visitors.come("two", writing=False)
    assert visitors.inside == ["one", "two"]
    assert visitors.lock.busy
    assert visitors.lock.free_to_read
    await visitors.leave("one")
    assert visitors.lock.busy
    await visitors.leave("two")
    assert not visitors.lock.busy


async def test_a_writer_is_alone(visitors: Visitors) -> None:
    await visitors.come("writer", writing=True)
    assert not visitors.lock.free_to_read
    await visitors.come("reader", writing=False)
    await visitors.come("other", writing=True)
    assert visitors.inside == ["writer"]
    await visitors.leave("writer")
    assert visitors.inside == ["other"]
    await visitors.leave("other")
    assert visitors.inside == ["reader"]
    await visitors.leave("reader")


async def test_a_waiting_writer_goes_before_readers_that_come_later(visitors: Visitors) -> None:
    await visitors.come("reader", writing=False)
    await visitors.come("writer", writing=True)
    assert not visitors.lock.free_to_read
    await visitors.come("later", writing=False)
    assert visitors.inside == ["reader"]
    await visitors.leave("reader")
    assert visitors.inside == ["writer"]
    await visitors.leave("writer")
    assert visitors.inside == ["later"]
    await visitors.leave("later")


async def test_a_writer_that_gives_up_lets_readers_on(visitors: Visitors) -> None:
    await visitors.come("reader", writing=False)
    await visitors.come("writer", writing=True)
    await visitors.come("later", writing=False)
    await visitors.give_up("writer")
    assert visitors.inside == ["reader", "later"]
    await visitors.leave("reader")
    await visitors.leave("later")
    assert not visitors.lock.busy


@pytest.mark.parametrize("writing", [False, True])
async def test_whoever_is_cancelled_inside_leaves(visitors: Visitors, writing: bool) -> None:
    await visitors.come("one", writing=writing)
    await visitors.come("next", writing=True)
    await visitors.give_up("one")
    assert visitors.inside == ["next"]
    await visitors.leave("next")


async def test_all_waiting_writers_get_their_turn(visitors: Visitors) -> None:
    await visitors.come("first", writing=True)
    for name in "abcde":
        await visitors.come(name, writing=True)
    await visitors.leave("first")
    seen = []
    for _ in range(5):
        (name,) = visitors.inside
        seen.append(name)
        await visitors.leave(name)
    assert sorted(seen) == list("abcde")

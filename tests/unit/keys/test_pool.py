"""DEKs wrapped ahead of need: refilled in the background, gone at a lock."""

import pytest
import trio
import trio.testing
from one_zone import OneZone, until

from cmkfs.errors import CmkNotFound, Disabled, KeyUnavailable, Locked, TokenUnavailable
from cmkfs.format.header import Slot, State
from cmkfs.keys.pool import MOST, DekPool, NewFile, random_id
from cmkfs.keys.zone import Zone


def pool_of(made: OneZone, size: int, batch: int) -> DekPool:
    return DekPool(lambda count: made.keyring._prepare(made.zone, count), size, batch, most=lambda: size)


async def test_nothing_is_wrapped_before_the_first_file(serving: OneZone, nursery: trio.Nursery) -> None:
    pool = pool_of(serving, 8, 4)
    nursery.start_soon(pool.keep_filled)
    before = serving.token.calls["wrap"]
    await trio.testing.wait_all_tasks_blocked()
    assert len(pool) == 0
    assert serving.token.calls["wrap"] == before
    nursery.cancel_scope.cancel()


async def test_it_is_filled_after_the_first_and_again_when_half_empty(serving: OneZone, nursery: trio.Nursery) -> None:
    pool = pool_of(serving, 8, 3)
    nursery.start_soon(pool.keep_filled)
    taken = [await pool.take()]
    await until(lambda: len(pool) == 8)
    before = serving.token.calls["wrap"]
    taken += [await pool.take() for _ in range(4)]
    assert serving.token.calls["wrap"] == before  # nobody waited for the token
    taken.append(await pool.take())
    await until(lambda: len(pool) == 8)
    assert len({new.identity.file_id for new in taken}) == len(taken)
    nursery.cancel_scope.cancel()


async def test_an_empty_pool_asks_the_token_for_one(serving: OneZone) -> None:
    pool = pool_of(serving, 8, 4)
    before = serving.token.calls["wrap"]
    await pool.take()
    assert serving.token.calls["wrap"] == before + 1


async def test_each_entry_is_a_whole_identity(serving: OneZone) -> None:
    """A wrap is bound to its file id, so the id is chosen with the DEK; what was wrapped unwraps again."""
    new = await pool_of(serving, 8, 4).take()
    assert new.identity.zone_id == serving.zone.zone_id
    lease = await serving.keyring.lease(serving.zone, new.identity)
    slot_page = new.identity.to_bytes() + b"".join(
        new.key.seal_slot(number, slot) for number, slot in enumerate(_slots())
    )
    assert lease.key.read_slots(slot_page).slot == _slots()[1]


def _slots() -> list[Slot]:
    return [Slot(1, 0, State.DIRTY, 0), Slot(2, 0, State.DIRTY, 0)]


async def test_it_dies_with_the_lock(serving: OneZone, nursery: trio.Nursery) -> None:
    nursery.start_soon(serving.pool.keep_filled)
    await serving.keyring.new_file(serving.zone)
    await until(lambda: len(serving.pool) > 0)
    serving.keyring.end_leases(serving.zone, Locked("operator"))
    assert len(serving.pool) == 0
    with pytest.raises(Locked):
        await serving.keyring.new_file(serving.zone)
    nursery.cancel_scope.cancel()


async def test_what_a_lock_overtook_does_not_get_in(serving: OneZone, nursery: trio.Nursery) -> None:
    """The token answers a refill after the lock: those DEKs were made in an epoch that has ended."""
    pool = pool_of(serving, 8, 4)
    nursery.start_soon(pool.keep_filled)
    serving.token.hang()
    nursery.start_soon(_take_refused, pool)
    await until(serving.token.entered.is_set)
    serving.keyring.end_leases(serving.zone, Locked("operator"))
    serving.token.answer()
    await until(lambda: serving.worker.waiting == 0 and serving.worker.busy_seconds == 0.0)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert len(pool) == 0
    nursery.cancel_scope.cancel()


async def _take_refused(pool: DekPool) -> None:
    with pytest.raises(Locked):
        await pool.take()


@pytest.mark.parametrize("error", [TokenUnavailable, Disabled, CmkNotFound])
async def test_a_refill_that_fails_does_not_end_the_mount(error: type[Exception], nursery: trio.Nursery) -> None:
    fails = True
    calls: list[int] = []

    async def prepare(count: int) -> list[NewFile]:
        calls.append(count)
        if fails:
            raise error("no")
        return [object()] * count  # type: ignore[list-item]

    pool = DekPool(prepare, size=4, batch=4, most=lambda: 4)
    nursery.start_soon(pool.keep_filled)
    with pytest.raises(error):
        await pool.take()
    await trio.testing.wait_all_tasks_blocked()
    assert len(calls) == 2  # not tried over and over either
    fails = False
    await pool.take()
    await trio.testing.wait_all_tasks_blocked()
    assert len(pool) == 4
    nursery.cancel_scope.cancel()


async def test_a_lock_ends_the_waiting_at_once() -> None:
    async def never(count: int) -> list[NewFile]:
        await trio.sleep_forever()
        raise AssertionError("not reached")

    pool, refused = DekPool(never), 0

    async def take() -> None:
        nonlocal refused
        with pytest.raises(KeyUnavailable):
            await pool.take()
        refused += 1

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        pool.clear()
    assert refused == 3


async def test_once_nobody_makes_files_it_holds_the_most(autojump_clock: trio.testing.MockClock) -> None:
    async def prepare(count: int) -> list[NewFile]:
        return [object()] * count  # type: ignore[list-item]

    pool = DekPool(prepare, size=8, batch=4, most=lambda: 100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.keep_filled)
        await trio.sleep(60)
        assert len(pool) == 0
        for _ in range(20):
            await pool.take()
            await trio.sleep(1)  # somebody is at work: no more than soon will do
            assert len(pool) < 100
        await trio.sleep(3)
        assert len(pool) == 100
        pool.end()


async def test_zones_share_what_is_made_ahead(serving: OneZone) -> None:
    """Memory is bounded by the mount, not by the number of its zones."""
    pool = serving.keyring.pool_of(serving.zone)
    assert pool.most() == MOST
    for _ in range(2):
        serving.keyring.add_zone(Zone(random_id(), serving.zone.record, "own"))
    assert pool.most() == MOST // 3


async def test_one_whose_zone_was_the_last_ends_at_once(
    serving: OneZone, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the pause before a batch."""
    monkeypatch.setattr("cmkfs.keys.pool._QUIET_SECONDS", 60.0)
    before = len(nursery.child_tasks)
    nursery.start_soon(serving.pool.keep_filled)
    await serving.keyring.new_file(serving.zone)
    await until(lambda: len(serving.pool) > 32)  # not low any more
    serving.keyring.remove_zone(serving.zone)
    with trio.fail_after(5):
        await until(lambda: len(nursery.child_tasks) == before)


async def test_it_is_refilled_before_it_is_empty_while_files_are_made(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever makes files all the time uses up more within one pause than is left at its beginning."""
    waited = 0

    async def prepare(count: int) -> list[NewFile]:
        nonlocal waited
        waited += count == 1
        return [object()] * count  # type: ignore[list-item]

    pool = DekPool(prepare, size=64, batch=4, most=lambda: 64)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.keep_filled)
        await pool.take()
        await trio.sleep(10)
        assert len(pool) == 64
        for _ in range(500):
            await pool.take()
            await trio.sleep(0.001)
        pool.end()
    assert waited == 1


async def test_batches_are_under_way_at_once_when_it_is_worth_it() -> None:
    under_way, all_of_them = 0, trio.Event()

    async def prepare(count: int) -> list[NewFile]:
        nonlocal under_way
        under_way += 1
        if under_way == 1 + 5:  # the first one is for who asks, and the others are made ahead
            all_of_them.set()
        if under_way > 1:
            await all_of_them.wait()
        return [object()] * count  # type: ignore[list-item]

    pool = DekPool(prepare, size=32, batch=4, most=lambda: 32, parallel=lambda: 5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.keep_filled)
        await pool.take()
        await until(lambda: len(pool) == 32)
        pool.end()


async def test_a_lock_ends_the_making_ahead_at_once() -> None:
    """What waits for a slow token holds keys."""
    calls, ended = 0, trio.Event()

    async def prepare(count: int) -> list[NewFile]:
        nonlocal calls
        calls += 1
        if calls > 1:
            try:
                await trio.sleep_forever()
            finally:
                ended.set()
        return [object()] * count  # type: ignore[list-item]

    pool = DekPool(prepare, size=8, batch=4, most=lambda: 8)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.keep_filled)
        await pool.take()
        await until(lambda: calls > 1)
        pool.clear()
        await ended.wait()
        pool.end()

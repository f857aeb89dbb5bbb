"""The cache of unwrapped keys: bounds, one unwrap in flight, nothing left after a lock."""

from typing import cast

import pytest
import trio
import trio.testing

from cmkfs.crypto.dek import FileKey
from cmkfs.errors import KeyUnavailable, TokenUnavailable
from cmkfs.keys import dekcache
from cmkfs.keys.dekcache import DekCache


def key(name: str) -> FileKey:
    """The cache never looks into a key."""
    return cast(FileKey, f"key of {name}")


def test_the_one_that_was_used_longest_ago_makes_room() -> None:
    cache = DekCache(max_keys=2)
    cache.put(b"a", key("a"))
    cache.put(b"b", key("b"))
    assert cache.get(b"a") == key("a")
    cache.put(b"c", key("c"))
    assert (cache.get(b"a"), cache.get(b"b"), cache.get(b"c")) == (key("a"), None, key("c"))
    assert len(cache) == 2


def test_a_key_lives_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(dekcache.time, "monotonic", lambda: now)
    cache = DekCache(max_seconds=10)
    cache.put(b"a", key("a"))
    now = 10.0
    assert cache.get(b"a") == key("a")
    now = 10.1
    assert cache.get(b"a") is None
    assert len(cache) == 0


async def test_many_who_ask_at_once_cost_one_unwrap() -> None:
    cache, started, go = DekCache(), 0, trio.Event()
    found: list[FileKey] = []

    async def unwrap() -> FileKey:
        nonlocal started
        started += 1
        await go.wait()
        return key("a")

    async def ask() -> None:
        found.append(await cache.get_or_unwrap(b"a", unwrap))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert started == 1
        go.set()
    assert found == [key("a")] * 20
    assert started == 1


async def test_files_do_not_wait_for_each_other() -> None:
    cache, go = DekCache(), trio.Event()

    async def hangs() -> FileKey:
        await go.wait()
        return key("slow")

    async def answers() -> FileKey:
        return key("fast")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.get_or_unwrap, b"slow", hangs)
        await trio.testing.wait_all_tasks_blocked()
        assert await cache.get_or_unwrap(b"fast", answers) == key("fast")
        go.set()


async def test_who_waited_for_a_failure_tries_for_himself() -> None:
    cache, tries, go = DekCache(), 0, trio.Event()
    errors: list[Exception] = []

    async def unwrap() -> FileKey:
        nonlocal tries
        tries += 1
        if tries == 1:
            await go.wait()
            raise TokenUnavailable("no answer")
        return key("a")

    async def ask() -> None:
        try:
            assert await cache.get_or_unwrap(b"a", unwrap) == key("a")
        except TokenUnavailable as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        go.set()
    assert tries == 2
    assert len(errors) == 1


async def test_one_who_is_cancelled_leaves_nothing_in_flight() -> None:
    cache = DekCache()

    async def hangs() -> FileKey:
        await trio.sleep_forever()
        raise AssertionError

    async def answers() -> FileKey:
        return key("a")

    with trio.move_on_after(0):
        await cache.get_or_unwrap(b"a", hangs)
    assert await cache.get_or_unwrap(b"a", answers) == key("a")


def test_after_a_lock_there_is_nothing() -> None:
    cache = DekCache()
    cache.put(b"a", key("a"))
    cache.clear()
    assert cache.get(b"a") is None
    assert len(cache) == 0


async def test_a_lock_ends_the_waiting_at_once_and_a_later_unwrap_is_a_new_one() -> None:
    cache, go = DekCache(), trio.Event()
    refused = 0

    async def never() -> FileKey:
        await trio.sleep_forever()
        raise AssertionError("not reached")

    async def ask() -> None:
        nonlocal refused
        with pytest.raises(KeyUnavailable):
            await cache.get_or_unwrap(b"a", never)
        refused += 1

    async def later() -> FileKey:
        await go.wait()
        return key("a")

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        cache.clear()
        nursery.start_soon(cache.get_or_unwrap, b"a", later)
        await trio.testing.wait_all_tasks_blocked()
        assert refused == 3
        go.set()
    assert cache.get(b"a") == key("a")

"""Looking for the next request: for how long, and that everybody else runs meanwhile."""

import os
import threading
import time
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from cmkfs.fs.diskthread import in_thread, in_thread_for_a_moment
from cmkfs.fuse.polling import PollWindow, Readiness
from cmkfs.looking import Threads


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_a_missed_gap_halves_the_window_until_it_closes() -> None:
    window = PollWindow(200e-6)
    seen = []
    for _ in range(5):
        window.observe(1e-3)
        seen.append(window.current)
    assert seen == [100e-6, 50e-6, 25e-6, 0.0, 0.0]


def test_a_gap_that_polling_would_have_caught_opens_it_at_once() -> None:
    window = PollWindow(200e-6)
    for _ in range(5):
        window.observe(1e-3)
    window.observe(150e-6)
    assert window.current == 200e-6


def test_a_window_of_zero_stays_closed() -> None:
    window = PollWindow(0.0)
    window.observe(0.0)
    window.observe(1.0)
    assert window.current == 0.0


def test_a_negative_window_is_refused() -> None:
    with pytest.raises(ValueError, match="poll window"):
        PollWindow(-1e-6)


@pytest.mark.trio
async def test_what_is_ready_is_returned_at_once_but_not_for_long(pipe: tuple[int, int]) -> None:
    ready = Readiness(pipe[0], 200e-6)
    os.write(pipe[1], b"x")
    ran = trio.Event()

    async def another_task() -> None:
        ran.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(another_task)
        until = time.monotonic() + 1
        while not ran.is_set() and time.monotonic() < until:  # a reader that always finds something
            if not ready.at_once():
                await ready.wait()
        assert ran.is_set()


@pytest.mark.trio
@pytest.mark.parametrize("window", [0.0, 200e-6, 10.0])
async def test_it_waits_for_what_comes_later(pipe: tuple[int, int], window: float) -> None:
    ready = Readiness(pipe[0], window)
    returned = trio.Event()

    async def wait() -> None:
        await ready.wait()
        returned.set()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.01)  # another task's timer runs while the reader polls
            assert not returned.is_set()
            os.write(pipe[1], b"x")


@pytest.mark.trio
async def test_nobody_looks_while_a_thread_is_waited_for(pipe: tuple[int, int]) -> None:
    """It would find Python's lock taken, again and again: 200 µs for each fsync."""
    ready, disk = Readiness(pipe[0], 10.0), threading.Event()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread_for_a_moment, disk.wait)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ready.wait)
            await trio.testing.wait_all_tasks_blocked()  # who looks is not blocked
            os.write(pipe[1], b"x")
            disk.set()
    assert not Threads.count
    assert await in_thread(lambda: Threads.count) == 0, "a sync of the whole disk would keep everybody from looking"


@pytest.mark.trio
@pytest.mark.parametrize("window", [0.0, 10.0])
async def test_closing_ends_waiting_and_polling(pipe: tuple[int, int], window: float) -> None:
    ready = Readiness(pipe[0], window)

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await ready.wait()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.01)
            ready.close()


@pytest.mark.trio
async def test_a_reader_that_polls_can_be_cancelled(pipe: tuple[int, int]) -> None:
    ready = Readiness(pipe[0], 10.0)
    with trio.move_on_after(0.01) as scope:
        await ready.wait()
    assert scope.cancelled_caught

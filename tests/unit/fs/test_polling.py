"""The stand-in for trio: when it polls, who reads, and that everybody else runs meanwhile."""

import errno
import os
import time
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from cmkfs.fs.polling import LowLevel, PollingTrio, PollWindow, ReaderLock


def never() -> bool:
    return False


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
async def test_the_lock_excludes() -> None:
    lock = ReaderLock()
    inside = 0

    async def worker() -> None:
        nonlocal inside
        for _ in range(20):
            async with lock:
                inside += 1
                await trio.lowlevel.checkpoint()
                assert inside == 1
                inside -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(worker)


@pytest.mark.trio
async def test_the_task_that_runs_keeps_the_lock() -> None:
    lock = ReaderLock()
    order: list[str] = []

    async def waiting() -> None:
        async with lock:
            order.append("waiting")

    async with trio.open_nursery() as nursery:
        async with lock:
            nursery.start_soon(waiting)
            await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            async with lock:
                order.append("running")
    assert order == ["running"] * 3 + ["waiting"]


@pytest.mark.trio
async def test_the_lock_goes_on_when_its_holder_suspends() -> None:
    lock = ReaderLock()
    taken = trio.Event()
    handled = trio.Event()

    async def next_reader() -> None:
        async with lock:
            taken.set()

    async with trio.open_nursery() as nursery:
        async with lock:
            nursery.start_soon(next_reader)
            await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(1):
            await taken.wait()  # a handler that awaits; the other worker must read meanwhile
        handled.set()
    assert handled.is_set()


@pytest.mark.trio
async def test_a_cancelled_waiter_does_not_lose_the_turn() -> None:
    lock = ReaderLock()
    taken = trio.Event()

    async def wait_and_tell(scope: trio.CancelScope) -> None:
        with scope:
            async with lock:
                taken.set()

    first, second = trio.CancelScope(), trio.CancelScope()
    async with trio.open_nursery() as nursery:
        async with lock:
            nursery.start_soon(wait_and_tell, first)
            nursery.start_soon(wait_and_tell, second)
            await trio.testing.wait_all_tasks_blocked()
            first.cancel()
        with trio.fail_after(1):
            await taken.wait()


@pytest.mark.trio
async def test_what_is_ready_is_returned_at_once_but_not_for_long(pipe: tuple[int, int]) -> None:
    lowlevel = LowLevel(200e-6, never)
    os.write(pipe[1], b"x")
    ran = trio.Event()

    async def another_task() -> None:
        ran.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(another_task)
        until = time.monotonic() + 1
        while not ran.is_set() and time.monotonic() < until:  # a reader that always finds something
            await lowlevel.wait_readable(pipe[0])
        assert ran.is_set()


@pytest.mark.trio
@pytest.mark.parametrize("window", [0.0, 200e-6, 10.0])
async def test_it_waits_for_what_comes_later(pipe: tuple[int, int], window: float) -> None:
    lowlevel = LowLevel(window, never)
    returned = trio.Event()

    async def wait() -> None:
        await lowlevel.wait_readable(pipe[0])
        returned.set()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.01)  # another task's timer runs while the reader polls
            assert not returned.is_set()
            os.write(pipe[1], b"x")


@pytest.mark.trio
@pytest.mark.parametrize("window", [0.0, 10.0])
async def test_closing_ends_waiting_and_polling(pipe: tuple[int, int], window: float) -> None:
    lowlevel = LowLevel(window, never)

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await lowlevel.wait_readable(pipe[0])

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.01)
            lowlevel.notify_closing(pipe[0])


@pytest.mark.trio
async def test_a_reader_that_polls_can_be_cancelled(pipe: tuple[int, int]) -> None:
    lowlevel = LowLevel(10.0, never)
    with trio.move_on_after(0.01) as scope:
        await lowlevel.wait_readable(pipe[0])
    assert scope.cancelled_caught


@pytest.mark.trio
async def test_before_serving_is_asked_until_it_says_no(pipe: tuple[int, int]) -> None:
    answers = [True, True, False]
    lowlevel = LowLevel(0.0, lambda: answers.pop(0))
    await lowlevel.wait_readable(pipe[0])
    await lowlevel.wait_readable(pipe[0])
    os.write(pipe[1], b"x")
    await lowlevel.wait_readable(pipe[0])
    await lowlevel.wait_readable(pipe[0])
    assert answers == []


@pytest.mark.trio
async def test_a_worker_outlives_a_read_that_found_nothing() -> None:
    calls = 0

    async def session_loop(until: int) -> None:
        nonlocal calls
        calls += 1
        if calls < until:
            raise OSError(errno.EAGAIN, "fuse_session_receive_buf failed with …")

    async with PollingTrio(0.0, never).open_nursery() as workers:
        workers.start_soon(session_loop, 3, name="worker")
    assert calls == 3


@pytest.mark.trio
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EAGAIN, "a handler's own"),
        OSError(errno.EIO, "fuse_session_receive_buf failed with …"),
        RuntimeError("a bug"),
    ],
)
async def test_every_other_error_ends_the_session(error: Exception) -> None:
    async def session_loop() -> None:
        raise error

    with pytest.raises(ExceptionGroup) as caught:
        async with PollingTrio(0.0, never).open_nursery() as workers:
            workers.start_soon(session_loop, name="worker")
    assert caught.value.exceptions == (error,)


def test_all_other_names_are_trios() -> None:
    namespace = PollingTrio(0.0, never)
    assert namespace.ClosedResourceError is trio.ClosedResourceError
    assert namespace.lowlevel.current_task is trio.lowlevel.current_task

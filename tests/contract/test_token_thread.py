"""The worker: one thread, deadlines that hold while a call hangs, and nothing that piles up."""

import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import trio
import trio.testing

from cmkfs.errors import Disabled, TokenUnavailable
from contract.token_thread import TokenWorker

SOON = 0.05
LONG = 30.0


@pytest.fixture
def worker() -> Iterator[TokenWorker]:
    worker = TokenWorker()
    yield worker
    assert worker.close(wait=LONG)


class Hang:
    """A call that does not return before `end`."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._ended = threading.Event()
        self.left = threading.Event()

    def __call__(self) -> bytearray:
        self.entered.set()
        assert self._ended.wait(LONG)
        self.left.set()
        return SECRETS[0]

    def end(self) -> None:
        self._ended.set()


SECRETS: list[bytearray] = []


@pytest.fixture
def hang() -> Iterator[Hang]:
    SECRETS[:] = [bytearray(b"secret")]
    hang = Hang()
    yield hang
    hang.end()


async def test_result_arguments_and_errors(worker: TokenWorker) -> None:
    assert await worker.call(divmod, 7, 2, deadline=LONG) == (3, 1)

    def refuse() -> None:
        raise Disabled("no")

    with pytest.raises(Disabled, match="no"):
        await worker.call(refuse, deadline=LONG)
    with pytest.raises(ZeroDivisionError):
        await worker.call(divmod, 1, 0, deadline=LONG)
    with pytest.raises(SystemExit):
        await worker.call(exit, deadline=LONG)
    assert await worker.call(int, "5", deadline=LONG) == 5


def test_without_an_event_loop(worker: TokenWorker, hang: Hang) -> None:
    assert worker.run(divmod, 7, 2, deadline=LONG) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        worker.run(divmod, 1, 0, deadline=LONG)
    with pytest.raises(TokenUnavailable, match=r"within 0\.05 s"):
        worker.run(hang, deadline=SOON)
    with pytest.raises(TokenUnavailable):
        worker.run(int, deadline=SOON)
    hang.end()
    assert worker.run(int, "5", deadline=LONG) == 5


async def test_all_calls_come_from_one_thread_in_their_order(worker: TokenWorker) -> None:
    order: list[int] = []

    async def one(number: int) -> None:
        def work() -> int:
            order.append(number)
            return threading.get_ident()

        threads.add(await worker.call(work, deadline=LONG))

    threads: set[int] = set()
    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(one, number)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(lambda: worker.run(threading.get_ident, deadline=LONG)) for _ in range(100)]
        threads.update(future.result() for future in calls)
    assert len(threads) == 1
    assert threads != {threading.get_ident()}
    assert sorted(order) == list(range(200))


async def test_a_hanging_call_fails_at_its_deadline(worker: TokenWorker, hang: Hang) -> None:
    began = trio.current_time()
    with pytest.raises(TokenUnavailable, match=r"did not answer within 0\.05 s"):
        await worker.call(hang, deadline=SOON)
    assert SOON <= trio.current_time() - began < LONG
    assert worker.busy_seconds > 0


async def test_calls_behind_a_hanging_one_fail_at_their_own_deadlines(worker: TokenWorker, hang: Hang) -> None:
    ran: list[int] = []
    failed: list[int] = []

    async def behind(number: int) -> None:
        with pytest.raises(TokenUnavailable):
            await worker.call(ran.append, number, deadline=SOON * number)
        failed.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_refused, lambda: worker.call(hang, deadline=6 * SOON))
        await trio.to_thread.run_sync(hang.entered.wait)
        for number in (4, 2, 1, 3):
            nursery.start_soon(behind, number)
    assert failed == [1, 2, 3, 4]
    assert worker.waiting == 0
    hang.end()
    assert await worker.call(int, "5", deadline=LONG) == 5
    assert ran == []  # what nobody waits for any more is never begun


async def _refused(call: Callable[[], object]) -> None:
    with pytest.raises(TokenUnavailable):
        await call()  # type: ignore[misc]


async def test_it_serves_again_when_the_hang_ends(worker: TokenWorker, hang: Hang) -> None:
    with pytest.raises(TokenUnavailable):
        await worker.call(hang, deadline=SOON)
    results: list[int] = []

    async def patient() -> None:
        results.append(await worker.call(int, "7", deadline=LONG))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(patient)
        await trio.testing.wait_all_tasks_blocked()
        assert worker.waiting == 1
        hang.end()
    assert results == [7]
    assert worker.busy_seconds == 0.0


async def test_a_late_secret_is_wiped(worker: TokenWorker, hang: Hang) -> None:
    with pytest.raises(TokenUnavailable):
        await worker.call(hang, deadline=SOON)
    assert SECRETS[0] == b"secret"
    hang.end()
    await worker.call(int, deadline=LONG)
    assert SECRETS[0] == bytes(6)


async def test_a_cancelled_call_is_given_up(worker: TokenWorker, hang: Hang) -> None:
    with trio.move_on_after(SOON) as scope:
        await worker.call(hang, deadline=LONG)
    assert scope.cancelled_caught
    with trio.move_on_after(SOON) as scope:
        await worker.call(int, deadline=LONG)
    assert scope.cancelled_caught
    assert worker.waiting == 0
    hang.end()
    await worker.call(int, deadline=LONG)
    assert SECRETS[0] == bytes(6)


async def test_a_deadline_that_has_passed(worker: TokenWorker) -> None:
    for deadline in (0.0, -1.0):
        with pytest.raises(TokenUnavailable):
            await worker.call(int, deadline=deadline)
    assert await worker.call(int, "5", deadline=LONG) == 5


async def test_waiting_calls_are_bounded(hang: Hang) -> None:
    worker = TokenWorker(max_waiting=3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_refused, lambda: worker.call(hang, deadline=SOON))
        await trio.to_thread.run_sync(hang.entered.wait)
        for _ in range(3):
            nursery.start_soon(_refused, lambda: worker.call(int, deadline=SOON))
        await trio.testing.wait_all_tasks_blocked()
        assert worker.waiting == 3
        with pytest.raises(TokenUnavailable, match="3 calls wait"):
            await worker.call(int, deadline=LONG)
    hang.end()
    assert await worker.call(int, "5", deadline=LONG) == 5
    assert worker.close(wait=LONG)


async def test_close_refuses_what_waits_and_what_comes(hang: Hang) -> None:
    worker = TokenWorker()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_refused, lambda: worker.call(hang, deadline=10 * SOON))
        await trio.to_thread.run_sync(hang.entered.wait)
        nursery.start_soon(_refused, lambda: worker.call(int, deadline=LONG))
        await trio.testing.wait_all_tasks_blocked()
        assert worker.close() is False
        with pytest.raises(TokenUnavailable, match="closed"):
            await worker.call(int, deadline=LONG)
        with pytest.raises(TokenUnavailable, match="closed"):
            worker.run(int, deadline=LONG)
    hang.end()
    assert worker.close(wait=LONG)


def test_closed_before_the_first_call() -> None:
    worker = TokenWorker()
    assert worker.close()
    assert worker.close()


def test_the_event_loop_may_end_before_the_call(worker: TokenWorker, hang: Hang) -> None:
    async def main() -> None:
        with pytest.raises(TokenUnavailable):
            await worker.call(hang, deadline=SOON)

    trio.run(main)
    hang.end()
    assert worker.run(int, "5", deadline=LONG) == 5


@pytest.mark.alone
def test_an_idle_worker_uses_no_cpu(worker: TokenWorker) -> None:
    # A thread that waits is never woken: it makes no context switch at all while others sleep.
    def usage() -> resource.struct_rusage:
        return resource.getrusage(resource.RUSAGE_THREAD)

    before = worker.run(usage, deadline=LONG)
    began = time.monotonic()
    threading.Event().wait(0.3)  # the time to measure, not something to wait for
    assert time.monotonic() - began >= 0.3
    after = worker.run(usage, deadline=LONG)
    assert after.ru_nvcsw - before.ru_nvcsw <= 10
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.02

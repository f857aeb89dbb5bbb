"""The guardian and its orders, on a pipe in the place of the kernel: what it is told, and who waits for what."""

import os
import signal
import socket
import struct
import subprocess
import sys
from array import array
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from cmkfs.errors import GuardianGone
from cmkfs.fs import guardian_process
from cmkfs.fs.guardian import Guardian
from cmkfs.fs.guardian_process import ANSWER, INODES, ORDER, READY

INVAL = struct.Struct("<IiQQqq")
KNOWN = 77
"""What is invalidated once the daemon is dead."""


@dataclass(slots=True)
class Guarded:
    """A guardian process, and the end of the pipe at which the kernel would be."""

    guardian: Guardian
    kernel: int
    told: list[int]

    async def take(self) -> bool:
        """The kernel takes some notifications, if there are any; who writes more than 64 KiB waits for it."""
        await trio.lowlevel.checkpoint()
        try:
            data = os.read(self.kernel, 100 * INVAL.size)
        except BlockingIOError:
            return False
        self.told += [INVAL.unpack_from(data, at)[3] for at in range(0, len(data), INVAL.size)]
        return True


def spawned() -> Guarded:
    kernel, device = os.pipe()
    roster, orders = os.memfd_create("roster"), os.memfd_create("orders")
    os.write(roster, KNOWN.to_bytes(8, "little"))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    passed = (device, roster, orders, theirs.fileno())
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(guardian_process.__file__)), *map(str, passed)], pass_fds=passed
    )
    for fd in (device, roster):
        os.close(fd)
    theirs.close()
    assert ours.recv(64) == READY
    ours.setblocking(False)
    os.set_blocking(kernel, False)
    return Guarded(Guardian(process, ours, orders), kernel, [])


@pytest.fixture
async def guarded() -> AsyncIterator[Guarded]:
    made = spawned()
    try:
        yield made
    finally:
        await made.guardian.leave()
        os.close(made.kernel)


async def test_it_tells_the_kernel_of_each_inode_in_order(guarded: Guarded) -> None:
    await guarded.guardian.forget([5, 0, 3, 2**63])
    await guarded.guardian.forget([])
    await guarded.guardian.forget([9])
    await guarded.take()
    assert guarded.told == [5, 3, 2**63, 9]


@pytest.mark.parametrize("sizes", [[], [40], [41, 48, 47], [34] * 3])
async def test_it_sends_the_kernel_each_message_as_it_is(guarded: Guarded, sizes: list[int]) -> None:
    messages = [
        struct.pack("<IiQ", size, 3, 0) + bytes([number + 1]) * (size - 16) for number, size in enumerate(sizes)
    ]
    await guarded.guardian.send(messages)
    await guarded.guardian.forget([6])
    assert os.read(guarded.kernel, 4096)[: -INVAL.size] == b"".join(messages)


async def test_an_order_waits_for_no_other(guarded: Guarded) -> None:
    """The first one cannot go on: the pipe is full, as when pages have to be written back first."""
    many, few, done = list(range(1, 100_001)), [200_001, 200_002], list[str]()

    async def order(name: str, numbers: list[int]) -> None:
        await guarded.guardian.forget(numbers)
        done.append(name)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(order, "many", many)
            while not guarded.told:
                await guarded.take()
            nursery.start_soon(order, "few", few)
            while len(done) < 2:
                await guarded.take()
    while await guarded.take():
        assert guarded.told
    assert done == ["few", "many"]
    assert sorted(guarded.told) == many + few


@pytest.mark.parametrize("ends", ["leave", "abandon"])
async def test_a_farewell_is_heard_also_with_an_answer_that_nobody_waited_for(ends: str) -> None:
    """An order that was under way at the unmount; found by a guardian that took the unmount for a death."""
    made = spawned()
    with trio.CancelScope() as waiting:
        await made.guardian.forget([5], waiting.cancel)
    await trio.lowlevel.wait_readable(made.guardian._talk)  # the answer, unread
    os.kill(made.guardian.pid, signal.SIGSTOP)  # it hears of the end when all of it has happened
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.guardian.leave if ends == "leave" else made.guardian.abandon)
        await trio.testing.wait_all_tasks_blocked()
        os.kill(made.guardian.pid, signal.SIGCONT)
    await made.take()
    assert made.told == ([5] if ends == "leave" else [5, KNOWN])
    os.close(made.kernel)


class Played:
    """A guardian that the test plays."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.orders = os.memfd_create("orders")
        self.talk = trio.socket.from_stdlib_socket(theirs)
        theirs.setblocking(False)
        self.guardian = Guardian(subprocess.Popen(["true"]), ours, self.orders)

    async def next(self) -> tuple[int, list[int]]:
        """The next order: its number and its inodes."""
        number, kind, begin, count = ORDER.unpack(await self.talk.recv(64))
        assert kind == INODES
        return number, list(array("Q", os.pread(self.orders, 8 * count, 8 * begin)))


@pytest.fixture
async def played() -> AsyncIterator[Played]:
    made = Played()
    yield made
    await made.guardian.leave()
    made.talk.close()


async def test_answers_come_in_any_order_and_to_whom_they_belong(
    played: Played, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[int] = []

    async def order(number: int) -> None:
        await played.guardian.forget([number] * number)
        ended.append(number)

    async with trio.open_nursery() as nursery:
        given = {}
        for wanted in (1, 2, 3):
            nursery.start_soon(order, wanted)
            number, inodes = await played.next()
            given[wanted] = number
            assert inodes == [wanted] * wanted
        for wanted in (3, 1, 2):
            await played.talk.send(ANSWER.pack(given[wanted], wanted - 1))
            while wanted not in ended:
                await trio.lowlevel.checkpoint()
    assert ended == [3, 1, 2]
    assert [record.args for record in caplog.records] == [(2,), (1,)]


async def test_who_does_not_wait_any_more_keeps_nobody_from_waiting(played: Played) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(played.guardian.forget, [7])
            late, _ = await played.next()
            scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(played.guardian.forget, [8])
        number, inodes = await played.next()
        assert inodes == [8]
        assert list(array("Q", os.pread(played.orders, 8, 0))) == [7]  # which the guardian may not have read yet
        await played.talk.send(ANSWER.pack(late, 0))
        await played.talk.send(ANSWER.pack(number, 0))


async def test_everybody_hears_that_it_was_killed(played: Played) -> None:
    gone = 0

    async def order() -> None:
        nonlocal gone
        with pytest.raises(GuardianGone):
            await played.guardian.forget([1])
        gone += 1

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(order)
            await played.next()
        played.talk.close()
    await order()
    assert gone == 4

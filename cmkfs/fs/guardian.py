"""The daemon's side of the guardian: starts it, orders it to invalidate inodes, takes leave of it.

Why a process of its own: it outlives a daemon that is killed, and its Python is not slowed down by the daemon's
(`fs.guardian_process`, docs/adr/0017-guardian.md).
"""

import fcntl
import logging
import os
import socket
import subprocess
import sys
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from cmkfs.errors import GuardianGone
from cmkfs.fs import guardian_process
from cmkfs.fs.guardian_process import ANSWER, FAREWELL, INODES, MESSAGES, ORDER, READY, UNIT
from cmkfs.fs.kernel_mount import DEVICE
from cmkfs.fs.roster import Roster
from cmkfs.priority import put_first

log = logging.getLogger(__name__)

_FUSE_DEV_IOC_CLONE: Final = 0x8004E500
"""_IOR(229, 0, uint32_t), linux/fuse.h; since Linux 4.2."""
START_SECONDS: Final = 10.0
LEAVE_SECONDS: Final = 5.0
STAND_IN_SECONDS: Final = guardian_process.LAST_SECONDS + 5.0


def nobody_waits() -> None:
    """What is called when an order is given, where that is nobody's concern."""


@dataclass(slots=True, eq=False)
class _Order:
    """An order that the guardian has; `failed` is how much of it the kernel refused, None until it is answered."""

    failed: int | None = None


class Guardian:
    """One guardian process. Used from the event loop; `start` it before anything can be read."""

    def __init__(self, process: subprocess.Popen[bytes], talk: socket.socket, orders: int) -> None:
        self._process = process
        self._talk = trio.socket.from_stdlib_socket(talk)
        self._orders = orders
        self._given: dict[int, _Order] = {}
        self._number = 0
        self._taken = 0
        self._reading = False
        self._news = trio.Event()
        self._gone = False

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @classmethod
    async def start(cls, device: int, roster: Roster) -> "Guardian":
        """A guardian of the connection `device`. Raises GuardianGone."""
        try:
            guardian = await trio.to_thread.run_sync(_spawn, device, roster)
        except OSError as error:
            raise GuardianGone(f"no guardian: {error.strerror}") from error
        said = b""
        with trio.move_on_after(START_SECONDS):
            said = await guardian._receive()
        if said != READY:
            await guardian.leave()
            raise GuardianGone(f"the guardian does not begin ({said!r})")
        return guardian

    async def forget(self, numbers: Sequence[int], given: Callable[[], object] = nobody_waits) -> None:
        """Have the kernel forget these inodes, in order; dirty pages are written back first.

        Waits for no other order; `given` is called when the guardian has it. Cancelling ends the waiting, not the
        work. Raises GuardianGone.
        """
        failed = await self._carry_out(INODES, array("Q", numbers).tobytes(), given)
        if failed:
            log.error("%s inodes could not be invalidated", failed)

    async def send(self, messages: Sequence[bytes]) -> None:
        """Have these notifications sent to the kernel (`fs.pagecache`), as `forget` has inodes forgotten."""
        failed = await self._carry_out(MESSAGES, b"".join(text + bytes(-len(text) % UNIT) for text in messages))
        if failed:
            log.error("%s names stay in the kernel's cache", failed)

    async def _carry_out(self, kind: int, data: bytes, given: Callable[[], object] = nobody_waits) -> int:
        """Give an order and wait until it is done; how much of it failed."""
        order = await self._give(kind, data)
        given()
        while order.failed is None:
            await self._hear()
        return order.failed

    async def _give(self, kind: int, data: bytes) -> _Order:
        if self._gone or self._orders < 0:
            raise GuardianGone("the guardian was killed")
        if not self._given:
            self._taken = 0  # nobody looks at what was written for earlier ones
        order, begin, length = _Order(), self._taken, len(data) // UNIT
        self._number, self._taken = self._number + 1, begin + length
        self._given[self._number] = order
        try:
            # Not in a thread: it is memory, and forty reads of a slow disk may have all threads.
            os.pwrite(self._orders, data, UNIT * begin)
            await self._talk.send(ORDER.pack(self._number, kind, begin, length))
        except (OSError, trio.ClosedResourceError) as error:
            raise GuardianGone(f"the guardian cannot be told: {error}") from error
        return order

    async def _hear(self) -> None:
        """Return when there was an answer, to whomever: one who waits listens for all. Raises GuardianGone."""
        if self._gone:
            raise GuardianGone("the guardian was killed")
        if self._reading:
            await self._news.wait()
            return
        self._reading = True
        try:
            answer = await self._receive()
            if len(answer) != ANSWER.size:
                self._gone = True
                raise GuardianGone("the guardian was killed")
            number, failed = ANSWER.unpack(answer)
            self._given.pop(number).failed = failed
        finally:
            self._reading = False
            news, self._news = self._news, trio.Event()
            news.set()

    async def _receive(self) -> bytes:
        try:
            return await self._talk.recv(64)
        except (ConnectionError, trio.ClosedResourceError):
            return b""

    async def until_gone(self) -> None:
        """Return when the process has ended."""
        pidfd = os.pidfd_open(self.pid)
        try:
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            trio.lowlevel.notify_closing(pidfd)
            os.close(pidfd)

    async def leave(self) -> None:
        """The mount has ended as it should: nothing is left to guard. Waits for the process."""
        try:
            await self._talk.send(FAREWELL)
        except OSError as error:
            log.debug("the guardian is gone already: %s", error)
        # Not closed before: with an answer unread in it the other end would have an error and no farewell (unix(7)).
        await self._wait(LEAVE_SECONDS)
        self._close()

    async def abandon(self) -> None:
        """The mount has ended otherwise: have the guardian do what it is there for, and wait until it has."""
        self._close()
        await self._wait(STAND_IN_SECONDS)

    def _close(self) -> None:
        self._talk.close()  # ends what waits for an answer
        orders, self._orders = self._orders, -1  # and nobody writes to a number that is somebody else's then
        if orders >= 0:
            os.close(orders)

    async def _wait(self, seconds: float) -> None:
        """Until the process has ended; it is killed if it does not."""
        with trio.move_on_after(seconds) as scope:
            await self.until_gone()
        if scope.cancelled_caught:
            log.error("the guardian did not end within %g s", seconds)
            self._process.kill()
        await trio.to_thread.run_sync(self._process.wait)


def _spawn(device: int, roster: Roster) -> Guardian:
    """Blocks. Raises OSError."""
    clone = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(clone, _FUSE_DEV_IOC_CLONE, array("I", [device]))
        orders = os.memfd_create("cmkfs-orders", os.MFD_CLOEXEC)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            passed = (clone, roster.fd, orders, theirs.fileno())
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(guardian_process.__file__)), *map(str, passed)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=passed,
                env={},  # no PIN, no path of a library
                cwd="/",
                start_new_session=True,
            )
        put_first(process.pid)
    finally:
        os.close(clone)
    ours.setblocking(False)
    return Guardian(process, ours, orders)

"""What a lock needs of the kernel: to forget inodes, and to be cut off when it does not."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import trio

from cmkfs.errors import GuardianGone, MountFailed
from cmkfs.fs.guardian import Guardian, nobody_waits
from cmkfs.fs.pagecache import inval_entry_message
from cmkfs.fs.roster import Roster

log = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
_THREADS = 8
"""Where there is no guardian: what is ordered last must not wait for what hangs, of a few locks."""


class Device(Protocol):
    """A kernel connection; all calls block."""

    def invalidate_inode(self, inode: int, *, attr_only: bool = False, length: int = 0) -> bool:
        """Drop attributes and pages, of the first `length` bytes if not 0; returns when dirty ones were written."""
        ...

    def expire_entry(self, parent: int, name: bytes) -> bool:
        """Have the kernel ask for a name again before it goes by it."""
        ...

    def abort(self) -> None:
        """Cut the connection: whatever waits for an answer has it, an error. Raises MountFailed."""
        ...


class GuardedDevice(Device, Protocol):
    """A connection that a guardian can be given."""

    @property
    def cut(self) -> bool:
        """True if it has ended: unmounted for good, or aborted."""
        ...

    async def start_guardian(self, roster: Roster) -> Guardian:
        """Raises GuardianGone."""
        ...


class KernelCache:
    """The kernel's memory of a mount. The guardian invalidates; a thread does where there is none."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._own_threads = trio.CapacityLimiter(_THREADS)
        self.guardian: Guardian | None = None
        self.unguarded = ""
        self.ended = False

    async def forget(self, numbers: Sequence[int], given: Callable[[], object] = nobody_waits) -> None:
        """Forget these inodes, in this order; dirty pages arrive as WRITE requests meanwhile.

        `given` is called once it is under way. Cancelling ends the waiting only.
        """
        if self.guardian is not None and not self.ended:
            try:
                await self.guardian.forget(numbers, given)
                return
            except GuardianGone as error:
                log.warning("%s; a thread does its work", error)
        if self.ended:
            given()
            return
        loop, device = trio.lowlevel.current_trio_token(), self._device

        def invalidate() -> None:
            loop.run_sync_soon(given)  # not before the thread runs: what is forgotten next must not overtake it
            _invalidate_all(device, numbers)

        # In a thread: it waits for requests that the event loop must answer. Never behind forty reads of a slow disk.
        await trio.to_thread.run_sync(invalidate, abandon_on_cancel=True, limiter=self._own_threads)

    async def expire(self, names: Sequence[tuple[int, bytes]]) -> None:
        """Have these names, each with its directory's number, asked for again. As `forget`."""
        if self.ended:
            return
        if self.guardian is not None:
            try:
                messages = [inval_entry_message(parent, name, expire_only=True) for parent, name in names]
                await self.guardian.send(messages)
                return
            except GuardianGone as error:
                log.warning("%s; a thread does its work", error)
        await trio.to_thread.run_sync(
            partial(_expire_all, self._device, names), abandon_on_cancel=True, limiter=self._own_threads
        )

    async def keep_guarded(self, device: GuardedDevice, roster: Roster) -> None:
        """Background task: a guardian that is killed has a successor."""
        while True:
            if self.guardian is not None:
                await self.guardian.until_gone()
                if device.cut:
                    return  # it dropped what was cached, and ended: there is nothing left to guard
                log.error("the guardian was killed; another one takes its place")
                gone, self.guardian = self.guardian, None
                await gone.leave()
            try:
                self.guardian = await device.start_guardian(roster)
            except GuardianGone as error:
                log.error("%s", error)
                self.unguarded = str(error)
                await trio.sleep(RETRY_SECONDS)
            else:
                self.unguarded = ""

    async def end(self, *, in_order: bool) -> None:
        """The mount has ended and the device is closed. Not in order: what is cached is dropped first."""
        self.ended = True
        guardian, self.guardian = self.guardian, None
        if guardian is not None:
            await (guardian.leave() if in_order else guardian.abandon())

    async def cut(self) -> bool:
        """End the connection; False if that is not possible here."""
        try:
            await trio.to_thread.run_sync(self._device.abort, limiter=trio.CapacityLimiter(1))
        except MountFailed as error:
            log.error("%s", error)
            return False
        return True


def _invalidate_all(device: Device, numbers: Sequence[int]) -> None:
    failed = 0
    for number in numbers:
        try:
            device.invalidate_inode(number)
        except OSError:
            failed += 1
    if failed:
        log.error("%s inodes could not be invalidated", failed)


def _expire_all(device: Device, names: Sequence[tuple[int, bytes]]) -> None:
    for parent, name in names:
        try:
            device.expire_entry(parent, name)
        except OSError as error:
            log.error("a name stays in the kernel's cache: %s", error.strerror)

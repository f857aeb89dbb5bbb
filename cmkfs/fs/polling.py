"""What stands in for trio inside pyfuse3, so that a request does not pay for waking up.

pyfuse3 looks every name up in its module global `trio` (`pyfuse3.asyncio` replaces it too). Three of
them are worth replacing:

- `lowlevel.wait_readable` polls for a while after each request before it really waits. Every `LOOK_SECONDS`
  the whole trio loop turns once, so timers, sockets and finished threads are served as always.
- `Lock`, which hands out the right to read the device. trio's makes a full turn of the loop on each
  acquire and then hands over to another worker; this one lets the worker that runs keep going.
- `open_nursery`, whose workers outlive a read that found nothing. The device is non-blocking: a
  request can vanish between poll and read when its caller is killed, and a blocking read would then stop
  the event loop, revocation included, until somebody uses the mount again.
"""

import errno
import select
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import perf_counter
from types import TracebackType

import trio

from cmkfs.looking import Lookers

# The longest time, in seconds, for which requests that are already waiting keep other tasks from running.
BUSY_SECONDS = 500e-6
# How long to look for a request before the trio loop turns once, which takes 10 to 20 µs.
LOOK_SECONDS = 40e-6
DEFAULT_WINDOW = 200e-6


class PollWindow:
    """For how many seconds polling pays, learned from the gaps between requests; pure.

    A gap that polling would have caught opens the window to `longest` at once, one that it missed halves
    it: steady use is polled for, a request every few milliseconds is not (as Linux' halt_poll_ns).
    """

    def __init__(self, longest: float) -> None:
        if longest < 0:
            raise ValueError(f"a poll window of {longest} s")
        self.longest = longest
        self.current = longest

    def observe(self, gap: float) -> None:
        """Learn that a request came `gap` seconds after the one before was done."""
        if gap < self.longest:
            self.current = self.longest
        elif self.current:
            self.current /= 2
            if self.current < self.longest / 8:
                self.current = 0.0


class ReaderLock:
    """The lock of pyfuse3's workers. Whoever releases it may take it again without waiting.

    A waiter is woken at each release but finds the lock taken unless the releasing task has suspended:
    then, and only then, somebody else must read. At most one waiter is on its way at any time.
    """

    def __init__(self) -> None:
        self._held = False
        self._waiters = trio.lowlevel.ParkingLot()
        self._one_is_coming = False

    async def __aenter__(self) -> None:
        while self._held:
            await self._waiters.park()
            self._one_is_coming = False
        self._held = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = False
        if self._waiters and not self._one_is_coming:
            self._one_is_coming = True
            self._waiters.unpark()


class _Workers:
    """A nursery for pyfuse3's session loops."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start_soon(self, loop: Callable[..., Awaitable[None]], *args: object, name: str) -> None:
        async def until_done() -> None:
            while True:
                try:
                    return await loop(*args)
                except OSError as error:
                    if not _found_nothing(error):
                        raise

        self._nursery.start_soon(until_done, name=name)


def _found_nothing(error: OSError) -> bool:
    # The text tells pyfuse3's own read from an OSError that a handler let through.
    return error.errno == errno.EAGAIN and "fuse_session_receive_buf" in str(error)


class LowLevel:
    """`trio.lowlevel` for pyfuse3.

    `before_serving` is asked at the first calls until it answers False: True means that the descriptor is
    to be read at once.
    """

    def __init__(self, window: float, before_serving: Callable[[], bool]) -> None:
        self._window = PollWindow(window)
        self._before_serving: Callable[[], bool] | None = before_serving
        self._poll = select.poll()
        self._registered = -1
        self._trio_ran = 0.0
        self._closing = False

    def __getattr__(self, name: str) -> object:
        return getattr(trio.lowlevel, name)

    def notify_closing(self, fd: int) -> None:
        """End all waiting; also of a reader that polls just now, which trio's own call would not reach."""
        self._closing = True
        trio.lowlevel.notify_closing(fd)

    async def wait_readable(self, fd: int) -> None:
        """Return once `fd` has something to read, or raise trio.ClosedResourceError."""
        if self._before_serving is not None:
            if self._before_serving():
                return
            self._before_serving = None
        if self._registered != fd:
            self._poll.register(fd, select.POLLIN)
            self._registered = fd
        began = perf_counter()
        if self._poll.poll(0) and began - self._trio_ran < BUSY_SECONDS:
            return
        await self._look_again_and_wait(fd, began)

    async def _look_again_and_wait(self, fd: int, began: float) -> None:
        """Look without a pause; between the looks, other tasks have a turn now and then."""
        until = began + self._window.current
        look = self._poll.poll
        turn = began if look(0) or Lookers.count else began + LOOK_SECONDS
        while True:
            now = perf_counter()
            if now < turn:
                if look(0):
                    break
                continue
            await trio.lowlevel.checkpoint()
            if self._closing:
                raise trio.ClosedResourceError("the FUSE session ends")
            self._trio_ran = now = perf_counter()
            if look(0):
                break
            if now >= until:
                await trio.lowlevel.wait_readable(fd)
                self._trio_ran = now = perf_counter()
                break
            turn = now if Lookers.count else now + LOOK_SECONDS
        self._window.observe(now - began)


class PollingTrio:
    """The namespace to put in the place of `pyfuse3.trio`."""

    Lock = ReaderLock

    def __init__(self, window: float, before_serving: Callable[[], bool]) -> None:
        self.lowlevel = LowLevel(window, before_serving)

    def __getattr__(self, name: str) -> object:
        return getattr(trio, name)

    @asynccontextmanager
    async def open_nursery(self) -> AsyncIterator[_Workers]:
        """A nursery whose workers go on after a read that found nothing."""
        async with trio.open_nursery() as nursery:
            yield _Workers(nursery)

"""Waiting for the next request without paying for being woken: look for it a while before really waiting.

Every `LOOK_SECONDS` the whole trio loop turns once, so timers, sockets and finished threads are served as always.
"""

import select
from time import perf_counter

import trio

from cmkfs.looking import Lookers, Threads

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


class Readiness:
    """Tells when a descriptor can be read. One task at a time waits."""

    def __init__(self, fd: int, window: float) -> None:
        """`window`: seconds to look before really waiting, at most; 0: never look."""
        self._fd = fd
        self._window = PollWindow(window)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        self._look = poll.poll
        self._trio_ran = 0.0
        self._closing = False

    def close(self) -> None:
        """End all waiting; also of a task that looks just now, which trio's own call would not reach."""
        self._closing = True
        trio.lowlevel.notify_closing(self._fd)

    def at_once(self) -> bool:
        """True if it can be read now, and the other tasks have had their turn not long ago."""
        return bool(self._look(0)) and perf_counter() - self._trio_ran < BUSY_SECONDS and not self._closing

    async def wait(self) -> None:
        """Return once it can be read. Between the looks, other tasks have a turn. Raises trio.ClosedResourceError."""
        began, threads = perf_counter(), Threads.count
        until = began if threads else began + self._window.current
        look = self._look
        turn = began if look(0) or Lookers.count or threads else began + LOOK_SECONDS
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
            if now >= until or Threads.count:
                await trio.lowlevel.wait_readable(self._fd)
                self._trio_ran = now = perf_counter()
                break
            turn = now if Lookers.count else now + LOOK_SECONDS
        if not threads:
            self._window.observe(now - began)

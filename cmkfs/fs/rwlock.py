"""One readers/writer lock per file, held from the first pread to the last pwrite of a request.

Without it two write-backs of neighbouring megabytes lose an update in the block they share, and ext4 gives
torn pages to a pread beside a pwrite. Taking it free is a check and an increment: no await, no allocation.
Writers go before readers that come later. Used from the event loop only.
"""

from types import TracebackType

import trio

_Exit = type[BaseException] | None


class RWLock:
    """Many readers or one writer."""

    __slots__ = ("_parked", "_readers", "_waiting_writers", "_writing")

    def __init__(self) -> None:
        self._readers = 0
        self._writing = False
        self._waiting_writers = 0
        self._parked: trio.lowlevel.ParkingLot | None = None  # of few files ever does anybody wait

    @property
    def free_to_read(self) -> bool:
        """True if a reader that does not await may go ahead without taking the lock."""
        return not self._writing and not self._waiting_writers

    @property
    def busy(self) -> bool:
        """True while anybody holds it."""
        return self._writing or self._readers > 0

    def reading(self) -> "_Reading":
        """`async with lock.reading():` shares the file with other readers."""
        return _Reading(self)

    def writing(self) -> "_Writing":
        """`async with lock.writing():` has the file alone."""
        return _Writing(self)

    async def _wait(self) -> None:
        if self._parked is None:
            self._parked = trio.lowlevel.ParkingLot()
        await self._parked.park()

    def _wake(self) -> None:
        if self._parked is not None:
            self._parked.unpark_all()

    async def _begin_reading(self) -> None:
        while not self.free_to_read:
            await self._wait()
        self._readers += 1

    def _end_reading(self) -> None:
        self._readers -= 1
        if not self._readers:
            self._wake()

    async def _begin_writing(self) -> None:
        if self._writing or self._readers:
            self._waiting_writers += 1
            try:
                while self._writing or self._readers:
                    await self._wait()
            finally:
                self._waiting_writers -= 1
                if not self._waiting_writers:
                    self._wake()
        self._writing = True

    def _end_writing(self) -> None:
        self._writing = False
        self._wake()


class _Reading:
    """Share the file with other readers in this block."""

    __slots__ = ("_lock",)

    def __init__(self, lock: RWLock) -> None:
        self._lock = lock

    async def __aenter__(self) -> None:
        await self._lock._begin_reading()

    async def __aexit__(self, kind: _Exit, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock._end_reading()


class _Writing:
    """Have the file alone in this block."""

    __slots__ = ("_lock",)

    def __init__(self, lock: RWLock) -> None:
        self._lock = lock

    async def __aenter__(self) -> None:
        await self._lock._begin_writing()

    async def __aexit__(self, kind: _Exit, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock._end_writing()

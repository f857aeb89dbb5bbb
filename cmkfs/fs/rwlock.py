"""One readers/writer lock per file, held from the first pread to the last pwrite of a request.

Without it two write-backs of neighbouring megabytes lose an update in the block they share, and ext4 gives
torn pages to a pread beside a pwrite. Taking it free is a check and an increment: no await, no allocation.
Writers go before readers that come later. Used from the event loop only.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class RWLock:
    """Many readers or one writer."""

    __slots__ = ("_parked", "_readers", "_waiting_writers", "_writing")

    def __init__(self) -> None:
        self._readers = 0
        self._writing = False
        self._waiting_writers = 0
        self._parked = trio.lowlevel.ParkingLot()

    @property
    def free_to_read(self) -> bool:
        """True if a reader that does not await may go ahead without taking the lock."""
        return not self._writing and not self._waiting_writers

    @property
    def busy(self) -> bool:
        """True while anybody holds it."""
        return self._writing or self._readers > 0

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Share the file with other readers."""
        while not self.free_to_read:
            await self._parked.park()
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            if not self._readers:
                self._parked.unpark_all()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Have the file alone."""
        if self._writing or self._readers:
            self._waiting_writers += 1
            try:
                while self._writing or self._readers:
                    await self._parked.park()
            finally:
                self._waiting_writers -= 1
                if not self._waiting_writers:
                    self._parked.unpark_all()
        self._writing = True
        try:
            yield
        finally:
            self._writing = False
            self._parked.unpark_all()

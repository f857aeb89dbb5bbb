"""Settling: giving dirty files their clean slot once all that they hold is durable (docs/format.md, 8.5).

In batches, so that no program waits and no file costs an fsync of its own: a snapshot of what has changed, one
sync, then a clean slot for whatever has not changed since.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

import trio

from cmkfs.errors import CmkfsError
from cmkfs.fs.backing import Backing
from cmkfs.fs.openfile import OpenFile

log = logging.getLogger(__name__)

INTERVAL: Final = 10.0
"""Seconds between batches while there is something to settle."""
FEW: Final = 8
"""Up to this many files are synced one by one: syncfs also waits for other people's data on the same disk."""

_PER_TURN: Final = 32
"""Files settled before requests get their turn again."""


class Settler:
    """Knows every dirty file of a mount. `run` is the background task; `settle_all` is for lock and unmount."""

    def __init__(self, backing: Backing, release: Callable[[OpenFile], None], max_dirty: int = 2048) -> None:
        self._backing = backing
        self._release = release
        self._max_dirty = max_dirty
        self._dirty: dict[OpenFile, float] = {}
        self._wake = trio.Event()
        self._one_at_a_time = trio.Lock()
        self._hurry = False
        self._failed = 0
        self.batches = 0

    def __len__(self) -> int:
        return len(self._dirty)

    @property
    def dirty(self) -> list[OpenFile]:
        """The files that have no clean slot."""
        return list(self._dirty)

    def on_dirty(self, file: OpenFile) -> None:
        """A file left its clean state. On a read-only backing it stays as it was found."""
        if self._backing.read_only:
            return
        self._dirty[file] = time.monotonic()
        hopeful = len(self._dirty) - self._failed
        if hopeful == 1 or hopeful >= self._max_dirty:
            self._wake.set()

    def soon(self) -> None:
        """Do not wait for the next batch: a lock has sealed clean slots that should not wait in memory."""
        self._hurry = True
        self._wake.set()

    async def run(self) -> None:
        """Settle what is dirty every `INTERVAL`, sooner if too much is."""
        while True:
            await self._wake.wait()
            with trio.move_on_after(INTERVAL):
                while len(self._dirty) - self._failed < self._max_dirty and not self._hurry:
                    self._wake = trio.Event()
                    await self._wake.wait()
            self._wake, self._hurry = trio.Event(), False
            try:
                await self.settle_all()
            except OSError as error:
                log.error("what was written could not be made durable: %s", error)
            if self._hopeful():
                self._wake.set()

    async def settle_all(self) -> None:
        """One batch. Raises OSError if the sync failed; then nothing is called clean."""
        async with self._one_at_a_time:
            self._drop_removed()
            batch = [(file, file.changes) for file in self._hopeful() if not file.lock.busy]
            if not batch:
                return
            self.batches += 1
            for file, _ in batch:
                file.handles += 1  # its descriptor is in use in a thread: nobody may close it meanwhile
            try:
                await self._sync([file for file, _ in batch if file.needs_sync])
                for number, (file, changes) in enumerate(batch, 1):
                    await self._settle(file, changes)
                    if number % _PER_TURN == 0:
                        await trio.lowlevel.checkpoint()
            finally:
                for file, _ in batch:
                    file.handles -= 1
                    self._release(file)
                self._drop_removed()

    def _hopeful(self) -> list[OpenFile]:
        """The dirty files that a batch can settle: what failed to sync once stays dirty until recovery looked at it."""
        hopeful = [file for file in self._dirty if not file.sync_failed]
        self._failed = len(self._dirty) - len(hopeful)
        return hopeful

    def _drop_removed(self) -> None:
        """A file that nobody can reach any more needs no slot."""
        for file in list(self._dirty):
            if file.inode.gone and not file.handles:
                del self._dirty[file]
                self._release(file)

    async def _sync(self, files: list[OpenFile]) -> None:
        """Make files durable, each by itself or all at once. Raises the first OSError, when all have been tried."""
        errors = [error for file in files if (error := _tried(file, file.prepare_sync)) is not None]
        if len(files) <= FEW or not self._backing.kind.syncs_as_a_whole:
            for file in files:
                try:
                    await self._backing.fsync(file.fd)
                except OSError as error:
                    file.sync_failed = True
                    errors.append(error)
        else:
            try:
                await self._backing.sync_whole()
            except OSError:
                # Which file it hit cannot be told: recovery will look at each of them.
                for file in files:
                    file.sync_failed = True
                raise
        if errors:
            raise errors[0]

    async def _settle(self, file: OpenFile, changes: int) -> None:
        try:
            settled = file.settle(changes)
            if settled and not self._backing.kind.syncs_as_a_whole:
                await self._backing.fsync(file.fd)
        except (OSError, CmkfsError) as error:
            log.warning("a file stays dirty: %s", error)
            return
        if settled and not file.slots.dirty:  # it may have been written to during that fsync
            self._dirty.pop(file, None)


def _tried(file: OpenFile, step: Callable[[], None]) -> OSError | None:
    try:
        step()
    except OSError as error:
        file.sync_failed = True
        return error
    return None

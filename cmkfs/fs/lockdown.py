"""Lock and unlock: the one procedure that ends all leases of a zone, whoever calls for it.

The order is what makes it complete and lossless (docs/concurrency.md):
1. the zone settles: nothing is given out any more, write-back of dirty pages is still stored;
2. in a thread, every inode that the kernel knows is invalidated, open ones first; that writes dirty pages back;
3. clean slots are sealed while the keys are there, then the keys go;
4. open inodes are invalidated once more: what was dirtied in between is refused, not kept.
"""

import gc
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import trio

from cmkfs.audit.auditor import Caller
from cmkfs.errors import CmkfsError, KeyUnavailable
from cmkfs.fs.directory import plain_name
from cmkfs.fs.inodes import Inode, InodeTable
from cmkfs.fs.openfile import OpenFile
from cmkfs.fs.operations import Operations
from cmkfs.fs.settle import Settler
from cmkfs.keys.keyring import Keyring
from cmkfs.keys.zone import Zone, ZoneState

log = logging.getLogger(__name__)

STORE_SECONDS = 10.0
"""How long dirty pages may take to be stored; then the keys go all the same, and what is left is refused."""


class PageCache(Protocol):
    """What a lock needs of the kernel."""

    def invalidate_inode(self, inode: int, *, attr_only: bool = False) -> bool:
        """Drop attributes and pages; blocks until dirty pages were written back."""
        ...


@dataclass(frozen=True, slots=True)
class OpenedBy:
    """Somebody who had a file open when the lock came."""

    uid: int
    pid: int
    path: str


@dataclass(frozen=True, slots=True)
class LockReport:
    """What a lock found and did."""

    was_locked: bool
    stored_bytes: int
    dropped_bytes: int
    open: tuple[OpenedBy, ...]


class Lockdown:
    """Locks and unlocks zones. One at a time: a lock that comes during another waits for it."""

    def __init__(
        self, keyring: Keyring, inodes: InodeTable, operations: Operations, settler: Settler, kernel: PageCache
    ) -> None:
        self._keyring = keyring
        self._inodes = inodes
        self._operations = operations
        self._settler = settler
        self._kernel = kernel
        self._turn = trio.Lock()
        self._renew = trio.Event()
        self._own_thread = trio.CapacityLimiter(2)

    async def lock(
        self, zones: Iterable[Zone], why: KeyUnavailable, *, drop_dirty: bool = False, by: Caller | None = None
    ) -> LockReport:
        """End all leases; returns when nothing of the zones can be read any more. `by` is who asked for it."""
        zones = list(zones)
        async with self._turn:
            serving = [zone for zone in zones if zone.state is ZoneState.SERVING]
            opened = self._opened(serving)
            stored, refused = self._operations.stored_while_settling, self._operations.refused_bytes
            for zone in zones:
                if zone.state is ZoneState.LOCKED and not zone.locked_by_operator:
                    zone.explain(why)
            for zone in serving:
                self._keyring.end_leases(zone, why)
            if not drop_dirty:
                await self._invalidate(self._known(serving), STORE_SECONDS)
            self._drop_keys(serving)
            gc.collect()  # cipher objects are in cycles; nothing of them stays until some later collection
            await self._invalidate(self._known(serving) if drop_dirty else self._open_inodes(serving), None)
            if serving:
                self._settler.soon()
                log.warning("locked: %s", why)
            for zone in zones:
                self._keyring.audit.changed("lock", reason=str(why), caller=by, zone=zone)
            return LockReport(
                was_locked=not serving,
                stored_bytes=self._operations.stored_while_settling - stored,
                dropped_bytes=self._operations.refused_bytes - refused,
                open=opened,
            )

    async def unlock(self, zones: Iterable[Zone], *, by: Caller | None = None) -> bool:
        """Serve again; False if all were serving. Raises Disabled, TokenUnavailable, …; those zones stay locked."""
        async with self._turn:
            locked = [zone for zone in zones if zone.state is ZoneState.LOCKED]
            for zone in locked:
                await self._keyring.unlock(zone)
                log.warning("unlocked: zone %s", zone.zone_id.hex())
                self._keyring.audit.changed("unlock", caller=by, zone=zone)
            self._renew.set()
            return bool(locked)

    async def renew_leases(self) -> None:
        """Background task: after an unlock, have the keys of the files that programs have open for writing.

        Whole pages written to them reach the daemon only when a lock comes, and a disabled CMK unwraps no more.
        """
        while True:
            await self._renew.wait()
            self._renew = trio.Event()
            for handle in list(self._operations.handles.files.values()):
                if handle.writable and handle.file.zone.state is ZoneState.SERVING:
                    try:
                        await handle.file.key.reading()
                    except KeyUnavailable as error:
                        log.info("open files wait for their keys: %s", error)
                        break
                    except CmkfsError as error:
                        log.warning("an open file could not be unlocked: %s", error)

    def _drop_keys(self, zones: list[Zone]) -> None:
        for file in self._settler.dirty:
            if file.zone in zones:
                file.seal_clean()
        for inode in self._inodes:
            if inode.file is not None and inode.file.zone in zones:
                inode.file.key.drop()
        for zone in zones:
            self._keyring.drop_keys(zone)

    # -- the kernel's caches ---------------------------------------------------------------------

    async def _invalidate(self, inodes: list[Inode], seconds: float | None) -> None:
        """Invalidate in a thread: it waits for requests that the event loop must answer meanwhile."""
        numbers = [int(inode.ino) for inode in inodes]
        with trio.move_on_after(seconds if seconds is not None else float("inf")) as scope:
            await trio.to_thread.run_sync(
                partial(_invalidate_all, self._kernel, numbers),
                abandon_on_cancel=True,
                limiter=self._own_thread,  # never behind forty reads of a slow disk
            )
        if scope.cancelled_caught:
            log.error("dirty pages were not stored within %s s; they are refused now", seconds)

    def _known(self, zones: list[Zone]) -> list[Inode]:
        """Every inode that the kernel may have cached, open ones first."""
        if not zones:
            return []
        return sorted((inode for inode in self._inodes if inode.lookups), key=lambda inode: inode.file is None)

    def _open_inodes(self, zones: list[Zone]) -> list[Inode]:
        return [inode for inode in self._inodes if inode.file is not None and inode.file.zone in zones]

    # -- who had what open -----------------------------------------------------------------------

    def _opened(self, zones: list[Zone]) -> tuple[OpenedBy, ...]:
        handles = list(self._operations.handles.files.values())
        return tuple(
            OpenedBy(handle.request.uid, handle.request.pid, self.path_of(handle.file))
            for handle in handles
            if handle.file.zone in zones
        )

    def path_of(self, file: OpenFile) -> str:
        """The path of a file below the mount point, as far as it can be told now."""
        parts: list[str] = []
        inode = file.inode
        while inode.places:
            parent, entry = inode.places[-1]
            try:
                name = plain_name(self._operations.directory_of(parent), self._inodes.dir_fd(parent), entry)
            except (CmkfsError, OSError):
                name = b"?"
            parts.append(name.decode(errors="backslashreplace"))
            inode = parent
        return "/".join(reversed(parts)) or "(no name)"


def _invalidate_all(kernel: PageCache, numbers: list[int]) -> None:
    for number in numbers:
        kernel.invalidate_inode(number)

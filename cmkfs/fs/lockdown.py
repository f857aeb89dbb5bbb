"""Lock and unlock: the one procedure that ends all leases of a zone, whoever calls for it.

The order is what makes it complete and lossless (docs/concurrency.md):
1. the zone settles: nothing is given out any more, write-back of dirty pages is still stored;
2. every inode that the kernel knows is invalidated, open ones first; that writes dirty pages back. Whatever else
   there is to do, such as telling who had what open, is done while the kernel works;
3. clean slots are sealed while the keys are there, then the keys go;
4. open inodes are invalidated once more: what was dirtied in between is refused, not kept. Beside it, names right
   in the roots of the zones expire (`fs.keptnames`).
Steps 2 and 4 have a deadline. If the kernel still holds pages after 4, a request hangs: the connection is cut and
everything is invalidated; the mount has ended then, and nothing of it can be read.
"""

import gc
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio

from cmkfs.audit.auditor import Caller
from cmkfs.errors import CmkfsError, KeyUnavailable, Locked
from cmkfs.fs.directory import plain_name
from cmkfs.fs.guardian import nobody_waits
from cmkfs.fs.inode import Inode
from cmkfs.fs.inodes import InodeTable
from cmkfs.fs.keptnames import names_in_roots
from cmkfs.fs.operations import Operations
from cmkfs.fs.settle import Settler
from cmkfs.keys.keyring import Keyring
from cmkfs.keys.memory import give_back_heap
from cmkfs.keys.zone import Zone, ZoneState, in_recovery
from cmkfs.priority import before_others

log = logging.getLogger(__name__)

STORE_SECONDS = 10.0
"""How long dirty pages may take to be stored; then the keys go all the same, and what is left is refused."""
FORGET_SECONDS = 5.0
"""How long the kernel may take to forget what is not stored any more, beside what so many inodes need."""
_SECONDS_PER_INODE = 20e-6


class PageCache(Protocol):
    """What a lock needs of the kernel (`fs.forgetting`)."""

    async def forget(self, numbers: Sequence[int], given: Callable[[], object] = ...) -> None:
        """Drop attributes and pages of these inodes, in this order; returns when dirty pages were written back.

        `given` is called when it is under way: what is to be forgotten later may come.
        """
        ...

    async def expire(self, names: Sequence[tuple[int, bytes]]) -> None:
        """Ask for these names, each with its directory's number, before going by them again."""
        ...

    async def cut(self) -> bool:
        """End the connection; False if that is not possible here."""
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

    stored_bytes: int
    dropped_bytes: int
    open: tuple[OpenedBy, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Unlocking:
    """An unlock that is under way, or waits for its turn."""

    zone: Zone
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Lockdown:
    """Locks and unlocks zones.

    A lock waits for no unlock, nor for the lock of another zone: what it takes away ends at once. The later word
    counts: a lock ends an unlock of its zone that is under way, and an unlock waits until a lock is complete.
    """

    def __init__(
        self, keyring: Keyring, inodes: InodeTable, operations: Operations, settler: Settler, kernel: PageCache
    ) -> None:
        self._keyring = keyring
        self._inodes = inodes
        self._operations = operations
        self._settler = settler
        self._kernel = kernel
        self._locking: dict[Zone, trio.Event] = {}
        self._unlocking: set[_Unlocking] = set()
        self._unlock_turn = trio.Lock()
        self._renew = trio.Event()
        self._finished = False
        self.before_serving: Callable[[Zone], Awaitable[None]] | None = None
        """What a zone that was locked when the mount began still needs, with its keys at hand."""

    async def lock(
        self, zones: Iterable[Zone], why: KeyUnavailable, *, drop_dirty: bool = False, by: Caller | None = None
    ) -> LockReport:
        """End all leases; returns when nothing of the zones can be read any more. `by` is who asked for it."""
        zones = list(zones)
        for zone in zones:
            self._interrupt(zone, why)
            if zone.state is ZoneState.LOCKED and not zone.locked_by_operator:
                zone.explain(why)
        serving = [zone for zone in zones if zone.state is ZoneState.SERVING]
        opened: list[OpenedBy] = []
        stored, refused = self._operations.stored_while_settling, self._operations.refused_bytes
        others = [self._locking[zone] for zone in zones if zone in self._locking]
        if serving:
            with before_others():
                await self._lock(serving, why, opened, drop_dirty=drop_dirty)
        for under_way in others:
            await under_way.wait()
        for zone in zones:
            self._keyring.audit.changed("lock", reason=str(why), caller=by, zone=zone)
        return LockReport(
            stored_bytes=self._operations.stored_while_settling - stored,
            dropped_bytes=self._operations.refused_bytes - refused,
            open=tuple(opened),
        )

    async def _lock(self, zones: list[Zone], why: KeyUnavailable, opened: list[OpenedBy], *, drop_dirty: bool) -> None:
        complete = trio.Event()
        for zone in zones:
            self._locking[zone] = complete
            self._keyring.end_leases(zone, why)
        stored_all = False
        names: list[tuple[int, bytes]] = []
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._name_opened, zones, opened)
                nursery.start_soon(names_in_roots, self._inodes, zones, names)
                stored_all = not drop_dirty and await self._store(zones)
        finally:  # whoever waits for the lock may go; the lock is completed
            self._drop_keys(zones)
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._expire, names)
                    await self._forget_for_good(self._open_inodes(zones) if stored_all else self._known(zones))
            gc.collect()  # cipher objects are in cycles; nothing of them stays until some later collection
            for zone in zones:
                del self._locking[zone]
            complete.set()
            give_back_heap()
        self._settler.soon()
        log.warning("locked: %s", why)

    def _interrupt(self, zone: Zone, why: KeyUnavailable) -> None:
        """An unlock of the zone that is under way brings nothing any more. No await: nobody is served in between."""
        under_way = [unlocking for unlocking in self._unlocking if unlocking.zone is zone]
        for unlocking in under_way:
            unlocking.scope.cancel()
        if under_way and zone not in self._locking and zone.state is not ZoneState.SERVING:
            self._keyring.end_leases(zone, why)
            self._drop_keys([zone])

    async def unlock(self, zones: Iterable[Zone], *, by: Caller | None = None) -> bool:
        """Serve again; False if all were serving. Each zone by itself: one that stays locked keeps no other from it.

        Raises what the first of them met: Disabled, TokenUnavailable, Locked (there was a lock meanwhile), …
        """
        failure: CmkfsError | None = None
        changed = False
        for zone in [zone for zone in zones if zone.state is not ZoneState.SERVING]:
            try:
                if await self._unlock_in_turn(zone):
                    log.warning("unlocked: zone %s", zone.zone_id.hex())
                    self._keyring.audit.changed("unlock", caller=by, zone=zone)
                    changed = True
            except CmkfsError as error:
                failure = failure or error
        self._renew.set()
        if failure is not None:
            raise failure
        return changed

    async def _unlock_in_turn(self, zone: Zone) -> bool:
        """False if it is serving already. One unlock at a time; none while the zone is being locked."""
        unlocking = _Unlocking(zone)
        self._unlocking.add(unlocking)
        try:
            with unlocking.scope:
                async with self._unlock_turn:
                    while (under_way := self._locking.get(zone)) is not None:
                        await under_way.wait()
                    if self._finished:
                        raise Locked("the mount is ending")
                    if zone.state is ZoneState.SERVING:
                        return False
                    await self._unlock(zone)
                    return True
        finally:
            self._unlocking.discard(unlocking)
        raise zone.refusal()

    async def _unlock(self, zone: Zone) -> None:
        """Serve a zone, once what an earlier session left in it is settled. Raises as `unlock`."""
        if self.before_serving is None:
            await self._keyring.unlock(zone)
            return
        await self._keyring.unlock(zone, recover_first=True)
        try:
            token = in_recovery.set(True)
            try:
                await self.before_serving(zone)
            finally:
                in_recovery.reset(token)
        except (CmkfsError, OSError) as error:
            if zone.state is ZoneState.RECOVERING:
                why = error if isinstance(error, KeyUnavailable) else KeyUnavailable(f"not recovered: {error}")
                zone.explain(why)
            self._drop_keys([zone])
            raise zone.refusal() from error
        except BaseException:
            self._drop_keys([zone])
            raise
        if zone.state is not ZoneState.RECOVERING:
            raise zone.refusal()  # a lock came, and found nothing more to be waited for
        zone.end_recovering()

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

    async def _store(self, zones: list[Zone]) -> bool:
        """Have the kernel write back and forget everything; False if it has not within `STORE_SECONDS`.

        What is open goes first, before it is even looked up what else there is: 50,000 inodes take 20 ms.
        """
        done: list[bool] = []

        begun = trio.Event()

        async def first(inodes: list[Inode]) -> None:
            try:
                done.append(await self._forget(inodes, STORE_SECONDS, begun.set))
            finally:
                begun.set()

        used = self._used(zones)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first, used)
            await begun.wait()
            at_once = set(used)
            done.append(await self._forget([x for x in self._known(zones) if x not in at_once], STORE_SECONDS))
        return all(done)

    def _used(self, zones: list[Zone]) -> list[Inode]:
        """Every inode that a program has open: what is read only first."""
        handles = [handle for handle in self._operations.handles.files.values() if handle.file.zone in zones]
        written = {handle.file.inode for handle in handles if handle.writable}
        read = {handle.file.inode for handle in handles} - written
        return [*read, *written]

    async def _forget(self, inodes: list[Inode], seconds: float, given: Callable[[], object] = nobody_waits) -> bool:
        """False if the kernel still holds something of them after `seconds`."""
        with trio.move_on_after(seconds) as scope:
            try:
                await self._kernel.forget([int(inode.ino) for inode in inodes], given)
            except (OSError, RuntimeError) as error:  # no descriptor or no thread to be had
                log.error("the kernel could not be told to forget: %s", error)
                return False
        if scope.cancelled_caught:
            log.error("the kernel has not let go of everything within %g s", seconds)
        return not scope.cancelled_caught

    async def _expire(self, names: list[tuple[int, bytes]]) -> None:
        """What is right in the root of a zone is asked for again. It waits for who looks something up there just now,
        so that nobody learns an inode after it was invalidated."""
        with trio.move_on_after(FORGET_SECONDS + _SECONDS_PER_INODE * len(names)) as scope:
            try:
                await self._kernel.expire(names)
            except (OSError, RuntimeError) as error:
                log.error("names stay in the kernel's cache: %s", error)
        if scope.cancelled_caught:
            log.error("names in the root of a zone stay in the kernel's cache: a request hangs in that directory")

    async def _forget_for_good(self, inodes: list[Inode]) -> None:
        """Nothing of these inodes is cached any more when this returns, at whatever price."""
        if await self._forget(inodes, FORGET_SECONDS + _SECONDS_PER_INODE * len(inodes)):
            return
        log.error("a request hangs: the mount is cut off, so that nothing of it can be read")
        everything = list(self._inodes)
        if not await self._kernel.cut() or not await self._forget(
            everything, FORGET_SECONDS + _SECONDS_PER_INODE * len(everything)
        ):
            # The guardian takes over from here, and needs nothing but this process' end.
            log.critical("the mount cannot be cut off: the daemon ends itself")
            os.kill(os.getpid(), signal.SIGKILL)

    async def finish(self) -> None:
        """The mount ends: no unlock begins or goes on. Returns when no lock is under way."""
        self._finished = True
        for unlocking in self._unlocking:
            unlocking.scope.cancel()
        async with self._unlock_turn:
            while self._locking:
                await next(iter(self._locking.values())).wait()

    def _known(self, zones: list[Zone]) -> list[Inode]:
        """Every inode of the zones that the kernel may have cached: open ones first, with dirty pages second."""
        if not zones:
            return []
        among = frozenset(zones)
        written = {handle.file.inode for handle in self._operations.handles.files.values() if handle.writable}
        ranks: tuple[list[Inode], ...] = ([], [], [])
        for inode in self._inodes:
            if inode.lookups and _concerns(inode, among):
                ranks[2 if inode.file is None else 1 if inode in written else 0].append(inode)
        return [inode for rank in ranks for inode in rank]

    def _open_inodes(self, zones: list[Zone]) -> list[Inode]:
        return [inode for inode in self._inodes if inode.file is not None and inode.file.zone in zones]

    # -- who had what open -----------------------------------------------------------------------

    async def _name_opened(self, zones: list[Zone], opened: list[OpenedBy]) -> None:
        """Fill `opened`, in turn with requests: there can be thousands, and the lock has pages to store meanwhile."""
        handles = [handle for handle in self._operations.handles.files.values() if handle.file.zone in zones]
        for handle in handles:
            await trio.lowlevel.checkpoint()
            opened.append(OpenedBy(handle.request.uid, handle.request.pid, self.path_of(handle.file.inode)))

    def path_of(self, inode: Inode) -> str:
        """The path of an inode below the mount point, as far as it can be told now."""
        parts: list[str] = []
        while inode.places:
            parent, entry = inode.places.newest
            try:
                name = self._name(parent, entry)
            except (CmkfsError, OSError):
                name = b"?"
            parts.append(name.decode(errors="backslashreplace"))
            inode = parent
        return "/".join(reversed(parts)) or "(no name)"

    def _name(self, parent: Inode, entry: bytes) -> bytes:
        """A plain name, also while a lock settles."""
        directory = parent.directory or self._operations.directory_of(parent)
        return plain_name(directory, self._inodes.dir_fd(parent), entry, directory.zone.keys_to_settle())


def _concerns(inode: Inode, zones: frozenset[Zone]) -> bool:
    """Is it in one of the zones, as far as can be told without a key? Asked for each inode that the kernel knows.

    The root of a zone concerns two: its own, and the one it lies in, which shows its attributes.
    """
    if inode.file is not None:
        return inode.file.zone in zones
    if inode.directory is not None and inode.directory.zone in zones:
        return True
    if inode.parent is None:
        return inode.directory is None
    above = inode.parent.directory
    return above is None or above.zone in zones

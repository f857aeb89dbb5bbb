"""Recovery after a session that did not end well: every file settled, every leftover swept, before anything is told.

A crash never needs more than this, and this needs nothing but the next mount (docs/format.md, 8.4 and 9).
"""

import logging
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cmkfs.crypto.xaes import NONCE_SIZE
from cmkfs.errors import CmkfsError, Damaged, KeyUnavailable
from cmkfs.format.header import Slot, State, is_unwritten, peek_slot
from cmkfs.format.layout import BLOCK, PAGE, cipher_off, plain_size_of
from cmkfs.fs.backing import RENAME_NOREPLACE, Backing, rename
from cmkfs.fs.directory import (
    GONE_PREFIX,
    LONG_PREFIX,
    OWN_PREFIX,
    SIDECAR_PREFIX,
    TEMPORARY_PREFIX,
    Directories,
    Directory,
    backing_name,
    plain_name,
)
from cmkfs.fs.inode import Inode
from cmkfs.fs.inodes import InodeTable
from cmkfs.fs.opening import FileOpener
from cmkfs.fs.settle import Settler
from cmkfs.fs.symlinks import Symlinks
from cmkfs.fs.vaultdir import ZONE_COPY_PREFIX, zone_copy_name
from cmkfs.fs.zoneroots import finish_switch
from cmkfs.keys.zone import Zone, ZoneState

log = logging.getLogger(__name__)

_BATCH = 1000


@dataclass(slots=True)
class Report:
    """What recovery did, for the mount command and `status`."""

    files_seen: int = 0
    files_settled: int = 0
    files_emptied: int = 0
    leftovers_removed: int = 0
    unreadable: list[str] = field(default_factory=list)
    incomplete: bool = False
    """True if something could not be settled that a later recovery may settle: disk full, I/O error, key away."""

    def facts(self) -> dict[str, object]:
        """As JSON tells it."""
        return {
            "files_seen": self.files_seen,
            "files_settled": self.files_settled,
            "files_emptied": self.files_emptied,
            "leftovers_removed": self.leftovers_removed,
            "unreadable": self.unreadable,
        }


class Recovery:
    """Walks the whole vault once. On a read-only backing nothing is written; sizes are kept in memory."""

    def __init__(
        self, backing: Backing, inodes: InodeTable, directories: Directories, opener: FileOpener, settler: Settler
    ) -> None:
        self._backing = backing
        self._inodes = inodes
        self._directories = directories
        self._opener = opener
        self._settler = settler
        self._symlinks = Symlinks(backing.root_fd)
        self.report = Report()
        self.locked: dict[Zone, Inode] = {}
        """Zones whose keys could not be had, and their roots: `resume` goes on there."""
        self._since = 0
        self._reached: set[Zone] = set()
        self.found_sizes: dict[int, int] = {}

    async def run(self, unsettled_since: int) -> Report:
        """Settle every file whose ctime (ns) is not older than `unsettled_since`.

        What cannot be read is reported and left alone, a zone that is locked until `resume`. Raises OSError if
        nothing can be made durable, and KeyUnavailable if the token goes away: what it left unsettled would look
        like tampering later.
        """
        self._opener.recovering = True
        self._since = unsettled_since
        try:
            await self._walk(self._inodes.root)
            await self._settle()
        finally:
            # What could not be written stays to be recovered, at each open anew.
            self._opener.recovering = self._backing.read_only
        for inode in self._inodes:
            self._inodes.drop_if_unused(inode)
        return self.report

    async def resume(self, zone: Zone, zones: Iterable[Zone]) -> None:
        """Settle a zone that was locked until now, before anybody is served from it; `zones` are all of the mount.

        In a task that is `in_recovery`. Raises as `run`; then it is still to be done.
        """
        root = self.locked[zone]
        before = frozenset(self._reached)
        # A zone inside it that was not locked could not be reached either.
        self._opener.recovering_zones = frozenset(zones) - before
        try:
            await self._walk(root)
            await self._settle()
            zone.check()  # else there was a lock meanwhile, and what it kept back is not settled
        except BaseException:  # a lock came, or the token went away: the next time it begins anew
            self._reached = set(before)
            raise
        finally:
            self._opener.recovering_zones = frozenset()
        del self.locked[zone]
        self._hold(root, -1)
        for inode in self._inodes:
            self._inodes.drop_if_unused(inode)

    def _hold(self, inode: Inode, count: int) -> None:
        """Keep the way to an inode known, or let go of it, whatever the kernel forgets."""
        while inode is not self._inodes.root:
            inode.lookups += count
            inode = inode.places.newest[0]

    async def _walk(self, start: Inode) -> None:
        # A stack, not recursion: directories may be nested deeper than Python's stack.
        waiting = [start]
        while waiting:
            directory = waiting.pop()
            try:
                with self._inodes.permitted(directory):
                    waiting += await self._directory(directory, self._since)
            except KeyUnavailable:
                zone = self._directories.claimed_zone(directory)
                if zone is None or zone.state not in (ZoneState.LOCKED, ZoneState.SETTLING):
                    raise
                if zone not in self.locked:
                    self.locked[zone] = directory
                    self._hold(directory, 1)
            except (CmkfsError, OSError) as error:
                if not self._never_made(directory, error):
                    self._unreadable(directory.places.newest[1] if directory.places else b".", error)

    def _never_made(self, directory: Inode, why: Exception) -> bool:
        """Remove a directory in which there is not even its id: its own content did not reach the disk."""
        if not isinstance(why, Damaged) or self._backing.read_only or not directory.places:
            return False
        parent, entry = directory.places.newest
        try:
            fd = self._inodes.open(directory, os.O_RDONLY)
            try:
                empty = not os.listdir(fd)
            finally:
                os.close(fd)
            if empty:
                self._remove_unmade(self._inodes.dir_fd(parent), entry, os.rmdir)
        except OSError as error:
            log.warning("an empty directory without its id stays: %s", error)
            return False
        return empty

    def _remove_unmade(self, dir_fd: int, entry: bytes, remove: Callable[..., None]) -> None:
        remove(entry, dir_fd=dir_fd)
        sidecar = SIDECAR_PREFIX + entry[len(LONG_PREFIX) :]
        if entry.startswith(LONG_PREFIX) and sidecar in os.listdir(f"/proc/self/fd/{dir_fd}".encode()):
            os.unlink(sidecar, dir_fd=dir_fd)
        self.report.leftovers_removed += 1

    async def _directory(self, parent: Inode, unsettled_since: int) -> list[Inode]:
        self._reached.add(self._authenticated(parent).zone)
        fd = self._inodes.open(parent, os.O_RDONLY)
        try:
            self._sweep(parent, fd, {os.fsencode(name) for name in os.listdir(fd)})
            entries = [os.fsencode(name) for name in os.listdir(fd)]
            below: list[Inode] = []
            for entry in entries:
                if entry.startswith(OWN_PREFIX):
                    continue
                try:
                    below += await self._entry(parent, fd, entry, unsettled_since)
                except KeyUnavailable:
                    raise
                except (CmkfsError, OSError) as error:
                    self._unreadable(entry, error)
            return below
        finally:
            os.close(fd)

    def _authenticated(self, inode: Inode) -> Directory:
        """The directory; one that was becoming the root of a zone, or ceasing to be one, is that now."""
        try:
            return self._directories.of(inode)
        except Damaged:
            if self._backing.read_only or not finish_switch(self._inodes, self._directories, inode):
                raise
            self.report.leftovers_removed += 1
            return self._directories.of(inode)

    async def _entry(self, parent: Inode, fd: int, entry: bytes, unsettled_since: int) -> list[Inode]:
        """Settle a file; gives a directory to go on with. Raises Damaged for one entry, which hides no other."""
        found = os.stat(entry, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISREG(found.st_mode) and found.st_ctime_ns >= unsettled_since:
            await self._file(parent, entry, found)
        elif stat.S_ISDIR(found.st_mode):
            plain_name(self._directories.of(parent), fd, entry)
            return [self._inodes.learn(found, parent, entry)]
        elif stat.S_ISLNK(found.st_mode) and found.st_ctime_ns >= unsettled_since:
            self._symlink(fd, entry)
        return []

    def _symlink(self, fd: int, entry: bytes) -> None:
        """Remove one whose long target did not reach the disk whole."""
        if not self._backing.read_only and self._symlinks.lacks_parts(os.readlink(entry, dir_fd=fd)):
            self._remove_unmade(fd, entry, os.unlink)

    async def _file(self, parent: Inode, entry: bytes, found: os.stat_result) -> None:
        self.report.files_seen += 1
        inode = self._inodes.learn(found, parent, entry)
        if inode.ino in self.found_sizes or inode.file is not None:
            return  # another link of a file that was looked at
        try:
            if not self._looks_settled(inode, found):
                await self._settle_file(inode, found)
        finally:
            self._inodes.drop_if_unused(inode)

    def _looks_settled(self, inode: Inode, found: os.stat_result) -> bool:
        """True for a clean slot that agrees with length and last block, not authenticated: opening decides for good.

        A last block that is longer holds what was lost with its dirty slot: after one more crash it would be back.
        """
        fd = self._inodes.open(inode, os.O_RDONLY)
        try:
            page = os.pread(fd, PAGE, 0)
            slot: Slot | None = None if is_unwritten(page) else peek_slot(page)
            if slot is None or slot.state is not State.CLEAN or plain_size_of(found.st_size) != slot.size:
                return False
            block, length = divmod(slot.size, BLOCK)
            return not length or int.from_bytes(os.pread(fd, 2, cipher_off(block) + NONCE_SIZE)) <= length
        finally:
            os.close(fd)

    async def _settle_file(self, inode: Inode, found: os.stat_result) -> None:
        empty = found.st_size < PAGE
        file = await self._opener.open(inode, self._directories.of(inode.places.newest[0]).zone)
        if self._backing.read_only:
            self.found_sizes[inode.ino] = file.size
            self._opener.release(file)
            return
        self.report.files_settled += 1
        self.report.files_emptied += empty
        self._opener.release(file)
        if len(self._settler) >= _BATCH:
            await self._settle()

    async def _settle(self) -> None:
        """Durable, then clean slots, then those durable too: only then are sizes told."""
        if self._backing.read_only or not len(self._settler):
            return
        await self._settler.settle_all()
        await self._backing.sync_whole()

    def _sweep(self, parent: Inode, fd: int, entries: set[bytes]) -> None:
        """Remove what a crash left half-made or half-removed."""
        if self._backing.read_only:
            return
        listed = {zone_copy_name(root.zone_id) for root in self._directories.zone_roots}
        for entry in entries:
            unlisted = entry.startswith(ZONE_COPY_PREFIX) and entry not in listed
            orphan = unlisted or (
                entry.startswith(SIDECAR_PREFIX) and LONG_PREFIX + entry[len(SIDECAR_PREFIX) :] not in entries
            )
            if not orphan and not entry.startswith((TEMPORARY_PREFIX, GONE_PREFIX)):
                continue
            try:
                if not self._remove(fd, entry):
                    self._keep(parent, fd, entry)
            except (Damaged, OSError) as error:
                self._unreadable(entry, error)
                continue
            self.report.leftovers_removed += 1

    def _remove(self, fd: int, entry: bytes) -> bool:
        """False for a directory with something in it."""
        found = os.stat(entry, dir_fd=fd, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(entry, dir_fd=fd)
            return True
        inside = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        try:
            names = [os.fsencode(name) for name in os.listdir(inside)]
            if any(not name.startswith(OWN_PREFIX) for name in names):
                return False
            for name in names:
                os.unlink(name, dir_fd=inside)
        finally:
            os.close(inside)
        os.rmdir(entry, dir_fd=fd)
        return True

    def _keep(self, parent: Inode, fd: int, entry: bytes) -> None:
        """Show it: a backing without order had what is in it before it had its name, or has it still after that."""
        name = b"recovered-" + entry.rpartition(b".")[2][:22]
        shown = backing_name(self._directories.of(parent), name).entry
        rename(fd, entry, fd, shown, RENAME_NOREPLACE)
        log.warning("a directory without a name that lasted is called %s now", os.fsdecode(name))

    def _unreadable(self, entry: bytes, why: Exception) -> None:
        self.report.incomplete |= isinstance(why, OSError | KeyUnavailable)
        name = os.fsdecode(entry)
        log.warning("not settled: %s: %s", name, why)
        self.report.unreadable.append(f"{name}: {why}")

"""The roots of zones in the vault: found at mount, made of empty directories, and made directories again.

A directory changes its zone in three steps (docs/format.md, section 5). What it will need is put beside what it
has, and synced; the list of zones is replaced, which decides; its id is replaced by the prepared one. A crash
before the second step leaves a leftover, a crash after it is finished by the next recovery.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable

import trio

from cmkfs.errors import CmkfsError, Damaged
from cmkfs.format import b64
from cmkfs.format.vault import ID_SIZE, ZoneRecord, ZoneRoot
from cmkfs.fs.directory import (
    DIR_ID,
    OWN_PREFIX,
    TEMPORARY_PREFIX,
    Directories,
    Directory,
    backing_name,
    plain_name,
)
from cmkfs.fs.inode import Inode
from cmkfs.fs.inodes import InodeTable
from cmkfs.fs.namespace import Namespace
from cmkfs.fs.vaultdir import ZONE_RECORD, VaultDir, read_zone_record
from cmkfs.keys.pool import random_id

log = logging.getLogger(__name__)

_RECORD = ZONE_RECORD.encode()


Visit = Callable[[Inode, Directory, ZoneRoot], None]
"""Told of the directory that a zone's root lies in."""


async def search(inodes: InodeTable, directories: Directories, wanted: Iterable[ZoneRoot], visit: Visit) -> None:
    """Walk through all directories of the zones that serve, until those that the wanted roots lie in are found.

    What cannot be read is passed over.
    """
    places: dict[bytes, list[ZoneRoot]] = {}
    for root in wanted:
        places.setdefault(root.parent_dir_id, []).append(root)
    waiting = deque([inodes.root])
    while waiting and places:
        inode = waiting.popleft()
        try:
            directory = directories.of(inode)
            for root in places.pop(directory.dir_id, ()):
                visit(inode, directory, root)
            waiting += _directories_in(inodes, inode)
        except (CmkfsError, OSError) as error:
            log.debug("not searched for zones: %s", error)
        await trio.lowlevel.checkpoint()
    for inode in inodes:
        inodes.drop_if_unused(inode)


async def search_records(inodes: InodeTable, directories: Directories, wanted: Iterable[ZoneRoot]) -> list[ZoneRecord]:
    """The records in the roots of zones, for those whose copy is not in the vault's root."""
    found: list[ZoneRecord] = []

    def look(inode: Inode, directory: Directory, root: ZoneRoot) -> None:
        entry, dir_fd = backing_name(directory, root.name).entry, inodes.dir_fd(inode)
        fd = os.open(entry, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            record = read_zone_record(fd)
        finally:
            os.close(fd)
        if record.zone_id == root.zone_id:
            found.append(record)

    await search(inodes, directories, wanted, look)
    return found


async def paths_of(inodes: InodeTable, directories: Directories) -> dict[bytes, bytes]:
    """Where the roots of the zones are, by zone id, seen from the mount point; those that can be reached now."""
    found: dict[bytes, bytes] = {}

    def look(inode: Inode, _directory: Directory, root: ZoneRoot) -> None:
        names = [root.name]
        while inode.places:
            parent, entry = inode.places.newest
            names.append(plain_name(directories.of(parent), inodes.dir_fd(parent), entry))
            inode = parent
        found[root.zone_id] = b"/".join(reversed(names))

    await search(inodes, directories, directories.zone_roots, look)
    return found


def _directories_in(inodes: InodeTable, inode: Inode) -> list[Inode]:
    fd = inodes.open(inode, os.O_RDONLY)
    try:
        with os.scandir(fd) as entries:
            names = [os.fsencode(entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)]
        below = [name for name in names if not name.startswith(OWN_PREFIX)]
        return [inodes.learn(os.stat(name, dir_fd=fd, follow_symlinks=False), inode, name) for name in below]
    finally:
        os.close(fd)


class ZoneSwitch:
    """Makes an empty directory the root of a zone, or a directory of the zone around it."""

    def __init__(self, inodes: InodeTable, directories: Directories, namespace: Namespace, vaultdir: VaultDir) -> None:
        self._inodes = inodes
        self._directories = directories
        self._namespace = namespace
        self._vaultdir = vaultdir
        self.unfinished = False
        """True if the list of zones on the disk may not be the one in force: the next mount has to recover."""

    async def switch(
        self,
        inode: Inode,
        sealed_id: bytes,
        roots: tuple[ZoneRoot, ...],
        lists: tuple[bytes, bytes],
        record: ZoneRecord | None,
    ) -> None:
        """Give a directory another id, sealed, and the vault another list of zones: `lists` are the old and the new.

        `record` is that of the zone whose root it becomes, None if it is one no more. It takes no new entries
        meanwhile. Raises OSError (ENOTEMPTY); then everything is as before.
        """
        self._namespace.closed.add(inode)
        fd = self._inodes.open(inode, os.O_RDONLY)
        prepared = TEMPORARY_PREFIX + b64.encode(random_id())
        try:
            self._namespace.check_empty(inode)
            try:
                await self._prepare(inode, fd, sealed_id, prepared, record)
                await self._vaultdir.write_zone_roots(lists[1])
                os.rename(prepared, DIR_ID, src_dir_fd=fd, dst_dir_fd=fd)
            except OSError:
                await self._undo(fd, prepared, lists[0], record)
                raise
            self._directories.forget_removed(inode)
            inode.directory = None
            self._directories.list_zones(roots)
            if record is None:
                os.unlink(_RECORD, dir_fd=fd)
            await self._inodes.backing.fsync(fd)
        finally:
            self._namespace.closed.discard(inode)
            os.close(fd)

    async def _prepare(
        self, inode: Inode, fd: int, sealed_id: bytes, prepared: bytes, record: ZoneRecord | None
    ) -> None:
        if record is not None:
            _unlink_if_there(_RECORD, fd)
            os.symlink(b64.encode(record.to_bytes()), _RECORD, dir_fd=fd)
            self._vaultdir.write_zone_record_copy(record)
        os.symlink(sealed_id, prepared, dir_fd=fd)
        parent = self._inodes.open(inode.places.newest[0], os.O_RDONLY)
        try:
            await self._inodes.backing.fsync(fd)
            await self._inodes.backing.fsync(parent)
        finally:
            os.close(parent)

    async def _undo(self, fd: int, prepared: bytes, old_list: bytes, record: ZoneRecord | None) -> None:
        try:
            await self._vaultdir.write_zone_roots(old_list)
            _unlink_if_there(prepared, fd)
            if record is not None:
                _unlink_if_there(_RECORD, fd)
                self._vaultdir.remove_zone_record_copy(record.zone_id)
        except OSError as error:
            self.unfinished = True
            log.error("a change of zones could be neither made nor undone; the next mount decides: %s", error)


def finish_switch(inodes: InodeTable, directories: Directories, inode: Inode) -> bool:
    """Recovery: a directory whose zone is not the one that its place must have gets the id prepared for it.

    False if none is. What it then says is authenticated like everything else.
    """
    if not inode.places:
        return False
    wanted = directories.zone_id_at(*inode.places.newest)
    fd = inodes.open(inode, os.O_RDONLY)
    try:
        entries = [os.fsencode(name) for name in os.listdir(fd)]
        prepared = [entry for entry in entries if entry.startswith(TEMPORARY_PREFIX) and _zone_in(entry, fd) == wanted]
        if len(prepared) != 1 or not all(entry.startswith(OWN_PREFIX) for entry in entries):
            return False
        os.rename(prepared[0], DIR_ID, src_dir_fd=fd, dst_dir_fd=fd)
        return True
    finally:
        os.close(fd)


def _zone_in(entry: bytes, fd: int) -> bytes:
    try:
        return b64.decode(os.readlink(entry, dir_fd=fd))[:ID_SIZE]
    except (OSError, Damaged):
        return b""


def _unlink_if_there(name: bytes, fd: int) -> None:
    try:
        os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        log.debug("%r is not there", name)

"""What `stat` on the mount tells, from what it tells in the vault: neither a key nor a read is needed."""

import os
import stat
from collections.abc import Mapping

import pyfuse3

from cmkfs.format.layout import plain_size_at_least, plain_size_of
from cmkfs.fs.inodes import ROOT_INO, Inode, InodeTable
from cmkfs.fs.symlinks import Symlinks
from cmkfs.keys.zone import Zone

LONG = 86_400.0
"""Seconds that the kernel may keep names and attributes: one mount owns the vault, and a lock invalidates them."""


class Attributes:
    """Makes the attribute objects that the kernel is answered with."""

    def __init__(self, inodes: InodeTable, entry_timeout: float = LONG) -> None:
        self._inodes = inodes
        self._timeout = entry_timeout
        self.divided: set[Zone] = set()
        """Zones in which some principals have rights and others have none: see `fs.revocation`."""
        self.found_sizes: Mapping[int, int] = {}
        """Plain sizes that recovery found on a read-only backing, by inode number: they could not be written."""

    def of(self, inode: Inode) -> pyfuse3.EntryAttributes:
        """The attributes of an inode now."""
        return self.fill(inode, self._inodes.stat(inode))

    def fill(self, inode: Inode, found: os.stat_result) -> pyfuse3.EntryAttributes:
        """The attributes of an inode from a `stat` just made in the vault."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode.ino
        entry.generation = inode.generation
        entry.entry_timeout = entry.attr_timeout = self._timeout
        if self.divided or inode.retired:
            self._limit(entry, inode)
        entry.st_mode = found.st_mode
        entry.st_nlink = self._links(inode, found)
        entry.st_uid = found.st_uid
        entry.st_gid = found.st_gid
        entry.st_rdev = found.st_rdev
        entry.st_size = size = self._size(inode, found)
        if inode.lookups <= 0 or inode.told_size is None:
            inode.told_size = size
        entry.st_blocks = found.st_blocks
        entry.st_atime_ns = found.st_atime_ns
        kept = inode.file.pages.mtime_ns if inode.file is not None else None
        entry.st_mtime_ns = found.st_mtime_ns if kept is None else kept
        entry.st_ctime_ns = found.st_ctime_ns
        return entry

    def missing(self) -> pyfuse3.EntryAttributes:
        """The answer that a name does not exist, which the kernel may keep too."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = 0
        entry.entry_timeout = self._timeout
        return entry

    def _limit(self, entry: pyfuse3.EntryAttributes, inode: Inode) -> None:
        """What the kernel must ask for each time, with the caller's uid."""
        if inode.retired:
            entry.entry_timeout = entry.attr_timeout = 0
        elif inode.is_dir:
            if inode.directory is None or inode.directory.zone in self.divided:
                entry.attr_timeout = 0
        elif inode.parent is self._inodes.root:
            entry.entry_timeout = 0  # the root itself always answers

    def _size(self, inode: Inode, found: os.stat_result) -> int:
        if inode.fmt == stat.S_IFREG:
            if inode.file is not None:
                return inode.file.size
            known = self.found_sizes.get(inode.ino)
            if known is not None:
                return known
            exact = plain_size_of(found.st_size)
            return plain_size_at_least(found.st_size) if exact is None else exact
        if inode.fmt == stat.S_IFLNK:
            return Symlinks.plain_length(found.st_size, *self._inodes.place(inode))
        return found.st_size

    def _links(self, inode: Inode, found: os.stat_result) -> int:
        if inode.ino == ROOT_INO and found.st_nlink > 2:
            return found.st_nlink - 1  # cmkfs.links is not shown
        return 0 if inode.removed and inode.is_dir else found.st_nlink


def filesystem_attributes(fd: int) -> pyfuse3.StatvfsData:
    """What statfs tells: the backing's figures."""
    found, answer = os.fstatvfs(fd), pyfuse3.StatvfsData()
    for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
        setattr(answer, name, getattr(found, name))
    answer.f_namemax = 255
    return answer

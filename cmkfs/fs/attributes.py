"""What `stat` on the mount tells, from what it tells in the vault: neither a key nor a read is needed."""

import os
import stat
from collections.abc import Mapping

from cmkfs.format.layout import plain_size_at_least, plain_size_of
from cmkfs.fs.inode import ROOT_INO, Inode
from cmkfs.fs.inodes import InodeTable
from cmkfs.fs.keptnames import is_zone_root
from cmkfs.fs.subdirectories import Subdirectories
from cmkfs.fs.symlinks import Symlinks
from cmkfs.fuse.messages import Entry
from cmkfs.keys.zone import Zone

LONG = 86_400
"""Seconds that the kernel may keep names and attributes: one mount owns the vault, and a lock invalidates them."""


class Attributes:
    """Makes the attribute objects that the kernel is answered with."""

    def __init__(self, inodes: InodeTable, subdirectories: Subdirectories, entry_timeout: int = LONG) -> None:
        self._inodes = inodes
        self._subdirectories = subdirectories
        self._timeout = entry_timeout
        self.divided: set[Zone] = set()
        """Zones in which some principals have rights and others have none: see `fs.revocation`."""
        self.found_sizes: Mapping[int, int] = {}
        """Plain sizes that recovery found on a read-only backing, by inode number: they could not be written."""

    def of(self, inode: Inode) -> Entry:
        """The attributes of an inode now."""
        return self.fill(inode, self._inodes.stat(inode))

    def fill(self, inode: Inode, found: os.stat_result) -> Entry:
        """The attributes of an inode from a `stat` just made in the vault."""
        entry_timeout = attr_timeout = self._timeout
        if self.divided or inode.retired:
            entry_timeout, attr_timeout = self._limited(inode)
        size = self._size(inode, found)
        if inode.lookups <= 0 or inode.told_size is None:
            inode.told_size = size
        kept = None if inode.file is None else inode.file.pages.mtime_ns
        return Entry(
            inode.ino,
            inode.generation,
            entry_timeout,
            attr_timeout,
            found.st_mode,
            self._links(inode, found),
            found.st_uid,
            found.st_gid,
            found.st_rdev,
            size,
            found.st_blocks,
            found.st_atime_ns,
            found.st_mtime_ns if kept is None else kept,
            found.st_ctime_ns,
        )

    def missing(self, parent: Inode) -> Entry:
        """The answer that a name does not exist in `parent`, which the kernel may keep too."""
        asked = bool(self.divided) and self._asked_for_each_time(parent)
        return Entry(0, entry_timeout=0 if asked else self._timeout)

    def _limited(self, inode: Inode) -> tuple[int, int]:
        """Seconds for entry and attributes: 0 for what the kernel must ask for each time, with the caller's uid."""
        if inode.retired:
            return 0, 0
        if inode.is_dir:
            divided = inode.directory is None or inode.directory.zone in self.divided
            return self._timeout, 0 if divided else self._timeout
        if self._asked_for_each_time(inode.parent):
            return 0, self._timeout
        return self._timeout, self._timeout

    def _asked_for_each_time(self, parent: Inode | None) -> bool:
        """A name in the root of a divided zone: the root itself answers those who have no right in the zone, too."""
        if parent is None or not is_zone_root(parent):
            return False
        return parent.directory is None or parent.directory.zone in self.divided

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
        if not inode.is_dir:
            return found.st_nlink
        if inode.removed:
            return 0
        if not self._inodes.backing.links_count_directories:
            return self._subdirectories.links(inode)
        if inode.ino == ROOT_INO and found.st_nlink > 2:
            return found.st_nlink - 1  # cmkfs.links is not shown
        return found.st_nlink

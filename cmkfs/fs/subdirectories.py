"""How many directories a directory has, where the backing does not count them as links of it (btrfs): by looking.

POSIX leaves the link count of a directory open; programs know 2 and one for each directory in it, or 1.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from cmkfs.fs.inode import Inode

_OWN_AND_DOT = 2
_NOT_COUNTED = 1
_LARGE = 1 << 20
"""Bytes of a directory that is not counted: on btrfs 12,000 entries or so. Everybody else would wait for it."""


class Subdirectories:
    """Counts each directory that is asked about once, and keeps the count while the mount changes it."""

    def __init__(self, open_unnoticed: Callable[["Inode"], int], own_prefix: bytes) -> None:
        """`open_unnoticed` gives a descriptor to read; `own_prefix`: how names begin that the vault has for itself."""
        self._open = open_unnoticed
        self._own_prefix = own_prefix
        self._counts: WeakKeyDictionary[Inode, int] = WeakKeyDictionary()

    def links(self, inode: "Inode") -> int:
        """What `st_nlink` of a directory is. Raises OSError."""
        count = self._counts.get(inode)
        if count is None:
            count = self._counts[inode] = self._look(inode)
        return _NOT_COUNTED if count < 0 else _OWN_AND_DOT + count

    def changed(self, inode: "Inode", by: int) -> None:
        """So many directories were added to `inode`."""
        count = self._counts.get(inode)
        if count is not None and count >= 0:
            self._counts[inode] = count + by

    def moved(self, inode: "Inode", source: "Inode", target: "Inode") -> None:
        """An inode of any kind went from one directory into another."""
        if inode.is_dir:
            self.changed(source, -1)
            self.changed(target, 1)

    def _look(self, inode: "Inode") -> int:
        fd = self._open(inode)
        try:
            if os.fstat(fd).st_size > _LARGE:
                return -1
            with os.scandir(fd) as entries:
                return sum(
                    entry.is_dir(follow_symlinks=False)
                    for entry in entries
                    if not os.fsencode(entry.name).startswith(self._own_prefix)
                )
        finally:
            os.close(fd)

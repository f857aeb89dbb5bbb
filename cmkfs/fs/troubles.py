"""Files of which something could not be read or stored, until they are written anew or removed; `status` names them.

A failed fsync tells one program once, and what was lost then is not looked for again: who runs the mount must be
able to see which files it was.
"""

import errno

from cmkfs.errors import Damaged
from cmkfs.fs.inode import Inode
from cmkfs.fs.inodes import InodeTable

_MOST = 256
"""Remembered at most: a disk that fails altogether needs no list."""
OF_CONTENT = frozenset({"open", "read", "write", "fsync"})
"""Requests that read or store what is in files."""
_STORING = frozenset({"write", "fsync"})
_REFUSED = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT})
"""What a disk answers that does not take, or give, a page: the kernel has dropped what it wanted to store."""


class Troubles:
    """The files, and why. They stay known while they are here, whatever the kernel forgets."""

    def __init__(self, inodes: InodeTable) -> None:
        self._inodes = inodes
        self._kept: dict[Inode, None] = {}

    def met(self, event: str, inode: Inode | None, error: Exception) -> None:
        """A request on a file failed; kept if it says that content is damaged or lost."""
        if inode is None or not _is_loss(event, error):
            return
        if inode not in self._kept and len(self._kept) < _MOST:
            inode.lookups += 1
            self._kept[inode] = None
        inode.trouble = f"{event}: {error.strerror if isinstance(error, OSError) else error}"

    def list(self) -> list[Inode]:
        """Those that still are; the others are let go."""
        for inode in [inode for inode in self._kept if inode.removed or not inode.trouble]:
            del self._kept[inode]
            inode.lookups -= 1
            self._inodes.drop_if_unused(inode)
        return list(self._kept)


def _is_loss(event: str, error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in _REFUSED if event in _STORING else error.errno == errno.EIO
    return isinstance(error, Damaged)

"""Listing directories: read whole at each rewind, given out in pieces, so that nothing is missed or told twice.

An entry that is there all the time is in the listing exactly once, whatever else changes meanwhile (readdir(3p)).
"""

import os
from collections.abc import Callable

from cmkfs.errors import Damaged
from cmkfs.fs.attributes import Attributes
from cmkfs.fs.directory import OWN_PREFIX, Directories, plain_name
from cmkfs.fs.diskthread import in_thread
from cmkfs.fs.handles import DirHandle
from cmkfs.fs.inode import Inode
from cmkfs.fs.inodes import InodeTable
from cmkfs.fuse import messages

_PASSED_AT_ONCE = 500
"""Entries that are passed over without letting others in between: whoever may write to the vault can make millions."""
_BIG_DIRECTORY = 65_536
"""Backing bytes of a directory from which its listing is read in a thread."""


class Listing:
    """Fills directory handles, and the kernel's buffers from them."""

    def __init__(
        self,
        inodes: InodeTable,
        directories: Directories,
        attributes: Attributes,
        on_damage: Callable[[DirHandle, bytes, Damaged], None],
    ) -> None:
        """`on_damage` is told of an entry of the vault that is not shown, because it does not authenticate."""
        self._inodes = inodes
        self._directories = directories
        self._attributes = attributes
        self._on_damage = on_damage

    async def read(self, handle: DirHandle) -> list[bytes]:
        """Its entries, read anew. Raises Locked, Damaged, OSError."""
        self._directories.of(handle.inode)
        fd = self._inodes.open(handle.inode, os.O_RDONLY)
        try:
            self._inodes.backing.count_reads(fd, counts=not self._inodes.backing.nodiratime)
            if os.fstat(fd).st_size < _BIG_DIRECTORY:
                listed = os.listdir(fd)
            else:
                listed = await in_thread(os.listdir, fd)
            entries = [os.fsencode(name) for name in listed]
            # Names are opened when they are given out: all at once would hold up everybody else, and a lock
            # would leave them in memory.
            return [b".", b"..", *(entry for entry in entries if not entry.startswith(OWN_PREFIX))]
        finally:
            os.close(fd)

    def reply(self, handle: DirHandle, start: int, into: messages.Listing) -> int | None:
        """Give the entries from number `start` on to the kernel, as many as it takes at once.

        Gives the number to go on from once others were served, if many were passed over and none was given.
        """
        dir_fd = self._inodes.dir_fd(handle.inode)
        with self._inodes.permitted(handle.inode):
            for number in range(start, len(handle.entries)):
                if number - start - into.count >= _PASSED_AT_ONCE:
                    return None if into.count else number  # short: the kernel asks for what follows
                if not self._reply_entry(handle, dir_fd, number, into):
                    return None
        return None

    def _reply_entry(self, handle: DirHandle, dir_fd: int, number: int, into: messages.Listing) -> bool:
        entry = handle.entries[number]
        if entry in (b".", b".."):
            return into.add(entry, self._dot(handle.inode, entry), number + 1)
        try:
            name = plain_name(self._directories.of(handle.inode), dir_fd, entry)
            found = os.stat(entry, dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return True  # removed since the listing was read
        except Damaged as error:
            handle.strange += 1
            self._on_damage(handle, entry, error)
            return True  # not a name of this directory
        inode = self._inodes.learn(found, handle.inode, entry)
        if not into.add(name, self._attributes.fill(inode, found), number + 1):
            self._inodes.drop_if_unused(inode)
            return False
        if into.plus:
            inode.lookups += 1
        else:
            self._inodes.drop_if_unused(inode)
        return True

    def _dot(self, inode: Inode, name: bytes) -> messages.Entry:
        if name == b".." and inode.places:
            inode = inode.places.newest[0]
        return self._attributes.of(inode)

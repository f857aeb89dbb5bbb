"""Open handles: what the kernel's file handle numbers stand for."""

import errno
import itertools
import os
from dataclasses import dataclass, field

from cmkfs.caller import Request
from cmkfs.fs.inode import Inode
from cmkfs.fs.openfile import OpenFile
from cmkfs.policy import Action


@dataclass(slots=True)
class FileHandle:
    """A descriptor of a program; it belongs to who opened it, whoever uses it later."""

    file: OpenFile
    request: Request
    flags: int
    retired: bool = False

    @property
    def writable(self) -> bool:
        """True if it was opened for writing."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def reads_count(self) -> bool:
        """True if what is read through it moves the access time: a write asks for what it keeps of a page, too."""
        return not self.flags & os.O_NOATIME and self.flags & os.O_ACCMODE != os.O_WRONLY


@dataclass(slots=True)
class DirHandle:
    """An open directory; `entries` is the listing as of the last rewind: backing names, `.` and `..` first."""

    inode: Inode
    request: Request
    entries: list[bytes] = field(default_factory=list)
    strange: int = 0
    """Entries of this listing that were met and are no names of the directory."""


MOST_NAMES = 4_000_000
"""Names in the listings of all open directories, some 400 MB: whoever may list a large one can open it often."""


class Handles:
    """Numbers for handles; a number is not used again."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.files: dict[int, FileHandle] = {}
        self.directories: dict[int, DirHandle] = {}
        self._names = 0

    def add_file(self, handle: FileHandle) -> int:
        """A number for a file handle; counts it on its file."""
        number = next(self._numbers)
        self.files[number] = handle
        handle.file.handles += 1
        return number

    def add_directory(self, handle: DirHandle) -> int:
        """A number for a directory handle."""
        number = next(self._numbers)
        self.directories[number] = handle
        return number

    def listed(self, number: int, entries: list[bytes]) -> None:
        """It has this listing from now on. Raises OSError ENOMEM if all that are open would hold too many names.

        OSError EBADF if it was released while its directory was read: nobody would give its names back.
        """
        handle = self.directories.get(number)
        if handle is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        names = self._names - len(handle.entries)
        if names and names + len(entries) > MOST_NAMES:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        self._names = names + len(entries)
        handle.entries, handle.strange = entries, 0

    def drop_directory(self, number: int) -> None:
        """Its listing goes. Idempotent."""
        handle = self.directories.pop(number, None)
        if handle is not None:
            self._names -= len(handle.entries)


def actions_of(flags: int) -> tuple[Action, ...]:
    """What opening with `flags` means to a policy."""
    mode = flags & os.O_ACCMODE
    if mode == os.O_RDWR or (mode == os.O_RDONLY and flags & os.O_TRUNC):
        return (Action.READ, Action.WRITE)
    return (Action.WRITE,) if mode == os.O_WRONLY else (Action.READ,)

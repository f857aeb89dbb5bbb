"""One inode of a mount: what the kernel was told of it, and where it was seen."""

import stat
from typing import TYPE_CHECKING, NewType

from cmkfs.fs.places import Places

if TYPE_CHECKING:
    from cmkfs.fs.directory import Directory
    from cmkfs.fs.openfile import OpenFile

Ino = NewType("Ino", int)
ROOT_INO = Ino(1)
"""FUSE_ROOT_ID: the number of the mount point, whatever its number in the vault is."""


class Inode:
    """One inode: `places` are the (directory, backing name) pairs it was seen at, the newest last."""

    __slots__ = (
        "__weakref__",
        "bare",
        "ctime_moved",
        "dir_fd",
        "directory",
        "file",
        "fmt",
        "generation",
        "ino",
        "lookups",
        "parent",
        "pin",
        "place_in_roster",
        "places",
        "removed",
        "retired",
        "told_size",
        "trouble",
    )

    def __init__(self, ino: Ino, fmt: int, generation: int = 1) -> None:
        self.ino = ino
        self.fmt = fmt
        self.generation = generation
        self.lookups = 0
        self.places = Places()
        self.parent: Inode | None = None
        """The directory of its newest name, and of its last one when it has none any more."""
        self.file: OpenFile | None = None
        self.directory: Directory | None = None
        self.dir_fd = -1
        self.pin = -1
        self.place_in_roster = -1
        self.removed = False
        self.retired = False
        """Somebody lost the use of it: until the kernel has looked it up anew, nothing is given out (`revocation`)."""
        self.bare = False
        """True if it is known to have no extended attributes: the kernel asks before the first write to a file."""
        self.ctime_moved = False
        """A program changed something else than content since it was read: the next read is seen in atime."""
        self.trouble = ""
        """Why its content could not be read or stored (`troubles`), until it is written anew."""
        self.told_size: int | None = None
        """The plain size that the kernel was told of a file that is not open: it never takes another one."""

    @property
    def is_dir(self) -> bool:
        """True for a directory."""
        return self.fmt == stat.S_IFDIR

    @property
    def gone(self) -> bool:
        """True if it has no name and the kernel does not know it: what it holds need not be kept.

        Without a name alone it can still be opened: by an open that lost a race, or through /proc/self/fd.
        """
        return self.removed and self.lookups <= 0

    def add_place(self, parent: "Inode", name: bytes) -> None:
        """It is (also) called `name` in `parent`. A directory has one place, another inode as many as it has links."""
        self.parent = parent
        self.ctime_moved |= bool(self.places) and not self.places.is_at((parent, name))
        if self.is_dir:
            self.places.replace((parent, name))
        else:
            self.places.add((parent, name))

    def drop_place(self, parent: "Inode", name: bytes) -> None:
        """It is no longer called `name` in `parent`."""
        self.ctime_moved = True
        self.places.drop((parent, name))
        self.parent = self.places.newest[0] if self.places else parent

    def __hash__(self) -> int:
        return hash(self.ino)

    def __eq__(self, other: object) -> bool:
        return self is other

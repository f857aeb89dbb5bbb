"""The inodes that the kernel knows, how to reach them in the vault, and when to forget them.

An inode is reached through a directory descriptor and a name, never through a path from the root: renames
of directories above it need nothing here. Inode numbers are the backing's, so they survive a remount.
"""

import errno
import os
import stat
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary

from cmkfs.errors import Damaged
from cmkfs.fs.backing import Backing
from cmkfs.fs.generations import Generations
from cmkfs.fs.inode import ROOT_INO, Ino, Inode
from cmkfs.fs.roster import Roster

_NODE_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIR_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LARGE_TABLE = 1 << 22
_ROOM = 1024
"""Bytes of a large table for each inode in it, from which on it is too much; a table that grows has up to 84."""


class InodeTable:
    """All inodes with a lookup count above 0 or with a file that is not settled."""

    def __init__(self, backing: Backing, max_dir_fds: int = 1024) -> None:
        self.backing = backing
        self.root = Inode(ROOT_INO, stat.S_IFDIR)
        self.root.lookups = 1
        self.root.dir_fd = backing.root_fd
        self.roster = Roster()
        self.roster.add(ROOT_INO)
        self._max_dir_fds = max_dir_fds
        self._generations = Generations()
        self._inodes: dict[Ino, Inode] = {ROOT_INO: self.root}
        self._dropped: WeakValueDictionary[Ino, Inode] = WeakValueDictionary()
        """Directories that the kernel has forgotten before something that is in them: the same when they come back,
        or what is in them would have two places where it has one."""
        self._dir_fds: OrderedDict[Ino, Inode] = OrderedDict()
        """Also of directories that were dropped."""
        self.on_smaller: Callable[[], None] = lambda: None
        """Told when many inodes were forgotten."""

    def __len__(self) -> int:
        return len(self._inodes)

    def __iter__(self) -> Iterator[Inode]:
        return iter(list(self._inodes.values()))

    def __getitem__(self, ino: int) -> Inode:
        """The inode the kernel means. Raises OSError ESTALE for a number it was never told."""
        try:
            return self._inodes[Ino(ino)]
        except KeyError:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None

    def get(self, ino: int) -> Inode | None:
        """The inode if it is known."""
        return self._inodes.get(Ino(ino))

    def learn(self, found: os.stat_result, parent: Inode, name: bytes) -> Inode:
        """The inode that was just found as `name` in `parent`; its lookup count is the caller's to raise."""
        if found.st_dev != self.backing.device or found.st_ino == ROOT_INO:
            raise Damaged("another filesystem is mounted inside the vault")
        ino, fmt = Ino(found.st_ino), stat.S_IFMT(found.st_mode)
        inode = self._inodes.get(ino)
        if inode is None or inode.fmt != fmt:
            if inode is not None and (inode.lookups or inode.file):
                raise Damaged("an inode changed its type behind the mount's back")
            if inode is not None:
                self.roster.remove(inode.place_in_roster)
            inode = self._inodes[ino] = self._not_known(ino, fmt)
            inode.place_in_roster = self.roster.add(ino)
        elif inode.parent is not None and not inode.places.is_at((parent, name)):
            _check_zones_agree(inode, parent)
            inode.directory = None  # at this place it is another directory until that is proven
        inode.add_place(parent, name)
        return inode

    def _not_known(self, ino: Ino, fmt: int) -> Inode:
        inode = self._dropped.pop(ino, None)
        if inode is None or inode.fmt != fmt:
            return Inode(ino, fmt, self._generations.of(ino))
        inode.generation, inode.directory, inode.retired = self._generations.of(ino), None, False
        return inode

    def learn_new(self, found: os.stat_result, parent: Inode, name: bytes) -> Inode:
        """The inode of a node that this mount has just made.

        If its number is known and nothing holds the node that had it, that one was removed behind the mount's back.
        """
        self._dropped.pop(Ino(found.st_ino), None)
        stale, lookups = self._inodes.get(Ino(found.st_ino)), 0
        if stale is not None and stale.file is None and stale.pin < 0 and stale.dir_fd < 0:
            lookups = stale.lookups  # the kernel will give them back under the same number
            self._generations.ended(found.st_ino, stale.generation)
            self.roster.remove(stale.place_in_roster)
            del self._inodes[stale.ino]
        inode = self.learn(found, parent, name)
        inode.lookups += lookups
        return inode

    # -- reaching the vault ----------------------------------------------------------------------

    def dir_fd(self, inode: Inode) -> int:
        """A descriptor of a directory, good until the next await. Raises OSError ESTALE, ENOENT, …"""
        closed = []  # a loop: a tree may be deeper than Python recurses
        while inode.dir_fd < 0 and inode.pin < 0:
            closed.append(inode)
            inode, _ = self._place(inode)
        if inode.ino in self._dir_fds:
            self._dir_fds.move_to_end(inode.ino)
        fd = inode.dir_fd if inode.dir_fd >= 0 else inode.pin
        for directory in reversed(closed):
            fd = self._open_dir(directory, fd)
        return fd

    def _open_dir(self, inode: Inode, parent_fd: int) -> int:
        """Open a directory and remember its descriptor; the one that was used longest ago is closed for it."""
        fd = os.open(self._place(inode)[1], _DIR_FLAGS, dir_fd=parent_fd)
        try:
            self._check_same(inode, os.fstat(fd))
        except OSError:
            os.close(fd)
            raise
        self._close_dir(inode.ino)  # of one that was removed behind the mount's back
        inode.dir_fd = fd
        self._dir_fds[inode.ino] = inode
        if len(self._dir_fds) > self._max_dir_fds:
            self._close_dir(next(iter(self._dir_fds)))
        return fd

    def _close_dir(self, ino: Ino) -> None:
        directory = self._dir_fds.pop(ino, None)
        if directory is not None:
            os.close(directory.dir_fd)
            directory.dir_fd = -1

    def stat(self, inode: Inode) -> os.stat_result:
        """What the backing says of an inode now, also when it has no name any more."""
        if inode.file is not None:
            return os.fstat(inode.file.fd)
        if inode.dir_fd >= 0:
            return os.fstat(inode.dir_fd)
        if inode.pin >= 0:
            return os.fstat(inode.pin)
        parent, name = self._place(inode)
        found = os.stat(name, dir_fd=self.dir_fd(parent), follow_symlinks=False)
        self._check_same(inode, found)
        return found

    def open(self, inode: Inode, flags: int) -> int:
        """Open the inode itself in the vault; the caller closes. Never follows a link."""
        try:
            return self._open(inode, flags)
        except PermissionError:
            if flags & os.O_PATH:
                raise
        with self.permitted(inode):
            return self._open(inode, flags)

    def open_unnoticed(self, inode: Inode) -> int:
        """Open it to be read by the daemon for itself: where it may, no access time moves. The caller closes."""
        fd = self.open(inode, os.O_RDONLY)
        self.backing.count_reads(fd, counts=False)
        return fd

    def _open(self, inode: Inode, flags: int) -> int:
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC
        if inode.is_dir:
            return os.open(b".", flags | os.O_DIRECTORY, dir_fd=self.dir_fd(inode))
        if inode.pin >= 0:
            return os.open(f"/proc/self/fd/{inode.pin}", flags & ~os.O_NOFOLLOW | os.O_NONBLOCK)
        parent, name = self._place(inode)
        # First without opening it: what was put in its place, a fifo or a device, must not be touched. And
        # never blocking: a lease that somebody holds on the file would hold up the event loop.
        node = os.open(name, _NODE_FLAGS, dir_fd=self.dir_fd(parent))
        if flags & os.O_PATH:
            return self._same_or_closed(inode, node)
        try:
            self._check_same(inode, os.fstat(node))
            return os.open(f"/proc/self/fd/{node}", flags & ~os.O_NOFOLLOW | os.O_NONBLOCK)
        finally:
            os.close(node)

    def _same_or_closed(self, inode: Inode, fd: int) -> int:
        try:
            self._check_same(inode, os.fstat(fd))
        except OSError:
            os.close(fd)
            raise
        return fd

    def place(self, inode: Inode) -> tuple[int, bytes]:
        """A directory descriptor and a name that reach the inode now; the name is empty if it has none any more.

        Raises OSError ESTALE.
        """
        if not inode.places and inode.pin >= 0:
            return inode.pin, b""
        parent, name = self._place(inode)
        return self.dir_fd(parent), name

    def readlink(self, inode: Inode) -> bytes:
        """The backing target of a symlink, also when it has no name any more. Raises OSError."""
        dir_fd, name = self.place(inode)
        return os.readlink(name, dir_fd=dir_fd)

    @contextmanager
    def reach(self, inode: Inode) -> Iterator[str]:
        """A path that means this very inode, for the calls that take no descriptor; nothing on it can be swapped."""
        if inode.file is not None:
            yield f"/proc/self/fd/{inode.file.fd}"
        elif inode.dir_fd >= 0 or inode.pin >= 0:
            yield f"/proc/self/fd/{inode.dir_fd if inode.dir_fd >= 0 else inode.pin}"
        elif inode.is_dir:
            yield f"/proc/self/fd/{self.dir_fd(inode)}"
        else:
            fd = self.open(inode, os.O_PATH)
            try:
                yield f"/proc/self/fd/{fd}"
            finally:
                os.close(fd)

    @contextmanager
    def permitted(self, inode: Inode) -> Iterator[None]:
        """In this block the mode of a node does not keep out a daemon that is its owner and not root.

        Whether the caller may is the kernel's decision and has been made; but the daemon opens files to read
        and write, and reads a directory's id to tell its attributes. A crash in this block leaves the node open
        to its owner.
        """
        bits, user = stat.S_IRWXU if inode.is_dir else stat.S_IRUSR | stat.S_IWUSR, os.geteuid()
        if user == 0 or self.backing.read_only:
            yield
            return
        with self.reach(inode) as path:
            found = os.stat(path)
            if found.st_uid != user or found.st_mode & bits == bits:
                yield
                return
            os.chmod(path, stat.S_IMODE(found.st_mode) | bits)
            try:
                yield
            finally:
                os.chmod(path, stat.S_IMODE(found.st_mode))

    def _place(self, inode: Inode) -> tuple[Inode, bytes]:
        if not inode.places:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return inode.places.newest

    def _check_same(self, inode: Inode, found: os.stat_result) -> None:
        same = found.st_ino == inode.ino and found.st_dev == self.backing.device
        if not same or stat.S_IFMT(found.st_mode) != inode.fmt:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    # -- removal and forgetting ------------------------------------------------------------------

    def pin_before_removal(self, found: os.stat_result, dir_fd: int, name: bytes) -> None:
        """Keep an inode that loses its last name reachable, and its number taken, while the kernel knows it.

        The last one that is known: a file may have others that were not looked up since the mount began.
        """
        inode = self._inodes.get(Ino(found.st_ino))
        if inode is None or inode.pin >= 0 or (found.st_nlink > 1 and len(inode.places) > 1):
            return
        inode.pin = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)

    def removed(self, found: os.stat_result, parent: Inode, name: bytes) -> Inode | None:
        """The name was removed. Gives the inode if it is known."""
        inode = self._inodes.get(Ino(found.st_ino))
        if found.st_nlink <= 1 or stat.S_ISDIR(found.st_mode):
            self._generations.ended(found.st_ino, inode.generation if inode is not None else 0)
        if self._dir_fds.get(Ino(found.st_ino)) is not inode:
            self._close_dir(Ino(found.st_ino))  # nobody else would: it was dropped before
        if inode is not None:
            inode.drop_place(parent, name)
            inode.removed = inode.is_dir or found.st_nlink <= 1
            if not inode.removed and inode.places and inode.pin >= 0:
                os.close(inode.pin)
                inode.pin = -1
        return inode

    def forget(self, forgotten: Iterable[tuple[int, int]]) -> list[Inode]:
        """The kernel drops lookups. An inode with none is dropped unless its file is open or not settled.

        Gives those that nobody can reach any more.
        """
        gone = []
        for ino, count in forgotten:
            inode = self._inodes.get(Ino(ino))
            if inode is not None and inode is not self.root:
                inode.lookups -= count
                self.drop_if_unused(inode)
                if inode.gone:
                    gone.append(inode)
        size = sys.getsizeof(self._inodes)
        if size > _LARGE_TABLE and size > _ROOM * len(self._inodes):
            self._inodes = dict(self._inodes)  # by itself a dict never gives back the room that it once needed
            self.on_smaller()
        return gone

    def drop_if_unused(self, inode: Inode) -> None:
        """Drop an inode that nobody knows and that has nothing to store."""
        if inode.lookups > 0 or inode.file is not None or inode is self.root:
            return
        dropped = self._inodes.pop(inode.ino, None)
        if dropped is not None:
            self.roster.remove(dropped.place_in_roster)
            if inode.is_dir and not inode.removed:
                self._dropped[inode.ino] = inode
        if self._dir_fds.get(inode.ino) is inode:
            self._close_dir(inode.ino)
        if inode.pin >= 0:
            os.close(inode.pin)
            inode.pin = -1

    def close(self) -> None:
        """Let go of every descriptor but the root's."""
        for inode in self:
            inode.lookups = 0
            self.drop_if_unused(inode)
        for ino in list(self._dir_fds):
            self._close_dir(ino)
        self.roster.close()


def _check_zones_agree(inode: Inode, parent: Inode) -> None:
    """An inode is in one zone: no rename leads from one into another, so somebody carried it by hand."""
    known, found = inode.parent and inode.parent.directory, parent.directory
    if known and found and known.zone is not found.zone:
        raise Damaged("something of one zone in a directory of another")

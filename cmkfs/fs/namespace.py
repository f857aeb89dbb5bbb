"""Names: look up, make, link, rename and remove entries, so that a crash at any point leaves one state or the other.

Every backing change is one journaled operation; what needs more than one goes through a reserved name that
recovery sweeps (docs/format.md, sections 2 and 6). No await in here: each operation is atomic on the event loop.
"""

import errno
import logging
import os
import stat
from collections.abc import Mapping

from cmkfs.caller import Request
from cmkfs.errors import CrossZone, Damaged
from cmkfs.format import b64
from cmkfs.fs.backing import RENAME_EXCHANGE, RENAME_NOREPLACE, Backing, exchange_directories, rename
from cmkfs.fs.directory import (
    GONE_PREFIX,
    OWN_PREFIX,
    TEMPORARY_PREFIX,
    BackingName,
    Directories,
    backing_name,
)
from cmkfs.fs.inode import Ino, Inode
from cmkfs.fs.inodes import InodeTable
from cmkfs.fs.newnodes import NewNodes
from cmkfs.fs.symlinks import LINKS_DIR, Symlinks
from cmkfs.keys.pool import random_id

log = logging.getLogger(__name__)

Found = tuple[Inode, os.stat_result]
NO_ATTRIBUTES: Mapping[bytes, bytes] = {}


class Namespace:
    """The tree of a mount, by inode and plain name."""

    def __init__(self, backing: Backing, inodes: InodeTable, directories: Directories, symlinks: Symlinks) -> None:
        self._backing = backing
        self._inodes = inodes
        self._directories = directories
        self._symlinks = symlinks
        self._unsynced: dict[Ino, int] = {}
        self.closed: set[Inode] = set()  # directories that take no new entry now: they change their zone
        self._new = NewNodes(backing)

    # -- durability ------------------------------------------------------------------------------

    def unsynced_directories_above(self, inode: Inode) -> list[tuple[Inode, int]]:
        """Directories on the ways to all names of an inode whose entries changed and were not synced, topmost first.

        Each with the number of its changes so far, for `synced` to say which of them are durable then.
        """
        found: dict[Inode, int] = {}
        for directory, _ in inode.places if self._unsynced else ():
            way = [directory]
            while way[-1].places:
                way.append(way[-1].places.newest[0])
            found |= {above: self._unsynced[above.ino] for above in way[::-1] if above.ino in self._unsynced}
        return list(found.items())

    def synced(self, directory: Inode, changes: int) -> None:
        """The first `changes` changes of a directory are durable."""
        if self._unsynced.get(directory.ino) == changes:
            del self._unsynced[directory.ino]

    def _changed(self, directory: Inode) -> None:
        """Entries of a directory changed. Remembered only where a file's fsync does not cover them."""
        if not self._backing.kind.orders_names:
            self._unsynced[directory.ino] = self._unsynced.get(directory.ino, 0) + 1

    # -- look up ---------------------------------------------------------------------------------

    def lookup(self, parent: Inode, name: bytes) -> Found:
        """The inode called `name`. Raises FileNotFoundError, Damaged, Locked, …"""
        names = backing_name(self._directories.of(parent), name)
        found = self._stat(parent, names)
        return self._inodes.learn(found, parent, names.entry), found

    def _stat(self, parent: Inode, names: BackingName) -> os.stat_result:
        return os.stat(names.entry, dir_fd=self._inodes.dir_fd(parent), follow_symlinks=False)

    # -- make ------------------------------------------------------------------------------------

    def create(self, parent: Inode, name: bytes, mode: int, request: Request) -> tuple[Inode, int]:
        """A new regular file and its descriptor; the caller writes the header, or calls `undo_create`."""
        names = self._prepare(parent, name)
        dir_fd = self._inodes.dir_fd(parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(names.entry, flags, mode & 0o7777, dir_fd=dir_fd)
        except OSError:
            self._drop_sidecar(dir_fd, names)
            raise
        try:
            found = os.fstat(fd)
            self._new.give_away(dir_fd, fd, found, mode, request)
            inode = self._inodes.learn_new(found, parent, names.entry)
            inode.bare = True
            return inode, fd
        except BaseException:
            os.close(fd)
            os.unlink(names.entry, dir_fd=dir_fd)
            self._drop_sidecar(dir_fd, names)
            raise

    def undo_create(self, parent: Inode, name: bytes, inode: Inode) -> None:
        """The header could not be written: the name goes again."""
        names = backing_name(self._directories.of(parent), name)
        dir_fd = self._inodes.dir_fd(parent)
        os.unlink(names.entry, dir_fd=dir_fd)
        self._drop_sidecar(dir_fd, names)
        inode.drop_place(parent, names.entry)
        self._inodes.drop_if_unused(inode)

    def mknod(self, parent: Inode, name: bytes, mode: int, rdev: int, request: Request) -> Found:
        """A fifo, socket or device."""
        names = self._prepare(parent, name)
        dir_fd = self._inodes.dir_fd(parent)
        try:
            os.mknod(names.entry, mode, rdev, dir_fd=dir_fd)
        except OSError:
            self._drop_sidecar(dir_fd, names)
            raise
        return self._finish(parent, names, mode, request)

    def symlink(self, parent: Inode, name: bytes, target: bytes, request: Request) -> Found:
        """A symlink to `target`, 1 to 4,095 bytes."""
        names = self._prepare(parent, name)
        dir_fd = self._inodes.dir_fd(parent)
        sealed = b""
        try:
            sealed = self._symlinks.seal(self._directories.of(parent).zone, target)
            os.symlink(sealed, names.entry, dir_fd=dir_fd)
            if self._symlinks.has_parts(sealed):
                self._backing.changed_own(self._backing.root_fd, LINKS_DIR)
        except (OSError, Damaged):
            self._symlinks.remove_parts(sealed)
            self._drop_sidecar(dir_fd, names)
            raise
        return self._finish(parent, names, stat.S_IFLNK, request)

    def mkdir(
        self, parent: Inode, name: bytes, mode: int, request: Request, attributes: Mapping[bytes, bytes] = NO_ATTRIBUTES
    ) -> Found:
        """A directory; made under a reserved name beside, so that it never shows without its id and attributes."""
        names = self._prepare(parent, name)
        dir_fd = self._inodes.dir_fd(parent)
        temporary = TEMPORARY_PREFIX + b64.encode(random_id())
        try:
            # Its owner's rights come last: an ordinary user's daemon needs them to put the id in.
            os.mkdir(temporary, mode & 0o7777 | stat.S_IRWXU, dir_fd=dir_fd)
            try:
                self._new.fill_directory(dir_fd, temporary, self._directories.of(parent), mode, request, attributes)
                self._backing.changed_own(dir_fd, temporary)
                rename(dir_fd, temporary, dir_fd, names.entry, RENAME_NOREPLACE)
            except OSError:
                self._remove_directory(dir_fd, temporary)
                raise
        except OSError:
            self._drop_sidecar(dir_fd, names)
            raise
        self._directories.subdirectories.changed(parent, 1)
        found = self._stat(parent, names)
        return self._inodes.learn_new(found, parent, names.entry), found

    def link(self, inode: Inode, parent: Inode, name: bytes) -> Found:
        """Another name for an inode. Raises CrossZone if the names lie in different zones."""
        directory = self._directories.of(parent)
        if not inode.places:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if self._directories.of(inode.places.newest[0]).zone is not directory.zone:
            raise CrossZone("a hard link cannot lead from one zone into another")
        names = self._prepare(parent, name)
        dir_fd = self._inodes.dir_fd(parent)
        source_fd, source = self._inodes.place(inode)
        try:
            os.link(source, names.entry, src_dir_fd=source_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
        except OSError:
            self._drop_sidecar(dir_fd, names)
            raise
        found = self._stat(parent, names)
        return self._inodes.learn(found, parent, names.entry), found

    def _prepare(self, parent: Inode, name: bytes) -> BackingName:
        """The backing name for a new entry; a long one gets its sidecar first."""
        names = backing_name(self._directories.of(parent), name)
        if parent.removed:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if self.closed and parent in self.closed:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        self._changed(parent)
        if names.sidecar is not None:
            try:
                os.symlink(names.sealed, names.sidecar, dir_fd=self._inodes.dir_fd(parent))
                self._backing.changed_own(self._inodes.dir_fd(parent))
            except FileExistsError:
                log.debug("a long name's sidecar is there already")
        return names

    def _drop_sidecar(self, dir_fd: int, names: BackingName) -> None:
        """Remove a sidecar whose entry is not there (any more)."""
        if names.sidecar is None:
            return
        try:
            os.stat(names.entry, dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            _unlink_if_there(names.sidecar, dir_fd)

    def _finish(self, parent: Inode, names: BackingName, mode: int, request: Request) -> Found:
        """Give a new node to who asked for it, and know it."""
        dir_fd = self._inodes.dir_fd(parent)
        try:
            with self._new.just_made(dir_fd, names.entry, stat.S_IFMT(mode)) as (fd, found):
                self._new.give_away(dir_fd, fd, found, mode, request)
                given = os.fstat(fd)
        except BaseException:
            _unlink_if_there(names.entry, dir_fd)
            self._drop_sidecar(dir_fd, names)
            raise
        return self._inodes.learn_new(given, parent, names.entry), given

    # -- remove ----------------------------------------------------------------------------------

    def unlink(self, parent: Inode, name: bytes) -> Inode | None:
        """Remove a name that is no directory's; gives the inode if the kernel knows it."""
        names = backing_name(self._directories.of(parent), name)
        dir_fd = self._inodes.dir_fd(parent)
        found = self._stat(parent, names)
        target = self._last_long_target(found, dir_fd, names.entry)
        self._inodes.pin_before_removal(found, dir_fd, names.entry)
        os.unlink(names.entry, dir_fd=dir_fd)
        self._symlinks.remove_parts(target)
        self._drop_sidecar(dir_fd, names)
        return self._inodes.removed(found, parent, names.entry)

    def _last_long_target(self, found: os.stat_result, dir_fd: int, entry: bytes) -> bytes:
        """The backing target of a symlink that is about to lose its last name, empty for everything else."""
        if not stat.S_ISLNK(found.st_mode) or found.st_nlink > 1:
            return b""
        return os.readlink(entry, dir_fd=dir_fd)

    def rmdir(self, parent: Inode, name: bytes) -> Inode | None:
        """Remove an empty directory: first to a reserved name, so that a crash leaves it whole or swept."""
        names = backing_name(self._directories.of(parent), name)
        dir_fd = self._inodes.dir_fd(parent)
        found = self._stat(parent, names)
        if not stat.S_ISDIR(found.st_mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        self._refuse_zone_root(parent, name)
        inode = self._inodes.learn(found, parent, names.entry)
        self._directories.of(inode)
        self.check_empty(inode)
        self._inodes.pin_before_removal(found, dir_fd, names.entry)
        gone = GONE_PREFIX + b64.encode(random_id())
        rename(dir_fd, names.entry, dir_fd, gone)
        self._remove_directory(dir_fd, gone)
        self._drop_sidecar(dir_fd, names)
        self._forget_directory(inode, found, parent, names.entry)
        return inode

    def check_empty(self, inode: Inode) -> None:
        """Raise OSError ENOTEMPTY unless a directory has no entry but the vault's own."""
        fd = self._inodes.open(inode, os.O_RDONLY)
        try:
            with os.scandir(fd) as entries:
                if any(not os.fsencode(entry.name).startswith(OWN_PREFIX) for entry in entries):
                    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        finally:
            os.close(fd)

    def _remove_directory(self, dir_fd: int, name: bytes) -> None:
        """Remove a directory in which there is nothing but the vault's own."""
        fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            itself = f"/proc/self/fd/{fd}"
            if os.geteuid() != 0:
                os.chmod(itself, stat.S_IRWXU)
            for entry in os.listdir(itself):
                os.unlink(entry, dir_fd=fd)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=dir_fd)

    def _forget_directory(self, inode: Inode, found: os.stat_result, parent: Inode, entry: bytes) -> None:
        self._directories.forget_removed(inode)
        self._directories.subdirectories.changed(parent, -1)
        self._inodes.removed(found, parent, entry)

    def _refuse_zone_root(self, parent: Inode, name: bytes) -> None:
        """Raise OSError EBUSY for a zone's root. With EXDEV `mv` would copy it all out, under the CMK around it."""
        if self._directories.is_zone_place(self._directories.of(parent), name):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    # -- rename ----------------------------------------------------------------------------------

    def rename(self, source_dir: Inode, source: bytes, target_dir: Inode, target: bytes, flags: int) -> Inode | None:
        """rename(2) and renameat2(2) with NOREPLACE or EXCHANGE; gives the inode that lost its name."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if self._directories.of(source_dir).zone is not self._directories.of(target_dir).zone:
            raise CrossZone("a rename cannot lead from one zone into another")
        inode, found = self.lookup(source_dir, source)
        self._refuse_zone_root(source_dir, source)
        self._refuse_zone_root(target_dir, target)
        if flags & RENAME_EXCHANGE:
            self._exchange(source_dir, source, target_dir, target)
            return None
        names = self._prepare(target_dir, target)
        try:
            return self._move(source_dir, source, target_dir, names, inode, found, flags)
        finally:
            # The target's sidecar if nothing came of it; it stays if its entry is there.
            self._drop_sidecar(self._inodes.dir_fd(target_dir), names)

    def _move(
        self,
        source_dir: Inode,
        source: bytes,
        target_dir: Inode,
        names: BackingName,
        inode: Inode,
        found: os.stat_result,
        flags: int,
    ) -> Inode | None:
        old = backing_name(self._directories.of(source_dir), source)
        source_fd, target_fd = self._inodes.dir_fd(source_dir), self._inodes.dir_fd(target_dir)
        try:
            replaced = os.stat(names.entry, dir_fd=target_fd, follow_symlinks=False)
        except FileNotFoundError:
            replaced = None
        if replaced is not None and replaced.st_ino == found.st_ino and not flags:
            return None  # two links of one inode: rename(2) does nothing
        if replaced is not None and stat.S_ISDIR(replaced.st_mode) and not flags & RENAME_NOREPLACE:
            lost: Inode | None = self._replace_directory(source_fd, old.entry, target_dir, names, replaced, inode)
        else:
            target = b""
            if replaced is not None:
                target = self._last_long_target(replaced, target_fd, names.entry)
                self._inodes.pin_before_removal(replaced, target_fd, names.entry)
            rename(source_fd, old.entry, target_fd, names.entry, flags)
            self._symlinks.remove_parts(target)
            lost = self._inodes.removed(replaced, target_dir, names.entry) if replaced is not None else None
        inode.drop_place(source_dir, old.entry)
        inode.add_place(target_dir, names.entry)
        self._directories.subdirectories.moved(inode, source_dir, target_dir)
        self._drop_sidecar(source_fd, old)
        return lost

    def _replace_directory(
        self,
        source_fd: int,
        source: bytes,
        target_dir: Inode,
        names: BackingName,
        replaced: os.stat_result,
        inode: Inode,
    ) -> Inode:
        """rename over an empty directory: exchange, then remove the old one under its new name.

        The vault's directories are never empty, so a plain rename would be refused; a crash between the two
        steps leaves the empty directory under the old name.
        """
        if not inode.is_dir:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        old = self._inodes.learn(replaced, target_dir, names.entry)
        self._directories.of(old)
        self.check_empty(old)
        target_fd = self._inodes.dir_fd(target_dir)
        self._inodes.pin_before_removal(replaced, target_fd, names.entry)
        exchange_directories(source_fd, source, target_fd, names.entry)
        gone = GONE_PREFIX + b64.encode(random_id())
        rename(source_fd, source, source_fd, gone)
        self._remove_directory(source_fd, gone)
        self._forget_directory(old, replaced, target_dir, names.entry)
        return old

    def _exchange(self, source_dir: Inode, source: bytes, target_dir: Inode, target: bytes) -> None:
        """Both names go on existing, so no sidecar changes."""
        first, _ = self.lookup(source_dir, source)
        second, _ = self.lookup(target_dir, target)
        old = backing_name(self._directories.of(source_dir), source)
        new = backing_name(self._directories.of(target_dir), target)
        rename(self._inodes.dir_fd(source_dir), old.entry, self._inodes.dir_fd(target_dir), new.entry, RENAME_EXCHANGE)
        for inode, before, after in (
            (first, (source_dir, old.entry), (target_dir, new.entry)),
            (second, (target_dir, new.entry), (source_dir, old.entry)),
        ):
            inode.drop_place(*before)
            inode.add_place(*after)
            self._directories.subdirectories.moved(inode, before[0], after[0])


def _unlink_if_there(name: bytes, dir_fd: int) -> None:
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        log.debug("a sidecar was gone already")

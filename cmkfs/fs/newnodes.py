"""Giving a node that was just made to who asked for it, by descriptor and never by name.

Whoever may write the directory in the vault can put another node, or a symlink, in the place of a new one. What is
given to a user must be what the daemon made: by name it would give away any file of the host.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from cmkfs.caller import Request
from cmkfs.errors import Damaged
from cmkfs.fs.backing import Backing, chown
from cmkfs.fs.directory import DIR_ID, Directory
from cmkfs.fs.xattrs import seal_attributes
from cmkfs.keys.pool import random_id


class NewNodes:
    """Owners and rights of what a mount makes."""

    def __init__(self, backing: Backing) -> None:
        self._backing = backing
        self._is_root = os.geteuid() == 0

    @contextmanager
    def just_made(self, dir_fd: int, name: bytes, fmt: int) -> Iterator[tuple[int, os.stat_result]]:
        """The node that was made a moment ago, by descriptor. Raises Damaged if something else is there now."""
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            found = os.fstat(fd)
            made = stat.S_IFMT(found.st_mode) == fmt and found.st_uid == os.geteuid()
            if not made or found.st_dev != self._backing.device or (found.st_nlink != 1 and fmt != stat.S_IFDIR):
                raise Damaged("something was put in the place of a new node")
            yield fd, found
        finally:
            os.close(fd)

    def fill_directory(
        self,
        dir_fd: int,
        temporary: bytes,
        directory: Directory,
        mode: int,
        request: Request,
        attributes: Mapping[bytes, bytes],
    ) -> None:
        """Give a directory that was just made as `temporary` its id, its first attributes, its owner and rights."""
        dir_id = random_id()
        with self.just_made(dir_fd, temporary, stat.S_IFDIR) as (fd, found):
            # Fails if it is a directory of the vault already, put in the place of the new one.
            os.symlink(directory.zone.keys.seal_dir_id(dir_id), DIR_ID, dir_fd=fd)
            if attributes:
                seal_attributes(f"/proc/self/fd/{fd}", directory.zone, dir_id, attributes)
            self.give_away(dir_fd, fd, found, 0, request)
            if mode & stat.S_IRWXU != stat.S_IRWXU:
                # What it has beside, setgid of its parent among them, stays.
                rights = stat.S_IMODE(found.st_mode) & ~stat.S_IRWXU | mode & stat.S_IRWXU
                os.chmod(f"/proc/self/fd/{fd}", rights)

    def give_away(self, dir_fd: int, fd: int, found: os.stat_result, mode: int, request: Request) -> None:
        """Make a new node in the directory `dir_fd` its owner's. Raises OSError (EDQUOT)."""
        owner = self._owner(dir_fd, found, request)
        if owner is not None:
            chown(fd, *owner)
            if mode & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISLNK(found.st_mode):
                os.chmod(f"/proc/self/fd/{fd}", mode & 0o7777)  # chown takes them away

    def _owner(self, dir_fd: int, found: os.stat_result, request: Request) -> tuple[int, int] | None:
        """Whom a new node must be given to, None if it is theirs: who asked, and the group of a setgid directory."""
        if not self._is_root:
            return None
        inherits = os.fstat(dir_fd).st_mode & stat.S_ISGID
        owner = (request.uid, found.st_gid if inherits else request.gid)
        return None if owner == (found.st_uid, found.st_gid) else owner

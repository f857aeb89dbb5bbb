"""Changing attributes: size, mode, owner, times, and the privileges that a change of content takes away."""

import errno
import os
import stat
from functools import partial

import trio

from cmkfs.caller import Request
from cmkfs.fs.forgetting import Device
from cmkfs.fs.inode import Inode
from cmkfs.fs.inodes import InodeTable
from cmkfs.fs.openfile import OpenFile
from cmkfs.fs.opening import FileOpener
from cmkfs.fs.permissions import Permissions, in_group
from cmkfs.fuse.messages import Changes
from cmkfs.keys.zone import Zone

_TICK_NS = 10_000_000
"""The clock that times of files are taken from moves every 1 to 10 ms (CONFIG_HZ)."""


class Setattr:
    """Applies SETATTR, and clears setuid and setgid where Linux does, since the kernel leaves that to the daemon."""

    def __init__(self, inodes: InodeTable, opener: FileOpener, permissions: Permissions) -> None:
        self._permissions = permissions
        self._inodes = inodes
        self._opener = opener
        self._device: Device | None = None

    def use(self, device: Device) -> None:
        """From now on this kernel connection is told of what changes without its knowing."""
        self._device = device

    async def apply(
        self,
        inode: Inode,
        zone: Zone,
        changes: Changes,
        request: Request,
    ) -> None:
        """Set all that `changes` names. Raises OSError, Damaged, Locked, …"""
        if changes.size is not None:
            await self._resize(inode, zone, changes.size, request, kill_suidgid=changes.kill_suidgid)
        if changes.size is None or changes.more_than_size:
            if self.is_so(inode, changes):
                return
            if changes.more_than_times or changes.atime_ns is not None:
                inode.ctime_moved = True
            with self._inodes.reach(inode) as path:
                self._change(path, inode, changes, request)
                if changes.atime_ns is not None or changes.mtime_ns is not None:
                    _set_times(path, inode.file, changes)
            if changes.mode is not None:
                await self._permissions.follow_mode(inode, zone, changes.mode)

    def is_so(self, inode: Inode, changes: Changes) -> bool:
        """True if times alone are to be set, and are so: the kernel sends them again when a name of the file changed.

        Then the change of the name has moved ctime in the vault a moment ago.
        """
        if changes.more_than_times or changes.atime_ns is not None:
            return False
        if changes.mtime_ns is None or changes.ctime_ns is None:
            return False
        found = self._inodes.stat(inode)
        kept = None if inode.file is None else inode.file.pages.mtime_ns
        mtime_ns = found.st_mtime_ns if kept is None else kept
        return mtime_ns == changes.mtime_ns and changes.ctime_ns - found.st_ctime_ns <= _TICK_NS

    def _change(self, path: str, inode: Inode, changes: Changes, request: Request) -> None:
        if changes.uid is not None or changes.gid is not None or not changes.more_than_size:
            # Nothing named is chown(path, -1, -1), which takes setuid and setgid away like every chown.
            _check_privileges(path, inode, request)
            os.chown(path, -1 if changes.uid is None else changes.uid, -1 if changes.gid is None else changes.gid)
        if changes.mode is not None:
            os.chmod(path, stat.S_IMODE(changes.mode))

    async def _resize(self, inode: Inode, zone: Zone, size: int, request: Request, *, kill_suidgid: bool) -> None:
        file = await self._opener.open(inode, zone)
        file.handles += 1
        try:
            await self.truncate(file, size, request, kill_suidgid=kill_suidgid)
        finally:
            file.handles -= 1
            self._opener.release(file)

    async def truncate(self, file: OpenFile, size: int, request: Request, *, kill_suidgid: bool) -> None:
        """Set the size of an open file, as SETATTR or O_TRUNC wants it."""
        if size == 0:
            await self._opener.truncate_to_zero(file)
        else:
            await file.truncate(size)
        if kill_suidgid:
            await self.kill_suidgid(file, request)

    async def kill_suidgid(self, file: OpenFile, request: Request) -> None:
        """Content was changed by who has no CAP_FSETID, as the kernel says: setuid and setgid go (inode(7))."""
        found = os.fstat(file.fd)
        mode = found.st_mode
        kept = mode & ~stat.S_ISUID
        if mode & stat.S_IXGRP or not in_group(request, found.st_gid):
            kept &= ~stat.S_ISGID
        if kept != mode:
            os.fchmod(file.fd, stat.S_IMODE(kept))
            if self._device is not None:  # the kernel has cached the mode
                await trio.to_thread.run_sync(partial(self._device.invalidate_inode, file.inode.ino, attr_only=True))


def _set_times(path: str, file: OpenFile | None, changes: Changes) -> None:
    now = os.stat(path)
    kept = file.pages.mtime_ns if file is not None else None
    atime = now.st_atime_ns if changes.atime_ns is None else changes.atime_ns
    mtime = now.st_mtime_ns if kept is None else kept
    if changes.mtime_ns is not None:
        mtime = changes.mtime_ns
    os.utime(path, ns=(atime, mtime))
    if file is not None and kept is not None:
        file.pages.mtime_ns = mtime


def _check_privileges(path: str, inode: Inode, request: Request) -> None:
    """Before a chown by a user: a setgid bit that is not theirs to leave goes (fs/attr.c). Raises OSError EPERM.

    The kernel leaves that to the daemon, whose own chown would leave the bit, because it is root's. A chown that
    changes nothing is also what it sends before a write to a file that has such bits; so whoever is not the owner
    may do it while somebody has the file open.
    """
    found = os.stat(path)
    if request.uid == 0 or not found.st_mode & (stat.S_ISUID | stat.S_ISGID) or inode.is_dir:
        return
    member = in_group(request, found.st_gid)
    if found.st_mode & (stat.S_ISUID | stat.S_IXGRP) or not member:
        if request.uid != found.st_uid and (inode.file is None or not inode.file.handles):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if not member:
            os.chmod(path, stat.S_IMODE(found.st_mode) & ~stat.S_ISGID)

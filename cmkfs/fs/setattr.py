"""Changing attributes: size, mode, owner, times, and the privileges that a change of content takes away."""

import errno
import os
import stat

import pyfuse3
import trio

from cmkfs.fs.inodes import Inode, InodeTable
from cmkfs.fs.openfile import OpenFile
from cmkfs.fs.opening import FileOpener
from cmkfs.fs.permissions import Permissions, in_group
from cmkfs.keys.policies import Request
from cmkfs.keys.zone import Zone


class Setattr:
    """Applies SETATTR, and clears setuid and setgid where Linux does, since the kernel leaves that to the daemon."""

    def __init__(self, inodes: InodeTable, opener: FileOpener, permissions: Permissions) -> None:
        self._permissions = permissions
        self._inodes = inodes
        self._opener = opener

    async def apply(
        self,
        inode: Inode,
        zone: Zone,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        request: Request,
    ) -> None:
        """Set all that `fields` names. Raises OSError, Damaged, Locked, …"""
        if fields.update_size:
            await self._resize(inode, zone, attr.st_size, request)
        if not fields.update_size or _more_than_size(fields):
            inode.may_be_setid = True
            with self._inodes.reach(inode) as path:
                self._change(path, inode, attr, fields, request)
                if fields.update_atime or fields.update_mtime:
                    _set_times(path, inode.file, attr, fields)
            if fields.update_mode:
                await self._permissions.follow_mode(inode, zone, attr.st_mode)

    def _change(
        self,
        path: str,
        inode: Inode,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        request: Request,
    ) -> None:
        if fields.update_uid or fields.update_gid or not _more_than_size(fields):
            # Nothing named is chown(path, -1, -1), which takes setuid and setgid away like every chown.
            _check_privileges(path, inode, request)
            os.chown(path, attr.st_uid if fields.update_uid else -1, attr.st_gid if fields.update_gid else -1)
        if fields.update_mode:
            os.chmod(path, stat.S_IMODE(attr.st_mode))

    async def _resize(self, inode: Inode, zone: Zone, size: int, request: Request) -> None:
        file = await self._opener.open(inode, zone)
        file.handles += 1
        try:
            await self.truncate(file, size, request)
        finally:
            file.handles -= 1
            self._opener.release(file)

    async def truncate(self, file: OpenFile, size: int, request: Request) -> None:
        """Set the size of an open file, as SETATTR or O_TRUNC wants it."""
        if size == 0:
            await self._opener.truncate_to_zero(file)
        else:
            await file.truncate(size)
        await self.after_write(file, request)

    async def after_write(self, file: OpenFile, request: Request) -> None:
        """Content changed: setuid and setgid go, unless root changed it (CAP_FSETID, inode(7))."""
        if request.uid == 0 or not file.inode.may_be_setid:
            return
        found = os.fstat(file.fd)
        mode = found.st_mode
        kept = mode & ~stat.S_ISUID
        if mode & stat.S_IXGRP or not in_group(request, found.st_gid):
            kept &= ~stat.S_ISGID
        # A setgid bit that this caller may leave is looked at again for the next one.
        file.inode.may_be_setid = bool(kept & stat.S_ISGID)
        if kept != mode:
            os.fchmod(file.fd, stat.S_IMODE(kept))
            await trio.to_thread.run_sync(lambda: pyfuse3.invalidate_inode(file.inode.ino, attr_only=True))


def _set_times(path: str, file: OpenFile | None, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields) -> None:
    now = os.stat(path)
    kept = file.pages.mtime_ns if file is not None else None
    atime = attr.st_atime_ns if fields.update_atime else now.st_atime_ns
    mtime = now.st_mtime_ns if kept is None else kept
    if fields.update_mtime:
        mtime = attr.st_mtime_ns
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


def _more_than_size(fields: pyfuse3.SetattrFields) -> bool:
    return bool(
        fields.update_mode or fields.update_uid or fields.update_gid or fields.update_atime or fields.update_mtime
    )

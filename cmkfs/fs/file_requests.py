"""Requests about content: open, create, read, write, sync and close files."""

import errno
import os
import time
from typing import NoReturn

from cmkfs.caller import Request
from cmkfs.errors import CmkfsError
from cmkfs.fs.handles import FileHandle, actions_of
from cmkfs.fs.name_requests import NameRequests
from cmkfs.fs.openfile import OpenFile
from cmkfs.fuse.messages import Buffer, Entry, Opened
from cmkfs.keys.zone import ZoneState
from cmkfs.policy import Action

_OPENED = ("open.read", "open.write", "open.readwrite", "open.read")
"""What an open is called in the audit log, by its O_ACCMODE."""


class FileRequests(NameRequests):
    """Handlers of open files."""

    async def open(self, inode: int, flags: int, kill_suidgid: bool, request: Request) -> Opened:
        began = time.monotonic_ns()
        node = self._inodes[inode]
        zone, rule = self._allowed_by(node, request, *actions_of(flags))
        changes = self._keyring.policies.changes
        file = await self._opener.open(node, zone)
        if node.retired or changes != self._keyring.policies.changes:
            self._recheck_open(file, request, flags)
        number = self.handles.add_file(FileHandle(file, request, flags))
        try:
            self._reporting.used(_OPENED[flags & os.O_ACCMODE], file, request, rule, began)
            if flags & os.O_TRUNC:
                await self._setattr.truncate(file, 0, request, kill_suidgid=kill_suidgid)
            opened = Opened(number, await self.access_times.opened(file, flags))
            zone.check()
        except BaseException:
            await self.release(number)
            raise
        return opened

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, umask: int, request: Request
    ) -> tuple[Opened, Entry]:
        parent = self._inodes[parent_inode]
        zone = self._directories.of(parent).zone
        actions = actions_of(flags & ~os.O_TRUNC)
        for action in (Action.CREATE, *actions):
            self._keyring.authorize(zone, request, action)
        inode = await self._create(parent, name, mode, umask, request, *actions)
        assert inode.file is not None
        number = self.handles.add_file(FileHandle(inode.file, request, flags))
        return Opened(number), self._entry(inode, os.fstat(inode.file.fd))

    async def read(self, fh: int, off: int, size: int) -> Buffer:
        handle = self.handles.files[fh]
        if handle.retired:
            self._refuse_retired(handle)
        data = await handle.file.read(off, size, counts=handle.reads_count)
        if handle.retired:  # meanwhile
            self._refuse_retired(handle)
        return data

    def _recheck_open(self, file: OpenFile, request: Request, flags: int) -> None:
        """The policy changed while the file was being opened, or its inode waits to be looked up anew."""
        try:
            self._allowed(file.inode, request, *actions_of(flags))
            if file.inode.retired:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        except (CmkfsError, OSError):
            self._opener.release(file)
            raise

    def _refuse_retired(self, handle: FileHandle) -> NoReturn:
        """Raises PolicyDenied for who may not read any more, ESTALE for who must open the file again."""
        self._keyring.authorize(handle.file.zone, handle.request, Action.READ)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    async def write(self, fh: int, off: int, buf: Buffer, kill_suidgid: bool) -> int:
        handle = self.handles.files[fh]
        zone = handle.file.zone
        if zone.state is ZoneState.SETTLING:
            self.stored_while_settling += len(buf)
        elif zone.state is ZoneState.LOCKED:
            self.refused_bytes += len(buf)
        written = await handle.file.write(off, buf)
        if kill_suidgid:
            await self._setattr.kill_suidgid(handle.file, handle.request)
        return written

    async def release(self, fh: int) -> None:
        handle = self.handles.files.pop(fh, None)
        if handle is not None:
            handle.file.handles -= 1
            self._opener.release(handle.file)

    async def fsync(self, fh: int, datasync: bool) -> None:
        file = self.handles.files[fh].file
        file.zone.check()
        await self._sync_directories(file.inode)
        await file.fsync()

"""Requests about content: open, create, read, write, sync and close files."""

import errno
import os
import time
from typing import NoReturn, cast

import pyfuse3

from cmkfs.errors import CmkfsError
from cmkfs.fs.guard import guarded
from cmkfs.fs.handles import FileHandle, actions_of
from cmkfs.fs.name_requests import NameRequests
from cmkfs.fs.openfile import OpenFile
from cmkfs.fs.request_handlers import request_of
from cmkfs.keys.zone import ZoneState
from cmkfs.policy import Action

_OPENED = ("open.read", "open.write", "open.readwrite", "open.read")
"""What an open is called in the audit log, by its O_ACCMODE."""


class FileRequests(NameRequests):
    """Handlers of open files."""

    @guarded
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        began = time.monotonic_ns()
        node = self._inodes[inode]
        zone, rule = self._allowed_by(node, ctx, *actions_of(flags))
        changes = self._keyring.policies.changes
        file = await self._opener.open(node, zone)
        request = request_of(ctx)
        if node.retired or changes != self._keyring.policies.changes:
            self._recheck_open(file, ctx, flags)
        number = self.handles.add_file(FileHandle(file, request, flags))
        try:
            self._reporting.used(_OPENED[flags & os.O_ACCMODE], file, request, rule, began)
            if flags & os.O_TRUNC:
                await self._setattr.truncate(file, 0, request)
            zone.check()
        except BaseException:
            await self.release(number)
            raise
        return pyfuse3.FileInfo(fh=number, keep_cache=True)

    @guarded
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        parent = self._inodes[parent_inode]
        request, zone = request_of(ctx), self._directories.of(parent).zone
        actions = actions_of(flags & ~os.O_TRUNC)
        for action in (Action.CREATE, *actions):
            self._keyring.authorize(zone, request, action)
        inode = await self._create(parent, name, mode, ctx, *actions)
        assert inode.file is not None
        number = self.handles.add_file(FileHandle(inode.file, request, flags))
        return pyfuse3.FileInfo(fh=number, keep_cache=True), self._entry(inode, os.fstat(inode.file.fd))

    @guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        handle = self.handles.files[fh]
        if handle.retired:
            self._refuse_retired(handle)
        data = await handle.file.read(off, size)
        if handle.retired:  # meanwhile
            self._refuse_retired(handle)
        return cast(bytes, data)  # any buffer will do

    def _recheck_open(self, file: OpenFile, ctx: pyfuse3.RequestContext, flags: int) -> None:
        """The policy changed while the file was being opened, or its inode waits to be looked up anew."""
        try:
            self._allowed(file.inode, ctx, *actions_of(flags))
            if file.inode.retired:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        except (CmkfsError, OSError):
            self._opener.release(file)
            raise

    def _refuse_retired(self, handle: FileHandle) -> NoReturn:
        """Raises PolicyDenied for who may not read any more, ESTALE for who must open the file again."""
        self._keyring.authorize(handle.file.zone, handle.request, Action.READ)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    @guarded
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        handle = self.handles.files[fh]
        zone = handle.file.zone
        if zone.state is ZoneState.SETTLING:
            self.stored_while_settling += len(buf)
        elif zone.state is ZoneState.LOCKED:
            self.refused_bytes += len(buf)
        written = await handle.file.write(off, buf)
        await self._setattr.after_write(handle.file, handle.request)
        return written

    @guarded
    async def flush(self, fh: int) -> None:
        # Everything is with the daemon by now; answering so once saves a request for each close.
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @guarded
    async def release(self, fh: int) -> None:
        handle = self.handles.files.pop(fh, None)
        if handle is not None:
            handle.file.handles -= 1
            self._opener.release(handle.file)

    @guarded
    async def fsync(self, fh: int, datasync: bool) -> None:
        file = self.handles.files[fh].file
        file.zone.check()
        await self._sync_directories(file.inode)
        await file.fsync()

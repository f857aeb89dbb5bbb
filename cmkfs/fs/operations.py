"""The FUSE requests, translated: kernel types in, one call down, one value back. Nothing is decided here.

Who may is `keys.keyring`, names are `fs.namespace`, content is `fs.openfile`. A reply gives out data or
attributes only if its zone serves at that moment: the last check stands right before the return, with no await
between (a reply that overtook a lock would fill the kernel's cache again).
"""

import errno
import os
import stat

from cmkfs.caller import Request
from cmkfs.fs.file_requests import FileRequests
from cmkfs.fs.inode import ROOT_INO
from cmkfs.fs.request_handlers import ANY_ACTION
from cmkfs.fs.xattr_requests import XattrRequests
from cmkfs.fuse.messages import Changes, Entry
from cmkfs.fuse.session import Requests
from cmkfs.keys.zone import ZoneState
from cmkfs.policy import Action


class Operations(FileRequests, XattrRequests):
    """All handlers of a mount: those of files, names and attributes, and here those of inodes."""

    async def lookup(self, parent_inode: int, name: bytes, request: Request) -> Entry:
        parent = self._inodes[parent_inode]
        self._keyring.authorize_any(self._directories.of(parent).zone, request, ANY_ACTION)
        try:
            node, found = self._namespace.lookup(parent, name)
            node.retired = False  # the kernel is told its new generation now
            return self._entry(node, found)
        except FileNotFoundError:
            return self._attributes.missing(parent)

    async def getattr(self, inode: int, request: Request) -> Entry:
        node = self._inodes[inode]
        if inode != ROOT_INO:
            # The root always answers, or nothing could unmount it.
            self._keyring.authorize_any(self.zone_of_attributes(node), request, ANY_ACTION)
        else:
            Requests.quiet += 1
        if node.retired:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self._attributes.of(node)

    async def setattr(
        self,
        inode: int,
        changes: Changes,
        fh: int | None,
        request: Request,
    ) -> Entry:
        node = self._inodes[inode]
        handle = self.handles.files.get(fh) if fh is not None else None
        retired = node.retired or (handle is not None and handle.retired)
        if retired and changes.more_than_times:  # the times come with dirty pages that are stored
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        zone = self.zone_of(node)
        rule = ""
        if handle is None or not handle.writable:
            if self._setattr.is_so(node, changes):  # of whoever renames or links it, who need not be allowed to write
                zone.check()
                return self._attributes.of(node)
            rule = self._allowed_by(node, request, Action.WRITE)[1]
        if changes.size is not None and handle is None and node.fmt == stat.S_IFREG:
            async with self._owned(node, zone, lambda: self._allowed(node, request, Action.WRITE)):
                assert node.file is not None
                self._reporting.used("truncate", node.file, request, rule)
                await self._setattr.apply(node, zone, changes, request)
        else:
            await self._setattr.apply(node, zone, changes, request)
        if zone.state is not ZoneState.SETTLING:
            zone.check()
        return self._attributes.of(node)

    async def statfs(self, request: Request) -> os.statvfs_result:
        Requests.quiet += 1
        return os.fstatvfs(self._backing.root_fd)

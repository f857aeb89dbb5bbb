"""The FUSE requests, translated: kernel types in, one call down, one value back. Nothing is decided here.

Who may is `keys.keyring`, names are `fs.namespace`, content is `fs.openfile`. A reply gives out data or
attributes only if its zone serves at that moment: the last check stands right before the return, with no await
between (a reply that overtook a lock would fill the kernel's cache again).
"""

import errno
import os
import stat
from collections.abc import Sequence

import pyfuse3

from cmkfs.fs.attributes import filesystem_attributes
from cmkfs.fs.file_requests import FileRequests
from cmkfs.fs.guard import Requests, guarded
from cmkfs.fs.inodes import ROOT_INO
from cmkfs.fs.request_handlers import ANY_ACTION, request_of
from cmkfs.fs.xattr_requests import XattrRequests
from cmkfs.keys.zone import ZoneState
from cmkfs.policy import Action


class Operations(FileRequests, XattrRequests):
    """All handlers of a mount: those of files, names and attributes, and here those of inodes."""

    @guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        parent = self._inodes[parent_inode]
        self._keyring.authorize_any(self._directories.of(parent).zone, request_of(ctx), ANY_ACTION)
        try:
            node, found = self._namespace.lookup(parent, name)
            node.retired = False  # the kernel is told its new generation now
            return self._entry(node, found)
        except FileNotFoundError:
            return self._attributes.missing()

    @guarded
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        node = self._inodes[inode]
        if inode != ROOT_INO:
            # The root always answers, or nothing could unmount it.
            self._keyring.authorize_any(self.zone_of_attributes(node), request_of(ctx), ANY_ACTION)
        else:
            Requests.quiet += 1
        if node.retired:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self._attributes.of(node)

    @guarded
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        node = self._inodes[inode]
        if node.retired and _more_than_times(fields):  # the times come with dirty pages that are stored
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        handle = self.handles.files.get(fh) if fh is not None else None
        rule = ""
        if handle is None or not handle.writable:
            _, rule = self._allowed_by(node, ctx, Action.WRITE)
        zone = self.zone_of(node)
        if fields.update_size and handle is None and node.fmt == stat.S_IFREG:
            async with self._xattrs.owned(node, zone):
                assert node.file is not None
                self._reporting.used("truncate", node.file, request_of(ctx), rule)
                await self._setattr.apply(node, zone, attr, fields, request_of(ctx))
        else:
            await self._setattr.apply(node, zone, attr, fields, request_of(ctx))
        if zone.state is not ZoneState.SETTLING:
            zone.check()
        return self._attributes.of(node)

    @guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        Requests.quiet += 1
        return filesystem_attributes(self._backing.root_fd)

    @guarded
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        Requests.quiet += 1
        for inode in self._inodes.forget(inode_list):
            self._lost_name(inode)


def _more_than_times(fields: pyfuse3.SetattrFields) -> bool:
    return bool(fields.update_size or fields.update_mode or fields.update_uid or fields.update_gid)

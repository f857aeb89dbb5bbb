"""Requests about names: make, link, rename and remove entries, follow and list them."""

import errno
import os
import stat
import time

import pyfuse3

from cmkfs.fs.guard import guarded
from cmkfs.fs.handles import DirHandle
from cmkfs.fs.inodes import Inode
from cmkfs.fs.request_handlers import ANY_ACTION, RequestHandlers, request_of
from cmkfs.policy import Action


class NameRequests(RequestHandlers):
    """Handlers of names, links and directories."""

    @guarded
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self._inodes[parent_inode]
        directory = self._allowed_in(parent, ctx, Action.CREATE)
        new = self._permissions.for_new(parent, directory.zone, mode | stat.S_IFDIR, ctx.umask)
        return self._entry(*self._namespace.mkdir(parent, name, new.mode, request_of(ctx), new.acls))

    @guarded
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self._inodes[parent_inode]
        directory = self._allowed_in(parent, ctx, Action.CREATE)
        if stat.S_ISREG(mode):
            inode = await self._create(parent, name, mode, ctx)
            return self._entry(inode, self._inodes.stat(inode))
        new = self._permissions.for_new(parent, directory.zone, mode, ctx.umask)
        inode, found = self._namespace.mknod(parent, name, new.narrow_mode, rdev, request_of(ctx))
        if new.acls:
            try:
                self._permissions.give(inode, directory.zone, new)
            except OSError:
                self._lost_name(self._namespace.unlink(parent, name))
                raise
            found = self._inodes.stat(inode)
        return self._entry(inode, found)

    @guarded
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self._inodes[parent_inode]
        self._allowed_in(parent, ctx, Action.CREATE)
        return self._entry(*self._namespace.symlink(parent, name, target, request_of(ctx)))

    @guarded
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self._inodes[new_parent_inode]
        self._allowed_in(parent, ctx, Action.CREATE)
        return self._entry(*self._namespace.link(self._inodes[inode], parent, new_name))

    @guarded
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        parent = self._inodes[parent_inode]
        self._allowed_in(parent, ctx, Action.DELETE)
        self._lost_name(self._namespace.unlink(parent, name))

    @guarded
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        parent = self._inodes[parent_inode]
        self._allowed_in(parent, ctx, Action.DELETE)
        self._lost_name(self._namespace.rmdir(parent, name))

    @guarded
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        old, new = self._inodes[parent_inode_old], self._inodes[parent_inode_new]
        self._allowed_in(old, ctx, Action.DELETE)
        self._allowed_in(new, ctx, Action.CREATE)
        self._lost_name(self._namespace.rename(old, name_old, new, name_new, flags))

    @guarded
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        node = self._inodes[inode]
        zone = self.zone_of(node)
        self._keyring.authorize_any(zone, request_of(ctx), ANY_ACTION)
        target = self._inodes.readlink(node)
        if node.removed and self._symlinks.has_parts(target):
            # Its parts went with its name. ESTALE: a path walk that lost the race looks the name up again.
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self._symlinks.open(zone, target)

    async def _create(
        self, parent: Inode, name: bytes, mode: int, ctx: pyfuse3.RequestContext, *actions: Action
    ) -> Inode:
        """A new empty file, its header written; `actions` are what the caller was allowed beside `create`."""
        directory = self._directories.of(parent)
        request = request_of(ctx)
        began = time.monotonic_ns()
        changes = self._keyring.policies.changes
        new = await self._keyring.new_file(directory.zone)
        if changes != self._keyring.policies.changes:
            for action in (Action.CREATE, *actions):
                self._keyring.authorize(directory.zone, request, action)
        identity = new[0]
        version = identity.recipients[0].version.version
        rule = self._keyring.authorize(directory.zone, request, Action.CREATE)  # again: it has waited for the token
        self._keyring.audit.used(
            directory.zone, request, "create", identity.file_id, version, rule=rule, began_ns=began
        )
        rights = self._permissions.for_new(parent, directory.zone, mode, ctx.umask)
        inode, fd = self._namespace.create(parent, name, rights.narrow_mode, request)
        try:
            self._opener.created(inode, fd, new)
        except OSError:
            os.close(fd)
            self._namespace.undo_create(parent, name, inode)
            raise
        if rights.acls:
            try:
                self._permissions.give(inode, directory.zone, rights)
            except OSError:
                self._lost_name(self._namespace.unlink(parent, name))
                raise
        return inode

    # -- directories -----------------------------------------------------------------------------

    @guarded
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        node = self._inodes[inode]
        self._allowed(node, ctx, Action.LIST)
        return self.handles.add_directory(DirHandle(node, request_of(ctx)))

    @guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        handle = self.handles.directories[fh]
        if start_id == 0 or not handle.entries:  # a position of another handle: an NFS server goes on by those
            await self._listing.read(handle)
        directory = self._directories.of(handle.inode)
        self._keyring.authorize(directory.zone, handle.request, Action.LIST)
        self._listing.reply(handle, start_id, token)

    @guarded
    async def releasedir(self, fh: int) -> None:
        self.handles.directories.pop(fh, None)

    @guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        handle = self.handles.directories[fh]
        self._directories.of(handle.inode)
        await self._sync_directories(handle.inode)
        await self._sync_directory(handle.inode)

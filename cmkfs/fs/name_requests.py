"""Requests about names: make, link, rename and remove entries, follow and list them."""

import errno
import os
import stat
import time

import trio

from cmkfs.caller import Request
from cmkfs.fs.handles import DirHandle
from cmkfs.fs.inode import Inode
from cmkfs.fs.request_handlers import ANY_ACTION, RequestHandlers
from cmkfs.fuse.messages import Entry, Listing, Opened
from cmkfs.policy import Action


class NameRequests(RequestHandlers):
    """Handlers of names, links and directories."""

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, umask: int, request: Request) -> Entry:
        parent = self._inodes[parent_inode]
        directory = self._allowed_in(parent, request, Action.CREATE)
        new = self._permissions.for_new(parent, directory.zone, mode | stat.S_IFDIR, umask)
        return self._entry(*self._namespace.mkdir(parent, name, new.mode, request, new.acls))

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, umask: int, request: Request) -> Entry:
        parent = self._inodes[parent_inode]
        directory = self._allowed_in(parent, request, Action.CREATE)
        if stat.S_ISREG(mode):
            inode = await self._create(parent, name, mode, umask, request)
            return self._entry(inode, self._inodes.stat(inode))
        new = self._permissions.for_new(parent, directory.zone, mode, umask)
        inode, found = self._namespace.mknod(parent, name, new.narrow_mode, rdev, request)
        if new.acls:
            try:
                self._permissions.give(inode, directory.zone, new)
            except OSError:
                self._lost_name(self._namespace.unlink(parent, name))
                raise
            found = self._inodes.stat(inode)
        return self._entry(inode, found)

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, request: Request) -> Entry:
        parent = self._inodes[parent_inode]
        self._allowed_in(parent, request, Action.CREATE)
        return self._entry(*self._namespace.symlink(parent, name, target, request))

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, request: Request) -> Entry:
        parent = self._inodes[new_parent_inode]
        self._allowed_in(parent, request, Action.CREATE)
        return self._entry(*self._namespace.link(self._inodes[inode], parent, new_name))

    async def unlink(self, parent_inode: int, name: bytes, request: Request) -> None:
        parent = self._inodes[parent_inode]
        self._allowed_in(parent, request, Action.DELETE)
        self._lost_name(self._namespace.unlink(parent, name))

    async def rmdir(self, parent_inode: int, name: bytes, request: Request) -> None:
        parent = self._inodes[parent_inode]
        self._allowed_in(parent, request, Action.DELETE)
        self._lost_name(self._namespace.rmdir(parent, name))

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        request: Request,
    ) -> None:
        old, new = self._inodes[parent_inode_old], self._inodes[parent_inode_new]
        self._allowed_in(old, request, Action.DELETE)
        self._allowed_in(new, request, Action.CREATE)
        self._lost_name(self._namespace.rename(old, name_old, new, name_new, flags))

    async def readlink(self, inode: int, request: Request) -> bytes:
        node = self._inodes[inode]
        zone = self.zone_of(node)
        self._keyring.authorize_any(zone, request, ANY_ACTION)
        target = self._inodes.readlink(node)
        if node.removed and self._symlinks.has_parts(target):
            # Its parts went with its name. ESTALE: a path walk that lost the race looks the name up again.
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self._symlinks.open(zone, target)

    async def _create(
        self, parent: Inode, name: bytes, mode: int, umask: int, request: Request, *actions: Action
    ) -> Inode:
        """A new empty file, its header written; `actions` are what the caller was allowed beside `create`."""
        directory = self._directories.of(parent)
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
        rights = self._permissions.for_new(parent, directory.zone, mode, umask)
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

    async def opendir(self, inode: int, request: Request) -> Opened:
        node = self._inodes[inode]
        self._allowed(node, request, Action.LIST)
        return Opened(self.handles.add_directory(DirHandle(node, request)), flags=0)

    async def readdir(self, fh: int, start_id: int, listing: Listing) -> Listing:
        handle = self.handles.directories[fh]
        if start_id == 0 or not handle.entries:  # a position of another handle: an NFS server goes on by those
            self.handles.listed(fh, await self._listing.read(handle))
        directory = self._directories.of(handle.inode)
        self._keyring.authorize(directory.zone, handle.request, Action.LIST)
        position = self._listing.reply(handle, start_id, listing)
        while position is not None:
            await trio.lowlevel.checkpoint()
            self._keyring.authorize(directory.zone, handle.request, Action.LIST)
            position = self._listing.reply(handle, position, listing)
        return listing

    async def releasedir(self, fh: int) -> None:
        self.handles.drop_directory(fh)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        handle = self.handles.directories[fh]
        self._directories.of(handle.inode)
        await self._sync_directories(handle.inode)
        await self._sync_directory(handle.inode)

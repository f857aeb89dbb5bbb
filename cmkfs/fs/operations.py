"""The FUSE requests, translated: kernel types in, one call down, one value back. Nothing is decided here.

Who may is `keys.keyring`, names are `fs.namespace`, content is `fs.openfile`. A reply gives out data or
attributes only if its zone serves at that moment: the last check stands right before the return, with no await
between (a reply that overtook a lock would fill the kernel's cache again).
"""

import errno
import os
import stat
from collections.abc import Sequence
from typing import cast

import pyfuse3

from cmkfs.fs.attributes import Attributes, filesystem_attributes
from cmkfs.fs.backing import Backing
from cmkfs.fs.directory import Directories, Directory
from cmkfs.fs.guard import guarded
from cmkfs.fs.handles import DirHandle, FileHandle, Handles, actions_of
from cmkfs.fs.inodes import ROOT_INO, Inode, InodeTable
from cmkfs.fs.listing import Listing
from cmkfs.fs.namespace import Namespace
from cmkfs.fs.opening import FileOpener
from cmkfs.fs.setattr import Setattr
from cmkfs.fs.symlinks import Symlinks
from cmkfs.fs.xattrs import Xattrs, check_name
from cmkfs.keys.keyring import Keyring
from cmkfs.keys.policies import Request
from cmkfs.keys.zone import Zone, ZoneState
from cmkfs.policy import Action

_ANY = (Action.LIST, Action.READ, Action.WRITE, Action.CREATE, Action.DELETE)


def _request(ctx: pyfuse3.RequestContext) -> Request:
    return Request(ctx.uid, ctx.gid, ctx.pid)


class Operations(pyfuse3.Operations):
    """All handlers of a mount."""

    supports_dot_lookup = False
    enable_writeback_cache = True
    enable_acl = False

    def __init__(
        self,
        backing: Backing,
        inodes: InodeTable,
        directories: Directories,
        namespace: Namespace,
        opener: FileOpener,
        keyring: Keyring,
        attributes: Attributes,
        setattr_: Setattr,
        *,
        no_xattrs: bool = False,
    ) -> None:
        super().__init__()
        self._no_xattrs = no_xattrs
        self._backing = backing
        self._inodes = inodes
        self._directories = directories
        self._namespace = namespace
        self._opener = opener
        self._keyring = keyring
        self._attributes = attributes
        self._setattr = setattr_
        self._symlinks = Symlinks(backing.root_fd)
        self._xattrs = Xattrs(inodes, directories, opener)
        self._listing = Listing(inodes, directories, attributes)
        self.handles = Handles()
        self.stored_while_settling = 0
        self.refused_bytes = 0

    # -- who and where ---------------------------------------------------------------------------

    def zone_of(self, inode: Inode) -> Zone:
        """The zone that decides about an inode: a directory's own, else its file's, else its directory's."""
        if inode.file is not None:
            return inode.file.zone
        if inode.is_dir:
            return self._directories.of(inode).zone
        if inode.parent is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self._directories.of(inode.parent).zone

    def directory_of(self, inode: Inode) -> Directory:
        """The authenticated directory of an inode. Raises Damaged, Locked, …"""
        return self._directories.of(inode)

    def _allowed_in(self, parent: Inode, ctx: pyfuse3.RequestContext, action: Action) -> Directory:
        directory = self._directories.of(parent)
        self._keyring.authorize(directory.zone, _request(ctx), action)
        return directory

    def _allowed(self, inode: Inode, ctx: pyfuse3.RequestContext, *actions: Action) -> Zone:
        zone = self.zone_of(inode)
        for action in actions:
            self._keyring.authorize(zone, _request(ctx), action)
        return zone

    def _entry(self, inode: Inode, found: os.stat_result) -> pyfuse3.EntryAttributes:
        """An entry given to the kernel: from now on it knows the inode."""
        entry = self._attributes.fill(inode, found)
        inode.lookups += 1
        return entry

    # -- attributes ------------------------------------------------------------------------------

    @guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        parent = self._inodes[parent_inode]
        self._keyring.authorize_any(self._directories.of(parent).zone, _request(ctx), _ANY)
        try:
            return self._entry(*self._namespace.lookup(parent, name))
        except FileNotFoundError:
            return self._attributes.missing()

    @guarded
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        node = self._inodes[inode]
        if inode != ROOT_INO:
            # The root always answers, or nothing could unmount it.
            self._keyring.authorize_any(self.zone_of(node), _request(ctx), _ANY)
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
        handle = self.handles.files.get(fh) if fh is not None else None
        if handle is None or not handle.writable:
            self._allowed(node, ctx, Action.WRITE)
        zone = self.zone_of(node)
        await self._setattr.apply(node, zone, attr, fields, _request(ctx))
        if zone.state is not ZoneState.SETTLING:
            zone.check()
        return self._attributes.of(node)

    @guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        return filesystem_attributes(self._backing.root_fd)

    @guarded
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for inode in self._inodes.forget(inode_list):
            self._lost_name(inode)

    # -- names -----------------------------------------------------------------------------------

    @guarded
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self._inodes[parent_inode]
        self._allowed_in(parent, ctx, Action.CREATE)
        return self._entry(*self._namespace.mkdir(parent, name, mode, _request(ctx)))

    @guarded
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self._inodes[parent_inode]
        self._allowed_in(parent, ctx, Action.CREATE)
        if stat.S_ISREG(mode):
            inode = await self._create(parent, name, mode, _request(ctx))
            return self._entry(inode, self._inodes.stat(inode))
        return self._entry(*self._namespace.mknod(parent, name, mode, rdev, _request(ctx)))

    @guarded
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self._inodes[parent_inode]
        self._allowed_in(parent, ctx, Action.CREATE)
        return self._entry(*self._namespace.symlink(parent, name, target, _request(ctx)))

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

    def _lost_name(self, inode: Inode | None) -> None:
        """A file that nobody can reach any more needs neither its descriptor nor settling."""
        if inode is not None and inode.file is not None:
            self._opener.release(inode.file)

    @guarded
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        node = self._inodes[inode]
        zone = self.zone_of(node)
        self._keyring.authorize_any(zone, _request(ctx), _ANY)
        target = self._inodes.readlink(node)
        if node.removed and self._symlinks.has_parts(target):
            # Its parts went with its name. ESTALE: a path walk that lost the race looks the name up again.
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self._symlinks.open(zone, target)

    # -- directories -----------------------------------------------------------------------------

    @guarded
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        node = self._inodes[inode]
        self._allowed(node, ctx, Action.LIST)
        return self.handles.add_directory(DirHandle(node, _request(ctx)))

    @guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        handle = self.handles.directories[fh]
        if start_id == 0:
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

    async def _sync_directory(self, inode: Inode) -> None:
        fd = self._inodes.open(inode, os.O_RDONLY)
        try:
            await self._backing.fsync(fd)
        finally:
            os.close(fd)

    async def _sync_directories(self, inode: Inode) -> None:
        """Make the names on the way to an inode durable where one fsync does not do it for all (btrfs)."""
        for directory, changes in self._namespace.unsynced_directories_above(inode):
            await self._sync_directory(directory)
            self._namespace.synced(directory, changes)

    # -- files -----------------------------------------------------------------------------------

    @guarded
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        node = self._inodes[inode]
        zone = self._allowed(node, ctx, *actions_of(flags))
        file = await self._opener.open(node, zone)
        number = self.handles.add_file(FileHandle(file, _request(ctx), flags))
        try:
            if flags & os.O_TRUNC:
                await self._setattr.truncate(file, 0, _request(ctx))
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
        directory = self._allowed_in(parent, ctx, Action.CREATE)
        for action in actions_of(flags & ~os.O_TRUNC):
            self._keyring.authorize(directory.zone, _request(ctx), action)
        inode = await self._create(parent, name, mode, _request(ctx))
        assert inode.file is not None
        number = self.handles.add_file(FileHandle(inode.file, _request(ctx), flags))
        return pyfuse3.FileInfo(fh=number, keep_cache=True), self._entry(inode, os.fstat(inode.file.fd))

    async def _create(self, parent: Inode, name: bytes, mode: int, request: Request) -> Inode:
        """A new empty file, its header written."""
        directory = self._directories.of(parent)
        new = await self._keyring.new_file(directory.zone)
        inode, fd = self._namespace.create(parent, name, mode, request)
        try:
            self._opener.created(inode, fd, new)
        except OSError:
            os.close(fd)
            self._namespace.undo_create(parent, name, inode)
            raise
        return inode

    @guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return cast(bytes, await self.handles.files[fh].file.read(off, size))  # any buffer will do

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

    # -- extended attributes ---------------------------------------------------------------------

    def _check_xattrs(self) -> None:
        if self._no_xattrs:
            # Answered once, ENOSYS keeps the kernel from asking before each write.
            raise pyfuse3.FUSEError(errno.ENOSYS)

    @guarded
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        self._check_xattrs()
        check_name(name)
        node = self._inodes[inode]
        zone = self._allowed(node, ctx, Action.READ)
        if not self._xattrs.has_any(node):
            raise pyfuse3.FUSEError(errno.ENODATA)
        async with self._xattrs.owned(node, zone):
            return self._xattrs.get(node, zone, name)

    @guarded
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._check_xattrs()
        check_name(name)
        node = self._inodes[inode]
        zone = self._allowed(node, ctx, Action.WRITE)
        async with self._xattrs.owned(node, zone):
            self._xattrs.set(node, zone, name, value)

    @guarded
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._check_xattrs()
        check_name(name)
        node = self._inodes[inode]
        zone = self._allowed(node, ctx, Action.WRITE)
        async with self._xattrs.owned(node, zone):
            self._xattrs.remove(node, zone, name)

    @guarded
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        self._check_xattrs()
        node = self._inodes[inode]
        zone = self._allowed(node, ctx, Action.READ)
        if not self._xattrs.has_any(node):
            return []
        async with self._xattrs.owned(node, zone):
            return self._xattrs.names(node, zone)

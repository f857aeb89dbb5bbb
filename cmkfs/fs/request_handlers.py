"""What all request handlers of a mount share: its objects, who may, and how an entry is given to the kernel."""

import errno
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from cmkfs.caller import Request
from cmkfs.errors import CmkfsError
from cmkfs.fs.access_times import AccessTimes
from cmkfs.fs.attributes import Attributes
from cmkfs.fs.backing import Backing
from cmkfs.fs.deadlines import give_back_deadlines
from cmkfs.fs.directory import Directories, Directory
from cmkfs.fs.guard import errno_of
from cmkfs.fs.handles import Handles
from cmkfs.fs.inode import Inode
from cmkfs.fs.inodes import InodeTable
from cmkfs.fs.listing import Listing
from cmkfs.fs.namespace import Namespace
from cmkfs.fs.opening import FileOpener
from cmkfs.fs.permissions import Permissions
from cmkfs.fs.reporting import Reporting
from cmkfs.fs.setattr import Setattr
from cmkfs.fs.symlinks import Symlinks
from cmkfs.fs.troubles import OF_CONTENT, Troubles
from cmkfs.fs.xattrs import Xattrs
from cmkfs.fuse.messages import Entry
from cmkfs.fuse.session import Requests
from cmkfs.keys.keyring import Keyring
from cmkfs.keys.zone import Zone
from cmkfs.policy import Action

ANY_ACTION: Final = (Action.LIST, Action.READ, Action.WRITE, Action.CREATE, Action.DELETE)


class RequestHandlers:
    """The objects of a mount; the handlers themselves are in the classes that inherit this one."""

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
        xattrs: Xattrs,
        permissions: Permissions,
        *,
        no_xattrs: bool = False,
    ) -> None:
        self._no_xattrs = no_xattrs
        inodes.on_smaller = give_back_deadlines
        self._backing = backing
        self._inodes = inodes
        self._directories = directories
        self._namespace = namespace
        self._opener = opener
        self._keyring = keyring
        self._attributes = attributes
        self._setattr = setattr_
        self._symlinks = Symlinks(backing.root_fd)
        self._xattrs = xattrs
        self._permissions = permissions
        self.access_times = AccessTimes(backing)
        self.handles = Handles()
        self._reporting = Reporting(inodes, directories, self.handles, keyring)
        self.troubles = Troubles(inodes)
        self._listing = Listing(inodes, directories, attributes, self._reporting.damaged_entry)
        self.stored_while_settling = 0
        self.refused_bytes = 0

    def errno_of(self, name: str, args: tuple[object, ...], error: Exception) -> int:
        """What the kernel is told when the handler `name` raised; the audit log is told of a refusal, or of damage."""
        if name in OF_CONTENT:
            self.troubles.met(name, self._reporting.met(name, args)[0], error)
        if isinstance(error, CmkfsError):
            self._reporting.failed(name, args, error)
        return errno_of(name, error)

    def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The kernel drops so many lookups of each inode."""
        Requests.quiet += 1
        for inode in self._inodes.forget(inode_list):
            self._lost_name(inode)

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

    def zone_of_attributes(self, inode: Inode) -> Zone:
        """The zone that decides who may see an inode's attributes: of a zone's root it is the one that it lies in."""
        if inode.is_dir:
            shown_by = self._directories.shown_by(inode)
            if shown_by is not None:
                return self._directories.of(shown_by).zone
        return self.zone_of(inode)

    def directory_of(self, inode: Inode) -> Directory:
        """The authenticated directory of an inode. Raises Damaged, Locked, …"""
        return self._directories.of(inode)

    def _allowed_in(self, parent: Inode, request: Request, action: Action) -> Directory:
        directory = self._directories.of(parent)
        self._keyring.authorize(directory.zone, request, action)
        return directory

    def _allowed(self, inode: Inode, request: Request, *actions: Action) -> Zone:
        return self._allowed_by(inode, request, *actions)[0]

    def _allowed_by(self, inode: Inode, request: Request, *actions: Action) -> tuple[Zone, str]:
        """The zone, and the rules that allow it."""
        zone = self.zone_of(inode)
        rule = self._keyring.authorize(zone, request, actions[0])
        for action in actions[1:]:
            another = self._keyring.authorize(zone, request, action)
            rule = rule if another == rule else f"{rule},{another}"
        return zone, rule

    @asynccontextmanager
    async def _owned(self, inode: Inode, zone: Zone, recheck: Callable[[], object]) -> AsyncIterator[None]:
        """In this block a file's key is here; if the policy changed until it was, `recheck` asks it again."""
        changes = self._keyring.policies.changes
        async with self._xattrs.owned(inode, zone):
            if changes != self._keyring.policies.changes:
                recheck()
            yield

    def _entry(self, inode: Inode, found: os.stat_result) -> Entry:
        """An entry given to the kernel: from now on it knows the inode."""
        entry = self._attributes.fill(inode, found)
        inode.lookups += 1
        return entry

    def _lost_name(self, inode: Inode | None) -> None:
        """A file that nobody can reach any more needs neither its descriptor nor settling."""
        if inode is not None and inode.file is not None:
            self._opener.release(inode.file)

    async def _sync_directory(self, inode: Inode) -> None:
        fd = self._inodes.open(inode, os.O_RDONLY)
        try:
            await self._backing.fsync(fd)
        finally:
            os.close(fd)

    async def _sync_directories(self, inode: Inode) -> None:
        """Make the names on the way to an inode durable where one fsync does not do it for all."""
        for directory, changes in self._namespace.unsynced_directories_above(inode):
            await self._sync_directory(directory)
            self._namespace.synced(directory, changes)

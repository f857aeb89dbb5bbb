"""Extended attributes of files and directories: name and value sealed, bound to their owner (docs/format.md, 7)."""

import errno
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from cmkfs.errors import Damaged
from cmkfs.format.vault import ID_SIZE
from cmkfs.fs.acl import ACL_NAMES
from cmkfs.fs.directory import Directories
from cmkfs.fs.inode import Inode
from cmkfs.fs.inodes import InodeTable
from cmkfs.keys.zone import Zone

if TYPE_CHECKING:
    from cmkfs.fs.opening import FileOpener

PREFIX = "user.cmkfs."
NODE_PREFIX = "trusted.cmkfs."
"""For symlinks and special files: Linux has `user.` attributes on files and directories only."""
NAMESPACES = (b"user.", b"trusted.", b"security.")
MAX_NAME = 255
MAX_VALUE = 65_536
XATTR_CREATE, XATTR_REPLACE = 1, 2


class Xattrs:
    """The attributes of the namespaces that are kept; who may use which is the kernel's to say (xattr(7))."""

    def __init__(self, inodes: InodeTable, directories: Directories, opener: "FileOpener") -> None:
        self._opener = opener
        self._inodes = inodes
        self._directories = directories

    @asynccontextmanager
    async def owned(self, inode: Inode, zone: Zone) -> AsyncIterator[None]:
        """In this block a file is open: attributes are bound to its id, which its header must prove."""
        if inode.fmt != stat.S_IFREG:
            yield
            return
        file = await self._opener.open(inode, zone)
        file.handles += 1
        try:
            yield
        finally:
            file.handles -= 1
            self._opener.release(file)

    def get(self, inode: Inode, zone: Zone, name: bytes) -> bytes:
        """The value. Raises OSError ENODATA; Damaged if it does not authenticate."""
        owner = self._owner_id(inode)
        handle = zone.keys.xattr_handle(owner, name)
        with self._inodes.reach(inode) as path:
            sealed = os.getxattr(path, _prefix(inode) + handle)
        found, value = zone.keys.open_xattr(owner, handle, sealed)
        if found != name:
            raise Damaged("an attribute under another's name")
        return value

    def set(self, inode: Inode, zone: Zone, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set an attribute. Raises OSError EEXIST, ENODATA (by `flags`), ENOSPC, E2BIG, EOPNOTSUPP."""
        if len(value) > MAX_VALUE:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        owner = self._owner_id(inode)
        sealed = zone.keys.seal_xattr(owner, name, value)
        inode.bare, inode.ctime_moved = False, True
        with self._inodes.reach(inode) as path, _no_namespace():
            os.setxattr(path, _prefix(inode) + zone.keys.xattr_handle(owner, name), sealed, flags)

    def remove(self, inode: Inode, zone: Zone, name: bytes) -> None:
        """Remove an attribute. Raises OSError ENODATA."""
        handle = zone.keys.xattr_handle(self._owner_id(inode), name)
        inode.ctime_moved = True
        with self._inodes.reach(inode) as path:
            os.removexattr(path, _prefix(inode) + handle)

    def has_any(self, inode: Inode) -> bool:
        """True if the backing has attributes for it; needs no key."""
        if inode.bare:
            return False
        with self._inodes.reach(inode) as path:
            inode.bare = not has_xattrs(path, _prefix(inode).decode())
        return not inode.bare

    def names(self, inode: Inode, zone: Zone) -> list[bytes]:
        """The plain names of all attributes. Raises Damaged if one does not authenticate."""
        prefix = _prefix(inode).decode()
        with self._inodes.reach(inode) as path:
            sealed = {name: os.getxattr(path, name) for name in os.listxattr(path) if name.startswith(prefix)}
        if not sealed:
            return []
        owner = self._owner_id(inode)
        handles = {os.fsencode(name)[len(prefix) :]: value for name, value in sealed.items()}
        return [zone.keys.open_xattr(owner, handle, value)[0] for handle, value in handles.items()]

    def _owner_id(self, inode: Inode) -> bytes:
        """What the attributes are bound to: the id of the directory, or of the file, which the caller has open.

        A symlink has its sealed target for an id. Special files have nothing of their own, in the vault neither.
        """
        if inode.is_dir:
            return self._directories.of(inode).dir_id
        if inode.fmt == stat.S_IFLNK:
            return hashlib.sha256(self._inodes.readlink(inode)).digest()[:ID_SIZE]
        if inode.file is None:
            return inode.fmt.to_bytes(ID_SIZE, "little")
        return inode.file.identity.file_id


def _prefix(inode: Inode) -> bytes:
    return PREFIX.encode() if inode.fmt in (stat.S_IFREG, stat.S_IFDIR) else NODE_PREFIX.encode()


@contextmanager
def _no_namespace() -> Iterator[None]:
    """The daemon of an ordinary user cannot store what symlinks and special files need."""
    try:
        yield
    except PermissionError as error:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP)) from error


def check_name(name: bytes, *, acl: bool) -> None:
    """Raise OSError EOPNOTSUPP for a namespace that is not kept, EINVAL for one alone, ERANGE for a name too long."""
    if not name.startswith(NAMESPACES) and not (acl and name in ACL_NAMES):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    if name in NAMESPACES:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if len(name) > MAX_NAME:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))


def seal_attributes(path: str, zone: Zone, owner_id: bytes, attributes: Mapping[bytes, bytes]) -> None:
    """Give a new file or directory, reached by `path`, its first attributes. Raises OSError ENOSPC."""
    for name, value in attributes.items():
        sealed = zone.keys.seal_xattr(owner_id, name, value)
        os.setxattr(path, PREFIX.encode() + zone.keys.xattr_handle(owner_id, name), sealed)


def own_xattrs(fd: int) -> list[str]:
    """The backing names of the attributes that a file has. Raises Damaged if no list can hold them all."""
    try:
        return [name for name in os.listxattr(fd) if name.startswith(PREFIX)]
    except OSError as error:
        if error.errno != errno.E2BIG:
            raise
        raise Damaged("more extended attributes than a list holds") from error


def has_xattrs(node: int | str, prefix: str = PREFIX) -> bool:
    """True if a descriptor or a path has any: they are bound to the id of what it is, which then must stay."""
    try:
        return any(name.startswith(prefix) for name in os.listxattr(node))
    except OSError as error:
        if error.errno != errno.E2BIG:
            raise
        return True  # more than a list holds are some

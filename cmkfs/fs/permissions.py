"""POSIX ACLs of a mount with `-o acl`: stored, inherited, and kept in step with the mode. The kernel enforces them.

docs/adr/0018 says why they are sealed like other attributes. Source of the rules: acl(5), fs/posix_acl.c.
"""

import errno
import os
import stat
from dataclasses import dataclass

from cmkfs.caller import Request
from cmkfs.fs.acl import ACCESS, DEFAULT, Acl
from cmkfs.fs.inode import Inode
from cmkfs.fs.inodes import InodeTable
from cmkfs.fs.xattrs import Xattrs
from cmkfs.keys.policies import supplementary_groups
from cmkfs.keys.zone import Zone

NOTHING: dict[bytes, bytes] = {}


@dataclass(frozen=True, slots=True)
class NewRights:
    """How a new node begins: made with `narrow_mode`, then its ACLs are stored, then it gets `mode`.

    So a crash between leaves nobody more rights than were meant.
    """

    mode: int
    narrow_mode: int
    acls: dict[bytes, bytes]


def in_group(request: Request, gid: int) -> bool:
    """Is the caller in the group? One whose groups cannot be told is not."""
    return gid == request.gid or gid in (supplementary_groups(request.pid) or ())


class Permissions:
    """ACLs, if the mount has them; without, setting one is refused and all that is kept is the mode."""

    def __init__(self, inodes: InodeTable, xattrs: Xattrs, *, enabled: bool) -> None:
        self._inodes = inodes
        self._xattrs = xattrs
        self.enabled = enabled

    # -- new nodes -------------------------------------------------------------------------------

    def for_new(self, parent: Inode, zone: Zone, mode: int, umask: int) -> NewRights:
        """What a node made in `parent` begins with: a default ACL takes the place of the umask (umask(2))."""
        if not self.enabled:
            return NewRights(mode, mode, NOTHING)
        default = self._get(parent, zone, DEFAULT)
        if default is None:
            mode &= ~umask
            return NewRights(mode, mode, NOTHING)
        access = default.masked(mode)
        acls = {} if access.minimal else {ACCESS: access.to_bytes()}
        if stat.S_ISDIR(mode):
            acls[DEFAULT] = default.to_bytes()
        kept = mode & ~0o777
        return NewRights(kept | access.mode, kept | access.narrow_mode, acls)

    def give(self, inode: Inode, zone: Zone, new: NewRights) -> None:
        """Store the ACLs of a node that was just made, and then its mode. Raises OSError (ENOSPC)."""
        for name, value in new.acls.items():
            self._xattrs.set(inode, zone, name, value)
        if new.mode != new.narrow_mode:
            with self._inodes.reach(inode) as path:
                os.chmod(path, stat.S_IMODE(new.mode))

    # -- changes ---------------------------------------------------------------------------------

    def set_acl(self, inode: Inode, zone: Zone, name: bytes, value: bytes, request: Request) -> None:
        """Set an ACL; the access ACL's mode becomes the node's. Raises OSError EINVAL, EACCES, ENOSPC."""
        acl = Acl.from_bytes(value)
        if name == DEFAULT:
            if not inode.is_dir:
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            self._xattrs.set(inode, zone, name, value)
            return
        if acl.minimal:
            self.remove_acl(inode, zone, name)
        else:
            self._xattrs.set(inode, zone, name, value)
        with self._inodes.reach(inode) as path:
            found = os.stat(path)
            mode = found.st_mode & ~0o777 | acl.mode
            if mode & stat.S_ISGID and request.uid != 0 and not in_group(request, found.st_gid):
                mode &= ~stat.S_ISGID
            os.chmod(path, stat.S_IMODE(mode))  # also if it is the same: setting an ACL moves ctime

    def remove_acl(self, inode: Inode, zone: Zone, name: bytes) -> None:
        """Remove an ACL; one that is not there is no error. The mode stays."""
        try:
            self._xattrs.remove(inode, zone, name)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise

    async def follow_mode(self, inode: Inode, zone: Zone, mode: int) -> None:
        """After a chmod: owner, mask and others of the access ACL are those of the mode."""
        if not self.enabled or inode.fmt == stat.S_IFLNK or not self._xattrs.has_any(inode):
            return
        async with self._xattrs.owned(inode, zone):
            acl = self._get(inode, zone, ACCESS)
            if acl is not None:
                self._xattrs.set(inode, zone, ACCESS, acl.with_mode(mode).to_bytes())

    def _get(self, inode: Inode, zone: Zone, name: bytes) -> Acl | None:
        try:
            return Acl.from_bytes(self._xattrs.get(inode, zone, name))
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
                return None
            raise

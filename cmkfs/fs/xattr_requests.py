"""Requests about extended attributes."""

import errno
import os

from cmkfs.caller import Request
from cmkfs.fs.acl import ACL_NAMES
from cmkfs.fs.inode import Inode
from cmkfs.fs.request_handlers import ANY_ACTION, RequestHandlers
from cmkfs.fs.xattrs import check_name
from cmkfs.keys.policies import is_admin
from cmkfs.keys.zone import Zone
from cmkfs.policy import Action

CAPABILITY = b"security.capability"


class XattrRequests(RequestHandlers):
    """Handlers of extended attributes."""

    def _check_xattrs(self) -> None:
        if self._no_xattrs:
            # Answered once, ENOSYS keeps the kernel from asking before each write.
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def _used_attributes(self, event: str, node: Inode, request: Request, rule: str) -> None:
        if node.file is not None:  # a directory's are under the zone's key
            self._reporting.used(event, node.file, request, rule)

    def _check_name(self, name: bytes) -> None:
        check_name(name, acl=self._permissions.enabled)

    async def getxattr(self, inode: int, name: bytes, request: Request) -> bytes:
        self._check_xattrs()
        self._check_name(name)
        node = self._inodes[inode]
        zone, rule = self._may_get(node, name, request)
        if not self._xattrs.has_any(node):
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        async with self._owned(node, zone, lambda: self._may_get(node, name, request)):
            self._used_attributes("xattr.read", node, request, rule)
            return self._xattrs.get(node, zone, name)

    def _may_get(self, node: Inode, name: bytes, request: Request) -> tuple[Zone, str]:
        if name in ACL_NAMES or name == CAPABILITY:  # the kernel asks, whatever the caller may read
            zone = self.zone_of(node)
            self._keyring.authorize_any(zone, request, ANY_ACTION)
            return zone, ""
        return self._allowed_by(node, request, Action.READ)

    async def setxattr(self, inode: int, name: bytes, value: bytes, flags: int, request: Request) -> None:
        self._check_xattrs()
        self._check_name(name)
        node = self._inodes[inode]
        zone, rule = self._allowed_by(node, request, Action.WRITE)
        async with self._owned(node, zone, lambda: self._allowed(node, request, Action.WRITE)):
            self._used_attributes("xattr.write", node, request, rule)
            if name in ACL_NAMES:
                self._permissions.set_acl(node, zone, name, value, request)
            else:
                self._xattrs.set(node, zone, name, value, flags)

    async def removexattr(self, inode: int, name: bytes, request: Request) -> None:
        self._check_xattrs()
        self._check_name(name)
        node = self._inodes[inode]
        zone, rule = self._allowed_by(node, request, Action.WRITE)
        async with self._owned(node, zone, lambda: self._allowed(node, request, Action.WRITE)):
            self._used_attributes("xattr.write", node, request, rule)
            if name in ACL_NAMES:
                self._permissions.remove_acl(node, zone, name)
            else:
                self._xattrs.remove(node, zone, name)

    async def listxattr(self, inode: int, request: Request) -> list[bytes]:
        self._check_xattrs()
        node = self._inodes[inode]
        zone, rule = self._allowed_by(node, request, Action.READ)
        if not self._xattrs.has_any(node):
            return []
        async with self._owned(node, zone, lambda: self._allowed(node, request, Action.READ)):
            self._used_attributes("xattr.read", node, request, rule)
            return self._shown(self._xattrs.names(node, zone), request)

    def _shown(self, names: list[bytes], request: Request) -> list[bytes]:
        """`trusted.` names are told to those who may use them (xattr(7)), ACLs on a mount that has them."""
        if any(name.startswith(b"trusted.") for name in names) and not is_admin(request.pid, request.uid):
            names = [name for name in names if not name.startswith(b"trusted.")]
        return names if self._permissions.enabled else [name for name in names if name not in ACL_NAMES]

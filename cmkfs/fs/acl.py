"""POSIX ACLs as the kernel hands them over, and what mode and ACL say of each other. Source: acl(5), fs/posix_acl.c.

`system.posix_acl_access` and `system.posix_acl_default`: a version (4 bytes, 2), then for each entry tag (2),
rights (2) and id (4), all little-endian; linux/posix_acl_xattr.h.
"""

import errno
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"
ACL_NAMES = (ACCESS, DEFAULT)

_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_VERSION = 2
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_RIGHTS = 0o7


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of an ACL; `who` is a uid or gid, and -1 as 32 bits where the tag names nobody."""

    tag: int
    rights: int
    who: int


@dataclass(frozen=True, slots=True)
class Acl:
    """An ACL. `to_bytes` gives the bytes that `from_bytes` took."""

    entries: tuple[Entry, ...]

    @classmethod
    def from_bytes(cls, data: bytes) -> "Acl":
        """Raises OSError EOPNOTSUPP for another version, EINVAL for what is no ACL."""
        if len(data) < _HEADER.size or (len(data) - _HEADER.size) % _ENTRY.size:
            raise _invalid()
        if _HEADER.unpack_from(data)[0] != _VERSION:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        entries = tuple(Entry(*fields) for fields in _ENTRY.iter_unpack(data[_HEADER.size :]))
        tags = [entry.tag for entry in entries]
        once = all(tags.count(tag) == 1 for tag in (_USER_OBJ, _GROUP_OBJ, _OTHER)) and tags.count(_MASK) <= 1
        named = any(tag in (_USER, _GROUP) for tag in tags)
        sound = all(entry.rights | _RIGHTS == _RIGHTS for entry in entries)
        known = all(tag in (_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER) for tag in tags)
        if not (once and sound and known) or (named and _MASK not in tags):
            raise _invalid()
        return cls(entries)

    def to_bytes(self) -> bytes:
        """The value of the extended attribute."""
        packed = (_ENTRY.pack(entry.tag, entry.rights, entry.who) for entry in self.entries)
        return _HEADER.pack(_VERSION) + b"".join(packed)

    @property
    def minimal(self) -> bool:
        """True if the nine bits of a mode say the same."""
        return len(self.entries) == 3

    @property
    def mode(self) -> int:
        """The nine bits that stand for it: the group's are the mask's, if there is one."""
        return self._rights(_USER_OBJ) << 6 | self._rights(self._group_class) << 3 | self._rights(_OTHER)

    @property
    def narrow_mode(self) -> int:
        """Nine bits that give nobody more than the ACL does, should it be lost."""
        return self.mode & ~(_RIGHTS << 3 & ~(self._rights(_GROUP_OBJ) << 3))

    def with_mode(self, mode: int) -> "Acl":
        """After chmod to `mode`: owner, mask (or group) and others become the mode's."""
        return self._changed(lambda _rights, bits: bits, mode)

    def masked(self, mode: int) -> "Acl":
        """Inherited by a node that is made with `mode`: no more than both allow."""
        return self._changed(lambda rights, bits: rights & bits, mode)

    def _changed(self, change: Callable[[int, int], int], mode: int) -> "Acl":
        shifts = {_USER_OBJ: 6, self._group_class: 3, _OTHER: 0}
        return Acl(
            tuple(
                Entry(entry.tag, change(entry.rights, mode >> shifts[entry.tag] & _RIGHTS), entry.who)
                if entry.tag in shifts
                else entry
                for entry in self.entries
            )
        )

    @property
    def _group_class(self) -> int:
        return _MASK if any(entry.tag == _MASK for entry in self.entries) else _GROUP_OBJ

    def _rights(self, tag: int) -> int:
        return next(entry.rights for entry in self.entries if entry.tag == tag)


def _invalid() -> OSError:
    return OSError(errno.EINVAL, os.strerror(errno.EINVAL))

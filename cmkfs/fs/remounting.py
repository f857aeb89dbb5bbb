"""Changing the flags of a mount while it is served: mount(2) with MS_REMOUNT, for root."""

import ctypes
import errno
import os
from collections.abc import Iterable

from cmkfs.errors import Busy, MountFailed

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT = 1, 2, 4, 8, 32
_NOATIME, _NODIRATIME, _RELATIME, _STRICTATIME = 1 << 10, 1 << 11, 1 << 21, 1 << 24
_ALWAYS_KEPT = _RDONLY | _NOSUID | _NODEV | _NOEXEC | _NOATIME | _NODIRATIME
"""What statvfs(3) tells in the bits of mount(2)."""

WORDS: dict[str, tuple[int, int]] = {
    "ro": (_RDONLY, 0),
    "rw": (0, _RDONLY),
    "nosuid": (_NOSUID, 0),
    "suid": (0, _NOSUID),
    "nodev": (_NODEV, 0),
    "dev": (0, _NODEV),
    "noexec": (_NOEXEC, 0),
    "exec": (0, _NOEXEC),
    "noatime": (_NOATIME, _STRICTATIME),
    "atime": (0, _NOATIME),
    "nodiratime": (_NODIRATIME, 0),
    "diratime": (0, _NODIRATIME),
    "relatime": (0, _NOATIME | _STRICTATIME),
    "norelatime": (0, 0),
    "strictatime": (_STRICTATIME, _NOATIME),
    "nostrictatime": (0, _STRICTATIME),
}
"""Options that can change while a filesystem is mounted: the flags that each sets, and those that it clears."""


def flags_after(now: int, words: Iterable[str]) -> int:
    """The flags of a mount with the flags `now`, as statvfs(3) tells them, after these words of `WORDS`."""
    flags = now & _ALWAYS_KEPT
    for word in words:
        sets, clears = WORDS[word]
        flags = flags & ~clears | sets
    # Of no flag about access times at all the kernel makes: as before.
    return flags if flags & (_NOATIME | _STRICTATIME) else flags | _RELATIME


def keeps_access_times(flags: int) -> tuple[bool, bool]:
    """Whether reading moves no access time of anything, and whether it moves none of directories."""
    return bool(flags & _NOATIME), bool(flags & (_NOATIME | _NODIRATIME))


def remount(mountpoint: bytes, flags: int) -> None:
    """Give the filesystem at the resolved path `mountpoint` these flags. Raises Busy, MountFailed."""
    if _libc.mount(b"none", mountpoint, None, _REMOUNT | flags, None):
        number, where = ctypes.get_errno(), os.fsdecode(mountpoint)
        if number == errno.EBUSY:
            raise Busy(
                f"files on {where} are open for writing, so it cannot become read-only", hint=f"cmkfs status {where}"
            )
        if number == errno.EPERM:
            raise MountFailed("only root can remount", hint=f"cmkfs umount {where}, then mount it as wanted")
        raise MountFailed(f"cannot remount {where}: {os.strerror(number)}")

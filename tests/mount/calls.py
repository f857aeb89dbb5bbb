"""System calls that Python's os module lacks, with OSError for a failure."""

import ctypes
import os
import struct
from pathlib import Path

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
CAPABILITY = "security.capability"
CAP_NET_RAW = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
"""The attribute of a program that may use raw sockets: capabilities(7), linux/capability.h."""

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def utimensat(path: str | Path, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """utimensat(2): times as (seconds, nanoseconds), where UTIME_NOW and UTIME_OMIT may be nanoseconds."""
    _checked(_libc.utimensat(AT_FDCWD, os.fsencode(path), struct.pack("qqqq", *atime, *mtime), flags))


def futimens(fd: int, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """futimens(3)."""
    _checked(_libc.futimens(fd, struct.pack("qqqq", *atime, *mtime)))


def renameat2(source: str | Path, target: str | Path, flags: int) -> None:
    """renameat2(2)."""
    _checked(_libc.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags))

"""What kernel and daemon say to each other after INIT: values, and their bytes.

Layouts: linux/fuse.h, protocol 7.38; all integers in host order (little-endian). The kernel is trusted, so requests
are taken as they are.
"""

import errno
import os
import stat
import struct
from enum import IntEnum
from typing import NamedTuple

Buffer = bytes | bytearray | memoryview

IN_HEADER = struct.Struct("<4xIQQIII4x")  # opcode unique nodeid uid gid pid; the length and extensions are skipped
OUT_HEADER = struct.Struct("<IiQ")  # length, error, unique

# nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec
_ENTRY = struct.Struct("<QQQQII")
# ino size blocks atime mtime ctime, their nanoseconds, mode nlink uid gid rdev blksize flags
_ATTR = struct.Struct("<QQQqqqIIIIIIIIII")
_ATTR_VALID = struct.Struct("<QI4x")
_SECOND = 10**9
_BLKSIZE = 4096

KEEP_CACHE = 1 << 1
"""FOPEN_KEEP_CACHE: what the kernel has cached of the file is still right."""
DIRECT_IO = 1 << 0
"""FOPEN_DIRECT_IO: the page cache is passed by."""


class Opcode(IntEnum):
    """linux/fuse.h, `enum fuse_opcode`: those that are answered with more than ENOSYS."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    BATCH_FORGET = 42
    READDIRPLUS = 44
    RENAME2 = 45


UNANSWERED = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})
"""The kernel waits for no answer to these; an interrupted request is answered when it is done."""


class Entry(NamedTuple):
    """An inode as the kernel is told of it. Timeouts are in seconds, times in nanoseconds since the epoch.

    `st_ino` is the number in the protocol too; 0 says that there is no such name.
    """

    st_ino: int
    generation: int = 0
    entry_timeout: int = 0
    attr_timeout: int = 0
    st_mode: int = 0
    st_nlink: int = 1
    st_uid: int = 0
    st_gid: int = 0
    st_rdev: int = 0
    st_size: int = 0
    st_blocks: int = 0
    st_atime_ns: int = 0
    st_mtime_ns: int = 0
    st_ctime_ns: int = 0


class Changes(NamedTuple):
    """What SETATTR is to set; None: left as it is. Times in nanoseconds since the epoch."""

    size: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    """When the kernel says that this change is made. ctime is nobody's to set."""
    kill_suidgid: bool = False
    """A change of size takes setuid and setgid away (FUSE_HANDLE_KILLPRIV_V2)."""

    @property
    def more_than_times(self) -> bool:
        """True unless times alone are set, or nothing."""
        return any(value is not None for value in (self.size, self.mode, self.uid, self.gid))

    @property
    def more_than_size(self) -> bool:
        """True if anything beside the size is set."""
        return any(value is not None for value in (self.mode, self.uid, self.gid, self.atime_ns, self.mtime_ns))


class Opened(NamedTuple):
    """An open file: the number that the kernel uses for it, and FOPEN_ flags."""

    fh: int
    flags: int = KEEP_CACHE


class Listing:
    """The answer to one READDIR or READDIRPLUS of at most `size` bytes; `plus`: the kernel learns the inodes too."""

    _DIRENT = struct.Struct("<QQII")  # ino, where the next one is, length of the name, type

    def __init__(self, size: int, *, plus: bool) -> None:
        self.plus = plus
        self._size = size
        self._parts: list[bytes] = []
        self._length = 0

    def add(self, name: bytes, entry: Entry, next_offset: int) -> bool:
        """Append an entry; `next_offset` is where a later request goes on. False, and nothing done, if it is full."""
        head = self._DIRENT.pack(entry.st_ino, next_offset, len(name), stat.S_IFMT(entry.st_mode) >> 12)
        whole = (entry_bytes(entry) if self.plus else b"") + head + name
        whole += bytes(-len(whole) % 8)
        if self._length + len(whole) > self._size:
            return False
        self._parts.append(whole)
        self._length += len(whole)
        return True

    @property
    def count(self) -> int:
        """How many entries there are."""
        return len(self._parts)

    def to_bytes(self) -> bytes:
        """All entries, `fuse_dirent` or `fuse_direntplus`."""
        return b"".join(self._parts)


def _attributes(entry: Entry) -> bytes:
    atime, atime_ns = divmod(entry.st_atime_ns, _SECOND)
    mtime, mtime_ns = divmod(entry.st_mtime_ns, _SECOND)
    ctime, ctime_ns = divmod(entry.st_ctime_ns, _SECOND)
    return _ATTR.pack(
        entry.st_ino,
        entry.st_size,
        entry.st_blocks,
        atime,
        mtime,
        ctime,
        atime_ns,
        mtime_ns,
        ctime_ns,
        entry.st_mode,
        entry.st_nlink,
        entry.st_uid,
        entry.st_gid,
        entry.st_rdev & 0xFFFFFFFF,
        _BLKSIZE,
        0,
    )


def entry_bytes(entry: Entry) -> bytes:
    """`fuse_entry_out`, 128 bytes."""
    head = _ENTRY.pack(entry.st_ino, entry.generation, entry.entry_timeout, entry.attr_timeout, 0, 0)
    return head + _attributes(entry)


def attr_bytes(entry: Entry) -> bytes:
    """`fuse_attr_out`, 104 bytes."""
    return _ATTR_VALID.pack(entry.attr_timeout, 0) + _attributes(entry)


_OPEN = struct.Struct("<QI4x")


def opened_bytes(opened: Opened) -> bytes:
    """`fuse_open_out`, 16 bytes."""
    return _OPEN.pack(*opened)


_KSTATFS = struct.Struct("<QQQQQIII28x")


def statfs_bytes(found: os.statvfs_result) -> bytes:
    """`fuse_statfs_out`, 80 bytes. Names have 255 bytes whatever the backing says."""
    return _KSTATFS.pack(
        found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree, found.f_bsize, 255, found.f_frsize
    )


_XATTR_OUT = struct.Struct("<I4x")


def xattr_bytes(value: bytes, size: int) -> bytes:
    """The answer to GETXATTR or LISTXATTR into `size` bytes; 0 asks for the length. Raises OSError ERANGE."""
    if not size:
        return _XATTR_OUT.pack(len(value))
    if len(value) > size:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value


def refusal(unique: int, error: int) -> bytes:
    """The answer that a request failed with errno `error`."""
    return OUT_HEADER.pack(OUT_HEADER.size, -error, unique)

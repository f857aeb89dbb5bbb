"""FUSE_INIT: what this daemon wants of the kernel; pure functions from bytes to bytes and values, no I/O.

Layouts: linux/fuse.h, `fuse_in_header`, `fuse_init_in`, `fuse_out_header`, `fuse_init_out`; all integers in host
order, cmkfs runs on little-endian hosts only.
"""

import struct
from dataclasses import dataclass
from enum import KEEP, IntFlag
from mmap import PAGESIZE

from cmkfs.errors import MountFailed

INIT_OPCODE = 26
PROTOCOL_MAJOR = 7
PROTOCOL_MINOR = 38
"""The newest protocol whose messages are known here (Linux 6.2); a newer kernel speaks it too."""
OLDEST_MINOR = 31
"""Linux 5.4: all layouts here are its."""

MAX_PAGES = 256
MAX_WRITE = MAX_PAGES * PAGESIZE
"""Bytes of the largest WRITE."""

_IN_HEADER = struct.Struct("<IIQQIIIHH")  # len opcode unique nodeid uid gid pid total_extlen padding
_INIT_IN = struct.Struct("<IIII")  # major minor max_readahead flags
_INIT_IN_FLAGS2 = struct.Struct("<I")
_OUT_HEADER = struct.Struct("<IiQ")  # len error unique
# major minor max_readahead flags max_background congestion max_write time_gran max_pages align flags2, newer fields
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")


class InitFlag(IntFlag, boundary=KEEP):
    """The flags that cmkfs names; others that a kernel offers are kept as plain bits."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30
    DIRECT_IO_ALLOW_MMAP = 1 << 36


NO_FLAGS = InitFlag(0)
NEEDED = (
    InitFlag.ASYNC_READ
    | InitFlag.ATOMIC_O_TRUNC
    | InitFlag.BIG_WRITES
    | InitFlag.AUTO_INVAL_DATA
    | InitFlag.DO_READDIRPLUS
    | InitFlag.WRITEBACK_CACHE
    | InitFlag.MAX_PAGES
)
"""What a mount is built on. Every kernel since Linux 4.20 offers it.

Without ASYNC_DIO: with it Linux (6.18) does not drop the cached pages that io_submit(2) with O_DIRECT has overwritten,
if somebody read them meanwhile, and they are read for ever (tests/mount/test_mount_direct.py).
"""

OPTIONAL = (
    InitFlag.DONT_MASK
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.POSIX_ACL
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.HANDLE_KILLPRIV_V2
    | InitFlag.DIRECT_IO_ALLOW_MMAP
)


@dataclass(frozen=True, slots=True)
class Wish:
    """What to ask of the kernel beyond `NEEDED`.

    `max_background` bounds the background requests (readahead, write-back) in flight; 0 leaves the
    kernel's default of 12. Raises ValueError for a flag outside `OPTIONAL` or a count beyond 65535.
    """

    flags: InitFlag = InitFlag.HANDLE_KILLPRIV_V2 | InitFlag.DIRECT_IO_ALLOW_MMAP
    max_background: int = 64

    def __post_init__(self) -> None:
        if self.flags | OPTIONAL != OPTIONAL:  # and not `& ~OPTIONAL`: IntFlag inverts only the bits it names
            raise ValueError(f"not to be wished for: {self.flags ^ self.flags & OPTIONAL!r}")
        if not 0 <= self.max_background <= 0xFFFF:
            raise ValueError(f"max_background is 0 to 65535, not {self.max_background}")


@dataclass(frozen=True, slots=True)
class KernelInit:
    """The kernel's INIT request; `flags` joins both words, the second only if INIT_EXT says it is there."""

    unique: int
    major: int
    minor: int
    max_readahead: int
    flags: InitFlag


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What a connection ended up with."""

    kernel: tuple[int, int]
    flags: InitFlag
    refused: InitFlag  # wished for, but this kernel does not offer it
    max_background: int  # 0: the kernel's default
    max_write: int


def parse_init(request: bytes) -> KernelInit:
    """The kernel's INIT. Raises MountFailed for what is none, or of a protocol that is not spoken here."""
    if len(request) < _IN_HEADER.size + _INIT_IN.size:
        raise MountFailed(f"INIT of {len(request)} bytes")
    length, opcode, unique, *_ = _IN_HEADER.unpack_from(request)
    if opcode != INIT_OPCODE:
        raise MountFailed(f"the kernel's first request has opcode {opcode}, not INIT")
    if length != len(request):
        raise MountFailed(f"INIT says {length} bytes and has {len(request)}")
    major, minor, readahead, low = _INIT_IN.unpack_from(request, _IN_HEADER.size)
    if major != PROTOCOL_MAJOR or minor < OLDEST_MINOR:
        raise MountFailed(f"the kernel speaks FUSE protocol {major}.{minor}", hint="use Linux 5.4 or later")
    flags = InitFlag(low)
    second = _IN_HEADER.size + _INIT_IN.size
    if flags & InitFlag.INIT_EXT:
        if len(request) < second + _INIT_IN_FLAGS2.size:
            raise MountFailed("INIT_EXT without a second word of flags")
        flags |= InitFlag(_INIT_IN_FLAGS2.unpack_from(request, second)[0] << 32)
    return KernelInit(unique, major, minor, readahead, flags)


def negotiate(request: bytes, wish: Wish) -> tuple[bytes, Negotiated]:
    """The answer to the kernel's INIT, 80 bytes, and what it means. Raises MountFailed."""
    offer = parse_init(request)
    missing = NEEDED ^ NEEDED & offer.flags
    if missing:
        raise MountFailed(f"the kernel's FUSE lacks {missing!r}", hint="use Linux 5.4 or later")
    flags = NEEDED | wish.flags & offer.flags
    if flags >> 32:
        flags |= InitFlag.INIT_EXT
    body = _INIT_OUT.pack(
        PROTOCOL_MAJOR,
        min(offer.minor, PROTOCOL_MINOR),
        offer.max_readahead,
        flags & 0xFFFFFFFF,
        wish.max_background,
        max(wish.max_background * 3 // 4, min(wish.max_background, 1)),  # the kernel's own proportion
        MAX_WRITE,
        1,  # nanoseconds: the kernel rounds times that it sets to this
        MAX_PAGES,
        0,
        flags >> 32,
    )
    answer = _OUT_HEADER.pack(_OUT_HEADER.size + len(body), 0, offer.unique) + body
    return answer, Negotiated(
        kernel=(offer.major, offer.minor),
        flags=flags,
        refused=wish.flags ^ wish.flags & flags,
        max_background=wish.max_background,
        max_write=MAX_WRITE,
    )

"""FUSE_INIT, read and edited: pure functions from bytes to bytes and values, no I/O.

libfuse 3.14 cannot ask the kernel for everything that cmkfs needs (`FUSE_HANDLE_KILLPRIV_V2` alone is
worth a factor of four for 4 KiB writes). So the kernel's request and libfuse's answer pass through here,
and the answer gains flags that the kernel offered. Layouts: linux/fuse.h, `fuse_in_header`,
`fuse_init_in`, `fuse_out_header`, `fuse_init_out`; all integers in host order, cmkfs runs on
little-endian hosts only.
"""

import struct
from dataclasses import dataclass, replace
from enum import KEEP, IntFlag
from mmap import PAGESIZE

FUSE_INIT_OPCODE = 26
PROTOCOL_MAJOR = 7
MAX_PAGES_CEILING = 256  # libfuse's receive buffer holds 256 pages (1 MiB) and one of headers

_IN_HEADER = struct.Struct("<IIQQIIIHH")  # len opcode unique nodeid uid gid pid total_extlen padding
_INIT_IN = struct.Struct("<IIII")  # major minor max_readahead flags
_INIT_IN_FLAGS2 = struct.Struct("<I")
_OUT_HEADER = struct.Struct("<IiQ")  # len error unique
# major minor max_readahead flags max_background congestion max_write time_gran max_pages align flags2
_INIT_OUT = struct.Struct("<IIIIHHIIHHI")
_INIT_OUT_BYTES = 64  # what follows the flags are fields of newer protocols
ANSWER_BYTES = _OUT_HEADER.size + _INIT_OUT_BYTES


class InitFlag(IntFlag, boundary=KEEP):
    """The flags that cmkfs names; others that pass through are kept as plain bits."""

    DONT_MASK = 1 << 6
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30
    DIRECT_IO_ALLOW_MMAP = 1 << 36


NO_FLAGS = InitFlag(0)
# What may be added behind libfuse's back: none of these changes the layout of any message.
ADDABLE = (
    InitFlag.DONT_MASK
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.HANDLE_KILLPRIV_V2
    | InitFlag.DIRECT_IO_ALLOW_MMAP
)


class InitMessageError(ValueError):
    """A message is not what linux/fuse.h says. Caught in `negotiate`, which then edits nothing."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What to ask of the kernel beyond libfuse's own answer.

    `max_background` bounds the background requests (readahead, write-back) in flight; 0 leaves the
    kernel's default of 12. Raises ValueError for a flag outside `ADDABLE` or a count beyond 65535.
    """

    flags: InitFlag = InitFlag.HANDLE_KILLPRIV_V2 | InitFlag.DIRECT_IO_ALLOW_MMAP
    max_background: int = 64

    def __post_init__(self) -> None:
        if self.flags | ADDABLE != ADDABLE:  # and not `& ~ADDABLE`: IntFlag inverts only the bits it names
            raise ValueError(f"not to be added to libfuse's answer: {self.flags ^ self.flags & ADDABLE!r}")
        if not 0 <= self.max_background <= 0xFFFF:
            raise ValueError(f"max_background is 0 to 65535, not {self.max_background}")


@dataclass(frozen=True, slots=True)
class KernelInit:
    """The kernel's INIT request; `flags` joins both words, the second only if INIT_EXT says it is there."""

    unique: int
    major: int
    minor: int
    flags: InitFlag


@dataclass(frozen=True, slots=True)
class InitAnswer:
    """An answer to INIT. `max_write` is in bytes, `time_gran` in nanoseconds, `tail` holds newer fields."""

    unique: int
    major: int
    minor: int
    max_readahead: int
    flags: InitFlag
    max_background: int
    congestion_threshold: int
    max_write: int
    time_gran: int
    max_pages: int
    map_alignment: int
    tail: bytes

    def to_bytes(self) -> bytes:
        """The answer as the kernel wants it, 80 bytes."""
        body = _INIT_OUT.pack(
            self.major,
            self.minor,
            self.max_readahead,
            self.flags & 0xFFFFFFFF,
            self.max_background,
            self.congestion_threshold,
            self.max_write,
            self.time_gran,
            self.max_pages,
            self.map_alignment,
            self.flags >> 32,
        )
        header = _OUT_HEADER.pack(ANSWER_BYTES, 0, self.unique)
        return header + body + self.tail


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What a connection ended up with. `fallback` says why nothing was edited, empty if all went well."""

    kernel: tuple[int, int] = (0, 0)
    flags: InitFlag = NO_FLAGS
    refused: InitFlag = NO_FLAGS  # wished for, but this kernel does not offer it
    max_background: int = 0  # 0: the kernel's default
    max_write: int = 0
    max_pages: int = 0
    fallback: str = ""


def parse_init(request: bytes) -> KernelInit:
    """The kernel's INIT. Raises InitMessageError."""
    if len(request) < _IN_HEADER.size + _INIT_IN.size:
        raise InitMessageError(f"INIT of {len(request)} bytes")
    length, opcode, unique, *_ = _IN_HEADER.unpack_from(request)
    if opcode != FUSE_INIT_OPCODE:
        raise InitMessageError(f"first request has opcode {opcode}, not INIT")
    if length != len(request):
        raise InitMessageError(f"INIT says {length} bytes and has {len(request)}")
    major, minor, _readahead, low = _INIT_IN.unpack_from(request, _IN_HEADER.size)
    if major != PROTOCOL_MAJOR:
        raise InitMessageError(f"FUSE protocol {major}.{minor}")
    flags = InitFlag(low)
    second = _IN_HEADER.size + _INIT_IN.size
    if flags & InitFlag.INIT_EXT:
        if len(request) < second + _INIT_IN_FLAGS2.size:
            raise InitMessageError("INIT_EXT without a second word of flags")
        flags |= InitFlag(_INIT_IN_FLAGS2.unpack_from(request, second)[0] << 32)
    return KernelInit(unique, major, minor, flags)


def parse_answer(answer: bytes) -> InitAnswer:
    """An answer that accepts INIT. Raises InitMessageError, also if it refuses or is of an old layout."""
    if len(answer) < _OUT_HEADER.size:
        raise InitMessageError(f"answer of {len(answer)} bytes")
    length, error, unique = _OUT_HEADER.unpack_from(answer)
    if length != len(answer):
        raise InitMessageError(f"answer says {length} bytes and has {len(answer)}")
    if error:
        raise InitMessageError(f"libfuse refused INIT with error {-error}")
    if length != ANSWER_BYTES:
        raise InitMessageError(f"answer of {length} bytes instead of {ANSWER_BYTES}")
    *fields, map_alignment, high = _INIT_OUT.unpack_from(answer, _OUT_HEADER.size)
    major, minor, readahead, low, background, congestion, max_write, time_gran, max_pages = fields
    if major != PROTOCOL_MAJOR:
        raise InitMessageError(f"libfuse answers with protocol {major}.{minor}")
    if high and not low & InitFlag.INIT_EXT:  # the kernel would not look at it, until INIT_EXT is added
        raise InitMessageError("a second word of flags without INIT_EXT")
    flags = InitFlag(high << 32 | low)
    tail = answer[_OUT_HEADER.size + _INIT_OUT.size :]
    return InitAnswer(
        unique,
        major,
        minor,
        readahead,
        flags,
        background,
        congestion,
        max_write,
        time_gran,
        max_pages,
        map_alignment,
        tail,
    )


def edit_answer(offer: KernelInit, answer: InitAnswer, wish: Wish) -> InitAnswer:
    """libfuse's answer and what of the wish is offered. Raises InitMessageError if they do not match."""
    if answer.unique != offer.unique:
        raise InitMessageError(f"answer to request {answer.unique}, INIT is {offer.unique}")
    extra = wish.flags & offer.flags
    if not offer.flags & InitFlag.INIT_EXT:
        extra &= InitFlag(0xFFFFFFFF)
    if extra >> 32:
        extra |= InitFlag.INIT_EXT
    pages = answer.max_pages
    if offer.flags & answer.flags & InitFlag.MAX_PAGES:
        # Never more than libfuse can receive: max_write is its own and stays.
        pages = max(pages, min(answer.max_write // PAGESIZE, MAX_PAGES_CEILING))
    background = max(answer.max_background, wish.max_background)
    congestion = answer.congestion_threshold
    if background > answer.max_background:
        congestion = max(background * 3 // 4, 1)  # the kernel's own proportion
    return replace(
        answer,
        flags=answer.flags | extra,
        max_background=background,
        congestion_threshold=congestion,
        time_gran=1,  # nanoseconds: the kernel rounds times that it sets to this
        max_pages=pages,
    )


def negotiate(request: bytes, answer: bytes, wish: Wish) -> tuple[bytes, Negotiated]:
    """The bytes for the kernel and what they mean. Never raises: a surprise leaves `answer` as it is."""
    try:
        offer = parse_init(request)
        edited = edit_answer(offer, parse_answer(answer), wish)
    except InitMessageError as surprise:
        return answer, Negotiated(fallback=str(surprise))
    return edited.to_bytes(), Negotiated(
        kernel=(offer.major, offer.minor),
        flags=edited.flags,
        refused=wish.flags ^ wish.flags & edited.flags,
        max_background=edited.max_background,
        max_write=edited.max_write,
        max_pages=edited.max_pages,
    )

"""What the kernel asks: each request, packed here from linux/fuse.h, becomes the right call."""

import itertools
import struct
import time
from typing import Any

import pytest

from cmkfs.caller import Request
from cmkfs.fuse.dispatch import HANDLERS, forgotten
from cmkfs.fuse.messages import Changes, Listing, Opcode

NODE = 77
WHO = Request(1000, 1001, 4321)
PAYLOAD = bytes(range(256)) * 16

CALLS: dict[int, tuple[bytes, str, tuple[Any, ...]]] = {
    Opcode.LOOKUP: (b"name\0", "lookup", (NODE, b"name", WHO)),
    Opcode.GETATTR: (struct.pack("<IIQ", 0, 0, 0), "getattr", (NODE, WHO)),
    Opcode.READLINK: (b"", "readlink", (NODE, WHO)),
    Opcode.SYMLINK: (b"name\0target/of it\0", "symlink", (NODE, b"name", b"target/of it", WHO)),
    Opcode.MKNOD: (
        struct.pack("<IIII", 0o20644, 0x103, 0o22, 0) + b"name\0",
        "mknod",
        (NODE, b"name", 0o20644, 0x103, 0o22, WHO),
    ),
    Opcode.MKDIR: (struct.pack("<II", 0o755, 0o27) + b"name\0", "mkdir", (NODE, b"name", 0o755, 0o27, WHO)),
    Opcode.UNLINK: (b"name\0", "unlink", (NODE, b"name", WHO)),
    Opcode.RMDIR: (b"name\0", "rmdir", (NODE, b"name", WHO)),
    Opcode.RENAME: (struct.pack("<Q", 5) + b"old\0new\0", "rename", (NODE, b"old", 5, b"new", 0, WHO)),
    Opcode.RENAME2: (struct.pack("<QII", 5, 2, 0) + b"old\0new\0", "rename", (NODE, b"old", 5, b"new", 2, WHO)),
    Opcode.LINK: (struct.pack("<Q", 9) + b"name\0", "link", (9, NODE, b"name", WHO)),
    Opcode.OPEN: (struct.pack("<II", 0o2001, 0), "open", (NODE, 0o2001, False, WHO)),
    Opcode.CREATE: (
        struct.pack("<IIII", 0o102, 0o100640, 0o22, 0) + b"name\0",
        "create",
        (NODE, b"name", 0o100640, 0o102, 0o22, WHO),
    ),
    Opcode.READ: (struct.pack("<QQIIQII", 3, 2**40, 4096, 0, 0, 0, 0), "read", (3, 2**40, 4096)),
    Opcode.WRITE: (
        struct.pack("<QQIIQII", 3, 2**40, len(PAYLOAD), 0, 0, 0, 0) + PAYLOAD,
        "write",
        (3, 2**40, PAYLOAD, False),
    ),
    Opcode.STATFS: (b"", "statfs", (WHO,)),
    Opcode.RELEASE: (struct.pack("<QIIQ", 3, 0, 0, 0), "release", (3,)),
    Opcode.FSYNC: (struct.pack("<QII", 3, 1, 0), "fsync", (3, True)),
    Opcode.SETXATTR: (
        struct.pack("<II", 5, 2) + b"user.name\0va\0ue",
        "setxattr",
        (NODE, b"user.name", b"va\0ue", 2, WHO),
    ),
    Opcode.GETXATTR: (struct.pack("<II", 64, 0) + b"user.name\0", "getxattr", (NODE, b"user.name", WHO)),
    Opcode.LISTXATTR: (struct.pack("<II", 64, 0), "listxattr", (NODE, WHO)),
    Opcode.REMOVEXATTR: (b"user.name\0", "removexattr", (NODE, b"user.name", WHO)),
    Opcode.OPENDIR: (struct.pack("<II", 0, 0), "opendir", (NODE, WHO)),
    Opcode.RELEASEDIR: (struct.pack("<QIIQ", 3, 0, 0, 0), "releasedir", (3,)),
    Opcode.FSYNCDIR: (struct.pack("<QII", 3, 0, 0), "fsyncdir", (3, False)),
}


@pytest.mark.parametrize("opcode", CALLS, ids=lambda opcode: Opcode(opcode).name)
def test_a_request_becomes_a_call(opcode: int) -> None:
    body, name, arguments = CALLS[opcode]
    handler = HANDLERS[opcode]
    assert (handler.name, handler.arguments(NODE, WHO, memoryview(body))) == (name, arguments)


def test_no_request_is_left_out() -> None:
    assert set(HANDLERS) == {*CALLS, Opcode.SETATTR, Opcode.READDIR, Opcode.READDIRPLUS}


@pytest.mark.parametrize(("opcode", "plus"), [(Opcode.READDIR, False), (Opcode.READDIRPLUS, True)])
def test_a_listing_is_as_large_as_the_kernel_says(opcode: int, plus: bool) -> None:
    body = struct.pack("<QQIIQII", 3, 12, 4096, 0, 0, 0, 0)
    fh, offset, listing = HANDLERS[opcode].arguments(NODE, WHO, memoryview(body))
    assert (fh, offset) == (3, 12)
    assert isinstance(listing, Listing)
    assert listing.plus is plus
    assert HANDLERS[opcode].answer(listing, memoryview(body)) == b""


def setattr_message(valid: int) -> memoryview:
    """`fuse_setattr_in`."""
    head = struct.pack("<IIQQQ", valid, 0, 3, 1234, 0)
    times = struct.pack("<qqqIII", -5, 1_700_000_000, 99, 1, 2, 3)
    return memoryview(head + times + struct.pack("<IIIII", 0o100600, 0, 1000, 1001, 0))


MODE, UID, GID, SIZE, ATIME, MTIME, FH, ATIME_NOW, MTIME_NOW = (1 << bit for bit in range(9))
CTIME, KILL = 1 << 10, 1 << 11
SET = {
    SIZE: Changes(size=1234),
    MODE: Changes(mode=0o100600),
    UID: Changes(uid=1000),
    GID: Changes(gid=1001),
    ATIME: Changes(atime_ns=-5 * 10**9 + 1),
    MTIME: Changes(mtime_ns=1_700_000_000 * 10**9 + 2),
    CTIME: Changes(ctime_ns=99 * 10**9 + 3),
    KILL: Changes(kill_suidgid=True),
}


@pytest.mark.parametrize("chosen", [c for n in range(4) for c in itertools.combinations(SET, n)])
def test_setattr_sets_what_is_valid_and_nothing_else(chosen: tuple[int, ...]) -> None:
    expected = Changes()
    for bit in chosen:
        expected = Changes(
            *(new if new is not None and new is not False else old for new, old in zip(SET[bit], expected, strict=True))
        )
    arguments = HANDLERS[Opcode.SETATTR].arguments(NODE, WHO, setattr_message(sum(chosen)))
    assert arguments == (NODE, expected, None, WHO)
    assert expected.more_than_times is bool({SIZE, MODE, UID, GID} & set(chosen))
    assert expected.more_than_size is bool({MODE, UID, GID, ATIME, MTIME} & set(chosen))


def test_privileges_that_a_change_takes_away() -> None:
    opened = HANDLERS[Opcode.OPEN].arguments(NODE, WHO, memoryview(struct.pack("<II", 0o1001, 1)))
    assert opened == (NODE, 0o1001, True, WHO)
    message = struct.pack("<QQIIQII", 3, 0, 1, 4, 0, 0, 0) + b"x"
    assert HANDLERS[Opcode.WRITE].arguments(NODE, WHO, memoryview(message)) == (3, 0, b"x", True)


def test_setattr_by_a_descriptor() -> None:
    assert HANDLERS[Opcode.SETATTR].arguments(NODE, WHO, setattr_message(FH | SIZE)) == (NODE, SET[SIZE], 3, WHO)


@pytest.mark.parametrize(("bits", "which"), [(ATIME | ATIME_NOW, "atime_ns"), (MTIME | MTIME_NOW, "mtime_ns")])
def test_now_is_the_daemons_clock(bits: int, which: str) -> None:
    before = time.time_ns()
    _, changes, _, _ = HANDLERS[Opcode.SETATTR].arguments(NODE, WHO, setattr_message(bits))
    assert before <= getattr(changes, which) <= time.time_ns()


def test_what_the_kernel_forgets() -> None:
    assert forgotten(Opcode.FORGET, NODE, memoryview(struct.pack("<Q", 4))) == [(NODE, 4)]
    many = struct.pack("<IIQQQQ", 2, 0, 5, 1, 6, 2)
    assert forgotten(Opcode.BATCH_FORGET, 0, memoryview(many)) == [(5, 1), (6, 2)]

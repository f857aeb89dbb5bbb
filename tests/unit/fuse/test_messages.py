"""What the kernel is told, byte for byte as linux/fuse.h lays it out; the layouts here are written from that."""

import errno
import os
import stat
import struct

import pytest

from cmkfs.fuse.messages import (
    Entry,
    Listing,
    Opened,
    attr_bytes,
    entry_bytes,
    opened_bytes,
    refusal,
    statfs_bytes,
    xattr_bytes,
)

ENTRY = Entry(
    st_ino=7,
    generation=3,
    entry_timeout=5,
    attr_timeout=6,
    st_mode=stat.S_IFREG | 0o640,
    st_nlink=2,
    st_uid=1000,
    st_gid=1001,
    st_rdev=os.makedev(8, 300),
    st_size=12345,
    st_blocks=24,
    st_atime_ns=-1,
    st_mtime_ns=1_700_000_000_123_456_789,
    st_ctime_ns=2**31 * 10**9 + 5,
)
# ino size blocks atime mtime ctime, nanoseconds, mode nlink uid gid rdev blksize flags
ATTR = struct.pack("<QQQqqq", 7, 12345, 24, -1, 1_700_000_000, 2**31)
ATTR += struct.pack("<IIIIII", 999_999_999, 123_456_789, 5, stat.S_IFREG | 0o640, 2, 1000)
ATTR += struct.pack("<IIII", 1001, (8 << 8) | 44 | (256 << 12), 4096, 0)


def test_an_entry() -> None:
    assert entry_bytes(ENTRY) == struct.pack("<QQQQII", 7, 3, 5, 6, 0, 0) + ATTR
    assert len(entry_bytes(ENTRY)) == 128


def test_attributes() -> None:
    assert attr_bytes(ENTRY) == struct.pack("<QII", 6, 0, 0) + ATTR
    assert len(attr_bytes(ENTRY)) == 104


def test_an_open_file() -> None:
    assert opened_bytes(Opened(2**40, 3)) == struct.pack("<QII", 2**40, 3, 0)
    assert opened_bytes(Opened(1))[8] == 2, "the page cache is kept unless something else is said"


def test_statfs() -> None:
    found = os.statvfs("/")
    fields = struct.unpack("<QQQQQIIII24x", statfs_bytes(found))
    counts = (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree)
    assert fields == (*counts, found.f_bsize, 255, found.f_frsize, 0)


def test_a_refusal() -> None:
    assert refusal(2**63, errno.ENOKEY) == struct.pack("<IiQ", 16, -errno.ENOKEY, 2**63)


def test_the_length_of_an_attribute_is_told_when_asked() -> None:
    assert xattr_bytes(b"value", 0) == struct.pack("<II", 5, 0)
    assert xattr_bytes(b"value", 5) == b"value"
    with pytest.raises(OSError) as caught:
        xattr_bytes(b"value", 4)
    assert caught.value.errno == errno.ERANGE


@pytest.mark.parametrize("name", [b"a", b"1234567", b"12345678", b"\xff" * 255])
def test_a_listing_of_names(name: bytes) -> None:
    listing = Listing(4096, plus=False)
    assert listing.add(name, ENTRY, 9)
    whole = struct.pack("<QQII", 7, 9, len(name), stat.S_IFREG >> 12) + name
    assert listing.to_bytes() == whole.ljust(-(-len(whole) // 8) * 8, b"\0")


def test_a_listing_with_inodes() -> None:
    listing = Listing(4096, plus=True)
    assert listing.add(b"name", ENTRY, 1)
    whole = entry_bytes(ENTRY) + struct.pack("<QQII", 7, 1, 4, stat.S_IFREG >> 12) + b"name"
    assert listing.to_bytes() == whole.ljust(160, b"\0")


def test_a_full_listing_takes_no_more() -> None:
    listing = Listing(64, plus=False)
    assert listing.add(b"a", ENTRY, 1)
    assert listing.add(b"b", ENTRY, 2)
    before = listing.to_bytes()
    assert len(before) == 64
    assert not listing.add(b"c", ENTRY, 3)
    assert listing.to_bytes() == before

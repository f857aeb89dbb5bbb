"""The notifications' bytes, and what the kernel's refusals become."""

import errno
import os
import struct

import pytest

from cmkfs.fs.pagecache import inval_entry_message, inval_inode_message, notify


def test_inval_inode_is_40_bytes_of_linux_fuse_h() -> None:
    expected = struct.pack("<IiQQqq", 40, 2, 0, 1 << 63, 0, 0)
    assert inval_inode_message(1 << 63, attr_only=False) == expected


def test_attributes_only_is_a_negative_offset() -> None:
    assert inval_inode_message(7, attr_only=True) == struct.pack("<IiQQqq", 40, 2, 0, 7, -1, 0)


@pytest.mark.parametrize("name", [b"a", b"\xff" * 255, "ä,ö".encode(), b"a b\n"])
def test_inval_entry_ends_with_a_nul(name: bytes) -> None:
    expected = struct.pack("<IiQQII", 33 + len(name), 3, 0, 5, len(name), 0) + name + b"\0"
    assert inval_entry_message(5, name) == expected


@pytest.mark.parametrize("name", [b"", b"a\0b", b"a/b"])
def test_what_is_no_name_is_refused(name: bytes) -> None:
    with pytest.raises(ValueError, match="not a name"):
        inval_entry_message(1, name)


def test_errors_other_than_enoent_are_raised() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            notify(reader, inval_inode_message(1, attr_only=False))
    finally:
        os.close(reader)

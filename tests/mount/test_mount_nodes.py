"""What inode numbers, file handles and attributes of nodes promise."""

import ctypes
import errno
import os
from pathlib import Path

import pytest
from loop_disk import BACKING
from real_mount import RealMount

_libc = ctypes.CDLL(None, use_errno=True)
_ROOM = 128
_AT_FDCWD = -100


class _Handle(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * _ROOM))


def _handle_of(path: Path) -> _Handle:
    """name_to_handle_at(2)."""
    handle, mount = _Handle(bytes=_ROOM), ctypes.c_int()
    if _libc.name_to_handle_at(_AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0):
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    return handle


def _open_by(handle: _Handle, mounted: Path) -> int:
    """open_by_handle_at(2)."""
    mount = os.open(mounted, os.O_RDONLY)
    try:
        fd = int(_libc.open_by_handle_at(mount, ctypes.byref(handle), os.O_RDONLY))
    finally:
        os.close(mount)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "open_by_handle_at")
    return fd


def test_a_handle_opens_the_file_that_it_is_of(work: Path, shared_mount: RealMount) -> None:
    (work / "file").write_bytes(b"content")
    fd = _open_by(_handle_of(work / "file"), shared_mount.path)
    try:
        assert os.read(fd, 100) == b"content"
        assert os.fstat(fd).st_ino == (work / "file").stat().st_ino
    finally:
        os.close(fd)


def test_the_handle_of_a_removed_file_never_opens_the_next_one_of_its_number(work: Path) -> None:
    """ext4 gives the number of a removed file to the next one that is made in the directory."""
    handles, numbers, used_again = [], set(), 0
    for number in range(20):
        file = work / f"{number}"
        file.write_bytes(b"secret of " + os.fsencode(file.name))
        used_again += file.stat().st_ino in numbers
        numbers.add(file.stat().st_ino)
        for handle in handles:
            with pytest.raises(OSError) as caught:
                os.close(_open_by(handle, work))
            assert caught.value.errno == errno.ESTALE
        handles.append(_handle_of(file))
        file.unlink()
    assert used_again or BACKING not in ("", "ext4"), "no number was used again: the test shows nothing"


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_handle_does_not_outlive_the_mount(own_mount: RealMount, kind: str) -> None:
    """docs/limits.md: it is good while the kernel knows the inode, and the name leads to the same number after it."""
    path = own_mount.path / "node"
    path.write_bytes(b"content") if kind == "file" else path.mkdir()
    handle, number = _handle_of(path), path.stat().st_ino
    os.close(_open_by(handle, own_mount.path))
    own_mount.again()
    with pytest.raises(OSError) as caught:
        os.close(_open_by(handle, own_mount.path))
    assert caught.value.errno == errno.ESTALE
    assert path.stat().st_ino == number

"""What FUSE cannot do answers the errno that makes programs fall back (docs/limits.md has the list)."""

import ctypes
import errno
import fcntl
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from real_mount import RealMount

KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE, UNSHARE_RANGE = 1, 2, 8, 16, 32, 64
SEEK_DATA, SEEK_HOLE = os.SEEK_DATA, os.SEEK_HOLE
RENAME_WHITEOUT = 4
AT_FDCWD = -100
STATX_BTIME = 0x800
STATX_BASIC_STATS = 0x7FF
# <linux/fs.h>
FICLONE = 0x40049409
FICLONERANGE = 0x4020940D
FIDEDUPERANGE = 0xC0189436
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IOC_GETVERSION = 0x80087601
FS_IOC_FIEMAP = 0xC020660B
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820
FS_IOC_GETFSLABEL = 0x81009431
FS_IOC_ENABLE_VERITY = 0x40806685
FS_IOC_SET_ENCRYPTION_POLICY = 0x800C6613
FITRIM = 0xC0185879

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.statx.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p]


def _answer(call: Callable[[], object]) -> str:
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0].replace("ENOTSUP", "EOPNOTSUPP")  # one number, two names
    return "done"


def _checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.fixture
def file(work: Path) -> Path:
    """A file of 100,000 bytes."""
    path = work / "file"
    path.write_bytes(b"x" * 100_000)
    return path


def _with_fd(path: Path, call: Callable[[int], object], flags: int = os.O_RDWR) -> str:
    fd = os.open(path, flags)
    try:
        return _answer(lambda: call(fd))
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "mode",
    [0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, COLLAPSE_RANGE, INSERT_RANGE, UNSHARE_RANGE],
)
def test_fallocate_says_that_it_is_not_supported(file: Path, mode: int) -> None:
    assert _with_fd(file, lambda fd: _checked(_libc.fallocate(fd, mode, 0, 4096))) == "EOPNOTSUPP"
    assert file.read_bytes() == b"x" * 100_000


def test_posix_fallocate_falls_back_and_gives_the_size(file: Path) -> None:
    assert _with_fd(file, lambda fd: os.posix_fallocate(fd, 50_000, 150_000)) == "done"
    assert file.read_bytes() == b"x" * 100_000 + bytes(100_000)


def test_fallocate_and_cp_of_the_shell_fall_back(file: Path) -> None:
    """What users type: util-linux writes zeros with --posix; cp --reflink=auto copies; always says that it cannot."""
    copy = file.with_name("copy")
    subprocess.run(["fallocate", "--posix", "--length", "120000", str(copy)], check=True)
    assert copy.read_bytes() == bytes(120_000)
    subprocess.run(["cp", "--reflink=auto", str(file), str(copy)], check=True)
    assert copy.read_bytes() == file.read_bytes()
    done = subprocess.run(["cp", "--reflink=always", str(file), str(copy)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Operation not supported" in done.stderr


def test_seek_hole_and_data_see_a_file_without_holes(work: Path) -> None:
    path = work / "sparse"
    path.touch()
    os.truncate(path, 1_000_000)
    fd = os.open(path, os.O_RDWR)
    try:
        os.pwrite(fd, b"data", 500_000)
        assert os.lseek(fd, 0, SEEK_DATA) == 0
        assert os.lseek(fd, 700_000, SEEK_DATA) == 700_000
        assert os.lseek(fd, 0, SEEK_HOLE) == 1_000_000
        for whence in (SEEK_DATA, SEEK_HOLE):
            assert _answer(lambda whence=whence: os.lseek(fd, 1_000_000, whence)) == "ENXIO"  # type: ignore[misc]
    finally:
        os.close(fd)


def test_an_unnamed_file_is_not_supported(work: Path) -> None:
    assert _answer(lambda: os.open(work, os.O_TMPFILE | os.O_RDWR, 0o600)) == "EOPNOTSUPP"
    assert os.listdir(work) == []


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("FICLONE", lambda fd: fcntl.ioctl(fd, FICLONE, fd)),
        ("FICLONERANGE", lambda fd: fcntl.ioctl(fd, FICLONERANGE, struct.pack("qQQQ", fd, 0, 4096, 8192))),
        ("FIEMAP", lambda fd: fcntl.ioctl(fd, FS_IOC_FIEMAP, bytearray(struct.pack("QQIIII", 0, 1 << 20, 0, 0, 1, 0)))),
    ],
)
def test_clones_and_extents_are_not_supported(file: Path, name: str, call: Callable[[int], object]) -> None:
    assert _with_fd(file, call) == "EOPNOTSUPP", name


def test_deduplication_says_so_for_the_range(file: Path) -> None:
    """The call succeeds and each range has its own status (ioctl_fideduperange(2))."""
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    fd, to = os.open(file, os.O_RDWR), os.open(other, os.O_RDWR)
    try:
        argument = bytearray(struct.pack("QQHHI", 0, 4096, 1, 0, 0) + struct.pack("qQQiI", to, 0, 0, 0, 0))
        said = _answer(lambda: fcntl.ioctl(fd, FIDEDUPERANGE, argument))
        status = struct.unpack("qQQiI", argument[24:])[3]
        assert (said, status) in {("EOPNOTSUPP", 0), ("done", -errno.EOPNOTSUPP), ("done", -errno.EINVAL)}
    finally:
        os.close(fd)
        os.close(to)


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize(
    "request_",
    [
        FS_IOC_GETFLAGS,
        FS_IOC_SETFLAGS,
        FS_IOC_GETVERSION,
        FS_IOC_FSGETXATTR,
        FS_IOC_FSSETXATTR,
        FS_IOC_GETFSLABEL,
        FS_IOC_ENABLE_VERITY,
        FS_IOC_SET_ENCRYPTION_POLICY,
        FITRIM,
    ],
    ids=hex,
)
def test_ioctls_of_filesystems_are_not_known(file: Path, kind: str, request_: int) -> None:
    path, flags = (file, os.O_RDWR) if kind == "file" else (file.parent, os.O_RDONLY)
    assert _with_fd(path, lambda fd: fcntl.ioctl(fd, request_, bytearray(256)), flags) == "ENOTTY"


def test_lsattr_and_chattr_say_so(file: Path) -> None:
    for command in (["lsattr", str(file)], ["chattr", "+i", str(file)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "Operation not supported" in done.stderr  # as e2fsprogs renders ENOTTY


def test_there_is_no_birth_time(file: Path) -> None:
    buffer = ctypes.create_string_buffer(256)
    _checked(_libc.statx(AT_FDCWD, os.fsencode(file), 0, STATX_BASIC_STATS | STATX_BTIME, buffer))
    mask = struct.unpack_from("I", buffer)[0]
    assert mask & STATX_BASIC_STATS == STATX_BASIC_STATS
    assert not mask & STATX_BTIME
    said = subprocess.run(["stat", "--format=%W", str(file)], capture_output=True, text=True, check=True).stdout
    assert said == "0\n"


def test_a_whiteout_is_invalid(file: Path) -> None:
    target = file.with_name("target")
    call = lambda: _checked(  # noqa: E731
        _libc.renameat2(AT_FDCWD, os.fsencode(file), AT_FDCWD, os.fsencode(target), RENAME_WHITEOUT)
    )
    assert _answer(call) == "EINVAL"
    assert file.exists()


def test_copy_file_range_copies(file: Path) -> None:
    """The kernel copies through the page cache: no EOPNOTSUPP, no clone."""
    target = os.open(file.with_name("copy"), os.O_RDWR | os.O_CREAT)
    source = os.open(file, os.O_RDONLY)
    try:
        done = 0
        while done < 90_000:
            done += os.copy_file_range(source, target, 90_000 - done, 5_000 + done, 100 + done)
        assert os.pread(target, 100_000, 0) == bytes(100) + b"x" * 90_000
    finally:
        os.close(source)
        os.close(target)


def test_quotas_and_file_handles(file: Path) -> None:
    """name_to_handle_at(2) gives a handle or says that it cannot; quotactl_fd(2) says that there is none."""
    assert _with_fd(file, lambda fd: _checked(_libc.syscall(443, fd, 0x80000700, 0, 0))) in {
        "ENOSYS",
        "EINVAL",
        "ENODEV",
    }


def test_freezing_and_swapping_are_refused(file: Path) -> None:
    """FIFREEZE, as before a snapshot of the disk, and swapon(2) on a file."""
    assert _with_fd(file.parent, lambda fd: fcntl.ioctl(fd, 0xC0045877, 0), os.O_RDONLY) == "EOPNOTSUPP"
    assert _answer(lambda: _checked(_libc.swapon(os.fsencode(file), 0))) == "EINVAL"


def test_syncfs_and_sync_succeed_but_sync_nothing(own_mount: RealMount) -> None:
    """Only fsync, fdatasync and O_SYNC are durable at their return; settling does the rest within ten seconds."""
    path = own_mount.path / "file"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        begun = own_mount.ask("status")["backing_syncs"]
        os.write(fd, b"d" * 4096)
        _checked(_libc.syncfs(fd))
        os.sync()
        assert own_mount.ask("status")["backing_syncs"] - begun in {0, 1}  # 1: settling came in between
        os.write(fd, b"e" * 4096)
        before = own_mount.ask("status")["backing_syncs"]
        os.fsync(fd)
        assert own_mount.ask("status")["backing_syncs"] > before
    finally:
        os.close(fd)

"""Content of files: sizes, flags of open, truncation with other descriptors open, unlink while open."""

import errno
import fcntl
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from children import ALICE, BOB, in_child
from loop_disk import BACKING
from real_mount import Site
from side_by_side import SideBySide

BLOCK = 4048
SIZES = [0, 1, 2, 4047, 4048, 4049, 4095, 4096, 4097, 8096, 8097, 12144, 131072, 1048576, 3000001]


def _bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(seed * 7919 + size).randbytes(size)


@pytest.mark.parametrize("size", SIZES)
def test_content_of_every_length_comes_back(work: Path, size: int) -> None:
    data = _bytes(size)
    (work / "file").write_bytes(data)
    assert (work / "file").stat().st_size == size
    fd = os.open(work / "file", os.O_RDONLY | os.O_DIRECT)  # past the page cache: from the daemon
    try:
        buffer = mmap.mmap(-1, size + 4096)
        assert os.readv(fd, [buffer]) == size
        assert buffer[:size] == data
    finally:
        os.close(fd)


@pytest.mark.parametrize("old", [0, 1, 4047, 4048, 4049, 10000])
@pytest.mark.parametrize("new", [0, 1, 4047, 4048, 4049, 8096, 10000, 50000])
def test_truncate_by_path_and_by_descriptor(both: SideBySide, old: int, new: int) -> None:
    def by_path(place: Path) -> tuple[bytes, int]:
        file = place / "path"
        file.write_bytes(_bytes(old))
        with file.open("r+b") as other:
            os.truncate(file, new)
            return other.read(), os.fstat(other.fileno()).st_size

    def by_descriptor(place: Path) -> tuple[bytes, int]:
        file = place / "descriptor"
        file.write_bytes(_bytes(old))
        with file.open("rb") as other, file.open("r+b") as changed:
            changed.truncate(new)
            return other.read(), os.stat(file).st_size

    both.same(by_path)
    both.same(by_descriptor)
    both.same(lambda place: [(place / name).read_bytes() for name in ("path", "descriptor")])


def test_write_through_an_old_descriptor_after_a_truncate_by_path(both: SideBySide) -> None:
    """What lies between the new end and the write reads as zeros, never as what was there before."""

    def story(place: Path) -> list[object]:
        file = place / "file"
        fd = os.open(file, os.O_RDWR | os.O_CREAT)
        try:
            in_child(lambda: os.write(fd, b"a" * 4096))
            in_child(lambda: os.truncate(file, 8))
            in_child(lambda: os.pwrite(fd, b"b" * 4096, 4096))
            seen = in_child(file.read_bytes)
            return [seen, os.pread(fd, 10000, 0), os.fstat(fd).st_size]
        finally:
            os.close(fd)

    content, same_content, size = both.same(story)
    assert content == same_content == b"a" * 8 + bytes(4088) + b"b" * 4096
    assert size == 8192


def _open(path: Path, flags: int, mode: int = 0o644) -> None:
    os.close(os.open(path, flags, mode))


@pytest.mark.parametrize(
    "flags",
    [
        os.O_RDONLY,
        os.O_WRONLY,
        os.O_RDWR,
        os.O_RDWR | os.O_CREAT,
        os.O_RDWR | os.O_CREAT | os.O_EXCL,
        os.O_RDWR | os.O_TRUNC,
        os.O_WRONLY | os.O_TRUNC | os.O_APPEND,
        os.O_RDWR | os.O_CREAT | os.O_TRUNC,
        os.O_RDONLY | os.O_NOFOLLOW,
        os.O_RDONLY | os.O_DIRECTORY,
        os.O_RDONLY | os.O_DIRECT,
        os.O_RDWR | os.O_SYNC,
        os.O_PATH,
        os.O_RDWR | os.O_TMPFILE,
    ],
)
def test_open_flags_answer_as_on_the_plain_filesystem(both: SideBySide, flags: int) -> None:
    def prepare(place: Path) -> None:
        (place / "file").write_bytes(b"content")
        (place / "directory").mkdir()
        (place / "link").symlink_to("file")
        (place / "dangling").symlink_to("new too")

    both.same(prepare)
    for name in ("file", "missing", "directory", "link", "dangling"):
        if flags & os.O_TMPFILE == os.O_TMPFILE and name == "directory":
            continue  # not served: EOPNOTSUPP is what programs expect
        both.same(lambda place, name=name: _open(place / name, flags))  # type: ignore[misc]
    both.same_trees()


def test_append_goes_to_the_end_whoever_moves_it(both: SideBySide) -> None:
    def story(place: Path) -> bytes:
        file = place / "file"
        first, second = (os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND) for _ in range(2))
        third = os.open(file, os.O_RDWR)
        try:
            os.write(first, b"1" * 5000)
            os.write(second, b"2" * 10)
            os.ftruncate(third, 4050)
            os.write(first, b"3" * 10)
            os.pwrite(third, b"4", 9000)
            os.write(second, b"5" * 5000)
            os.lseek(first, 0, os.SEEK_SET)
            os.write(first, b"6")
            return file.read_bytes()
        finally:
            for fd in (first, second, third):
                os.close(fd)

    both.same(story)


def test_direct_io_and_cached_io_see_each_other(both: SideBySide) -> None:
    def story(place: Path) -> list[bytes]:
        file = place / "file"
        file.write_bytes(_bytes(20000))
        direct, cached = os.open(file, os.O_RDWR | os.O_DIRECT), os.open(file, os.O_RDWR)
        page = mmap.mmap(-1, 8192)
        try:
            seen = []
            os.preadv(cached, [page], 4096)
            page[:] = b"d" * 8192
            os.pwritev(direct, [page], 4096)
            seen.append(os.pread(cached, 20000, 0))
            os.pwrite(cached, b"c" * 100, 5000)
            os.preadv(direct, [page], 4096)
            seen.append(page[:])
            os.ftruncate(cached, 6000)
            seen.append(page[: os.preadv(direct, [page], 4096)])
            return seen
        finally:
            os.close(direct)
            os.close(cached)

    both.same(story)


class _Step:
    """Random operations on one file through several descriptors, in several processes, the same for one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.position = 0

    def choose(self) -> Callable[[Path, list[int]], object]:
        pick = self.random
        which, at = pick.randrange(4), pick.choice([pick.randrange(40000), pick.randrange(10) * BLOCK])
        size, value = pick.choice([1, 100, 4048, 4096, 9000]), pick.randrange(1, 256)
        data = bytes([value]) * size
        steps: list[Callable[[Path, list[int]], object]] = [
            lambda file, fds: os.pwrite(fds[which], data, at),
            lambda file, fds: os.pwrite(fds[which], data, at),
            lambda file, fds: os.pread(fds[which], size, at),
            lambda file, fds: os.pread(fds[which], 60000, 0),
            lambda file, fds: os.ftruncate(fds[which], at),
            lambda file, fds: os.truncate(file, at),
            lambda file, fds: os.truncate(file, 0) if at % 5 == 0 else None,
            lambda file, fds: os.fsync(fds[which]),
            lambda file, fds: os.fstat(fds[which]).st_size,
            lambda file, fds: os.close(os.open(file, os.O_WRONLY | os.O_TRUNC)) if at % 7 == 0 else None,
        ]
        step = pick.choice(steps)
        if pick.random() < 0.1:
            return lambda file, fds: in_child(lambda: step(file, fds))
        return step


@pytest.mark.parametrize("seed", range(6))
def test_many_operations_through_many_descriptors_give_what_a_plain_file_gives(both: SideBySide, seed: int) -> None:
    opened: dict[Path, list[int]] = {}
    for place in (both.mounted, both.plain):
        file = place / "file"
        modes = [os.O_RDWR | os.O_CREAT, os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_DIRECT]
        opened[place] = [os.open(file, mode) for mode in modes[:3]]
        opened[place].append(os.open(file, os.O_RDWR))
    try:
        steps = _Step(seed)
        for _ in range(250):
            step = steps.choose()
            both.same(lambda place: step(place / "file", opened[place]))  # noqa: B023 - called at once
        both.same(lambda place: (place / "file").read_bytes())
    finally:
        for fds in opened.values():
            for fd in fds:
                os.close(fd)


def test_a_file_without_a_name_goes_on_working(both: SideBySide) -> None:
    def story(place: Path) -> list[object]:
        file = place / "file"
        file.write_bytes(_bytes(9000))
        fd, second = os.open(file, os.O_RDWR), os.open(file, os.O_RDONLY)
        try:
            os.unlink(file)
            seen: list[object] = [os.fstat(fd).st_nlink, os.listdir(place)]
            os.pwrite(fd, b"x" * 5000, 7000)
            os.ftruncate(fd, 11000)
            os.fchmod(fd, 0o640)
            os.fchown(fd, ALICE.uid, ALICE.gid)
            os.utime(fd, ns=(1, 2))
            os.setxattr(fd, "user.a", b"value")
            os.fsync(fd)
            found = os.fstat(second)
            seen += [found.st_size, oct(found.st_mode), found.st_uid, found.st_mtime_ns, os.getxattr(second, "user.a")]
            seen += [os.pread(second, 20000, 0)]
            os.ftruncate(fd, 0)
            file.write_bytes(b"another")
            seen += [os.pread(second, 100, 0), file.read_bytes(), os.fstat(fd).st_ino != os.stat(file).st_ino]
            return seen
        finally:
            os.close(fd)
            os.close(second)

    both.same(story)


def test_a_file_opened_by_its_descriptor_again(both: SideBySide) -> None:
    """/proc/self/fd reopens what has no name any more."""

    def story(place: Path) -> bytes:
        fd = os.open(place / "file", os.O_RDWR | os.O_CREAT)
        again = -1
        try:
            os.write(fd, b"kept")
            os.unlink(place / "file")
            again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
            return os.read(again, 10)
        finally:
            os.close(fd)
            if again >= 0:
                os.close(again)

    both.same(story)


@pytest.mark.parametrize("size", [0, 1, 4048, 100_000])
def test_fsync_and_fdatasync_and_sync_of_directories(work: Path, size: int) -> None:
    fd = os.open(work / "file", os.O_RDWR | os.O_CREAT)
    directory = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.write(fd, _bytes(size))
        os.fsync(fd)
        os.fdatasync(fd)
        os.fsync(directory)
        os.fdatasync(directory)
        assert os.pread(fd, size + 1, 0) == _bytes(size)
    finally:
        os.close(fd)
        os.close(directory)


def test_offsets_that_no_file_can_have_are_refused(both: SideBySide) -> None:
    (both.mounted / "f").touch()
    (both.plain / "f").touch()
    for size in (-1, 2**63 - 1):
        both.same(lambda place, size=size: os.truncate(place / "f", size))  # type: ignore[misc]
    if BACKING in ("", "ext4"):  # others hold files of that size
        with pytest.raises(OSError) as refused:
            os.truncate(both.mounted / "f", 2**62)
        assert refused.value.errno == errno.EFBIG
    assert both.same(lambda place: (place / "f").stat().st_size) == 0


def test_space_is_reported_as_the_backing_has_it(work: Path, site: Site) -> None:
    here, below = os.statvfs(work), os.statvfs(site.below)
    for name in ("f_bsize", "f_frsize", "f_blocks", "f_files", "f_namemax"):
        assert getattr(here, name) == getattr(below, name), name
    assert here.f_bfree > 0
    assert here.f_bavail <= here.f_bfree


def test_blocks_are_those_that_the_file_takes(work: Path) -> None:
    (work / "file").write_bytes(_bytes(1_000_000))
    fd = os.open(work / "file", os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    blocks = (work / "file").stat().st_blocks
    assert 1_000_000 <= blocks * 512 < 1_100_000
    os.truncate(work / "file", 0)
    assert (work / "file").stat().st_blocks * 512 <= 8192


def test_locks_work_between_processes(work: Path) -> None:
    with (work / "file").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def try_flock() -> str:
            with (work / "file").open() as other:
                try:
                    fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return "refused"
                return "got it"

        def try_record_lock(first: int) -> str:
            with (work / "file").open("r+") as other:
                try:
                    fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, first)
                except OSError:
                    return "refused"
                return "got it"

        assert in_child(try_flock) == "refused"
        fcntl.flock(file, fcntl.LOCK_UN)
        assert in_child(try_flock) == "got it"
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 100)
        assert in_child(lambda: try_record_lock(105)) == "refused"
        assert in_child(lambda: try_record_lock(110)) == "got it"


def test_setuid_and_setgid_go_when_others_change_the_content(both: SideBySide) -> None:
    """Where Linux clears them: write, truncate and O_TRUNC by others, chown by anybody."""

    def prepare(place: Path, name: str, mode: int) -> Path:
        file = place / name
        file.write_bytes(b"#!program")
        os.chown(file, ALICE.uid, ALICE.gid)
        file.chmod(mode)
        return file

    def write(file: Path) -> None:
        with file.open("r+b", buffering=0) as opened:
            opened.write(b"x")

    changes: dict[str, Callable[[Path], object]] = {
        "write": write,
        "truncate": lambda file: os.truncate(file, 3),
        "empty": lambda file: os.truncate(file, 0),
        "open": lambda file: os.close(os.open(file, os.O_WRONLY | os.O_TRUNC)),
        "nothing": lambda file: os.close(os.open(file, os.O_RDWR)),
        "chown": lambda file: os.chown(file, -1, ALICE.gid),
        "times": lambda file: os.utime(file),
    }
    for who in (None, ALICE, BOB):
        for name, change in changes.items():
            for mode in (0o6777, 0o6767, 0o4777, 0o2777, 0o2767):

                def changed(place: Path) -> str:
                    file = prepare(place, f"{name} {mode:o} {who}", mode)  # noqa: B023
                    try:
                        in_child(lambda: change(file), who)  # noqa: B023
                    except PermissionError:
                        return "refused"
                    return oct(file.stat().st_mode)

                both.same(changed)

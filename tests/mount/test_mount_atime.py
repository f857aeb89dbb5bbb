"""Access times: which reads move them, whether the kernel has the file cached or not; as on ext4 with relatime."""

import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from real_mount import RealMount
from rules import LONG_AGO, wait_for_the_clock
from side_by_side import SideBySide

SIZES = [1, 4096, 65_536, 65_537, 1_000_000]
"""On both sides of what is read again as a whole."""
DAY = 86_400 * 10**9


@contextmanager
def _opened(file: Path, flags: int) -> Iterator[int]:
    fd = os.open(file, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def _read(file: Path, flags: int = os.O_RDONLY, length: int = 1) -> bytes:
    with _opened(file, flags) as fd:
        return os.read(fd, length)


def _map(file: Path) -> int:
    with _opened(file, os.O_RDONLY) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
        return mapped[0]


def _moved(file: Path, act: Callable[[Path], object]) -> bool:
    before = os.stat(file)
    wait_for_the_clock(max(before.st_atime_ns, before.st_mtime_ns, before.st_ctime_ns))
    act(file)
    return os.stat(file).st_atime_ns != before.st_atime_ns


@pytest.mark.parametrize("size", SIZES)
def test_the_first_read_of_what_was_just_written_and_not_the_second(both: SideBySide, size: int) -> None:
    def story(place: Path) -> list[object]:
        file = place / "file"
        file.write_bytes(b"x" * size)
        told: list[object] = [_moved(file, lambda file: os.close(os.open(file, os.O_RDONLY)))]
        told += [_moved(file, lambda file: _read(file, os.O_RDONLY | os.O_NOATIME))]
        told += [_moved(file, _read), _moved(file, _read), _moved(file, lambda file: file.read_bytes())]
        with file.open("r+b") as opened:
            opened.write(b"y")
        return [*told, _moved(file, _read), _moved(file, _read), file.read_bytes() == b"y" + b"x" * (size - 1)]

    assert both.same(story) == [False, False, True, False, False, True, False, True]


@pytest.mark.parametrize("size", SIZES)
def test_every_way_to_read(both: SideBySide, size: int) -> None:
    ways: dict[str, Callable[[Path], object]] = {
        "read": lambda file: file.read_bytes(),
        "map": _map,
        "cat": lambda file: subprocess.run(["cat", str(file)], check=True, stdout=subprocess.PIPE),
        "cp": lambda file: subprocess.run(["cp", str(file), f"{file} copy"], check=True),
        "cmp": lambda file: subprocess.run(["cmp", str(file), str(file)], check=True),
        "direct": lambda file: _read_direct(file, size),
        "stat": lambda file: (os.stat(file), os.access(file, os.R_OK), os.listdir(file.parent)),
        "chmod": lambda file: file.chmod(0o640),
        "rename": lambda file: (file.rename(f"{file} new"), os.rename(f"{file} new", file)),
        "append": lambda file: subprocess.run(["sh", "-c", 'echo >>"$0"', str(file)], check=True),
    }
    for name, way in ways.items():

        def story(place: Path) -> bool:
            file = place / name  # noqa: B023 - called at once
            file.write_bytes(b"x" * size)
            os.utime(file, ns=(LONG_AGO, LONG_AGO))
            return _moved(file, way)  # noqa: B023

        both.same(story)


def _read_direct(file: Path, size: int) -> int:
    with _opened(file, os.O_RDONLY | os.O_DIRECT) as fd:
        return os.readv(fd, [mmap.mmap(-1, size + 4096)])


def test_an_access_time_of_yesterday(both: SideBySide) -> None:
    """Once a day a read moves it, also if nothing was written since."""

    def story(place: Path) -> list[bool]:
        file = place / "file"
        file.write_bytes(b"content")
        told = []
        for age in (DAY // 2, DAY + 10**9):
            now = os.stat(file).st_ctime_ns
            os.utime(file, ns=(now - age, now - 3 * DAY))
            told.append(_moved(file, lambda file: _read(file, os.O_RDONLY)))
        return told

    assert both.same(story) == [True, True]


def test_the_first_read_after_a_change_that_is_none_of_content(both: SideBySide) -> None:
    changes: dict[str, Callable[[Path], object]] = {
        "chmod": lambda file: file.chmod(0o640),
        "chown": lambda file: os.chown(file, 1, 1),
        "setxattr": lambda file: os.setxattr(file, "user.a", b"1"),
        "removexattr": lambda file: os.removexattr(file, "user.a"),
        "link": lambda file: os.link(file, f"{file} link"),
        "unlink": lambda file: os.unlink(f"{file} link"),
        "rename": lambda file: (file.rename(f"{file} new"), os.rename(f"{file} new", file)),
    }

    def story(place: Path) -> list[bool]:
        file = place / "file"
        file.write_bytes(b"content")
        told = [_moved(file, _read), _moved(file, _read)]
        for change in changes.values():
            wait_for_the_clock(os.stat(file).st_atime_ns)
            change(file)
            told += [_moved(file, _read), _moved(file, _read)]
        return told

    assert both.same(story) == [True, False] * (1 + len(changes))


def test_what_is_not_cached(own_mount: RealMount) -> None:
    """After a remount: a read moves it, with O_NOATIME not, and neither does a write to a part of a page."""
    acts: dict[str, tuple[Callable[[Path], object], bool]] = {
        "read": (_read, True),
        "without": (lambda file: _read(file, os.O_RDONLY | os.O_NOATIME, 100_000), False),
        "append": (lambda file: subprocess.run(["sh", "-c", 'echo >>"$0"', str(file)], check=True), False),
        "overwrite": (lambda file: _overwrite(file), False),
    }
    for name in acts:
        (own_mount.path / name).write_bytes(b"x" * 50_000)
        os.utime(own_mount.path / name, ns=(LONG_AGO, LONG_AGO))
    own_mount.again()
    told = {name: _moved(own_mount.path / name, act) for name, (act, _) in acts.items()}
    assert told == {name: moves for name, (_, moves) in acts.items()}


def _overwrite(file: Path) -> None:
    with _opened(file, os.O_WRONLY) as fd:
        os.pwrite(fd, b"y", 20_000)


def test_what_the_kernel_reads_from_its_cache_all_the_same(work: Path) -> None:
    """docs/limits.md: by a descriptor that may write, or while somebody else has the file open."""
    file = work / "file"
    file.write_bytes(b"content")
    assert not _moved(file, lambda file: _read(file, os.O_RDWR))
    with _opened(file, os.O_RDWR):
        assert not _moved(file, _read)
    assert _moved(file, _read)
    file.write_bytes(b"")
    assert not _moved(file, _read)

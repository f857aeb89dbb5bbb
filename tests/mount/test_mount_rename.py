"""rename(2) and renameat2(2): over everything, with everything open, side by side with the plain filesystem."""

import ctypes
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from children import Child, all_at_once, in_child
from real_mount import RealMount
from side_by_side import SideBySide

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
LONG = "l" * 250
KINDS = ["missing", "file", "other link", "empty", "full", "symlink", "fifo"]


def renameat2(source: Path, target: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(source), -100, os.fsencode(target), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def make(path: Path, kind: str, other: Path) -> None:
    """A node of a kind; `other` is what "other link" is another name of."""
    makers: dict[str, Callable[[], object]] = {
        "missing": lambda: None,
        "file": lambda: path.write_bytes(os.fsencode(path.name) * 1000),
        "other link": lambda: os.link(other, path),
        "empty": path.mkdir,
        "full": lambda: (path / "inner").mkdir(parents=True),
        "symlink": lambda: path.symlink_to("somewhere"),
        "fifo": lambda: os.mkfifo(path),
    }
    makers[kind]()


@pytest.mark.parametrize("flags", [0, NOREPLACE, EXCHANGE, WHITEOUT | EXCHANGE, NOREPLACE | EXCHANGE])
@pytest.mark.parametrize("names", [("a", "b"), (LONG + "a", LONG + "b"), ("a", LONG)], ids=["short", "long", "mixed"])
def test_every_kind_over_every_kind(both: SideBySide, flags: int, names: tuple[str, str]) -> None:
    for number, (old, new) in enumerate(itertools.product(KINDS, KINDS)):
        for spread in (False, True):
            top = f"{number} {spread}"

            def story(place: Path) -> None:
                here = place / top  # noqa: B023 - called at once
                (here / "sub").mkdir(parents=True)
                (here / "other").write_bytes(b"other")
                source = here / names[0]
                target = (here / "sub" if spread else here) / names[1]  # noqa: B023
                make(source, old, here / "other")  # noqa: B023
                make(target, new, here / "other")  # noqa: B023
                renameat2(source, target, flags)

            both.same(story)
    both.same_trees()


@pytest.mark.parametrize("flags", [0, NOREPLACE, EXCHANGE])
def test_a_directory_into_itself(both: SideBySide, flags: int) -> None:
    def story(place: Path) -> None:
        (place / "a" / "b" / "c").mkdir(parents=True, exist_ok=True)
        renameat2(place / "a", place / "a" / "b" / "c", flags)

    assert both.same(story) == ("EEXIST" if flags == NOREPLACE else "EINVAL")
    both.same(lambda place: renameat2(place / "a" / "b", place / "a", flags))
    both.same(lambda place: renameat2(place / "a", place / "a", flags))
    both.same_trees()


def test_over_an_open_file_the_old_one_stays_readable(both: SideBySide) -> None:
    def story(place: Path) -> list[object]:
        (place / "new").write_bytes(b"new" * 3000)
        (place / "old").write_bytes(b"old" * 3000)
        old, new = os.open(place / "old", os.O_RDWR), os.open(place / "new", os.O_RDWR)
        try:
            os.pwrite(old, b"dirty", 100)
            os.rename(place / "new", place / "old")
            os.pwrite(new, b"fresh", 9000)
            os.pwrite(old, b"more", 9000)
            seen: list[object] = [os.pread(old, 20000, 0), os.pread(new, 20000, 0), (place / "old").read_bytes()]
            return [*seen, os.fstat(old).st_nlink, os.fstat(new).st_nlink, os.listdir(place)]
        finally:
            os.close(old)
            os.close(new)

    both.same(story)


def test_exchange_of_open_files(both: SideBySide) -> None:
    def story(place: Path) -> list[object]:
        (place / "d").mkdir()
        (place / "a").write_bytes(b"a" * 5000)
        (place / "d" / LONG).write_bytes(b"b" * 5000)
        first, second = os.open(place / "a", os.O_RDWR), os.open(place / "d" / LONG, os.O_RDWR)
        try:
            renameat2(place / "a", place / "d" / LONG, EXCHANGE)
            os.pwrite(first, b"1", 4999)
            os.pwrite(second, b"2", 4999)
            same = os.fstat(first).st_ino == os.stat(place / "d" / LONG).st_ino
            return [(place / "a").read_bytes(), (place / "d" / LONG).read_bytes(), same]
        finally:
            os.close(first)
            os.close(second)

    both.same(story)


@pytest.mark.parametrize("names", [("a", "b"), (LONG + "a", LONG + "b"), ("a", LONG)], ids=["short", "long", "mixed"])
def test_an_exchange_across_directories_is_whole_when_the_daemon_is_killed(
    own_mount: RealMount, names: tuple[str, str]
) -> None:
    """Each of two names leads to one of two files, never both to one, and none is lost."""
    first, second = own_mount.path / "one" / names[0], own_mount.path / "two" / names[1]
    for path in (first, second):
        path.parent.mkdir()
        path.write_bytes(os.fsencode(path.parent.name))
    turns = own_mount.path / "turns"
    turns.mkdir()

    def exchange() -> None:
        for turn in itertools.count():
            try:
                renameat2(first, second, EXCHANGE)
                (turns / f"{turn}").mkdir()
            except OSError:
                return  # the daemon is dead

    child = Child(exchange)
    child.go()
    while not (turns / "20").exists():
        continue
    own_mount.kill()
    child.result()
    own_mount.up()
    assert {first.read_bytes(), second.read_bytes()} == {b"one", b"two"}
    assert [os.listdir(path.parent) for path in (first, second)] == [[names[0]], [names[1]]]


def test_a_directory_moves_with_open_files_below(both: SideBySide) -> None:
    def story(place: Path) -> list[object]:
        (place / "a" / "b").mkdir(parents=True)
        (place / "c").mkdir()
        fd = os.open(place / "a" / "b" / "file", os.O_RDWR | os.O_CREAT)
        below = os.open(place / "a" / "b", os.O_RDONLY)
        try:
            os.write(fd, b"before" * 1000)
            os.rename(place / "a", place / "c" / "moved")
            os.write(fd, b"after" * 1000)
            os.fsync(fd)
            os.close(os.open("made here", os.O_CREAT, dir_fd=below))
            os.rename(place / "c", place / LONG)
            os.setxattr(fd, "user.x", b"y")
            os.fchmod(fd, 0o600)
            seen = (place / LONG / "moved" / "b" / "file").read_bytes()
            return [seen, sorted(os.listdir(below)), os.path.exists(place / "a"), os.listdir(place)]
        finally:
            os.close(fd)
            os.close(below)

    both.same(story)
    both.same_trees()


def test_an_empty_directory_that_is_replaced_while_somebody_is_in_it(both: SideBySide) -> None:
    def story(place: Path) -> list[object]:
        (place / "new" / "inner").mkdir(parents=True)
        (place / "old").mkdir()
        fd = os.open(place / "old", os.O_RDONLY)
        try:
            os.rename(place / "new", place / "old")
            return [os.fstat(fd).st_nlink, os.listdir(place), os.listdir(place / "old"), place.stat().st_nlink]
        finally:
            os.close(fd)

    both.same(story)


def test_a_reader_always_finds_one_of_the_two(work: Path) -> None:
    """rename replaces in one step, for files and for whoever looks at the same time."""
    (work / "file").write_bytes(b"0" * 5000)

    def replace() -> None:
        for number in range(150):
            (work / "new").write_bytes(str(number % 10).encode() * 5000)
            os.rename(work / "new", work / "file")

    def look() -> None:
        for _ in range(300):
            data = (work / "file").read_bytes()
            assert len(data) == 5000
            assert data == data[:1] * 5000

    all_at_once([replace, look, look])
    assert os.listdir(work) == ["file"]


def test_many_processes_move_one_name_to_and_fro(work: Path) -> None:
    (work / "a").mkdir()
    (work / "b").mkdir()
    (work / "a" / "it").write_bytes(b"x" * 100)

    def move() -> int:
        moved = 0
        for _ in range(100):
            for source, target in (("a", "b"), ("b", "a")):
                try:
                    os.rename(work / source / "it", work / target / "it")
                    moved += 1
                except FileNotFoundError:
                    continue
        return moved

    assert sum(all_at_once([move] * 3)) > 0
    assert len(os.listdir(work / "a") + os.listdir(work / "b")) == 1
    [kept] = work.glob("*/it")
    assert in_child(kept.read_bytes) == b"x" * 100

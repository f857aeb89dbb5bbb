"""Times, modes and owners: set in all combinations, by path and by descriptor, and kept over a remount."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from children import ALICE, BOB, Who
from real_mount import RealMount
from rules import wait_for_the_clock
from side_by_side import SideBySide

NODES = ["file", "directory", "fifo"]
TIMES = [0, 1, 999_999_999, 1_000_000_001, 1_700_000_000_123_456_789, 2**32 * 10**9 + 7, -1, -1_500_000_000]


def _nodes(place: Path) -> None:
    (place / "file").write_bytes(b"content")
    (place / "directory").mkdir()
    os.mkfifo(place / "fifo")


def _by_path(path: Path, change: Callable[[str], None]) -> None:
    change(str(path))


def _by_descriptor(path: Path, change: Callable[[str], None]) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        change(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _by_handle(path: Path, change: Callable[[str], None]) -> None:
    """While somebody has it open for writing, with something written."""
    if not path.is_file():
        return _by_path(path, change)
    fd = os.open(path, os.O_RDWR)
    try:
        os.write(fd, b"more")
        change(str(path))
    finally:
        os.close(fd)
    return None


WAYS = [_by_path, _by_descriptor, _by_handle]


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("way", WAYS)
def test_times_to_the_nanosecond(both: SideBySide, node: str, way: Callable[..., None]) -> None:
    both.same(_nodes)
    for atime, mtime in itertools.product(TIMES, TIMES):

        def story(place: Path) -> tuple[int, int]:
            way(place / node, lambda path: os.utime(path, ns=(atime, mtime)))  # noqa: B023 - called at once
            found = os.stat(place / node)
            return found.st_atime_ns, found.st_mtime_ns

        both.same(story)


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("way", WAYS)
def test_mode_and_owner(both: SideBySide, node: str, way: Callable[..., None]) -> None:
    both.same(_nodes)
    changes: list[Callable[[str], None]] = [
        lambda path: os.chmod(path, 0o6751),
        lambda path: os.chown(path, ALICE.uid, -1),
        lambda path: os.chmod(path, 0o1777),
        lambda path: os.chown(path, -1, BOB.gid),
        lambda path: os.chmod(path, 0o4755),
        lambda path: os.chown(path, -1, -1),
        lambda path: os.chown(path, 2**31, 2**32 - 2),
        lambda path: os.chmod(path, 0),
    ]
    for change in changes:

        def story(place: Path) -> tuple[str, int, int]:
            way(place / node, change)  # noqa: B023 - called at once
            found = os.stat(place / node)
            return oct(found.st_mode), found.st_uid, found.st_gid

        both.same(story)


@pytest.mark.parametrize("who", [None, ALICE, Who(ALICE.uid, ALICE.gid, (BOB.gid,)), BOB])
def test_who_may_change_what(both: SideBySide, who: Who | None) -> None:
    changes: list[Callable[[Path], object]] = [
        lambda file: os.chmod(file, 0o600),
        lambda file: os.chmod(file, 0o2755),
        lambda file: os.chown(file, BOB.uid, -1),
        lambda file: os.chown(file, -1, BOB.gid),
        lambda file: os.chown(file, ALICE.uid, ALICE.gid),
        lambda file: os.utime(file, ns=(5, 6)),
        lambda file: os.utime(file),
        lambda file: os.truncate(file, 3),
        lambda file: file.read_bytes(),
        lambda file: file.write_bytes(b"new"),
        lambda file: os.listxattr(file),
    ]
    for number, change in enumerate(changes):
        for mode in (0o644, 0o666, 0o2775, 0o000):

            def prepare(place: Path) -> None:
                file = place / f"{number} {mode:o}"  # noqa: B023 - called at once
                file.write_bytes(b"content")
                os.chown(file, ALICE.uid, ALICE.gid)
                file.chmod(mode)  # noqa: B023

            both.same(prepare)
            both.same(lambda place: change(place / f"{number} {mode:o}"), who)  # noqa: B023
    both.same_trees()


def test_what_a_change_does_to_times(both: SideBySide) -> None:
    """Which of mtime and ctime move, for each operation, on the node and on its directory."""
    long_ago = 1_000_000_000 * 10**9

    def write(path: Path) -> None:
        with path.open("ab") as file:
            file.write(b"x")

    def write_nothing(path: Path) -> None:
        os.close(os.open(path, os.O_WRONLY))

    operations: dict[str, Callable[[Path], object]] = {
        "write": lambda top: write(top / "file"),
        "open": lambda top: write_nothing(top / "file"),
        "read": lambda top: (top / "file").read_bytes(),
        "truncate": lambda top: os.truncate(top / "file", 3),
        "extend": lambda top: os.truncate(top / "file", 9000),
        "empty": lambda top: os.truncate(top / "file", 0),
        "empty by open": lambda top: os.close(os.open(top / "file", os.O_WRONLY | os.O_TRUNC)),
        # Not here: truncate to the size that it has. The kernel keeps mtime itself (writeback cache) and moves
        # it only when the size changes; it asks nobody.
        "chmod": lambda top: os.chmod(top / "file", 0o600),
        "link": lambda top: os.link(top / "file", top / "link"),
        "rename": lambda top: os.rename(top / "file", top / "moved"),
        "unlink": lambda top: os.unlink(top / "other"),
        "xattr": lambda top: os.setxattr(top / "file", "user.x", b"1"),
        "create": lambda top: (top / "new").touch(),
        "mkdir": lambda top: (top / "d").mkdir(),
        "symlink": lambda top: (top / "s").symlink_to("x"),
    }
    for name, operation in operations.items():

        def story(place: Path) -> dict[str, tuple[bool, bool]]:
            top = place / name  # noqa: B023 - called at once
            top.mkdir()
            (top / "file").write_bytes(b"content")
            os.link(top / "file", top / "other") if name == "unlink" else None  # noqa: B023
            os.utime(top / "file", ns=(long_ago, long_ago))
            os.utime(top, ns=(long_ago, long_ago))
            before = {node: os.stat(node).st_ctime_ns for node in (top, top / "file")}
            wait_for_the_clock(max(before.values()))
            operation(top)  # noqa: B023
            seen = {}
            for node in (top, top / "file" if (top / "file").exists() else top / "moved"):
                now = os.stat(node)
                old = before.get(node, before[top / "file"])
                seen[node.name] = (now.st_mtime_ns != long_ago, now.st_ctime_ns != old)
            return seen

        both.same(story)


def test_everything_survives_a_remount(own_mount: RealMount) -> None:
    top = own_mount.path
    (top / "d").mkdir(mode=0o1770)
    nodes = {"file": 0o4751, "d": 0o2700, "d/inner": 0o400, "fifo": 0o622}
    (top / "file").write_bytes(b"x" * 12345)
    (top / "d" / "inner").touch()
    os.mkfifo(top / "fifo")
    os.symlink("t" * 2000, top / "link")
    os.link(top / "file", top / "hard")
    for number, (name, mode) in enumerate(nodes.items()):
        os.chown(top / name, 1000 + number, 2000 + number)
        os.chmod(top / name, mode)
        os.utime(top / name, ns=(10**18 + number, 10**18 + 123456789 + number))
    os.utime(top / "link", ns=(7, 8), follow_symlinks=False)

    def look() -> dict[str, tuple[object, ...]]:
        seen: dict[str, tuple[object, ...]] = {}
        for name in [*nodes, "link", "hard", "."]:
            found = os.lstat(top / name)
            seen[name] = (
                *(found.st_ino, oct(found.st_mode), found.st_uid, found.st_gid, found.st_size, found.st_nlink),
                *(found.st_mtime_ns if name != "." else 0, found.st_atime_ns if name not in (".", "link") else 0),
            )
        return seen

    before = look()
    own_mount.again()
    assert look() == before
    own_mount.again("ro")
    assert look() == before


def test_mtime_is_when_the_program_wrote_not_when_it_was_stored(own_mount: RealMount) -> None:
    """Storing and settling later must not show: what make and rsync compare would move."""
    file = own_mount.path / "file"
    with file.open("wb") as opened:
        opened.write(b"x" * 100_000)
        opened.flush()
        seen = file.stat().st_mtime_ns
        os.fsync(opened.fileno())
        assert file.stat().st_mtime_ns == seen
    assert file.stat().st_mtime_ns == seen
    os.truncate(own_mount.path / "file", 50)
    cut = file.stat().st_mtime_ns
    own_mount.again()
    assert file.stat().st_mtime_ns == cut

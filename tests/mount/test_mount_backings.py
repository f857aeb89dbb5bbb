"""A vault on each kind of filesystem that is promised: the mount is the same on all of them.

One story with everything in which filesystems differ runs on the mount and on an ordinary directory, then after a
remount and after the daemon was killed. The ordinary directory is that of the other tests and not one beside the
vault: xfs itself has no symlinks of more than 1,023 bytes, a vault on it has.
"""

import ctypes
import errno
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from children import ALICE, in_child
from loop_disk import KINDS, loop_disk
from real_mount import SHARED_CMK, RealMount, Site
from side_by_side import SideBySide, tree

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
LONG = "n" * 255
LONGER_IN_BYTES = "é" * 127  # 254 bytes
YEAR_2000 = 946_684_800_000_000_000
_libc = ctypes.CDLL(None, use_errno=True)


def _renameat2(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


@dataclass(frozen=True)
class Disk:
    """A filesystem with a mounted vault on it."""

    kind: str
    mounted: RealMount


@pytest.fixture(scope="module", params=KINDS)
def disk(request: pytest.FixtureRequest, site: Site) -> Iterator[Disk]:
    """One per kind, for all tests of this module."""
    top = Path(tempfile.mkdtemp(prefix=f"b{request.param}", dir=site.top))
    top.chmod(0o755)
    try:
        with loop_disk(top, request.param) as where:
            vault, mountpoint = where / "vault", top / "mnt"
            mountpoint.mkdir()
            site.cmkfs("init", str(vault), "--cmk", SHARED_CMK)
            vault.chmod(0o755)
            mounted = RealMount(site, vault, mountpoint, ["allow_other"])
            mounted.expected_log = ["guardian: the daemon died; what the kernel had cached was dropped"]
            try:
                yield Disk(request.param, mounted)
            finally:
                mounted.clear()
    finally:
        shutil.rmtree(top)


@pytest.fixture
def both(disk: Disk, plain: Path) -> Iterator[SideBySide]:
    """An empty directory on the mount of that disk, and a plain one."""
    made = Path(tempfile.mkdtemp(prefix="t", dir=disk.mounted.path))
    made.chmod(0o777)
    yield SideBySide(made, plain)
    shutil.rmtree(made)
    disk.mounted.check()


def _same_trees(both: SideBySide) -> None:
    """The same names, attributes and content."""
    trees = [tree(top, times=False) for top in (both.mounted, both.plain)]
    assert trees[0] == trees[1]


def _names(place: Path) -> list[object]:
    (place / LONG).mkdir()
    (place / LONG / LONG).write_bytes(b"long in long")
    (place / LONG / LONGER_IN_BYTES).write_bytes(b"utf-8")
    (place / os.fsdecode(b"\xff\n \\")).write_bytes(b"any byte")
    os.link(place / LONG / LONG, place / ("h" * 200))
    for length in (1, 100, 1_000, 1_023, 1_024, 4_095):
        (place / f"link{length}").symlink_to(("t" * 200 + "/") * (length // 201) + "t" * (length % 201))
    with pytest.raises(OSError) as caught:
        (place / ("n" * 256)).touch()
    return [sorted(os.listdir(place)), sorted(os.listdir(place / LONG)), caught.value.errno == errno.ENAMETOOLONG]


def _renames(place: Path) -> list[object]:
    for name in ("a", "x" * 250):
        (place / name).write_bytes(name.encode())
    (place / "d" / "below").mkdir(parents=True)
    (place / "empty").mkdir()
    said: list[object] = []
    for old, new, flags in (
        ("a", "x" * 250, RENAME_EXCHANGE),
        ("x" * 250, "d", RENAME_EXCHANGE),
        ("a", "d", RENAME_NOREPLACE),
        ("a", "moved" * 45, RENAME_NOREPLACE),
        ("a", "nothing", RENAME_EXCHANGE),
        ("x" * 250, "empty", 0),
        ("empty", "empty/inside", 0),
    ):
        try:
            _renameat2(place / old, place / new, flags)
            said.append("done")
        except OSError as error:
            said.append(errno.errorcode[error.errno or 0])
    return [said, sorted(os.listdir(place))]


def _xattrs(place: Path) -> list[object]:
    (place / "file").touch()
    (place / "dir").mkdir()
    said: list[object] = []
    for path in (place / "file", place / "dir"):
        os.setxattr(path, "user.small", b"")
        os.setxattr(path, "user.large", b"v" * 1_000)
        os.setxattr(path, "user." + "n" * 100, bytes(range(256)), os.XATTR_CREATE)
        os.removexattr(path, "user.small")
        said.append({name: os.getxattr(path, name) for name in sorted(os.listxattr(path))})
    with pytest.raises(OSError) as caught:
        os.getxattr(place / "file", "user.small")
    return [*said, caught.value.errno == errno.ENODATA]


def _sizes(place: Path) -> list[object]:
    sparse = place / "sparse"
    with sparse.open("wb", buffering=0) as file:
        file.truncate(60 << 20)
        os.pwrite(file.fileno(), b"middle", 20 << 20)
        os.fsync(file.fileno())
        assert os.fstat(file.fileno()).st_blocks * 512 < 1 << 20
    said: list[object] = [sparse.stat().st_size]
    for size in (0, 1, 4_047, 4_048, 4_049, 4_096, 8_096, 100_000):
        path = place / f"size{size}"
        path.write_bytes(b"s" * size)
        with path.open("r+b", buffering=0) as file:
            file.truncate(size // 2)
            os.pwrite(file.fileno(), b"end", size + 10_000)
            os.fdatasync(file.fileno())
        said.append(path.read_bytes())
    return said


def _nodes_and_times(place: Path) -> list[object]:
    os.mkfifo(place / "fifo", 0o640)
    os.mknod(place / "socket", stat.S_IFSOCK | 0o600)
    (place / "setgid").mkdir()
    os.chown(place / "setgid", 0, 4321)
    (place / "setgid").chmod(0o2775)
    (place / "setgid" / "inside").mkdir()
    (place / "setgid" / "file").touch()
    in_child(lambda: (place / "alice").write_bytes(b"hers"), ALICE)
    (place / "file").write_bytes(b"file")
    for number, name in enumerate(("file", "fifo", "setgid")):
        os.utime(place / name, ns=(YEAR_2000 + number, YEAR_2000 * 2 + 123_456_789))
    (place / "link").symlink_to("file")
    os.utime(place / "link", ns=(YEAR_2000, YEAR_2000), follow_symlinks=False)
    for path in (place, place / "setgid"):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(fd)
        os.close(fd)
    found = [os.lstat(place / name) for name in ("file", "fifo", "setgid", "link")]
    return [[one.st_mtime_ns for one in found], [one.st_nlink for one in found if not stat.S_ISDIR(one.st_mode)]]


def _links_of_directories(place: Path) -> list[object]:
    """Told after each change: btrfs does not count them itself."""
    for name in ("one/in/it", "two", "empty"):
        (place / name).mkdir(parents=True)
    (place / "one" / "file").touch()

    def links() -> list[int]:
        return [directory.stat().st_nlink for directory in (place, place / "one", place / "two")]

    told = [links()]
    for change in (
        lambda: (place / "one" / ("n" * 250)).mkdir(),
        lambda: os.rename(place / "one" / "in", place / "two" / "in"),
        lambda: os.rename(place / "two" / "in", place / "two" / "still in"),
        lambda: os.rename(place / "empty", place / "one" / ("n" * 250)),
        lambda: _renameat2(place / "one" / "file", place / "two" / "still in", RENAME_EXCHANGE),
        lambda: os.rename(place / "two" / "still in", place / "two" / "file"),
        lambda: (place / "one" / ("n" * 250)).rmdir(),
        lambda: (place / "one" / "link").symlink_to("."),
    ):
        change()
        told.append(links())
    return told


STORY = {
    "links of directories": _links_of_directories,
    "names": _names,
    "renames": _renames,
    "xattrs": _xattrs,
    "sizes": _sizes,
    "nodes": _nodes_and_times,
}


def test_the_same_as_beside_it_and_after_a_remount_and_a_kill(disk: Disk, both: SideBySide) -> None:
    for name, part in STORY.items():
        for place in (both.plain, both.mounted):
            (place / name).mkdir(mode=0o777)
            (place / name).chmod(0o777)
        both.same(lambda place, name=name, part=part: part(place / name))  # type: ignore[misc]
    _same_trees(both)
    disk.mounted.again()
    _same_trees(both)
    disk.mounted.kill()
    disk.mounted.up()
    _same_trees(both)


def test_what_is_written_when_the_daemon_is_killed_is_there(disk: Disk, both: SideBySide) -> None:
    """Unsettled files of every sort, and one with the long name of another."""
    for place in (both.plain, both.mounted):
        (place / LONG).mkdir()
        (place / "grown").write_bytes(b"g" * 50_000)
        (place / LONG / "closed").write_bytes(os.fsencode("c" * 9_000))
        (place / "short").write_bytes(b"s" * 50_000)
        os.truncate(place / "short", 5_000)
        (place / "emptied").write_bytes(b"gone")
        (place / "emptied").write_bytes(b"")
        (place / "hole").write_bytes(b"h")
        os.truncate(place / "hole", 1_000_000)
        with (place / "grown").open("ab") as file:
            file.write(b"more" * 3_000)
        _renameat2(place / "grown", place / "short", RENAME_EXCHANGE)
        os.rename(place / "emptied", place / LONG / LONG)
        (place / "gone").write_bytes(b"gone")
        (place / "gone").unlink()
    disk.mounted.kill()
    disk.mounted.up()
    _same_trees(both)
    disk.mounted.again()
    _same_trees(both)


def test_what_the_daemon_does_below_moves_no_times(disk: Disk, both: SideBySide) -> None:
    """On btrfs it looks how many directories one has; what it renames over an empty one it exchanges, on xfs too."""

    def make(place: Path) -> None:
        (place / "from" / "moved" / "inside").mkdir(parents=True)
        (place / "empty").mkdir()
        os.utime(place / "from" / "moved", ns=(YEAR_2000, 2 * YEAR_2000))

    def told(place: Path, name: str) -> tuple[int, int, int]:
        found = os.stat(place / name)
        return found.st_nlink, found.st_atime_ns, found.st_mtime_ns

    both.same(make)
    disk.mounted.again()  # with nothing counted
    assert both.same(lambda place: told(place, "from/moved")) == (3, YEAR_2000, 2 * YEAR_2000)
    both.same(lambda place: os.rename(place / "from" / "moved", place / "empty"))
    disk.mounted.again()
    assert both.same(lambda place: told(place, "empty")) == (3, YEAR_2000, 2 * YEAR_2000)


def _set_until_full(path: Path, most: int) -> int:
    """Small attributes, up to so many; gives how many there are."""
    for number in range(most):
        try:
            os.setxattr(path, f"user.{number}", b"value")
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return number
    return most


def test_more_attributes_than_a_list_holds(disk: Disk, both: SideBySide) -> None:
    """listxattr(2) has 64 KiB, which the names in the vault fill first; ext4 has room for less."""
    file = both.mounted / "file"
    file.write_bytes(b"content")
    count = _set_until_full(file, 2_500)
    disk.mounted.again()
    names = [f"user.{number}" for number in range(count)]
    if disk.kind == "ext4":
        assert sorted(os.listxattr(file)) == sorted(names)
    else:
        assert count == 2_500
        with pytest.raises(OSError) as caught:
            os.listxattr(file)
        assert caught.value.errno == errno.E2BIG
    assert file.read_bytes() == b"content"
    for content in (b"longer content", b"new"):
        file.write_bytes(content)
        assert file.read_bytes() == content
    assert {os.getxattr(file, name) for name in names} == {b"value"}
    for name in names[1:]:
        os.removexattr(file, name)
    assert os.listxattr(file) == names[:1]
    disk.mounted.again()
    assert (os.listxattr(file), file.read_bytes()) == (names[:1], b"new")


def _write_and_sync(path: Path, size: int) -> None:
    with path.open("wb", buffering=0) as file:
        for _ in range(0, size, 1 << 20):
            file.write(bytes(1 << 20))
        os.fsync(file.fileno())


def test_a_full_disk_harms_nothing(disk: Disk, both: SideBySide) -> None:
    (both.mounted / "before").write_bytes(b"b" * 300_000)
    with pytest.raises(OSError) as caught:
        _write_and_sync(both.mounted / "full", 400 << 20)
    assert caught.value.errno == errno.ENOSPC
    (damaged,) = disk.mounted.ask("status")["damaged"]
    assert damaged["path"] == str((both.mounted / "full").relative_to(disk.mounted.path))
    assert damaged["why"].endswith("No space left on device")
    os.unlink(both.mounted / "full")
    assert disk.mounted.ask("status")["damaged"] == []
    assert (both.mounted / "before").read_bytes() == b"b" * 300_000
    disk.mounted.again()
    assert (both.mounted / "before").read_bytes() == b"b" * 300_000
    (both.mounted / "after").write_bytes(b"a" * 300_000)
    assert sorted(os.listdir(both.mounted)) == ["after", "before"]


def test_a_quota_harms_nothing(site: Site) -> None:
    """Of btrfs, whose quotas hold for root, too."""
    top = Path(tempfile.mkdtemp(prefix="quota", dir=site.top))
    top.chmod(0o755)
    try:
        with loop_disk(top, "btrfs") as where:
            limited, mountpoint = where / "limited", top / "mnt"
            mountpoint.mkdir()
            for words in ("quota enable .", "subvolume create limited", "qgroup limit 30M limited"):
                subprocess.run(["btrfs", *words.split()], cwd=where, check=True, stdout=subprocess.DEVNULL)
            site.cmkfs("init", str(limited / "vault"), "--cmk", SHARED_CMK)
            mounted = RealMount(site, limited / "vault", mountpoint, [])

            try:
                (mounted.path / "before").write_bytes(b"b" * 300_000)
                with pytest.raises(OSError) as caught:
                    _write_and_sync(mounted.path / "full", 60 << 20)
                assert caught.value.errno == errno.EDQUOT
                (damaged,) = mounted.ask("status")["damaged"]
                assert damaged == {"path": "full", "why": "write: Disk quota exceeded"}
                os.unlink(mounted.path / "full")
                assert (mounted.path / "before").read_bytes() == b"b" * 300_000
                mounted.again()
                assert (mounted.path / "before").read_bytes() == b"b" * 300_000
            finally:
                mounted.clear()
    finally:
        shutil.rmtree(top)

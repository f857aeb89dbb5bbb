"""The table of inodes, on a plain directory: it needs no keys."""

import errno
import os
import stat
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cmkfs.errors import Damaged
from cmkfs.fs.backing import Backing
from cmkfs.fs.inode import ROOT_INO, Ino, Inode
from cmkfs.fs.inodes import InodeTable


@pytest.fixture
def table(tmp_path: Path) -> Iterator[InodeTable]:
    backing = Backing(tmp_path, read_only=False)
    before = open_descriptors(tmp_path)
    made = InodeTable(backing, max_dir_fds=3)
    yield made
    made.close()
    assert open_descriptors(tmp_path) == before
    backing.close()


def open_descriptors(top: Path) -> int:
    """How many this process has in `top`; what an earlier test left to the garbage collector is not counted."""
    targets = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that lists them
            targets.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sum(target.startswith(str(top)) for target in targets)


def find(table: InodeTable, parent: Inode, name: bytes) -> Inode:
    """As `lookup` does it."""
    found = os.stat(name, dir_fd=table.dir_fd(parent), follow_symlinks=False)
    inode = table.learn(found, parent, name)
    inode.lookups += 1
    return inode


def test_the_root_is_number_1_and_stays(table: InodeTable) -> None:
    assert table[1] is table.root
    table.forget([(ROOT_INO, 10)])
    assert table[1] is table.root
    assert table.stat(table.root).st_ino == os.fstat(table.backing.root_fd).st_ino


def test_a_number_that_was_never_told_is_stale(table: InodeTable) -> None:
    with pytest.raises(OSError, match="Stale") as caught:
        table[12345]
    assert caught.value.errno == errno.ESTALE
    assert table.get(12345) is None


def test_numbers_are_those_of_the_backing(table: InodeTable, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert find(table, table.root, b"file").ino == (tmp_path / "file").stat().st_ino


def test_links_are_one_inode_with_two_places(table: InodeTable, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("x")
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    one = find(table, table.root, b"one")
    assert find(table, table.root, b"two") is one
    assert [name for _, name in one.places] == [b"one", b"two"]
    find(table, table.root, b"one")
    assert [name for _, name in one.places] == [b"two", b"one"]


def test_a_directory_has_one_place(table: InodeTable, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    inode = find(table, table.root, b"one")
    (tmp_path / "one").rename(tmp_path / "two")
    assert find(table, table.root, b"two") is inode
    assert [name for _, name in inode.places] == [b"two"]


def test_a_rename_above_needs_nothing(table: InodeTable, tmp_path: Path) -> None:
    (tmp_path / "top" / "below").mkdir(parents=True)
    (tmp_path / "top" / "below" / "file").write_text("x")
    top = find(table, table.root, b"top")
    file = find(table, find(table, top, b"below"), b"file")
    (tmp_path / "top").rename(tmp_path / "moved")
    top.add_place(table.root, b"moved")
    assert table.stat(file).st_size == 1


def test_directory_descriptors_are_bounded_and_come_back(table: InodeTable, tmp_path: Path) -> None:
    inodes = []
    for number in range(8):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "file").touch()
        inodes.append(find(table, table.root, str(number).encode()))
    before = open_descriptors(tmp_path)
    for inode in [*inodes, *inodes[::-1]]:
        assert os.stat(b"file", dir_fd=table.dir_fd(inode))
        assert open_descriptors(tmp_path) - before <= 3


def test_a_directory_that_was_dropped_and_reached_again_is_let_go_with_its_removal(
    table: InodeTable, tmp_path: Path
) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "file").touch()
    before = open_descriptors(tmp_path)
    top = find(table, table.root, b"top")
    file = find(table, top, b"file")
    table.forget([(top.ino, top.lookups)])
    assert table.stat(file).st_size == 0  # through the descriptor of the directory
    assert open_descriptors(tmp_path) == before + 1
    found = (tmp_path / "top").stat()
    (tmp_path / "top" / "file").unlink()
    (tmp_path / "top").rmdir()
    table.removed(found, table.root, b"top")
    assert open_descriptors(tmp_path) == before


def test_a_tree_deeper_than_python_recurses(table: InodeTable, tmp_path: Path) -> None:
    depth = sys.getrecursionlimit() + 100
    here, inode = os.open(tmp_path, os.O_RDONLY), table.root
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        inode = find(table, inode, b"d")
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert stat.S_ISDIR(os.fstat(table.dir_fd(inode)).st_mode)
    table.close()
    _remove_deep(tmp_path, depth)


def _remove_deep(top: Path, depth: int) -> None:
    """Deeper than pytest's own cleaning can go: each level is moved up and removed."""
    for _ in range(depth):
        below = top / "d" / "d"
        if below.exists():
            below.rename(top / "e")
        (top / "d").rmdir()
        if (top / "e").exists():
            (top / "e").rename(top / "d")


@pytest.mark.parametrize("kind", ["file", "link", "fifo"])
def test_what_was_swapped_is_stale_and_never_followed(table: InodeTable, tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "file").write_text("x")
    inode = find(table, table.root, b"file")
    (tmp_path / "file").rename(tmp_path / "away")
    if kind == "file":
        (tmp_path / "file").write_text("other")
    elif kind == "link":
        (tmp_path / "file").symlink_to("secret")
    else:
        os.mkfifo(tmp_path / "file")
    with pytest.raises(OSError, match="Stale") as caught:
        table.stat(inode)
    assert caught.value.errno == errno.ESTALE
    with pytest.raises(OSError) as caught:
        table.open(inode, os.O_RDONLY)
    assert caught.value.errno in (errno.ESTALE, errno.ELOOP)


def test_a_swapped_directory_is_stale(table: InodeTable, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    inode = find(table, table.root, b"one")
    (tmp_path / "one").rename(tmp_path / "away")
    (tmp_path / "one").mkdir()
    with pytest.raises(OSError, match="Stale"):
        table.dir_fd(inode)


def test_another_filesystem_inside_is_damage(table: InodeTable) -> None:
    with pytest.raises(Damaged):
        table.learn(os.stat("/proc/self"), table.root, b"proc")


def test_a_number_that_changes_its_type_while_it_is_known_is_damage(table: InodeTable, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    inode = find(table, table.root, b"file")
    inode.fmt = stat.S_IFDIR
    with pytest.raises(Damaged):
        find(table, table.root, b"file")
    inode.lookups = 0
    assert find(table, table.root, b"file") is not inode


def test_what_was_made_takes_over_a_number_that_somebody_set_free(table: InodeTable, tmp_path: Path) -> None:
    """Removed in the vault by hand, its number given to a node that this mount makes: that one is no damage."""
    (tmp_path / "old").write_bytes(b"")
    old = find(table, table.root, b"old")
    old.lookups = 3
    (tmp_path / "old").unlink()
    (tmp_path / "new").mkdir()
    made = table.learn_new(_with_number(tmp_path / "new", old.ino), table.root, b"new")
    assert made is not old
    assert made.is_dir
    assert made.generation > old.generation
    assert table[made.ino] is made
    made.lookups += 1
    table.forget([(made.ino, 3)])  # what the kernel knew of the old one
    assert table.get(made.ino) is made
    table.forget([(made.ino, 1)])
    assert table.get(made.ino) is None


def test_what_was_made_is_not_what_is_still_open(table: InodeTable, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    held = find(table, table.root, b"open")
    table.dir_fd(held)
    (tmp_path / "new").write_bytes(b"")
    with pytest.raises(Damaged):
        table.learn_new(_with_number(tmp_path / "new", held.ino), table.root, b"new")
    assert table[held.ino] is held


def _with_number(path: Path, ino: int) -> os.stat_result:
    """What stat tells of a node, with another number."""
    fields = list(path.stat())
    fields[stat.ST_INO] = ino
    return os.stat_result((*fields, *([0] * 6), path.stat().st_blksize, path.stat().st_blocks, path.stat().st_dev))


def test_an_inode_that_lost_its_name_is_reached_while_it_is_known(table: InodeTable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    inode = find(table, table.root, b"file")
    found = os.stat(tmp_path / "file")
    table.pin_before_removal(found, table.backing.root_fd, b"file")
    (tmp_path / "file").unlink()
    assert table.removed(found, table.root, b"file") is inode
    assert inode.removed
    assert table.stat(inode).st_nlink == 0
    fd = table.open(inode, os.O_RDONLY)
    assert os.read(fd, 10) == b"content"
    os.close(fd)
    (tmp_path / "file").write_text("new")  # its number is not used again meanwhile
    assert os.stat(tmp_path / "file").st_ino != inode.ino
    table.forget([(inode.ino, 1)])
    assert table.get(inode.ino) is None


def test_an_inode_with_another_name_is_not_removed(table: InodeTable, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("x")
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    inode = find(table, table.root, b"one")
    found = os.stat(tmp_path / "one")
    table.pin_before_removal(found, table.backing.root_fd, b"one")
    (tmp_path / "one").unlink()
    table.removed(found, table.root, b"one")
    assert not inode.removed
    assert table.stat(inode).st_nlink == 1  # though its other name was never looked up


def test_what_the_kernel_does_not_know_needs_no_pin(table: InodeTable, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = open_descriptors(tmp_path)
    table.pin_before_removal(os.stat(tmp_path / "file"), table.backing.root_fd, b"file")
    assert open_descriptors(tmp_path) == before
    assert table.removed(os.stat(tmp_path / "file"), table.root, b"file") is None


def test_lookups_are_counted(table: InodeTable, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    inode = find(table, table.root, b"file")
    find(table, table.root, b"file")
    table.forget([(inode.ino, 1), (Ino(999), 1)])
    assert table[inode.ino] is inode
    table.forget([(inode.ino, 1)])
    assert table.get(inode.ino) is None
    assert len(table) == 1


def test_memory_that_many_inodes_needed_is_given_back(table: InodeTable, tmp_path: Path) -> None:
    """A million files that were looked up and forgotten leave the daemon as small as it was."""

    def traced() -> int:
        return tracemalloc.get_traced_memory()[0]

    top, numbers = os.stat(tmp_path / "."), range(10**9, 10**9 + 100_000)
    tracemalloc.start()
    try:
        before = traced()
        for number in numbers:
            found = os.stat_result((stat.S_IFREG, number, top.st_dev, *top[3:]))
            table.learn(found, table.root, b"%d" % number).lookups = 1
        known = traced() - before
        table.forget([(number, 1) for number in numbers])
        left = traced() - before
    finally:
        tracemalloc.stop()
    assert known > 20_000_000, "the test shows nothing"
    assert left < known / 20


def test_reach_gives_a_path_to_the_very_inode(table: InodeTable, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("dir")
    for name in (b"dir", b"link"):
        inode = find(table, table.root, name)
        with table.reach(inode) as path:
            assert os.stat(path).st_ino == inode.ino


def test_a_directory_that_was_forgotten_before_what_is_in_it_is_the_same_again(
    table: InodeTable, tmp_path: Path
) -> None:
    """The kernel keeps a file whose times it has yet to send; its directory may come and go meanwhile."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "file").touch()
    before = find(table, table.root, b"d")
    file = find(table, before, b"file")
    table.forget([(before.ino, 1)])
    assert table.get(before.ino) is None
    (tmp_path / "d").rename(tmp_path / "moved")
    again = find(table, table.root, b"moved")
    assert again is before
    assert table.stat(file).st_ino == file.ino  # by the new name of its directory
    assert find(table, again, b"file") is file
    assert list(file.places) == [(again, b"file")]
    found = table.stat(file)
    table.pin_before_removal(found, table.dir_fd(again), b"file")
    (tmp_path / "moved" / "file").unlink()
    table.removed(found, again, b"file")
    assert table.stat(file).st_ino == file.ino  # SETATTR of its times may still come


def test_a_new_directory_is_not_taken_for_one_that_had_its_number(table: InodeTable, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "file").touch()
    old = find(table, table.root, b"d")
    file = find(table, old, b"file")
    table.forget([(old.ino, 1)])
    new = table.learn_new(os.stat(tmp_path / "d"), table.root, b"d")
    assert new is not old
    assert file.parent is old


def test_a_file_without_names_is_reached_whatever_it_was_called(table: InodeTable, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.link(tmp_path / "a", tmp_path / "b")
    file = find(table, table.root, b"a")
    assert find(table, table.root, b"b") is file
    (tmp_path / "b").unlink()  # behind the mount's back
    found = os.stat(tmp_path / "a")
    table.pin_before_removal(found, table.dir_fd(table.root), b"a")
    (tmp_path / "a").unlink()
    table.removed(found, table.root, b"a")
    assert table.stat(file).st_ino == file.ino

"""Link counts of directories where the backing does not have them: by looking, unless that takes long."""

import os
import stat
from pathlib import Path

import pytest

from cmkfs.fs import subdirectories
from cmkfs.fs.inode import Ino, Inode
from cmkfs.fs.subdirectories import Subdirectories


def counted(top: Path) -> tuple[Subdirectories, Inode]:
    for name in ("a", "b", "own"):
        (top / name).mkdir()
    (top / "file").touch()
    return Subdirectories(lambda _, flags: os.open(top, flags), b"own"), Inode(Ino(2), stat.S_IFDIR)


def test_they_are_counted_once_and_followed(tmp_path: Path) -> None:
    found, inode = counted(tmp_path)
    os.utime(tmp_path, ns=(7, 8))
    assert found.links(inode) == 4
    assert tmp_path.stat().st_atime_ns == 7
    (tmp_path / "c").mkdir()
    found.changed(inode, 1)
    assert found.links(inode) == 5


def test_a_large_directory_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, inode = counted(tmp_path)
    monkeypatch.setattr(subdirectories, "_LARGE", 0)
    assert found.links(inode) == 1
    found.changed(inode, 5)
    assert found.links(inode) == 1

"""Link counts of directories where the backing does not have them: by looking, unless that takes long."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmkfs.fs import subdirectories
from cmkfs.fs.backing import Backing
from cmkfs.fs.inodes import InodeTable
from cmkfs.fs.subdirectories import Subdirectories


@pytest.fixture
def table(tmp_path: Path) -> Iterator[InodeTable]:
    """Its root has two directories, a file, and what is the vault's own."""
    for name in ("a", "b", "own"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    backing = Backing(tmp_path, read_only=False)
    made = InodeTable(backing)
    yield made
    made.close()
    backing.close()


@pytest.fixture
def found(table: InodeTable) -> Subdirectories:
    return Subdirectories(table.open_unnoticed, b"own")


def test_they_are_counted_once_and_followed(found: Subdirectories, table: InodeTable, tmp_path: Path) -> None:
    os.utime(tmp_path, ns=(7, 8))
    assert found.links(table.root) == 4
    assert tmp_path.stat().st_atime_ns == 7
    (tmp_path / "c").mkdir()
    found.changed(table.root, 1)
    assert found.links(table.root) == 5


def test_a_large_directory_is_not_counted(
    found: Subdirectories, table: InodeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subdirectories, "_LARGE", 0)
    assert found.links(table.root) == 1
    found.changed(table.root, 5)
    assert found.links(table.root) == 1

"""Directories that are synced before anything else is: each once, all at once if there are many."""

import os
from pathlib import Path

import pytest

from cmkfs.fs.newdirs import NewDirectories


class Disk:
    """What was synced, in order; `fails` makes the next sync fail."""

    def __init__(self) -> None:
        self.synced: list[str] = []
        self.fails = False

    async def one(self, fd: int) -> None:
        if self.fails:
            raise OSError(5, "Input/output error")
        self.synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))

    async def all(self) -> None:
        if self.fails:
            raise OSError(5, "Input/output error")
        self.synced.append("all")


@pytest.fixture
def disk() -> Disk:
    return Disk()


def filled(new: NewDirectories, top: Path, count: int) -> None:
    fd = os.open(top, os.O_RDONLY)
    for number in range(count):
        (top / f"d{number}").mkdir(exist_ok=True)
        new.add(fd, b"d%d" % number)
    os.close(fd)


async def test_outer_directories_are_synced_before_inner_ones_and_nothing_twice(disk: Disk, tmp_path: Path) -> None:
    new = NewDirectories(disk.one, disk.all)
    filled(new, tmp_path, 3)
    filled(new, tmp_path, 3)
    (tmp_path / "d0").rename(tmp_path / "d2/inner")
    (tmp_path / "d1").rename(tmp_path / "elsewhere")
    await new.sync()
    await new.sync()
    assert disk.synced == ["elsewhere", "d2", "inner"]
    assert not new


async def test_many_are_synced_as_a_whole_where_that_can_be(disk: Disk, tmp_path: Path) -> None:
    new = NewDirectories(disk.one, disk.all)
    filled(new, tmp_path, 40)
    await new.sync()
    assert disk.synced == ["all"]
    assert not new
    new = NewDirectories(disk.one, None)
    filled(new, tmp_path, 40)
    await new.sync()
    assert len(disk.synced) == 41


@pytest.mark.parametrize("count", [2, 40])
async def test_what_could_not_be_synced_is_synced_later(disk: Disk, tmp_path: Path, count: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    new = NewDirectories(disk.one, disk.all)
    filled(new, tmp_path, count)
    disk.fails = True
    with pytest.raises(OSError, match="Input/output"):
        await new.sync()
    disk.fails = False
    await new.sync()
    assert disk.synced == (["d0", "d1"] if count == 2 else ["all"])
    filled(new, tmp_path, count)
    new.close()
    assert len(os.listdir("/proc/self/fd")) == before

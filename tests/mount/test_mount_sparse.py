"""Sparse files: 5 GiB of nothing, and holes in any pattern, that read as zeros and take no space."""

import mmap
import os
import random
from pathlib import Path

import pytest
from children import in_child
from real_mount import RealMount
from side_by_side import SideBySide

GIB = 1 << 30
BLOCK = 4048


def _pieces(fd: int, places: list[int]) -> list[bytes]:
    return [os.pread(fd, 5000, max(place - 2500, 0)) for place in places]


@pytest.mark.parametrize("by", ["truncate", "write"])
def test_five_gib_take_no_space(own_mount: RealMount, by: str) -> None:
    file = own_mount.path / "file"
    fd = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(fd, b"start", 0)
        if by == "truncate":
            os.ftruncate(fd, 5 * GIB)
        else:
            os.pwrite(fd, b"x", 5 * GIB - 1)
        os.pwrite(fd, b"middle", 3 * GIB)
        os.pwrite(fd, b"end", 5 * GIB - 3)
        os.fsync(fd)
    finally:
        os.close(fd)
    for _ in range(2):
        found = file.stat()
        assert found.st_size == 5 * GIB
        assert found.st_blocks * 512 < 100_000
        fd = os.open(file, os.O_RDONLY)
        try:
            assert os.pread(fd, 10, 0) == b"start" + bytes(5)
            assert os.pread(fd, 10, 3 * GIB - 2) == b"\0\0middle\0\0"
            assert os.pread(fd, 10, 5 * GIB - 5) == b"\0\0end"
            assert os.pread(fd, 1 << 20, 2 * GIB + 77) == bytes(1 << 20)
        finally:
            os.close(fd)
        own_mount.again()
    os.truncate(file, 3 * GIB + 4)
    assert in_child(lambda: os.stat(file).st_size) == 3 * GIB + 4
    os.truncate(file, 6 * GIB)
    fd = os.open(file, os.O_RDONLY)
    try:
        assert os.pread(fd, 10, 3 * GIB - 2) == b"\0\0midd\0\0\0\0"
    finally:
        os.close(fd)
    os.truncate(file, 0)
    assert file.stat().st_blocks * 512 <= 8192


@pytest.mark.parametrize("seed", range(3))
def test_holes_in_any_pattern_over_a_remount(own_mount: RealMount, plain: Path, seed: int) -> None:
    """More ranges than a header lists, and every way that their ends lie in pages and blocks."""
    pick = random.Random(seed)
    places = [own_mount.path / "file", plain / "file"]
    for path in places:
        path.touch()
    for step in range(120):
        at = pick.randrange(100) * pick.choice([BLOCK, 4096]) * 3 + pick.choice([0, 0, 1, -1, 2000]) + 1
        size = pick.choice([1, 100, BLOCK, 4096, 9000])
        data = pick.choice([bytes(size), pick.randbytes(size)])
        cut = at if step % 20 == 19 else None
        for path in places:
            with path.open("r+b", buffering=0) as file:
                os.pwrite(file.fileno(), data, at)
                if cut is not None:
                    file.truncate(cut)
        if step % 50 == 49:
            own_mount.again()
        assert places[0].read_bytes() == places[1].read_bytes()
    own_mount.again()
    assert places[0].read_bytes() == places[1].read_bytes()
    assert places[0].stat().st_blocks <= places[1].stat().st_blocks * 2 + 64


def test_a_mapping_writes_into_a_hole(both: SideBySide) -> None:
    def story(place: Path) -> list[bytes]:
        fd = os.open(place / "file", os.O_RDWR | os.O_CREAT)
        try:
            os.ftruncate(fd, 100_000_000)
            with mmap.mmap(fd, 100_000_000) as mapping:
                mapping[50_000_000] = 65
                mapping[99_999_999] = 66
            os.fsync(fd)
            assert os.fstat(fd).st_blocks * 512 < 200_000
            return _pieces(fd, [0, 50_000_000, 99_999_999])
        finally:
            os.close(fd)

    both.same(story)

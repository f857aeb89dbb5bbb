"""Listing: positions that can be gone back to, and what is there all the time told once, whatever else changes."""

import ctypes
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from children import all_at_once
from real_mount import RealMount

_libc = ctypes.CDLL(None, use_errno=True)
_GETDENTS64 = 217
ENTRIES = int(os.environ.get("CMKFS_TEST_ENTRIES", "3000"))
"""In the largest directory; 100000 takes minutes."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry and the position behind it."""

    name: str
    number: int
    position: int


def getdents(fd: int, size: int = 32_768) -> list[Entry]:
    """One getdents64(2)."""
    buffer = ctypes.create_string_buffer(size)
    got = _libc.syscall(_GETDENTS64, fd, buffer, size)
    if got < 0:
        raise OSError(ctypes.get_errno(), "getdents64")
    found, at, data = [], 0, buffer.raw
    while at < got:
        length = int.from_bytes(data[at + 16 : at + 18], "little")
        name = data[at + 19 : at + length].split(b"\0", 1)[0]
        number, position = (int.from_bytes(data[at + 8 * n : at + 8 * n + 8], "little") for n in (0, 1))
        found.append(Entry(os.fsdecode(name), number, position))
        at += length
    return found


def the_rest(fd: int, size: int = 32_768) -> Iterator[Entry]:
    """All entries from the position of the descriptor on."""
    while batch := getdents(fd, size):
        yield from batch


@pytest.fixture
def directory(work: Path) -> Iterator[int]:
    """A descriptor of a directory with 700 entries: several READDIR requests."""
    for number in range(700):
        (work / f"entry {number}").symlink_to("x")
    fd = os.open(work, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_every_position_leads_to_the_entry_behind_it(directory: int) -> None:
    """telldir(3) and seekdir(3), in any order, with small buffers and large ones."""
    entries = list(the_rest(directory))
    assert len({entry.position for entry in entries}) == len(entries) == 702
    positions = [0, *(entry.position for entry in entries[:-1])]
    pairs = list(zip(positions, entries, strict=True))
    random.Random(1).shuffle(pairs)
    for position, entry in pairs[:200]:
        os.lseek(directory, position, os.SEEK_SET)
        assert getdents(directory, 300 + len(entry.name))[0] == entry
    os.lseek(directory, entries[-1].position, os.SEEK_SET)
    assert getdents(directory) == []


def test_positions_are_good_on_another_descriptor(directory: int, work: Path) -> None:
    """As an NFS server uses them, which opens the directory anew for each request."""
    entries = list(the_rest(directory, 2000))
    for at in (0, 1, 2, 50, 350, 699):
        other = os.open(work, os.O_RDONLY)
        try:
            os.lseek(other, entries[at].position, os.SEEK_SET)
            assert list(the_rest(other)) == entries[at + 1 :]
        finally:
            os.close(other)


def test_after_a_rewind_the_directory_is_read_anew(directory: int, work: Path) -> None:
    before = {entry.name for entry in the_rest(directory)}
    (work / "entry 5").unlink()
    (work / "new").touch()
    os.lseek(directory, 0, os.SEEK_SET)
    assert {entry.name for entry in the_rest(directory)} == before - {"entry 5"} | {"new"}


def test_a_position_stays_good_while_entries_come_and_go(directory: int, work: Path) -> None:
    """Without a rewind: what was there all the time behind a position is still behind it, once."""
    entries = list(the_rest(directory))
    for number in range(0, 700, 3):
        (work / f"entry {number}").unlink()
        (work / f"new {number}").touch()
    gone = {f"entry {number}" for number in range(0, 700, 3)}
    for at in (10, 300, 600):
        os.lseek(directory, entries[at].position, os.SEEK_SET)
        told = [entry.name for entry in the_rest(directory)]
        behind = {entry.name for entry in entries[at + 1 :]} - gone
        assert len(told) == len(set(told))
        assert behind <= set(told)
        assert not {entry.name for entry in entries[: at + 1]} & set(told)


def test_reading_a_directory_while_everything_in_it_is_renamed_ends(work: Path) -> None:
    """Each entry that is told gets a new name: a listing of a moving target still ends (xfs and btrfs once did not)."""
    for number in range(300):
        (work / f"{number}").symlink_to("x")
    told = 0
    with os.scandir(work) as entries:
        for entry in entries:
            os.rename(entry.path, f"{entry.path}x")
            told += 1
            assert told <= 1000
    assert len(os.listdir(work)) == 300


def test_a_large_directory_is_listed_while_it_changes(own_mount: RealMount) -> None:
    """Four listings beside two processes that make, rename and remove others: what stays is in each exactly once."""
    top = own_mount.path / "large"
    top.mkdir()
    stable = {f"stable {number}" for number in range(ENTRIES)}
    for name in stable:
        os.symlink("x", top / name)

    def disturb(seed: str) -> None:
        for turn in range(400):
            os.symlink("y", top / f"{seed} {turn}")
            os.rename(top / f"{seed} {turn}", top / f"{seed} renamed {turn} {'l' * (turn % 2 * 200)}")
            if turn % 3:
                os.unlink(top / f"{seed} renamed {turn} {'l' * (turn % 2 * 200)}")

    def look() -> None:
        for size in (4096, 65_536):
            fd = os.open(top, os.O_RDONLY)
            try:
                told = [entry.name for entry in the_rest(fd, size)]
            finally:
                os.close(fd)
            assert len(told) == len(set(told))
            assert stable <= set(told)

    all_at_once([look, look, lambda: disturb("a"), lambda: disturb("b")])
    own_mount.again()
    assert stable <= set(os.listdir(top))

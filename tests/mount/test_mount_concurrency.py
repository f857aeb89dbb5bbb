"""Many processes on the same files: nothing lost, nothing torn, nothing that nobody wrote."""

import errno
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from children import all_at_once, in_child
from real_mount import RealMount

RECORD = 100


def _record(writer: int, number: int, size: int = RECORD) -> bytes:
    return struct.pack("<HHI", 0xBEEF, writer, number) + bytes([65 + writer]) * (size - 8)


def _records(data: bytes, size: int = RECORD) -> dict[int, list[int]]:
    """Writer to the numbers of its records, in order; every record must be whole."""
    found: dict[int, list[int]] = {}
    assert len(data) % size == 0
    for at in range(0, len(data), size):
        magic, writer, number = struct.unpack_from("<HHI", data, at)
        assert magic == 0xBEEF
        assert data[at + 8 : at + size] == bytes([65 + writer]) * (size - 8)
        found.setdefault(writer, []).append(number)
    return found


@pytest.mark.parametrize("flags", [0, os.O_SYNC, os.O_DIRECT], ids=["cached", "synced", "direct"])
def test_nobody_loses_what_he_appends(work: Path, flags: int) -> None:
    writers, count = 4, 60 if flags == os.O_SYNC else 600

    def append(writer: int) -> None:
        fd = os.open(work / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | flags)
        try:
            for number in range(count):
                assert os.write(fd, _record(writer, number)) == RECORD
        finally:
            os.close(fd)

    tasks = [lambda writer=writer: append(writer) for writer in range(writers)]
    all_at_once(tasks)
    found = _records((work / "log").read_bytes())
    assert found == {writer: list(range(count)) for writer in range(writers)}


def test_appending_while_others_read(work: Path) -> None:
    """A reader sees whole records in the order of each writer, as far as there are any."""
    (work / "log").touch()

    def append() -> None:
        with (work / "log").open("ab", buffering=0) as log:
            for number in range(1500):
                log.write(_record(1, number))

    def read() -> None:
        seen = 0
        while seen < 1500:
            data = (work / "log").read_bytes()
            whole = data[: len(data) // RECORD * RECORD]
            numbers = _records(whole).get(1, [])
            assert numbers == list(range(len(numbers)))
            assert len(numbers) >= seen
            seen = len(numbers)

    all_at_once([append, read, read])


@pytest.mark.parametrize("size", [1000, 4048, 4096, 5000])
def test_neighbouring_records_of_many_writers(own_mount: RealMount, size: int) -> None:
    """Each process writes its own records in between those of the others, which share pages and blocks."""
    writers, count = 4, 150
    file = own_mount.path / "file"
    file.touch()

    def write(writer: int) -> None:
        numbers = list(range(count))
        random.Random(writer).shuffle(numbers)
        with file.open("r+b", buffering=0) as opened:
            for number in numbers:
                os.pwrite(opened.fileno(), _record(writer, number, size), (number * writers + writer) * size)
                if number % 40 == 0:
                    os.fsync(opened.fileno())

    tasks = [lambda writer=writer: write(writer) for writer in range(writers)]
    all_at_once(tasks)
    expected = {writer: list(range(count)) for writer in range(writers)}
    assert _records(file.read_bytes(), size) == expected
    own_mount.again()
    assert _records(file.read_bytes(), size) == expected


def test_writing_truncating_and_reading_at_once(own_mount: RealMount) -> None:
    """At every moment a byte is zero or what somebody wrote there, and nobody gets an error."""
    file = own_mount.path / "file"
    file.touch()
    length = 60_000

    def expected(at: int) -> int:
        return 1 + at // 977 % 251

    pattern = bytes(expected(at) for at in range(length))

    def write(seed: int) -> None:
        pick = random.Random(seed)
        fd = os.open(file, os.O_RDWR)
        try:
            for _ in range(250):
                at = pick.randrange(length)
                data = pattern[at : at + pick.choice([10, 4048, 4096, 9000])]
                assert os.pwrite(fd, data, at) == len(data)
        finally:
            os.close(fd)

    def truncate(seed: int) -> None:
        pick = random.Random(seed)
        for number in range(120):
            size = pick.choice([0, 8, pick.randrange(length), 4048 * pick.randrange(12), length])
            if number % 10 == 0:
                os.close(os.open(file, os.O_WRONLY | os.O_TRUNC))
            os.truncate(file, size)

    def read() -> None:
        for _ in range(250):
            data = file.read_bytes()
            assert len(data) <= length
            wrong = [at for at, byte in enumerate(data) if byte and byte != pattern[at]]
            assert not wrong

    tasks: list[Callable[[], None]] = [
        lambda: write(1),
        lambda: write(2),
        lambda: truncate(3),
        read,
    ]
    all_at_once(tasks)
    content = file.read_bytes()
    assert all(byte in (0, pattern[at]) for at, byte in enumerate(content))
    own_mount.again()
    assert file.read_bytes() == content


class _Tree:
    """Random work on a small tree that others work on too; only errors that a race explains are allowed."""

    EXPLAINED = frozenset(
        {
            errno.ENOENT,
            errno.EEXIST,
            errno.ENOTEMPTY,
            errno.ENOTDIR,
            errno.EISDIR,
            errno.EINVAL,
            errno.ELOOP,
            errno.EPERM,  # a link to a directory
        }
    )

    def __init__(self, top: Path, seed: int) -> None:
        self.top = top
        self.pick = random.Random(seed)

    def path(self) -> Path:
        path = self.top
        for _ in range(self.pick.randrange(1, 4)):
            path = path / self.pick.choice(["a", "b", "c", "l" * 200])
        return path

    def step(self) -> None:
        path, other = self.path(), self.path()
        steps: list[Callable[[], object]] = [
            lambda: path.mkdir(),
            lambda: path.mkdir(),
            lambda: path.write_bytes(os.fsencode(path.name) * self.pick.randrange(3000)),
            lambda: path.read_bytes(),
            lambda: os.rename(path, other),
            lambda: os.rename(path, other),
            lambda: os.link(path, other),
            lambda: path.symlink_to("xy/" * self.pick.choice([2, 700])),
            lambda: path.unlink(),
            lambda: path.rmdir(),
            lambda: os.listdir(path.parent),
            lambda: [entry.stat(follow_symlinks=False).st_size for entry in os.scandir(self.top)],
            lambda: os.truncate(path, self.pick.randrange(9000)),
            lambda: os.setxattr(path, "user.x", b"1"),
            lambda: os.chmod(path, 0o755, follow_symlinks=True),
        ]
        try:
            self.pick.choice(steps)()
        except OSError as error:
            if error.errno not in self.EXPLAINED:
                raise

    def work(self) -> None:
        for _ in range(500):
            self.step()


@pytest.mark.parametrize("seed", [0, 10])
def test_four_processes_in_one_tree(own_mount: RealMount, seed: int) -> None:
    all_at_once([_Tree(own_mount.path, seed + number).work for number in range(4)])
    before = _state(own_mount.path)
    own_mount.again()
    assert _state(own_mount.path) == before


def _state(top: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for place, directories, files in os.walk(top):
        for name in directories + files:
            path = Path(place) / name
            facts = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            size = 0 if path.is_dir() else facts.st_size
            found[str(path)] = (facts.st_ino, facts.st_mode, facts.st_nlink, size, facts.st_mtime_ns, content)
    return found


def test_one_new_file_opened_by_many_at_once(own_mount: RealMount) -> None:
    """One unwrap of its key serves all who open it cold."""
    (own_mount.path / "file").write_bytes(b"content" * 1000)
    own_mount.again()
    before = own_mount.ask("status")["unwraps"]
    assert all_at_once([(own_mount.path / "file").read_bytes] * 6) == [b"content" * 1000] * 6
    assert own_mount.ask("status")["unwraps"] == before + 1
    assert in_child(lambda: (own_mount.path / "file").stat().st_size) == 7000

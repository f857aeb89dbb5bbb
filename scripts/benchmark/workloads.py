"""What is done with each filesystem, and how fast it was. A workload yields a sample as soon as it has one."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

from benchmark.subjects import PEERS, Subject

MIB = 1 << 20
PAGE = 4096
FILES_PER_DIRECTORY = 20
PROCESSES = 4
SYNC_EVERY = 32
TRIES_OF_PEERS = 5


@dataclass(frozen=True, slots=True)
class Settings:
    """How much: `size` and `small_size` in MiB, written in calls of 1 MiB and of 4 KiB; `files` a number."""

    size: int
    small_size: int
    files: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Load:
    """What is written: `data` is at most 64 MiB of random bytes, used again and again; `tar` an archive."""

    settings: Settings
    data: memoryview
    tar: Path


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured rate, in the unit of its workload, more is better."""

    workload: str
    rate: float


Group = Callable[[Subject, Path, Load], Iterator[Sample]]


def timed(amount: float, work: Callable[[], object]) -> float:
    """`amount` per second that `work` took."""
    started = time.perf_counter()
    work()
    return amount / (time.perf_counter() - started)


def processor_seconds() -> float:
    """What all processors of the machine have done, in seconds: callers, daemons and the kernel's own threads."""
    user, nice, system, _idle, _iowait, irq, softirq = Path("/proc/stat").read_text().split(maxsplit=8)[1:8]
    return sum(map(int, (user, nice, system, irq, softirq))) / os.sysconf("SC_CLK_TCK")


def per_processor_second(amount: float, before: float) -> float:
    """`amount` by what the processors have done since they had done `before`; at least one tick."""
    return amount / max(processor_seconds() - before, 1 / os.sysconf("SC_CLK_TCK"))


def settle() -> None:
    """Let no write-back of what came before disturb what comes now."""
    os.sync()
    os.sync()  # the first one may only have handed pages from a FUSE mount to its backing


def drop_caches() -> None:
    """Forget cached pages, names and attributes: the kernel's, of every filesystem."""
    settle()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def write_file(path: Path, data: memoryview, size: int, call: int) -> None:
    """Write `size` bytes in calls of `call` bytes, fsync, close."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        for offset in range(0, size, call):
            start = offset % len(data)
            if os.write(descriptor, data[start : start + call]) != call:
                raise OSError(f"short write to {path}")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: Path, size: int) -> None:
    """Read all of it in calls of 1 MiB."""
    buffer = bytearray(MIB)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            size -= count
    if size:
        raise OSError(f"{path}: {size} bytes are missing")


def verify_file(path: Path, data: memoryview, size: int) -> None:
    """Raise OSError unless `path` holds what write_file wrote. Not timed."""
    with path.open("rb") as file:
        for offset in range(0, size, MIB):
            start = offset % len(data)
            if file.read(MIB) != data[start : start + MIB]:
                raise OSError(f"{path}: wrong data after {offset} bytes")


def create_files(names: list[str], block: memoryview) -> None:
    """Each with one block."""
    for name in names:
        with open(name, "wb", buffering=0) as file:
            file.write(block)


def read_files(names: list[str], block: memoryview) -> None:
    """Raises OSError for a file that holds anything else."""
    for name in names:
        with open(name, "rb", buffering=0) as file:
            if file.read() != block:
                raise OSError(f"{name}: wrong data")


# -- Groups ----------------------------------------------------------------------------------------


def stream(_subject: Subject, top: Path, load: Load) -> Iterator[Sample]:
    """One large file, written and read in large calls."""
    big, size = top / "big", load.settings.size
    bytes_ = size * MIB
    before = processor_seconds()
    yield Sample("write, 1 MiB calls, fsync", timed(size, lambda: write_file(big, load.data, bytes_, MIB)))
    drop_caches()
    yield Sample("read, cold", timed(size, lambda: read_file(big, bytes_)))
    yield Sample("GiB streamed per processor second", per_processor_second(size / 512, before))
    yield Sample("read again", timed(size, lambda: read_file(big, bytes_)))
    verify_file(big, load.data, bytes_)


def small_calls(_subject: Subject, top: Path, load: Load) -> Iterator[Sample]:
    """One file in small calls, in order and at random."""
    big, size = top / "big", load.settings.small_size
    work = timed(size, lambda: write_file(big, load.data, size * MIB, PAGE))
    yield Sample("write, 4 KiB calls, fsync", work)
    verify_file(big, load.data, size * MIB)
    chance, pages = random.Random(2), size * MIB // PAGE
    some = [chance.randrange(pages) * PAGE for _ in range(min(pages, 8 * load.settings.files))]
    few = some[: len(some) // 8]
    descriptor = os.open(big, os.O_RDWR)
    try:
        read = partial(_read_at, descriptor, some)
        yield Sample("random 4 KiB reads, cached", timed(len(some), read))
        drop_caches()
        yield Sample("random 4 KiB reads, cold", timed(len(few), partial(_read_at, descriptor, few)))
        write = partial(_write_at, descriptor, few, load.data[:PAGE])
        yield Sample("random 4 KiB writes, fsync each 32", timed(len(few), write))
    finally:
        os.close(descriptor)


def _read_at(descriptor: int, offsets: list[int]) -> None:
    for offset in offsets:
        os.pread(descriptor, PAGE, offset)


def _write_at(descriptor: int, offsets: list[int], block: memoryview) -> None:
    for number, offset in enumerate(offsets):
        os.pwrite(descriptor, block, offset)
        if number % SYNC_EVERY == SYNC_EVERY - 1:
            os.fsync(descriptor)


def small_files(_subject: Subject, top: Path, load: Load) -> Iterator[Sample]:
    """Many small files in one directory."""
    count, block = load.settings.files, load.data[:PAGE]
    old = [f"{top}/f{number}" for number in range(count)]
    new = [f"{top}/g{number}" for number in range(count)]
    directories = [f"{top}/d{number}" for number in range(count)]
    before = processor_seconds()
    yield Sample("create + write 4 KiB", timed(count, lambda: create_files(old, block)))
    drop_caches()
    yield Sample("ls -lR, cold", timed(count, lambda: subprocess.check_output(["ls", "-lR", str(top)])))
    yield Sample("stat each again", timed(count, lambda: [os.stat(name) for name in old]))
    drop_caches()
    yield Sample("open + read 4 KiB, cold", timed(count, lambda: read_files(old, block)))
    yield Sample("files made, listed, read per processor second", per_processor_second(count, before))
    yield Sample("open + read 4 KiB again", timed(count, lambda: read_files(old, block)))
    yield Sample("rename", timed(count, lambda: list(map(os.rename, old, new))))
    yield Sample("unlink", timed(count, lambda: list(map(os.unlink, new))))
    yield Sample("mkdir", timed(count, lambda: list(map(os.mkdir, directories))))
    yield Sample("rmdir", timed(count, lambda: list(map(os.rmdir, directories))))


def tree(subject: Subject, top: Path, load: Load) -> Iterator[Sample]:
    """A source tree out of an archive, and what is done with one."""
    count = load.settings.files

    def command(*words: str, right: tuple[int, ...] = (0,)) -> float:
        def work() -> None:
            result = subprocess.run(words, cwd=top, capture_output=True, check=False)
            if result.returncode not in right:
                raise OSError(f"{words} on {subject.name}: {result.stderr.decode()}")

        if subject.name not in PEERS:
            return timed(count, work)
        for _ in range(TRIES_OF_PEERS):
            try:
                return timed(count, work)
            except OSError as error:  # gocryptfs loses the working directory under `git clone` now and then
                print(f"bench: {error}", file=sys.stderr)
        return 0.0  # it cannot do it

    yield Sample("untar", command("tar", "-xf", str(load.tar)))
    drop_caches()
    yield Sample("grep -r, cold", command("grep", "-r", "nowhere in it", "tree", right=(1,)))
    who = ["-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0", "-c", "init.defaultBranch=m"]
    for words in (["init", "-q", "tree"], ["-C", "tree", "add", "."], ["-C", "tree", *who, "commit", "-qm", "all"]):
        command("git", *who, *words)
    yield Sample("git status", command("git", "-C", "tree", "status", "--short"))
    yield Sample("git clone", command("git", "clone", "-q", "--no-local", "tree", "copy"))
    yield Sample("rm -rf", command("rm", "-rf", "tree"))


def sqlite(_subject: Subject, top: Path, load: Load) -> Iterator[Sample]:
    """Small transactions, each one durable."""
    for mode, count in (("wal", load.settings.files), ("delete", load.settings.files // 10)):
        connection = sqlite3.connect(top / mode, isolation_level=None)
        connection.execute(f"pragma journal_mode={mode}")
        connection.execute("create table t (number integer primary key, value blob)")
        insert = partial(_insert, connection, max(1, count))
        yield Sample(f"SQLite transactions, {mode}", timed(count, insert))
        connection.close()


def _insert(connection: sqlite3.Connection, count: int) -> None:
    for number in range(count):
        connection.execute("insert into t values (?, randomblob(100))", (number,))


def together(_subject: Subject, top: Path, load: Load) -> Iterator[Sample]:
    """Four processes at once."""
    files, size = max(1, load.settings.files // PROCESSES), max(1, load.settings.size // PROCESSES)
    places = [top / str(number) for number in range(PROCESSES)]
    for place in places:
        place.mkdir()

    def all_do(work: Callable[[Path, memoryview, int], None], amount: int) -> float:
        return timed(
            amount * PROCESSES, lambda: _in_processes([partial(work, place, load.data, amount) for place in places])
        )

    yield Sample("4 processes: create + write 4 KiB", all_do(_create_some, files))
    drop_caches()
    yield Sample("4 processes: open + read 4 KiB, cold", all_do(_read_some, files))
    yield Sample("4 processes: write, 1 MiB calls, fsync", all_do(_write_one, size))


def _in_processes(works: list[partial[None]]) -> None:
    """All at once. Raises OSError if one of them fails; what it raised is on stderr."""
    processes = [get_context("fork").Process(target=work) for work in works]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise OSError("one of the processes failed")


def _create_some(place: Path, data: memoryview, count: int) -> None:
    create_files([f"{place}/f{number}" for number in range(count)], data[:PAGE])


def _read_some(place: Path, data: memoryview, count: int) -> None:
    read_files([f"{place}/f{number}" for number in range(count)], data[:PAGE])


def _write_one(place: Path, data: memoryview, size: int) -> None:
    write_file(place / "big", data, size * MIB, MIB)


def mount_again(subject: Subject, top: Path, load: Load) -> Iterator[Sample]:
    """From the command until the first file has been read."""
    first = top / "first"
    first.write_bytes(load.data[:PAGE])
    mount = subject.remount()
    drop_caches()

    def work() -> None:
        mount()
        first.read_bytes()

    yield Sample("mount until the first read", timed(1, work))


GROUPS: tuple[Group, ...] = (stream, small_calls, small_files, tree, sqlite, together, mount_again)

UNITS = {
    "write, 1 MiB calls, fsync": "MiB/s",
    "read, cold": "MiB/s",
    "read again": "MiB/s",
    "GiB streamed per processor second": "GiB/s",
    "write, 4 KiB calls, fsync": "MiB/s",
    "random 4 KiB reads, cached": "1/s",
    "random 4 KiB reads, cold": "1/s",
    "random 4 KiB writes, fsync each 32": "1/s",
    "create + write 4 KiB": "files/s",
    "ls -lR, cold": "files/s",
    "stat each again": "files/s",
    "open + read 4 KiB, cold": "files/s",
    "open + read 4 KiB again": "files/s",
    "files made, listed, read per processor second": "files/s",
    "rename": "files/s",
    "unlink": "files/s",
    "mkdir": "1/s",
    "rmdir": "1/s",
    "untar": "files/s",
    "grep -r, cold": "files/s",
    "git status": "files/s",
    "git clone": "files/s",
    "rm -rf": "files/s",
    "SQLite transactions, wal": "1/s",
    "SQLite transactions, delete": "1/s",
    "4 processes: create + write 4 KiB": "files/s",
    "4 processes: open + read 4 KiB, cold": "files/s",
    "4 processes: write, 1 MiB calls, fsync": "MiB/s",
    "mount until the first read": "1/s",
}
"""Every workload, in the order of the table, with the unit of its rate."""


def make_tar(path: Path, count: int) -> None:
    """An archive of a tree with `count` random files of 128 bytes to 32 KiB, most of them small."""
    chance = random.Random(1)  # the same sizes in every run
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            directory = number // FILES_PER_DIRECTORY
            if number % FILES_PER_DIRECTORY == 0:
                entry = tarfile.TarInfo(f"tree/{directory // 10}/{directory}")
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
            entry = tarfile.TarInfo(f"tree/{directory // 10}/{directory}/file-{number}.py")
            entry.size = int(2 ** chance.uniform(7, 15))
            archive.addfile(entry, BytesIO(chance.randbytes(entry.size)))


def clear(top: Path) -> None:
    """Remove what a group left. Not timed."""
    shutil.rmtree(top)

"""A mount that is used for long: what its processes hold, sampled all the while, must not grow.

The work is that of `posix_rounds`, whose calls are compared with those on a plain directory, without ever taking
the mount down; after each round a database is filled, a large file streamed, and everything removed. Growth is judged
by what is held then, between two rounds. What the first quarter adds is warming up: allocators and caches fill; from
there on it is the last quarter against the second.
"""

import os
import sqlite3
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from .posix_rounds import Difference, Rounds

MOST_MIB = 8.0
"""How much more resident memory all processes together may have in the end: some 5 % of what they begin with."""
MOST_DESCRIPTORS = 16
"""How many more descriptors."""
_STREAM_MIB = 24


@dataclass(frozen=True, slots=True)
class Sample:
    """What the daemon and the processes that it has begun hold: memory in MiB."""

    seconds: float
    daemon: float
    children: float
    descriptors: int


@dataclass(frozen=True, slots=True)
class Growth:
    """Between the second and the last quarter: of memory by the medians; of descriptors, of which some belong to files
    that are not settled yet, now more and now fewer, by the least."""

    mib: float
    descriptors: int

    @property
    def bounded(self) -> bool:
        """Within what is allowed?"""
        return self.mib <= MOST_MIB and self.descriptors <= MOST_DESCRIPTORS


def growth(samples: Sequence[Sample]) -> Growth:
    """Of samples taken between rounds, two at least."""
    quarter = max(1, len(samples) // 4)
    before, after = samples[quarter : 2 * quarter] or samples[:1], samples[-quarter:]

    def memory(samples: Sequence[Sample]) -> float:
        return statistics.median(one.daemon + one.children for one in samples)

    def descriptors(samples: Sequence[Sample]) -> int:
        return min(one.descriptors for one in samples)

    return Growth(memory(after) - memory(before), descriptors(after) - descriptors(before))


class Soak:
    """One mount, used in rounds, watched all the while."""

    def __init__(self, top: Path, interval: float) -> None:
        self.rounds = Rounds(top, keeps_daemon=True)
        self.samples: list[Sample] = []
        self.between: list[Sample] = []
        self._interval = interval
        self._began = time.monotonic()
        self._pid = self.rounds.mount.pid

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Look every `interval` seconds."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(self._interval):
                self.samples.append(self._sample())

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            yield
        finally:
            over.set()
            watching.join()

    def _sample(self) -> Sample:
        pids = [self._pid, *_children(self._pid)]
        memory = [_resident_mib(pid) for pid in pids]
        descriptors = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
        return Sample(time.monotonic() - self._began, memory[0], sum(memory[1:]), descriptors)

    def run(self, seed: int) -> None:
        """One round. Raises Difference."""
        self.rounds.run(seed)
        self._database()
        self._stream()
        if self.rounds.mount.pid != self._pid:
            raise Difference("the daemon is another one")
        self.between.append(self._sample())

    def _database(self) -> None:
        where = self.rounds.mount.path / "database"
        with closing(sqlite3.connect(where)) as database:
            database.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, payload BLOB)")
            for number in range(30):
                with database:
                    database.execute("INSERT INTO rows VALUES (?, ?)", (number, bytes(number * 100)))
            (count,) = database.execute("SELECT count(*) FROM rows WHERE length(payload) = number * 100").fetchone()
        if count != 30:
            raise Difference(f"of 30 rows {count} are there")
        where.unlink()

    def _stream(self) -> None:
        where = self.rounds.mount.path / "stream"
        piece = os.urandom(1 << 20)
        with where.open("wb", buffering=0) as file:
            for _ in range(_STREAM_MIB):
                file.write(piece)
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with where.open("rb", buffering=0) as file:
            if any(file.read(1 << 20) != piece for _ in range(_STREAM_MIB)):
                raise Difference("a stream is not what was written")
        where.unlink()


def _children(pid: int) -> list[int]:
    found = [int(child) for task in os.listdir(f"/proc/{pid}/task") for child in _begun(pid, task)]
    return found + [below for child in found for below in _children(child)]


def _begun(pid: int, task: str) -> list[str]:
    return Path(f"/proc/{pid}/task/{task}/children").read_text().split()


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)

"""What a power cut may leave of one file, and whether its recovery keeps the promise (P3).

`Disk` records what the real code tells the backing of one file and makes the states that a cut at any instant
may leave: of what was not synced, any subset of the page writes (each page old or new) and any prefix of the
changes of size. `Oracle` knows what the file may hold then. `Campaign` does the rest: random calls, a cut at a
random instant, also in the middle of a call or of a recovery, the next mount, and the comparison.
"""

import os
import random
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

import trio

from cmkfs.format.layout import BLOCK, PAGE
from cmkfs.fs.backing import Backing
from cmkfs.maintenance.readers import Readers

from .checking import checking
from .harness import ROOT, Harness

NAME = b"file"


class Violation(AssertionError):
    """The promise is broken; the message tells how, the notes what led there."""


# -- What may be there -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Write:
    """An unsynced write of `length` times the byte `stamp`."""

    plain_off: int
    length: int
    stamp: int


@dataclass(frozen=True, slots=True)
class Truncate:
    """An unsynced change of size."""

    size: int


@dataclass(frozen=True, slots=True)
class Oracle:
    """`synced` is durable, `since` may have happened or not, call by call and block by block."""

    synced: bytes = b""
    since: tuple[Write | Truncate, ...] = ()

    def after(self, call: Write | Truncate) -> "Oracle":
        return Oracle(self.synced, (*self.since, call))

    def check(self, found: bytes) -> None:
        """Raise Violation unless `found` may be what the file holds after a cut."""
        longest = max([len(self.synced), *(_end(call) for call in self.since)])
        if any(isinstance(call, Truncate) for call in self.since):
            # A lost block in a hole that the truncated file had is taken for that hole: zeros to its end.
            longest = -(-longest // BLOCK) * BLOCK
        if len(found) > longest:
            raise Violation(f"{len(found)} bytes where at most {longest} ever were")
        edges = sorted({0, longest, len(self.synced), *self._edges()})
        for start, stop in pairwise(edges):
            self._check_part(found, start, stop)

    def _edges(self) -> Iterator[int]:
        size = len(self.synced)
        for call in self.since:
            yield size
            yield _end(call)
            if isinstance(call, Write):
                yield call.plain_off
                size = max(size, _end(call))
            else:
                size = call.size

    def _check_part(self, found: bytes, start: int, stop: int) -> None:
        """Between two edges every byte had the same history."""
        must, touched, allowed = start < len(self.synced), False, set()
        if not must:
            allowed.add(0)
        size = len(self.synced)
        for call in self.since:
            if isinstance(call, Write):
                if call.plain_off <= start < _end(call):
                    allowed.add(call.stamp)
                    touched = True
                elif size <= start < call.plain_off:
                    allowed.add(0)
                    touched = True
                size = max(size, _end(call))
                continue
            if call.size < size and start >= call.size:
                must = False
            if min(call.size, size) <= start:
                allowed.add(0)
                touched = True
            size = call.size
        if must and len(found) < stop:
            raise Violation(f"fsynced bytes are lost: {len(found)} of {stop}")
        before, now = self.synced[start:stop], found[start:stop]
        if now == before[: len(now)] or set(now) <= allowed:
            return
        if must and not touched:
            raise Violation(f"fsynced bytes are wrong between {start} and {stop}")
        for at, byte in enumerate(now):
            if byte not in allowed and (at >= len(before) or byte != before[at]):
                raise Violation(f"byte {start + at} is {byte}, which was never written there")


def _end(call: Write | Truncate) -> int:
    return call.size if isinstance(call, Truncate) else call.plain_off + call.length


# -- The disk --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PageWrite:
    """A page as it was after a write."""

    number: int
    data: bytes


@dataclass(frozen=True, slots=True)
class SizeChange:
    """The file got this length."""

    size: int


@dataclass(frozen=True, slots=True)
class Synced:
    """All of the file is durable: this is it."""

    image: bytes


@dataclass(frozen=True, slots=True)
class Told:
    """From here on this is what the file may hold."""

    oracle: Oracle


Event = PageWrite | SizeChange | Synced | Told


class Disk:
    """One backing file, and everything that happened to it since `begin`."""

    def __init__(self) -> None:
        self.path = Path()
        self.events: list[Event] = []
        self._ino = -1

    def begin(self, path: Path, image: bytes, oracle: Oracle) -> None:
        """Watch `path`, of which `image` is durable."""
        self.path = path
        self._ino = path.stat().st_ino
        self.events = [Synced(image), Told(oracle)]

    def rest(self) -> None:
        """Watch nothing."""
        self._ino = -1

    @contextmanager
    def recording(self) -> Iterator[None]:
        """See the system calls of the code under test; each is done for real as well."""
        pwrite, ftruncate, fsync = os.pwrite, os.ftruncate, os.fsync

        def see_pwrite(fd: int, data: bytes, offset: int) -> int:
            before = os.fstat(fd)
            done = pwrite(fd, data, offset)
            if before.st_ino == self._ino:
                self._wrote(fd, before.st_size, offset, done)
            return done

        def see_ftruncate(fd: int, size: int) -> None:
            ftruncate(fd, size)
            if os.fstat(fd).st_ino == self._ino:
                self.events.append(SizeChange(size))

        def see_fsync(fd: int) -> None:
            if os.fstat(fd).st_ino == self._ino:
                self.synced()

        os.pwrite, os.ftruncate, os.fsync = see_pwrite, see_ftruncate, see_fsync  # type: ignore[assignment]
        try:
            yield
        finally:
            os.pwrite, os.ftruncate, os.fsync = pwrite, ftruncate, fsync

    def _wrote(self, fd: int, size: int, offset: int, length: int) -> None:
        for number in range(offset // PAGE, (offset + length - 1) // PAGE + 1):
            end = min((number + 1) * PAGE, offset + length)
            if end > size:
                self.events.append(SizeChange(end))
            self.events.append(PageWrite(number, os.pread(fd, PAGE, number * PAGE).ljust(PAGE, b"\0")))

    def synced(self) -> None:
        """fsync, or syncfs, was called."""
        if self._ino >= 0:
            self.events.append(Synced(self.path.read_bytes()))

    def cut(self, rng: random.Random) -> tuple[bytes, Oracle]:
        """What one cut leaves, and what the file may hold then."""
        instant = rng.choice([len(self.events), rng.randint(2, len(self.events))])
        happened = self.events[:instant]
        oracle = next(event.oracle for event in reversed(happened) if isinstance(event, Told))
        last = max(at for at, event in enumerate(happened) if isinstance(event, Synced))
        synced = happened[last]
        assert isinstance(synced, Synced)
        return left(synced.image, happened[last:], rng), oracle


def left(image: bytes, events: list[Event], rng: random.Random) -> bytes:
    """What a cut may leave of a file of which `image` was durable, after these events."""
    changes = [at for at, event in enumerate(events) if isinstance(event, SizeChange)]
    bias = rng.choice([0.0, 0.2, 0.5, 0.8, 1.0])
    kept = rng.choice([len(changes), rng.randint(0, len(changes))])
    size = len(image)
    for at in changes[:kept]:
        change = events[at]
        assert isinstance(change, SizeChange)
        size = change.size
    left = bytearray(size)
    for number in range(-(-size // PAGE)):
        versions = _versions(number, image[number * PAGE : (number + 1) * PAGE], events, set(changes[:kept]))
        page = versions[-1] if rng.random() < bias else rng.choice(versions)
        left[number * PAGE : (number + 1) * PAGE] = page[: size - number * PAGE]
    return bytes(left)


def _versions(number: int, durable: bytes, events: list[Event], kept: set[int]) -> list[bytes]:
    """All that page `number` may be: zeros where nothing reached the disk."""
    versions, unreachable = [durable.ljust(PAGE, b"\0")], False
    for at, event in enumerate(events):
        if isinstance(event, PageWrite) and event.number == number and not unreachable:
            versions.append(event.data)
        elif isinstance(event, SizeChange) and event.size <= number * PAGE:
            # What is written after a cut that is not on the disk went to blocks that nothing points to yet.
            unreachable = at not in kept
            versions = versions if unreachable else [bytes(PAGE)]
        elif isinstance(event, SizeChange) and event.size < (number + 1) * PAGE and at in kept:
            versions = [version[: event.size - number * PAGE].ljust(PAGE, b"\0") for version in versions]
    return versions


class RecordedBacking(Backing):
    """A backing whose syncfs the disk is told of; everything else is seen as system calls."""

    disk: Disk

    async def sync_whole(self) -> None:
        self.fsyncs += 1
        self.disk.synced()


# -- The campaign ----------------------------------------------------------------------------------

_SIZES = [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, PAGE, 2 * BLOCK + 5]
_EDGES = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, PAGE, 2 * BLOCK, 2 * BLOCK + 9, 3 * BLOCK - 1, 5 * BLOCK]


@dataclass(slots=True)
class Campaign:
    """Runs on one vault; `trace` tells what the present run did."""

    harness: Harness
    counts: Counter[str] = field(default_factory=Counter)
    trace: list[str] = field(default_factory=list)
    readers: Readers | None = None
    """Set: `cmkfs check` judges each state too."""

    @classmethod
    def begin(cls, directory: Path) -> "Campaign":
        """A new vault, mounted."""
        RecordedBacking.disk = Disk()
        campaign = cls(Harness(directory, RecordedBacking))
        trio.run(campaign.harness.mount)
        return campaign

    @property
    def disk(self) -> Disk:
        return RecordedBacking.disk

    def run(self, seed: int, cuts: int = 5) -> None:
        """One file through several cuts. Raises Violation."""
        self.trace = []
        try:
            with self.disk.recording():
                trio.run(self._run, random.Random(seed), cuts)
        except BaseException as error:
            error.add_note(f"seed {seed}: {' '.join(self.trace)}")
            raise

    async def _run(self, rng: random.Random, cuts: int) -> None:
        program = self.harness.program
        fh = await program.create(ROOT, NAME)
        entry = program.file(fh).inode.places.newest[1]
        self.disk.begin(self.harness.vault / os.fsdecode(entry), b"", Oracle())
        oracle, stamp = Oracle(), 0
        for _ in range(cuts):
            for _ in range(rng.randint(0, 9)):
                stamp = stamp % 250 + 1
                oracle = await self._call(rng, fh, oracle, stamp)
            fh, content = await self._cut(rng)
            while rng.random() < 0.3:
                fh, content = await self._cut(rng)  # in the midst of recovery, or right after it
            oracle = Oracle(content)
            self.disk.begin(self.disk.path, self.disk.path.read_bytes(), oracle)
        await self.harness.program.close(fh)
        await self.harness.program.unlink(ROOT, NAME)
        await self.harness.mounted.settler.settle_all()
        self.disk.rest()

    async def _call(self, rng: random.Random, fh: int, oracle: Oracle, stamp: int) -> Oracle:
        """One call of a program, or of the settler."""
        program = self.harness.program
        size = program.file(fh).size
        word = rng.choice(["write", "write", "append", "append", "shrink", "grow", "empty", "fsync", "settle", "far"])
        if word in ("fsync", "settle"):
            self.trace.append(word)
            await (program.fsync(fh) if word == "fsync" else self.harness.mounted.settler.settle_all())
            # Nothing else runs, so all that was called before is durable now.
            oracle = Oracle(await program.read(fh, 0, size))
            self.disk.events.append(Told(oracle))
            return oracle
        call = self._draw(rng, word, size, stamp)
        self.trace.append(repr(call))
        oracle = oracle.after(call)
        self.disk.events.append(Told(oracle))
        if isinstance(call, Write):
            await program.write(fh, call.plain_off, bytes([call.stamp]) * call.length)
        else:
            await program.truncate(fh, call.size)
        return oracle

    @staticmethod
    def _draw(rng: random.Random, word: str, size: int, stamp: int) -> Write | Truncate:
        length = rng.choice([*_SIZES, rng.randint(1, 3 * BLOCK)])
        if word == "append":
            return Write(size, length, stamp)
        if word == "far":
            return Write(size + rng.randint(1, 12 * BLOCK), length, stamp)
        if word == "write":
            return Write(min(rng.choice([*_EDGES, rng.randint(0, size)]), size), length, stamp)
        if word == "grow":
            return Truncate(size + rng.choice([1, BLOCK, rng.randint(1, 6 * BLOCK)]))
        if word == "shrink":
            return Truncate(min(size, rng.choice([*_EDGES, rng.randint(0, size)])))
        return Truncate(0)

    async def _cut(self, rng: random.Random) -> tuple[int, bytes]:
        """The power goes and comes back; gives a new handle and what the file holds now."""
        image, oracle = self.disk.cut(rng)
        self.trace.append(f"CUT({len(image)})")
        self.harness.kill()
        with self.disk.path.open("r+b") as file:
            file.truncate(0)
            file.write(image)
        self.disk.begin(self.disk.path, image, oracle)
        await self._judge(recovering=True)
        await self.harness.mount()
        self.counts["states"] += 1
        fh, content = await self._look()
        oracle.check(content)
        # Recovery has synced what it told: from now on this is durable.
        assert self.disk.path.read_bytes() == next(
            event.image for event in reversed(self.disk.events) if isinstance(event, Synced)
        ), "recovery told what it had not synced"
        self.disk.events.append(Told(Oracle(content)))
        return fh, content

    async def _judge(self, *, recovering: bool) -> None:
        """`cmkfs check` agrees: a crash is no damage."""
        if self.readers is None:
            return
        with checking(self.harness, self.readers) as one:
            report = await one.run()
        if report.damage or report.recovery_pending is not recovering:
            raise Violation(f"check calls it damage: {[finding.line for finding in report.damage]}")
        self.counts["checked"] += 1

    async def _look(self) -> tuple[int, bytes]:
        program = self.harness.program
        report = self.harness.mounted.recovered
        if report is None or report.unreadable:
            raise Violation(f"not recovered: {report and report.unreadable}")
        entry = await program.lookup(ROOT, NAME)
        assert stat.S_ISREG(entry.st_mode)
        fh = await program.open(entry.st_ino)
        if program.file(fh).size != entry.st_size:
            raise Violation(f"told {entry.st_size} bytes, there are {program.file(fh).size}")
        content = await program.read(fh, 0, entry.st_size)
        if len(content) != entry.st_size:
            raise Violation(f"told {entry.st_size} bytes, read {len(content)}")
        return fh, content

    def end(self) -> None:
        """Unmount. What the recoveries of this run left is clean for `check` too."""
        trio.run(self.harness.unmount)
        trio.run(partial(self._judge, recovering=False))


def campaign(states: int, seed: int, directory: Path, progress: Callable[[int], None] | None = None) -> Counter[str]:
    """Check at least `states` states. Raises Violation with the seed and the calls that lead to it."""
    ran = Campaign.begin(directory)
    while ran.counts["states"] < states:
        ran.run(seed)
        seed += 1
        if progress is not None:
            progress(ran.counts["states"])
    ran.end()
    return ran.counts

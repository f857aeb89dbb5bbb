"""P4: the disk below the vault fails at any call, in any way; the mount lives on, and nothing stored is harmed.

The daemon runs with `faults.c` loaded before libc, so each of its calls on the vault's own filesystem can be made to
fail: ENOSPC, EDQUOT and EIO where it writes, makes, renames and sets attributes, EIO where it reads and syncs, and
delay. A program works meanwhile. What it is told must be an error that was made; what it had stored before must be
there; what could not be made durable must be named by `status` until it is written anew.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from loop_disk import loop_disk
from real_mount import OWN_CMK, RealMount, Site

from .files import Cut, Files, Lost

READ, WRITE, RESIZE, SYNC, CREATE, NAME, ATTRIBUTE = (1 << bit for bit in range(7))
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_KINDS = {
    "write": (WRITE, _FULL),
    "resize": (RESIZE, _FULL),
    "write or resize": (WRITE | RESIZE, (errno.ENOSPC, errno.EDQUOT)),
    "create": (CREATE, _FULL),
    "name": (NAME, (errno.ENOSPC, errno.EIO)),
    "attribute": (ATTRIBUTE, (errno.ENOSPC, errno.EIO)),
    "sync": (SYNC, (errno.EIO,)),
    "everything that stores": (WRITE | RESIZE | CREATE | ATTRIBUTE, _FULL),
}
_STEPS = 40
_SOURCE = Path(__file__).with_name("faults.c")
_libc = ctypes.CDLL(None)


class _Plan(ctypes.Structure):
    """As `struct plan` in faults.c."""

    _fields_ = (
        ("device", ctypes.c_uint64),
        ("calls", ctypes.c_uint32),
        ("error", ctypes.c_int32),
        ("after", ctypes.c_int64),
        ("times", ctypes.c_int64),
        ("delay_us", ctypes.c_uint32),
        ("hits", ctypes.c_uint32),
    )


class Injector:
    """What is to fail from now on; nothing, to begin with."""

    def __init__(self, top: Path, device: int) -> None:
        self.library, self.control = top / "faults.so", top / "plan"
        command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(self.library), str(_SOURCE), "-ldl"]
        subprocess.run(command, check=True)
        self.control.write_bytes(bytes(mmap.PAGESIZE))
        with open(self.control, "r+b") as file:
            self._plan = _Plan.from_buffer(mmap.mmap(file.fileno(), mmap.PAGESIZE))
        self._plan.device = device

    @contextlib.contextmanager
    def loaded(self) -> Iterator[None]:
        """Commands that begin in this block, and daemons that they start, can be made to fail."""
        os.environ |= {"LD_PRELOAD": str(self.library), "CMKFS_FAULTS": str(self.control)}
        try:
            yield
        finally:
            del os.environ["LD_PRELOAD"], os.environ["CMKFS_FAULTS"]

    def fail(self, calls: int, error: int, *, after: int = 0, times: int = 1 << 40) -> None:
        """These calls fail, `times` times after `after` others."""
        self._plan.error, self._plan.after, self._plan.times, self._plan.delay_us = error, after, times, 0
        self._plan.calls = calls

    def delay(self, calls: int, seconds: float) -> None:
        """These calls take so long."""
        self._plan.error, self._plan.delay_us, self._plan.calls = 0, int(seconds * 1e6), calls

    def rest(self) -> int:
        """Nothing fails any more; how often something did since the last time."""
        self._plan.calls = 0
        hits, self._plan.hits = int(self._plan.hits), 0
        return hits


class Faults:
    """A vault on a disk of its own, its mount, and rounds of work on it."""

    def __init__(self, top: Path, where: Path) -> None:
        top.chmod(0o755)
        self._site = Site(top)
        self._site.prepare()
        vault = where / "vault"
        self._site.cmkfs("init", str(vault), "--cmk", OWN_CMK)
        self.disk = Injector(top, where.stat().st_dev)
        with self.disk.loaded():
            self.mount = RealMount(self._site, vault, self._site.directory("plain"), ())
        self.mount.expected_log = ["."]  # each failure is told of
        self.work = self.mount.path / "work"
        self.work.mkdir()
        self.stable = {self.mount.path / f"stable{number}": os.urandom(5000 * number) for number in range(1, 6)}
        for path, content in self.stable.items():
            path.write_bytes(content)
            os.setxattr(path, "user.kept", content[:30])
            _sync(path)
        self.hits: Counter[str] = Counter()
        self._files = Files(Cut.KILL)
        self._rounds = 0
        self._told = {errno.EIO}
        """All errors that were made: Linux tells some later than they happen."""

    def run(self, seed: int) -> str:
        """A round of work with one kind of failure; gives which. Raises Lost."""
        rng = random.Random(seed)
        kind = rng.choice([*_KINDS, "read", "slow"])
        if kind == "read":
            self._failing_reads(rng)
        elif kind == "slow":
            self._slowly(rng)
        else:
            self._failing_work(rng, kind)
        self._rounds += 1
        if self._rounds % 8 == 0:
            self._again()
        self._is_well()
        return kind

    # -- work that fails

    def _failing_work(self, rng: random.Random, kind: str) -> None:
        calls, errors = _KINDS[kind]
        opened: dict[str, int] = {}
        self._files.calls = os
        for _ in range(_STEPS):
            failing = rng.random() < 0.4
            if failing:
                error = rng.choice(errors)
                self._told.add(error)
                self.disk.fail(calls, error, after=rng.choice([0, 0, 1, 2, 5]), times=rng.choice([1, 3, 1 << 40]))
            try:
                if failing and calls & ATTRIBUTE:
                    self._set_attribute(rng)
                self._files.step(self.work, rng, opened)
            except OSError as error:
                if error.errno not in self._told:
                    error.add_note(f"{kind}, {self._files.doing}; only {self._told} were made")
                    raise
                self._after_failure(opened)
            else:
                if failing and rng.random() < 0.5:
                    self._write_back()
            finally:
                self.hits[kind] += self.disk.rest()
        self._after_failure(opened)

    def _write_back(self) -> None:
        """Linux stores what is dirty when it wants to: what fails then is told at the next close or fsync.

        No other process does it here: it would close what it inherits, and be told in our place (docs/limits.md).
        """
        fd = os.open(self.mount.path, os.O_RDONLY)
        try:
            _libc.syncfs(fd)
        finally:
            os.close(fd)

    def _set_attribute(self, rng: random.Random) -> None:
        path = rng.choice(list(self.stable))
        os.setxattr(path, f"user.{rng.randrange(3)}", b"v" * rng.randrange(200))

    def _after_failure(self, opened: dict[str, int]) -> None:
        """What was stored before is there, read anew; then what is damaged is written anew, and is so no more.

        So is what no close or fsync has called stored: of a write-back that failed Linux shows the size, and zeros,
        until it forgets the inode; then it asks for the size, and the file is as long as what was stored.
        """
        self.hits["told"] += self.disk.rest()
        for fd in opened.values():
            try:
                os.close(fd)
            except OSError as error:
                if error.errno not in self._told:
                    raise
        opened.clear()
        self._drop_pages()
        unsure = self._files.unsure()
        self._files.verify(self.work)
        damaged = {self.mount.path / file["path"] for file in self.mount.ask("status")["damaged"]}
        for path in damaged | {self.work / name for name in unsure if name in self._files.names}:
            path.write_bytes(path.read_bytes())
            with contextlib.suppress(OSError):
                _sync(path)  # what a close was told before, Linux tells the next fsync again, once
            _sync(path)
        if left := self.mount.ask("status")["damaged"]:
            raise Lost(f"written anew, and still damaged: {left}")

    def _drop_pages(self) -> None:
        self.mount.ask("lock")
        self.mount.ask("unlock")

    # -- reads and syncs that fail

    def _failing_reads(self, rng: random.Random) -> None:
        path = rng.choice(list(self.stable))
        self._drop_pages()
        self.disk.fail(READ, errno.EIO, after=rng.choice([0, 1, 3]), times=rng.choice([1, 1 << 40]))
        try:
            read = path.read_bytes()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._is_named(path)
        else:
            if read != self.stable[path]:
                raise Lost(f"{path} reads as something else while reads fail")
        self.hits["read"] += self.disk.rest()
        if path.read_bytes() != self.stable[path]:
            raise Lost(f"{path} does not read after reads failed")
        path.write_bytes(self.stable[path])
        self.disk.fail(SYNC, errno.EIO)
        try:
            _sync(path)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._is_named(path)
        else:
            raise Lost("a failed fsync was told to have succeeded")
        self.hits["sync"] += self.disk.rest()
        path.write_bytes(self.stable[path])
        _sync(path)
        if left := self.mount.ask("status")["damaged"]:
            raise Lost(f"written anew, and still damaged: {left}")

    def _is_named(self, path: Path) -> None:
        damaged = [file["path"] for file in self.mount.ask("status")["damaged"]]
        if path.name not in damaged:
            raise Lost(f"{path.name} failed, and status names {damaged}")

    def _slowly(self, rng: random.Random) -> None:
        opened: dict[str, int] = {}
        self._files.calls = os
        self.disk.delay(READ | WRITE | SYNC | NAME, rng.choice([0.005, 0.02]))
        for _ in range(12):
            self._files.step(self.work, rng, opened)
        self.disk.rest()
        self._after_failure(opened)

    # -- how it is

    def _is_well(self) -> None:
        self.mount.check()  # no handler had a bug
        Path("/proc/sys/vm/drop_caches").write_text("2")  # from now on sizes are those that the daemon tells
        self._files.verify(self.work)
        for path, content in self.stable.items():
            if path.read_bytes() != content or os.getxattr(path, "user.kept") != content[:30]:
                raise Lost(f"{path.name} was stored before, and is not what it was")

    def _again(self) -> None:
        """A new mount sees the same, and the vault checks clean."""
        self.mount.check()
        self._site.cmkfs("umount", str(self.mount.path))
        self.mount.await_end()
        self._site.cmkfs("check", str(self.mount.vault))
        with self.disk.loaded():
            self.mount.up()
        self._files.verify(self.work)

    @property
    def steps(self) -> int:
        """How many calls were made to fail."""
        return sum(self.hits.values())


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def faults(top: Path) -> Iterator[Faults]:
    """On a loop disk of its own; all is taken down at the end."""
    with loop_disk(top, "ext4") as where:
        made = Faults(top, where)
        try:
            yield made
        finally:
            made.disk.rest()
            made.mount.clear()

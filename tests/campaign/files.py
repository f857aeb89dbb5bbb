"""A program that makes every kind of change to files and names, and knows afterwards what may be there.

It works until a call fails, and goes on from what is found. What is durable at which call depends on what is cut:
SIGKILL of the daemon loses nothing that was closed (`Cut.KILL`), a power cut nothing that was fsynced (`Cut.POWER`).
"""

import ctypes
import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from model.crash import Oracle, Truncate, Write

BLOCK = 4048
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_LONGEST = 80_000
_MOST_OPEN = 6
_MOST_FILES = 24
_SIZES = [1, 10, BLOCK - 1, BLOCK, BLOCK + 1, 4096, 9000, 20_000]
_GONE = {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ESHUTDOWN, errno.ENODEV, errno.EROFS}
"""What a program is told when the daemon or the disk below is gone (EIO, ESHUTDOWN, EROFS: the disk)."""


class Cut(Enum):
    """What is cut off."""

    KILL = "kill"
    POWER = "power"


class Lost(AssertionError):
    """What must be there is not, or something is there that never was."""


def ends_by_cut(error: OSError) -> bool:
    """Is it an error that a cut explains?"""
    return error.errno in _GONE


@dataclass(eq=False, slots=True)
class Tracked:
    """A file: its content now, and what may be found of it after a cut."""

    now: bytes = b""
    oracle: Oracle = field(default_factory=Oracle)

    def durable(self) -> None:
        """All of it is on the disk."""
        self.oracle = Oracle(self.now)

    def allows(self, found: bytes) -> bool:
        """May the file hold this?"""
        try:
            self.oracle.check(found)
        except AssertionError:
            return False
        return True


@dataclass(slots=True)
class Files:
    """Creates, writes, appends, extends, shrinks, grows, empties, replaces, renames over, links and removes."""

    cut: Cut
    calls: Any = None
    """Whose calls: those of a model, else of the system (a module does not go through a pipe)."""
    names: dict[str, list[Tracked | None]] = field(default_factory=dict)
    """By path, what may be found there; the last is what is there now."""
    directories: set[str] = field(default_factory=set)
    exchanged: list[tuple[str, str]] = field(default_factory=list)
    """Names that were exchanged and not changed since, of which before nothing but one state could be found."""
    stamp: int = 0
    steps: int = 0
    doing: str = ""

    def run(self, top: Path, seed: str, beside: Callable[[random.Random], None] = lambda rng: None) -> "Files":
        """Work until a call fails; `beside` is done between steps. Raises OSError if no cut explains that."""
        rng = random.Random(seed)
        opened: dict[str, int] = {}
        given, self.calls = self.calls, self.calls or os
        try:
            while True:
                self.step(top, rng, opened)
                beside(rng)
                self.steps += 1
        except OSError as error:
            if not ends_by_cut(error):
                error.add_note(self.doing)
                raise
        finally:
            for fd in opened.values():
                self._close_dead(fd)
            self.calls = given
        return self

    def step(self, top: Path, rng: random.Random, opened: dict[str, int]) -> None:
        """One call, or a few that belong together. Raises OSError."""
        known = [name for name, may in self.names.items() if may[-1] is not None]
        word = rng.choice(
            ["create"] * 4
            + ["change"] * 14
            + ["fsync"] * 4
            + ["close"] * 3
            + ["replace", "over", "over", "rename", "exchange"]
            + ["link", "unlink", "directory", "empty directory"]
        )
        if (word == "create" and len(known) < _MOST_FILES) or not known:
            return self._create(top, rng, opened)
        name = rng.choice(known)
        self.doing = f"{word} {name}"
        if word == "change":
            self._change(top, rng, name, opened)
        elif word == "fsync":
            self._fsync(top, name, opened)
        elif word == "close" and opened:
            self._close(rng.choice(list(opened)), opened)
        elif word == "replace":
            self._replace(top, rng, name, opened)
        elif word == "over":
            self._rename_over(top, rng, name, opened)
        elif word == "rename":
            self._rename(top, name, self._new_name(rng), opened)
        elif word == "exchange" and len(known) > 1:
            self._exchange(top, name, rng.choice([other for other in known if other != name]), opened)
        elif word == "link" and len(known) < _MOST_FILES:
            self._link(top, name, self._new_name(rng))
        elif word == "unlink":
            self._unlink(top, name, opened)
        elif word == "directory":
            self._sync_directory(top, os.path.dirname(name))
        elif word == "empty directory":
            self._empty_directory(top, rng)
        return None

    # -- names

    def _new_name(self, rng: random.Random) -> str:
        while True:
            leaf = f"f{rng.randrange(10_000)}" if rng.random() < 0.8 else f"{rng.randrange(10_000):0>230}"
            place = rng.choice(["", "", *sorted(self.directories)])
            if (name := os.path.join(place, leaf)) not in self.names:
                return name

    def _becomes(self, name: str, file: Tracked | None) -> None:
        """A call that makes `name` mean this begins; until it is durable both may be found."""
        self.names.setdefault(name, [None]).append(file)
        self.exchanged = [pair for pair in self.exchanged if name not in pair]

    def _done(self, *names: str) -> None:
        """Calls on names have returned: a kill does not undo them."""
        if self.cut is Cut.KILL:
            for name in names:
                self.names[name] = self.names[name][-1:]

    def _create(self, top: Path, rng: random.Random, opened: dict[str, int]) -> None:
        if rng.random() < 0.3 and len(self.directories) < 8:
            place = os.path.join(rng.choice(["", *sorted(self.directories)]), f"d{rng.randrange(10_000)}")
            if place.count("/") < 4 and place not in self.directories:
                self.doing = f"mkdir {place}"
                self.calls.mkdir(top / place)
                self.directories.add(place)
        name = self._new_name(rng)
        self.doing = f"create {name}"
        self._becomes(name, Tracked())
        opened_now = self.calls.open(top / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._keep(name, opened_now, opened)
        self._done(name)
        for _ in range(rng.randrange(3)):
            self._change(top, rng, name, opened)
        if rng.random() < 0.7:
            self._fsync(top, name, opened)

    def _rename(self, top: Path, old: str, new: str, opened: dict[str, int]) -> None:
        file = self.names[old][-1]
        self._becomes(new, file)
        self._becomes(old, None)
        self.calls.rename(top / old, top / new)
        self._done(old, new)
        if old in opened:
            opened[new] = opened.pop(old)

    def _exchange(self, top: Path, one: str, other: str, opened: dict[str, int]) -> None:
        may, might = self.names[one], self.names[other]
        sure = len(may) == len(might) == 1 and may[-1] is not might[-1]
        self._becomes(one, might[-1])
        self._becomes(other, may[-2])
        if sure:
            self.exchanged.append((one, other))
        try:
            _exchange_of(self.calls)(top / one, top / other)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a filesystem of others that knows no exchange
                raise
            del may[-1], might[-1]
            return
        self._done(one, other)
        held = {new: opened.pop(old) for old, new in ((one, other), (other, one)) if old in opened}
        opened.update(held)

    def _rename_over(self, top: Path, rng: random.Random, name: str, opened: dict[str, int]) -> None:
        """As editors and package managers do it: a new file, fsynced, takes the place of the old one."""
        other = self._new_name(rng)
        self._becomes(other, Tracked())
        self._keep(other, self.calls.open(top / other, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), opened)
        self._done(other)
        self._write(other, rng, 0, rng.choice(_SIZES), opened)
        self._fsync(top, other, opened)
        if name in opened:
            self._close(name, opened)
        self._rename(top, other, name, opened)

    def _link(self, top: Path, name: str, new: str) -> None:
        self._becomes(new, self.names[name][-1])
        self.calls.link(top / name, top / new)
        self._done(new)

    def _unlink(self, top: Path, name: str, opened: dict[str, int]) -> None:
        self._becomes(name, None)
        self.calls.unlink(top / name)
        self._done(name)
        if name in opened:
            self.calls.close(opened.pop(name))

    def _sync_directory(self, top: Path, place: str) -> None:
        self.doing = f"fsync of directory {place!r}"
        fd = self.calls.open(top / place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.calls.fsync(fd)
        finally:
            self._close_dead(fd)
        for name in self.names:
            if os.path.dirname(name) == place:
                self.names[name] = self.names[name][-1:]

    def _empty_directory(self, top: Path, rng: random.Random) -> None:
        place = f"e{rng.randrange(10)}"
        try:
            self.calls.rmdir(top / place)
        except FileNotFoundError:
            self.calls.mkdir(top / place)

    # -- content

    def _keep(self, name: str, fd: int, opened: dict[str, int]) -> int:
        opened[name] = fd
        while len(opened) > _MOST_OPEN:
            self._close(next(iter(opened)), opened)
        return fd

    def _descriptor(self, top: Path, name: str, opened: dict[str, int]) -> int:
        return opened[name] if name in opened else self._keep(name, self.calls.open(top / name, os.O_RDWR), opened)

    def _change(self, top: Path, rng: random.Random, name: str, opened: dict[str, int]) -> None:
        fd, file = self._descriptor(top, name, opened), self._file(name)
        size, how = len(file.now), rng.choice(["write", "write", "append", "append", "far", "shrink", "grow", "empty"])
        self.doing = f"{how} {name}"
        length = min(rng.choice(_SIZES), max(1, _LONGEST - size))
        if how == "write":
            self._write(name, rng, rng.randrange(size + 1), length, opened)
        elif how == "append":
            self._write(name, rng, size, length, opened)
        elif how == "far":
            self._write(name, rng, size + rng.randrange(12_000), length, opened)
        else:
            to = {"shrink": rng.randrange(size + 1), "grow": size + rng.randrange(12_000), "empty": 0}[how]
            file.oracle = file.oracle.after(Truncate(to))
            self.calls.ftruncate(fd, to)
            file.now = file.now[:to].ljust(to, b"\0")

    def _write(self, name: str, rng: random.Random, at: int, length: int, opened: dict[str, int]) -> None:
        file, self.stamp = self._file(name), self.stamp % 250 + 1
        file.oracle = file.oracle.after(Write(at, length, self.stamp))
        data = bytes([self.stamp]) * length
        self.calls.pwrite(opened[name], data, at)
        file.now = file.now[:at].ljust(at, b"\0") + data + file.now[at + length :]

    def _replace(self, top: Path, rng: random.Random, name: str, opened: dict[str, int]) -> None:
        if name in opened:
            self._close(name, opened)
        file = self._file(name)
        file.oracle = file.oracle.after(Truncate(0))
        self._keep(name, self.calls.open(top / name, os.O_RDWR | os.O_TRUNC), opened)
        file.now = b""
        self._write(name, rng, 0, rng.choice(_SIZES), opened)
        self._close(name, opened)

    def _fsync(self, top: Path, name: str, opened: dict[str, int]) -> None:
        self.doing = f"fsync {name}"
        self.calls.fsync(self._descriptor(top, name, opened))
        file = self._file(name)
        file.durable()
        self.names[name] = [file]

    def _close(self, name: str, opened: dict[str, int]) -> None:
        self.calls.close(opened.pop(name))
        if self.cut is Cut.KILL and self.names[name][-1] is not None:
            self._file(name).durable()

    def _file(self, name: str) -> Tracked:
        file = self.names[name][-1]
        if file is None:
            raise KeyError(name)
        return file

    def _close_dead(self, fd: int) -> None:
        try:
            self.calls.close(fd)
        except OSError as error:
            if not ends_by_cut(error):
                raise

    # -- after the cut

    def unsure(self) -> set[str]:
        """The names of files that were changed, and that nothing has called durable since."""
        return {name for name, may in self.names.items() if any(file and file.oracle.since for file in may)}

    def verify(self, top: Path) -> None:
        """Compare, and go on from what is there. Raises Lost."""
        found, numbers, directories = {}, {}, set()
        for place, below, files in os.walk(top, onerror=_fail):
            for leaf in files:
                name = str(Path(place, leaf).relative_to(top))
                found[name] = content_of(Path(place, leaf))
                numbers[name] = os.lstat(top / name).st_ino
            directories.update(str(Path(place, leaf).relative_to(top)) for leaf in below)
        self.compare(found, numbers, directories)

    def compare(self, found: dict[str, bytes], numbers: dict[str, int], directories: set[str]) -> None:
        """The files found, their inode numbers, and the directories. Raises Lost."""
        for name, may in self.names.items():
            if name not in found and None not in may:
                raise Lost(f"{name} is gone (while: {self.doing})")
            if name in found and not any(file is not None and file.allows(found[name]) for file in may):
                raise Lost(f"{name} holds what it never held: {_told(found[name], may)} (while: {self.doing})")
        if strange := found.keys() - self.names.keys():
            raise Lost(f"never made: {sorted(strange)}")
        for one, other in self.exchanged:
            if numbers[one] == numbers[other]:
                raise Lost(f"{one} and {other} were exchanged by half (while: {self.doing})")
        kept: dict[int, Tracked] = {}
        self.names, self.exchanged = {}, []
        for name, content in found.items():
            self.names[name] = [kept.setdefault(numbers[name], Tracked(content, Oracle(content)))]
        self.directories &= directories


def _exchange_of(calls: Any) -> Callable[[Path, Path], None]:
    return calls.exchange if calls is not os else _exchange


def _exchange(one: Path, other: Path) -> None:
    """renameat2(2) with RENAME_EXCHANGE."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        raise OSError(number := ctypes.get_errno(), os.strerror(number))


def _fail(error: OSError) -> None:
    raise error


def content_of(path: Path) -> bytes:
    told = path.stat().st_size
    found = path.read_bytes()
    if len(found) != told:
        raise Lost(f"{path}: told {told} bytes, read {len(found)}")
    return found


def _told(found: bytes, may: list[Tracked | None]) -> str:
    why = []
    for file in may:
        try:
            if file is not None:
                file.oracle.check(found)
        except AssertionError as error:
            why.append(f"{error}, since {file.oracle.since[-6:]}" if file is not None else "")
    return "; ".join(why)

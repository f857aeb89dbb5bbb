"""What reaches the vault's directory, recorded call by call, and the trees that a power cut may leave of it.

`Recorder` stands before the system calls that the code under test makes, does each for real, and notes what it
changed. `tree_after_cut` makes a state by the rules of one filesystem:

ordered   ext4 (`data=ordered`) and xfs: one journal. Names as after some prefix of all changes of names, and no
          shorter one than the last fsync of anything; content of each file by itself.
btrfs     A commit, at any instant since the last sync of all. Of single files a mount syncs none there, because what
          btrfs logs of one is not always what it replays (docs/adr/0021).
none      Directories and files each by themselves: of each any prefix of its changes since its own last fsync, but
          that a rename from one directory to another happened in both or in none.

Content since its last fsync: any subset of the pages written, any prefix of the changes of length.
"""

import os
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cmkfs.format.layout import PAGE
from cmkfs.fs import backing as backing_module

from .crash import Event, PageWrite, SizeChange, Synced, left

RULES = ("ordered", "btrfs", "none")


class PowerGone(BaseException):
    """From here on nothing reaches the disk."""


@dataclass(slots=True)
class Node:
    """An inode. `content` is a file's bytes or a symlink's target; `entries` a directory's."""

    kind: int
    mode: int
    content: bytes = b""
    entries: dict[bytes, int] = field(default_factory=dict)


Tree = dict[int, Node]
"""By inode number; `ROOT` is the vault."""
ROOT = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One change of one directory: `name` means `ino` now, or nothing."""

    directory: int
    name: bytes
    ino: int | None


@dataclass(frozen=True, slots=True)
class Names:
    """Changes of entries that are one operation of the filesystem."""

    changes: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Sync:
    """fsync of an inode; None: of all."""

    ino: int | None


class Recorder:
    """Records while it is `recording`; `budget` changes from now on the power goes."""

    def __init__(self, vault: Path) -> None:
        self._vault = vault
        self.budget = 10**9
        self.begin()

    def begin(self) -> None:
        """What is in the vault now is durable."""
        self.base: Tree = {}
        self.events: list[Names | Sync] = []
        self.content: dict[int, list[Event]] = {}
        self.born: Tree = {}
        self._device = self._vault.stat().st_dev
        self._root = self._vault.stat().st_ino
        self._load(self._vault, ROOT)

    def _load(self, path: Path, number: int) -> None:
        found = path.lstat()
        node = self.base[number] = Node(stat.S_IFMT(found.st_mode), stat.S_IMODE(found.st_mode))
        if node.kind == stat.S_IFDIR:
            for name in os.listdir(os.fsencode(path)):
                below = path / os.fsdecode(name)
                node.entries[name] = below.lstat().st_ino
                if node.entries[name] not in self.base:
                    self._load(below, node.entries[name])
        elif node.kind == stat.S_IFLNK:
            node.content = os.fsencode(os.readlink(path))
        else:
            node.content = path.read_bytes()

    # -- recording

    def _number(self, fd: int) -> int | None:
        found = os.fstat(fd)
        known = found.st_dev == self._device
        return (ROOT if found.st_ino == self._root else found.st_ino) if known else None

    def spend(self) -> None:
        self.budget -= 1
        if self.budget < 0:
            raise PowerGone

    def _named(self, *changes: Entry) -> None:
        self.events.append(Names(changes))

    def _make(self, directory: int, name: bytes, dir_fd: int) -> None:
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        kind = stat.S_IFMT(found.st_mode)
        target = os.readlink(name, dir_fd=dir_fd) if kind == stat.S_IFLNK else b""
        self.born.setdefault(found.st_ino, Node(kind, stat.S_IMODE(found.st_mode), target))
        self._named(Entry(directory, name, found.st_ino))

    def _wrote(self, fd: int, size: int, offset: int, length: int) -> None:
        events = self._content_of(fd)
        for number in range(offset // PAGE, (offset + length - 1) // PAGE + 1):
            end = min((number + 1) * PAGE, offset + length)
            if end > size:
                events.append(SizeChange(end))
            events.append(PageWrite(number, self._pread(fd, PAGE, number * PAGE).ljust(PAGE, b"\0")))

    def _content_of(self, fd: int) -> list[Event]:
        number = os.fstat(fd).st_ino
        before = self.base[number].content if number in self.base else b""
        return self.content.setdefault(number, [Synced(before)])

    _pread = staticmethod(os.pread)

    def synced(self, number: int | None) -> None:
        """An fsync, or with None a syncfs, has returned."""
        self.events.append(Sync(number))
        for ino, events in self.content.items():
            if number in (ino, None):
                events.append(Synced(_all_of(_since(events))))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """See the calls of the code under test."""
        seen = {name: getattr(os, name) for name in _CALLS}
        libc = backing_module._libc
        calls = _Calls(self, SimpleNamespace(**seen), libc)
        for name in _CALLS:
            setattr(os, name, getattr(calls, name))
        backing_module._libc = calls  # type: ignore[assignment]
        try:
            yield
        finally:
            for name, call in seen.items():
                setattr(os, name, call)
            backing_module._libc = libc


_CALLS = ("open", "mkdir", "symlink", "mknod", "link", "unlink", "rmdir", "rename", "pwrite", "ftruncate", "fsync")


class _Calls:
    """The system calls, each done and noted."""

    def __init__(self, recorder: Recorder, real: Any, libc: Any) -> None:
        self._recorder, self._real, self._libc = recorder, real, libc

    def __getattr__(self, name: str) -> Any:
        return getattr(self._libc, name)

    def _in(self, dir_fd: int | None, name: object) -> int | None:
        return None if dir_fd is None or name == b"." else self._recorder._number(dir_fd)

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        directory = self._in(dir_fd, path) if flags & os.O_CREAT else None
        if directory is None or dir_fd is None:
            return int(self._real.open(path, flags, mode, dir_fd=dir_fd))
        name = os.fsencode(path)
        there = name in os.listdir(f"/proc/self/fd/{dir_fd}".encode())
        if not there:
            self._recorder.spend()
        fd = int(self._real.open(path, flags, mode, dir_fd=dir_fd))
        if not there:
            self._recorder._make(directory, name, dir_fd)
        return fd

    def _making(self, call: Callable[..., object], name: Any, dir_fd: int | None, *arguments: Any) -> None:
        directory = self._in(dir_fd, name)
        if directory is None or dir_fd is None:
            call(*arguments, dir_fd=dir_fd)
            return
        self._recorder.spend()
        call(*arguments, dir_fd=dir_fd)
        self._recorder._make(directory, os.fsencode(name), dir_fd)

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._making(self._real.mkdir, path, dir_fd, path, mode)

    def symlink(self, target: Any, path: Any, target_is_directory: bool = False, *, dir_fd: int | None = None) -> None:
        self._making(self._real.symlink, path, dir_fd, target, path)

    def mknod(self, path: Any, mode: int = 0o600, device: int = 0, *, dir_fd: int | None = None) -> None:
        self._making(self._real.mknod, path, dir_fd, path, mode, device)

    def link(self, source: Any, target: Any, *, src_dir_fd: Any = None, dst_dir_fd: Any = None, **more: Any) -> None:
        self._recorder.spend()
        self._real.link(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, **more)
        directory = self._recorder._number(dst_dir_fd)
        if directory is not None:
            self._recorder._make(directory, os.fsencode(target), dst_dir_fd)

    def _removing(self, call: Callable[..., object], path: Any, dir_fd: int | None) -> None:
        directory = self._in(dir_fd, path)
        if directory is not None:
            self._recorder.spend()
        call(path, dir_fd=dir_fd)
        if directory is not None:
            self._recorder._named(Entry(directory, os.fsencode(path), None))

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._removing(self._real.unlink, path, dir_fd)

    def rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._removing(self._real.rmdir, path, dir_fd)

    def rename(self, source: Any, target: Any, *, src_dir_fd: Any = None, dst_dir_fd: Any = None) -> None:
        if src_dir_fd is None:
            self._real.rename(source, target)
            return
        self._renamed(
            lambda: self._real.rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd),
            (src_dir_fd, os.fsencode(source)),
            (dst_dir_fd, os.fsencode(target)),
            exchange=False,
        )

    def renameat2(self, src_dir_fd: int, source: bytes, dst_dir_fd: int, target: bytes, flags: int) -> int:
        def call() -> None:
            backing_module._check(self._libc.renameat2(src_dir_fd, source, dst_dir_fd, target, flags))

        exchange = flags == backing_module.RENAME_EXCHANGE
        self._renamed(call, (src_dir_fd, source), (dst_dir_fd, target), exchange=exchange)
        return 0

    def _renamed(
        self, call: Callable[[], None], source: tuple[int, bytes], target: tuple[int, bytes], *, exchange: bool
    ) -> None:
        self._recorder.spend()
        one = os.stat(source[1], dir_fd=source[0], follow_symlinks=False).st_ino
        other = os.stat(target[1], dir_fd=target[0], follow_symlinks=False).st_ino if exchange else None
        call()
        left, right = self._recorder._number(source[0]), self._recorder._number(target[0])
        if left is not None and right is not None:
            self._recorder._named(Entry(left, source[1], other), Entry(right, target[1], one))

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        if self._recorder._number(fd) is None:
            return int(self._real.pwrite(fd, data, offset))
        self._recorder.spend()
        size = os.fstat(fd).st_size
        done = int(self._real.pwrite(fd, data, offset))
        self._recorder._wrote(fd, size, offset, done)
        return done

    def ftruncate(self, fd: int, size: int) -> None:
        self._recorder.spend()
        self._real.ftruncate(fd, size)
        if self._recorder._number(fd) is not None:
            self._recorder._content_of(fd).append(SizeChange(size))

    def fsync(self, fd: int) -> None:
        self._recorder.spend()
        number = self._recorder._number(fd)
        if number is not None:
            self._recorder.synced(number)


def _all_of(events: list[Event]) -> bytes:
    """What a file holds after all of them."""
    content = bytearray(_image(events))
    for event in events:
        if isinstance(event, SizeChange):
            content = content[: event.size].ljust(event.size, b"\0")
        elif isinstance(event, PageWrite):
            at = event.number * PAGE
            content[at : at + PAGE] = event.data[: len(content) - at]
    return bytes(content)


def _since(events: list[Event]) -> list[Event]:
    last = max(at for at, event in enumerate(events) if isinstance(event, Synced))
    return events[last:]


def _image(events: list[Event]) -> bytes:
    first = _since(events)[0]
    assert isinstance(first, Synced)
    return first.image


# -- States ----------------------------------------------------------------------------------------


def tree_after_cut(recorder: Recorder, rule: str, rng: random.Random) -> Tree:
    """One of the trees that a cut now may leave."""
    names = {"ordered": _ordered, "btrfs": _btrfs, "none": _none}[rule](recorder, rng)
    tree: Tree = {}
    waiting = [ROOT]
    while waiting:
        number = waiting.pop()
        known = recorder.base.get(number) or recorder.born[number]
        node = tree[number] = Node(known.kind, known.mode, known.content, names.get(number, {}))
        if number in recorder.content:
            events = _since(recorder.content[number])
            node.content = left(_image(events), events, rng)
        waiting += [below for below in node.entries.values() if below not in tree]
    return tree


Listing = dict[int, dict[bytes, int]]


def _base(recorder: Recorder) -> Listing:
    return {number: dict(node.entries) for number, node in recorder.base.items() if node.kind == stat.S_IFDIR}


def _apply(listing: Listing, change: Entry) -> None:
    entries = listing.setdefault(change.directory, {})
    if change.ino is None:
        entries.pop(change.name, None)
    else:
        entries[change.name] = change.ino


def _prefix(recorder: Recorder, stop: int) -> Listing:
    listing = _base(recorder)
    for event in recorder.events[:stop]:
        if isinstance(event, Names):
            for change in event.changes:
                _apply(listing, change)
    return listing


def _ordered(recorder: Recorder, rng: random.Random) -> Listing:
    last = max((at for at, event in enumerate(recorder.events) if isinstance(event, Sync)), default=0)
    return _prefix(recorder, rng.choice([len(recorder.events), rng.randint(last, len(recorder.events))]))


def _btrfs(recorder: Recorder, rng: random.Random) -> Listing:
    last = max((at for at, event in enumerate(recorder.events) if event == Sync(None)), default=0)
    return _prefix(recorder, rng.choice([last, rng.randint(last, len(recorder.events))]))


def _none(recorder: Recorder, rng: random.Random) -> Listing:
    events = recorder.events
    stops: dict[int, int] = {}
    for at, event in enumerate(events):
        if isinstance(event, Names):
            for change in event.changes:
                stops.setdefault(change.directory, 0)
        elif event.ino is None:
            stops = dict.fromkeys(stops, at)
        elif event.ino in stops:
            stops[event.ino] = at
    stops = {number: rng.choice([stop, rng.randint(stop, len(events)), len(events)]) for number, stop in stops.items()}
    while True:  # a rename between two directories: in both, since one of them has it
        late = [
            (change.directory, at + 1)
            for at, event in enumerate(events)
            if isinstance(event, Names) and any(stops[change.directory] > at for change in event.changes)
            for change in event.changes
            if stops[change.directory] <= at
        ]
        if not late:
            break
        for number, stop in late:
            stops[number] = max(stops[number], stop)
    listing = _base(recorder)
    for at, event in enumerate(events):
        if isinstance(event, Names):
            for change in event.changes:
                if at < stops[change.directory]:
                    _apply(listing, change)
    return listing


def put(tree: Tree, vault: Path) -> None:
    """Make a vault of a tree, in an empty directory."""
    made: dict[int, Path] = {ROOT: vault}
    waiting = [ROOT]
    while waiting:
        number = waiting.pop()
        for name, below in tree[number].entries.items():
            path, node = made[number] / os.fsdecode(name), tree[below]
            if below in made and node.kind != stat.S_IFDIR:
                os.link(made[below], path, follow_symlinks=False)
                continue
            made[below] = path
            if node.kind == stat.S_IFDIR:
                path.mkdir()
                path.chmod(node.mode)
                waiting.append(below)
            elif node.kind == stat.S_IFLNK:
                os.symlink(os.fsdecode(node.content), path)
            elif node.kind == stat.S_IFREG:
                path.write_bytes(node.content)
                path.chmod(node.mode)
            else:
                os.mknod(path, node.kind | node.mode)

"""Programs at work while something is cut off: each knows afterwards what must be there and what may be.

Beside `Files` there are a log that fsyncs now and then, and SQLite. `at_work` lets each work in a process of its own.
"""

import os
import random
import signal
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from children import Child

from .files import Lost, content_of, ends_by_cut

_RECORD = 700
_SAID_BY_SQLITE = ("disk I/O", "unable to open", "readonly", "malformed", "locked")


class Work(Protocol):
    """A program: works in `top` until a call fails, then checks what is left in `top`."""

    def run(self, top: Path, seed: str) -> "Work": ...

    def verify(self, top: Path) -> None: ...


class _PowerGone(BaseException):
    """No error, so that nobody takes it for one."""


# -- A log and a database --------------------------------------------------------------------------


def _record(number: int) -> bytes:
    return struct.pack("<Q", number + 1) * (_RECORD // 8) + bytes(_RECORD % 8)


@dataclass(slots=True)
class Log:
    """Appends records, and fsyncs some of them."""

    written: int = 0
    synced: int = 0

    def run(self, top: Path, seed: str) -> "Log":
        """Until a call fails."""
        rng = random.Random(seed)
        try:
            with open(top / "log", "ab", buffering=0) as file:
                while True:
                    self.written += 1
                    file.write(_record(self.written - 1))
                    if rng.random() < 0.3:
                        os.fsync(file.fileno())
                        self.synced = self.written
        except OSError as error:
            if not ends_by_cut(error):
                raise
        return self

    def verify(self, top: Path) -> None:
        """Every synced record is there; behind them is only what was written, or zeros."""
        found = content_of(top / "log") if self.synced or (top / "log").exists() else b""
        if len(found) < self.synced * _RECORD or len(found) > self.written * _RECORD:
            raise Lost(f"the log has {len(found)} bytes, {self.synced} of {self.written} records were fsynced")
        for number in range(-(-len(found) // _RECORD)):
            piece, known = found[number * _RECORD : (number + 1) * _RECORD], _record(number)
            if piece == known:
                continue
            wrong = any(byte not in (0, known[at]) for at, byte in enumerate(piece))
            if wrong or number < self.synced:
                raise Lost(f"record {number} of the log is wrong, {self.synced} were fsynced")
        self.written = self.synced = len(found) // _RECORD
        with open(top / "log", "ab") as file:
            file.truncate(self.written * _RECORD)
            os.fsync(file.fileno())
        for number in range(self.written):  # zeros in what was not fsynced: written anew
            if found[number * _RECORD : (number + 1) * _RECORD] != _record(number):
                with open(top / "log", "r+b") as file:
                    os.pwrite(file.fileno(), _record(number), number * _RECORD)
                    os.fsync(file.fileno())


@dataclass(slots=True)
class Database:
    """Commits rows with SQLite, in one of its journal modes; tells `acks`, a file elsewhere, how many there are.

    In WAL mode SQLite has a file mapped, and dies of SIGBUS when what is below the mapping is gone.
    """

    mode: str
    acks: Path
    committed: int = 0

    def run(self, top: Path, seed: str) -> "Database":
        """Until a call fails."""
        rng = random.Random(seed)
        acks = os.open(self.acks, os.O_RDWR | os.O_CREAT)
        os.pwrite(acks, struct.pack("<Q", self.committed), 0)
        try:
            with closing(self._open(top)) as database:
                while True:
                    number = self.committed
                    with database:
                        database.execute("INSERT INTO rows VALUES (?, ?)", (number, _payload(number)))
                        if rng.random() < 0.2:
                            database.execute("UPDATE rows SET payload = payload WHERE number % 7 = 3")
                    self.committed += 1
                    os.pwrite(acks, struct.pack("<Q", self.committed), 0)
        except sqlite3.Error as error:
            if not any(word in str(error) for word in _SAID_BY_SQLITE):
                raise
        except OSError as error:
            if not ends_by_cut(error):
                raise
        return self

    def _open(self, top: Path) -> sqlite3.Connection:
        database = sqlite3.connect(top / "database")
        database.execute(f"PRAGMA journal_mode = {self.mode}")
        database.execute("PRAGMA synchronous = EXTRA")
        database.execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, payload BLOB)")
        return database

    def verify(self, top: Path) -> None:
        """It is whole, and every committed row is there."""
        (self.committed,) = struct.unpack("<Q", self.acks.read_bytes())
        with closing(self._open(top)) as database:
            (said,) = database.execute("PRAGMA integrity_check").fetchone()
            if said != "ok":
                raise Lost(f"SQLite ({self.mode}): {said}")
            rows = dict(database.execute("SELECT number, payload FROM rows"))
        lost = [number for number in range(self.committed) if rows.get(number) != _payload(number)]
        if lost:
            raise Lost(f"SQLite ({self.mode}): of {self.committed} committed rows are lost: {lost[:5]}")
        self.committed = max(rows, default=-1) + 1


def at_work(works: dict[str, Work], top: Path, seed: int, until: Callable[[list[Child]], None]) -> dict[str, Work]:
    """Let the programs work, each in a process and in a directory of its own, until something is cut by `until`."""
    children = {name: Child(partial(_until_told, work, top / name, f"{seed} {name}")) for name, work in works.items()}
    for child in children.values():
        child.go()
    until(list(children.values()))
    return {name: _result(child, works[name]) for name, child in children.items()}


def _until_told(work: Work, top: Path, seed: str) -> Work:
    """SIGTERM is a cut, too: what is under way has not returned."""

    def cut(number: int, frame: object) -> None:
        raise _PowerGone

    signal.signal(signal.SIGTERM, cut)
    try:
        return work.run(top, seed)
    except _PowerGone:
        return work


def _result(child: Child, before: Work) -> Work:
    try:
        known: Work = child.result()
    except AssertionError:
        if not isinstance(before, Database):
            raise
        return before  # a signal, and what it knew is in its file
    return known


def _payload(number: int) -> bytes:
    return random.Random(number).randbytes(100 + number * 37 % 3000)

"""The file of a chain while it is written: one writer, appended to, moved aside when it is long.

    DIRECTORY/NAME.jsonl                  what is written now
    DIRECTORY/NAME.000000000123.jsonl     moved aside; the number is that of its first record
    DIRECTORY/NAME.lock                   locked by the writer

A record is one write(2). When `append` has returned, the record is in the kernel: nothing that happens to the
process can lose it. A power cut can lose what came after the last `sync`.
"""

import errno
import fcntl
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cmkfs.audit.chain import NO_MAC, Head, Line, TokenMac, context, new_epoch_name, next_key, parse, seal
from cmkfs.errors import Busy

PRIVATE_MODE: Final = 0o600
SUFFIX: Final = ".jsonl"
LOCK_SUFFIX: Final = ".lock"
_TAIL_BYTES: Final = 256 * 1024
_ROOM: Final = 8192


@dataclass(frozen=True, slots=True)
class Epoch:
    """The name of an epoch and its first key, of the token."""

    name: str
    key: bytes


class LogFile:
    """A chain's end, and the only one who may add to it."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.name = name
        self.path = directory / f"{name}{SUFFIX}"
        self.chain = ""
        self.seq = 0
        self.mac = NO_MAC
        self.first_seq = 0
        self.size = 0
        self.dropped = 0
        self._key = b""
        self._fd = -1
        self._lock = -1
        self._second = -1
        self._clock = ""

    # -- beginning and end -----------------------------------------------------------------------

    def open(self, *, wait: bool) -> None:
        """Become the writer. Raises Busy (another is, and `wait` is False), OSError."""
        self._lock = self._open(self.path.with_suffix(LOCK_SUFFIX), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            self._open_current()
            self._find_end()
        except BlockingIOError:
            self.close()
            raise Busy(f"another process writes {self.path}") from None
        except BaseException:
            self.close()
            raise

    def go_on_from(self, head: Head | None) -> None:
        """Go on where the token remembers the end, if there is less of the chain here. A gap stays to be seen.

        Without a file and without a head a new chain begins.
        """
        if head is not None and (not self.chain or (head.chain == self.chain and head.seq > self.seq)):
            self.chain, self.seq, self.mac = head.chain, head.seq, head.mac
        elif not self.chain:
            self.chain = secrets.token_hex(16)

    def close(self) -> None:
        """Somebody else may write now. Idempotent."""
        for descriptor in (self._fd, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._fd = self._lock = -1
        self._key = b""

    def head(self, place: str, settings: str) -> Head:
        """The end of the chain."""
        return Head(self.chain, place, self.name, self.seq, self.mac, settings)

    # -- writing ---------------------------------------------------------------------------------

    def new_epoch(self, token_mac: TokenMac) -> Epoch:
        """Have the token make the first key of another epoch; the file is not touched. Raises TokenUnavailable."""
        epoch = new_epoch_name()
        return Epoch(epoch, token_mac(context(self.chain, epoch)))

    def begin_epoch(self, epoch: Epoch, body: str) -> None:
        """Write a checkpoint, the first record of an epoch. Raises OSError."""
        before, self._key = self._key, epoch.key
        try:
            self.append(f'{body},"chain":"{self.chain}","epoch":"{epoch.name}"')
        except OSError:
            self._key = before
            raise

    def append(self, body: str, ts: str | None = None) -> None:
        """Write a record; it is in the kernel then. Raises OSError, and then nothing was written."""
        line, mac = seal(self._key, ts or self.now(), self.seq + 1, body, self.mac)
        written = os.write(self._fd, line)
        if written != len(line):
            os.ftruncate(self._fd, self.size)
            raise self._full()
        self.size += written
        self.seq += 1
        self.mac = mac
        self._key = next_key(self._key)
        self.first_seq = self.first_seq or self.seq

    def now(self) -> str:
        """The time as records have it: UTC with microseconds."""
        seconds, rest = divmod(time.time_ns(), 1_000_000_000)
        if seconds != self._second:
            self._second, self._clock = seconds, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        return f"{self._clock}.{rest // 1000:06d}Z"

    def require_room(self) -> None:
        """Return if a record can be written now. Raises OSError."""
        try:
            written = os.write(self._fd, b" " * _ROOM)
        finally:
            os.ftruncate(self._fd, self.size)
        if written < _ROOM:
            raise self._full()

    def sync(self) -> None:
        """What was written survives a power cut. Blocks. Raises OSError."""
        os.fdatasync(self._fd)

    # -- moving aside ----------------------------------------------------------------------------

    @property
    def moved(self) -> bool:
        """True if somebody (logrotate) moved or removed the file under the writer's hands."""
        try:
            here = os.stat(self.path)
        except FileNotFoundError:
            return True
        mine = os.fstat(self._fd)
        return (here.st_dev, here.st_ino) != (mine.st_dev, mine.st_ino)

    @property
    def cut(self) -> bool:
        """True if somebody changed the length of the file."""
        return os.fstat(self._fd).st_size != self.size

    def rotate(self, epoch: Epoch, body: str) -> None:
        """Go on in a new file, which begins with a checkpoint. Raises OSError; then the old one goes on."""
        if not self.moved:
            self.path.rename(self.directory / f"{self.name}.{self.first_seq:012d}{SUFFIX}")
        old, old_size, old_first = self._fd, self.size, self.first_seq
        self._open_current()
        self.first_seq = self.seq + 1
        try:
            self.begin_epoch(epoch, body)
        except OSError:
            os.close(self._fd)
            self._fd, self.size, self.first_seq = old, old_size, old_first
            raise
        os.close(old)

    # -- how -------------------------------------------------------------------------------------

    def _full(self) -> OSError:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def _open(self, path: Path, flags: int) -> int:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_MODE)
        owner = os.stat(self.directory).st_uid
        if os.geteuid() == 0 and os.fstat(fd).st_uid != owner:
            os.fchown(fd, owner, -1)  # root acted on a user's home: the user goes on writing here
        return fd

    def _open_current(self) -> None:
        self._fd = self._open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self.size = os.fstat(self._fd).st_size

    def _find_end(self) -> None:
        """Read where the chain ends: in the current file, else in the newest that was moved aside."""
        whole, last = _last_line(self._fd, self.size)
        if whole < self.size:  # a power cut, or a full disk: a record that was not written to its end
            self.dropped = self.size - whole
            os.ftruncate(self._fd, whole)
            self.size = whole
        if not self.size:
            self._go_on_from_elsewhere()
        elif last is not None:
            self.seq, self.mac = last.number("seq"), last.text("mac")
            self.chain, self.first_seq = _begin_of(self._fd)

    def _go_on_from_elsewhere(self) -> None:
        """The file was moved aside while nobody wrote: the chain goes on from the newest of those."""
        for path in self._others():
            with path.open("rb") as file:
                _, last = _last_line(file.fileno(), os.fstat(file.fileno()).st_size)
                chain, _ = _begin_of(file.fileno())
            if last is not None and chain and last.number("seq") > self.seq:
                self.chain, self.seq, self.mac = chain, last.number("seq"), last.text("mac")

    def _others(self) -> list[Path]:
        found = self.directory.glob(f"{self.name}.*")
        return [path for path in found if ".jsonl" in path.name and path != self.path and path.suffix != ".gz"]


def _last_line(fd: int, size: int) -> tuple[int, Line | None]:
    """Where the last whole line ends, and the last record in the file."""
    start = max(0, size - _TAIL_BYTES)
    data = os.pread(fd, size - start, start).rstrip(b"\0 ")
    end = data.rfind(b"\n") + 1
    lines = data[:end].splitlines(keepends=True)
    for raw in reversed(lines):
        line = parse(raw)
        if line is not None:
            return start + end, line
    return start + end, None


def _begin_of(fd: int) -> tuple[str, int]:
    """Chain and number of a file's first record; every file begins with a checkpoint, which has both."""
    first = parse(os.pread(fd, _TAIL_BYTES, 0).partition(b"\n")[0] + b"\n")
    return (first.text("chain"), first.number("seq")) if first is not None else ("", 0)

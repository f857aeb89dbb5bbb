"""The mounts of one home: a control socket and a record for each, in `Home.mounts_dir`.

Whether a mount lives is what connecting to its socket says: the kernel refuses a socket whose process has
ended, and no pid can be mistaken for another. `flock` on the directory makes binding, recording and
clearing one step each.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from cmkfs.errors import Busy, CmkfsError
from cmkfs.home import Home, private_directory, private_tree

_CONNECT_SECONDS = 5.0
_BACKLOG = 64


@dataclass(frozen=True, slots=True)
class MountRecord:
    """What other commands must know of a mount without asking it. `cmks`: id (32 hex digits) to name."""

    mountpoint: str
    vault: str
    pid: int
    cmks: dict[str, str]
    revocation_bound: float

    def to_json(self) -> str:
        """The record as it is stored."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "MountRecord":
        """Raises ValueError if `text` is no record."""
        try:
            return cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(f"not a record of a mount: {error}") from error


@dataclass(frozen=True, slots=True)
class Entry:
    """A socket found in the registry. `record` is None if it cannot be read, `alive` if the daemon is."""

    socket: Path
    record: MountRecord | None
    alive: bool

    @property
    def label(self) -> str:
        """What to call the mount in a message."""
        return self.record.mountpoint if self.record else str(self.socket)


def socket_path(home: Home, mountpoint: str) -> Path:
    """The control socket of a mount point: one mount point, one name."""
    digest = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]
    return home.mounts_dir / f"{digest}.sock"


def entries(home: Home) -> tuple[Entry, ...]:
    """Every mount of this home, dead ones too, by mount point."""
    if not home.mounts_dir.is_dir():
        return ()
    with _locked(home):
        found = [_entry(path) for path in home.mounts_dir.glob("*.sock")]
    return tuple(sorted(found, key=lambda entry: entry.label))


def find(home: Home, mountpoint: str) -> Entry | None:
    """The mount at `mountpoint`, None if this home knows none there."""
    path = socket_path(home, mountpoint)
    if not home.mounts_dir.is_dir():
        return None
    with _locked(home):
        return _entry(path) if path.exists() else None


def clear(home: Home, entry: Entry) -> None:
    """Remove what a dead mount left. Does nothing if it has come to life meanwhile."""
    with _locked(home):
        if not _alive(entry.socket):
            _remove(entry.socket)


def bind(home: Home, record: MountRecord) -> socket.socket:
    """A listening socket (mode 0600) with its record. Raises Busy if the mount point has a live daemon."""
    private_tree(home.runtime)
    private_directory(home.mounts_dir)
    path = socket_path(home, record.mountpoint)
    with _locked(home):
        if _alive(path):
            raise Busy(f"{record.mountpoint} is served already", hint=f"cmkfs status {record.mountpoint}")
        _remove(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The directory is 0700, so that nobody can come in between bind and chmod.
            listener.bind(str(path))
            path.chmod(0o600)
            _write(path, record)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise CmkfsError(f"cannot make the control socket {path}: {error.strerror}") from error
    return listener


def update(home: Home, record: MountRecord) -> None:
    """Store a changed record of a mount that this process serves."""
    with _locked(home):
        _write(socket_path(home, record.mountpoint), record)


def withdraw(home: Home, record: MountRecord) -> None:
    """Remove socket and record of a mount that this process serves; connections live on."""
    with _locked(home):
        _remove(socket_path(home, record.mountpoint))


@contextlib.contextmanager
def _locked(home: Home) -> Iterator[None]:
    descriptor = os.open(home.mounts_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _entry(path: Path) -> Entry:
    try:
        record = MountRecord.from_json(_record_path(path).read_text())
    except (OSError, ValueError):
        record = None  # a power cut can leave an empty one; `alive` tells whether that matters
    return Entry(path, record, _alive(path))


def _alive(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_SECONDS)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except (TimeoutError, BlockingIOError):  # its queue is full: alive and in trouble
            return True
    return True


def _write(path: Path, record: MountRecord) -> None:
    new = path.with_suffix(".new")
    new.write_text(record.to_json())
    new.chmod(0o600)
    new.replace(_record_path(path))


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _record_path(path).unlink(missing_ok=True)


def _record_path(path: Path) -> Path:
    return path.with_suffix(".json")

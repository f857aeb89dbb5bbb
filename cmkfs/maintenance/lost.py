"""`cmkfs.lost` in the vault's root: where `--repair` puts away what it cannot mend. No mount shows it.

Each thing has a number for a name; `log` says of each, in a line of JSON, where it lay and why it is there. Only
backing names are written: the log is in the clear.
"""

import json
import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime

from cmkfs.errors import Damaged
from cmkfs.fs.backing import RENAME_NOREPLACE, Backing, rename
from cmkfs.fs.inode import Inode
from cmkfs.fs.vaultdir import OWNER_FILE, check_own_file
from cmkfs.maintenance.ownnames import LOST_DIR

_LOG = b"log"


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that was done. `path` is the plain path as far as it can be read."""

    path: bytes
    done: str

    def facts(self) -> dict[str, object]:
        """As JSON tells it."""
        return {"path": self.path.decode("utf-8", "surrogateescape"), "done": self.done}

    @property
    def line(self) -> str:
        """As people are told."""
        return f"{self.path.decode('utf-8', 'surrogateescape')}: {self.done}"


class Lost:
    """Opened at the first thing that is put away."""

    def __init__(self, backing: Backing) -> None:
        self._backing = backing
        self._fd = -1
        self._next = 0

    def put(self, dir_fd: int, entry: bytes, where: list[bytes], why: str) -> str:
        """Move an entry there, whatever it is; gives what it is called now. Raises OSError."""
        self._open()
        # Written first: what lies there is never without its line.
        number = self._log({"was": _shown([*where, entry]), "why": why})
        rename(dir_fd, entry, self._fd, b"%d" % number, RENAME_NOREPLACE)
        return f"cmkfs.lost/{number}"

    def keep_attribute(self, where: list[bytes], name: str, value: bytes, why: str) -> str:
        """Keep an attribute's backing value in a file before it is removed."""
        self._open()
        number = self._log({"was": _shown(where), "why": why, "attribute": name})
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(b"%d" % number, flags, 0o600, dir_fd=self._fd), "wb") as file:
            file.write(value)
            file.flush()
            os.fsync(file.fileno())
        return f"cmkfs.lost/{number}"

    def close(self) -> None:
        """Everything there is durable, then let go of it."""
        if self._fd >= 0:
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        if self._fd >= 0:
            return
        root = self._backing.root_fd
        try:
            found = os.stat(LOST_DIR, dir_fd=root, follow_symlinks=False)
        except FileNotFoundError:
            os.mkdir(LOST_DIR, 0o700, dir_fd=root)
        else:
            if not stat.S_ISDIR(found.st_mode):
                free = next(name for name in (b"cmkfs.tmp.lost%d" % n for n in range(2**32)) if not _there(name, root))
                rename(root, LOST_DIR, root, free, RENAME_NOREPLACE)
                os.mkdir(LOST_DIR, 0o700, dir_fd=root)
        self._fd = os.open(LOST_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
        taken = [int(name) for name in os.listdir(self._fd) if name.isascii() and name.isdigit() and len(name) < 18]
        self._next = max([0, *taken]) + 1

    def _log(self, fields: dict[str, object]) -> int:
        number, self._next = self._next, self._next + 1
        line = json.dumps({"number": number, "when": datetime.now(UTC).isoformat(timespec="seconds"), **fields})
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(_LOG, flags, 0o600, dir_fd=self._fd)
        try:
            check_own_file(fd, "cmkfs.lost/log")
            os.write(fd, line.encode() + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        return number


def path_of(inode: Inode) -> list[bytes]:
    """The backing names from the vault's root down to a directory."""
    names: list[bytes] = []
    while inode.places:
        inode, name = inode.places.newest
        names.append(name)
    return names[::-1]


def free_owner(backing: Backing) -> None:
    """Put away whatever lies in the place of `cmkfs.owner` and cannot be it: nobody can own the vault before."""
    try:
        fd = os.open(OWNER_FILE, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=backing.root_fd)
    except FileNotFoundError:
        return
    except OSError:
        fd = -1
    try:
        if fd >= 0:
            check_own_file(fd, OWNER_FILE)
            return
    except Damaged:
        pass
    finally:
        if fd >= 0:
            os.close(fd)
    lost = Lost(backing)
    try:
        lost.put(backing.root_fd, OWNER_FILE.encode(), [], "not the vault's own file")
    finally:
        lost.close()


def _there(name: bytes, dir_fd: int) -> bool:
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _shown(names: list[bytes]) -> str:
    return os.fsdecode(b"/".join(names))

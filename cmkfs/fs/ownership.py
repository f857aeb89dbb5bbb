"""Who owns a vault now: one mount at a time, because a mount caches.

Decides only who is refused, never what is trusted.

`cmkfs.owner` names host and process; a lock on it (flock) tells whether that process lives, on this host. Of
another host nothing can be told: there `--break-lock` is the operator's word that it does not.
"""

import fcntl
import json
import os
import socket
from pathlib import Path

from cmkfs.errors import Busy
from cmkfs.fs.backing import Backing
from cmkfs.fs.vaultdir import OWNER_FILE, check_own_file


def host_id() -> str:
    """The host's name; with its machine id where it has one, so that a renamed host knows its own."""
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = ""
    return f"{socket.gethostname()}/{machine}" if machine else socket.gethostname()


class Ownership:
    """Held from mount to unmount."""

    def __init__(self, backing: Backing, vault: Path) -> None:
        self._backing = backing
        self._vault = vault
        self._fd = -1

    def take(self, mountpoint: Path | None, *, break_lock: bool) -> None:
        """Become the owner; `mountpoint` None: for a check. Raises Busy if another lives, or was on another host."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self._fd = os.open(OWNER_FILE, flags, 0o600, dir_fd=self._backing.root_fd)
        try:
            check_own_file(self._fd, OWNER_FILE)
            self._lock(self._read())
            owner = self._read()
            if owner and owner.get("host") != host_id() and not break_lock:
                again = f"check --break-lock {self._vault}" if mountpoint is None else ""
                again = again or f"mount --break-lock {self._vault} {mountpoint}"
                raise Busy(
                    f"{self._vault} is mounted by {_who(owner)}, or was when that host went down",
                    hint=f"if that host is down: cmkfs {again}",
                )
            facts = {"host": host_id(), "pid": os.getpid(), "mountpoint": str(mountpoint or "")}
            data = json.dumps(facts).encode()
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, data, 0)
        except BaseException:
            os.close(self._fd)
            self._fd = -1
            raise

    def _lock(self, owner: dict[str, object]) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            mountpoint = owner.get("mountpoint", "MOUNTPOINT")
            if not mountpoint:
                raise Busy(
                    f"{self._vault} is being checked by {_who(owner)}", hint="the same when it is done"
                ) from None
            raise Busy(
                f"{self._vault} is mounted already by {_who(owner)}", hint=f"cmkfs umount {mountpoint}"
            ) from None

    def _read(self) -> dict[str, object]:
        try:
            facts = json.loads(os.pread(self._fd, 65_536, 0))
        except (ValueError, RecursionError):
            return {}  # empty: nobody; half-written: somebody who died, whom flock tells from the living
        return facts if isinstance(facts, dict) else {}

    def release(self, *, clean: bool) -> None:
        """Give the vault up; after a clean end nobody's name stays in it."""
        if self._fd < 0:
            return
        if clean:
            os.ftruncate(self._fd, 0)
        os.close(self._fd)
        self._fd = -1


def _who(owner: dict[str, object]) -> str:
    host = str(owner.get("host", "an unknown host")).partition("/")[0]
    pid = owner.get("pid")
    return f"pid {pid if isinstance(pid, int) else '?'} on {host}"

"""What shuts a mount whose daemon hangs in the kernel, on a disk that does not answer, and can lock nothing.

A daemon in uninterruptible sleep cannot even be killed, so nothing is asked of it: the connection is aborted, which
ends every request, its own too, and its guardian drops what the kernel has cached (docs/concurrency.md, "The lock").
"""

import os
import select
import time
from collections.abc import Sequence
from pathlib import Path

from cmkfs.cli.output import complain
from cmkfs.control import client
from cmkfs.control.protocol import Fields
from cmkfs.control.registry import Entry
from cmkfs.errors import EXIT_FAILED, CmkfsError, MountFailed, NoAnswer
from cmkfs.fs import guardian_process, kernel_mount
from cmkfs.home import Home

SILENCE = 15.0
"""How long a daemon may be silent while dirty pages are to be stored: what it may take for a lock itself."""
SILENCE_NOW = 5.0
"""The same where nothing is to be stored."""
DROP_SECONDS = 60.0
"""How long the guardian may take to drop what is cached of a connection that was aborted."""
_LOOK_SECONDS = 1.0
_GUARDIAN = Path(guardian_process.__file__).name.encode()


def ask_or_cut_off(entry: Entry, op: str, *, seconds: float, silence: float, **arguments: object) -> Fields:
    """Ask a mount for what shuts it; one that gives no sign of life for `silence` seconds is cut off.

    Then the answer is `{"cut_off": True}`. Raises what the mount answers, NoAnswer if it lives and the answer is
    late, CmkfsError if it cannot be cut off.
    """
    with client.Connection(entry.socket, label=entry.label) as connection:
        connection.send(op, **arguments)
        began = heard = time.monotonic()
        while (now := time.monotonic()) - heard <= silence:
            if now - began > seconds and now - heard < _LOOK_SECONDS:
                raise NoAnswer(f"the mount at {entry.label} did not answer within {seconds:g} s")
            try:
                return connection.receive(seconds=_LOOK_SECONDS)
            except NoAnswer:
                if _is_alive(entry):
                    heard = time.monotonic()
    _cut_off(entry)
    return {"cut_off": True}


def _is_alive(entry: Entry) -> bool:
    """Does its event loop answer anything? An older daemon, too, which does not know the question."""
    try:
        client.ask(entry, "alive", seconds=_LOOK_SECONDS)
    except NoAnswer:
        return False
    except CmkfsError:  # it does not know the question; or it has ended, and the connection says so next
        return True
    return True


def _cut_off(entry: Entry) -> None:
    """Abort the connection; returns when nothing of it is cached any more. Raises CmkfsError."""
    if entry.record is None:
        raise CmkfsError(f"{entry.label} does not answer, and where it is mounted is not known", hint="cmkfs status")
    where = entry.record.mountpoint
    mounted = kernel_mount.mounted_at(os.fsencode(where))
    if mounted is None or mounted.fstype != f"fuse.{kernel_mount.SUBTYPE}".encode():
        raise CmkfsError(f"{where} does not answer, and is not mounted any more: it cannot be cut off")
    guardian = _guardian_of(entry.record.pid)
    pidfd = os.pidfd_open(guardian) if guardian is not None else -1
    try:
        kernel_mount.abort_connection(mounted)
    except MountFailed as error:
        raise MountFailed(f"{where} does not answer, and cannot be cut off: {error}", hint=error.next_step) from error
    if pidfd < 0:
        raise CmkfsError(f"{where} is cut off, but has no guardian: what is open there stays readable from the cache")
    try:
        ended, _, _ = select.select([pidfd], [], [], DROP_SECONDS)
    finally:
        os.close(pidfd)
    if not ended:
        raise CmkfsError(f"{where} is cut off, but its guardian has not dropped what is cached of it")


def _guardian_of(daemon: int) -> int | None:
    """The process that guards the mount of the process `daemon`, which may hang; None if there is none."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
            parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended meanwhile
            continue
        if parent == daemon and any(word.endswith(_GUARDIAN) for word in words):
            return int(directory.name)
    return None


def record_cut_offs(home: Home, mountpoints: Sequence[str]) -> int:
    """Write down, in the place of their daemons, that these mounts were cut off; the exit code."""
    from cmkfs.cli.recorded import recorded
    from cmkfs.cli.token_session import token

    try:
        with token(home, read_write=True) as provider:
            for where in mountpoints:
                with recorded(home, provider, "lock", takes_away=True, reason=cut_off_line(where)) as change:
                    pass
                if change.exit_code:
                    return change.exit_code
    except CmkfsError as error:
        complain(f"the lock is in force, but not recorded: {error}", hint=error.next_step)
        return EXIT_FAILED
    return 0


def cut_off_line(where: str) -> str:
    """What to say of a mount that was cut off."""
    return f"cut off {where}: its daemon does not answer; what was not stored yet is lost"

"""Who a process is: its program, its user, and the person behind sudo."""

import os
from dataclasses import dataclass

from cmkfs.accounts import user_name
from cmkfs.audit.auditor import Caller

_NOBODY = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Process:
    """A process that asks for a change. `pid` 0 is one that cannot be looked at."""

    uid: int
    gid: int
    pid: int


def own_process() -> Process:
    """This process."""
    return Process(os.getuid(), os.getgid(), os.getpid())


def executable(pid: int) -> str | None:
    """The path of a process's executable (proc_pid_exe(5)); None if it is gone or somebody else's.

    Read for each record that is written and not kept: 2 µs, and a pid or its program may change any moment.
    """
    if pid <= 0:
        return None
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return None


def person_name(asker: Caller) -> str:
    """What to call who asks: the person who logged in, or else the user."""
    login = login_uid(asker.pid)
    uid = asker.uid if login is None else login
    return user_name(uid) or f"uid {uid}"


def login_uid(pid: int) -> int | None:
    """Who logged in and, perhaps through sudo, started the process (proc_pid_loginuid(5)); None if nobody did."""
    try:
        with open(f"/proc/{pid}/loginuid") as file:
            found = int(file.read())
    except (OSError, ValueError):
        return None
    return None if found == _NOBODY else found

"""Going before other processes: what shuts a mount must not wait for a processor behind the programs that use it.

Root only; an ordinary user may not, and goes on as before. Where Linux weighs whole sessions against each other
(autogroups, sched(7)) the weight of the session is set as well.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

FIRST: Final = -20
"""The best niceness."""


def put_first(pid: int) -> None:
    """A process of its own session, from its beginning on."""
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, pid, FIRST)
        _weigh_session(pid, FIRST)


@contextmanager
def before_others() -> Iterator[None]:
    """In this block the calling thread goes first. Of blocks that overlap the first one counts."""
    own, session = os.getpriority(os.PRIO_PROCESS, 0), _session_niceness()
    first = own > FIRST and _go(FIRST, FIRST)
    try:
        yield
    finally:
        if first:
            _go(own, session)


def _go(own: int, session: int) -> bool:
    try:
        os.setpriority(os.PRIO_PROCESS, 0, own)
    except PermissionError:
        return False
    _weigh_session(0, session)
    return True


def _weigh_session(pid: int, niceness: int) -> None:
    with suppress(OSError):  # a kernel without autogroups, or another process of the session has just done it
        group = os.open(f"/proc/{pid or 'self'}/autogroup", os.O_WRONLY)
        try:
            os.write(group, str(niceness).encode())
        finally:
            os.close(group)


def _session_niceness() -> int:
    """`/autogroup-31 nice 0`, proc_pid_autogroup(5)."""
    try:
        with open("/proc/self/autogroup") as group:
            return int(group.read().split()[-1])
    except (OSError, ValueError, IndexError):
        return 0

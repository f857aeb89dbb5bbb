"""Which program a process runs."""

import os


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

"""Descriptors of the daemon: each file that programs have open takes one, and some are left for everything else."""

import errno
import os
import resource

RESERVE = 64
"""For directories, files without a name, the token, the audit log and who asks for the status."""


def leave_some(fd: int) -> None:
    """Refuse to open one more file with the new descriptor `fd`. Raises OSError ENFILE; `fd` stays open.

    ENFILE, since it is not the program that has too many: open(2) has EMFILE for that.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if fd >= limit - min(RESERVE, limit // 4):
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

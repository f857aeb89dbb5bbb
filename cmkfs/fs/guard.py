"""The edge to the kernel: whatever goes wrong in a handler becomes an errno, never the end of the mount.

An exception that is neither an `OSError` nor a `CmkfsError` is a bug: it is logged with its traceback, counted
in `bugs` (a test fails if that is not 0 at its end), and the caller gets EIO.
"""

import errno
import logging

from cmkfs.errors import CmkfsError, Damaged

log = logging.getLogger(__name__)


class Bugs:
    """How many handlers ended in an exception nobody expected."""

    count = 0


def errno_of(name: str, error: Exception) -> int:
    """What the kernel is told when the handler `name` raised. Never raises."""
    if isinstance(error, OSError) and error.errno is not None:
        return errno.ENFILE if error.errno == errno.EMFILE else error.errno  # its own limit is not the program's
    if isinstance(error, MemoryError):
        log.error("%s: out of memory", name)
        return errno.ENOMEM
    if isinstance(error, CmkfsError):
        if isinstance(error, Damaged):
            log.error("%s: %s", name, error)
        return error.errno
    Bugs.count += 1
    log.error("bug in handler %s", name, exc_info=error)
    return Damaged.errno

"""What a process that holds keys does about its memory."""

import ctypes
import logging
import os
import resource

log = logging.getLogger(__name__)

_PR_SET_DUMPABLE = 4
_MCL_CURRENT, _MCL_FUTURE = 1, 2


def protect_memory() -> None:
    """No core dumps, nobody's debugger (prctl(2)), no swap where that is allowed (mlockall(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if os.geteuid() == 0 and libc.mlockall(_MCL_CURRENT | _MCL_FUTURE) != 0:
        log.warning("memory cannot be locked; keys may reach swap: %s", os.strerror(ctypes.get_errno()))

"""What a process that holds keys does about its memory."""

import ctypes
import logging
import os
import resource

log = logging.getLogger(__name__)

_PR_SET_DUMPABLE = 4
_MCL_CURRENT, _MCL_FUTURE = 1, 2
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 16 << 20
_HEAP_BYTES = 4 << 20
"""More than the buffers of any request."""


def protect_memory() -> None:
    """No core dumps, nobody's debugger (prctl(2)), no swap where that is allowed (mlockall(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if os.geteuid() == 0 and libc.mlockall(_MCL_CURRENT | _MCL_FUTURE) != 0:
        log.warning("memory cannot be locked; keys may reach swap: %s", os.strerror(ctypes.get_errno()))


def keep_heap() -> None:
    """Keep what is freed for the next request (mallopt(3)): a C library without it goes on as before.

    Otherwise the buffers of each large request are taken from the kernel and given back, which where memory is
    locked means that every page is found, cleared and charged anew: a third of the time of a streaming read.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _HEAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def give_back_heap() -> None:
    """Give what was kept, and may hold plain bytes, back to the kernel (malloc_trim(3))."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

"""Giving up privileges that are not needed any more.

With no_new_privs set no program that is begun from here on gains anything by being set-user-id or having file
capabilities (Documentation/userspace-api/no_new_privs.rst): whoever takes over a daemon cannot go on through them.
"""

import ctypes
import os

_PR_SET_NO_NEW_PRIVS = 38


def no_new_privileges() -> None:
    """For this thread, the threads and the processes that it begins from now on, for good. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

"""A thread for a call that waits for the disk, while the event loop serves others."""

import errno
import os
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

from cmkfs.looking import Threads

_T = TypeVar("_T")
_Arguments = TypeVarTuple("_Arguments")


async def in_thread(call: Callable[[*_Arguments], _T], *arguments: *_Arguments) -> _T:
    """What the call gives. Raises what it raises, and OSError ENOMEM if there can be no thread for it."""
    try:
        return await trio.to_thread.run_sync(call, *arguments)
    except RuntimeError as error:  # "can't start new thread"
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error


async def in_thread_for_a_moment(call: Callable[[*_Arguments], _T], *arguments: *_Arguments) -> _T:
    """The same for a call that is short, most often; nobody looks for the next request meanwhile (`Threads`).

    Not for long ones: each request would wait to be woken while they last.
    """
    Threads.count += 1
    try:
        return await in_thread(call, *arguments)
    finally:
        Threads.count -= 1

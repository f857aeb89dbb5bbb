"""Deadlines of what has ended, which trio lets go of when there are a thousand too many of them.

They are a few bytes each, but one is enough to keep a megabyte of Python's memory from going back to the kernel. Where
a hundred came while a million inodes were looked up and forgotten, a hundred megabytes stayed.
"""

from typing import Final

import trio

_FAR_SECONDS: Final = 1e6
_TOO_MANY: Final = 1100
"""More than `trio._core._run.DEADLINE_HEAP_MIN_PRUNE_THRESHOLD`."""


def give_back_deadlines() -> None:
    """Have it do so at the next turn of the loop; takes some 3 ms. In a task only."""
    far = trio.current_time() + _FAR_SECONDS
    for _ in range(_TOO_MANY):
        with trio.CancelScope(deadline=far):  # noqa: ASYNC100 - it is for trio to count
            pass

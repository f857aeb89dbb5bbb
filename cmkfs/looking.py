"""Looking for what comes soon: a quick disk's pages, an embedded token's answer, the next request.

To be woken takes 50 to 200 µs on a usual machine, more than most of these take to come. So whoever waits for one looks
for it a while first; between two looks the event loop turns, so everybody else is served.
"""

from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

import trio

T = TypeVar("T")


class Lookers:
    """How many tasks look for something. While there are any, the loop must turn without a pause (`fuse.polling`)."""

    count = 0


class Threads:
    """How many tasks wait for a thread that is done in a moment. While there are any, nobody looks for a request.

    A thread that begins, or comes back from the disk, would find Python's lock taken by whoever looks.
    """

    count = 0


async def look_for(found: Callable[[], T | None], seconds: float) -> T | None:
    """What `found` gives as soon as it is not None; None if it gives nothing for `seconds`. Raises what it raises."""
    until = perf_counter() + seconds
    Lookers.count += 1
    try:
        while True:
            result = found()
            if result is not None or perf_counter() >= until:
                return result
            await trio.lowlevel.checkpoint()
    finally:
        Lookers.count -= 1

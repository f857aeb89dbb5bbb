"""When nothing has used a mount for a while: `-o idle=MIN`.

Used is what reaches the daemon. A program that reads the same cached pages again and again makes no request; free
space, the mount point's own attributes and what the kernel forgets are no use.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from cmkfs.fuse.session import Requests

_LOOKS: Final = 20
"""How often within the time it is looked for use: nothing is done per request, and an idle mount hardly wakes up."""


async def whenever_idle(seconds: float, epochs: Callable[[], int], act: Callable[[], Awaitable[None]]) -> None:
    """Background task: call `act` when there was no use for `seconds`, at the latest a twentieth of it later.

    `epochs` changes with every lock and unlock: after an unlock the time begins anew.
    """
    seen, since = (-1, -1), 0.0
    while True:
        now = (Requests.total() - Requests.quiet, epochs())
        if now != seen:
            seen, since = now, trio.current_time()
        elif trio.current_time() - since >= seconds:
            await act()
            seen = (-1, -1)
        await trio.sleep(seconds / _LOOKS)

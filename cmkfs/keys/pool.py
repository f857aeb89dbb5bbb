"""DEKs wrapped ahead of need, so that creating a file does not wait for the token.

A wrap is bound to its file id, so a pool entry is a whole identity: id, DEK, commitment, recipient.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from cmkfs.crypto.dek import FileKey
from cmkfs.errors import CmkfsError, KeyUnavailable
from cmkfs.format.header import Identity

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NewFile:
    """What a file that is being created gets: its identity and the key that goes with it."""

    identity: Identity
    key: FileKey


MOST: Final = 6144
"""Of a mount: some 5 KiB of memory each."""
_QUIET_SECONDS: Final = 0.05
_IDLE_SECONDS: Final = 2.0
_SOON_SECONDS: Final = 10.0
_BATCH_SECONDS: Final = 0.02
"""How long one batch may keep the token from others, who wait for a key to read with."""


class DekPool:
    """Prepared identities of one zone. `prepare(n)` makes n of them with n token calls, or fewer if that takes long.

    It holds `size` of them, twice as many each time that they are used up within seconds. Once nobody has made a file
    for a while it holds `most` of that moment: whoever unpacks an archive does not wait for a token that takes
    milliseconds a call. `parallel` tells how many batches are worth having under way.
    """

    def __init__(
        self,
        prepare: Callable[[int], Awaitable[list[NewFile]]],
        size: int = 256,
        batch: int = 32,
        most: Callable[[], int] = lambda: MOST,
        parallel: Callable[[], int] = lambda: 1,
    ) -> None:
        self._prepare = prepare
        self._size = size
        self._batch = self._largest_batch = batch
        self.most = most
        self._parallel = parallel
        self._taken = self._seen = 0
        self._filled_at = 0.0
        self._ready: deque[NewFile] = deque()
        self._wanted, self._low = trio.Event(), trio.Event()
        self._waiting: set[trio.CancelScope] = set()
        self._ended = False

    def __len__(self) -> int:
        return len(self._ready)

    def clear(self) -> None:
        """Forget everything: the lock has come. Nobody waits for a new one any longer."""
        self._ready.clear()
        self._low.set()
        for scope in self._waiting:
            scope.cancel()

    def end(self) -> None:
        """The zone is no more: `keep_filled` returns."""
        self.clear()
        self._ended = True
        self._wanted.set()

    async def take(self) -> NewFile:
        """One identity; waits for the token only if the pool is empty. Raises KeyUnavailable."""
        self._taken += 1
        if len(self._ready) <= self._size // 2:
            self._wanted.set()
        if self._ready:
            new = self._ready.popleft()
            if self._is_low:
                self._low.set()
            return new
        with trio.CancelScope() as scope:
            self._waiting.add(scope)
            try:
                return (await self._prepare(1))[0]
            finally:
                self._waiting.discard(scope)
        raise KeyUnavailable("the zone was just locked")

    async def keep_filled(self) -> None:
        """Background task: refill when half empty. Nothing is wrapped before the first file is created."""
        full_at = 0
        while not self._ended:
            wanted = await self._until_wanted(idle=full_at != self._taken)
            if self._ended:
                return
            full_at = full_at if wanted else self._taken
            self._wanted = trio.Event()
            if wanted and self._is_low and time.monotonic() - self._filled_at < _SOON_SECONDS:
                self._size = max(self._size, min(2 * self._size, self.most()))
            try:
                self._share()
                await self._fill(min(self._size, self.most()) if wanted else self.most())
                self._filled_at = time.monotonic()
            except* CmkfsError as errors:
                log.info("DEKs are not wrapped ahead: %s", errors.exceptions[0])
            except* Exception:
                log.exception("DEKs are not wrapped ahead")

    def _share(self) -> None:
        """What others were given since is not held here too."""
        while len(self._ready) > self.most():
            self._ready.pop()

    async def _until_wanted(self, *, idle: bool) -> bool:
        """True when files want keys soon; False, if `idle`, once nobody has made one for a while."""
        taken = -1
        while idle and taken != self._taken and not self._wanted.is_set():
            taken = self._taken
            with trio.move_on_after(_IDLE_SECONDS):
                await self._wanted.wait()
        if not idle or self._wanted.is_set():
            await self._wanted.wait()
            return True
        return False

    @property
    def _is_low(self) -> bool:
        return len(self._ready) <= self._size // 8

    async def _until_quiet(self) -> None:
        """Whoever makes many files now is not to share the processor with the making of keys for later.

        With a token that answers at once that is all that it costs, so there is a pause before each batch.
        """
        before = self._seen if self._parallel() > 1 else -1
        while not self._is_low and before != self._taken:
            before, self._low = self._taken, trio.Event()
            with trio.move_on_after(_QUIET_SECONDS):
                await self._low.wait()
        self._seen = self._taken

    async def _fill(self, size: int) -> None:
        """Up to `size`, with as many batches at once as are worth it. Raises CmkfsError, or a group of them."""
        while not self._ended and (missing := size - len(self._ready)) > 0:
            await self._until_quiet()
            ways = min(self._parallel(), -(-missing // self._batch))
            if ways == 1:
                await self._add(min(self._batch, missing))
                continue
            async with trio.open_nursery() as nursery:
                for _ in range(ways):
                    nursery.start_soon(self._add, min(self._batch, -(-missing // ways)))

    async def _add(self, count: int) -> None:
        began, made = time.monotonic(), list[NewFile]()
        with trio.CancelScope() as scope:  # a lock does not wait for a token that is slow, nor do keys that are made
            self._waiting.add(scope)
            try:
                made = await self._prepare(count)
            finally:
                self._waiting.discard(scope)
        if scope.cancelled_caught:
            raise KeyUnavailable("the zone was just locked")
        self._ready.extend(made)
        each = (time.monotonic() - began) / max(1, len(made))
        self._batch = max(1, min(self._largest_batch, int(_BATCH_SECONDS / each))) if each else self._largest_batch


def random_id() -> bytes:
    """16 random bytes: an id of a file, directory or zone."""
    return os.urandom(16)

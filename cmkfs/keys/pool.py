"""DEKs wrapped ahead of need, so that creating a file does not wait for the token.

A wrap is bound to its file id, so a pool entry is a whole identity: id, DEK, commitment, recipient.
"""

import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

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


class DekPool:
    """Prepared identities of one zone. `prepare(n)` makes n of them with n token calls."""

    def __init__(self, prepare: Callable[[int], Awaitable[list[NewFile]]], size: int = 256, batch: int = 32) -> None:
        self._prepare = prepare
        self._size = size
        self._batch = batch
        self._ready: deque[NewFile] = deque()
        self._wanted = trio.Event()
        self._waiting: set[trio.CancelScope] = set()
        self._ended = False

    def __len__(self) -> int:
        return len(self._ready)

    def clear(self) -> None:
        """Forget everything: the lock has come. Nobody waits for a new one any longer."""
        self._ready.clear()
        for scope in self._waiting:
            scope.cancel()

    def end(self) -> None:
        """The zone is no more: `keep_filled` returns."""
        self.clear()
        self._ended = True
        self._wanted.set()

    async def take(self) -> NewFile:
        """One identity; waits for the token only if the pool is empty. Raises KeyUnavailable."""
        if len(self._ready) <= self._size // 2:
            self._wanted.set()
        if self._ready:
            return self._ready.popleft()
        with trio.CancelScope() as scope:
            self._waiting.add(scope)
            try:
                return (await self._prepare(1))[0]
            finally:
                self._waiting.discard(scope)
        raise KeyUnavailable("the zone was just locked")

    async def keep_filled(self) -> None:
        """Background task: refill when half empty. Nothing is wrapped before the first file is created."""
        while not self._ended:
            await self._wanted.wait()
            self._wanted = trio.Event()
            try:
                while not self._ended and len(self._ready) < self._size:
                    self._ready.extend(await self._prepare(min(self._batch, self._size - len(self._ready))))
            except CmkfsError as error:
                log.info("DEKs are not wrapped ahead: %s", error)
            except Exception:
                log.exception("DEKs are not wrapped ahead")


def random_id() -> bytes:
    """16 random bytes: an id of a file, directory or zone."""
    return os.urandom(16)

"""Unwrapped file keys, bounded in number and time, all gone at a lock; one unwrap in flight per file."""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from cmkfs.crypto.dek import FileKey
from cmkfs.errors import KeyUnavailable

_LOCKED: Final = "the zone was just locked"


class _InFlight:
    """An unwrap that others may wait for. A lock ends it for all of them."""

    __slots__ = ("done", "scope")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.scope = trio.CancelScope()


class DekCache:
    """File keys of one zone by file id and commitment. Used from the event loop only."""

    def __init__(self, max_keys: int = 20_000, max_seconds: float = 3600.0) -> None:
        self.max_keys: Final = max_keys
        self.max_seconds: Final = max_seconds
        self._keys: OrderedDict[bytes, tuple[FileKey, float]] = OrderedDict()
        self._in_flight: dict[bytes, _InFlight] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def put(self, identity_hash: bytes, key: FileKey) -> None:
        """Keep a key; the one that was used longest ago makes room."""
        self._keys[identity_hash] = (key, time.monotonic() + self.max_seconds)
        self._keys.move_to_end(identity_hash)
        if len(self._keys) > self.max_keys:
            self._keys.popitem(last=False)

    def get(self, identity_hash: bytes) -> FileKey | None:
        """The key, if it is here and not too old."""
        found = self._keys.get(identity_hash)
        if found is None:
            return None
        if found[1] < time.monotonic():
            del self._keys[identity_hash]
            return None
        self._keys.move_to_end(identity_hash)
        return found[0]

    async def get_or_unwrap(self, identity_hash: bytes, unwrap: Callable[[], Awaitable[FileKey]]) -> FileKey:
        """The key from here, or unwrapped once, however many ask at the same time.

        Raises KeyUnavailable at once when the cache is cleared meanwhile.
        """
        while True:
            key = self.get(identity_hash)
            if key is not None:
                return key
            under_way = self._in_flight.get(identity_hash)
            if under_way is None:
                break
            await under_way.done.wait()
            if under_way.scope.cancel_called:
                raise KeyUnavailable(_LOCKED)
        flight = self._in_flight[identity_hash] = _InFlight()
        try:
            with flight.scope:
                key = await unwrap()
                self.put(identity_hash, key)
                return key
            raise KeyUnavailable(_LOCKED)
        finally:
            if self._in_flight.get(identity_hash) is flight:
                del self._in_flight[identity_hash]
            flight.done.set()

    def clear(self) -> None:
        """Forget every key; nobody waits for one any longer."""
        self._keys.clear()
        waiting, self._in_flight = self._in_flight, {}
        for flight in waiting.values():
            flight.scope.cancel()

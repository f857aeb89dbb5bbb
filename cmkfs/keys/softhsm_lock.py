"""Keeping processes of this host apart in SoftHSM's object store, which does not do it well enough itself.

Measured with SoftHSM 2.6.1 and its file store, without this lock:

- Two processes that log in again and again: 66 % of the logins did not find the token, because a login
  rewrites `token.object` while the other process reads it.
- One process that enables and disables a key while another uses it: after some seconds the key is gone
  for the reader, for good, until it initialises the module again. The same goes for the token's own
  description when somebody logs in meanwhile.

With it: none. It is a lock on `softhsm2.conf` (flock, so reading rights are enough), shared for a use of
the store and exclusive for a login or a change. It is help, not protection: other programs do not take
it (`keys.pkcs11_keys` finds its way back after them), and who waits too long goes on without, because
nothing may keep an operator from disabling a key.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

MAX_WAIT_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.001


class StoreLock:
    """The lock of one provider; nested uses count as the outermost. Without a `softhsm2_conf` it is none."""

    def __init__(self, softhsm2_conf: Path | None) -> None:
        self._conf = softhsm2_conf
        self._descriptor: int | None = None
        self._depth = 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Together with others who read."""
        with self._held(fcntl.LOCK_SH):
            yield

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Alone. Not inside `reading`."""
        with self._held(fcntl.LOCK_EX):
            yield

    def close(self) -> None:
        """Let go of the file. Idempotent; a later use opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @contextmanager
    def _held(self, kind: int) -> Iterator[None]:
        locked = self._depth == 0 and self._acquire(kind)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if locked and self._descriptor is not None:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _acquire(self, kind: int) -> bool:
        if self._conf is None:
            return False
        give_up = time.monotonic() + MAX_WAIT_SECONDS
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self._conf, os.O_RDONLY | os.O_CLOEXEC)
            while True:
                try:
                    fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
                    return True
                except BlockingIOError:
                    if time.monotonic() >= give_up:
                        return False
                    time.sleep(_POLL_SECONDS)
        except OSError:
            return False  # No such file, or a filesystem without locks: the module will say what is wrong.

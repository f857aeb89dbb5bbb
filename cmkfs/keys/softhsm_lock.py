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
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cmkfs.keys.object_copies import TOKENS, heal, keep

log = logging.getLogger(__name__)

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
        """Alone. Not inside `reading`. What a change before left half-written is whole again."""
        with self._held(fcntl.LOCK_EX) as locked:
            token_dir = self._conf.parent if locked and self._conf is not None else None
            if token_dir is None or not (token_dir / TOKENS).is_dir():
                yield
                return
            _tried(heal, token_dir)
            yield
            _tried(keep, token_dir)

    def close(self) -> None:
        """Let go of the file. Idempotent; a later use opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @contextmanager
    def _held(self, kind: int) -> Iterator[bool]:
        locked = self._depth == 0 and self._acquire(kind)
        self._depth += 1
        try:
            yield locked
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


def _tried(step: Callable[[Path], None], token_dir: Path) -> None:
    """A token that cannot be copied can be used all the same."""
    try:
        step(token_dir)
    except OSError as error:
        log.warning("the token's files are not copied: %s", error)

"""Directories that hold something of the vault's own that is not known to be durable (docs/format.md, 6).

On a backing that has no one journal for all names, fsync of a directory makes its entries durable and not what is
in the directories among them, and fsync of a file all of its names and not what lies beside them: btrfs was seen to
leave a directory without its id, which nobody can open, and a long name without its sidecar. So directories that
are new, or have a new sidecar, are synced before anything that may show them; the outer ones before the inner
ones, of which then nothing is seen but that they are empty, which the next mount removes.
"""

import os
from collections.abc import Awaitable, Callable

import trio

_MOST = 16
"""Synced one by one up to so many, by descriptors that are kept until then; more are synced as a whole."""
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class NewDirectories:
    """Directories to sync before the next fsync of anything; `sync_all` None: they are synced one by one always."""

    def __init__(self, sync_one: Callable[[int], Awaitable[None]], sync_all: Callable[[], Awaitable[None]] | None):
        self._sync_one, self._sync_all = sync_one, sync_all
        self._fds: dict[int, int] = {}
        self._one_at_a_time = trio.Lock()

    def __bool__(self) -> bool:
        """True if there are any."""
        return bool(self._fds)

    def add(self, dir_fd: int, name: bytes = b".") -> None:
        """A directory that got something; it is found by its descriptor wherever it is moved. Raises OSError."""
        if len(self._fds) > _MOST and self._sync_all is not None:
            return  # the next sync is one of all
        fd = os.open(name, _FLAGS, dir_fd=dir_fd)
        ino = os.fstat(fd).st_ino
        if ino in self._fds:
            os.close(fd)
        else:
            self._fds[ino] = fd

    async def sync(self) -> None:
        """Make all of them durable, the outer ones first: fsync may log the way to a directory, and only that.

        Raises OSError.
        """
        async with self._one_at_a_time:
            fds, self._fds = self._fds, {}
            try:
                if len(fds) > _MOST and self._sync_all is not None:
                    await self._sync_all()
                    _close(fds)
                while fds:
                    outermost = min(fds, key=lambda ino: _depth(fds[ino]))  # anew: they may be moved meanwhile
                    await self._sync_one(fds[outermost])
                    os.close(fds.pop(outermost))
            finally:
                for ino, fd in fds.items():  # after an error they are to be synced still
                    if self._fds.setdefault(ino, fd) != fd:
                        os.close(fd)

    def close(self) -> None:
        """Let go of them."""
        _close(self._fds)


def _depth(dir_fd: int) -> int:
    """How many directories lead to it."""
    return os.readlink(f"/proc/self/fd/{dir_fd}").count("/")


def _close(fds: dict[int, int]) -> None:
    while fds:
        os.close(fds.popitem()[1])

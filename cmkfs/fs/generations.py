"""Which file an inode number means now: backings give the numbers of removed files away again (ext4 the next moment).

A file handle (name_to_handle_at(2), NFS) is number and generation. With another generation for each life of a
number, the handle of a removed file is ESTALE, and never the file that has its number now.
"""

_REMEMBERED = 65_536


class Generations:
    """Counts the lives of inode numbers during a mount; a handle does not outlive the mount."""

    def __init__(self, remembered: int = _REMEMBERED) -> None:
        self._remembered = remembered
        self._now: dict[int, int] = {}
        self._first = 1

    def of(self, ino: int) -> int:
        """The generation of a number in this life."""
        return self._now.get(ino, self._first)

    def ended(self, ino: int, generation: int = 0) -> None:
        """What had the number, and perhaps a higher generation than it began with, is removed."""
        if len(self._now) >= self._remembered and ino not in self._now:
            # All numbers begin a new life: handles of files that are there may go stale, none means another file.
            self._first = max(self._now.values()) + 1
            self._now.clear()
        self._now[ino] = max(self.of(ino), generation) + 1

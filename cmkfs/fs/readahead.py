"""When a file is read in order, what comes next is asked of the disk before it is asked for by the program.

The kernel's own readahead for the mount is one request of 128 KiB; without this each of them would wait for the
disk in a thread, which costs more than opening its blocks.
"""

WINDOW = 2 * 1024 * 1024
"""Backing bytes that are asked for ahead."""
_NEAR = 512 * 1024
"""Plain bytes by which requests of one stream may come out of order."""


class Readahead:
    """Watches the requests of one file; pure."""

    __slots__ = ("_expected", "_in_order", "_until")

    def __init__(self) -> None:
        self._expected = 0
        self._in_order = 0
        self._until = 0

    def next_window(self, plain_off: int, length: int, cipher_end: int) -> tuple[int, int] | None:
        """After a request that ends at `cipher_end` in the backing: (length, cipher_off) to prefetch, or None."""
        near = abs(plain_off - self._expected) <= _NEAR
        self._expected = plain_off + length
        if not near:
            self._in_order, self._until = 0, 0
            return None
        self._in_order += 1
        if self._in_order < 2 or cipher_end + WINDOW // 2 <= self._until:
            return None
        begin = max(self._until, cipher_end)
        self._until = begin + WINDOW
        return WINDOW, begin

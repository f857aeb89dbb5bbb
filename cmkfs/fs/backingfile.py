"""The backing of one open file: its pages, and how long it is (docs/format.md, 8.3 and 8.5)."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from cmkfs.crypto.content import Buffer
from cmkfs.format.layout import PAGE, blocks_end, cipher_off, cipher_size, plain_size_at_least
from cmkfs.fs.backing import Backing
from cmkfs.fs.readahead import Readahead

log = logging.getLogger(__name__)

STORE_AT_ONCE = 8 * 1024 * 1024
"""Of a file that grows, so many bytes are given to the disk at a time: it works while what follows is sealed, and
an fsync at the end, or the settling, waits for the last of them only."""


class BackingFile:
    """Whole pages in and out. `end` is the backing's length as this mount has left it.

    `mtime_ns` is the plain mtime while storing has moved the backing's; None: the backing's is right.
    """

    __slots__ = ("_backing", "_begun", "_readahead", "_unnoticed", "end", "fd", "mtime_ns", "pending_header")

    def __init__(self, backing: Backing, fd: int, length: int) -> None:
        self._backing = backing
        self._readahead = Readahead()
        self.fd = fd
        self._unnoticed = -1
        self.end = length
        self._begun = length
        self.mtime_ns: int | None = None
        self.pending_header = b""
        """What an emptied file begins with, and the disk has refused so far."""

    # -- pages -----------------------------------------------------------------------------------

    def cached(self, first: int, count: int, plain_off: int, length: int, *, counts: bool) -> Buffer | None:
        """The pages of `count` blocks if they are in memory; what is read in order is asked for ahead.

        `counts`: the access time moves, as the backing's mount says.
        """
        ahead = self._readahead.next_window(plain_off, length, cipher_off(first + count))
        if ahead is not None:
            self._backing.prefetch(self.fd, *ahead)
        return self._backing.read(self._fd_to_read(counts=counts), count * PAGE, cipher_off(first))

    async def fetch(self, first: int, count: int, *, counts: bool = True) -> Buffer:
        """The pages of `count` blocks, fewer at the end of the file; others are served while the disk works."""
        return await self._backing.fetch(self._fd_to_read(counts=counts), count * PAGE, cipher_off(first))

    def _fd_to_read(self, *, counts: bool) -> int:
        """For who opened the file with O_NOATIME another descriptor: flags are those of all who share one."""
        if counts:
            return self.fd
        if self._unnoticed < 0:
            try:
                self._unnoticed = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_NOATIME | os.O_CLOEXEC)
            except PermissionError:  # the file of somebody else than the user whose daemon this is
                return self.fd
        return self._unnoticed

    async def fetch_unnoticed(self, block: int) -> Buffer:
        """The page of a block that a write keeps a part of: no program reads it, so atime stays.

        No READ may be under way: the descriptor is shared.
        """
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETFL, os.O_NOATIME)
        except PermissionError:  # the file of somebody else than the user whose daemon this is
            return await self.fetch(block, 1)
        try:
            return await self.fetch(block, 1)
        finally:
            self.count_reads()

    def count_reads(self) -> None:
        """From now on a read moves atime as the backing's mount says (relatime), or not with `-o noatime`."""
        self._backing.count_reads(self.fd, counts=not self._backing.noatime)

    def put(self, sealed: Buffer, first: int, plain_size: int) -> None:
        """Write sealed blocks from block `first` on. Raises OSError, with nothing left behind `plain_size`'s blocks.

        What is new goes first: it is what a full disk refuses, and then no block of before is another one yet.
        """
        at, view = cipher_off(first), memoryview(sealed)
        old = min(len(view), max(0, blocks_end(plain_size) - at))
        try:
            if old < len(view):
                self._backing.append(self.fd, view[old:], at + old)
            if old:
                self._backing.overwrite(self.fd, view[:old], at)
        except OSError:
            # Half a write (disk full): what lies behind the old end would be there after a crash.
            self.end = os.fstat(self.fd).st_size
            if self.end > blocks_end(plain_size):
                self.end_with_blocks_of(plain_size)
            raise
        self.end = max(self.end, at + len(sealed))
        self._store_what_grew()

    def _store_what_grew(self) -> None:
        begun = min(self._begun, self.end)
        if self.end - begun >= STORE_AT_ONCE and self._backing.begin_to_store(self.fd, self.end - begun, begun):
            begun = self.end
        self._begun = begun

    def empty(self, header: bytes) -> None:
        """Nothing but a new header. Raises OSError with the file as it was.

        Emptied without its header it is empty all the same: the disk that has no room for that is asked again.
        """
        os.ftruncate(self.fd, 0)
        self.end, self.pending_header = 0, header
        try:
            self.finish_header()
        except OSError as error:
            log.warning("an emptied file has no header yet: %s", error)

    def finish_header(self) -> None:
        """Write the header that the disk has refused: nothing may be stored before it. Raises OSError."""
        if self.pending_header:
            self._backing.append(self.fd, self.pending_header, 0)
            self.end, self.pending_header = PAGE, b""

    # -- times -----------------------------------------------------------------------------------

    def keep_mtime(self) -> None:
        """Before the backing changes: when pages are stored must not show.

        The kernel owns mtime (writeback cache) and sends it only if it is not what it was told before.
        """
        if self.mtime_ns is None:
            self.mtime_ns = os.fstat(self.fd).st_mtime_ns

    @contextmanager
    def times_kept(self) -> Iterator[None]:
        """What is done in this block moves neither mtime nor atime; mtime is the plain one after it."""
        before = os.fstat(self.fd)
        try:
            yield
        finally:
            mtime_ns = before.st_mtime_ns if self.mtime_ns is None else self.mtime_ns
            os.utime(self.fd, ns=(before.st_atime_ns, mtime_ns))

    # -- length ----------------------------------------------------------------------------------

    def end_with_blocks_of(self, plain_size: int) -> None:
        """Exactly the blocks of `plain_size` bytes, without the hole behind the last."""
        self._backing.set_size(self.fd, blocks_end(plain_size))
        self.end = blocks_end(plain_size)

    def set_remainder(self, plain_size: int) -> None:
        """The settled length, which tells `plain_size` to `stat`. mtime is the caller's to keep."""
        if self.end != cipher_size(plain_size):
            os.ftruncate(self.fd, cipher_size(plain_size))
            self.end = cipher_size(plain_size)

    def says_less_than(self, plain_size: int) -> bool:
        """True if the length tells fewer plain bytes."""
        return plain_size_at_least(self.end) < plain_size

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)
        if self._unnoticed >= 0:
            os.close(self._unnoticed)

    async def fsync(self) -> None:
        """fsync in a thread. Raises OSError."""
        await self._backing.fsync(self.fd)

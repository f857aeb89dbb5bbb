"""One file of the vault while it is open or not settled: read, write, truncate, fsync, settle.

The rules are those of docs/format.md, 8.2 to 8.5; where bytes are is `format.layout`, how they are sealed is
`crypto.content`, who may have the key is `keys.keyring`. Everything runs on the event loop; only calls that
wait for the disk or the token are awaited, and the file's lock spans each request from first pread to last
pwrite.
"""

import errno
import os
from collections.abc import Callable

from cmkfs.crypto.content import ZERO_PAGE, Buffer, ContentCipher
from cmkfs.crypto.dek import NEW_FILE, FileKey, ReadSlots
from cmkfs.errors import Damaged
from cmkfs.format.header import Identity
from cmkfs.format.holes import Holes
from cmkfs.format.layout import (
    BLOCK,
    MAX_PLAIN_SIZE,
    PAGE,
    block_count,
    block_length,
    blocks_end,
    blocks_of,
)
from cmkfs.fs.backing import Backing
from cmkfs.fs.backingfile import BackingFile
from cmkfs.fs.heldkey import HeldKey
from cmkfs.fs.inode import Inode
from cmkfs.fs.rwlock import RWLock
from cmkfs.fs.slots import SealedClean, Slots, new_header
from cmkfs.fs.xattrs import has_xattrs
from cmkfs.keys.keyring import Keyring, Lease
from cmkfs.keys.zone import Zone

_RANGES_IN_MEMORY = 256
"""More hole ranges than this are merged in memory too: a merge only accepts zeros where nothing was lost anyway."""

Plain = bytes | memoryview
"""Plain bytes on their way to the kernel, not copied on the way."""


class OpenFile:
    """The state of one file. `inode.file` is this object from the first open until it is settled and closed."""

    def __init__(
        self,
        backing: Backing,
        keyring: Keyring,
        inode: Inode,
        fd: int,
        identity: Identity,
        lease: Lease,
        slots: ReadSlots,
        backing_size: int,
    ) -> None:
        self.inode = inode
        self.fd = fd
        self.key = HeldKey(keyring, identity, lease)
        self.zone: Zone = lease.zone
        self.slots = Slots(backing, fd, slots)
        self.size = slots.slot.size
        self.holes = slots.slot.holes
        self.handles = 0
        self.changes = 0
        self.durable_changes = 0
        self.unsynced_bytes = 0
        self.sync_failed = False
        self.untold: OSError | None = None
        self.sealed_clean: SealedClean | None = None
        self.lock = RWLock()
        self.pages = BackingFile(backing, fd, backing_size)
        self.on_dirty: Callable[[OpenFile], None] | None = None
        """Told when the file leaves its clean state; set once the file is open for good."""

    @property
    def identity(self) -> Identity:
        """Which file this is."""
        return self.key.identity

    # -- read ------------------------------------------------------------------------------------

    async def read(self, plain_off: int, length: int, *, counts: bool = True) -> Plain:
        """Plain bytes from `plain_off`: all that were asked for, fewer only at the end. `counts`: in atime.

        Raises Damaged if a block does not authenticate, Locked and its kind if the key may not be used now.
        """
        key = await self.key.reading()
        if self.lock.free_to_read:
            length = min(length, self.size - plain_off)
            if length <= 0:
                return b""
            first, count = blocks_of(plain_off, length)
            cached = self.pages.cached(first, count, plain_off, length, counts=counts)
            if cached is not None:
                return self._open_pages(key.content, cached, first, plain_off, length)
        async with self.lock.reading():
            length = min(length, self.size - plain_off)
            if length <= 0:
                return b""
            first, count = blocks_of(plain_off, length)
            pages = await self.pages.fetch(first, count, counts=counts)
            key = await self.key.reading()
            return self._open_pages(key.content, pages, first, plain_off, length)

    def _open_pages(self, content: ContentCipher, pages: Buffer, first: int, plain_off: int, length: int) -> Plain:
        view, newest = memoryview(pages), self.slots.generation + 1
        start = plain_off - first * BLOCK
        count = block_count(start + length)
        plain = memoryview(bytearray(count * BLOCK))
        if not self.holes and (first + count) * BLOCK <= self.size and len(view) == count * PAGE:
            content.open_full(first, view, newest, plain)
            return plain[start : start + length]
        for number in range(count):
            page = view[number * PAGE : (number + 1) * PAGE]
            self._open_page(content, first + number, page, newest, plain[number * BLOCK : (number + 1) * BLOCK])
        return plain[start : start + length]

    def _open_page(self, content: ContentCipher, block: int, page: memoryview, newest: int, plain: memoryview) -> None:
        """Put the plain bytes of a block, padded to a full one, into `plain`, which is all zeros. Raises Damaged."""
        if len(page) < PAGE:
            raise Damaged(f"block {block} is cut off")
        wanted = block_length(self.size, block)
        if not page[0] and wanted == BLOCK and block in self.holes and page == ZERO_PAGE:
            return
        head = content.open_into(block, page, newest, plain)
        if head.length < wanted:
            raise Damaged(f"block {block} is shorter than the file needs")

    async def _old_block(self, key: FileKey, block: int) -> bytes:
        """The plain bytes that a block has now, without what pads it."""
        pages = await self.pages.fetch_unnoticed(block)
        length = block_length(self.size, block)
        return bytes(self._open_pages(key.content, pages, block, block * BLOCK, length))

    # -- write -----------------------------------------------------------------------------------

    async def write(self, plain_off: int, data: Buffer) -> int:
        """Store `data` at `plain_off`; what is between the old end and there becomes a hole. Gives len(data).

        Raises OSError (ENOSPC, EFBIG, …) with the file as long as it was.
        """
        end = plain_off + len(data)
        if end > MAX_PLAIN_SIZE:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        async with self.lock.writing():
            self.pages.keep_mtime()
            key = await self.key.storing()
            first, last = plain_off // BLOCK, (end - 1) // BLOCK
            head = await self._kept_before(key, plain_off)
            tail = await self._kept_after(key, end)
            last_block = await self._short_last_block(key, before=first)
            self._begin_dirty(key)
            self._clear_tail(before=first)
            sealed = key.content.seal(first, data, self.slots.generation, before=head, after=tail)
            self._put(sealed, first)
            self._fill_last_block(key, last_block)
            if first > block_count(self.size):
                self._add_holes(key, block_count(self.size), first)
            self._remove_holes(first, last + 1)
            self.size = max(self.size, end)
            self._changed(len(data))
        return len(data)

    async def _kept_before(self, key: FileKey, plain_off: int) -> bytes:
        """What the first block keeps in front of `plain_off`: old bytes, then zeros from the old end on."""
        block, start = divmod(plain_off, BLOCK)
        if not start:
            return b""
        old = await self._old_block(key, block) if block_length(self.size, block) else b""
        return old[:start].ljust(start, b"\0")

    async def _kept_after(self, key: FileKey, end: int) -> bytes:
        """What the last block keeps behind `end`."""
        block, stop = divmod(end, BLOCK)
        if not stop or block_length(self.size, block) <= stop:
            return b""
        return (await self._old_block(key, block))[stop:]

    async def _short_last_block(self, key: FileKey, *, before: int) -> bytes:
        """What a partial last block holds, if the file will go on in block `before` or later; else nothing."""
        block, length = divmod(self.size, BLOCK)
        return await self._old_block(key, block) if length and block < before else b""

    def _fill_last_block(self, key: FileKey, old: bytes) -> None:
        """Seal it as a full one, after what follows it: when the disk is full, the file stays as long as it was."""
        if old:
            block = self.size // BLOCK
            self._put(key.content.seal(block, old.ljust(BLOCK, b"\0"), self.slots.generation), block)

    def _put(self, sealed: Buffer, first: int) -> None:
        try:
            self.pages.put(sealed, first, self.size)
        except OSError:
            self.changes += 1
            raise

    def _clear_tail(self, *, before: int) -> None:
        """If a hole comes up to block `before`: what tells the remainder may hold a piece of a block that was lost."""
        if block_count(self.size) < before and self.pages.end > blocks_end(self.size):
            self.pages.end_with_blocks_of(self.size)

    def _add_holes(self, key: FileKey, first: int, stop: int) -> None:
        """Listed at once: a file may be closed without an fsync, and the daemon be killed, and nothing is lost."""
        self.holes = self.holes.add(first, stop).at_most(_RANGES_IN_MEMORY)
        if not self.slots.listed.covers(self.holes):
            self.slots.write_dirty(key, self.holes)

    def _remove_holes(self, first: int, stop: int) -> None:
        if self.holes:
            self.holes = self.holes.remove(first, stop).at_most(_RANGES_IN_MEMORY)

    def _changed(self, count: int) -> None:
        self.changes += 1
        self.unsynced_bytes += count
        self.sealed_clean = None

    # -- truncate --------------------------------------------------------------------------------

    async def truncate(self, plain_size: int) -> None:
        """Make the file `plain_size` bytes long. To zero without extended attributes is `replace_content`."""
        if plain_size > MAX_PLAIN_SIZE:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        async with self.lock.writing():
            self.pages.keep_mtime()
            key = await self.key.storing()
            if plain_size > self.size:
                await self._grow(key, plain_size)
            elif plain_size < self.size:
                await self._shrink(key, plain_size)

    async def _grow(self, key: FileKey, plain_size: int) -> None:
        """A hole at the end; a partial last block is sealed, so that no file ends inside a hole."""
        block, length = divmod(plain_size, BLOCK)
        old_block, old_length = divmod(self.size, BLOCK)
        if old_length and old_block == block:
            old = await self._old_block(key, block)
            self._begin_dirty(key)
            self._put(key.content.seal(block, old.ljust(length, b"\0"), self.slots.generation), block)
        else:
            last_block = await self._short_last_block(key, before=block_count(plain_size))
            self._begin_dirty(key)
            self._clear_tail(before=block)
            if length:
                self._put(key.content.seal(block, bytes(length), self.slots.generation), block)
            elif self.pages.end < blocks_end(plain_size):
                self.pages.end_with_blocks_of(plain_size)
            self._fill_last_block(key, last_block)
            self._add_holes(key, block_count(self.size), block)
        self.size = plain_size
        self._changed(0)

    async def _shrink(self, key: FileKey, plain_size: int) -> None:
        """Below the floor: first a durable slot with the new floor, then the cut."""
        block, length = divmod(plain_size, BLOCK)
        last = await self._old_block(key, block) if length else b""
        if not self.slots.dirty:
            self._begin_dirty(key, floor=plain_size)
            await self._sync_slot()
        elif plain_size < self.slots.floor:
            self.slots.floor = plain_size
            self.slots.write_dirty(key, self.holes)
            await self._sync_slot()
        self.pages.end_with_blocks_of(plain_size)
        self._remove_holes(block_count(plain_size) - (1 if length else 0), 2**63)
        self.slots.cut_list(block_count(plain_size))
        self.size = plain_size
        self._changed(0)
        if length:
            try:
                self._put(key.content.seal(block, last[:length], self.slots.generation), block)
            except OSError as error:  # it is cut: what the last block holds too much is told by the next fsync
                self.sync_failed, self.untold = True, error

    async def _sync_slot(self) -> None:
        try:
            await self.pages.fsync()
        except OSError:
            self.sync_failed = True
            raise

    async def replace_content(self, identity: Identity, lease: Lease) -> Identity | None:
        """Truncate to zero (docs/format.md, 8.5): emptied, then a new header, with nothing to sync.

        Gives the identity that it had; None, and nothing is done, if it has got attributes meanwhile.
        """
        async with self.lock.writing():
            self.zone.check()
            if has_xattrs(self.fd):
                return None
            self.pages.keep_mtime()
            self.pages.empty(new_header(identity, lease.key))
            old = self.key.replace(identity, lease)
            was_clean = not self.slots.dirty
            self.slots.take(NEW_FILE)
            self.holes, self.size, self.sync_failed = Holes.NONE, 0, False
            self._changed(0)
            if was_clean:
                self._tell_dirty()
            return old

    def _begin_dirty(self, key: FileKey, floor: int | None = None) -> None:
        self.pages.finish_header()
        if not self.slots.dirty:
            self.slots.go_dirty(key, self.size if floor is None else floor, self.holes)
            self._tell_dirty()

    def _tell_dirty(self) -> None:
        if self.on_dirty is not None:
            self.on_dirty(self)

    # -- durability ------------------------------------------------------------------------------

    async def fsync(self) -> None:
        """What was written before is durable when this returns: one fsync of the backing. Raises OSError."""
        async with self.lock.reading():
            changes, untold, self.untold = self.changes, self.untold, None
            if untold is not None:
                raise untold
            self.pages.finish_header()
            if self.slots.dirty:
                key = await self.key.storing() if self.slots.outdated else None
                with self.pages.times_kept():
                    if key is not None:
                        self.slots.write_dirty(key, self.holes)
                    self.pages.set_remainder(self.size)
            await self._sync_slot()
            self.durable_changes = max(self.durable_changes, changes)
            self.unsynced_bytes = 0

    def prepare_sync(self) -> None:
        """Before the sync of a batch: what must be durable before the clean slot, and cannot follow the sync.

        A backing that says less than the size does so after an fsync, when the last block grew since: beside a
        clean slot that would be damage. Every other one says enough, and its remainder is set after the sync:
        xfs writes data out at once when a length is set behind it.
        """
        if not self.slots.dirty:
            return
        self.pages.finish_header()
        with self.pages.times_kept():
            if self.slots.outdated and self.key.at_hand is not None:
                self.slots.write_dirty(self.key.at_hand, self.holes)
            if self.pages.says_less_than(self.size):
                self.pages.set_remainder(self.size)

    @property
    def needs_sync(self) -> bool:
        """True if something was written since the last fsync that came back without an error."""
        return self.changes != self.durable_changes

    def seal_clean(self) -> None:
        """Prepare the clean slot while the key is there; `settle` writes it once everything else is durable."""
        if self.slots.dirty and self.key.at_hand is not None and not self.sync_failed:
            self.sealed_clean = self.slots.seal_clean(self.key.at_hand, self.size, self.holes, self.changes)

    def settle(self, changes: int) -> bool:
        """Write the clean slot if nothing changed since `changes`, all of which is durable; True if it is clean now."""
        if not self.slots.dirty:
            return True
        if self.changes != changes or self.lock.busy or self.sync_failed or self.pages.pending_header:
            return False
        sealed = self.sealed_clean
        if sealed is None or sealed.changes != changes or not self.slots.follows(sealed):
            self.seal_clean()
            sealed = self.sealed_clean
        if sealed is None or sealed.changes != changes or not self.slots.follows(sealed):
            return False
        with self.pages.times_kept():
            self.pages.set_remainder(self.size)
            self.slots.write_clean(sealed)
        self.sealed_clean, self.unsynced_bytes, self.durable_changes = None, 0, changes
        self.pages.mtime_ns = None
        return True

    async def cut_to(self, plain_size: int) -> None:
        """Recovery: end the file at `plain_size`, whatever lies beyond (docs/format.md, 8.4)."""
        async with self.lock.writing():
            self.pages.keep_mtime()
            key = await self.key.storing()
            self.size = plain_size
            block, length = divmod(plain_size, BLOCK)
            self._begin_dirty(key)
            if length:
                pages = await self.pages.fetch(block, 1)
                try:
                    plain = key.content.open(block, pages, self.slots.generation + 1)
                except Damaged:
                    plain = None  # its bytes are below the floor: reads of it are EIO, the rest is served
                if plain is not None and plain.length > length:
                    self._put(key.content.seal(block, plain.plain[:length], self.slots.generation), block)
            self._remove_holes(block_count(plain_size), 2**63)
            self.slots.cut_list(block_count(plain_size))
            self.pages.end_with_blocks_of(plain_size)
            self._changed(0)

    def close(self) -> None:
        """Let go of the backing file."""
        self.pages.close()

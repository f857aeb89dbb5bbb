"""A damaged file's readable blocks, in a new file with an id and a key of its own.

Nothing is taken that does not authenticate. Where the header itself is damaged, blocks tell the size: the file may
then lack its end, and blocks may be older than others, so it is never called whole.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from cmkfs.crypto.dek import FileKey
from cmkfs.errors import Damaged
from cmkfs.format.header import Identity, Slot, State
from cmkfs.format.layout import BLOCK, PAGE, block_count, block_length
from cmkfs.format.verdict import judge
from cmkfs.fs.inode import Inode
from cmkfs.fs.opening import FileOpener
from cmkfs.fs.xattrs import PREFIX, own_xattrs
from cmkfs.keys.keyring import Keyring
from cmkfs.keys.zone import Zone
from cmkfs.maintenance.content import behind_holes, find_end, open_block, read_pages

_AT_ONCE = 256
_ANY_GENERATION = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Source:
    """The damaged file: what its header still says. `proven`: its size does not rest on blocks alone."""

    fd: int
    identity: Identity
    zone: Zone
    key: FileKey
    slot: Slot
    size: int
    proven: bool


@dataclass(frozen=True, slots=True)
class Rescued:
    """What there is now. `lost` blocks read as zeros in the new file."""

    lost: int
    blocks: int
    whole: bool


async def open_source(fd: int, keyring: Keyring) -> Source:
    """What the header of a damaged file still gives. Raises Damaged if that is nothing."""
    page = os.pread(fd, PAGE, 0)
    identity = Identity.from_bytes(page)
    zone = keyring.zones.get(identity.zone_id)
    if zone is None:
        raise Damaged("a file whose header belongs to another zone")
    (dek,) = await keyring.deks(zone, [identity])
    if isinstance(dek, Damaged):
        raise dek
    key = FileKey(dek, identity, zone.keys.header_secret)
    dek[:] = bytes(len(dek))
    length = os.fstat(fd).st_size
    stored = _stored_size(fd, key, length)
    try:
        slots = key.read_slots(page)
    except Damaged:
        slot = Slot(0, _ANY_GENERATION - 1, State.DIRTY, 0)
        return Source(fd, identity, zone, key, slot, stored, proven=False)
    slot = slots.slot
    if slot.state is State.CLEAN:
        return Source(fd, identity, zone, key, slot, slot.size, proven=True)
    try:
        judge(slot, length, recovering=False)
        ends = find_end(fd, key.content, slot, length)
    except Damaged:
        ends = slot.size
    return Source(fd, identity, zone, key, slot, max(ends, stored), proven=stored <= ends)


def _stored_size(fd: int, key: FileKey, length: int) -> int:
    """Where the last block ends that authenticates, of any generation."""
    plain = memoryview(bytearray(BLOCK))
    for block in range(length // PAGE - 2, -1, -1):
        page = read_pages(fd, block, 1)
        try:
            if len(page) == PAGE and any(page):
                return block * BLOCK + key.content.open_into(block, page, _ANY_GENERATION, plain).length
        except Damaged:
            continue
    return 0


async def copy(source: Source, inode: Inode, fd: int, opener: FileOpener, keyring: Keyring) -> Rescued:
    """Fill the new, empty backing file `fd` of `inode` with what can be read. Raises OSError; closes nothing."""
    new = await keyring.new_file(source.zone)
    file = opener.created(inode, fd, new)
    readable = _Runs(source)
    for first, data in readable:
        await file.write(first * BLOCK, data)
    if file.size != source.size:
        await file.truncate(source.size)
    _copy_attributes(source, fd, file.identity.file_id)
    await file.fsync()
    blocks = block_count(source.size)
    return Rescued(readable.lost, blocks, whole=source.proven and not readable.lost)


class _Runs:
    """The readable blocks of a file, in runs; `lost` counts the others as it goes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.lost = 0

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        source, block, stop = self._source, 0, block_count(self._source.size)
        while block < stop:
            block = min(stop, behind_holes(source.fd, source.slot, block))
            if block == stop:
                return
            pages = memoryview(read_pages(source.fd, block, min(_AT_ONCE, stop - block)))
            count = max(1, len(pages) // PAGE)
            yield from self._readable(block, count, pages)
            block += count

    def _readable(self, first: int, count: int, pages: memoryview) -> Iterator[tuple[int, bytes]]:
        source, run, start = self._source, bytearray(), first
        newest = min(source.slot.generation + 1, _ANY_GENERATION)
        for number in range(count):
            block, plain = first + number, memoryview(bytearray(BLOCK))
            wanted = block_length(source.size, block)
            page = pages[number * PAGE : (number + 1) * PAGE]
            try:
                stored = open_block(source.key.content, source.slot, block, page, newest, wanted, plain)
            except Damaged:
                stored, self.lost = False, self.lost + 1
            if stored:
                start = start if run else block
                run += plain[:wanted]
            elif run:
                yield start, bytes(run)
                run = bytearray()
        if run:
            yield start, bytes(run)


def _copy_attributes(source: Source, fd: int, file_id: bytes) -> None:
    """They are bound to the file's id: opened with the old one, sealed with the new one. Others stay with the old."""
    keys = source.zone.keys
    for name in own_xattrs(source.fd):
        handle = os.fsencode(name)[len(PREFIX) :]
        try:
            plain, value = keys.open_xattr(source.identity.file_id, handle, os.getxattr(source.fd, name))
        except Damaged:
            continue
        sealed = keys.seal_xattr(file_id, plain, value)
        os.setxattr(fd, PREFIX.encode() + keys.xattr_handle(file_id, plain), sealed)

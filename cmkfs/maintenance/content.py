"""Every block of one file against its header: the rules of docs/format.md, 8.1 to 8.4, without changing anything.

Runs in the processes of `maintenance.readers`, many files at a time.
"""

import errno
import os
from dataclasses import dataclass, field

from cmkfs.crypto.content import ZERO_PAGE, ContentCipher
from cmkfs.crypto.dek import FileKey
from cmkfs.errors import Damaged
from cmkfs.format.header import Identity, Slot, State
from cmkfs.format.layout import BLOCK, PAGE, block_count, block_length, cipher_off
from cmkfs.format.verdict import Verdict, judge

CHUNK = 16_384
"""Blocks that one task opens: a large file is shared out among the readers."""
_AT_ONCE = 256
_TOLD = 5
"""Blocks of one file that are named in its finding."""


@dataclass(frozen=True, slots=True)
class Task:
    """One part of a file: the blocks from `first` on, `CHUNK` of them. What is not `first == 0` has a sound header."""

    page: bytes
    dek: bytes
    header_secret: bytes
    recovering: bool
    first: int


@dataclass(slots=True)
class Outcome:
    """What is wrong. `header`: why the file cannot be opened. `bad`: what the first few damaged blocks have."""

    header: str = ""
    bad: list[str] = field(default_factory=list)
    bad_count: int = 0
    beyond: bool = False
    """Something is stored behind the end of a file that no crash explains."""
    unsettled: bool = False
    half: bool = False
    """One of the two slots is damaged."""
    blocks: int = 0


def check_part(fd: int, task: Task) -> Outcome:
    """Look at one part of the file `fd`. A disk that cannot be read is damage like any other."""
    outcome = Outcome()
    try:
        _check_part(fd, task, outcome)
    except Damaged as error:
        outcome.header = str(error)
    except OSError as error:
        outcome.header = f"it cannot be read: {error.strerror}"
    return outcome


def _check_part(fd: int, task: Task, outcome: Outcome) -> None:
    length = os.fstat(fd).st_size
    key = FileKey(task.dek, Identity.from_bytes(task.page), task.header_secret)
    slots = key.read_slots(task.page)
    verdict = judge(slots.slot, length, recovering=task.recovering)
    outcome.unsettled = slots.slot.state is State.DIRTY or verdict is not Verdict.AS_IS
    outcome.half = not slots.intact
    size, last = slots.slot.size, length // PAGE - 1
    if verdict is Verdict.SCAN:
        size = find_end(fd, key.content, slots.slot, length)
        if not task.first and not task.recovering:
            outcome.beyond = stored_between(fd, block_count(size), last)
    _check_blocks(fd, key.content, slots.slot, size, task.first, outcome)


def _check_blocks(fd: int, content: ContentCipher, slot: Slot, size: int, first: int, outcome: Outcome) -> None:
    stop = min(block_count(size), first + CHUNK)
    plain = memoryview(bytearray(BLOCK))
    newest = slot.generation + 1
    block = first
    while block < stop:
        block = min(stop, behind_holes(fd, slot, block))
        if block == stop:
            break
        pages = memoryview(read_pages(fd, block, min(_AT_ONCE, stop - block)))
        for number in range(max(1, len(pages) // PAGE)):
            page = pages[number * PAGE : (number + 1) * PAGE]
            wanted = block_length(size, block + number)
            try:
                open_block(content, slot, block + number, page, newest, wanted, plain)
            except Damaged as error:
                outcome.bad_count += 1
                if len(outcome.bad) < _TOLD:
                    outcome.bad.append(str(error))
        count = max(1, len(pages) // PAGE)
        block += count
        outcome.blocks += count


def read_pages(fd: int, block: int, count: int) -> bytes:
    """The pages of up to `count` blocks; where the disk cannot be read or the file ends, fewer, perhaps none."""
    try:
        return os.pread(fd, count * PAGE, cipher_off(block))
    except OSError:
        if count == 1:
            return b""
        return read_pages(fd, block, 1)  # one by one: only what cannot be read is lost


def open_block(
    content: ContentCipher,
    slot: Slot,
    block: int,
    page: memoryview,
    newest: int,
    wanted: int,
    plain: memoryview,
) -> bool:
    """Open one page into `plain`; False if it is a hole that the header lists. Raises Damaged."""
    if len(page) < PAGE:
        raise Damaged(f"block {block} is cut off or cannot be read")
    if not page[0] and wanted == BLOCK and page == ZERO_PAGE and block in slot.holes:
        return False
    if content.open_into(block, page, newest, plain).length < wanted:
        raise Damaged(f"block {block} is shorter than the file needs")
    return True


def find_end(fd: int, content: ContentCipher, slot: Slot, length: int) -> int:
    """Where a dirty file of backing length `length` ends (docs/format.md, 8.4)."""
    block, pages = slot.size // BLOCK, length // PAGE - 1
    plain = memoryview(bytearray(BLOCK))
    while block < pages:
        block = min(pages, behind_holes(fd, slot, block))
        if block == pages:
            break
        page = os.pread(fd, PAGE, cipher_off(block))
        if not (block in slot.holes and page == ZERO_PAGE):
            try:
                own = content.open_into(block, page, slot.generation + 1, plain).length
            except Damaged:
                break
            if own < BLOCK:
                return max(slot.size, block * BLOCK + own)
        block += 1
    return max(slot.size, block * BLOCK)


def behind_holes(fd: int, slot: Slot, block: int) -> int:
    """The first block from `block` on that is not both listed as a hole and stored nowhere."""
    listed = slot.holes.stop_of(block)
    if listed == block:
        return block
    return max(block, min(listed, stored_from(fd, cipher_off(block)) // PAGE - 1))


def stored_between(fd: int, first: int, stop: int) -> bool:
    """True if any block of `first` to `stop - 1` holds something."""
    while first < stop:
        first = max(first, min(stop, stored_from(fd, cipher_off(first)) // PAGE - 1))
        if first < stop and os.pread(fd, PAGE, cipher_off(first)).strip(b"\0"):
            return True
        first += 1
    return False


def stored_from(fd: int, cipher_offset: int) -> int:
    """Where the next bytes are stored at or behind `cipher_offset` (lseek(2)); there, if the backing cannot tell."""
    try:
        return os.lseek(fd, cipher_offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return os.fstat(fd).st_size
        if error.errno == errno.EINVAL:
            return cipher_offset
        raise

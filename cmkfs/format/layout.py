"""Where bytes are: plain offsets to blocks, and sizes on both sides (docs/format.md, 8.2 and 8.3).

Pure arithmetic. `plain_` is what programs see, `cipher_` what lies in the vault.
"""

from dataclasses import dataclass
from typing import NewType

PAGE = 4096
"""Bytes of the header page and of each block in the vault."""
BLOCK = 4048
"""Plain bytes that a block holds."""
MAX_PLAIN_SIZE = (2**63 - 1 - 2 * PAGE) // PAGE * BLOCK
"""The largest plain size whose cipher size a signed 64-bit offset can name."""

BlockNo = NewType("BlockNo", int)


@dataclass(frozen=True, slots=True)
class Span:
    """The part of one block that a request covers: plain bytes `start` to `stop` within block `block`."""

    block: int
    start: int
    stop: int

    @property
    def whole(self) -> bool:
        """True if every byte of the block is covered."""
        return self.start == 0 and self.stop == BLOCK


def block_count(plain_size: int) -> int:
    """How many blocks hold `plain_size` bytes."""
    return -(-plain_size // BLOCK)


def block_length(plain_size: int, block: int) -> int:
    """Plain bytes of block `block` in a file of `plain_size` bytes; 0 beyond the end."""
    return max(0, min(BLOCK, plain_size - block * BLOCK))


def cipher_off(block: int) -> int:
    """Where block `block` begins in the vault."""
    return PAGE * (1 + block)


def cipher_size(plain_size: int) -> int:
    """The settled backing length: whole pages, then a hole of as many bytes as the last block has plain ones."""
    return PAGE * (1 + block_count(plain_size)) + plain_size % BLOCK


def blocks_end(plain_size: int) -> int:
    """The backing length without the hole at the end."""
    return PAGE * (1 + block_count(plain_size))


def plain_size_of(backing_size: int) -> int | None:
    """The plain size that a settled backing length tells; None if no settled file has this length."""
    if backing_size < PAGE:
        return None
    pages, rest = divmod(backing_size - PAGE, PAGE)
    if rest == 0:
        return pages * BLOCK
    if rest >= BLOCK or pages == 0:
        return None
    return (pages - 1) * BLOCK + rest


def plain_size_at_least(backing_size: int) -> int:
    """What `stat` tells of a file that is not settled: the plain bytes that its whole pages can hold."""
    exact = plain_size_of(backing_size)
    return exact if exact is not None else max(0, backing_size // PAGE - 1) * BLOCK


def blocks_of(plain_off: int, length: int) -> tuple[int, int]:
    """First block and number of blocks that hold `length` bytes, at least one, from `plain_off` on."""
    first = plain_off // BLOCK
    return first, (plain_off + length - 1) // BLOCK + 1 - first


def spans(plain_off: int, length: int) -> list[Span]:
    """The spans that cover `length` bytes from `plain_off`, in order; empty if `length` is 0."""
    end = plain_off + length
    found = []
    while plain_off < end:
        block, start = divmod(plain_off, BLOCK)
        stop = min(BLOCK, start + end - plain_off)
        found.append(Span(block, start, stop))
        plain_off += stop - start
    return found

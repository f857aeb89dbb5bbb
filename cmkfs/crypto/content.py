"""Blocks of a file's content: plain bytes to sealed pages and back (docs/format.md, 8.2).

One `ContentCipher` per file. It keeps the ciphers that it derived: one for writing, renewed in time,
and a few for reading, since the blocks of a file were written in few sessions.
"""

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cmkfs.crypto.xaes import NONCE_SIZE, PREFIX_SIZE, Xaes
from cmkfs.errors import Damaged
from cmkfs.format.layout import BLOCK, PAGE

_PAGE_HEAD = struct.Struct(">12s12sHHI")
_START = struct.Struct(">12s12s8s")
_AAD = struct.Struct(">16sQHHI")
_AAD_HEAD = 24
_BODY = _PAGE_HEAD.size
_READ_CIPHERS = 32
_SUFFIX = NONCE_SIZE - PREFIX_SIZE
BLOCKS_PER_PREFIX = 2**24
"""Random 96-bit nonces under one derived key: after this many the chance of one repeating is still below 2^-48."""
ZERO_PAGE = bytes(PAGE)

Buffer = bytes | bytearray | memoryview


class OpenedHead(NamedTuple):
    """What stands before a block that authenticated: its own length, and the generation it was written in."""

    length: int
    generation: int


@dataclass(frozen=True, slots=True)
class OpenedBlock:
    """A block that authenticated: its own length, padded plain bytes, and the generation it was written in."""

    plain: bytes
    length: int
    generation: int


def _cut(before: bytes, plain: memoryview, after: bytes) -> list[Buffer]:
    """The blocks of the three in a row: only the first and the last are copied, and those only if they must be."""
    skip = BLOCK - len(before) if before else 0
    blocks: list[Buffer] = [b"".join((before, plain[:skip]))] if before else []
    blocks += [plain[at : at + BLOCK] for at in range(skip, len(plain), BLOCK)]
    if after:
        blocks[-1] = b"".join((blocks[-1], after))
    return blocks


class ContentCipher:
    """Seals and opens the blocks of one file."""

    __slots__ = ("_file_id", "_left", "_prefix", "_readers", "_writer", "_xaes")

    def __init__(self, key: bytes, file_id: bytes) -> None:
        self._xaes = Xaes(key)
        self._file_id = file_id
        self._readers: dict[bytes, AESGCM] = {}
        self._left = 0
        self._prefix = b""
        self._writer: AESGCM | None = None

    def seal(self, first: int, plain: Buffer, generation: int, *, before: bytes = b"", after: bytes = b"") -> bytearray:
        """Seal `plain`, between what its first and last block keep, as the blocks `first`, `first + 1`, ….

        All are full but the last, which may be short.
        """
        blocks = _cut(before, memoryview(plain), after)
        count = len(blocks)
        encrypt_into, prefix = self._writer_for(count)
        suffixes = os.urandom(_SUFFIX * count)
        pages = bytearray(count * PAGE)
        target = memoryview(pages)
        for number, own in enumerate(blocks):
            length = len(own)
            data = own if length == BLOCK else bytes(own).ljust(BLOCK, b"\0")
            suffix = suffixes[number * _SUFFIX : (number + 1) * _SUFFIX]
            aad = _AAD.pack(self._file_id, first + number, length, 0, generation)
            at = number * PAGE
            _START.pack_into(pages, at, prefix, suffix, aad[_AAD_HEAD:])
            # In place: a new bytes object for each block costs twice what sealing it does.
            encrypt_into(suffix, data, aad, target[at + _BODY : at + PAGE])
        return pages

    def prepare(self) -> None:
        """Derive the cipher that the next block will be sealed with."""
        self._writer_for(0)

    def _writer_for(self, count: int) -> tuple[Callable[..., int], bytes]:
        """The cipher and nonce prefix for the next `count` blocks."""
        if self._writer is None or self._left < count:
            self._prefix = os.urandom(PREFIX_SIZE)
            self._writer = self._xaes.derive(self._prefix)
            self._left = BLOCKS_PER_PREFIX
        self._left -= count
        return self._writer.encrypt_into, self._prefix

    def open_into(self, block: int, page: Buffer, newest_generation: int, plain: memoryview) -> OpenedHead:
        """Open one page into the 4048 bytes `plain`. Raises Damaged if it is not block `block` of this file."""
        prefix, suffix, length, flags, generation = _PAGE_HEAD.unpack_from(page)
        if not 1 <= length <= BLOCK or flags or generation > newest_generation:
            raise Damaged(f"block {block} has a head out of range")
        reader = self._readers.get(prefix) or self._derive_reader(prefix)
        aad = _AAD.pack(self._file_id, block, length, flags, generation)
        try:
            reader.decrypt_into(suffix, memoryview(page)[_BODY:], aad, plain)
        except InvalidTag as error:
            raise Damaged(f"block {block} does not authenticate") from error
        if length < BLOCK and any(plain[length:]):
            raise Damaged(f"block {block} is not padded with zeros")
        return OpenedHead(length, generation)

    def open_full(self, first: int, pages: memoryview, newest_generation: int, plain: memoryview) -> None:
        """Open consecutive pages whose blocks must all be full into `plain`, 4048 bytes for each. Raises Damaged.

        What `open_into` does for each of them, in one loop: a reader of a large file spends its time here.
        """
        file_id, readers, unpack, pack = self._file_id, self._readers, _PAGE_HEAD.unpack_from, _AAD.pack
        for number in range(len(pages) // PAGE):
            at, out, block = number * PAGE, number * BLOCK, first + number
            prefix, suffix, length, flags, generation = unpack(pages, at)
            if length != BLOCK or flags or generation > newest_generation:
                raise Damaged(f"block {block} is not a full one, or has a head out of range")
            reader = readers.get(prefix) or self._derive_reader(prefix)
            aad = pack(file_id, block, length, flags, generation)
            try:
                reader.decrypt_into(suffix, pages[at + _BODY : at + PAGE], aad, plain[out : out + BLOCK])
            except InvalidTag as error:
                raise Damaged(f"block {block} does not authenticate") from error

    def open(self, block: int, page: Buffer, newest_generation: int) -> OpenedBlock:
        """Open one page. Raises Damaged if it is not block `block` of this file, or is of a later generation."""
        plain = bytearray(BLOCK)
        head = self.open_into(block, page, newest_generation, memoryview(plain))
        return OpenedBlock(bytes(plain), head.length, head.generation)

    def _derive_reader(self, prefix: bytes) -> AESGCM:
        if len(self._readers) >= _READ_CIPHERS:
            del self._readers[next(iter(self._readers))]
        reader = self._readers[prefix] = self._xaes.derive(prefix)
        return reader

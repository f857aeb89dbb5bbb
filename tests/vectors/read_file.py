"""The second reader, section 8 of docs/format.md: the header page, blocks and sizes of one file.

Bytes or one open file in, values out; what it raises is described in `read_metadata`.
"""

import hashlib
import io
import itertools
from dataclasses import dataclass
from hmac import compare_digest
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from primitives import kdf, mac, sha256, xaes_open
from read_metadata import (
    KIND_FILE,
    PAGE,
    SLOT,
    Cursor,
    DamagedError,
    Recipient,
    UnknownFormatError,
    Unwrap,
    Wrapped,
    Zone,
    read_recipient,
    unwrap_secret,
)

PLAIN = 4048  # plain bytes of a block
IDENTITY = 3072  # bytes of the identity in the header page
MAX_HOLES = 26


def content_key(dek: bytes) -> bytes:
    """The XAES key of a file's blocks."""
    return kdf(dek, b"cmkfs content v1", 32)


def header_key(dek: bytes, zone_header_secret: bytes) -> bytes:
    """The MAC key of a file's slots."""
    return kdf(dek + zone_header_secret, b"cmkfs header v1", 32)


# --- section 8.1: the header page


@dataclass(frozen=True, slots=True)
class Identity:
    """What is written once; `hash` is over bytes 0 to 79."""

    file_id: bytes
    zone_id: bytes
    commitment: bytes
    recipients: tuple[Recipient, ...]
    hash: bytes


def read_identity(page: bytes) -> Identity:
    """Bytes 0 to 3071 of a header page, nothing authenticated yet."""
    cursor = Cursor(page[:IDENTITY], "header")
    if cursor.take(8) != b"CMKFSv1\n":
        raise DamagedError("header", "magic")
    form, flags = cursor.number(2), cursor.number(2)
    if form > 1 or flags:
        raise UnknownFormatError("header", f"format {form}, flags {flags:#x}")
    if form != 1 or cursor.number(4):
        raise DamagedError("header", "format 0, or bytes that must be zero")
    file_id, zone_id, committed, count = cursor.take(16), cursor.take(16), cursor.take(32), cursor.number(2)
    if not 1 <= count <= 8:
        raise DamagedError("header", f"{count} recipients")
    recipients = tuple(read_recipient(cursor, "header") for _ in range(count))
    if any(cursor.rest()):
        raise DamagedError("header", "bytes after the recipients")
    return Identity(file_id, zone_id, committed, recipients, sha256(page[:80]))


@dataclass(frozen=True, slots=True)
class Slot:
    """The state of a file. `size` is exact if clean, the floor if not; `holes` are (first, count)."""

    sequence: int
    generation: int
    clean: bool
    size: int
    holes: tuple[tuple[int, int], ...]

    def in_hole(self, number: int) -> bool:
        """Does block `number` lie in a listed range?"""
        return any(first <= number < first + count for first, count in self.holes)


def _read_slot(raw: bytes, number: int, key: bytes, identity_hash: bytes) -> Slot:
    if not compare_digest(mac(key, identity_hash + bytes([number]) + raw[:480]), raw[480:]):
        raise DamagedError("slot", "MAC")
    cursor = Cursor(raw[:480], "slot")
    sequence, generation, state, count = (cursor.number(length) for length in (8, 4, 1, 1))
    zero, size, reserved = cursor.take(2), cursor.number(8), cursor.take(32)
    if state not in (1, 2) or count > MAX_HOLES or any(zero) or any(reserved):
        raise DamagedError("slot", "a field is out of range")
    holes = tuple((cursor.number(8), cursor.number(8)) for _ in range(count))
    gaps = (later[0] - sum(earlier) for earlier, later in itertools.pairwise(holes))
    if any(length < 1 for _, length in holes) or any(gap < 1 for gap in gaps) or any(cursor.rest()):
        raise DamagedError("slot", "hole ranges")
    return Slot(sequence, generation, state == 1, size, holes)


def read_slots(raw: bytes, key: bytes, identity_hash: bytes) -> Slot:
    """The slot that counts, from the 1024 bytes of both; beside a damaged one it is dirty."""
    valid = []
    for number in (0, 1):
        try:
            valid.append(_read_slot(raw[SLOT * number : SLOT * (number + 1)], number, key, identity_hash))
        except DamagedError:
            continue
    if not valid or (len(valid) == 2 and valid[0].sequence == valid[1].sequence):
        raise DamagedError("slot", "both damaged, or both with one sequence")
    best = max(valid, key=lambda slot: slot.sequence)
    clean = best.clean and len(valid) == 2
    return Slot(best.sequence, best.generation, clean, best.size, best.holes)


# --- section 8.2: blocks


def read_block(key: bytes, file_id: bytes, number: int, page: bytes, slot: Slot) -> bytes | None:
    """The plain bytes of a block, 1 to 4048; None for a block of zeros in a listed hole."""
    if len(page) != PAGE:
        raise DamagedError("block", "missing")
    if not any(page):
        if slot.in_hole(number):
            return None
        raise DamagedError("block", "zeros outside of every hole")
    fields = page[24:32]
    try:
        plain = xaes_open(key, page[:24], page[32:], file_id + number.to_bytes(8, "big") + fields)
    except InvalidTag as error:
        raise DamagedError("block", "does not authenticate") from error
    cursor = Cursor(fields, "block")
    length, flags, generation = cursor.number(2), cursor.number(2), cursor.number(4)
    if not 1 <= length <= PLAIN or flags or any(plain[length:]):
        raise DamagedError("block", "length, flags or padding")
    if generation > slot.generation + 1:
        raise DamagedError("block", "of a later generation")
    return plain[:length]


# --- section 8.3: sizes


def blocks(size: int) -> int:
    """How many blocks `size` plain bytes take."""
    return -(-size // PLAIN)


def cipher_size(size: int) -> int:
    """Backing length of a settled file of `size` plain bytes."""
    return PAGE * (1 + blocks(size)) + size % PLAIN


def plain_size(length: int) -> int | None:
    """The inverse of `cipher_size`; None for what is no settled size."""
    full, rem = divmod(length - PAGE, PAGE)
    if full < 0 or rem >= PLAIN or (rem and not full):
        return None
    return PLAIN * (full - 1) + rem if rem else PLAIN * full


# --- section 8.4: opening a file


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file whose header is open; `length` is the backing's."""

    backing: BinaryIO
    length: int
    file_id: bytes
    key: bytes
    slot: Slot

    def block(self, number: int) -> bytes | None:
        """As `read_block`, from the backing."""
        self.backing.seek(PAGE * (1 + number))
        return read_block(self.key, self.file_id, number, self.backing.read(PAGE), self.slot)

    def end(self, recovering: bool) -> int:
        """The plain size that a reader arrives at."""
        size, says = self.slot.size, plain_size(self.length)
        if (says < size) if says is not None else (self.length < PAGE * (1 + blocks(size))):
            raise DamagedError("size", "the backing is shorter than the slot says")
        if not self.slot.clean:
            return self._dirty_end()
        if says != size and not recovering:
            raise DamagedError("size", "the backing is longer than the slot says")
        return size

    def _dirty_end(self) -> int:
        floor = self.slot.size
        number = floor // PLAIN
        while True:
            start = PLAIN * number
            try:
                plain = self.block(number)
            except DamagedError:
                return max(floor, start)
            if plain is not None and len(plain) < PLAIN:
                return max(floor, start + len(plain))
            number += 1


@dataclass(frozen=True, slots=True)
class View:
    """What a reader serves. `file` is None for a file that lost its header before it was synced."""

    size: int
    file_id: bytes | None
    file: OpenFile | None

    def read(self, number: int) -> bytes:
        """The plain bytes of block `number`, cut to the size."""
        if self.file is None:
            raise IndexError(number)
        wanted = min(PLAIN, self.size - PLAIN * number)
        plain = self.file.block(number)
        if plain is not None and len(plain) < wanted:
            raise DamagedError("block", "shorter than the file needs")
        return bytes(wanted) if plain is None else plain[:wanted]

    def digest(self) -> tuple[str, list[int]]:
        """(SHA-256 of all blocks that can be read, in order; numbers of those that cannot)."""
        digest, unreadable = hashlib.sha256(), []
        for number in range(blocks(self.size)):
            try:
                digest.update(self.read(number))
            except DamagedError:
                unreadable.append(number)
        return digest.hexdigest(), unreadable


def read_file(backing: BinaryIO, zone: Zone, vault_hash: bytes, unwrap: Unwrap, recovering: bool) -> View:
    """Opens a file that lies in a directory of `zone`."""
    length = backing.seek(0, io.SEEK_END)
    backing.seek(0)
    page = backing.read(PAGE)
    if not any(page) and len(page) in (0, PAGE):
        if recovering:
            return View(0, None, None)
        raise DamagedError("header", "no header")
    if len(page) < PAGE:
        raise DamagedError("header", "less than a page")
    identity = read_identity(page)
    if identity.zone_id != zone.zone_id:
        raise DamagedError("header", "of another zone than its directory")
    what = Wrapped(KIND_FILE, vault_hash, zone.zone_id, identity.file_id, identity.commitment)
    dek = unwrap_secret(identity.recipients, what, unwrap)
    slot = read_slots(page[IDENTITY:], header_key(dek, zone.key("header")), identity.hash)
    file = OpenFile(backing, length, identity.file_id, content_key(dek), slot)
    return View(file.end(recovering), identity.file_id, file)

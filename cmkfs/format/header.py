"""The header page of a file: identity and state slots (docs/format.md, 8.1). Bytes to values and back, no keys.

Slots are authenticated in `crypto.dek`; here their fields are read and their ranges checked.
"""

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum

from cmkfs.errors import Damaged, UnknownFormat
from cmkfs.format.holes import Holes
from cmkfs.format.layout import MAX_PLAIN_SIZE, PAGE, block_count
from cmkfs.format.recipient import Recipient

MAGIC = b"CMKFSv1\n"
FORMAT = 1
IDENTITY_SIZE = 3072
SLOT_SIZE = 512
SLOT_BODY = 480
SLOT_OFFSETS = (3072, 3584)
MAX_RECIPIENTS = 8
MAX_HOLE_RANGES = 26

_FIXED = struct.Struct(">8sHH4x16s16s32s")
_COUNT = struct.Struct(">H")
_SLOT = struct.Struct(">QIBB2xQ32x")
_RANGE = struct.Struct(">QQ")


@dataclass(frozen=True, slots=True)
class Identity:
    """Which file this is, and who can unwrap its DEK. Written once."""

    file_id: bytes
    zone_id: bytes
    commitment: bytes
    recipients: tuple[Recipient, ...]

    def to_bytes(self) -> bytes:
        """The 3072 bytes on disk."""
        fixed = self._fixed() + _COUNT.pack(len(self.recipients))
        data = fixed + b"".join(recipient.to_bytes() for recipient in self.recipients)
        return data.ljust(IDENTITY_SIZE, b"\0")

    def hash(self) -> bytes:
        """What binds the slots to this identity: SHA-256 of all but the recipients."""
        return hashlib.sha256(self._fixed()).digest()

    def _fixed(self) -> bytes:
        return _FIXED.pack(MAGIC, FORMAT, 0, self.file_id, self.zone_id, self.commitment)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Identity":
        """Parse bytes 0 to 3071 of a header page. Raises Damaged, UnknownFormat."""
        if len(data) < IDENTITY_SIZE or data[:8] != MAGIC:
            raise Damaged("no cmkfs file header")
        _, number, flags, file_id, zone_id, commitment = _FIXED.unpack_from(data)
        if number > FORMAT:
            raise UnknownFormat(f"the file has format {number}; this version reads up to {FORMAT}")
        if flags:
            raise UnknownFormat(f"the file has unknown flags {flags:#06x}")
        (count,) = _COUNT.unpack_from(data, _FIXED.size)
        if not 1 <= count <= MAX_RECIPIENTS:
            raise Damaged(f"a file header with {count} recipients")
        at, recipients = _FIXED.size + _COUNT.size, []
        for _ in range(count):
            recipient, at = Recipient.read(data[:IDENTITY_SIZE], at)
            recipients.append(recipient)
        identity = cls(file_id, zone_id, commitment, tuple(recipients))
        if identity.to_bytes() != data[:IDENTITY_SIZE]:
            raise Damaged("a file header has bytes where there should be zeros")
        return identity


class State(IntEnum):
    """CLEAN: the size is exact and durable. DIRTY: the size is the floor, the last one known durable."""

    CLEAN = 1
    DIRTY = 2


@dataclass(frozen=True, slots=True)
class Slot:
    """The state of a file as one slot has it."""

    sequence: int
    generation: int
    state: State
    size: int
    holes: Holes = Holes.NONE

    def body(self) -> bytes:
        """The 480 bytes that the MAC covers. The holes must fit (`Holes.at_most`)."""
        head = _SLOT.pack(self.sequence, self.generation, self.state, len(self.holes.ranges), self.size)
        ranges = b"".join(_RANGE.pack(first, stop - first) for first, stop in self.holes.ranges)
        body = (head + ranges).ljust(SLOT_BODY, b"\0")
        if len(body) != SLOT_BODY:
            raise ValueError("too many hole ranges for a slot")
        return body

    @classmethod
    def from_body(cls, body: bytes) -> "Slot":
        """Parse the 480 bytes. Raises Damaged for any field out of range."""
        if len(body) < SLOT_BODY:
            raise Damaged("a slot is cut off")
        sequence, generation, state, count, size = _SLOT.unpack_from(body)
        if state not in (State.CLEAN, State.DIRTY) or count > MAX_HOLE_RANGES:
            raise Damaged("a slot has a field out of range")
        ranges: list[tuple[int, int]] = []
        for number in range(count):
            first, length = _RANGE.unpack_from(body, _SLOT.size + number * _RANGE.size)
            if length < 1 or (ranges and first <= ranges[-1][1]) or first + length > block_count(MAX_PLAIN_SIZE):
                raise Damaged("a slot has hole ranges that make no sense")
            ranges.append((first, first + length))
        slot = cls(sequence, generation, State(state), size, Holes(tuple(ranges)))
        if slot.body() != body[:SLOT_BODY]:
            raise Damaged("a slot has bytes where there should be zeros")
        return slot


def slot_bytes(page: bytes, number: int) -> bytes:
    """The 512 bytes of slot `number` in a header page."""
    at = SLOT_OFFSETS[number]
    return page[at : at + SLOT_SIZE]


def peek_slot(page: bytes) -> Slot | None:
    """The newest slot that parses, *not authenticated*: good for finding what to settle, never for trusting."""
    found = []
    for number in (0, 1):
        try:
            found.append(Slot.from_body(slot_bytes(page, number)[:SLOT_BODY]))
        except Damaged:
            continue
    return max(found, key=lambda slot: slot.sequence, default=None)


def is_unwritten(page: bytes) -> bool:
    """True for a header that never reached the disk: nothing, or a page of zeros."""
    return not page or page == bytes(PAGE)

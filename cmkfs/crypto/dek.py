"""What one file's data key gives: its content cipher, and slots that nobody else can write.

docs/format.md, sections 4 and 8.1.
"""

import hmac
from dataclasses import dataclass

from cmkfs.crypto.content import ContentCipher
from cmkfs.crypto.kdf import commitment, kdf, mac
from cmkfs.errors import Damaged, Tampered
from cmkfs.format.header import SLOT_BODY, Identity, Slot, State, slot_bytes


@dataclass(frozen=True, slots=True)
class ReadSlots:
    """What the two slots say together. `number` is the slot that counts; `sequence` the higher one seen."""

    slot: Slot
    number: int
    intact: bool


_FIRST_SLOTS = (Slot(1, 0, State.DIRTY, 0), Slot(2, 0, State.DIRTY, 0))
_FIRST_BODIES = tuple(slot.body() for slot in _FIRST_SLOTS)
NEW_FILE = ReadSlots(_FIRST_SLOTS[1], 1, intact=True)
"""What the header of a new file says: both slots filled, dirty, with floor 0."""


class FileKey:
    """The unwrapped DEK of one file, turned into the two keys that are used; the DEK itself is not kept."""

    __slots__ = ("_first_slots", "_header_key", "content", "file_id", "identity_hash")

    def __init__(self, dek: bytes | bytearray, identity: Identity, header_secret: bytes) -> None:
        """Raises Tampered if the DEK is not the one that the identity commits to."""
        if not hmac.compare_digest(commitment(dek), identity.commitment):
            raise Tampered("the unwrapped key is not the one that the header commits to")
        self.file_id = identity.file_id
        self.content = ContentCipher(kdf(dek, b"cmkfs content v1", 32), identity.file_id)
        self._header_key = kdf(bytes(dek) + header_secret, b"cmkfs header v1", 32)
        self.identity_hash = identity.hash()
        self._first_slots = b""

    def prepare(self) -> None:
        """Make what the first header and the first write will take, while nobody waits for it."""
        self._first_slots = b"".join(self.seal_body(number, body) for number, body in enumerate(_FIRST_BODIES))
        self.content.prepare()

    def first_slots(self) -> bytes:
        """The 1024 bytes of both slots of a new file. Given once."""
        if not self._first_slots:
            self.prepare()
        first, self._first_slots = self._first_slots, b""
        return first

    def seal_slot(self, number: int, slot: Slot) -> bytes:
        """The 512 bytes of `slot` in place `number`."""
        return self.seal_body(number, slot.body())

    def seal_body(self, number: int, body: bytes) -> bytes:
        """The same for a slot that is laid out already."""
        return body + mac(self._header_key, self.identity_hash + bytes([number]) + body)

    def read_slots(self, page: bytes) -> ReadSlots:
        """The slot of a header page that counts. Raises Damaged if there is none.

        A damaged slot beside a valid one makes the valid one dirty: its size is then a floor.
        """
        valid: dict[int, Slot] = {}
        for number in (0, 1):
            slot = self._open_slot(number, slot_bytes(page, number))
            if slot is not None:
                valid[number] = slot
        if not valid:
            raise Damaged("both state slots of the header are damaged")
        if len(valid) == 2:
            if valid[0].sequence == valid[1].sequence:
                raise Damaged("both state slots of the header claim to be the newest")
            number = 0 if valid[0].sequence > valid[1].sequence else 1
            return ReadSlots(valid[number], number, intact=True)
        ((number, slot),) = valid.items()
        dirty = Slot(slot.sequence, slot.generation, State.DIRTY, slot.size, slot.holes)
        return ReadSlots(dirty, number, intact=False)

    def _open_slot(self, number: int, data: bytes) -> Slot | None:
        body = data[:SLOT_BODY]
        expected = mac(self._header_key, self.identity_hash + bytes([number]) + body)
        if not hmac.compare_digest(expected, data[SLOT_BODY:]):
            return None
        try:
            return Slot.from_body(body)
        except Damaged:
            return None  # by somebody who has the key: damaged all the same (docs/format.md, 8.1)

"""A file's key and its slots: docs/format.md, sections 4 and 8.1."""

import pytest

from cmkfs.crypto.content import ContentCipher
from cmkfs.crypto.dek import FileKey
from cmkfs.crypto.kdf import commitment, kdf, mac
from cmkfs.errors import Damaged, Tampered
from cmkfs.format.header import SLOT_BODY, SLOT_OFFSETS, Identity, Slot, State
from cmkfs.format.holes import Holes
from cmkfs.format.layout import PAGE
from cmkfs.format.recipient import CmkId, CmkVersion, Recipient, Scheme

DEK, SECRET = b"d" * 32, b"h" * 32
RECIPIENTS = (Recipient(CmkVersion(CmkId(b"c" * 16), 1, Scheme.GCM), b"w" * 60),)
IDENTITY = Identity(b"f" * 16, b"z" * 16, commitment(DEK), RECIPIENTS)
KEY = FileKey(DEK, IDENTITY, SECRET)
OLD = Slot(4, 1, State.CLEAN, 100)
NEW = Slot(5, 2, State.CLEAN, 200, Holes(((3, 5),)))


def page(first: bytes, second: bytes) -> bytes:
    return IDENTITY.to_bytes() + first + second


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_keys_come_from_the_dek_as_specified() -> None:
    sealed = bytes(KEY.content.seal(0, b"x", 1))
    assert ContentCipher(kdf(DEK, b"cmkfs content v1", 32), IDENTITY.file_id).open(0, sealed, 1).plain[:1] == b"x"
    header_key = kdf(DEK + SECRET, b"cmkfs header v1", 32)
    body = OLD.body()
    assert KEY.seal_slot(1, OLD) == body + mac(header_key, IDENTITY.hash() + b"\1" + body)


def test_another_dek_than_the_one_committed_to_is_tampering() -> None:
    with pytest.raises(Tampered):
        FileKey(b"e" * 32, IDENTITY, SECRET)


@pytest.mark.parametrize(("first", "second", "number"), [(OLD, NEW, 1), (NEW, OLD, 0)])
def test_the_slot_with_the_higher_sequence_counts(first: Slot, second: Slot, number: int) -> None:
    found = KEY.read_slots(page(KEY.seal_slot(0, first), KEY.seal_slot(1, second)))
    assert (found.slot, found.number, found.intact) == (NEW, number, True)


@pytest.mark.parametrize("damage", [0, 8, 12, 16, 56, SLOT_BODY - 1, SLOT_BODY, 511])
@pytest.mark.parametrize("damaged", [0, 1])
def test_a_damaged_slot_makes_the_other_one_dirty(damaged: int, damage: int) -> None:
    slots = [KEY.seal_slot(0, OLD), KEY.seal_slot(1, NEW)]
    slots[damaged] = flip(slots[damaged], damage)
    left = (NEW, OLD)[damaged]
    found = KEY.read_slots(page(*slots))
    assert found.slot == Slot(left.sequence, left.generation, State.DIRTY, left.size, left.holes)
    assert (found.number, found.intact) == (1 - damaged, False)


def test_a_slot_of_zeros_is_damaged() -> None:
    found = KEY.read_slots(page(bytes(512), KEY.seal_slot(1, OLD)))
    assert found.slot.state is State.DIRTY


def test_both_damaged_is_damage() -> None:
    with pytest.raises(Damaged):
        KEY.read_slots(page(flip(KEY.seal_slot(0, OLD), 3), flip(KEY.seal_slot(1, NEW), 3)))
    with pytest.raises(Damaged):
        KEY.read_slots(page(bytes(512), bytes(512)))


def test_two_equal_sequences_are_damage() -> None:
    with pytest.raises(Damaged):
        KEY.read_slots(page(KEY.seal_slot(0, NEW), KEY.seal_slot(1, Slot(NEW.sequence, 1, State.CLEAN, 0))))


def test_a_slot_in_the_other_place_is_damaged() -> None:
    """Copying the older slot over the newer one would bring back its state as intact."""
    found = KEY.read_slots(page(KEY.seal_slot(0, OLD), KEY.seal_slot(0, OLD)))
    assert not found.intact


@pytest.mark.parametrize(
    "other",
    [
        Identity(b"g" * 16, IDENTITY.zone_id, IDENTITY.commitment, RECIPIENTS),
        Identity(IDENTITY.file_id, b"y" * 16, IDENTITY.commitment, RECIPIENTS),
    ],
)
def test_slots_of_another_identity_are_damaged(other: Identity) -> None:
    foreign = FileKey(DEK, other, SECRET)
    with pytest.raises(Damaged):
        KEY.read_slots(page(foreign.seal_slot(0, OLD), foreign.seal_slot(1, NEW)))


def test_slots_made_without_the_zone_secret_are_damaged() -> None:
    """Where wrapping is public (RSA), a DEK alone must not make a header."""
    foreign = FileKey(DEK, IDENTITY, b"x" * 32)
    with pytest.raises(Damaged):
        KEY.read_slots(page(foreign.seal_slot(0, OLD), foreign.seal_slot(1, NEW)))


def test_a_rewrap_keeps_the_slots() -> None:
    rewrapped = FileKey(DEK, Identity(b"f" * 16, b"z" * 16, commitment(DEK), RECIPIENTS * 2), SECRET)
    assert rewrapped.read_slots(page(KEY.seal_slot(0, OLD), KEY.seal_slot(1, NEW))).slot == NEW


def test_a_field_out_of_range_is_a_damaged_slot_though_it_authenticates() -> None:
    body = flip(NEW.body(), 24)
    header_key = kdf(DEK + SECRET, b"cmkfs header v1", 32)
    sealed = body + mac(header_key, IDENTITY.hash() + b"\1" + body)
    found = KEY.read_slots(page(KEY.seal_slot(0, OLD), sealed))
    assert (found.slot.size, found.slot.state, found.intact) == (OLD.size, State.DIRTY, False)


def test_slots_fill_the_page() -> None:
    assert len(page(KEY.seal_slot(0, OLD), KEY.seal_slot(1, NEW))) == PAGE
    assert SLOT_OFFSETS[1] - SLOT_OFFSETS[0] == len(KEY.seal_slot(0, OLD)) == 512

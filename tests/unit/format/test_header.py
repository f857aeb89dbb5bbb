"""The header page: docs/format.md, 8.1."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cmkfs.errors import CmkfsError, Damaged, UnknownFormat
from cmkfs.format.header import (
    IDENTITY_SIZE,
    MAX_HOLE_RANGES,
    SLOT_BODY,
    Identity,
    Slot,
    State,
    is_unwritten,
    peek_slot,
    slot_bytes,
)
from cmkfs.format.holes import Holes
from cmkfs.format.layout import MAX_PLAIN_SIZE, PAGE, block_count
from cmkfs.format.recipient import CmkId, CmkVersion, Recipient, Scheme

RECIPIENT = Recipient(CmkVersion(CmkId(b"c" * 16), 1, Scheme.GCM), b"w" * 60)
IDENTITY = Identity(b"f" * 16, b"z" * 16, b"k" * 32, (RECIPIENT,))
RAW = IDENTITY.to_bytes()
SLOT = Slot(7, 3, State.CLEAN, 5000, Holes(((0, 1), (4, 9))))


def put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


# -- identity --------------------------------------------------------------------------------------


def test_the_fields_lie_where_the_specification_says() -> None:
    assert len(RAW) == IDENTITY_SIZE
    assert RAW[:82] == b"CMKFSv1\n\0\1\0\0\0\0\0\0" + b"f" * 16 + b"z" * 16 + b"k" * 32 + b"\0\1"
    assert RAW[82:].rstrip(b"\0") == RECIPIENT.to_bytes()


def test_round_trip_with_the_most_recipients() -> None:
    for count in (1, 8):
        identity = Identity(b"f" * 16, b"z" * 16, b"k" * 32, (RECIPIENT,) * count)
        assert Identity.from_bytes(identity.to_bytes()) == identity


def test_a_flipped_bit_anywhere_is_refused_or_is_another_identity() -> None:
    """Never the same identity from other bytes: what counts is bound, what does not count must be zero."""
    accepted = set()
    for at in range(IDENTITY_SIZE):
        try:
            other = Identity.from_bytes(put(RAW, at, bytes([RAW[at] ^ (1 << at % 8)])))
        except (Damaged, UnknownFormat):
            continue
        assert other != IDENTITY
        accepted.add(at)
    fields = {*range(16, 80), *range(82, 82 + len(RECIPIENT.to_bytes()))}
    assert accepted <= fields
    assert accepted >= {*range(16, 80)}  # these are bound by commitment, context and hash


def test_the_hash_binds_all_but_the_recipients() -> None:
    """A rewrap changes recipients and keeps the slots valid; everything else invalidates them."""
    two = Identity(b"f" * 16, b"z" * 16, b"k" * 32, (RECIPIENT, RECIPIENT))
    assert two.hash() == IDENTITY.hash()
    others = [
        Identity(b"x" * 16, b"z" * 16, b"k" * 32, (RECIPIENT,)),
        Identity(b"f" * 16, b"x" * 16, b"k" * 32, (RECIPIENT,)),
        Identity(b"f" * 16, b"z" * 16, b"x" * 32, (RECIPIENT,)),
    ]
    assert len({IDENTITY.hash(), *(other.hash() for other in others)}) == 4


@given(st.binary(max_size=200), st.integers(80, 250))
@example(b"", 80)
def test_what_parses_is_written_the_same(change: bytes, at: int) -> None:
    data = put(RAW, at, change)
    try:
        identity = Identity.from_bytes(data)
    except CmkfsError:
        return
    assert identity.to_bytes() == data


@pytest.mark.parametrize(
    ("at", "new", "error"),
    [
        (0, b"X", Damaged),
        (8, b"\0\0", Damaged),
        (8, b"\0\2", UnknownFormat),
        (10, b"\0\1", UnknownFormat),
        (10, b"\x80\0", UnknownFormat),
        (12, b"\1", Damaged),
        (15, b"\1", Damaged),
        (80, b"\0\0", Damaged),
        (80, b"\0\x09", Damaged),
        (80, b"\0\2", Damaged),
        (82, b"\0", Damaged),
        (103, b"\xff\xff", Damaged),
        (3071, b"\1", Damaged),
    ],
)
def test_each_field_out_of_range(at: int, new: bytes, error: type[CmkfsError]) -> None:
    with pytest.raises(error):
        Identity.from_bytes(put(RAW, at, new))


@pytest.mark.parametrize("length", [0, 7, 82, IDENTITY_SIZE - 1])
def test_a_short_page_is_damage(length: int) -> None:
    with pytest.raises(Damaged):
        Identity.from_bytes(RAW[:length])


# -- slots -----------------------------------------------------------------------------------------


def test_the_fields_of_a_slot_lie_where_the_specification_says() -> None:
    body = SLOT.body()
    assert len(body) == SLOT_BODY
    assert body[:24] == bytes([0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 3, 1, 2, 0, 0]) + (5000).to_bytes(8)
    assert body[24:56] == bytes(32)
    ranges = [0, 1, 4, 5]
    assert body[56:88] == b"".join(number.to_bytes(8) for number in ranges)
    assert not any(body[88:])


SLOTS = st.builds(
    Slot,
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.sampled_from(State),
    st.integers(0, MAX_PLAIN_SIZE),
    st.lists(st.integers(1, 1000), max_size=2 * MAX_HOLE_RANGES).map(
        lambda steps: Holes(tuple((sum(steps[: at + 1]), sum(steps[: at + 2])) for at in range(0, len(steps) - 1, 2)))
    ),
)


@given(SLOTS)
def test_slots_round_trip(slot: Slot) -> None:
    assert Slot.from_body(slot.body()) == slot


@given(SLOTS, st.integers(0, SLOT_BODY - 1), st.integers(0, 255))
def test_a_slot_that_parses_is_written_the_same(slot: Slot, at: int, byte: int) -> None:
    body = put(slot.body(), at, bytes([byte]))
    try:
        assert Slot.from_body(body).body() == body
    except Damaged:
        assert body != slot.body()


def test_as_many_hole_ranges_as_fit() -> None:
    most = Holes(tuple((10 * number, 10 * number + 1) for number in range(MAX_HOLE_RANGES)))
    assert Slot.from_body(Slot(1, 0, State.DIRTY, 0, most).body()).holes == most
    with pytest.raises(ValueError, match="too many"):
        Slot(1, 0, State.DIRTY, 0, most.add(500, 501)).body()


@pytest.mark.parametrize(
    ("at", "new"),
    [
        (12, b"\0"),
        (12, b"\3"),
        (13, b"\x1b"),
        (13, b"\1"),  # a second range follows where zeros must be
        (13, b"\3"),  # an empty range
        (14, b"\1"),
        (24, b"\1"),
        (55, b"\1"),
        (64, bytes(8)),  # a range without blocks
        (72, (0).to_bytes(8)),  # not ascending
        (72, (1).to_bytes(8)),  # adjacent to the one before
        (80, b"\xff" * 8),
        (80, block_count(MAX_PLAIN_SIZE).to_bytes(8)),
        (479, b"\1"),
    ],
)
def test_each_field_of_a_slot_out_of_range(at: int, new: bytes) -> None:
    with pytest.raises(Damaged):
        Slot.from_body(put(SLOT.body(), at, new))


# -- pages -----------------------------------------------------------------------------------------


def page(*slots: Slot) -> bytes:
    return RAW + b"".join(slot.body() + bytes(32) for slot in slots)


def test_slots_lie_at_3072_and_3584() -> None:
    whole = page(SLOT, Slot(8, 3, State.DIRTY, 1))
    assert len(whole) == PAGE
    assert slot_bytes(whole, 0) == whole[3072:3584]
    assert slot_bytes(whole, 1) == whole[3584:]


def test_peek_gives_the_newest_that_parses() -> None:
    newer = Slot(8, 3, State.DIRTY, 1)
    assert peek_slot(page(SLOT, newer)) == newer
    assert peek_slot(page(newer, SLOT)) == newer
    assert peek_slot(put(page(SLOT, newer), 3584 + 12, b"\7")) == SLOT
    assert peek_slot(bytes(PAGE)) is None


@pytest.mark.parametrize("data", [b"", bytes(PAGE)])
def test_a_header_that_never_reached_the_disk(data: bytes) -> None:
    assert is_unwritten(data)


@pytest.mark.parametrize(
    "data", [RAW, bytes(PAGE - 1) + b"\1", b"\1" + bytes(PAGE - 1), b"\1", bytes(100), bytes(PAGE - 1)]
)
def test_a_header_that_did(data: bytes) -> None:
    assert not is_unwritten(data)

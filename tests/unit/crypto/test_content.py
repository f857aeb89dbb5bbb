"""Blocks: docs/format.md, 8.2. Whatever is not this block of this file at this time is damage."""

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from cmkfs.crypto import content
from cmkfs.crypto.content import ContentCipher
from cmkfs.crypto.xaes import Xaes
from cmkfs.errors import Damaged
from cmkfs.format.layout import BLOCK, PAGE

KEY, FILE_ID = b"k" * 32, b"f" * 16
PLAIN = bytes(range(256)) * 15 + bytes(208)


def cipher() -> ContentCipher:
    return ContentCipher(KEY, FILE_ID)


def test_a_block_is_what_the_specification_says() -> None:
    page = bytes(cipher().seal(5, b"hello", 9))
    assert len(page) == PAGE
    nonce, head = page[:24], page[24:32]
    assert head == b"\0\5" + b"\0\0" + b"\0\0\0\x09"
    raw = Xaes(KEY).derive(nonce[:12])
    associated = FILE_ID + (5).to_bytes(8) + head
    assert raw.decrypt(nonce[12:], page[32:], associated) == b"hello".ljust(BLOCK, b"\0")


@given(st.integers(1, 3 * BLOCK), st.integers(0, 2**40), st.integers(0, 2**32 - 1))
def test_round_trip(length: int, first: int, generation: int) -> None:
    plain = (PLAIN * 3)[:length]
    pages = cipher().seal(first, plain, generation)
    reader = cipher()
    opened = [reader.open(first + at // PAGE, pages[at : at + PAGE], generation) for at in range(0, len(pages), PAGE)]
    assert b"".join(one.plain[: one.length] for one in opened) == plain
    assert all(one.length == BLOCK for one in opened[:-1])
    assert {one.generation for one in opened} == {generation}
    assert all(len(one.plain) == BLOCK for one in opened)


@given(st.integers(0, BLOCK - 1), st.integers(0, 2 * BLOCK), st.integers(0, BLOCK))
def test_what_the_first_and_the_last_block_keep(before: int, length: int, after: int) -> None:
    after = min(after, -(before + length) % BLOCK)
    if before + length + after == 0:
        return
    plain = (PLAIN * 4)[: before + length + after]
    parts = plain[:before], plain[before : before + length], plain[before + length :]
    pages = cipher().seal(7, parts[1], 2, before=parts[0], after=parts[2])
    opened = [cipher().open(7 + at // PAGE, pages[at : at + PAGE], 2) for at in range(0, len(pages), PAGE)]
    assert b"".join(one.plain[: one.length] for one in opened) == plain


def test_full_blocks_in_a_row() -> None:
    pages, plain = cipher().seal(3, PLAIN * 3, 4), bytearray(3 * BLOCK)
    cipher().open_full(3, memoryview(pages), 4, memoryview(plain))
    assert plain == PLAIN * 3


@pytest.mark.parametrize("at", [0, 12, 24, 26, 28, 32, PAGE - 1])
@pytest.mark.parametrize("number", [0, 2])
def test_a_flipped_bit_in_a_row_of_full_blocks_is_damage(at: int, number: int) -> None:
    pages = cipher().seal(0, PLAIN * 3, 1)
    pages[number * PAGE + at] ^= 1
    with pytest.raises(Damaged, match=f"block {number} "):
        cipher().open_full(0, memoryview(pages), 1, memoryview(bytearray(3 * BLOCK)))


@pytest.mark.parametrize(("first", "newest"), [(1, 4), (0, 3)])
def test_a_row_of_full_blocks_in_another_place_or_of_a_later_time_is_damage(first: int, newest: int) -> None:
    pages = cipher().seal(0, PLAIN * 2, 4)
    with pytest.raises(Damaged):
        cipher().open_full(first, memoryview(pages), newest, memoryview(bytearray(2 * BLOCK)))


def test_a_short_block_in_a_row_of_full_ones_is_damage() -> None:
    pages = cipher().seal(0, PLAIN + PLAIN[:-1], 1)
    with pytest.raises(Damaged):
        cipher().open_full(0, memoryview(pages), 1, memoryview(bytearray(2 * BLOCK)))


@pytest.mark.parametrize("at", [*range(40), 100, 2048, PAGE - 17, PAGE - 16, PAGE - 1])
def test_a_flipped_bit_anywhere_is_damage(at: int) -> None:
    page = cipher().seal(0, PLAIN[:100], 1)
    page[at] ^= 1 << at % 8
    with pytest.raises(Damaged):
        cipher().open(0, page, 1)


def test_a_block_in_another_place_is_damage() -> None:
    pages = cipher().seal(0, PLAIN * 2, 1)
    for block, at in ((0, PAGE), (1, 0), (2, 0), (2**32, 0)):
        with pytest.raises(Damaged):
            cipher().open(block, pages[at : at + PAGE], 1)


def test_a_block_of_another_file_is_damage() -> None:
    page = ContentCipher(KEY, b"g" * 16).seal(0, PLAIN, 1)
    with pytest.raises(Damaged):
        cipher().open(0, page, 1)


def test_a_block_under_another_key_is_damage() -> None:
    page = ContentCipher(b"x" * 32, FILE_ID).seal(0, PLAIN, 1)
    with pytest.raises(Damaged):
        cipher().open(0, page, 1)


def test_a_block_of_an_earlier_generation_is_read_and_one_of_a_later_is_damage() -> None:
    page = cipher().seal(0, PLAIN, 5)
    assert cipher().open(0, page, 6).generation == 5
    assert cipher().open(0, page, 5).plain == PLAIN
    with pytest.raises(Damaged):
        cipher().open(0, page, 4)


def test_zeros_are_damage() -> None:
    with pytest.raises(Damaged):
        cipher().open(0, bytes(PAGE), 1)


@pytest.mark.parametrize(
    ("length", "flags", "plain"),
    [(0, 0, b""), (BLOCK + 1, 0, b""), (5, 1, b"hello"), (5, 0, b"hello!")],
)
def test_a_head_or_padding_out_of_range_is_damage_though_it_authenticates(
    length: int, flags: int, plain: bytes
) -> None:
    """Only somebody with the key can make these: the checks hold all the same."""
    head = length.to_bytes(2) + flags.to_bytes(2) + (1).to_bytes(4)
    raw = Xaes(KEY).derive(b"p" * 12)
    sealed = raw.encrypt(b"s" * 12, plain.ljust(BLOCK, b"\0"), FILE_ID + bytes(8) + head)
    with pytest.raises(Damaged):
        cipher().open(0, b"p" * 12 + b"s" * 12 + head + sealed, 1)


def test_no_nonce_is_used_twice() -> None:
    """One prefix for a session of writing, a random rest for each block."""
    one, two = cipher(), cipher()
    nonces = [bytes(page[:24]) for _ in range(50) for page in (one.seal(0, b"x", 1), two.seal(0, b"x", 1))]
    assert len(set(nonces)) == 100
    assert len({nonce[:12] for nonce in nonces}) == 2


def test_the_prefix_is_renewed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "BLOCKS_PER_PREFIX", 10)
    writer = cipher()
    prefixes = [bytes(writer.seal(0, PLAIN * count, 1)[:12]) for count in (4, 4, 4, 6, 10, 1)]
    assert len(set(prefixes)) == 4
    assert prefixes[0] == prefixes[1] != prefixes[2] == prefixes[3] != prefixes[4] != prefixes[5]
    assert content.BLOCKS_PER_PREFIX == 10


def test_blocks_per_prefix_is_that_of_the_specification() -> None:
    assert content.BLOCKS_PER_PREFIX == 2**24


def test_many_sessions_of_writing_are_read_with_few_derived_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    derived: list[bytes] = []
    real = Xaes.derive

    def derive(self: Xaes, prefix: bytes) -> AESGCM:
        derived.append(prefix)
        return real(self, prefix)

    pages = [cipher().seal(0, bytes([number]), 1) for number in range(40)]
    reader = cipher()
    monkeypatch.setattr(Xaes, "derive", derive)
    for number, page in enumerate([*pages, *pages[-20:]]):
        assert reader.open(0, page, 1).plain[0] == (number if number < 40 else number - 20)
    assert len(derived) == 40

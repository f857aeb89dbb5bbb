"""Where bytes are: docs/format.md, 8.3, with its worked sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmkfs.format.layout import (
    BLOCK,
    MAX_PLAIN_SIZE,
    PAGE,
    block_count,
    block_length,
    blocks_end,
    cipher_off,
    cipher_size,
    plain_size_at_least,
    plain_size_of,
    spans,
)

SIZES = st.integers(0, MAX_PLAIN_SIZE) | st.integers(0, 5 * BLOCK)


@pytest.mark.parametrize(
    ("plain", "blocks", "cipher"),
    [
        (0, 0, 4096),
        (1, 1, 8193),
        (4047, 1, 12239),
        (4048, 1, 8192),
        (4049, 2, 12289),
        (4096, 2, 12336),
        (2**20, 260, 1069200),
        (5 * 2**30, 1326263, 5432377888),
    ],
)
def test_the_sizes_of_the_specification(plain: int, blocks: int, cipher: int) -> None:
    assert block_count(plain) == blocks
    assert cipher_size(plain) == cipher
    assert plain_size_of(cipher) == plain


@given(SIZES)
def test_the_settled_length_tells_the_size(plain: int) -> None:
    assert plain_size_of(cipher_size(plain)) == plain
    assert plain_size_at_least(cipher_size(plain)) == plain


@given(st.integers(0, 4 * PAGE) | st.integers(0, 2**63 - 1))
def test_every_other_length_tells_none(cipher: int) -> None:
    plain = plain_size_of(cipher)
    if plain is None:
        assert plain_size_at_least(cipher) == max(0, cipher // PAGE - 1) * BLOCK
    elif plain % BLOCK == 0:
        assert cipher == PAGE * (1 + plain // BLOCK)
    else:
        assert cipher_size(plain) == cipher


@pytest.mark.parametrize("cipher", [0, 1, 4095, 4097, 4096 + 4048, 8191, 8192 + 4048, 12287])
def test_lengths_that_no_settled_file_has(cipher: int) -> None:
    assert plain_size_of(cipher) is None


def test_the_largest_size_fits_a_file_offset() -> None:
    assert cipher_size(MAX_PLAIN_SIZE) < 2**63
    assert cipher_size(MAX_PLAIN_SIZE + 1) < 2**63
    assert cipher_size(MAX_PLAIN_SIZE + 3 * BLOCK) >= 2**63


@given(SIZES)
def test_blocks_end_is_the_length_without_its_tail(plain: int) -> None:
    assert blocks_end(plain) == cipher_off(block_count(plain))
    assert cipher_size(plain) - blocks_end(plain) == plain % BLOCK


@given(st.integers(0, 4 * BLOCK), st.integers(0, 5))
def test_block_length_is_what_the_block_holds(plain: int, block: int) -> None:
    assert block_length(plain, block) == len(range(plain)[block * BLOCK : (block + 1) * BLOCK])


@given(st.integers(0, 10 * BLOCK), st.integers(0, 4 * BLOCK))
def test_spans_cover_the_request_once_and_in_order(plain_off: int, length: int) -> None:
    covered = [
        at
        for span in spans(plain_off, length)
        for at in range(span.block * BLOCK + span.start, span.block * BLOCK + span.stop)
    ]
    assert covered == list(range(plain_off, plain_off + length))
    for span in spans(plain_off, length):
        assert 0 <= span.start < span.stop <= BLOCK
        assert span.whole == (span.stop - span.start == BLOCK)

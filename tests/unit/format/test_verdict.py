"""The table of docs/format.md, 8.4, row by row: what slot and backing length say together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmkfs.errors import Damaged
from cmkfs.format.header import Slot, State
from cmkfs.format.layout import BLOCK, MAX_PLAIN_SIZE, PAGE, blocks_end, cipher_size, plain_size_at_least, plain_size_of
from cmkfs.format.verdict import Verdict, judge

SIZES = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 7]


def clean(size: int) -> Slot:
    return Slot(2, 1, State.CLEAN, size)


def dirty(floor: int) -> Slot:
    return Slot(2, 1, State.DIRTY, floor)


def lengths() -> list[int]:
    """Around every boundary that there is."""
    return sorted(
        {
            near
            for page in range(7)
            for edge in (page * PAGE, page * PAGE + 4048)
            for near in range(edge - 2, edge + 9)
            if near >= 0
        }
    )


@pytest.mark.parametrize("recovering", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_clean_and_equal_is_as_it_is(size: int, recovering: bool) -> None:
    assert judge(clean(size), cipher_size(size), recovering=recovering) is Verdict.AS_IS


@pytest.mark.parametrize("size", SIZES)
def test_clean_and_less_is_damage_always(size: int) -> None:
    for length in lengths():
        told = plain_size_of(length)
        if length < blocks_end(size) or (told is not None and told < size):
            for recovering in (True, False):
                with pytest.raises(Damaged, match="truncated"):
                    judge(clean(size), length, recovering=recovering)


@pytest.mark.parametrize("size", SIZES)
def test_clean_and_more_is_cut_only_while_recovering(size: int) -> None:
    for length in lengths():
        told = plain_size_of(length)
        if length >= blocks_end(size) and (told is None or told > size):
            assert judge(clean(size), length, recovering=True) is Verdict.CUT
            with pytest.raises(Damaged, match="extended"):
                judge(clean(size), length, recovering=False)


@pytest.mark.parametrize("recovering", [True, False])
@pytest.mark.parametrize("floor", SIZES)
def test_dirty_is_scanned_unless_it_says_less_than_the_floor(floor: int, recovering: bool) -> None:
    for length in lengths():
        if plain_size_at_least(length) < floor:
            with pytest.raises(Damaged, match="below"):
                judge(dirty(floor), length, recovering=recovering)
        else:
            assert judge(dirty(floor), length, recovering=recovering) is Verdict.SCAN


@pytest.mark.parametrize("floor", SIZES)
def test_a_dirty_backing_may_end_with_its_last_block(floor: int) -> None:
    assert judge(dirty(floor), blocks_end(floor), recovering=False) is Verdict.SCAN


@pytest.mark.parametrize("state", State)
def test_a_size_that_no_backing_can_have_is_damage(state: State) -> None:
    for size in (MAX_PLAIN_SIZE + BLOCK, 2**63 - 1, 2**64 - 1):
        with pytest.raises(Damaged):
            judge(Slot(1, 0, state, size), 2**62, recovering=True)


@given(st.integers(0, 6 * PAGE), st.integers(0, 4 * BLOCK), st.sampled_from(State), st.booleans())
def test_every_combination_has_one_answer(length: int, size: int, state: State, recovering: bool) -> None:
    try:
        verdict = judge(Slot(1, 0, state, size), length, recovering=recovering)
    except Damaged:
        return
    assert (verdict is Verdict.SCAN) == (state is State.DIRTY)
    assert (verdict is Verdict.CUT) <= recovering

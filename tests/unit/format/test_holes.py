"""`Holes` against plain sets of block numbers."""

from hypothesis import given
from hypothesis import strategies as st

from cmkfs.format.holes import Holes

RANGES = st.tuples(st.integers(0, 30), st.integers(0, 8)).map(lambda pair: (pair[0], pair[0] + pair[1]))
CHANGES = st.lists(st.tuples(st.booleans(), RANGES), max_size=20)


def build(changes: list[tuple[bool, tuple[int, int]]]) -> tuple[Holes, set[int]]:
    """The same additions and removals on both."""
    holes, model = Holes.NONE, set[int]()
    for add, (first, stop) in changes:
        holes = holes.add(first, stop) if add else holes.remove(first, stop)
        model = model | {*range(first, stop)} if add else model - {*range(first, stop)}
    return holes, model


def blocks(holes: Holes) -> set[int]:
    return {block for first, stop in holes.ranges for block in range(first, stop)}


@given(CHANGES)
def test_add_and_remove_are_those_of_a_set(changes: list[tuple[bool, tuple[int, int]]]) -> None:
    holes, model = build(changes)
    assert blocks(holes) == model
    assert {block for block in range(45) if block in holes} == model
    assert bool(holes) == bool(model)


@given(CHANGES)
def test_ranges_are_ascending_disjoint_and_not_adjacent(changes: list[tuple[bool, tuple[int, int]]]) -> None:
    holes, _ = build(changes)
    assert all(first < stop for first, stop in holes.ranges)
    assert all(one[1] < two[0] for one, two in zip(holes.ranges, holes.ranges[1:], strict=False))


@given(CHANGES, CHANGES)
def test_union_and_covers(one: list[tuple[bool, tuple[int, int]]], two: list[tuple[bool, tuple[int, int]]]) -> None:
    first, model = build(one)
    second, other = build(two)
    assert blocks(first.union(second)) == model | other
    assert first.covers(second) == (model >= other)


@given(CHANGES, st.integers(1, 5))
def test_at_most_only_adds_and_fits(changes: list[tuple[bool, tuple[int, int]]], count: int) -> None:
    holes, model = build(changes)
    merged = holes.at_most(count)
    assert len(merged.ranges) <= count
    assert blocks(merged) >= model
    assert len(holes.ranges) > count or merged == holes


def test_the_smallest_gap_is_merged_first_and_the_earlier_of_two() -> None:
    holes = Holes(((0, 1), (5, 6), (8, 9), (11, 12)))
    assert holes.at_most(3).ranges == ((0, 1), (5, 9), (11, 12))
    assert holes.at_most(2).ranges == ((0, 1), (5, 12))


def test_a_hole_of_the_largest_file() -> None:
    holes = Holes.NONE.add(0, 2**52)
    assert 2**52 - 1 in holes
    assert 2**52 not in holes
    assert holes.remove(7, 2**63).ranges == ((0, 7),)

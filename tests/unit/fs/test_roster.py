"""The roster: what another process reads in it is what was added and not removed."""

import os
import time
from array import array
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmkfs.fs.roster import NUMBER_SIZE, STEP, Roster


def read(roster: Roster) -> Counter[int]:
    """As the guardian reads it."""
    size = os.fstat(roster.fd).st_size
    return Counter(number for number in array("Q", os.pread(roster.fd, size, 0)) if number)


@given(st.lists(st.integers(1, 2**64 - 1), max_size=50), st.data())
def test_holds_what_was_added_and_not_removed(numbers: list[int], data: st.DataObject) -> None:
    roster = Roster()
    try:
        places = [roster.add(number) for number in numbers]
        assert len(set(places)) == len(places)
        gone = data.draw(st.sets(st.integers(0, len(numbers) - 1))) if numbers else set()
        for index in gone:
            roster.remove(places[index])
        assert read(roster) == Counter(number for index, number in enumerate(numbers) if index not in gone)
    finally:
        roster.close()


def test_grows_keeps_what_is_there_and_uses_free_places_again() -> None:
    roster = Roster()
    places = [roster.add(number) for number in range(1, 100_001)]
    size = os.fstat(roster.fd).st_size
    assert size <= (100_000 + STEP) * NUMBER_SIZE
    assert read(roster) == Counter(range(1, 100_001))
    for _ in range(3):
        for place in places:
            roster.remove(place)
        assert not read(roster)
        places = [roster.add(number) for number in range(1, 100_001)]
    assert os.fstat(roster.fd).st_size == size
    roster.close()
    roster.remove(places[0])  # at the end of a mount inodes may go after it
    roster.close()


@pytest.mark.alone
def test_costs_far_less_than_a_microsecond() -> None:
    roster = Roster()
    best = min(_seconds_per_pair(roster) for _ in range(5))
    roster.close()
    assert best < 1e-6


def _seconds_per_pair(roster: Roster) -> float:
    began = time.perf_counter()
    for number in range(1, 10_001):
        roster.remove(roster.add(number))
    return (time.perf_counter() - began) / 10_000

"""P3 in the small: states that a power cut may leave, each recovered by the code that mounts use.

`scripts/crash-model` runs the same for as long as one likes.
"""

import pytest

from cmkfs.maintenance.readers import Readers

from .crash import Campaign, Oracle, Truncate, Violation, Write, campaign
from .harness import scratch


def test_what_was_synced_survives_every_cut() -> None:
    with scratch() as directory:
        assert campaign(states=600, seed=1, directory=directory)["states"] >= 600


@pytest.mark.parametrize("seed", [23, 5054, 10233, 779326])
def test_cuts_that_once_broke_the_promise(seed: int) -> None:
    """A clean slot ahead of the length; cut-off holes and lost writes that came back; remains of a block in a hole."""
    with scratch() as directory:
        ran = Campaign.begin(directory)
        ran.run(seed)
        ran.end()


def test_check_calls_no_cut_damage() -> None:
    with scratch() as directory, Readers() as readers:
        ran = Campaign.begin(directory)
        ran.readers = readers
        for seed in range(100, 116):
            ran.run(seed)
        ran.end()
    assert ran.counts["checked"] == ran.counts["states"] + 1 > 80


@pytest.mark.parametrize(
    ("oracle", "found"),
    [
        (Oracle(b"abc"), b"ab"),
        (Oracle(b"abc"), b"abd"),
        (Oracle(b"abc"), b"abc\0"),
        (Oracle(b"abc", (Write(1, 1, 7),)), b"a\0c"),
        (Oracle(b"abc", (Write(5, 1, 7),)), b"abc\0\0\x08"),
        (Oracle(b"abc", (Truncate(2),)), b"a"),
        (Oracle(b"abc", (Truncate(1), Write(1, 1, 7))), b"axc"),
    ],
)
def test_the_oracle_sees(oracle: Oracle, found: bytes) -> None:
    with pytest.raises(Violation):
        oracle.check(found)


@pytest.mark.parametrize(
    ("oracle", "found"),
    [
        (Oracle(b"abc"), b"abc"),
        (Oracle(b"abc", (Write(1, 1, 7),)), b"abc"),
        (Oracle(b"abc", (Write(1, 1, 7),)), b"a\x07c"),
        (Oracle(b"abc", (Write(5, 1, 7),)), b"abc"),
        (Oracle(b"abc", (Write(5, 1, 7),)), b"abc\0\0\x07"),
        (Oracle(b"abc", (Truncate(2),)), b"ab"),
        (Oracle(b"abc", (Truncate(2),)), b"abc"),
        (Oracle(b"abc", (Truncate(1), Write(1, 1, 7))), b"a\x07c"),
    ],
)
def test_the_oracle_allows(oracle: Oracle, found: bytes) -> None:
    oracle.check(found)

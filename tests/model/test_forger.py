"""P2 in the small: random changes to a vault at rest, made without a key. `scripts/forge` does it at length."""

from collections import Counter
from collections.abc import Iterator

import pytest

from cmkfs.maintenance.readers import Readers

from .forger import CHANGES, Error, Forger, Forgery, Licence, Seen, check_and_repair, compare
from .harness import scratch


@pytest.fixture(scope="module")
def forger() -> Iterator[Forger]:
    with scratch() as directory:
        yield Forger(directory)


@pytest.mark.parametrize("first", range(0, 300, 100))
def test_no_change_gives_a_reader_what_was_not_stored(forger: Forger, first: int) -> None:
    for seed in range(first, first + 100):
        forger.attempt(seed)


def test_the_changes_reach_readers(forger: Forger) -> None:
    """Most changed vaults still mount: the comparison is not of empty trees."""
    before = dict(forger.outcomes)
    for seed in range(1000, 1080):
        forger.attempt(seed)
    refused = forger.outcomes["refused"] - before["refused"]
    assert 80 > 6 * refused > 0
    assert len(forger.stored) == 14
    assert len(set(CHANGES)) == 21


@pytest.mark.parametrize(
    "seen",
    [
        Seen("file", 3, [b"abd"]),
        Seen("file", 2, [b"ab"]),
        Seen("file", 3, [b"abc"], xattrs={b"user.one": b"2"}),
        Seen("symlink", target=b"abc"),
    ],
)
def test_the_comparison_sees(seen: Seen) -> None:
    stored = {(b"a",): Seen("file", 3, [b"abc"], xattrs={b"user.one": b"1"})}
    with pytest.raises(Forgery):
        compare(stored, stored, {(b"a",): seen}, Licence())
    with pytest.raises(Forgery):
        compare(stored, stored, {(b"b",): stored[(b"a",)]}, Licence())
    compare(stored, stored, {(b"a",): Error("EIO")}, Licence())


@pytest.fixture(scope="module")
def readers() -> Iterator[Readers]:
    with Readers() as made:
        yield made


@pytest.mark.parametrize("first", range(0, 100, 50))
def test_check_finds_each_change_and_repair_ends_clean(forger: Forger, readers: Readers, first: int) -> None:
    outcomes = Counter(check_and_repair(forger, readers, seed) for seed in range(first, first + 50))
    assert outcomes["mended"] > 25

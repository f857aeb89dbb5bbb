"""Places against a list with the same rules."""

import random
import stat

import pytest

from cmkfs.fs.inode import Ino, Inode
from cmkfs.fs.places import Places

TOPS = [Inode(Ino(number), stat.S_IFDIR) for number in (2, 3)]


@pytest.mark.parametrize("seed", range(20))
def test_the_same_as_a_list(seed: int) -> None:
    rng = random.Random(seed)
    places, known = Places(), list[tuple[Inode, bytes]]()
    for _ in range(200):
        place = (rng.choice(TOPS), rng.choice([b"a", b"b", b"c"]))
        known = [one for one in known if one != place]
        if rng.random() < 0.5:
            places.add(place)
            known.append(place)
        else:
            places.drop(place)
        assert list(places) == known
        assert (len(places), bool(places)) == (len(known), bool(known))
        if known:
            assert places.newest == known[-1]
            assert places.is_at(known[-1])
    places.replace((TOPS[0], b"only"))
    assert list(places) == [(TOPS[0], b"only")]


def test_nowhere_is_an_error() -> None:
    with pytest.raises(IndexError):
        print(Places().newest)


def test_as_many_links_as_ext4_has() -> None:
    """65,000 one after the other: with a search for each it took minutes, in which nobody else was served."""
    places = Places()
    names = [(TOPS[0], b"%d" % number) for number in range(65_000)]
    for turn in (names, names[::-1]):
        for place in turn:
            places.add(place)
    for place in names[:-1]:
        places.drop(place)
    assert list(places) == [names[-1]]

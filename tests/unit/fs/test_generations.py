"""A number has another generation in each life, whatever happened in the one before."""

from cmkfs.fs.generations import Generations


def test_each_life_has_another_one() -> None:
    generations = Generations()
    seen = []
    for _ in range(5):
        seen.append(generations.of(7))
        assert generations.of(7) == seen[-1]
        generations.ended(7)
    assert len(set(seen)) == 5
    assert generations.of(8) == seen[0]


def test_a_generation_that_went_up_in_its_life_is_not_given_again() -> None:
    generations = Generations()
    generations.ended(7, generation=5)
    assert generations.of(7) == 6


def test_what_is_forgotten_is_not_given_again() -> None:
    generations = Generations(remembered=3)
    given: dict[int, set[int]] = {number: {generations.of(number)} for number in range(10)}
    for number in [0, 1, 2, 0, 0, 3, 4, 5, 6, 0, 1, 9, 9, 3]:
        generations.ended(number)
        now = generations.of(number)
        assert now not in given[number]
        given[number].add(now)

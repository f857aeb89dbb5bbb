"""Sets of blocks as ascending ranges: where a page of zeros may read as zeros (docs/format.md, 8.2).

Immutable: every operation gives a new set, so a slot that was sealed keeps what it was sealed with.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Holes:
    """Ascending, disjoint, not adjacent ranges `[first, stop)` of block numbers."""

    ranges: tuple[tuple[int, int], ...] = ()

    NONE: ClassVar["Holes"]

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __contains__(self, block: int) -> bool:
        at = bisect_right(self.ranges, (block, 2**64)) - 1
        return at >= 0 and block < self.ranges[at][1]

    def stop_of(self, block: int) -> int:
        """Where the range ends that holds `block`; `block` itself if none does."""
        at = bisect_right(self.ranges, (block, 2**64)) - 1
        return max(block, self.ranges[at][1]) if at >= 0 else block

    def add(self, first: int, stop: int) -> "Holes":
        """With the blocks `first` to `stop - 1` too."""
        return self if first >= stop else Holes(_joined([*self.ranges, (first, stop)]))

    def remove(self, first: int, stop: int) -> "Holes":
        """Without the blocks `first` to `stop - 1`."""
        if first >= stop or not self.ranges or self.ranges[-1][1] <= first or self.ranges[0][0] >= stop:
            return self
        kept = []
        for low, high in self.ranges:
            if low < first:
                kept.append((low, min(high, first)))
            if high > stop:
                kept.append((max(low, stop), high))
        return Holes(tuple(kept))

    def union(self, other: "Holes") -> "Holes":
        """The blocks of either."""
        return self if other.ranges == self.ranges else Holes(_joined([*self.ranges, *other.ranges]))

    def covers(self, other: "Holes") -> bool:
        """True if every block of `other` is in this set."""
        return self.union(other).ranges == self.ranges

    def at_most(self, count: int) -> "Holes":
        """At most `count` ranges: those with the smallest gap between them are merged, the earlier one first."""
        ranges = list(self.ranges)
        while len(ranges) > count:
            gaps = [ranges[i + 1][0] - ranges[i][1] for i in range(len(ranges) - 1)]
            at = gaps.index(min(gaps))
            ranges[at : at + 2] = [(ranges[at][0], ranges[at + 1][1])]
        return Holes(tuple(ranges))


def _joined(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    joined: list[tuple[int, int]] = []
    for first, stop in sorted(ranges):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((first, stop))
    return tuple(joined)


Holes.NONE = Holes()

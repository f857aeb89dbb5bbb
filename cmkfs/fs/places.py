"""Where an inode was seen: one place for most, as many as it has links for a file, each at the same cost."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmkfs.fs.inode import Inode

Place = tuple["Inode", bytes]
"""A directory and the backing name in it."""


class Places:
    """An ordered set of places, the newest last; true if there are any."""

    __slots__ = ("_newest", "_older")

    def __init__(self) -> None:
        self._newest: Place | None = None
        self._older: dict[Place, None] | None = None

    @property
    def newest(self) -> Place:
        """The one that was added last. Raises IndexError if there is none."""
        if self._newest is None:
            raise IndexError("an inode without a place")
        return self._newest

    def is_at(self, place: Place) -> bool:
        """True if that is the newest."""
        return self._newest == place

    def add(self, place: Place) -> None:
        """It is the newest from now on."""
        if self._newest is not None and self._newest != place:
            if self._older is None:
                self._older = {}
            self._older.pop(place, None)
            self._older[self._newest] = None
        self._newest = place

    def replace(self, place: Place) -> None:
        """It is the only one from now on."""
        self._newest, self._older = place, None

    def drop(self, place: Place) -> None:
        """It is none any more, if it was one."""
        if self._newest == place:
            self._newest = self._older.popitem()[0] if self._older else None
        elif self._older is not None:
            self._older.pop(place, None)

    def __len__(self) -> int:
        return 0 if self._newest is None else 1 + len(self._older or ())

    def __iter__(self) -> Iterator[Place]:
        yield from self._older or ()
        if self._newest is not None:
            yield self._newest

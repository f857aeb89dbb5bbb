"""The state slots of one open file: what its header says, and how it goes from clean to dirty and back.

docs/format.md, 8.1 and 8.5. Dirty slots are written alternately, each over the older one; clean ones
to both places, once everything else is durable.
"""

from dataclasses import dataclass

from cmkfs.crypto.dek import FileKey, ReadSlots
from cmkfs.format.header import MAX_HOLE_RANGES, SLOT_OFFSETS, Identity, Slot, State
from cmkfs.format.holes import Holes
from cmkfs.fs.backing import Backing


def new_header(identity: Identity, key: FileKey) -> bytes:
    """The header page of an empty file, which says `NEW_FILE`."""
    return identity.to_bytes() + key.first_slots()


@dataclass(frozen=True, slots=True)
class SealedClean:
    """Both slots, clean, sealed while the key was there; good if the file has not changed since `changes`."""

    slot: Slot
    data: bytes
    changes: int


class Slots:
    """The newest slot of a file, and the only code that writes the next one."""

    __slots__ = ("_backing", "_fd", "_number", "_sequence", "floor", "generation", "listed", "outdated", "state")

    def __init__(self, backing: Backing, fd: int, found: ReadSlots) -> None:
        self._backing = backing
        self._fd = fd
        self.take(found)

    def take(self, found: ReadSlots) -> None:
        """Go on from what a header says."""
        slot = found.slot
        self.state = slot.state
        self.floor = slot.size
        self.generation = slot.generation
        self.listed: Holes = slot.holes
        self.outdated = False
        """True if the slot on the disk lists holes beyond the end of the file."""
        self._sequence = slot.sequence
        self._number = found.number

    @property
    def dirty(self) -> bool:
        """True while the size is a floor and the blocks say what there is."""
        return self.state is State.DIRTY

    def go_dirty(self, key: FileKey, floor: int, holes: Holes) -> None:
        """From clean to dirty, before the first block that changes: one generation on. Raises OSError, still clean."""
        before = self.floor, self.generation, self.state
        self.floor, self.generation, self.state = floor, self.generation + 1, State.DIRTY
        try:
            self.write_dirty(key, holes)
        except OSError:
            self.floor, self.generation, self.state = before
            raise

    def write_dirty(self, key: FileKey, holes: Holes) -> None:
        """Say the floor and all holes, filled ones too: what fills them may be lost while unsynced."""
        listed = self.listed.union(holes).at_most(MAX_HOLE_RANGES)
        slot = Slot(self._sequence + 1, self.generation, State.DIRTY, self.floor, listed)
        self._write(slot, key.seal_slot(1 - self._number, slot))

    def cut_list(self, blocks: int) -> None:
        """The file was cut to `blocks`: holes beyond are not listed any more, or what is lost there would be a hole."""
        within = self.listed.remove(blocks, 2**63)
        self.outdated = self.outdated or within != self.listed
        self.listed = within

    def seal_clean(self, key: FileKey, size: int, holes: Holes, changes: int) -> SealedClean:
        """The clean slots for the file as it is now; `write_clean` writes them, perhaps when the key is gone.

        Both slots become clean: an old dirty one beside a clean one would be a floor, and holes, of long ago for
        whoever damages the clean one.
        """
        listed = holes.at_most(MAX_HOLE_RANGES)
        first, second = 1 - self._number, self._number
        slots = {
            number: Slot(self._sequence + 1 + place, self.generation, State.CLEAN, size, listed)
            for place, number in enumerate((first, second))
        }
        data = b"".join(key.seal_slot(number, slots[number]) for number in (0, 1))
        return SealedClean(slots[second], data, changes)

    def follows(self, sealed: SealedClean) -> bool:
        """True if no slot was written since this one was sealed."""
        return sealed.slot.sequence == self._sequence + 2

    def write_clean(self, sealed: SealedClean) -> None:
        """From dirty to clean, once everything else is durable. The slot itself is not synced: that loses nothing."""
        self._backing.overwrite(self._fd, sealed.data, SLOT_OFFSETS[0])
        self._sequence, self.listed, self.outdated = sealed.slot.sequence, sealed.slot.holes, False
        self.state, self.floor = State.CLEAN, sealed.slot.size

    def _write(self, slot: Slot, data: bytes) -> None:
        number = 1 - self._number
        self._backing.overwrite(self._fd, data, SLOT_OFFSETS[number])
        self._number, self._sequence, self.listed = number, slot.sequence, slot.holes
        self.outdated = False

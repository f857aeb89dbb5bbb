"""What the slot that counts and the backing length say together: the table of docs/format.md, 8.4.

Pure: it decides, `fs.opening` reads and mends.
"""

from enum import Enum

from cmkfs.errors import Damaged
from cmkfs.format.header import Slot, State
from cmkfs.format.layout import blocks_end, plain_size_at_least, plain_size_of


class Verdict(Enum):
    """AS_IS: the slot's size is the file's. CUT: so it is, but what lies beyond must go first. SCAN: find the end."""

    AS_IS = "as is"
    CUT = "cut"
    SCAN = "scan"


def judge(slot: Slot, backing_size: int, *, recovering: bool) -> Verdict:
    """The verdict on a file at its first open. Raises Damaged where the table says EIO.

    While recovering, a settled file is cut too: its last block may be longer than the size.
    """
    told = plain_size_of(backing_size)
    if slot.state is State.DIRTY:
        if plain_size_at_least(backing_size) < slot.size:
            raise Damaged("the file was truncated below the last size known durable")
        return Verdict.SCAN
    if told == slot.size:
        return Verdict.AS_IS
    if backing_size < blocks_end(slot.size) or (told is not None and told < slot.size):
        raise Damaged("the file was truncated")
    if not recovering:
        raise Damaged("the file was extended")
    return Verdict.CUT

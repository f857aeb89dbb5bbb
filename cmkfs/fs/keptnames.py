"""Names that the kernel goes by without asking although it should: those right in the root of a zone.

On its way through a directory the kernel asks for the directory's attributes, and that is where a locked zone, or the
policy, stops it. But the attributes of a zone's root are told by the zone around it, and those of the mount point
always. So a name in such a directory, once cached, would lead to what the kernel has cached of its inode: the size
and the times, for programs that ask for these alone (statx(2)), and an O_PATH descriptor.
"""

from collections.abc import Iterable
from typing import Final

import trio

from cmkfs.errors import CmkfsError
from cmkfs.fs.directory import plain_name
from cmkfs.fs.inode import ROOT_INO, Inode
from cmkfs.fs.inodes import InodeTable
from cmkfs.keys.zone import Zone

_AT_ONCE: Final = 500
"""Inodes that are looked at without letting requests in between: some 0.1 ms."""


def is_zone_root(directory: Inode) -> bool:
    """Are the attributes of this directory told by another zone than that of what is in it, or always?"""
    if directory.ino == ROOT_INO:
        return True
    above = directory.parent
    if above is None or above.directory is None or directory.directory is None:
        return False
    return above.directory.zone is not directory.directory.zone


async def names_in_roots(inodes: InodeTable, zones: Iterable[Zone], found: list[tuple[int, bytes]]) -> None:
    """Fill `found` with directory and plain name of what is right in the roots of these zones and known to the kernel.

    Without directories: they are asked for by everybody who goes through them, and an expired name that is refused
    takes from who works in the directory the path to it, and unmounts what is mounted there. The keys must be there
    still; requests are served meanwhile.
    """
    among = frozenset(zones)
    for number, inode in enumerate(inodes):
        if number % _AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
        if inode.is_dir or not inode.lookups:
            continue
        for parent, entry in inode.places:
            if not is_zone_root(parent) or parent.directory is None or parent.directory.zone not in among:
                continue
            await trio.lowlevel.checkpoint()
            try:
                keys = parent.directory.zone.keys_to_settle()
                found.append((int(parent.ino), plain_name(parent.directory, inodes.dir_fd(parent), entry, keys)))
            except (CmkfsError, OSError):
                continue  # it has gone meanwhile: a name that nothing answers to leads nowhere

"""Symlink targets in the vault: sealed, and cut into parts where one symlink cannot hold them (docs/format.md, 7)."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from cmkfs.crypto.zonekeys import MAX_TARGET, TARGET_OVERHEAD
from cmkfs.errors import Damaged
from cmkfs.format import b64
from cmkfs.keys.pool import random_id
from cmkfs.keys.zone import Zone

log = logging.getLogger(__name__)

LINKS_DIR = b"cmkfs.links"
_PART = 1000
_SHORTEST_SEALED = 44


class Symlinks:
    """Reads and makes symlinks; parts lie in one directory of the vault, found by random ids, not by names."""

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd

    def seal(self, zone: Zone, target: bytes) -> bytes:
        """The backing target for a new symlink; parts, if it needs any, are made here."""
        sealed = zone.keys.seal_target(target)
        if len(sealed) <= _PART:
            return sealed
        link_id = b64.encode(random_id())
        parts = [sealed[at : at + _PART] for at in range(0, len(sealed), _PART)]
        with self._links() as links:
            for number, part in enumerate(parts):
                os.symlink(part, _part(link_id, number), dir_fd=links)
        return b".%b.%d.%d" % (link_id, len(parts), len(target))

    def open(self, zone: Zone, backing_target: bytes) -> bytes:
        """The plain target. Raises Damaged."""
        if not self.has_parts(backing_target):
            if len(backing_target) > _PART:
                raise Damaged("a symlink target in one piece that is too long for one")
            return zone.keys.open_target(backing_target)
        link_id, count, length = _parse(backing_target)
        try:
            with self._links() as links:
                parts = [os.readlink(_part(link_id, number), dir_fd=links) for number in range(count)]
        except OSError as error:
            raise Damaged("a part of a long symlink target is missing") from error
        if any(len(part) != _PART for part in parts[:-1]):
            raise Damaged("a part of a long symlink target has the wrong length")
        target = zone.keys.open_target(b"".join(parts))
        if len(target) != length:
            raise Damaged("a long symlink target has another length than told")
        return target

    def lacks_parts(self, backing_target: bytes) -> bool:
        """True if a part of the target is not there: after a crash it was never made. Raises Damaged."""
        if not self.has_parts(backing_target):
            return False
        link_id, count, _ = _parse(backing_target)
        with self._links() as links:
            return not all(_is_there(_part(link_id, number), links) for number in range(count))

    def remove_parts(self, backing_target: bytes) -> None:
        """The last link is gone: so are its parts. One that is gone already is no error."""
        if not self.has_parts(backing_target):
            return
        try:
            link_id, count, _ = _parse(backing_target)
        except Damaged:
            return  # nothing that this vault made: there are no parts to remove
        try:
            with self._links() as links:
                for number in range(count):
                    os.unlink(_part(link_id, number), dir_fd=links)
        except (Damaged, OSError) as error:
            log.warning("parts of a symlink that is gone stay behind: %s", error)

    @staticmethod
    def has_parts(backing_target: bytes) -> bool:
        """True for a target that one symlink cannot hold."""
        return backing_target.startswith(b".")

    @staticmethod
    def plain_length(backing_size: int, dir_fd: int, name: bytes) -> int:
        """The length of the plain target, as `stat` tells it."""
        if backing_size >= _SHORTEST_SEALED:
            return backing_size * 3 // 4 - TARGET_OVERHEAD
        try:
            return _parse(os.readlink(name, dir_fd=dir_fd))[2]
        except Damaged:
            return 0  # readlink will say EIO

    @contextmanager
    def _links(self) -> Iterator[int]:
        """The directory of the parts. Raises Damaged if there is something else in its place."""
        try:
            fd = os.open(LINKS_DIR, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._root_fd)
        except OSError as error:
            raise Damaged("the vault has no directory for long symlink targets") from error
        try:
            yield fd
        finally:
            os.close(fd)


def _is_there(name: bytes, dir_fd: int) -> bool:
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _part(link_id: bytes, number: int) -> bytes:
    return b"%b.%d" % (link_id, number)


def _parse(backing_target: bytes) -> tuple[bytes, int, int]:
    fields = backing_target.split(b".")
    if len(fields) != 4 or fields[0] or len(b64.decode(fields[1])) != 16:
        raise Damaged("a symlink in the vault that is none")
    if not (fields[2].isdigit() and fields[3].isdigit()):
        raise Damaged("a symlink in the vault that is none")
    count, length = int(fields[2]), int(fields[3])
    canonical = b".%b.%d.%d" % (fields[1], count, length)
    if backing_target != canonical or not 2 <= count <= 8 or not 1 <= length <= MAX_TARGET:
        raise Damaged("a symlink in the vault that is none")
    return fields[1], count, length

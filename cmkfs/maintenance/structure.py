"""What can be judged of a vault without its keys: shapes, lengths and ids that are in the clear.

Nothing here is authenticated; it tells a vault that is half there from one whose key is away.
"""

import os
import stat

from cmkfs.crypto.zonekeys import MAX_NAME, SIV_SIZE, name_hash
from cmkfs.errors import CmkfsError, Damaged
from cmkfs.format import b64
from cmkfs.format.header import Identity, State, is_unwritten, peek_slot
from cmkfs.format.layout import PAGE, plain_size_at_least, plain_size_of
from cmkfs.format.vault import ID_SIZE
from cmkfs.fs.directory import DIR_ID, LONG_PREFIX, OWN_PREFIX, SIDECAR_PREFIX
from cmkfs.fs.inode import Inode
from cmkfs.fs.inodes import InodeTable
from cmkfs.maintenance.findings import Finding, Place, Remedy, Report


def check_tree(inodes: InodeTable, top: Inode, path: bytes, report: Report) -> None:
    """Look at everything below `top`; what is wrong goes to `report`."""
    waiting = [(top, path)]
    ids: dict[bytes, int] = {}
    while waiting:
        inode, path = waiting.pop()
        report.directories += 1
        fd = inodes.open(inode, os.O_RDONLY)
        try:
            if not (report.recovery_pending and is_empty(inodes, inode)):
                _check_id(fd, inode, path, report)
            for entry in sorted(os.fsencode(name) for name in os.listdir(fd)):
                if entry.startswith(OWN_PREFIX):
                    continue
                place = Place(inode, entry, path.rstrip(b"/") + b"/?" + entry, named=False)
                found = os.stat(entry, dir_fd=fd, follow_symlinks=False)
                try:
                    _check_name(fd, entry)
                    if stat.S_ISDIR(found.st_mode):
                        waiting.append((inodes.learn(found, inode, entry), place.path))
                    elif stat.S_ISREG(found.st_mode):
                        report.files += 1
                        _check_file(fd, entry, found, ids, recovering=report.recovery_pending)
                except (CmkfsError, OSError) as error:
                    _damage(report, place, str(error))
        finally:
            os.close(fd)


def is_empty(inodes: InodeTable, directory: Inode) -> bool:
    """True if not even its id is in a directory: a power cut came before it was made, the next mount removes it."""
    fd = inodes.open(directory, os.O_RDONLY)
    try:
        return not os.listdir(fd)
    finally:
        os.close(fd)


def _check_id(fd: int, inode: Inode, path: bytes, report: Report) -> None:
    try:
        sealed = b64.decode(os.readlink(DIR_ID, dir_fd=fd))
        if len(sealed) != ID_SIZE + SIV_SIZE + ID_SIZE:
            raise Damaged("a directory id of the wrong length")
    except OSError:
        _damage(report, Place(inode, DIR_ID, path, named=True), "a directory without its id")
    except Damaged as error:
        _damage(report, Place(inode, DIR_ID, path, named=True), str(error))


def _check_name(fd: int, entry: bytes) -> None:
    sealed = entry
    if entry.startswith(LONG_PREFIX):
        try:
            sealed = os.readlink(SIDECAR_PREFIX + entry[len(LONG_PREFIX) :], dir_fd=fd)
        except OSError:
            raise Damaged("a long name without its sidecar") from None
        if len(sealed) <= MAX_NAME or name_hash(sealed) != entry[len(LONG_PREFIX) :]:
            raise Damaged("a long name whose sidecar belongs to another")
    if len(b64.decode(sealed)) % SIV_SIZE or len(b64.decode(sealed)) < 2 * SIV_SIZE:
        raise Damaged("a name of a length that none has")


def _check_file(dir_fd: int, entry: bytes, found: os.stat_result, ids: dict[bytes, int], *, recovering: bool) -> None:
    fd = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        page = os.pread(fd, PAGE, 0)
    finally:
        os.close(fd)
    if is_unwritten(page) and recovering:
        return
    identity = Identity.from_bytes(page)
    if ids.setdefault(identity.file_id, found.st_ino) != found.st_ino:
        raise Damaged("two files with one id")
    slot = peek_slot(page)
    if slot is None:
        raise Damaged("both state slots of the header are damaged")
    if plain_size_at_least(found.st_size) < slot.size:
        raise Damaged("the file was truncated")
    if slot.state is State.CLEAN and plain_size_of(found.st_size) != slot.size and not recovering:
        raise Damaged("the file was extended")


def _damage(report: Report, place: Place, what: str) -> None:
    report.damage.append(Finding(Remedy.NONE, place.path, what, place.parent, place.entry))

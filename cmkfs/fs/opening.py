"""First open of a file: header, key, slots, and where the file ends (docs/format.md, 8.4).

`FileOpener.open` gives the `OpenFile` of an inode; the second opener of the same inode gets the same one.
"""

import errno
import logging
import os
from collections.abc import Callable
from weakref import WeakValueDictionary

import trio

from cmkfs.crypto.content import ZERO_PAGE, ContentCipher
from cmkfs.crypto.dek import NEW_FILE
from cmkfs.errors import CmkfsError, Damaged
from cmkfs.format.header import Identity, Slot, is_unwritten
from cmkfs.format.layout import BLOCK, PAGE, cipher_off
from cmkfs.format.verdict import Verdict, judge
from cmkfs.fs.backing import Backing
from cmkfs.fs.descriptors import leave_some
from cmkfs.fs.inode import Inode
from cmkfs.fs.inodes import InodeTable
from cmkfs.fs.openfile import OpenFile
from cmkfs.fs.slots import new_header
from cmkfs.fs.xattrs import has_xattrs, own_xattrs
from cmkfs.keys.keyring import Keyring, Lease
from cmkfs.keys.zone import Zone

log = logging.getLogger(__name__)


class FileOpener:
    """Opens the regular files of a mount."""

    def __init__(
        self, backing: Backing, inodes: InodeTable, keyring: Keyring, on_dirty: Callable[[OpenFile], None]
    ) -> None:
        self._backing = backing
        self._inodes = inodes
        self._keyring = keyring
        self._on_dirty = on_dirty
        self._opening: dict[Inode, trio.Event] = {}
        self._living_ids: WeakValueDictionary[bytes, Inode] = WeakValueDictionary()
        self.recovering = False
        self.recovering_zones: frozenset[Zone] = frozenset()
        """Zones that were locked when the mount began, and are settled now."""

    async def open(self, inode: Inode, zone: Zone) -> OpenFile:
        """The open file of an inode; the caller raises `handles`. Raises Damaged, Locked, OSError, …"""
        while inode.file is None:
            under_way = self._opening.get(inode)
            if under_way is not None:
                await under_way.wait()
                continue
            self._opening[inode] = trio.Event()
            try:
                await self._open_first(inode, zone)
            finally:
                self._opening.pop(inode).set()
        try:
            zone.check()
        except CmkfsError:
            self.release(inode.file)
            raise
        return inode.file

    async def _open_first(self, inode: Inode, zone: Zone) -> None:
        fd = self._open_backing(inode)
        try:
            leave_some(fd)
            file = await self._load(inode, zone, fd)
            self._check_alone(inode, file.identity)  # again: both may have been opened at the same time
            if inode.lookups > 0 and inode.told_size not in (None, file.size):
                await self._retell_size(file)
        except BaseException:
            os.close(fd)
            raise
        file.pages.count_reads()
        inode.file = file
        self._living_ids[file.identity.file_id] = inode
        # Only now: a file that could not be opened must never be settled, its descriptor is somebody else's.
        file.on_dirty = self._on_dirty
        if file.slots.dirty:
            self._on_dirty(file)

    def _open_backing(self, inode: Inode) -> int:
        """A descriptor of the backing; what the daemon reads for itself does not move atime, before `count_reads`."""
        if self._backing.read_only:
            return self._inodes.open(inode, os.O_RDONLY)
        for flags in (os.O_RDWR | os.O_NOATIME, os.O_RDWR):
            try:
                return self._inodes.open(inode, flags)
            except PermissionError:
                continue  # without atime: the file of somebody else than the user whose daemon this is
        # A mount of an ordinary user: a file that its owner may only read is served read-only.
        return self._inodes.open(inode, os.O_RDONLY)

    async def _load(self, inode: Inode, zone: Zone, fd: int) -> OpenFile:
        recovering = self.recovering or zone in self.recovering_zones
        page = bytes(await self._backing.fetch(fd, PAGE, 0))
        if recovering and is_unwritten(page):
            return await self._give_header(inode, zone, fd)
        identity = Identity.from_bytes(page)
        self._check_alone(inode, identity)
        lease = await self._keyring.lease(zone, identity)
        slots = lease.key.read_slots(page)
        backing_size = os.fstat(fd).st_size
        verdict = judge(slots.slot, backing_size, recovering=recovering)
        file = OpenFile(self._backing, self._keyring, inode, fd, identity, lease, slots, backing_size)
        if verdict is Verdict.SCAN:
            await self._end_dirty_file(file, lease.key.content, slots.slot, backing_size)
        elif verdict is Verdict.CUT or recovering:
            await self._end_clean_file(file, lease.key.content, slots.slot, verdict)
        return file

    def _check_alone(self, inode: Inode, identity: Identity) -> None:
        """Raise Damaged if another living inode has this file's id."""
        twin = self._living_ids.get(identity.file_id)
        if twin is not None and twin is not inode and self._inodes.get(twin.ino) is twin and not twin.removed:
            raise Damaged("two files with one id")

    async def _end_clean_file(self, file: OpenFile, content: ContentCipher, slot: Slot, verdict: Verdict) -> None:
        """An unsynced session may have left blocks beyond the size, or a last block that is longer."""
        if verdict is Verdict.AS_IS and not await self._last_block_is_longer(file, content, slot):
            return
        if not self._backing.read_only:
            await file.cut_to(slot.size)

    async def _last_block_is_longer(self, file: OpenFile, content: ContentCipher, slot: Slot) -> bool:
        block, length = divmod(slot.size, BLOCK)
        if not length:
            return False
        page = await self._backing.fetch(file.fd, PAGE, cipher_off(block))
        try:
            return content.open(block, page, slot.generation + 1).length > length
        except Damaged:
            return False  # reads of this block will be EIO; the rest of the file is served

    async def _end_dirty_file(self, file: OpenFile, content: ContentCipher, slot: Slot, backing_size: int) -> None:
        size = await self._find_end(file.fd, content, slot, backing_size)
        if self._backing.read_only:
            file.size = size
            return
        await file.cut_to(size)

    async def _find_end(self, fd: int, content: ContentCipher, slot: Slot, backing_size: int) -> int:
        """Where a dirty file ends: at the first block from the floor on that is not whole."""
        block, pages = slot.size // BLOCK, backing_size // PAGE - 1
        while block < pages:
            block = min(pages, self._behind_holes(fd, slot, block))
            if block == pages:
                break
            page = await self._backing.fetch(fd, PAGE, cipher_off(block))
            if not (block in slot.holes and page == ZERO_PAGE):
                try:
                    length = content.open(block, page, slot.generation + 1).length
                except Damaged:
                    break
                if length < BLOCK:
                    return max(slot.size, block * BLOCK + length)
            block += 1
        return max(slot.size, block * BLOCK)

    def _behind_holes(self, fd: int, slot: Slot, block: int) -> int:
        """The first block from `block` on that is not both listed as a hole and stored nowhere."""
        listed = slot.holes.stop_of(block)
        if listed == block:
            return block
        stored = self._backing.zeros_until(fd, cipher_off(block)) // PAGE - 1
        return max(block, min(listed, stored))

    async def _retell_size(self, file: OpenFile) -> None:
        """The kernel was told a size that reads do not honour, and never takes a smaller one for an inode it knows.

        A new generation behind the same number makes it look the name up again; ESTALE makes it do so now.
        """
        log.warning("a file has another size than was told; it is looked up again")
        if file.slots.dirty and not self._backing.read_only:
            await file.fsync()
            file.settle(file.changes)
        file.inode.generation += 1
        file.inode.told_size = None
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    async def _give_header(self, inode: Inode, zone: Zone, fd: int) -> OpenFile:
        """A file whose header never reached the disk was never written: empty. Its attributes go with its id."""
        identity, lease = await self._keyring.new_file(zone)
        data = new_header(identity, lease.key)
        if not self._backing.read_only:
            os.ftruncate(fd, 0)
            self._backing.append(fd, data, 0)
            for name in own_xattrs(fd):
                os.removexattr(fd, name)
        return OpenFile(self._backing, self._keyring, inode, fd, identity, lease, NEW_FILE, PAGE)

    def created(self, inode: Inode, fd: int, new: tuple[Identity, Lease]) -> OpenFile:
        """Write the header of a file that was just created and give its open file. Raises OSError (ENOSPC)."""
        identity, lease = new
        leave_some(fd)
        data = new_header(identity, lease.key)
        self._backing.append(fd, data, 0)
        file = OpenFile(self._backing, self._keyring, inode, fd, identity, lease, NEW_FILE, PAGE)
        if self._backing.noatime:
            file.pages.count_reads()
        file.on_dirty = self._on_dirty
        inode.file = file
        self._living_ids[identity.file_id] = inode
        file.changes += 1
        self._on_dirty(file)
        return file

    async def truncate_to_zero(self, file: OpenFile) -> None:
        """Empty a file; its attributes are bound to its id, so only a file without any gets a new one.

        What could not be read or stored of it does not count any more.
        """
        await self._empty(file)
        file.inode.trouble, file.untold = "", None

    async def _empty(self, file: OpenFile) -> None:
        if file.size and not has_xattrs(file.fd):
            identity, lease = await self._keyring.new_file(file.zone)
            old = await file.replace_content(identity, lease)
            if old is not None:
                if self._living_ids.get(old.file_id) is file.inode:
                    del self._living_ids[old.file_id]
                self._living_ids[identity.file_id] = file.inode
                return
        await file.truncate(0)
        file.sync_failed = False

    def release(self, file: OpenFile) -> None:
        """Close a file that nobody has open: it is settled, or nobody can reach it any more."""
        inode = file.inode
        unsettled = file.slots.dirty and not inode.gone and not self._backing.read_only
        if file.handles or inode.file is not file or unsettled:
            return
        inode.file = None
        inode.told_size = file.size
        file.close()
        self._inodes.drop_if_unused(inode)

"""The zones of a mount: found and unlocked when it begins, made and given up while it serves.

The root zone is there before, since the list of the others is sealed under it. A zone whose CMK is away does not
keep the rest from being served: it is locked, and comes when its CMK does.
"""

import logging

import trio

from cmkfs.errors import (
    AlreadyExists,
    CmkfsError,
    Damaged,
    Disabled,
    KeyUnavailable,
    MountFailed,
    NotFound,
    UsageError,
)
from cmkfs.format.vault import ZoneRecord, ZoneRoot
from cmkfs.fs.directory import Directories, Directory, plain_name
from cmkfs.fs.inode import Inode
from cmkfs.fs.inodes import InodeTable
from cmkfs.fs.namespace import Namespace
from cmkfs.fs.vaultdir import VaultDir
from cmkfs.fs.xattrs import has_xattrs
from cmkfs.fs.zoneroots import ZoneSwitch, paths_of, search_records
from cmkfs.keys.keyring import Keyring
from cmkfs.keys.newzone import make_zone_on_mount
from cmkfs.keys.pool import random_id
from cmkfs.keys.provider import Cmk, CmkState
from cmkfs.keys.zone import Zone

log = logging.getLogger(__name__)


class Zones:
    """All zones of a mount but the root zone, which is the one to begin with."""

    def __init__(
        self,
        keyring: Keyring,
        inodes: InodeTable,
        directories: Directories,
        namespace: Namespace,
        vaultdir: VaultDir,
        root_zone: Zone,
    ) -> None:
        self._keyring = keyring
        self._token = keyring.token
        self._inodes = inodes
        self._directories = directories
        self._vaultdir = vaultdir
        self._root_zone = root_zone
        self._switch = ZoneSwitch(inodes, directories, namespace, vaultdir)
        self._turn = trio.Lock()
        self.missing: dict[bytes, ZoneRoot] = {}
        """Listed zones whose record was not found: damaged, removed by hand, or inside a zone that is locked."""

    @property
    def unfinished(self) -> bool:
        """True if the next mount must recover, to finish or undo what could be neither here."""
        return self._switch.unfinished

    async def paths(self) -> dict[bytes, bytes]:
        """Where the roots of the zones are, by zone id, seen from the mount point: those that can be reached now."""
        return await paths_of(self._inodes, self._directories)

    # -- the beginning ---------------------------------------------------------------------------

    async def open(self) -> None:
        """Find every zone of the vault and unlock what can be unlocked. One in trouble stops nothing."""
        for root in self._directories.zone_roots:
            self.missing[root.zone_id] = root
            try:
                record = self._vaultdir.zone_record_copy(root.zone_id)
            except CmkfsError as error:
                log.info("a zone's record is looked for in its root: %s", error)
                continue
            await self._enter(record)
        await self.search()

    async def search(self) -> None:
        """Look for the records that are missing in the roots of their zones, as far as these can be reached now."""
        while self.missing:
            before = len(self.missing)
            for record in await search_records(self._inodes, self._directories, self.missing.values()):
                if await self._enter(record) and not self._inodes.backing.read_only:
                    self._copy(record)
            if len(self.missing) == before:
                return

    def _copy(self, record: ZoneRecord) -> None:
        """So that the next mount need not search. It must not need it: a disk may be full, a directory in its place."""
        try:
            self._vaultdir.write_zone_record_copy(record)
        except OSError as error:
            log.warning("the record of a zone has no copy: %s", error)

    async def _enter(self, record: ZoneRecord) -> bool:
        """Know a zone; False if its record is not to be believed. It stays locked if its CMK cannot be used."""
        cmk_id = record.recipient.version.cmk_id
        try:
            cmk = await self._token.describe(cmk_id)
            name = cmk.name
        except CmkfsError as error:
            log.warning("the CMK of a zone cannot be looked at: %s", error)
            name = cmk_id.hex()
        zone = Zone(record.zone_id, record, name)
        self._keyring.add_zone(zone)
        try:
            await self._keyring.unlock(zone)
        except Damaged as error:
            log.error("a zone's record is damaged: %s", error)
            self._keyring.remove_zone(zone)
            return False
        except CmkfsError as error:
            zone.explain(as_refusal(error, name))
            log.warning("the zone under CMK %s is locked: %s", name, error)
        del self.missing[record.zone_id]
        return True

    # -- made and given up -----------------------------------------------------------------------

    async def cmk_for_new_zone(self, name: str) -> Cmk:
        """The CMK of this name. Raises CmkNotFound, Disabled, TokenUnavailable."""
        cmk = await self._token.find(name)
        if cmk.state is not CmkState.ENABLED:
            raise Disabled(f"CMK {cmk.name} is {cmk.state}", hint=f"cmkfs cmk enable {cmk.name}")
        return cmk

    async def create(self, inode: Inode, cmk: Cmk) -> Zone:
        """Make an empty directory the root of a new zone, which serves at once.

        Raises OSError (ENOTEMPTY), AlreadyExists, UsageError, Locked, …
        """
        async with self._turn:
            parent, name = self._place(inode)
            if self._directories.is_zone_place(parent, name):
                raise AlreadyExists("the directory is the root of a zone already")
            if self._has_xattrs(inode):
                raise UsageError("the directory has extended attributes", hint="name a new directory")
            new = await make_zone_on_mount(self._token, self._keyring.vault, cmk.cmk_id)
            if self._place(inode) != (parent, name):
                raise NotFound("the directory was moved meanwhile")
            dir_id = random_id()
            root = ZoneRoot(new.zone_id, parent.dir_id, dir_id, name)
            record = new.record(self._keyring.vault, parent.dir_id, dir_id, name)
            zone = Zone(new.zone_id, record, cmk.name)
            self._keyring.add_zone(zone)
            zone.begin_serving(new.keys)
            try:
                await self._change(inode, new.keys.seal_dir_id(dir_id), (*self._directories.zone_roots, root), record)
            except BaseException:
                self._keyring.remove_zone(zone)
                raise
            return zone

    async def remove(self, inode: Inode) -> Zone:
        """Make the empty root of a zone a directory of the zone around it again; the caller ends its leases.

        Raises OSError (ENOTEMPTY), NotFound, UsageError, Locked, …
        """
        async with self._turn:
            parent, name = self._place(inode)
            zone = self._directories.of(inode).zone
            if not self._directories.is_zone_place(parent, name):
                raise NotFound("the directory is not the root of a zone", hint="cmkfs zone list MOUNTPOINT")
            if self._has_xattrs(inode):
                raise UsageError("the directory has extended attributes", hint="setfattr -x NAME DIR")
            rest = tuple(root for root in self._directories.zone_roots if root.zone_id != zone.zone_id)
            await self._change(inode, parent.zone.keys.seal_dir_id(random_id()), rest, None)
            self._vaultdir.remove_zone_record_copy(zone.zone_id)
            return zone

    def _has_xattrs(self, inode: Inode) -> bool:
        """They are bound to the directory's id, which changes."""
        with self._inodes.reach(inode) as path:
            return has_xattrs(path)

    def _place(self, inode: Inode) -> tuple[Directory, bytes]:
        """The directory that a directory lies in, and its name there. Raises UsageError, Damaged, Locked, …"""
        if self._inodes.backing.read_only:
            raise MountFailed("the mount is read-only")
        if not inode.is_dir or not inode.places:
            raise UsageError("a zone is a directory below the mount point", hint="cmkfs zone create --help")
        self._directories.of(inode)
        parent, entry = inode.places.newest
        directory = self._directories.of(parent)
        return directory, plain_name(directory, self._inodes.dir_fd(parent), entry)

    async def _change(
        self, inode: Inode, sealed_id: bytes, roots: tuple[ZoneRoot, ...], record: ZoneRecord | None
    ) -> None:
        keys = self._root_zone.keys
        before, after = (
            self._vaultdir.sealed_zone_roots(keys, listed) for listed in (self._directories.zone_roots, roots)
        )
        with trio.CancelScope(shield=True):
            await self._switch.switch(inode, sealed_id, roots, (before, after), record)


def as_refusal(error: CmkfsError, name: str) -> KeyUnavailable:
    """Why a zone does not serve, for those who use it."""
    if isinstance(error, Disabled):
        return Disabled(f"CMK {name} is disabled", hint=f"cmkfs cmk enable {name}")
    return error if isinstance(error, KeyUnavailable) else KeyUnavailable(str(error), hint=error.next_step)

"""`cmkfs check`: opens a vault as a mount would, without mounting it, and surveys it.

`Check.run` gives a report each time it is called; `maintenance.repair` acts on it.
"""

import os
import stat
from dataclasses import dataclass

from cmkfs.errors import CmkNotFound, Damaged, Disabled, KeyUnavailable
from cmkfs.format import b64
from cmkfs.format.vault import NO_DIRECTORY, SessionState, VaultFile, ZoneRecord, ZoneRoot
from cmkfs.fs.backing import Backing
from cmkfs.fs.directory import OWN_PREFIX, Directories
from cmkfs.fs.inode import Inode
from cmkfs.fs.inodes import InodeTable
from cmkfs.fs.symlinks import LINKS_DIR, Symlinks
from cmkfs.fs.vaultdir import (
    SESSION_FILE,
    SPARE_FILE,
    ZONE_RECORD,
    ZONES_FILE,
    VaultDir,
    read_zone_record,
    session_says_open,
)
from cmkfs.keys.keyring import Keyring
from cmkfs.keys.policies import Policies
from cmkfs.keys.provider import CmkState
from cmkfs.keys.token_client import TokenClient
from cmkfs.keys.zone import Zone
from cmkfs.maintenance.findings import Finding, Place, Remedy, Report
from cmkfs.maintenance.readers import Readers
from cmkfs.maintenance.spare import read_spare
from cmkfs.maintenance.structure import check_tree
from cmkfs.maintenance.survey import Survey, Vault


@dataclass(frozen=True, slots=True)
class Access:
    """The vault and what opens it. `token` None: it cannot be reached, `why_not` says why."""

    backing: Backing
    vault: VaultFile
    token: TokenClient | None
    why_not: str = ""


class Check:
    """One vault, which nobody else uses meanwhile (`fs.ownership`)."""

    def __init__(self, access: Access, readers: Readers) -> None:
        self.access = access
        self._readers = readers
        self._known_good: set[tuple[int, int, int]] = set()
        """Files whose every block was opened: number, ctime and length. A later run skips their content."""
        self.report = Report()
        self.opened: Vault | None = None
        """The objects of the last run; None if the root zone's keys could not be had."""
        self.vaultdir: VaultDir | None = None
        self.roots: tuple[ZoneRoot, ...] = ()

    async def run(self) -> Report:
        """Look at everything. Raises OSError, TokenUnavailable in mid-way."""
        self.close()
        self.report = Report()
        inodes = InodeTable(self.access.backing)
        keyring = await self._root_keys(inodes)
        if keyring is None:
            inodes.close()
            return self.report
        (root_zone,) = keyring.zones.values()
        self.vaultdir = VaultDir(self.access.backing, self.access.vault, root_zone.keys.session)
        self.roots = self._zone_roots(root_zone)
        directories = Directories(inodes, keyring.zones, self.roots)
        symlinks = Symlinks(self.access.backing.root_fd)
        self.opened = Vault(self.access.backing, inodes, directories, keyring, symlinks, self._session(), self.roots)
        self.report.recovery_pending = self.opened.recovering
        self._root_record(root_zone)
        self._links_directory()
        self._spare(root_zone)
        survey = Survey(self.opened, self._readers, self.report, self._enter_zone, self._known_good)
        await survey.run()
        return self.report

    def close(self) -> None:
        """Let go of the descriptors of the last run."""
        if self.opened is not None:
            self.opened.inodes.close()
            self.opened = None

    # -- zones -----------------------------------------------------------------------------------

    async def _root_keys(self, inodes: InodeTable) -> Keyring | None:
        """The keyring with the root zone unlocked. None, and the structure is looked at, if that cannot be."""
        token = self.access.token
        try:
            record = read_zone_record(self.access.backing.root_fd)
            if token is None:
                raise KeyUnavailable(self.access.why_not)
            keyring = Keyring(self.access.vault, token, Policies(os.geteuid()))
            await self._add_zone(keyring, record)
            return keyring
        except (KeyUnavailable, CmkNotFound) as error:
            self.report.locked.append(str(error))
        except Damaged as error:
            self._damage(Remedy.NONE, ZONE_RECORD, f"{error}: nothing opens without it")
        self._unlocked_session()
        check_tree(inodes, inodes.root, b"/", self.report)
        return None

    async def _add_zone(self, keyring: Keyring, record: ZoneRecord) -> Zone:
        cmk_id = record.recipient.version.cmk_id
        try:
            cmk = await keyring.token.describe(cmk_id)
        except CmkNotFound as error:
            raise CmkNotFound(f"the zone's CMK {cmk_id.hex()} is not in the token") from error
        if cmk.state is not CmkState.ENABLED:
            raise Disabled(f"CMK {cmk.name} is {cmk.state}", hint=f"cmkfs cmk enable {cmk.name}")
        zone = Zone(record.zone_id, record, cmk.name)
        keyring.add_zone(zone)
        try:
            await keyring.unlock(zone)
        except BaseException:
            del keyring.zones[zone.zone_id]
            raise
        return zone

    async def _enter_zone(self, place: Place, inode: Inode) -> bool:
        """True if a listed zone begins here; then its keys are had. Raises Damaged, KeyUnavailable, CmkNotFound."""
        vault, parent = self.opened, place.parent.directory
        if vault is None or parent is None or not place.named:
            return False
        name = place.path.rpartition(b"/")[2]
        listed = next((root for root in self.roots if (root.parent_dir_id, root.name) == (parent.dir_id, name)), None)
        if listed is None:
            return False
        if listed.zone_id in vault.keyring.zones:
            return True
        record = read_zone_record(vault.inodes.dir_fd(inode))
        if record.zone_id != listed.zone_id:
            raise Damaged("the zone record belongs to another zone")
        zone = await self._add_zone(vault.keyring, record)
        if zone.keys.open_zone_root(self.access.vault.vault_hash, record) != listed:
            raise Damaged("the zone record belongs to another directory")
        return True

    async def find_zones(self) -> tuple[ZoneRoot, ...]:
        """The zones below the root by their own records, when the list of them is lost. Raises KeyUnavailable."""
        assert self.opened is not None
        inodes, keyring, found = self.opened.inodes, self.opened.keyring, []
        waiting = [inodes.root]
        while waiting:
            inode = waiting.pop()
            fd = inodes.open(inode, os.O_RDONLY)
            try:
                if inode is not inodes.root and ZONE_RECORD in os.listdir(fd):
                    found += await self._zone_of_record(keyring, fd)
                for entry in map(os.fsencode, os.listdir(fd)):
                    status = os.stat(entry, dir_fd=fd, follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode) and not entry.startswith(OWN_PREFIX):
                        waiting.append(inodes.learn(status, inode, entry))
            finally:
                os.close(fd)
        return tuple({root.zone_id: root for root in found}.values())

    async def _zone_of_record(self, keyring: Keyring, fd: int) -> list[ZoneRoot]:
        """Where the record in a directory says that its zone hangs; nothing, if it is none of this vault."""
        try:
            record = read_zone_record(fd)
            if record.zone_id in keyring.zones:
                return []
            zone = await self._add_zone(keyring, record)
            return [zone.keys.open_zone_root(self.access.vault.vault_hash, record)]
        except (Damaged, CmkNotFound):
            return []

    # -- the vault's own records -----------------------------------------------------------------

    def _zone_roots(self, root_zone: Zone) -> tuple[ZoneRoot, ...]:
        assert self.vaultdir is not None
        try:
            return self.vaultdir.zone_roots(root_zone.keys)
        except Damaged as error:
            self._damage(Remedy.REWRITE, ZONES_FILE, str(error))
            return ()

    def _session(self) -> int | None:
        assert self.vaultdir is not None
        try:
            session = self.vaultdir.session()
        except Damaged as error:
            self._damage(Remedy.REWRITE, SESSION_FILE, str(error))
            return None
        return session.unsettled_since if session.state is SessionState.OPEN else None

    def _unlocked_session(self) -> None:
        """Whether the last session was closed, as the record says that nobody can authenticate now."""
        self.report.recovery_pending = session_says_open(self.access.backing)

    def _root_record(self, zone: Zone) -> None:
        """The root's zone record, its id, and that they agree, as a mount checks it."""
        assert self.opened is not None
        try:
            place = zone.keys.open_zone_root(self.access.vault.vault_hash, zone.record)
        except Damaged as error:
            self._damage(Remedy.REWRITE, ZONE_RECORD, str(error))
            return
        try:
            directory = self.opened.directories.claim(self.opened.inodes.root)
        except Damaged:
            return  # the survey finds it
        if place != ZoneRoot(directory.zone.zone_id, NO_DIRECTORY, directory.dir_id, b""):
            finding = Finding(Remedy.NEW_ID, b"/", "the directory id of the vault's root is another directory's")
            self.report.damage.append(finding)

    def _links_directory(self) -> None:
        try:
            found = os.stat(LINKS_DIR, dir_fd=self.access.backing.root_fd, follow_symlinks=False)
        except FileNotFoundError:
            self._damage(Remedy.REWRITE, os.fsdecode(LINKS_DIR), "the vault has no directory for long symlink targets")
            return
        if not stat.S_ISDIR(found.st_mode):
            self._damage(Remedy.REWRITE, os.fsdecode(LINKS_DIR), "not a directory")

    def _spare(self, zone: Zone) -> None:
        """The copy of what nothing opens without."""
        if read_spare(self.access.backing) != (self.access.vault.raw, b64.encode(zone.record.to_bytes())):
            what = "no copy of what the vault cannot be opened without"
            name = SPARE_FILE.encode()
            self.report.notes.append(Finding(Remedy.REWRITE, b"/" + name, what, None, name))

    def _damage(self, remedy: Remedy, name: str, what: str) -> None:
        self.report.damage.append(Finding(remedy, b"/" + name.encode(), what, None, name.encode()))

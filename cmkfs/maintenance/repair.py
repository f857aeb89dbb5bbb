"""`cmkfs check --repair`: from findings to a vault that checks clean. Deletes nothing, tells everything it does.

Round by round: survey, mend what was found, survey again, since a directory that has its id again shows what is in
it. Files whose every block was opened are not opened again. While it works the session is open: what a crash leaves
of it, the next mount recovers.
"""

import logging
import os
import stat

from cmkfs.errors import CmkfsError, Damaged
from cmkfs.format import b64
from cmkfs.format.vault import NO_DIRECTORY, Session, SessionState, ZoneRecord, ZoneRoot
from cmkfs.fs.backing import Backing
from cmkfs.fs.openfile import OpenFile
from cmkfs.fs.opening import FileOpener
from cmkfs.fs.recovery import Recovery
from cmkfs.fs.settle import Settler
from cmkfs.fs.symlinks import LINKS_DIR
from cmkfs.fs.vaultdir import SESSION_FILE, SPARE_FILE, ZONE_RECORD, ZONES_FILE, first_session
from cmkfs.keys.pool import random_id
from cmkfs.maintenance.check import Check
from cmkfs.maintenance.findings import Finding, Remedy
from cmkfs.maintenance.lost import Action, Lost
from cmkfs.maintenance.mender import Mender
from cmkfs.maintenance.spare import spare_of, write_own_file
from cmkfs.maintenance.survey import Vault

log = logging.getLogger(__name__)

_ROUNDS = 64
"""Each brings at least one thing in order, or it is the last: more than this is somebody's joke."""


class Repair:
    """Of one vault."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._backing: Backing = check.access.backing
        self._lost = Lost(self._backing)
        self._opener: FileOpener | None = None
        self.actions: list[Action] = []

    async def run(self) -> list[Action]:
        """Survey and mend until nothing is found that can be mended. Raises OSError, KeyUnavailable in mid-way."""
        try:
            await self._check.run()
            await self._recover()
            for _ in range(_ROUNDS):
                if not await self._round():
                    break
            else:
                raise CmkfsError("still not clean after many rounds", hint="the same again")
        finally:
            self._lost.close()
        return self.actions

    async def _round(self) -> bool:
        """True if something was done, after which the vault was surveyed again."""
        report, vault = self._check.report, self._check.opened
        # Notes wait until there is no damage: what looks left over may belong to something that lost its id.
        found = [finding for finding in report.damage or report.notes if finding.remedy is not Remedy.NONE]
        if vault is None or not found:
            return False
        # The vault's own records first: while they are wrong, other things only look so.
        found = [finding for finding in found if finding.remedy is Remedy.REWRITE] or found
        # Ids before names that are sealed under them; names last: what is put away needs none.
        found.sort(key=lambda finding: (finding.remedy is not Remedy.NEW_ID, finding.remedy is Remedy.NEW_NAME))
        before = len(self.actions)
        await self._begin()
        settler = Settler(self._backing, self._release)
        opener = self._opener = FileOpener(self._backing, vault.inodes, vault.keyring, settler.on_dirty)
        mender = Mender(vault, self._check, opener, self._lost, self.actions)
        for finding in found:
            if finding.remedy is Remedy.REWRITE:
                await self._rewrite(finding)
            else:
                await self._mend(mender, finding)
        await self._end(settler)
        await self._check.run()
        return len(self.actions) > before

    @staticmethod
    async def _mend(mender: Mender, finding: Finding) -> None:
        try:
            await mender.mend(finding)
        except Damaged as error:
            log.info("left for the next round: %s: %s", finding.line, error)

    def _release(self, file: OpenFile) -> None:
        if self._opener is not None:
            self._opener.release(file)

    # -- session and recovery --------------------------------------------------------------------

    async def _recover(self) -> None:
        """What the next mount would do first."""
        vault = self._check.opened
        if vault is None or vault.unsettled_since is None:
            return
        settler = Settler(self._backing, self._release)
        opener = self._opener = FileOpener(self._backing, vault.inodes, vault.keyring, settler.on_dirty)
        recovery = Recovery(self._backing, vault.inodes, vault.directories, opener, settler)
        report = await recovery.run(vault.unsettled_since)
        if report.incomplete:
            raise CmkfsError("the last session could not be recovered: " + "; ".join(report.unreadable[:3]))
        await self._end(settler)
        done = f"recovered the last session: {report.files_settled} files settled"
        self.actions.append(Action(b"/", f"{done}, {report.leftovers_removed} leftovers of it removed"))
        await self._check.run()

    async def _begin(self) -> None:
        """From here on a crash is recovered by the next mount."""
        vaultdir = self._check.vaultdir
        if vaultdir is None or self._is_damaged(SESSION_FILE):
            return
        now = vaultdir.backing_now_ns()
        await vaultdir.write_session(Session(vaultdir.session().sequence + 1, SessionState.OPEN, random_id(), now))

    async def _end(self, settler: Settler) -> None:
        await settler.settle_all()
        vaultdir = self._check.vaultdir
        await self._backing.sync_whole()
        os.fsync(self._backing.root_fd)
        if settler.dirty:
            raise CmkfsError(f"{len(settler.dirty)} files could not be settled", hint="the same again")
        if vaultdir is not None:
            last = vaultdir.session()
            closed = Session(last.sequence + 1, SessionState.CLOSED, last.session_id, last.unsettled_since)
            await vaultdir.write_session(closed)

    def _is_damaged(self, name: str) -> bool:
        return any(finding.entry == name.encode() and not finding.parent for finding in self._check.report.damage)

    # -- the vault's own records -----------------------------------------------------------------

    async def _rewrite(self, finding: Finding) -> None:
        vault, root = self._check.opened, self._backing.root_fd
        assert vault is not None
        put = ""
        if _there(finding.entry, root):
            put = self._lost.put(root, finding.entry, [], finding.what)
        name = os.fsdecode(finding.entry)
        if name == SESSION_FILE:
            write_own_file(self._backing, name, self._new_session(vault))
        elif name == ZONES_FILE:
            zone = next(iter(vault.keyring.zones.values()))
            write_own_file(
                self._backing,
                name,
                zone.keys.seal_zone_list(self._check.access.vault.vault_hash, await self._check.find_zones()),
            )
        elif name == ZONE_RECORD:
            os.symlink(b64.encode(self._new_record(vault).to_bytes()), finding.entry, dir_fd=root)
        elif name == SPARE_FILE:
            zone = next(iter(vault.keyring.zones.values()))
            write_own_file(self._backing, name, spare_of(self._check.access.vault, zone.record))
        elif finding.entry == LINKS_DIR:
            os.mkdir(LINKS_DIR, 0o700, dir_fd=root)
        done = "written anew" + (f"; the old one is {put}" if put else "")
        self.actions.append(Action(finding.path, f"{finding.what}: {done}"))

    def _new_session(self, vault: Vault) -> bytes:
        seal = next(iter(vault.keyring.zones.values())).keys.session
        vault_hash = self._check.access.vault.vault_hash
        return b"".join(seal.seal(vault_hash, number, session) for number, session in enumerate(first_session()))

    def _new_record(self, vault: Vault) -> ZoneRecord:
        """The root's record with its place sealed anew: the id of the root directory is proven by its own seal."""
        zone = next(iter(vault.keyring.zones.values()))
        dir_id = vault.directories.claim(vault.inodes.root).dir_id
        place = ZoneRoot(zone.zone_id, NO_DIRECTORY, dir_id, b"")
        sealed = zone.keys.seal_zone_root(self._check.access.vault.vault_hash, place)
        return ZoneRecord(zone.record.zone_id, zone.record.commitment, zone.record.recipient, sealed)


def _there(entry: bytes, dir_fd: int) -> bool:
    try:
        return bool(stat.S_IFMT(os.stat(entry, dir_fd=dir_fd, follow_symlinks=False).st_mode))
    except FileNotFoundError:
        return False

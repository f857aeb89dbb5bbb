"""A vault while it is mounted: its objects, its beginning and end, and the answers to control requests."""

import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from cmkfs.audit.auditor import Caller
from cmkfs.config import MountOptions
from cmkfs.control.protocol import Fields
from cmkfs.errors import CmkfsError, Damaged, GuardianGone, KeyUnavailable, Locked
from cmkfs.format.recipient import CmkId
from cmkfs.format.vault import NO_DIRECTORY, Session, SessionState, ZoneRoot
from cmkfs.fs.attributes import Attributes
from cmkfs.fs.backing import Backing
from cmkfs.fs.directory import Directories
from cmkfs.fs.forgetting import KernelCache
from cmkfs.fs.fusedev import FuseDevice
from cmkfs.fs.idle import whenever_idle
from cmkfs.fs.inode import Inode
from cmkfs.fs.inodes import InodeTable
from cmkfs.fs.lockdown import Lockdown, LockReport
from cmkfs.fs.namespace import Namespace
from cmkfs.fs.openfile import OpenFile
from cmkfs.fs.opening import FileOpener
from cmkfs.fs.operations import Operations
from cmkfs.fs.permissions import Permissions
from cmkfs.fs.recovery import Recovery, Report
from cmkfs.fs.revocation import Revocation
from cmkfs.fs.setattr import Setattr
from cmkfs.fs.settle import Settler
from cmkfs.fs.symlinks import Symlinks
from cmkfs.fs.vaultdir import VaultDir
from cmkfs.fs.xattrs import Xattrs
from cmkfs.keys.keyring import Keyring
from cmkfs.keys.pool import random_id
from cmkfs.keys.provider import Cmk
from cmkfs.keys.watch import CmkWatch
from cmkfs.keys.zone import Zone, ZoneState
from cmkfs.zones import Zones, as_refusal

log = logging.getLogger(__name__)


Task = Callable[[], Awaitable[None]]


class Mounted:
    """Everything that lives as long as the mount."""

    def __init__(
        self,
        vault: Path,
        mountpoint: Path,
        backing: Backing,
        keyring: Keyring,
        root_zone: Zone,
        options: MountOptions,
    ) -> None:
        self.vault = vault
        self.mountpoint = mountpoint
        self.backing = backing
        self.keyring = keyring
        self.root_zone = root_zone
        self.options = options
        self._vaultdir = VaultDir(backing, keyring.vault, root_zone.keys.session)
        self.inodes = InodeTable(backing)
        roots = self._vaultdir.zone_roots(root_zone.keys)
        self._directories = Directories(self.inodes, keyring.zones, roots, keyring.vault.vault_hash)
        self.settler = Settler(backing, self._release)
        self._opener = FileOpener(backing, self.inodes, keyring, self.settler.on_dirty)
        symlinks = Symlinks(backing.root_fd)
        namespace = Namespace(backing, self.inodes, self._directories, symlinks)
        self.attributes = Attributes(self.inodes, self._directories.subdirectories)
        xattrs = Xattrs(self.inodes, self._directories, self._opener)
        permissions = Permissions(self.inodes, xattrs, enabled=options.acl)
        self._changes = Setattr(self.inodes, self._opener, permissions)
        self.operations = Operations(
            backing,
            self.inodes,
            self._directories,
            namespace,
            self._opener,
            keyring,
            self.attributes,
            self._changes,
            xattrs,
            permissions,
            no_xattrs=options.noxattr,
        )
        self.zones = Zones(keyring, self.inodes, self._directories, namespace, self._vaultdir, root_zone)
        self._session: Session | None = None
        self._recovery: Recovery | None = None
        self.recovered: Report | None = None
        self._device: FuseDevice | None = None
        self._kernel: KernelCache | None = None
        self._lockdown: Lockdown | None = None
        self._revocation: Revocation | None = None
        self.watches: dict[bytes, CmkWatch] = {}
        self.start_soon: Callable[[Task], object] = _not_yet
        """Starts a task that runs as long as the mount is served."""
        self.on_zones_changed: Callable[[], object] = _nobody_asks
        """Called when a zone was made or given up."""

    def _release(self, file: OpenFile) -> None:
        self._opener.release(file)

    # -- beginning and end -----------------------------------------------------------------------

    async def recover_and_open(self) -> None:
        """Settle what an earlier session left, then begin one. Raises Damaged, OSError."""
        self._check_root()
        await self.zones.open()
        last = self._vaultdir.session()
        if last.state is SessionState.OPEN:
            recovery = self._recovery = Recovery(
                self.backing, self.inodes, self._directories, self._opener, self.settler
            )
            self.recovered = await recovery.run(last.unsettled_since)
            self._tell_of_recovery(self.recovered)
            self.attributes.found_sizes = recovery.found_sizes
        if not self.backing.read_only:
            since = self._vaultdir.backing_now_ns()
            if not self._recovered_all:
                since = last.unsettled_since
            self._session = Session(last.sequence + 1, SessionState.OPEN, random_id(), since)
            await self._vaultdir.write_session(self._session)

    @property
    def _recovered_all(self) -> bool:
        """False if something is left for a later recovery: in a zone that is still locked, too."""
        recovery = self._recovery
        return recovery is None or not (recovery.report.incomplete or recovery.locked)

    async def _before_serving(self, zone: Zone) -> None:
        """A zone was unlocked: first zones inside it are looked for, and what an earlier session left is settled."""
        await self.zones.search()
        if self._recovery is not None and zone in self._recovery.locked:
            await self._recovery.resume(zone, self.keyring.zones.values())
            self._tell_of_recovery(self._recovery.report)

    def _tell_of_recovery(self, report: Report) -> None:
        facts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in report.facts().items())
        self.keyring.audit.changed("recovery", reason=facts, zone=self.root_zone)
        for name in report.unreadable:
            path, _, why = name.partition(": ")
            self.keyring.audit.refused("recovery", Damaged(why), zone=self.root_zone, path=path)

    def _check_root(self) -> None:
        """The vault's root is the directory that its zone record names. Raises Damaged."""
        zone = self.root_zone
        root = zone.keys.open_zone_root(self.keyring.vault.vault_hash, zone.record)
        directory = self._directories.of(self.inodes.root)
        expected = ZoneRoot(directory.zone.zone_id, NO_DIRECTORY, directory.dir_id, b"")
        if root != expected:
            raise Damaged("the zone record of the vault's root belongs to another directory")

    def use(self, device: FuseDevice) -> None:
        """From now on locks reach this kernel connection."""
        self._device = device
        self._changes.use(device)
        self.operations.access_times.use(device)
        self._kernel = KernelCache(device)
        self._lockdown = Lockdown(self.keyring, self.inodes, self.operations, self.settler, self._kernel)
        self._revocation = Revocation(
            self.keyring,
            self.inodes,
            self.operations,
            self.attributes,
            self._kernel,
            device,
            shared=self.options.allow_other,
        )
        self._lockdown.before_serving = self._before_serving
        for zone in self.keyring.zones.values():
            self.watches.setdefault(zone.cmk_id, self._watch(zone.cmk_id, zone.cmk_name))

    async def begin_guarding(self) -> None:
        """From now on a daemon that is killed leaves nothing readable behind. Before anything is served."""
        if self._device is None or self._kernel is None:
            raise RuntimeError("there is no mount to guard yet")
        try:
            self._kernel.guardian = await self._device.start_guardian(self.inodes.roster)
        except GuardianGone as error:
            log.error("%s; if the daemon is killed, what is cached stays readable", error)
            self._kernel.unguarded = str(error)

    async def end_guarding(self, *, in_order: bool) -> None:
        """The device is closed. Not in order: what the kernel has cached is dropped first."""
        if self._kernel is not None:
            await self._kernel.end(in_order=in_order)

    async def close(self) -> Fields:
        """Store everything and close the session; says what could not be stored."""
        for number in list(self.operations.handles.files):
            await self.operations.release(number)
        error = ""
        try:
            await self.settler.settle_all()
        except OSError as failure:
            error = str(failure)
        unsaved = [self._name(file) for file in self.settler.dirty]
        complete = self._recovered_all and not self.zones.unfinished
        if self._session is not None and complete and not unsaved and not error:
            error = await self._close_session(self._session)
        for file in self.settler.dirty:
            file.close()
            file.inode.file = None
        self.inodes.close()
        return {"unsaved": unsaved, "error": error or None}

    async def _close_session(self, session: Session) -> str:
        """The clean slots are durable before the session says so."""
        try:
            await self.backing.sync_whole()
            closed = Session(session.sequence + 1, SessionState.CLOSED, session.session_id, session.unsettled_since)
            await self._vaultdir.write_session(closed)
        except (OSError, CmkfsError) as error:  # the file may be something else by now
            return str(error)
        return ""

    def _name(self, file: OpenFile) -> str:
        return self._lockdown.path_of(file.inode) if self._lockdown is not None else "?"

    def background(self) -> list[Task]:
        """Tasks to run while requests are served."""
        watches = [watch.run for watch in self.watches.values()]
        pools = [self.keyring.pool_of(zone).keep_filled for zone in self.keyring.zones.values()]
        idle = [] if self.options.idle_minutes is None else [self._lock_when_idle]
        return [self.settler.run, self.locks.renew_leases, self._keep_guarded, *watches, *pools, *idle]

    async def _lock_when_idle(self) -> None:
        minutes = self.options.idle_minutes or 1

        async def lock() -> None:
            # A zone that is disabled is left as it is, or it would stay locked when it is enabled.
            if any(zone.state is ZoneState.SERVING for zone in self.keyring.zones.values()):
                await self.lock_all(f"nothing used the mount for {minutes:g} min")

        await whenever_idle(60.0 * minutes, lambda: sum(zone.epoch for zone in self.keyring.zones.values()), lock)

    async def _keep_guarded(self) -> None:
        if self._device is not None and self._kernel is not None:
            await self._kernel.keep_guarded(self._device, self.inodes.roster)

    def ready_report(self) -> Fields:
        """What the mount command tells its user."""
        return {
            "mountpoint": str(self.mountpoint),
            "vault": str(self.vault),
            "pid": os.getpid(),
            "recovered": None if self.recovered is None else self.recovered.facts(),
            "has_policy": self.keyring.policies.get(self.root_zone.cmk_id) is not None,
            "shut": [f"{zone.cmk_name} ({zone.reason})" for zone in self.keyring.zones.values() if zone.is_shut],
            "warnings": self.warnings(),
        }

    # -- lock and unlock -------------------------------------------------------------------------

    def _watch(self, cmk_id: CmkId, cmk_name: str) -> CmkWatch:
        async def lock(why: KeyUnavailable) -> None:
            await self.locks.lock(self.under(cmk_id), why)

        async def unlock() -> None:
            await self.unlock(z for z in self.under(cmk_id) if not z.locked_by_operator)

        async def revoke() -> bool:
            return self._revocation is None or await self._revocation.apply(self.under(cmk_id))

        def tell(found: str) -> None:
            for zone in self.under(cmk_id)[:1]:
                self.keyring.audit.changed("policy.taken", reason=found or "none", zone=zone)

        watch = CmkWatch(
            cmk_id,
            cmk_name,
            self.keyring.token,
            self.keyring.policies,
            lock,
            unlock,
            revocation_bound=self.options.revocation_bound,
            outage_grace=self.options.outage_grace,
            revoke=revoke,
        )
        watch.on_policy = tell
        return watch

    async def lock_all(self, why: str) -> LockReport:
        """As an operator does it, until `unlock`."""
        zones = list(self.keyring.zones.values())
        for zone in zones:
            zone.locked_by_operator = True
        return await self.locks.lock(zones, Locked(why, hint=f"cmkfs unlock {self.mountpoint}"))

    @property
    def locks(self) -> Lockdown:
        """The one procedure that locks and unlocks; there once the mount is served."""
        if self._lockdown is None:
            raise RuntimeError("the mount is not served yet")
        return self._lockdown

    def under(self, cmk_id: bytes) -> list[Zone]:
        """The zones under a CMK."""
        return [zone for zone in self.keyring.zones.values() if zone.cmk_id == cmk_id]

    async def begin_watching(self) -> None:
        """Bring the policies, before anything is served. Raises Disabled, TokenUnavailable, … for the root's CMK."""
        for cmk_id, watch in self.watches.items():
            locked = [zone for zone in self.under(cmk_id) if zone.state is ZoneState.LOCKED]
            if locked:
                watch.refusal = as_refusal(locked[0].refusal(), locked[0].cmk_name)
            if cmk_id == self.root_zone.cmk_id:
                await watch.begin()
            else:
                await watch.look()
        if self._revocation is not None:
            self._revocation.begin(self.keyring.zones.values())

    async def unlock(self, zones: Iterable[Zone], *, by: Caller | None = None) -> None:
        """Serve zones again, and zones inside them that could not be found until now. Raises Disabled, …"""
        known = set(self.keyring.zones)
        try:
            await self.locks.unlock(zones, by=by)
        finally:  # what was found has its watch and its policy, also if another zone is in trouble
            for zone_id in set(self.keyring.zones) - known:
                await self._adopt(self.keyring.zones[zone_id])

    async def _adopt(self, zone: Zone) -> None:
        """A zone that came while the mount is served gets what the others have."""
        new = zone.cmk_id not in self.watches
        if new:
            self.watches[zone.cmk_id] = self._watch(zone.cmk_id, zone.cmk_name)
        watch = self.watches[zone.cmk_id]
        if zone.state is ZoneState.LOCKED and watch.refusal is None:
            watch.refusal = as_refusal(zone.refusal(), zone.cmk_name)  # so that the watch unlocks it
        if new:
            await watch.look()
            self.start_soon(watch.run)
        if self._revocation is not None:
            self._revocation.begin([zone])
        self.start_soon(self.keyring.pool_of(zone).keep_filled)
        self.on_zones_changed()

    async def create_zone(self, inode: Inode, cmk: str, *, by: Caller | None = None) -> Zone:
        """Make an empty directory the root of a zone under a CMK. Raises OSError, CmkNotFound, Disabled, …"""
        zone = await self.zones.create(inode, await self.zones.cmk_for_new_zone(cmk))
        await self._adopt(zone)
        self.keyring.audit.changed("zone.create", caller=by, zone=zone)
        return zone

    async def remove_zone(self, inode: Inode, *, by: Caller | None = None) -> Zone:
        """Make the empty root of a zone a plain directory again. Raises OSError (ENOTEMPTY), NotFound, Locked, …"""
        zone = await self.zones.remove(inode)
        await self.locks.lock([zone], Locked("the zone was removed", hint=""))  # files without a name may be open
        self.keyring.remove_zone(zone)
        if not self.under(zone.cmk_id):
            self.watches.pop(zone.cmk_id).end()
        self.on_zones_changed()
        self.keyring.audit.changed("zone.remove", caller=by, zone=zone)
        return zone

    async def read_policy(self, cmk: Cmk) -> None:
        """Know the policy of a CMK that no zone may be under yet. Raises Disabled, TokenUnavailable, …"""
        if not self.keyring.policies.knows(cmk.cmk_id):
            await self._watch(cmk.cmk_id, cmk.name).begin()

    @property
    def cmks(self) -> dict[str, str]:
        """The CMKs of all zones: id in hex digits to name."""
        return {zone.cmk_id.hex(): zone.cmk_name for zone in self.keyring.zones.values()}

    def warnings(self) -> list[str]:
        """What its users should know."""
        warnings = []
        if self._kernel is not None and self._kernel.unguarded:
            warnings.append(f"{self._kernel.unguarded}; if the daemon is killed, what is cached stays readable")
        if self.backing.failed is not None:
            warnings.append(f"a sync of the backing failed: {self.backing.failed}")
        if self.backing.kind.fstype in ("unknown", "vfat", "exfat"):
            warnings.append(f"the backing is {self.backing.kind.fstype}: what a power cut leaves there is not known")
        negotiated = self._device.negotiated if self._device is not None else None
        if negotiated is not None and negotiated.refused:
            warnings.append(f"slower than it could be: this kernel's FUSE lacks {negotiated.refused!r}")
        if self.zones.missing:
            warnings.append(f"the root of {len(self.zones.missing)} zones was not found, or is damaged")
        for zone in self._recovery.locked if self._recovery is not None else ():
            warnings.append(f"what an earlier session left under CMK {zone.cmk_name} is settled when it is unlocked")
        broken = sum(file.sync_failed for file in self.settler.dirty)
        if broken:
            warnings.append(f"{broken} files could not be made durable")
        return warnings


def _not_yet(_task: Task) -> None:
    raise RuntimeError("the mount is not served yet")


def _nobody_asks() -> None:
    """There is no control socket yet."""

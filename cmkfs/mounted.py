"""A vault while it is mounted: its objects, its beginning and end, and the answers to control requests."""

import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from cmkfs.config import MountOptions
from cmkfs.control.protocol import Fields
from cmkfs.control.server import Handler
from cmkfs.errors import CmkfsError, Damaged, KeyUnavailable, Locked, NotFound, TokenUnavailable, UsageError
from cmkfs.format.header import Identity
from cmkfs.format.vault import NO_DIRECTORY, Session, SessionState, ZoneRoot
from cmkfs.fs.attributes import Attributes
from cmkfs.fs.backing import Backing
from cmkfs.fs.directory import Directories
from cmkfs.fs.fusedev import FuseDevice
from cmkfs.fs.guard import Bugs, Requests
from cmkfs.fs.inodes import Inode, InodeTable
from cmkfs.fs.lockdown import Lockdown
from cmkfs.fs.namespace import Namespace
from cmkfs.fs.openfile import OpenFile
from cmkfs.fs.opening import FileOpener
from cmkfs.fs.operations import Operations
from cmkfs.fs.recovery import Recovery, Report
from cmkfs.fs.setattr import Setattr
from cmkfs.fs.settle import Settler
from cmkfs.fs.symlinks import Symlinks
from cmkfs.fs.vaultdir import VaultDir
from cmkfs.keys.keyring import Keyring
from cmkfs.keys.pool import random_id
from cmkfs.keys.provider import KeyProvider
from cmkfs.keys.watch import CmkWatch
from cmkfs.keys.worker import TokenWorker
from cmkfs.keys.zone import Zone, ZoneState

log = logging.getLogger(__name__)

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


class Mounted:
    """Everything that lives as long as the mount."""

    def __init__(
        self,
        vault: Path,
        mountpoint: Path,
        backing: Backing,
        keyring: Keyring,
        provider: KeyProvider,
        token: TokenWorker,
        root_zone: Zone,
        options: MountOptions,
        deadline: float,
    ) -> None:
        self._vault = vault
        self._mountpoint = mountpoint
        self._backing = backing
        self._keyring = keyring
        self._provider = provider
        self._token = token
        self._root_zone = root_zone
        self._options = options
        self._deadline = deadline
        self._vaultdir = VaultDir(backing, keyring.vault, root_zone.keys.session)
        self.inodes = InodeTable(backing)
        self._directories = Directories(self.inodes, keyring.zones, self._vaultdir.zone_roots(root_zone.keys))
        self.settler = Settler(backing, self._release)
        self._opener = FileOpener(backing, self.inodes, keyring, self.settler.on_dirty)
        symlinks = Symlinks(backing.root_fd)
        namespace = Namespace(backing, self.inodes, self._directories, symlinks)
        self._attributes = Attributes(self.inodes)
        self.operations = Operations(
            backing,
            self.inodes,
            self._directories,
            namespace,
            self._opener,
            keyring,
            self._attributes,
            Setattr(self.inodes, self._opener),
            no_xattrs=options.noxattr,
        )
        self._session: Session | None = None
        self.recovered: Report | None = None
        self._device: FuseDevice | None = None
        self._lockdown: Lockdown | None = None
        self._watches: dict[bytes, CmkWatch] = {}

    def _release(self, file: OpenFile) -> None:
        self._opener.release(file)

    # -- beginning and end -----------------------------------------------------------------------

    async def recover_and_open(self) -> None:
        """Settle what an earlier session left, then begin one. Raises Damaged, OSError."""
        self._check_root()
        last = self._vaultdir.session()
        if last.state is SessionState.OPEN:
            recovery = Recovery(self._backing, self.inodes, self._directories, self._opener, self.settler)
            self.recovered = await recovery.run(last.unsettled_since)
            self._attributes.found_sizes = recovery.found_sizes
        if not self._backing.read_only:
            since = self._vaultdir.backing_now_ns()
            if self.recovered is not None and self.recovered.incomplete:
                since = last.unsettled_since
            self._session = Session(last.sequence + 1, SessionState.OPEN, random_id(), since)
            await self._vaultdir.write_session(self._session)

    def _check_root(self) -> None:
        """The vault's root is the directory that its zone record names. Raises Damaged."""
        zone = self._root_zone
        root = zone.keys.open_zone_root(self._keyring.vault.vault_hash, zone.record)
        directory = self._directories.of(self.inodes.root)
        expected = ZoneRoot(directory.zone.zone_id, NO_DIRECTORY, directory.dir_id, b"")
        if root != expected:
            raise Damaged("the zone record of the vault's root belongs to another directory")

    def use(self, device: FuseDevice) -> None:
        """From now on locks reach this kernel connection."""
        self._device = device
        self._lockdown = Lockdown(self._keyring, self.inodes, self.operations, self.settler, device)
        self._watches[self._root_zone.cmk_id] = self._watch(self._root_zone)

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
        complete = self.recovered is None or not self.recovered.incomplete
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
            await self._backing.sync_whole()
            closed = Session(session.sequence + 1, SessionState.CLOSED, session.session_id, session.unsettled_since)
            await self._vaultdir.write_session(closed)
        except OSError as error:
            return str(error)
        return ""

    def _name(self, file: OpenFile) -> str:
        return self._lockdown.path_of(file) if self._lockdown is not None else "?"

    def background(self) -> list[Callable[[], Awaitable[None]]]:
        """Tasks to run while requests are served."""
        return [self.settler.run, self._locks.renew_leases, *(watch.run for watch in self._watches.values())]

    def ready_report(self) -> Fields:
        """What the mount command tells its user."""
        return {
            "mountpoint": str(self._mountpoint),
            "vault": str(self._vault),
            "pid": os.getpid(),
            "recovered": None if self.recovered is None else self.recovered.facts(),
            "has_policy": self._keyring.policies.get(self._root_zone.cmk_id) is not None,
            "warnings": self._warnings(),
        }

    # -- lock and unlock -------------------------------------------------------------------------

    def _watch(self, zone: Zone) -> CmkWatch:
        async def lock(why: KeyUnavailable) -> None:
            await self._locks.lock(self._under(zone.cmk_id), why)

        async def unlock() -> None:
            await self._locks.unlock(z for z in self._under(zone.cmk_id) if not z.locked_by_operator)

        return CmkWatch(
            zone.cmk_id,
            zone.cmk_name,
            self._provider,
            self._token,
            self._keyring.policies,
            lock,
            unlock,
            revocation_bound=self._options.revocation_bound,
            outage_grace=self._options.outage_grace,
            deadline=self._deadline,
        )

    @property
    def _locks(self) -> Lockdown:
        if self._lockdown is None:
            raise RuntimeError("the mount is not served yet")
        return self._lockdown

    def _under(self, cmk_id: bytes) -> list[Zone]:
        return [zone for zone in self._keyring.zones.values() if zone.cmk_id == cmk_id]

    async def begin_watching(self) -> None:
        """Bring the policies, before anything is served. Raises Disabled, TokenUnavailable, …"""
        for watch in self._watches.values():
            await watch.begin()

    # -- control ---------------------------------------------------------------------------------

    def control_handlers(self) -> Mapping[str, Handler]:
        """What the control socket can ask for."""
        return {
            "status": self._status,
            "lock": self._lock,
            "unlock": self._unlock,
            "info": self._info,
            "confirm": self._confirm,
        }

    def _named(self, arguments: Fields) -> list[Zone]:
        name = arguments.get("cmk")
        zones = [zone for zone in self._keyring.zones.values() if name in (None, zone.cmk_name)]
        if not zones:
            raise NotFound(f"no zone of this mount is under CMK {name}", hint=f"cmkfs status {self._mountpoint}")
        return zones

    async def _lock(self, arguments: Fields) -> Fields:
        zones = self._named(arguments)
        already = all(zone.locked_by_operator for zone in zones)
        for zone in zones:
            zone.locked_by_operator = True
        why = Locked("an operator locked the zone", hint=f"cmkfs unlock {self._mountpoint}")
        report = await self._locks.lock(zones, why, drop_dirty=bool(arguments.get("now")))
        return {
            "was_locked": already,
            "stored_bytes": report.stored_bytes,
            "dropped_bytes": report.dropped_bytes,
            "open": [{"uid": by.uid, "pid": by.pid, "path": by.path} for by in report.open],
        }

    async def _unlock(self, arguments: Fields) -> Fields:
        zones = self._named(arguments)
        was_unlocked = all(zone.state is ZoneState.SERVING for zone in zones)
        for zone in zones:
            watch = self._watches[zone.cmk_id]
            await watch.look()
            if watch.refusal is not None:
                raise type(watch.refusal)(str(watch.refusal), hint=watch.refusal.next_step)
            if not watch.healthy:
                raise TokenUnavailable("the token does not answer")
        await self._locks.unlock(zones)
        for zone in zones:
            zone.locked_by_operator = False
        return {"was_unlocked": was_unlocked}

    async def _confirm(self, arguments: Fields) -> Fields:
        cmk_id = bytes.fromhex(str(arguments.get("cmk_id", "")))
        watch = self._watches.get(cmk_id)
        if watch is None:
            raise NotFound("no zone of this mount is under that CMK")
        await watch.look()
        return {"state": self._state(self._under(cmk_id)), "policy": watch.policy_hash}

    async def _status(self, _arguments: Fields) -> Fields:
        zones = list(self._keyring.zones.values())
        dirty = self.settler.dirty
        token = await self._token_facts()
        return {
            "mountpoint": str(self._mountpoint),
            "vault": str(self._vault),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "state": self._state(zones),
            "read_only": self._backing.read_only,
            "zones": [
                {
                    "zone": zone.zone_id.hex(),
                    "cmk": zone.cmk_name,
                    "cmk_id": zone.cmk_id.hex(),
                    "state": self._state([zone]),
                    "reason": zone.reason,
                }
                for zone in zones
            ],
            "leases": self._keyring.leases,
            "unwraps": self._keyring.unwraps,
            "open_files": len(self.operations.handles.files),
            "known_inodes": len(self.inodes),
            "dirty_files": len(dirty),
            "dirty_bytes": sum(file.unsynced_bytes for file in dirty),
            "backing_syncs": self._backing.fsyncs,
            "requests": Requests.count,
            "bugs": Bugs.count,
            "token": token,
            "recovered": None if self.recovered is None else self.recovered.facts(),
            "stable_pages": "device" if self._backing.kind.waits_by_itself else "waited",
            "warnings": self._warnings(),
        }

    async def _token_facts(self) -> Fields:
        healthy = all(watch.healthy for watch in self._watches.values())
        try:
            info = await self._token.call(self._provider.token_info, deadline=self._deadline)
        except CmkfsError:
            return {"label": None, "serial": None, "healthy": False}
        return {"label": info.label, "serial": info.serial, "healthy": healthy}

    def _state(self, zones: list[Zone]) -> str:
        if all(zone.state is ZoneState.SERVING for zone in zones):
            return "serving"
        if any(self._watches[zone.cmk_id].refusal is not None and zone.disabled for zone in zones):
            return "disabled"
        return "locked"

    def _warnings(self) -> list[str]:
        warnings = []
        if self._backing.failed is not None:
            warnings.append(f"a sync of the backing failed: {self._backing.failed}")
        if self._backing.kind.fstype in ("unknown", "vfat", "exfat"):
            warnings.append(f"the backing is {self._backing.kind.fstype}: what a power cut leaves there is not known")
        negotiated = self._device.negotiated if self._device is not None else None
        if negotiated is not None and negotiated.fallback:
            warnings.append(f"slower than it could be: {negotiated.fallback}")
        broken = sum(file.sync_failed for file in self.settler.dirty)
        if broken:
            warnings.append(f"{broken} files could not be made durable")
        return warnings

    async def _info(self, arguments: Fields) -> Fields:
        number = arguments.get("ino")
        if not isinstance(number, int):
            raise UsageError("info needs an inode number")
        inode = self.inodes.get(1 if number == os.fstat(self._backing.root_fd).st_ino else number)
        if inode is None:
            raise NotFound("the mount does not know this inode")
        zone = self.operations.zone_of(inode)
        zone.check()
        return {**self._facts(inode), "zone": zone.zone_id.hex(), "cmk": zone.cmk_name, "format": 1}

    def _facts(self, inode: Inode) -> Fields:
        found = self.inodes.stat(inode)
        facts: Fields = {
            "kind": _KINDS.get(inode.fmt, "unknown"),
            "plain_size": self._attributes.fill(inode, found).st_size,
            "cipher_size": found.st_size,
            "backing_path": self._backing_path(inode),
            "cmk_version": self._root_zone.record.recipient.version.version,
            "state": "clean",
            "file_id": None,
        }
        if inode.fmt == stat.S_IFREG:
            identity = inode.file.identity if inode.file is not None else self._identity(inode)
            dirty = inode.file is not None and inode.file.slots.dirty
            facts["state"] = "dirty" if dirty else "clean"
            facts["file_id"] = identity.file_id.hex()
            facts["cmk_version"] = identity.recipients[0].version.version
        return facts

    def _identity(self, inode: Inode) -> Identity:
        fd = self.inodes.open(inode, os.O_RDONLY)
        try:
            return Identity.from_bytes(os.pread(fd, 4096, 0))
        finally:
            os.close(fd)

    def _backing_path(self, inode: Inode) -> str:
        parts: list[str] = []
        while inode.places:
            inode, name = inode.places[-1]
            parts.append(os.fsdecode(name))
        return str(self._vault.joinpath(*reversed(parts)))

"""The answers of a mount to control requests: status, lock, unlock, info, confirm."""

import errno
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import cast

import trio

from cmkfs.audit.process import person_name
from cmkfs.auditing import MountAudit
from cmkfs.caller import Request
from cmkfs.config import check_remount
from cmkfs.control.protocol import PEER, Fields, Peer
from cmkfs.control.server import Handler
from cmkfs.errors import (
    AlreadyExists,
    CmkfsError,
    KeyUnavailable,
    Locked,
    NotFound,
    PolicyDenied,
    TokenUnavailable,
    UsageError,
)
from cmkfs.format.header import Identity
from cmkfs.format.recipient import CmkId
from cmkfs.fs.guard import Bugs
from cmkfs.fs.inode import Inode
from cmkfs.fs.kernel_mount import mounted_at
from cmkfs.fs.reporting import backing_parts
from cmkfs.fuse.session import Requests
from cmkfs.keys.zone import Zone, ZoneState
from cmkfs.mounted import Mounted
from cmkfs.policy import Action, Decision

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}

_STATUS_SECONDS = 1.0
"""A status does not wait longer for a token that hangs: it says so."""


class ControlAnswers:
    """What the control socket of a mount can ask for."""

    def __init__(self, mounted: Mounted, audit: MountAudit | None = None) -> None:
        self._mounted = mounted
        self._audit = audit
        self.ending = False
        """Nothing can be open any more, and what is left is stored."""

    def handlers(self) -> Mapping[str, Handler]:
        """What the control socket can ask for."""
        return {
            "alive": self._alive,
            "status": self._status,
            "lock": self._lock,
            "unlock": self._unlock,
            "info": self._info,
            "confirm": self._confirm,
            "zones": self._zones,
            "zone_create": self._zone_create,
            "zone_remove": self._zone_remove,
            "audit": self._audit_head,
            "remount": self._remount,
        }

    def _named(self, arguments: Fields) -> list[Zone]:
        name = arguments.get("cmk")
        zones = [zone for zone in self._mounted.keyring.zones.values() if name in (None, zone.cmk_name)]
        if not zones:
            raise NotFound(
                f"no zone of this mount is under CMK {name}", hint=f"cmkfs status {self._mounted.mountpoint}"
            )
        return zones

    async def _alive(self, _arguments: Fields) -> Fields:
        """That there is an answer is the answer: the event loop does not hang."""
        return {}

    async def _lock(self, arguments: Fields) -> Fields:
        asker = _asker(arguments)
        zones, refusal = self._allowed(self._named(arguments), asker, Action.LOCK)
        already = all(zone.locked_by_operator for zone in zones)
        for zone in zones:
            zone.locked_by_operator = True
        why = Locked(f"{_name(asker)} locked the zone", hint=f"cmkfs unlock {self._mounted.mountpoint}")
        report = await self._mounted.locks.lock(zones, why, drop_dirty=bool(arguments.get("now")), by=asker)
        for zone in zones:
            if zone.state is ZoneState.LOCKED and not isinstance(zone.refusal(), Locked):
                zone.explain(why)  # of all reasons the one that only an unlock ends
        if refusal is not None:
            raise refusal
        return {
            "by": _name(asker),
            "was_locked": already,
            "stored_bytes": report.stored_bytes,
            "dropped_bytes": report.dropped_bytes,
            "open": [{"uid": by.uid, "pid": by.pid, "path": by.path} for by in report.open],
            "not_recorded": self._audit_failure(),
        }

    def _allowed(self, zones: list[Zone], by: Peer | None, action: Action) -> tuple[list[Zone], PolicyDenied | None]:
        """Those of the zones whose policies let the caller lock or unlock them, and the refusal of another one.

        Raises that if none does.
        """
        if by is None:
            return zones, None
        allowed, refusal = [], None
        for zone in zones:
            decision = self._mounted.keyring.policies.decide_admin(zone.cmk_id, by, action)
            if decision.allowed:
                allowed.append(zone)
                continue
            error = PolicyDenied(
                f"{_name(by)} may not {action} what is under CMK {zone.cmk_name}",
                hint=f"cmkfs policy show {zone.cmk_name}",
                rule=decision.rule,
                action=action,
            )
            refusal = refusal or error
            self._mounted.keyring.audit.changed(
                action, outcome="refused", reason=str(error), caller=by, zone=zone, rule=decision.rule
            )
        if refusal is not None and not allowed:
            raise refusal
        return allowed, refusal

    async def _unlock(self, arguments: Fields) -> Fields:
        asker = _asker(arguments)
        zones, refusal = self._allowed(self._named(arguments), asker, Action.UNLOCK)
        try:
            answer = await self._unlock_zones(zones, asker)
        except CmkfsError as error:
            for zone in zones:
                self._mounted.keyring.audit.changed(
                    "unlock", outcome="refused", reason=str(error), caller=asker, zone=zone
                )
            raise
        if refusal is not None:
            raise refusal
        return {"by": _name(asker), **answer}

    async def _unlock_zones(self, zones: list[Zone], by: Peer | None) -> Fields:
        self._mounted.keyring.audit.require_room()
        was_unlocked = all(zone.state is ZoneState.SERVING for zone in zones)
        refused: CmkfsError | None = None
        for zone in zones:  # each by itself: one whose CMK is disabled does not keep the others locked
            try:
                await self._unlock_one(zone, by)
            except CmkfsError as error:
                refused = refused or error
        if refused is not None:
            raise type(refused)(str(refused), hint=refused.next_step)
        return {"was_unlocked": was_unlocked}

    async def _unlock_one(self, zone: Zone, by: Peer | None) -> None:
        watch = self._mounted.watches[zone.cmk_id]
        await watch.look()
        if watch.refusal is not None:
            raise watch.refusal
        if not watch.healthy:
            raise TokenUnavailable("the token does not answer")
        await self._mounted.unlock([zone], by=by)
        zone.locked_by_operator = False

    async def _confirm(self, arguments: Fields) -> Fields:
        cmk_id = bytes.fromhex(str(arguments.get("cmk_id", "")))
        watch = self._mounted.watches.get(cmk_id)
        if watch is None or not self._mounted.under(cmk_id):
            raise NotFound("no zone of this mount is under that CMK")
        await watch.look()
        return {"state": self._state(self._mounted.under(cmk_id)), "policy": watch.policy_hash}

    async def _status(self, _arguments: Fields) -> Fields:
        zones = list(self._mounted.keyring.zones.values())
        dirty = self._mounted.settler.dirty
        token = await self._token_facts()
        return {
            "mountpoint": str(self._mounted.mountpoint),
            "vault": str(self._mounted.vault),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            # The root zone's: without it no path leads anywhere. Of the others `zones` tells.
            "state": self._state([self._mounted.root_zone]),
            "ending": self.ending,
            "detached": mounted_at(os.fsencode(self._mounted.mountpoint)) is None,
            "read_only": self._mounted.backing.read_only,
            "zones": [self._zone_facts(zone) for zone in zones],
            "leases": self._mounted.keyring.leases,
            "keys_ahead": self._mounted.keyring.keys_ahead,
            "unwraps": self._mounted.keyring.unwraps,
            "open_files": len(self._mounted.operations.handles.files),
            "known_inodes": len(self._mounted.inodes),
            "dirty_files": len(dirty),
            "dirty_bytes": sum(file.unsynced_bytes for file in dirty),
            "damaged": self._damaged(),
            "backing_syncs": self._mounted.backing.fsyncs,
            "requests": Requests.total(),
            "requests_by_kind": dict(Requests.by_kind),
            "bugs": Bugs.count,
            "token": token,
            "audit": None if self._audit is None else self._audit.facts(),
            "recovered": None if self._mounted.recovered is None else self._mounted.recovered.facts(),
            "stable_pages": "device" if self._mounted.backing.kind.waits_by_itself else "waited",
            "warnings": [*self._mounted.warnings(), *self._audit_warnings()],
        }

    def _damaged(self) -> list[Fields]:
        """The files that could not be read or stored, until they are written anew or removed."""
        mounted = self._mounted
        why = {inode: inode.trouble for inode in mounted.operations.troubles.list()}
        why |= {file.inode: "it could not be made durable" for file in mounted.settler.dirty if file.sync_failed}
        return [{"path": mounted.locks.path_of(inode), "why": what} for inode, what in why.items()]

    def _zone_facts(self, zone: Zone) -> Fields:
        return {
            "zone": zone.zone_id.hex(),
            "cmk": zone.cmk_name,
            "cmk_id": zone.cmk_id.hex(),
            "state": self._state([zone]),
            "reason": zone.reason,
        }

    async def _zones(self, _arguments: Fields) -> Fields:
        """All zones, with the paths of their roots as far as they can be told without a key that is away."""
        paths = await self._mounted.zones.paths()
        zones = []
        for zone in self._mounted.keyring.zones.values():
            path = b"" if zone is self._mounted.root_zone else paths.get(zone.zone_id)
            where = None if path is None else os.fsdecode(os.path.join(os.fsencode(self._mounted.mountpoint), path))
            zones.append({"path": where, **self._zone_facts(zone)})
        return {"mountpoint": str(self._mounted.mountpoint), "zones": zones}

    async def _zone_create(self, arguments: Fields) -> Fields:
        cmk, asker = str(arguments.get("cmk")), _asker(arguments)
        with self._recorded("zone.create", arguments, f"under CMK {cmk}"):
            inode = self._inode(arguments)
            found = await self._mounted.zones.cmk_for_new_zone(cmk)
            await self._mounted.read_policy(found)
            for cmk_id in (self._mounted.operations.zone_of(inode).cmk_id, found.cmk_id):
                self._require_right(cmk_id, asker, Action.CREATE)
            zone = await self._mounted.create_zone(inode, cmk, by=asker)
        return {"zone": zone.zone_id.hex(), "cmk": zone.cmk_name, "cmk_id": zone.cmk_id.hex()}

    async def _zone_remove(self, arguments: Fields) -> Fields:
        asker = _asker(arguments)
        with self._recorded("zone.remove", arguments, "the zone stays"):
            inode = self._inode(arguments)
            for directory in (inode, *(parent for parent, _ in inode.places)):
                self._require_right(self._mounted.operations.zone_of(directory).cmk_id, asker, Action.DELETE)
            zone = await self._mounted.remove_zone(inode, by=asker)
        return {"zone": zone.zone_id.hex(), "cmk": zone.cmk_name, "cmk_id": zone.cmk_id.hex()}

    def _require_right(self, cmk_id: CmkId, by: Peer | None, action: Action) -> None:
        """Return if the policy lets the user do with data under the CMK what a zone command does."""
        policies = self._mounted.keyring.policies
        decision = (
            Decision(True, "") if by is None else policies.decide(cmk_id, Request(by.uid, by.gid, by.pid), action)
        )
        if not self._mounted.under(cmk_id):
            policies.forget(cmk_id)  # it was read for this question; a zone that is made reads it again
        if not decision.allowed:
            raise PolicyDenied(f"{_name(by)} may not {action} under the CMK", rule=decision.rule, action=action)

    async def _remount(self, arguments: Fields) -> Fields:
        """Whether the mount may be given these options; with `noatime`, that it has been given them."""
        check_remount(self._mounted.options, cast(list[str], arguments["words"]))
        if "noatime" in arguments:
            backing = self._mounted.backing
            backing.noatime, backing.nodiratime = bool(arguments["noatime"]), bool(arguments["nodiratime"])
            for inode in self._mounted.inodes:
                if inode.file is not None:
                    inode.file.pages.count_reads()
        return {}

    @contextmanager
    def _recorded(self, event: str, arguments: Fields, what: str) -> Iterator[None]:
        """A change that is made in the block, which records it itself, or refused: then that is recorded."""
        audit = self._mounted.keyring.audit
        try:
            audit.require_room()
            with _told_as_errors():
                yield
        except CmkfsError as error:
            outcome = "refused" if isinstance(error, PolicyDenied | KeyUnavailable) else "failed"
            rule = error.rule if isinstance(error, PolicyDenied) else None
            audit.changed(event, outcome=outcome, reason=f"{what}: {error}", caller=_asker(arguments), rule=rule)
            raise

    async def _audit_head(self, _arguments: Fields) -> Fields:
        """Where the mount's audit log ends, so that `audit verify` sees what was cut off behind the daemon's back."""
        if self._audit is None:
            raise NotFound("this mount has no audit log")
        return asdict(self._audit.head())

    def _audit_warnings(self) -> list[str]:
        failure = self._audit_failure()
        return [] if failure is None else [f"the audit log cannot be written: {failure}"]

    def _audit_failure(self) -> str | None:
        return None if self._audit is None else self._audit.failure

    async def _token_facts(self) -> Fields:
        healthy = all(watch.healthy for watch in self._mounted.watches.values())
        try:
            with trio.fail_after(_STATUS_SECONDS):
                info = await self._mounted.keyring.token.token_info()
        except (CmkfsError, trio.TooSlowError):
            return {"label": None, "serial": None, "healthy": False}
        return {"label": info.label, "serial": info.serial, "healthy": healthy}

    def _state(self, zones: list[Zone]) -> str:
        if all(zone.state is ZoneState.SERVING for zone in zones):
            return "serving"
        watched = [zone for zone in zones if zone.cmk_id in self._mounted.watches]  # a new one is not yet
        if any(self._mounted.watches[zone.cmk_id].refusal is not None and zone.disabled for zone in watched):
            return "disabled"
        return "locked"

    def _inode(self, arguments: Fields) -> Inode:
        number = arguments.get("ino")
        if not isinstance(number, int):
            raise UsageError("the request needs an inode number")
        inode = self._mounted.inodes.get(1 if number == os.fstat(self._mounted.backing.root_fd).st_ino else number)
        if inode is None:
            raise NotFound("the mount does not know this inode")
        return inode

    async def _info(self, arguments: Fields) -> Fields:
        inode = self._inode(arguments)
        zone = self._mounted.operations.zone_of(inode)
        zone.check()
        return {**self._facts(inode), "zone": zone.zone_id.hex(), "cmk": zone.cmk_name, "format": 1}

    def _facts(self, inode: Inode) -> Fields:
        found = self._mounted.inodes.stat(inode)
        facts: Fields = {
            "kind": _KINDS.get(inode.fmt, "unknown"),
            "plain_size": self._mounted.attributes.fill(inode, found).st_size,
            "cipher_size": found.st_size,
            "backing_path": self._backing_path(inode),
            "cmk_version": self._mounted.operations.zone_of(inode).record.recipient.version.version,
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
        fd = self._mounted.inodes.open(inode, os.O_RDONLY)
        try:
            return Identity.from_bytes(os.pread(fd, 4096, 0))
        finally:
            os.close(fd)

    def _backing_path(self, inode: Inode) -> str:
        return str(self._mounted.vault.joinpath(*backing_parts(inode)))


def _asker(arguments: Fields) -> Peer | None:
    """Who sent the request."""
    peer = arguments.get(PEER)
    return peer if isinstance(peer, Peer) else None


def _name(asker: Peer | None) -> str:
    return "an operator" if asker is None else person_name(asker)


@contextmanager
def _told_as_errors() -> Iterator[None]:
    """What goes wrong in the vault, as the command tells it."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise AlreadyExists("the directory is not empty", hint="name a new or empty directory") from error
        raise CmkfsError(f"the vault: {error.strerror or error}") from error

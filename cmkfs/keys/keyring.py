"""The gate: the one place that decides who gets a key.

`authorize` asks the policy, `lease` gives a file's key, `lock` and `unlock` end and begin all leases.
Nothing else in cmkfs unwraps a DEK. Runs on the event loop; token calls go through `keys.token_client`.
"""

import os
from dataclasses import dataclass

from cmkfs.audit.auditor import Auditor
from cmkfs.caller import Request
from cmkfs.crypto.dek import FileKey
from cmkfs.crypto.kdf import commitment
from cmkfs.crypto.zonekeys import ZoneKeys
from cmkfs.errors import CmkfsError, CmkNotFound, Damaged, KeyUnavailable, Locked, PolicyDenied, UnknownFormat
from cmkfs.format.header import Identity
from cmkfs.format.recipient import Recipient, WrapContext, WrapKind
from cmkfs.format.vault import VaultFile
from cmkfs.keys.dekcache import DekCache
from cmkfs.keys.newest import NewestVersion
from cmkfs.keys.policies import Policies
from cmkfs.keys.pool import MOST, DekPool, NewFile, random_id
from cmkfs.keys.provider import SECRET_SIZE
from cmkfs.keys.token_client import TokenClient, WrappedSecret
from cmkfs.keys.zone import Zone, ZoneState
from cmkfs.policy import Action


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to use a file's key now: good while the zone's epoch is the one it was given in."""

    key: FileKey
    zone: Zone
    epoch: int

    @property
    def valid(self) -> bool:
        """One comparison, made before each use."""
        return self.epoch == self.zone.epoch


class Keyring:
    """All zones of a mount, and the only way to their keys."""

    def __init__(self, vault: VaultFile, token: TokenClient, policies: Policies) -> None:
        self.vault = vault
        self.policies = policies
        self.token = token
        self.zones: dict[bytes, Zone] = {}
        self._caches: dict[bytes, DekCache] = {}
        self._pools: dict[bytes, DekPool] = {}
        self._newest: dict[bytes, NewestVersion] = {}
        self.unwraps = 0
        self.audit = Auditor()
        """Who is told of each use of a key, each refusal and each change; a mount puts its log here."""

    # -- who may ---------------------------------------------------------------------------------

    def authorize(self, zone: Zone, request: Request, action: Action) -> str:
        """The rule that allows it, if the zone serves. Raises PolicyDenied, Locked, Disabled, …"""
        zone.check()
        decision = self.policies.decide(zone.cmk_id, request, action)
        if not decision.allowed:
            raise PolicyDenied(
                f"uid {request.uid} may not {action} under CMK {zone.cmk_name}", rule=decision.rule, action=action
            )
        return decision.rule

    def authorize_any(self, zone: Zone, request: Request, actions: tuple[Action, ...]) -> None:
        """Return if at least one of `actions` is allowed: a name is looked up before anything else is done with it."""
        zone.check()
        for action in actions:
            if self.policies.decide(zone.cmk_id, request, action).allowed:
                return
        rule = self.policies.decide(zone.cmk_id, request, actions[0]).rule
        raise PolicyDenied(f"uid {request.uid} has no rights under CMK {zone.cmk_name}", rule=rule)

    # -- file keys -------------------------------------------------------------------------------

    async def lease(self, zone: Zone, identity: Identity) -> Lease:
        """The key of a file. Raises Locked, Disabled, TokenUnavailable, Tampered, Damaged."""
        if identity.zone_id != zone.zone_id:
            raise Damaged("a file whose header belongs to another zone")
        zone.check()
        epoch = zone.epoch
        key = await self._caches[zone.zone_id].get_or_unwrap(
            identity.hash(), lambda: self._unwrap(zone, identity, epoch)
        )
        lease = Lease(key, zone, epoch)
        if not lease.valid:
            raise _ended(zone)
        return lease

    async def lease_to_settle(self, zone: Zone, identity: Identity) -> Lease:
        """The key of a file with dirty pages, while a lock stores them. Raises Disabled, Locked, TokenUnavailable."""
        return Lease(await self._unwrap(zone, identity, zone.epoch), zone, zone.epoch)

    async def new_file(self, zone: Zone) -> tuple[Identity, Lease]:
        """Identity and lease for a file that is being created. Raises Locked, Disabled, TokenUnavailable."""
        zone.check()
        epoch = zone.epoch
        new = await self._pools[zone.zone_id].take()
        if zone.epoch != epoch:
            raise _ended(zone)
        self._caches[zone.zone_id].put(new.key.identity_hash, new.key)
        return new.identity, Lease(new.key, zone, epoch)

    async def _unwrap(self, zone: Zone, identity: Identity, epoch: int) -> FileKey:
        dek = await self._unwrap_any(zone, identity)
        try:
            if zone.epoch != epoch:
                raise _ended(zone)
            return FileKey(dek, identity, zone.keys_to_settle().header_secret)
        finally:
            dek[:] = bytes(len(dek))

    async def _unwrap_any(self, zone: Zone, identity: Identity) -> bytearray:
        """The DEK, from the first recipient under the zone's CMK that the token opens. Raises Damaged, Disabled, …"""
        failure: Damaged | None = None
        for recipient in identity.recipients:
            if recipient.version.cmk_id == zone.cmk_id and recipient.version.usable:
                try:
                    return await self._unwrap_one(zone, identity, recipient)
                except Damaged as error:
                    failure = failure or error
        raise failure or Damaged("a file that is wrapped under no CMK of its zone")

    async def _unwrap_one(self, zone: Zone, identity: Identity, recipient: Recipient) -> bytearray:
        version, wrapped, context = self._request(zone, identity, recipient)
        self.unwraps += 1
        try:
            return await self.token.unwrap(version, wrapped, context=context)
        except CmkNotFound as error:
            # Gone, or never there: a header can name any version.
            await self.token.canary(zone.cmk_id)
            raise Damaged("a file that is wrapped under a version that the CMK does not have") from error

    def _request(self, zone: Zone, identity: Identity, recipient: Recipient) -> WrappedSecret:
        context = WrapContext(
            WrapKind.FILE, self.vault.vault_hash, zone.zone_id, identity.file_id, identity.commitment
        ).to_bytes(recipient.version)
        return recipient.version, recipient.wrapped, context

    async def deks(self, zone: Zone, identities: list[Identity]) -> list[bytearray | Damaged]:
        """The DEKs of many files in few token calls, or what is wrong with their headers.

        For `check`, which opens content in other processes; the caller wipes them. Raises Disabled, TokenUnavailable.
        """
        zone.check()
        requests = {
            number: self._request(zone, identity, recipient)
            for number, identity in enumerate(identities)
            for recipient in identity.recipients[:1]
            if recipient.version.cmk_id == zone.cmk_id and recipient.version.usable
        }
        opened: dict[int, bytearray] = {}
        waiting = list(requests)
        while waiting:
            secrets = await self.token.unwrap_many([requests[number] for number in waiting])
            self.unwraps += len(secrets)
            for number, secret in zip(waiting, secrets, strict=False):
                if secret is not None:
                    opened[number] = secret
            waiting = waiting[len(secrets) :]
        return [opened.get(number) or await self._dek(zone, identity) for number, identity in enumerate(identities)]

    async def _dek(self, zone: Zone, identity: Identity) -> bytearray | Damaged:
        """One by one where the first recipient did not do."""
        try:
            return await self._unwrap_any(zone, identity)
        except Damaged as error:
            return error

    async def _prepare(self, zone: Zone, count: int) -> list[NewFile]:
        """Up to `count` new files, with a token call each. Raises Disabled, TokenUnavailable, …"""
        epoch = zone.epoch
        zone.check()
        version = await self._newest[zone.zone_id].ask()
        secrets = [(random_id(), os.urandom(SECRET_SIZE)) for _ in range(count)]
        commitments = [commitment(dek) for _, dek in secrets]
        contexts = [
            WrapContext(WrapKind.FILE, self.vault.vault_hash, zone.zone_id, file_id, committed).to_bytes(version)
            for (file_id, _), committed in zip(secrets, commitments, strict=True)
        ]
        wanted = [(dek, context) for (_, dek), context in zip(secrets, contexts, strict=True)]
        made = await self.token.wrap_many(version, wanted)
        if zone.epoch != epoch:
            raise _ended(zone)
        secret, new_files = zone.keys.header_secret, []
        for (file_id, dek), committed, wrapped in zip(secrets, commitments, made, strict=False):
            identity = Identity(file_id, zone.zone_id, committed, (Recipient(version, wrapped),))
            key = FileKey(dek, identity, secret)
            key.prepare()
            new_files.append(NewFile(identity, key))
        return new_files

    # -- zones -----------------------------------------------------------------------------------

    def add_zone(self, zone: Zone) -> DekPool:
        """Know a zone; it is locked until `unlock`. Gives its pool, whose `keep_filled` the caller runs."""
        self.zones[zone.zone_id] = zone
        self._caches[zone.zone_id] = DekCache()

        async def prepare(count: int) -> list[NewFile]:
            return await self._prepare(zone, count)

        self._newest[zone.zone_id] = NewestVersion(self.token, zone.cmk_id)
        self._pools[zone.zone_id] = DekPool(
            prepare, most=lambda: MOST // len(self.zones), parallel=lambda: self.token.parallel
        )
        return self._pools[zone.zone_id]

    def remove_zone(self, zone: Zone) -> None:
        """Forget a zone that the vault does not have (any more); its keys go, and who still asks is refused."""
        self.end_leases(zone, Locked("the zone was removed", hint=""))
        self.drop_keys(zone)
        del self.zones[zone.zone_id]
        del self._caches[zone.zone_id]
        self._pools.pop(zone.zone_id).end()
        del self._newest[zone.zone_id]
        if all(other.cmk_id != zone.cmk_id for other in self.zones.values()):
            self.policies.forget(zone.cmk_id)

    async def unlock(self, zone: Zone, *, recover_first: bool = False) -> None:
        """Unwrap the zone's secret and serve. Raises Disabled, TokenUnavailable, Tampered; then it stays locked.

        `recover_first`: the recovery alone is served, until `Zone.end_recovering`.
        """
        if zone.state is ZoneState.SERVING:
            return
        recipient, context = zone_secret(self.vault, zone)
        epoch = zone.epoch
        secret = await self.token.unwrap(recipient.version, recipient.wrapped, context=context)
        try:
            if zone.epoch != epoch:
                raise _ended(zone)  # a lock came while the token was asked
            keys = ZoneKeys(zone.zone_id, secret, zone.record.commitment)
            zone.begin_serving(keys, recover_first=recover_first)
        finally:
            secret[:] = bytes(len(secret))

    def end_leases(self, zone: Zone, why: KeyUnavailable) -> None:
        """First half of a lock: from now on nothing is given out."""
        zone.begin_settling(why)
        self._caches[zone.zone_id].clear()
        self._pools[zone.zone_id].clear()

    def drop_keys(self, zone: Zone) -> None:
        """Second half of a lock: what was dirty is sealed, the keys go."""
        zone.drop_keys()
        self._caches[zone.zone_id].clear()
        self._pools[zone.zone_id].clear()

    def pool_of(self, zone: Zone) -> DekPool:
        """The pool of a zone."""
        return self._pools[zone.zone_id]

    @property
    def keys_ahead(self) -> int:
        """How many files can be created without a wait for the token."""
        return sum(len(pool) for pool in self._pools.values())

    @property
    def leases(self) -> int:
        """How many file keys are in memory."""
        return sum(len(cache) for cache in self._caches.values())


def zone_secret(vault: VaultFile, zone: Zone) -> tuple[Recipient, bytes]:
    """What must be unwrapped, and in which context, for the 32 bytes all keys of a zone come from."""
    recipient = zone.record.recipient
    if not recipient.version.usable:
        raise UnknownFormat(f"the zone's secret is wrapped with the unknown scheme {recipient.version.scheme}")
    context = WrapContext(WrapKind.ZONE, vault.vault_hash, zone.zone_id, zone.zone_id, zone.record.commitment)
    return recipient, context.to_bytes(recipient.version)


def _ended(zone: Zone) -> CmkfsError:
    """Why a key that was asked for is not given: the zone was locked meanwhile, and perhaps serves again."""
    return KeyUnavailable("the zone was just locked") if zone.state is ZoneState.SERVING else zone.refusal()

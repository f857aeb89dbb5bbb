"""A zone under a CMK of a token in memory, and a keyring for it: no vault on a disk."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio
from contract.fake_token import FakeProvider, FakeToken
from contract.token_thread import ThreadTransport, TokenWorker

from cmkfs.caller import Request
from cmkfs.crypto.kdf import commitment
from cmkfs.crypto.zonekeys import ZoneKeys
from cmkfs.format.header import Identity
from cmkfs.format.recipient import Recipient, WrapContext, WrapKind
from cmkfs.format.vault import NO_DIRECTORY, VaultFile, ZoneRecord, ZoneRoot
from cmkfs.keys.keyring import Keyring
from cmkfs.keys.policies import Policies
from cmkfs.keys.pool import DekPool
from cmkfs.keys.provider import Cmk, KeyProvider
from cmkfs.keys.token_client import TokenClient
from cmkfs.keys.zone import Zone

OWNER = Request(uid=1000, gid=1000, pid=0)
STRANGER = Request(uid=2000, gid=2000, pid=0)
DEADLINE = 5.0


@dataclass(slots=True)
class OneZone:
    """The objects; `zone` is locked at first."""

    token: FakeToken
    provider: FakeProvider
    cmk: Cmk
    vault: VaultFile
    worker: TokenWorker
    policies: Policies
    keyring: Keyring
    zone: Zone
    pool: DekPool

    async def file(self) -> Identity:
        """A new file's identity, whose key is in no cache and no pool."""
        identity, _ = await self.keyring.new_file(self.zone)
        self.forget()
        return identity

    def forget(self) -> None:
        """Empty the cache of unwrapped keys."""
        for cache in self.keyring._caches.values():
            cache.clear()


@contextmanager
def one_zone() -> Iterator[OneZone]:
    """Made for a block; the worker's thread ends with it."""
    token = FakeToken()
    provider = token.elsewhere
    assert isinstance(provider, FakeProvider)
    cmk = provider.create("data", "aes-256")
    vault, zone = new_zone(provider, cmk)
    worker, policies = TokenWorker(), Policies(OWNER.uid)
    policies.set_policy(cmk.cmk_id, None)
    keyring = Keyring(vault, TokenClient(ThreadTransport(worker, provider), DEADLINE), policies)
    try:
        yield OneZone(token, provider, cmk, vault, worker, policies, keyring, zone, keyring.add_zone(zone))
    finally:
        token.answer()
        assert worker.close(wait=5.0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for another thread or task, also while the clock stands still."""
    while not condition():
        await trio.lowlevel.checkpoint()


def new_zone(provider: KeyProvider, cmk: Cmk) -> tuple[VaultFile, Zone]:
    """A vault's description and its root zone."""
    vault = VaultFile.new(os.urandom(16))
    zone_id, secret = os.urandom(16), os.urandom(32)
    version = provider.newest(cmk.cmk_id)
    context = WrapContext(WrapKind.ZONE, vault.vault_hash, zone_id, zone_id, commitment(secret)).to_bytes(version)
    keys = ZoneKeys(zone_id, secret, commitment(secret))
    sealed = keys.seal_zone_root(vault.vault_hash, ZoneRoot(zone_id, NO_DIRECTORY, os.urandom(16), b""))
    recipient = Recipient(version, provider.wrap(version, secret, context=context))
    return vault, Zone(zone_id, ZoneRecord(zone_id, commitment(secret), recipient, sealed), cmk.name)

"""A new zone's secret, made here and wrapped by the token (docs/format.md, sections 4 and 5)."""

import os
from dataclasses import dataclass

from cmkfs.crypto.kdf import commitment
from cmkfs.crypto.zonekeys import ZoneKeys
from cmkfs.format.recipient import CmkId, CmkVersion, Recipient, WrapContext, WrapKind
from cmkfs.format.vault import VaultFile, ZoneRecord, ZoneRoot
from cmkfs.keys.pool import random_id
from cmkfs.keys.provider import SECRET_SIZE, KeyProvider
from cmkfs.keys.token_client import TokenClient


@dataclass(frozen=True, slots=True)
class NewZone:
    """The keys of a zone that is not in any vault yet, and the secret that they come from, wrapped."""

    zone_id: bytes
    commitment: bytes
    recipient: Recipient
    keys: ZoneKeys

    def record(self, vault: VaultFile, parent_dir_id: bytes, dir_id: bytes, name: bytes) -> ZoneRecord:
        """The record for a zone whose root is the directory `dir_id`, called `name` in its parent."""
        root = ZoneRoot(self.zone_id, parent_dir_id, dir_id, name)
        sealed = self.keys.seal_zone_root(vault.vault_hash, root)
        return ZoneRecord(self.zone_id, self.commitment, self.recipient, sealed)


class _Secret:
    """A secret until it is wrapped."""

    def __init__(self, vault: VaultFile) -> None:
        self._vault = vault
        self._zone_id = random_id()
        self._secret = bytearray(os.urandom(SECRET_SIZE))
        self._commitment = commitment(self._secret)

    def to_wrap(self, version: CmkVersion) -> tuple[bytes, bytes]:
        """Secret and context."""
        context = WrapContext(WrapKind.ZONE, self._vault.vault_hash, self._zone_id, self._zone_id, self._commitment)
        return bytes(self._secret), context.to_bytes(version)

    def wrapped(self, version: CmkVersion, wrapped: bytes) -> NewZone:
        """The zone; the secret goes."""
        keys = ZoneKeys(self._zone_id, self._secret, self._commitment)
        self._secret[:] = bytes(len(self._secret))
        return NewZone(self._zone_id, self._commitment, Recipient(version, wrapped), keys)


def make_zone(provider: KeyProvider, vault: VaultFile, cmk_id: CmkId) -> NewZone:
    """A zone under a CMK, with one wrap. Blocks. Raises Disabled, CmkNotFound, TokenUnavailable, …"""
    secret, version = _Secret(vault), provider.newest(cmk_id)
    plain, context = secret.to_wrap(version)
    return secret.wrapped(version, provider.wrap(version, plain, context=context))


async def make_zone_on_mount(token: TokenClient, vault: VaultFile, cmk_id: CmkId) -> NewZone:
    """The same through the token of a mount."""
    secret, version = _Secret(vault), await token.newest(cmk_id)
    (wrapped,) = await token.wrap_many(version, [secret.to_wrap(version)])
    return secret.wrapped(version, wrapped)

"""The key that an open file holds: a lease, renewed when a lock has ended it, gone when the lock is complete."""

from cmkfs.crypto.dek import FileKey
from cmkfs.errors import KeyUnavailable
from cmkfs.format.header import Identity
from cmkfs.keys.keyring import Keyring, Lease
from cmkfs.keys.zone import ZoneState


class HeldKey:
    """Gives the file's key to those who may have it now, and to nobody else."""

    __slots__ = ("_keyring", "_lease", "identity", "zone")

    def __init__(self, keyring: Keyring, identity: Identity, lease: Lease) -> None:
        self._keyring = keyring
        self._lease: Lease | None = lease
        self.identity = identity
        self.zone = lease.zone

    async def reading(self) -> FileKey:
        """The key, for what is given out. Raises Locked, Disabled, TokenUnavailable, …"""
        self.zone.check()
        while self._lease is None or not self._lease.valid:
            identity = self.identity
            lease = await self._keyring.lease(self.zone, identity)
            if self.identity is identity:  # else it was truncated meanwhile, and has another key now
                self._lease = lease
        return self._lease.key

    async def storing(self) -> FileKey:
        """The key, for dirty pages that the kernel hands over: also while a lock settles."""
        if not self._settling():
            try:
                return await self.reading()
            except KeyUnavailable:
                if not self._settling():
                    raise
                # A lock came while it waited for the token: what it brings shall be stored all the same.
        if self._lease is None:
            # Written since an unlock, without a request: the key was not needed until now.
            self._lease = await self._keyring.lease_to_settle(self.zone, self.identity)
        return self._lease.key

    def _settling(self) -> bool:
        return self.zone.state is ZoneState.SETTLING

    @property
    def at_hand(self) -> FileKey | None:
        """The key if it is here, to seal slots with: it needs no lease to say what is stored already."""
        return None if self._lease is None else self._lease.key

    def replace(self, identity: Identity, lease: Lease) -> Identity:
        """The file has another key from now on; gives the identity that it had."""
        old, self.identity, self._lease = self.identity, identity, lease
        return old

    def drop(self) -> None:
        """The lock has come: nothing of this file can be opened or sealed any more."""
        self._lease = None

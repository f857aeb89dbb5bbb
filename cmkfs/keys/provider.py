"""What cmkfs needs of a token, and nothing more.

Two protocols: `KeyProvider` is what a mount uses (a read-only session), `KeyAdmin` what the commands
use that change keys. Every call blocks; a mount has them made by a process of its own (`keys.token_process`),
which has one thread (facts 1 to 3 of docs/adr/0003: SoftHSM does not survive more).

Errors are a closed set: `Disabled`, `CmkNotFound`, `Tampered`, `TokenUnavailable`, `KeyDenied`,
`PinRefused` from `cmkfs.errors`. Everything else that a module says is mapped to one of them.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from cmkfs.audit.chain import Head
from cmkfs.format.recipient import CmkId, CmkVersion, Scheme

__all__ = [
    "SECRET_SIZE",
    "Cmk",
    "CmkId",
    "CmkState",
    "CmkVersion",
    "Head",
    "KeyAdmin",
    "KeyProvider",
    "Scheme",
    "TokenInfo",
]

SECRET_SIZE = 32
"""Bytes of every secret that is wrapped: a DEK or a zone secret."""


class CmkState(StrEnum):
    """States of a CMK; the moves between them are in `keys.cmk`."""

    ENABLED = "enabled"
    DISABLED = "disabled"
    PENDING_IMPORT = "pending-import"
    PENDING_DELETION = "pending-deletion"
    DESTROYED = "destroyed"


@dataclass(frozen=True, slots=True)
class Cmk:
    """What a token knows of a CMK. `created` is ISO 8601 in UTC; `enforced_by` is `token` or `record`."""

    name: str
    cmk_id: CmkId
    state: CmkState
    key_type: str
    origin: str
    created: str
    versions: tuple[int, ...]
    enforced_by: str


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """A token as its module shows it."""

    provider: str
    label: str
    serial: str
    manufacturer: str
    model: str
    initialised: bool


class KeyProvider(Protocol):
    """What a mount may do with a token: wrap, unwrap, look."""

    def newest(self, cmk_id: CmkId) -> CmkVersion:
        """The version that wraps now. Raises CmkNotFound, TokenUnavailable. Works while disabled."""
        ...

    def wrap(self, version: CmkVersion, secret: bytes, *, context: bytes) -> bytes:
        """Wrap 32 bytes under a CMK version, bound to `context`. Raises Disabled, CmkNotFound, TokenUnavailable."""
        ...

    def unwrap(self, version: CmkVersion, wrapped: bytes, *, context: bytes) -> bytearray:
        """The 32 bytes again. Raises Tampered if `wrapped` or `context` is not what was wrapped."""
        ...

    def canary(self, cmk_id: CmkId) -> None:
        """Return if every version of the CMK can unwrap now; raises Disabled, CmkNotFound, TokenUnavailable."""
        ...

    def find(self, name: str) -> Cmk:
        """The CMK of this name. Raises CmkNotFound, TokenUnavailable."""
        ...

    def describe(self, cmk_id: CmkId) -> Cmk:
        """The CMK of this id. Raises CmkNotFound, TokenUnavailable."""
        ...

    def policy(self, cmk_id: CmkId) -> str | None:
        """The TOML text of the CMK's policy, None if it has none. Raises CmkNotFound, TokenUnavailable."""
        ...

    def token_info(self) -> TokenInfo:
        """The token that this provider is bound to. Raises TokenUnavailable."""
        ...

    def audit_mac(self, message: bytes) -> bytes:
        """HMAC-SHA256 (32 bytes) under the token's audit key, which is made at the first call.

        No state of a CMK touches it. Raises TokenUnavailable, KeyDenied (it cannot be made).
        """
        ...

    def audit_heads(self) -> tuple[Head, ...]:
        """The ends of audit logs that the token remembers. Raises TokenUnavailable."""
        ...

    def remember_audit_head(self, head: Head) -> None:
        """Remember the end of a log in the place of an older one. Raises TokenUnavailable, KeyDenied."""
        ...

    def recover(self) -> None:
        """After TokenUnavailable: drop every handle, initialise again, find the token by label and serial, log in."""
        ...

    def close(self) -> None:
        """Log out and let go of the module. Idempotent."""
        ...


class KeyAdmin(KeyProvider, Protocol):
    """What changes keys; needs a read-write session."""

    def create(self, name: str, key_type: str) -> Cmk:
        """A new CMK, generated in the token: sensitive, not extractable, not copyable. Raises AlreadyExists."""
        ...

    def cmks(self) -> tuple[Cmk, ...]:
        """Every CMK in the token, by name."""
        ...

    def set_enabled(self, cmk_id: CmkId, enabled: bool) -> bool:
        """Switch the usage attributes of all versions, newest first; False if it was so already."""
        ...

    def set_policy(self, cmk_id: CmkId, text: str | None) -> None:
        """Keep the policy's TOML text with the CMK, or remove it (None)."""
        ...

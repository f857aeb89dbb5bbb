"""The token as a mount sees it: the calls of `KeyProvider`, asynchronous, each with a deadline.

Who makes them is the transport's: a process of its own for a mount (`keys.token_process`). Nothing else in a mount
talks to a token.
"""

import time
from collections.abc import Sequence
from typing import Any, Final, Protocol

from cmkfs.audit.chain import Head
from cmkfs.errors import CmkNotFound, Damaged, TokenUnavailable
from cmkfs.format.recipient import CmkId, CmkVersion
from cmkfs.keys.provider import Cmk, KeyProvider, TokenInfo

BATCH_SECONDS: Final = 0.02
"""A batch of wraps ends after this, so that with a slow token nothing waits behind more than one of them."""

OPEN: Final = "open"
"""The name of the first call to such a process: log in."""

WrappedSecret = tuple[CmkVersion, bytes, bytes]
"""What an unwrap needs: version, wrapped bytes, context."""


class Transport(Protocol):
    """How a call gets to the provider."""

    @property
    def parallel(self) -> int:
        """How many calls are worth making at once."""
        ...

    async def ask(self, deadline: float, name: str, *args: Any, **named: Any) -> Any:
        """What `perform` gives for these arguments, wherever it runs. Raises TokenUnavailable at the deadline."""
        ...


def perform(provider: KeyProvider, name: str, *args: Any, **named: Any) -> Any:
    """One call: a method of the provider, `wrap_many`, or `unwrap_many`."""
    if name == "wrap_many":
        return wrap_many(provider, *args, **named)
    if name == "unwrap_many":
        return unwrap_many(provider, *args, **named)
    return getattr(provider, name)(*args, **named)


def wrap_many(provider: KeyProvider, version: CmkVersion, wanted: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    """Wrap (secret, context) pairs, each by itself; fewer than asked for if that takes long, never none."""
    began = time.monotonic()
    wrapped: list[bytes] = []
    for secret, context in wanted:
        wrapped.append(provider.wrap(version, secret, context=context))
        if time.monotonic() - began > BATCH_SECONDS:
            break
    return wrapped


def unwrap_many(provider: KeyProvider, wanted: Sequence[WrappedSecret]) -> list[bytes | None]:
    """Unwrap secrets, None for one that does not open; fewer than asked for if that takes long, never none."""
    began = time.monotonic()
    secrets: list[bytes | None] = []
    for version, wrapped, context in wanted:
        try:
            secrets.append(bytes(provider.unwrap(version, wrapped, context=context)))
        except (Damaged, CmkNotFound):
            secrets.append(None)  # asked for again by itself, which tells why
        if time.monotonic() - began > BATCH_SECONDS:
            break
    return secrets


class TokenClient:
    """`KeyProvider` for the event loop. Each method raises what the provider's does, and TokenUnavailable when late."""

    def __init__(self, transport: Transport, deadline: float) -> None:
        """`deadline` is in seconds, for each call."""
        self._transport = transport
        self._deadline = deadline
        self.outage: str | None = None
        """Why the token is away, while the watch finds it so: nobody who wants a key waits for it then."""

    @property
    def parallel(self) -> int:
        """How many calls are worth making at once."""
        return self._transport.parallel

    async def unwrap(self, version: CmkVersion, wrapped: bytes, *, context: bytes) -> bytearray:
        """The 32 bytes of a wrapped secret."""
        self._require_present()
        return bytearray(await self._ask("unwrap", version, wrapped, context=context))

    async def wrap_many(self, version: CmkVersion, wanted: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
        """The first of the (secret, context) pairs, wrapped: as many as a short while allows, never none."""
        self._require_present()
        wrapped: list[bytes] = await self._ask("wrap_many", version, list(wanted))
        return wrapped

    async def unwrap_many(self, wanted: Sequence[WrappedSecret]) -> list[bytearray | None]:
        """The first of the wrapped secrets: as many as a short while allows, never none. None: it does not open."""
        secrets: list[bytes | None] = await self._ask("unwrap_many", list(wanted))
        return [None if secret is None else bytearray(secret) for secret in secrets]

    async def newest(self, cmk_id: CmkId) -> CmkVersion:
        """The version that wraps now."""
        self._require_present()
        version: CmkVersion = await self._ask("newest", cmk_id)
        return version

    async def canary(self, cmk_id: CmkId) -> None:
        """Return if every version of the CMK can unwrap now."""
        await self._ask("canary", cmk_id)

    async def find(self, name: str) -> Cmk:
        """The CMK of this name."""
        cmk: Cmk = await self._ask("find", name)
        return cmk

    async def describe(self, cmk_id: CmkId) -> Cmk:
        """The CMK of this id."""
        cmk: Cmk = await self._ask("describe", cmk_id)
        return cmk

    async def policy(self, cmk_id: CmkId) -> str | None:
        """The TOML text of the CMK's policy, None if it has none."""
        text: str | None = await self._ask("policy", cmk_id)
        return text

    async def token_info(self) -> TokenInfo:
        """The token that the provider is bound to."""
        info: TokenInfo = await self._ask("token_info")
        return info

    async def audit_mac(self, message: bytes) -> bytes:
        """HMAC-SHA256 under the token's audit key."""
        tag: bytes = await self._ask("audit_mac", message)
        return tag

    async def audit_heads(self) -> tuple[Head, ...]:
        """The ends of audit logs that the token remembers."""
        heads: tuple[Head, ...] = await self._ask("audit_heads")
        return heads

    async def remember_audit_head(self, head: Head) -> None:
        """Have the token remember the end of an audit log."""
        await self._ask("remember_audit_head", head)

    async def recover(self) -> None:
        """After TokenUnavailable: begin anew."""
        await self._ask("recover")

    def _require_present(self) -> None:
        if self.outage is not None:
            raise TokenUnavailable(self.outage)

    async def _ask(self, name: str, *args: Any, **named: Any) -> Any:
        return await self._transport.ask(self._deadline, name, *args, **named)

"""The version of a CMK that wraps now, asked for once for many wraps."""

import time
from typing import Final

import trio

from cmkfs.format.recipient import CmkId, CmkVersion
from cmkfs.keys.token_client import TokenClient

_KEEP_SECONDS: Final = 1.0
_KEEP_TIMES_ITS_COST: Final = 20
"""To ask costs ten times what a wrap does: of a slow token's time it takes a twentieth at most."""


class NewestVersion:
    """Of one CMK. Of several who ask at once the first asks the token."""

    def __init__(self, token: TokenClient, cmk_id: CmkId) -> None:
        self._token = token
        self._cmk_id = cmk_id
        self._version: CmkVersion | None = None
        self._until = 0.0
        self._asking = trio.Lock()

    async def ask(self) -> CmkVersion:
        """Raises CmkNotFound, TokenUnavailable."""
        if self._version is None or time.monotonic() >= self._until:
            async with self._asking:
                if self._version is None or time.monotonic() >= self._until:
                    await self._ask()
        assert self._version is not None
        return self._version

    async def _ask(self) -> None:
        began = time.monotonic()
        self._version = await self._token.newest(self._cmk_id)
        now = time.monotonic()
        self._until = now + max(_KEEP_SECONDS, _KEEP_TIMES_ITS_COST * (now - began))

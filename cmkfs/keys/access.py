"""From the configuration to a token: which module, which token, whose PIN; embedded or not.

Nothing here loads the module, or what speaks with one, before it must: a daemon has a process for that.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cmkfs import config
from cmkfs.config import TokenConfig
from cmkfs.errors import NotFound, TokenUnavailable
from cmkfs.home import Home
from cmkfs.keys import embedded
from cmkfs.keys.pin import PinKind, PinSource, read_pin
from cmkfs.keys.provider import TokenInfo

if TYPE_CHECKING:
    from cmkfs.keys.pkcs11 import Pkcs11Provider


@dataclass(frozen=True, slots=True)
class TokenAccess:
    """How to reach the configured token. `label` is empty for the embedded one: it is the only one there."""

    module: str
    label: str
    serial: str | None
    pin_source: PinSource
    softhsm2_conf: Path | None

    @classmethod
    def of(cls, token: TokenConfig, home: Home) -> "TokenAccess":
        """As the configuration says. Raises NotFound (no embedded token), TokenUnavailable (no SoftHSM2)."""
        if token.module is not None and token.pin_source is not None:
            return cls(token.module, token.label, token.serial, _source(token.pin_source), token.softhsm2_conf)
        if not embedded.exists(home):
            raise NotFound(f"there is no token in {home.token_dir}", hint="cmkfs token init")
        source = PinSource(PinKind.FILE, str(embedded.pin_file(home)))
        return cls(embedded.find_module(), "", None, source, embedded.conf_file(home))

    def read_pin(self) -> str:
        """The PIN, from its source, once. Raises ConfigError."""
        return read_pin(self.pin_source, label=self.label or "cmkfs")

    def tokens(self) -> tuple[TokenInfo, ...]:
        """The initialised tokens that the module shows; needs no PIN. Raises TokenUnavailable."""
        from cmkfs.keys.pkcs11_session import list_tokens

        return list_tokens(self.module, self.softhsm2_conf)

    def open(self, pin: str, *, read_write: bool) -> "Pkcs11Provider":
        """Log in; in the thread that will use the provider. Raises TokenUnavailable, PinRefused, Busy."""
        from cmkfs.keys.pkcs11 import Pkcs11Provider

        label, serial = self.label, self.serial
        if not label:
            found = self.tokens()
            if len(found) != 1:
                raise TokenUnavailable(f"{self.softhsm2_conf} shows {len(found)} tokens where one should be")
            label, serial = found[0].label, found[0].serial
        return Pkcs11Provider(self.module, label, serial, pin, read_write=read_write, softhsm2_conf=self.softhsm2_conf)


def _source(source: config.PinSource) -> PinSource:
    if source.file is not None:
        return PinSource(PinKind.FILE, str(source.file))
    if source.env is not None:
        return PinSource(PinKind.ENV, source.env)
    if source.command is not None:
        return PinSource(PinKind.COMMAND, shlex.join(source.command))
    return PinSource(PinKind.PROMPT)

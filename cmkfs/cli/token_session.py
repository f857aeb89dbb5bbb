"""A login to the configured token for the time of one command."""

from collections.abc import Iterator
from contextlib import contextmanager

from cmkfs import config
from cmkfs.config import TokenConfig
from cmkfs.home import Home
from cmkfs.keys.access import TokenAccess
from cmkfs.keys.pkcs11 import Pkcs11Provider


@contextmanager
def token(home: Home, *, read_write: bool) -> Iterator[Pkcs11Provider]:
    """Reads the PIN, logs in, and logs out afterwards. Raises NotFound, TokenUnavailable, PinRefused, …"""
    with _logged_in(TokenAccess.of(config.load(home.config_file).token, home), read_write) as provider:
        yield provider


@contextmanager
def embedded_token(home: Home) -> Iterator[Pkcs11Provider]:
    """The same with the embedded token, whatever is configured."""
    with _logged_in(TokenAccess.of(TokenConfig(), home), read_write=True) as provider:
        yield provider


@contextmanager
def _logged_in(access: TokenAccess, read_write: bool) -> Iterator[Pkcs11Provider]:
    provider = access.open(access.read_pin(), read_write=read_write)
    try:
        yield provider
    finally:
        provider.close()

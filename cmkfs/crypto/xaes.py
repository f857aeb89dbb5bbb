"""XAES-256-GCM key derivation (C2SP, https://c2sp.org/XAES-256-GCM): a 24-byte nonce safe to choose at random.

The first 12 bytes of the nonce derive a key (NIST SP 800-108r1 KDF in counter mode with CMAC), the last
12 are the GCM nonce under it. Deriving is the slow part, so callers keep the derived cipher.
"""

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_SIZE = 32
NONCE_SIZE = 24
PREFIX_SIZE = 12
"""The part of the nonce that derives a key."""
TAG_SIZE = 16


class Xaes:
    """A key from which one AES-256-GCM cipher is derived per nonce prefix."""

    __slots__ = ("_block", "_k1")

    def __init__(self, key: bytes | bytearray) -> None:
        # ECB is the raw block cipher that CMAC is made of; nothing is encrypted with it.
        self._block = Cipher(algorithms.AES256(bytes(key)), modes.ECB()).encryptor()  # noqa: S305
        zero = int.from_bytes(self._block.update(bytes(16)), "big")
        doubled = (zero << 1) ^ (0x87 if zero >> 127 else 0)
        self._k1 = doubled & (2**128 - 1)

    def derive(self, prefix: bytes) -> AESGCM:
        """The cipher for nonces that begin with the 12 bytes `prefix`."""
        halves = b"".join(
            (int.from_bytes(b"\x00" + bytes([counter]) + b"X\x00" + prefix, "big") ^ self._k1).to_bytes(16, "big")
            for counter in (1, 2)
        )
        return AESGCM(self._block.update(halves))

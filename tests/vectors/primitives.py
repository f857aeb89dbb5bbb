"""The primitives of docs/format.md section 1, written from their standards; shared by reader and maker.

Pure: bytes in, bytes out. Each opening function raises `cryptography.exceptions.InvalidTag` when the
bytes do not authenticate. The published vectors of the standards are in `primitive.json`.
"""

import base64
import hashlib
import hmac

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand


def sha256(data: bytes) -> bytes:
    """SHA-256, 32 bytes."""
    return hashlib.sha256(data).digest()


def kdf(key: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand with SHA-256 (RFC 5869 section 2.3) with `key` as PRK; `length` bytes."""
    return HKDFExpand(SHA256(), length, info).derive(key)


def mac(key: bytes, message: bytes) -> bytes:
    """HMAC-SHA-256 (RFC 2104), 32 bytes."""
    return hmac.digest(key, message, "sha256")


def siv_seal(key: bytes, associated: list[bytes], plain: bytes) -> bytes:
    """AES-SIV (RFC 5297): synthetic IV (16) ‖ ciphertext; `plain` may be empty."""
    return AESSIV(key).encrypt(plain, associated)


def siv_open(key: bytes, associated: list[bytes], sealed: bytes) -> bytes:
    """Inverse of `siv_seal`."""
    return AESSIV(key).decrypt(sealed, associated)


def _xaes_key(key: bytes, nonce: bytes) -> bytes:
    """The AES-256-GCM key for the first 12 bytes of `nonce` (C2SP XAES-256-GCM: CMAC as the KDF)."""
    aes = Cipher(AES(key), ECB()).encryptor()
    doubled = int.from_bytes(aes.update(bytes(16)), "big") << 1
    if doubled >> 128:
        doubled = doubled & ((1 << 128) - 1) ^ 0x87
    halves = (int.from_bytes(bytes([0, n]) + b"X\0" + nonce[:12], "big") for n in (1, 2))
    return b"".join(aes.update((half ^ doubled).to_bytes(16, "big")) for half in halves)


def xaes_seal(key: bytes, nonce: bytes, plain: bytes, associated: bytes) -> bytes:
    """XAES-256-GCM (C2SP) with a 24-byte nonce: ciphertext ‖ tag (16)."""
    return AESGCM(_xaes_key(key, nonce)).encrypt(nonce[12:], plain, associated)


def xaes_open(key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
    """Inverse of `xaes_seal`."""
    return AESGCM(_xaes_key(key, nonce)).decrypt(nonce[12:], sealed, associated)


def b64(data: bytes) -> str:
    """Base64url without padding (RFC 4648 section 5)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def unb64(text: str) -> bytes:
    """Inverse of `b64`; ValueError for what `b64` never gives, such as spare bits that are not zero."""
    data = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    if b64(data) != text:  # else one name could stand in a directory under several spellings
        raise ValueError("not canonical base64url")
    return data

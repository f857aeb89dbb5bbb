"""The two functions all keys come from: HKDF-Expand (RFC 5869, section 2.3) and HMAC-SHA-256 (RFC 2104).

Every input key is 32 or more uniformly random bytes, so HKDF's extract step is left out (section 3.3).
"""

import hmac


def kdf(key: bytes | bytearray, info: bytes, length: int) -> bytes:
    """`length` bytes, at most 8160, derived from `key` for the purpose `info`."""
    output, part, counter = b"", b"", 1
    while len(output) < length:
        part = hmac.digest(key, part + info + bytes([counter]), "sha256")
        output += part
        counter += 1
    return output[:length]


def mac(key: bytes, message: bytes) -> bytes:
    """32 bytes that only a holder of `key` can compute."""
    return hmac.digest(key, message, "sha256")


def commitment(secret: bytes | bytearray) -> bytes:
    """32 bytes that tell one secret from every other without telling it: GCM itself does not commit to its key."""
    return kdf(secret, b"cmkfs commit v1", 32)

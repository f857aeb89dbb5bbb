"""XAES-256-GCM against the published vectors (https://c2sp.org/XAES-256-GCM)."""

import hashlib

import pytest

from cmkfs.crypto.xaes import KEY_SIZE, NONCE_SIZE, PREFIX_SIZE, Xaes

NONCE = b"ABCDEFGHIJKLMNOPQRSTUVWX"


def seal(key: bytes, nonce: bytes, plain: bytes, associated: bytes) -> bytes:
    return Xaes(key).derive(nonce[:PREFIX_SIZE]).encrypt(nonce[PREFIX_SIZE:], plain, associated)


@pytest.mark.parametrize(
    ("key", "associated", "sealed"),
    [  # one with each value of the most significant bit that the subkey's doubling looks at
        (b"\1" * 32, b"", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
        (b"\3" * 32, b"c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
    ],
)
def test_the_vectors(key: bytes, associated: bytes, sealed: str) -> None:
    assert seal(key, NONCE, b"XAES-256-GCM", associated).hex() == sealed


def test_the_accumulated_vector_of_10000_random_inputs() -> None:
    stream, at = hashlib.shake_128().digest(4_000_000), 0

    def take(length: int) -> bytes:
        nonlocal at
        at += length
        return stream[at - length : at]

    sealed = hashlib.shake_128()
    for _ in range(10_000):
        key, nonce = take(KEY_SIZE), take(NONCE_SIZE)
        plain = take(take(1)[0])
        sealed.update(seal(key, nonce, plain, take(take(1)[0])))
    assert sealed.hexdigest(32) == "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"

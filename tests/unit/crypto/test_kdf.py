"""HKDF-Expand and HMAC against the vectors of their RFCs."""

import hashlib

import pytest

from cmkfs.crypto.kdf import commitment, kdf, mac


@pytest.mark.parametrize(
    ("prk", "info", "length", "output"),
    [  # RFC 5869, appendix A, cases 1 to 3
        (
            "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
            "f0f1f2f3f4f5f6f7f8f9",
            42,
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            "06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244",
            "".join(f"{byte:02x}" for byte in range(0xB0, 0x100)),
            82,
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"
            "59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
        ),
        (
            "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04",
            "",
            42,
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
)
def test_the_vectors_of_rfc_5869(prk: str, info: str, length: int, output: str) -> None:
    assert kdf(bytes.fromhex(prk), bytes.fromhex(info), length).hex() == output
    assert kdf(bytearray.fromhex(prk), bytes.fromhex(info), length).hex() == output


def test_the_second_vector_of_rfc_4231() -> None:
    found = mac(b"Jefe", b"what do ya want for nothing?")
    assert found.hex() == "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"


def test_a_commitment_tells_secrets_apart_and_is_not_another_key() -> None:
    one, two = bytes(32), bytes(31) + b"\1"
    assert commitment(one) == kdf(one, b"cmkfs commit v1", 32)
    assert len({commitment(one), commitment(two), kdf(one, b"cmkfs content v1", 32), hashlib.sha256(one).digest()}) == 4

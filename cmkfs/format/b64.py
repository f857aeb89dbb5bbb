"""Base64url without padding (RFC 4648, section 5), accepted only in its one canonical form."""

import base64
import binascii

from cmkfs.errors import Damaged


def encode(data: bytes) -> bytes:
    """ASCII bytes without `=`."""
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def decode(text: bytes) -> bytes:
    """The bytes again. Raises Damaged unless `encode` gives exactly `text`."""
    try:
        data = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise Damaged("not base64url") from error
    if encode(data) != text:
        raise Damaged("not canonical base64url")
    return data

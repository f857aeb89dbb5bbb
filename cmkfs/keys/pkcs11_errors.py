"""What a PKCS#11 module says, as one of the errors that callers may meet.

The set is closed (`keys.provider`): Disabled, KeyDenied, PinRefused, and TokenUnavailable for all the
rest. `Tampered` and `CmkNotFound` cannot be told from a return code: a wrong tag is CKR_GENERAL_ERROR
on SoftHSM 2.6.1, and a token that was removed answers searches with nothing. `keys.pkcs11` decides
these two by asking the token again.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pkcs11

from cmkfs.errors import Disabled, KeyDenied, KeyUnavailable, PinRefused, TokenUnavailable

CKR_ACTION_PROHIBITED: Final = 0x1B
CKR_KEY_FUNCTION_NOT_PERMITTED: Final = 0x68

_PIN = (
    pkcs11.PinIncorrect,
    pkcs11.PinInvalid,
    pkcs11.PinLenRange,
    pkcs11.PinLocked,
    pkcs11.PinExpired,
    pkcs11.UserPinNotInitialized,
)
_DENIED = (
    pkcs11.SessionReadOnly,
    pkcs11.AttributeReadOnly,
    pkcs11.AttributeSensitive,
    pkcs11.AttributeTypeInvalid,
    pkcs11.AttributeValueInvalid,
    pkcs11.TemplateInconsistent,
    pkcs11.TokenWriteProtected,
    pkcs11.FunctionRejected,
    pkcs11.KeyUnextractable,
)

GONE: Final = (pkcs11.ObjectHandleInvalid, pkcs11.KeyHandleInvalid)
"""An object that was there is not there any more: destroyed by somebody else, or the token was removed."""

# python-pkcs11 0.10.1 has no class for some codes and only says so in the message.
_UNMAPPED = re.compile(r"Unmapped error code (0x[0-9a-f]+)")


def return_code(error: pkcs11.PKCS11Error) -> int | None:
    """The CKR_ code of an error that python-pkcs11 has no class for, else None."""
    match = _UNMAPPED.fullmatch(str(error))
    return None if match is None else int(match[1], 16)


def translate(error: pkcs11.PKCS11Error, doing: str) -> KeyUnavailable:
    """The error to raise in place of `error`; `doing` completes "the token refused …"."""
    said = str(error) or type(error).__name__
    if isinstance(error, _PIN):
        return PinRefused(f"the token refused the PIN ({type(error).__name__})")
    code = return_code(error)
    if code == CKR_KEY_FUNCTION_NOT_PERMITTED:
        return Disabled(f"the token refused {doing}: the key is disabled")
    if code == CKR_ACTION_PROHIBITED or isinstance(error, _DENIED):
        return KeyDenied(f"the token refused {doing} ({said})")
    return TokenUnavailable(f"the token failed {doing} ({said})")


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raise `translate(error, doing)` for every PKCS11Error of the block."""
    try:
        yield
    except pkcs11.PKCS11Error as error:
        raise translate(error, doing) from error

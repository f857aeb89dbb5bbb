"""Return codes of PKCS#11 as the errors of cmkfs."""

import pkcs11
import pytest

from cmkfs.errors import CmkfsError, Disabled, KeyDenied, PinRefused, TokenUnavailable
from cmkfs.keys.pkcs11_errors import return_code, translate, translated


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (pkcs11.PKCS11Error("Unmapped error code 0x68"), Disabled),
        (pkcs11.PKCS11Error("Unmapped error code 0x1b"), KeyDenied),
        (pkcs11.PKCS11Error("Unmapped error code 0x1b0"), TokenUnavailable),
        (pkcs11.PinIncorrect(), PinRefused),
        (pkcs11.PinLocked(), PinRefused),
        (pkcs11.SessionReadOnly(), KeyDenied),
        (pkcs11.AttributeReadOnly(), KeyDenied),
        (pkcs11.GeneralError(), TokenUnavailable),
        (pkcs11.DeviceRemoved(), TokenUnavailable),
        (pkcs11.ObjectHandleInvalid(), TokenUnavailable),
        (pkcs11.UserNotLoggedIn(), TokenUnavailable),
        (pkcs11.PKCS11Error(), TokenUnavailable),
    ],
)
def test_translation(said: pkcs11.PKCS11Error, expected: type[CmkfsError]) -> None:
    assert type(translate(said, "to work")) is expected
    with pytest.raises(expected) as raised, translated("to work"):
        raise said
    assert raised.value.__cause__ is said


def test_every_error_of_the_library_has_a_translation() -> None:
    classes = [item for item in vars(pkcs11).values() if isinstance(item, type)]
    errors = [item for item in classes if issubclass(item, pkcs11.PKCS11Error)]
    assert len(errors) > 70
    allowed = {Disabled, KeyDenied, PinRefused, TokenUnavailable}
    assert {type(translate(item(), "to work")) for item in errors} <= allowed


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), translated("to work"):
        raise ZeroDivisionError


def test_return_code() -> None:
    assert return_code(pkcs11.PKCS11Error("Unmapped error code 0x68")) == 0x68
    assert return_code(pkcs11.GeneralError()) is None

"""Making a token of SoftHSM: the one thing that python-pkcs11 has no call for."""

import ctypes
from pathlib import Path

import pkcs11
from pkcs11 import TokenFlag

from cmkfs.errors import TokenUnavailable
from cmkfs.keys.embedded import LABEL_BYTES
from cmkfs.keys.pkcs11_errors import translated
from cmkfs.keys.pkcs11_session import loaded, present_tokens


def init_token(conf: Path, module: str, label: str, pin: str, so_pin: str) -> None:
    """Initialise a token where SoftHSM's configuration says, an empty directory, and set its PIN.

    Raises TokenUnavailable.
    """
    with loaded(module, conf) as library:
        with translated("to show a free slot"):
            slot = library.get_slots(token_present=True)[0]
        # python-pkcs11 has no C_InitToken, and softhsm2-util would take the PINs on its command line.
        # The module is loaded once per process, so this is the one that `loaded` has initialised.
        init = ctypes.CDLL(module).C_InitToken
        init.argtypes = [ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
        init.restype = ctypes.c_ulong
        padded = label.encode().ljust(LABEL_BYTES)
        code = init(slot.slot_id, so_pin.encode(), len(so_pin.encode()), padded)
        if code != 0:
            raise TokenUnavailable(f"SoftHSM could not initialise a token beside {conf} (error {code:#x})")
        with translated("to set the PIN"):
            library.reinitialize()
            token = next(token for token in present_tokens(library) if _is_initialised(token))
            session = token.open(rw=True, so_pin=so_pin)
            session.init_pin(pin)
            session.close()


def _is_initialised(token: pkcs11.Token) -> bool:
    return bool(token.flags & TokenFlag.TOKEN_INITIALIZED)

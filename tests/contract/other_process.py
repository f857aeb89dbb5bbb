"""A process of its own with the same token open: one JSON array `[method, arg…]` a line in, one answer out.

Run as `python other_process.py MODULE SOFTHSM2_CONF LABEL PIN_FILE`; ids are hexadecimal.
"""

import json
import sys
from pathlib import Path

from cmkfs.errors import CmkfsError
from cmkfs.keys.pin import PinKind, PinSource, read_pin
from cmkfs.keys.pkcs11 import Pkcs11Provider
from cmkfs.keys.provider import CmkId
from cmkfs.keys.softhsm_lock import StoreLock


def _answer(provider: Pkcs11Provider, method: str, *args: str | int | None) -> object:
    match method, *args:
        case "create", str(name), str(key_type):
            return provider.create(name, key_type).cmk_id.hex()
        case "set_enabled", str(cmk_id), bool(enabled):
            return provider.set_enabled(CmkId(bytes.fromhex(cmk_id)), enabled)
        case "storm", str(cmk_id), int(times):
            # Like a program that knows nothing of cmkfs's lock; an even number of times, so it ends enabled.
            provider._session.lock = StoreLock(None)
            for turn in range(2 * times):
                provider.set_enabled(CmkId(bytes.fromhex(cmk_id)), turn % 2 == 1)
            return None
        case "set_policy", str(cmk_id), (str() | None) as text:
            provider.set_policy(CmkId(bytes.fromhex(cmk_id)), text)
            return None
    raise ValueError(f"unknown request {method}")


def main() -> None:
    module, conf, label, pin_file = sys.argv[1:]
    pin = read_pin(PinSource(PinKind.FILE, pin_file), label=label)
    provider = Pkcs11Provider(module, label, None, pin, read_write=True, softhsm2_conf=Path(conf))
    for line in sys.stdin:
        try:
            answer = {"ok": _answer(provider, *json.loads(line))}
        except CmkfsError as error:
            answer = {"error": type(error).__name__}
        print(json.dumps(answer), flush=True)
    provider.close()


main()

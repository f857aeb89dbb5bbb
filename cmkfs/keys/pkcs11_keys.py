"""Using key objects: encrypt, decrypt, and the canary that tells whether a CMK works.

A handle is kept once it was found, because a search costs 30 µs per object in the token and a decrypt
25 µs (SoftHSM 2.6.1). The token checks its usage attributes on each call, so a kept handle of a key
that another process disabled is refused at once. A handle fetched *while* disabled has no `decrypt` at
all (python-pkcs11 builds the class from the attributes), so it is not kept.
"""

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import pkcs11
from pkcs11 import Attribute, GCMParams, Mechanism

from cmkfs.errors import CmkNotFound, Disabled, TokenUnavailable
from cmkfs.keys import cmk
from cmkfs.keys.pkcs11_errors import GONE, translate
from cmkfs.keys.pkcs11_objects import KeyObject, key_of, keys_named, read_key
from cmkfs.keys.pkcs11_session import TokenSession
from cmkfs.keys.provider import SECRET_SIZE, CmkId

K = TypeVar("K")

IV_SIZE: Final = 12
TAG_SIZE: Final = 16
MEND_SECONDS: Final = 1.0
MAX_MEND_SECONDS: Final = 60.0
"""The first and the longest time between two new sessions because a key has vanished."""

_CANARY_CONTEXT: Final = b"cmkfs canary v1"


@dataclass(frozen=True, slots=True)
class _Canary:
    """A value of no use to anybody, encrypted once under one version of a CMK."""

    iv: bytes
    plain: bytes
    cipher: bytes


class KeyHandles:
    """The keys of one token session. Not for two threads, like the session itself."""

    def __init__(self, session: TokenSession) -> None:
        self._session = session
        self._kept: dict[tuple[CmkId, int], pkcs11.Object] = {}
        self._canaries: dict[tuple[CmkId, int], _Canary] = {}
        self._names: dict[CmkId, str] = {}
        self._versions: dict[CmkId, set[int]] = {}
        self._mend_at: dict[CmkId, float] = {}
        self._absences: dict[CmkId, int] = {}

    def forget(self) -> None:
        """Drop every handle: after the module was initialised again none of them means anything."""
        self._kept.clear()
        self._canaries.clear()

    def named(self, name: str) -> list[KeyObject]:
        """All versions of the CMK of this name, newest first. Raises CmkNotFound, TokenUnavailable."""
        known_as = next((cmk_id for cmk_id, other in self._names.items() if other == name), None)
        found = self._find(keys_named(name), known_as)
        if not found:
            raise CmkNotFound(f"the token has no CMK {name!r}")
        if len({item.cmk_id for item in found}) > 1:
            raise CmkNotFound(f"the token has more than one CMK {name!r}; none of them is used")
        return self._noted(found)

    def of(self, cmk_id: CmkId) -> list[KeyObject]:
        """All versions of the CMK of this id, newest first. Raises CmkNotFound, TokenUnavailable."""
        # Version 1 is never removed: data wrapped under it needs it.
        first = self._find(key_of(cmk_id, 1), cmk_id if cmk_id in self._names else None)
        if not first:
            raise CmkNotFound(f"the token has no CMK with id {cmk_id.hex()}")
        found = self._find(keys_named(first[0].name), cmk_id)
        return self._noted([item for item in found if item.cmk_id == cmk_id] or first)

    def name_of(self, cmk_id: CmkId) -> str:
        """The name of the CMK, which never changes: searched for once. Raises CmkNotFound, TokenUnavailable."""
        if cmk_id not in self._names:
            self.of(cmk_id)
        return self._names[cmk_id]

    def encrypt(self, cmk_id: CmkId, version: int, iv: bytes, plain: bytes, context: bytes) -> bytes:
        """AES-256-GCM in the token: ciphertext ‖ tag. Raises Disabled, CmkNotFound, TokenUnavailable."""

        def action(key: pkcs11.EncryptMixin) -> Any:
            return key.encrypt(plain, mechanism=Mechanism.AES_GCM, mechanism_param=GCMParams(iv, context, 128))

        return bytes(self._use(cmk_id, version, pkcs11.EncryptMixin, action, "to encrypt"))

    def decrypt(self, cmk_id: CmkId, version: int, iv: bytes, cipher: bytes, context: bytes) -> bytearray:
        """The plaintext again. Raises Disabled, CmkNotFound, and TokenUnavailable *also for a wrong tag*.

        SoftHSM answers both with CKR_GENERAL_ERROR; `canary` tells them apart.
        """

        def action(key: pkcs11.DecryptMixin) -> Any:
            return key.decrypt(cipher, mechanism=Mechanism.AES_GCM, mechanism_param=GCMParams(iv, context, 128))

        return bytearray(self._use(cmk_id, version, pkcs11.DecryptMixin, action, "to decrypt"))

    def canary(self, cmk_id: CmkId) -> None:
        """Return if every version of the CMK that is known here decrypts now.

        Costs one decrypt per version. It decrypts what was encrypted once per session, and does not
        encrypt anew: at two canaries a second each mount would use up 2^26 of the 2^32 random IVs of a
        CMK version a year. Raises Disabled, CmkNotFound, TokenUnavailable.
        """
        if cmk_id not in self._versions:
            self.of(cmk_id)
        for version in sorted(self._versions[cmk_id], reverse=True):
            canary = self._canaries.get((cmk_id, version)) or self._new_canary(cmk_id, version)
            plain = self.decrypt(cmk_id, version, canary.iv, canary.cipher, _CANARY_CONTEXT)
            if not hmac.compare_digest(plain, canary.plain):
                raise TokenUnavailable("the token decrypts to something else than was encrypted")

    def _new_canary(self, cmk_id: CmkId, version: int) -> _Canary:
        iv, plain = secrets.token_bytes(IV_SIZE), secrets.token_bytes(SECRET_SIZE)
        canary = _Canary(iv, plain, self.encrypt(cmk_id, version, iv, plain, _CANARY_CONTEXT))
        self._canaries[cmk_id, version] = canary
        return canary

    def _noted(self, found: list[KeyObject]) -> list[KeyObject]:
        for item in found:
            self._names[item.cmk_id] = item.name
            self._versions.setdefault(item.cmk_id, set()).add(item.version)
        return sorted(found, key=lambda item: item.version, reverse=True)

    def _find(self, template: dict[Attribute, Any], known_as: CmkId | None) -> list[KeyObject]:
        """The keys that match. What is known here and not there is looked for again in a new session.

        A key that another process changes may vanish from SoftHSM's view of its store until the module
        is initialised again (`keys.softhsm_lock`). A first new session may meet the very same change
        again: only after a second one is the key believed to be gone. Ever more rarely it is looked for
        even then.
        """
        found = self._session.search(template, read_key).values
        if found or known_as is None:
            return found
        now = time.monotonic()
        if now >= self._mend_at.get(known_as, now):
            absences = self._absences.get(known_as, 0)
            self._mend_at[known_as] = now + min(MEND_SECONDS * 2.0**absences, MAX_MEND_SECONDS)
            self.forget()
            self._session.reopen()
            found = self._session.search(template, read_key).values
            self._absences[known_as] = 0 if found else absences + 1
        if found or self._absences.get(known_as, 0) >= 2:
            return found
        raise TokenUnavailable("the token does not show a key that it had")

    def _use(self, cmk_id: CmkId, version: int, right: type[K], action: Callable[[K], Any], doing: str) -> Any:
        """Do `action` with the key, with a handle found anew if the kept one is stale."""
        kept = self._kept.get((cmk_id, version))
        self._session.raw()
        try:
            with self._session.lock.reading():
                if isinstance(kept, right):
                    try:
                        return action(kept)
                    except GONE:
                        pass  # Destroyed by another process, or the token is gone: the search tells.
            key = self._fetch(cmk_id, version, right)
            with self._session.lock.reading():
                return action(key)
        except pkcs11.PKCS11Error as error:
            self._kept.pop((cmk_id, version), None)
            refused = translate(error, doing)
            if isinstance(refused, Disabled):
                refused = cmk.disabled(self._names[cmk_id])
            raise refused from error

    def _fetch(self, cmk_id: CmkId, version: int, right: type[K]) -> K:
        self._kept.pop((cmk_id, version), None)
        known_as = cmk_id if version in self._versions.get(cmk_id, ()) else None
        found = self._find(key_of(cmk_id, version), known_as)
        if not found:
            raise CmkNotFound(f"the token has no version {version} of the CMK with id {cmk_id.hex()}")
        self._noted(found[:1])
        key = found[0].key
        if not isinstance(key, right):
            raise cmk.disabled(found[0].name)
        self._kept[cmk_id, version] = key
        return key

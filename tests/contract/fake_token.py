"""A token in memory that passes the same suite as SoftHSM, for tests of what stands on top of a token.

It counts its calls (`calls`), can be made to hang (`hang`, `answer`), and can be taken away and put
back (`remove`, `put_back`). Everything else is as in the contract.
"""

import hashlib
import hmac
import secrets
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cmkfs.audit.chain import Head
from cmkfs.errors import AlreadyExists, CmkNotFound, KeyDenied, PinRefused, Tampered, TokenUnavailable
from cmkfs.keys import cmk
from cmkfs.keys.provider import Cmk, CmkId, CmkState, CmkVersion, KeyAdmin, Scheme, TokenInfo

IV_SIZE = 12


@dataclass(slots=True)
class _FakeCmk:
    name: str
    cmk_id: CmkId
    key_type: str
    versions: dict[int, AESGCM] = field(default_factory=dict)
    enabled: bool = True
    policy: str | None = None

    def public(self) -> Cmk:
        state = CmkState.ENABLED if self.enabled else CmkState.DISABLED
        versions = tuple(sorted(self.versions))
        created = "2024-02-29T12:00:00+00:00"
        return Cmk(self.name, self.cmk_id, state, self.key_type, "generated", created, versions, "token")


class FakeToken:
    """The token itself: what all providers of it share."""

    def __init__(self, label: str = "fake", pin: str = "1234") -> None:
        self.label = label
        self.serial = hashlib.sha256(label.encode()).hexdigest()[:16]
        self.pin = pin
        self.calls: Counter[str] = Counter()
        self.pin_tries = 0
        self.cmks: dict[CmkId, _FakeCmk] = {}
        self.audit_key = secrets.token_bytes(32)
        self.heads: dict[str, Head] = {}
        self._present = True
        self._removals = 0
        self._answering = threading.Event()
        self._answering.set()
        self.entered = threading.Event()

    # -- The harness of the contract suite ---------------------------------------------------------

    @contextmanager
    def open(self, *, read_write: bool = True, pin: str | None = None) -> Iterator[KeyAdmin]:
        """A provider for the block."""
        provider = FakeProvider(self, self.pin if pin is None else pin, read_write=read_write)
        try:
            yield provider
        finally:
            provider.close()

    @property
    def elsewhere(self) -> KeyAdmin:
        """What another process does to the token."""
        return FakeProvider(self, self.pin, read_write=True)

    def remove(self) -> None:
        """Pull it out."""
        self._present = False
        self._removals += 1

    def put_back(self) -> None:
        """Put it in again; handles from before are dead all the same."""
        self._present = True

    # -- For tests of what stands on top -----------------------------------------------------------

    def hang(self) -> None:
        """From now on calls do not return; `entered` is set when the first one hangs."""
        self.entered.clear()
        self._answering.clear()

    def answer(self) -> None:
        """End the hang."""
        self._answering.set()

    def rotate(self, cmk_id: CmkId) -> int:
        """Add a version; returns its number."""
        versions = self.cmks[cmk_id].versions
        versions[max(versions) + 1] = AESGCM(AESGCM.generate_key(256))
        return max(versions)

    def enter(self, call: str, seen_removals: int) -> None:
        """Count a call of a provider that logged in after `seen_removals`. Raises TokenUnavailable."""
        self.calls[call] += 1
        if not self._answering.is_set():
            self.entered.set()
            self._answering.wait()
        if not self._present or seen_removals != self._removals:
            raise TokenUnavailable("the token failed (gone)")

    def log_in(self, pin: str) -> int:
        """Try a PIN; returns the removals so far. Raises TokenUnavailable, PinRefused."""
        if not self._present:
            raise TokenUnavailable(f"token {self.label!r} is not there")
        self.pin_tries += 1
        if pin != self.pin:
            raise PinRefused("the token refused the PIN")
        return self._removals


class FakeProvider:
    """A session with a `FakeToken`."""

    def __init__(self, token: FakeToken, pin: str, *, read_write: bool) -> None:
        self._token = token
        self._pin = pin
        self._read_write = read_write
        self._pin_refused = False
        self._closed = False
        self._seen_removals = token.log_in(pin)

    def newest(self, cmk_id: CmkId) -> CmkVersion:
        return CmkVersion(cmk_id, max(self._get("newest", cmk_id).versions), Scheme.GCM)

    def wrap(self, version: CmkVersion, secret: bytes, *, context: bytes) -> bytes:
        if len(secret) != 32:
            raise ValueError("a secret has 32 bytes")
        iv = secrets.token_bytes(IV_SIZE)
        return iv + self._key("wrap", version).encrypt(iv, bytes(secret), context)

    def unwrap(self, version: CmkVersion, wrapped: bytes, *, context: bytes) -> bytearray:
        key = self._key("unwrap", version)
        try:
            if len(wrapped) != 60:
                raise InvalidTag
            return bytearray(key.decrypt(wrapped[:IV_SIZE], wrapped[IV_SIZE:], context))
        except InvalidTag:
            raise Tampered("a wrapped key does not open although its CMK works") from None

    def canary(self, cmk_id: CmkId) -> None:
        found = self._get("canary", cmk_id)
        cmk.require_usable(found.public().state, found.name)

    def find(self, name: str) -> Cmk:
        self._enter("find")
        for found in self._token.cmks.values():
            if found.name == name:
                return found.public()
        raise CmkNotFound(f"the token has no CMK {name!r}")

    def describe(self, cmk_id: CmkId) -> Cmk:
        return self._get("describe", cmk_id).public()

    def policy(self, cmk_id: CmkId) -> str | None:
        return self._get("policy", cmk_id).policy

    def token_info(self) -> TokenInfo:
        self._enter("token_info")
        return TokenInfo("fake", self._token.label, self._token.serial, "cmkfs tests", "fake", initialised=True)

    def audit_mac(self, message: bytes) -> bytes:
        self._enter("audit_mac")
        return hmac.digest(self._token.audit_key, message, "sha256")

    def audit_heads(self) -> tuple[Head, ...]:
        self._enter("audit_heads")
        return tuple(sorted(self._token.heads.values(), key=lambda head: (head.place, head.name, head.seq)))

    def remember_audit_head(self, head: Head) -> None:
        self._enter("remember_audit_head")
        old = self._token.heads.get(head.chain)
        if old is None or old.seq < head.seq:
            self._token.heads[head.chain] = head

    def recover(self) -> None:
        if self._pin_refused:
            raise PinRefused("the token refused the PIN before; it is not tried again")
        if self._closed:
            raise TokenUnavailable("the session was closed")
        try:
            self._seen_removals = self._token.log_in(self._pin)
        except PinRefused:
            self._pin_refused = True
            raise

    def close(self) -> None:
        self._closed = True

    def create(self, name: str, key_type: str) -> Cmk:
        cmk.require_name(name)
        cmk.require_key_type(key_type)
        self._require_read_write()
        self._enter("create")
        if any(found.name == name for found in self._token.cmks.values()):
            raise AlreadyExists(f"the token has a CMK {name!r} already")
        cmk_id = CmkId(secrets.token_bytes(16))
        new = _FakeCmk(name, cmk_id, key_type, {1: AESGCM(AESGCM.generate_key(256))})
        self._token.cmks[cmk_id] = new
        return new.public()

    def cmks(self) -> tuple[Cmk, ...]:
        self._enter("cmks")
        return tuple(sorted((found.public() for found in self._token.cmks.values()), key=lambda found: found.name))

    def set_enabled(self, cmk_id: CmkId, enabled: bool) -> bool:
        self._require_read_write()
        found = self._get("set_enabled", cmk_id)
        cmk.after(found.public().state, cmk.CmkMove.ENABLE if enabled else cmk.CmkMove.DISABLE)
        changed = found.enabled != enabled
        found.enabled = enabled
        return changed

    def set_policy(self, cmk_id: CmkId, text: str | None) -> None:
        self._require_read_write()
        self._get("set_policy", cmk_id).policy = text

    def _enter(self, call: str) -> None:
        if self._closed:
            raise TokenUnavailable("the session was closed")
        self._token.enter(call, self._seen_removals)

    def _get(self, call: str, cmk_id: CmkId) -> _FakeCmk:
        self._enter(call)
        try:
            return self._token.cmks[cmk_id]
        except KeyError:
            raise CmkNotFound(f"the token has no CMK with id {cmk_id.hex()}") from None

    def _key(self, call: str, version: CmkVersion) -> AESGCM:
        found = self._get(call, version.cmk_id)
        try:
            key = found.versions[version.version]
        except KeyError:
            raise CmkNotFound(f"the CMK has no version {version.version}") from None
        cmk.require_usable(found.public().state, found.name)
        return key

    def _require_read_write(self) -> None:
        if not self._read_write:
            raise KeyDenied("a read-only session is not allowed to change keys")

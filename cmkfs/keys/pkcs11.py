"""CMKs in a PKCS#11 token: `KeyProvider` for mounts, `KeyAdmin` for the commands that change keys.

A CMK is one AES-256 secret key per version (`pkcs11_objects`). Its state is not written down anywhere:
it *is* the keys' usage attributes, so the token itself refuses, whoever asks. A secret is wrapped with
C_Encrypt and AES-GCM: `iv (12) ‖ ciphertext (32) ‖ tag (16)`, the context as associated data.

Construct a provider in the thread that will use it and after the last fork (`keys.token_server`).
"""

import secrets
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pkcs11
from pkcs11 import Attribute, KeyType, MechanismFlag

from cmkfs.errors import AlreadyExists, Busy, CmkNotFound, KeyDenied, Tampered, TokenUnavailable
from cmkfs.keys import cmk
from cmkfs.keys.pkcs11_audit import TokenAudit
from cmkfs.keys.pkcs11_errors import GONE, translated
from cmkfs.keys.pkcs11_keys import IV_SIZE, TAG_SIZE, KeyHandles
from cmkfs.keys.pkcs11_objects import (
    GRANTED,
    MUST_HOLD,
    USAGE,
    KeyObject,
    all_keys,
    keys_named,
    meta_records,
    new_key,
    new_record,
    policy_records,
    read_attributes,
    read_key,
    read_value,
)
from cmkfs.keys.pkcs11_session import TokenAddress, TokenSession
from cmkfs.keys.provider import SECRET_SIZE, Cmk, CmkId, CmkState, CmkVersion, Head, Scheme, TokenInfo
from cmkfs.keys.records import CmkRecord, PolicyRecord

WRAPPED_SIZE: Final = IV_SIZE + SECRET_SIZE + TAG_SIZE
"""Bytes of a wrapped secret: 60."""

_UNKNOWN: Final = "unknown"
_CREATE_TRIES: Final = 5
_POLICY_TRIES: Final = 5


class Pkcs11Provider:
    """The CMKs of one token, through one session that is logged in for life.

    `read_write=False` is for mounts: changing keys raises KeyDenied, here and in the token. The PIN is
    kept for `recover`; a PIN that was refused is never tried again.
    Raises Busy (the process has a provider of this module), TokenUnavailable, PinRefused.
    """

    def __init__(
        self,
        module: str,
        label: str,
        serial: str | None,
        pin: str,
        *,
        read_write: bool,
        softhsm2_conf: Path | None = None,
    ) -> None:
        address = TokenAddress(module, label, serial, softhsm2_conf)
        self._session = TokenSession(address, pin, read_write=read_write)
        self._keys = KeyHandles(self._session)
        self._audit = TokenAudit(self._session)
        self._policy_epochs: dict[CmkId, int] = {}
        """The newest policy that was seen of each CMK: an older one is not the policy any more."""

    # -- KeyProvider -------------------------------------------------------------------------------

    def newest(self, cmk_id: CmkId) -> CmkVersion:
        """The version that wraps now. Works while disabled. Searches the token: 30 µs per object in it."""
        return CmkVersion(cmk_id, self._keys.of(cmk_id)[0].version, Scheme.GCM)

    def wrap(self, version: CmkVersion, secret: bytes, *, context: bytes) -> bytes:
        """The 60 wrapped bytes. Raises Disabled, CmkNotFound, TokenUnavailable."""
        if len(secret) != SECRET_SIZE:
            raise ValueError(f"a secret has {SECRET_SIZE} bytes, not {len(secret)}")
        # The IV comes from the host: SoftHSM wants one, and 2^32 random ones per version are safe.
        iv = secrets.token_bytes(IV_SIZE)
        wrapped = iv + self._keys.encrypt(version.cmk_id, version.version, iv, bytes(secret), context)
        if len(wrapped) != WRAPPED_SIZE:
            raise TokenUnavailable(f"the token wrapped {SECRET_SIZE} bytes into {len(wrapped)}")
        return wrapped

    def unwrap(self, version: CmkVersion, wrapped: bytes, *, context: bytes) -> bytearray:
        """The 32 bytes again. Raises Disabled, CmkNotFound, TokenUnavailable; Tampered if the CMK works."""
        if len(wrapped) == WRAPPED_SIZE:
            try:
                return self._decrypt(version, wrapped, context)
            except TokenUnavailable:
                self.canary(version.cmk_id)
                # The token works now. Once more, so that one hiccup of it does not pass for tampering.
                try:
                    return self._decrypt(version, wrapped, context)
                except TokenUnavailable as again:
                    self.canary(version.cmk_id)
                    raise Tampered("a wrapped key does not open although its CMK works") from again
        self.canary(version.cmk_id)
        raise Tampered(f"a wrapped key has {len(wrapped)} bytes, not {WRAPPED_SIZE}")

    def canary(self, cmk_id: CmkId) -> None:
        """Return if every version can unwrap now. Raises Disabled, CmkNotFound, TokenUnavailable."""
        self._keys.canary(cmk_id)

    def find(self, name: str) -> Cmk:
        """The CMK of this name. Raises CmkNotFound, TokenUnavailable."""
        return self._cmk(self._keys.named(name))

    def describe(self, cmk_id: CmkId) -> Cmk:
        """The CMK of this id. Raises CmkNotFound, TokenUnavailable."""
        return self._cmk(self._keys.of(cmk_id))

    def policy(self, cmk_id: CmkId) -> str | None:
        """The policy's TOML text, None without one. Raises CmkNotFound, TokenUnavailable, Tampered."""
        name = self._keys.name_of(cmk_id)
        wrong = "cannot be read"
        for _ in range(_POLICY_TRIES):
            # None at all may mean that another process put a new one in place of the old one meanwhile:
            # SoftHSM's searches are no snapshots.
            policies = self._policies(cmk_id, name)
            if policies and policies[-1][1].epoch >= self._policy_epochs.get(cmk_id, 0):
                self._policy_epochs[cmk_id] = policies[-1][1].epoch
                return policies[-1][1].text
            wrong = "was changed to an older one" if policies else wrong
        self._keys.of(cmk_id)  # gone altogether, perhaps
        raise Tampered(f"the policy of CMK {name!r} {wrong}", hint="cmkfs policy set NAME FILE")

    def log_in_no_more(self) -> None:
        """From now on a session that ends is not begun anew: TokenUnavailable is raised instead."""
        self._session.log_in_no_more()

    def token_info(self) -> TokenInfo:
        """The token, asked now. Raises TokenUnavailable."""
        return self._session.info()

    def audit_mac(self, message: bytes) -> bytes:
        """HMAC-SHA256 under the audit key. Raises TokenUnavailable, KeyDenied."""
        return self._audit.mac(message)

    def audit_heads(self) -> tuple[Head, ...]:
        """The ends of audit logs that the token remembers. Raises TokenUnavailable."""
        return self._audit.heads()

    def remember_audit_head(self, head: Head) -> None:
        """Remember the end of a log. Raises TokenUnavailable, KeyDenied."""
        self._audit.remember(head)

    def recover(self) -> None:
        """Initialise again, find the same token by label and serial, log in once, and see that it answers.

        Raises TokenUnavailable, and PinRefused without a try if the PIN was refused before.
        """
        self._keys.forget()
        self._audit.forget()
        self._session.reopen()
        self._session.require_alive()

    def close(self) -> None:
        """Log out and let go of the module. Idempotent."""
        self._keys.forget()
        self._audit.forget()
        self._session.close()

    # -- KeyAdmin ----------------------------------------------------------------------------------

    def create(self, name: str, key_type: str) -> Cmk:
        """A new CMK. Raises UsageError, AlreadyExists, Busy, KeyDenied, TokenUnavailable."""
        cmk.require_name(name)
        cmk.require_key_type(key_type)
        self._require_read_write("to create a CMK")
        for _ in range(_CREATE_TRIES):
            cmk_id = CmkId(secrets.token_bytes(16))
            with self._session.lock.changing():
                self._require_new(name)
                if self._create(name, cmk_id, key_type):
                    return self.describe(cmk_id)
        raise Busy(f"other processes try to make a CMK {name!r} at the same time")

    def cmks(self) -> tuple[Cmk, ...]:
        """Every CMK in the token, by name. Raises TokenUnavailable."""
        by_id: dict[CmkId, list[KeyObject]] = {}
        for item in self._session.search(all_keys(), read_key).values:
            by_id.setdefault(item.cmk_id, []).append(item)
        return tuple(sorted((self._cmk(items) for items in by_id.values()), key=lambda found: found.name))

    def set_enabled(self, cmk_id: CmkId, enabled: bool) -> bool:
        """Switch the usage attributes of all versions; False if they were so already.

        A disable goes newest first, what decrypts before what encrypts; an enable the other way round.
        Raises KeyDenied if the token keeps an attribute as it is, CmkNotFound, TokenUnavailable.
        """
        self._require_read_write("to enable or disable a CMK")
        with self._session.lock.changing(), translated("to change the usage of a CMK"):
            versions = self._keys.of(cmk_id)
            cmk.after(self._cmk(versions).state, cmk.CmkMove.ENABLE if enabled else cmk.CmkMove.DISABLE)
            changes = self._to_enable(versions) if enabled else self._to_disable(versions)
            for item, right in changes:
                item.key[right] = enabled
            remaining = self._keys.of(cmk_id)
        if self._to_enable(remaining) if enabled else self._to_disable(remaining):
            raise KeyDenied("the token did not take the change of usage attributes")
        return bool(changes)

    def set_policy(self, cmk_id: CmkId, text: str | None) -> None:
        """Keep the policy's text with the CMK, or that it has none (None).

        Raises KeyDenied, CmkNotFound, TokenUnavailable.
        """
        self._require_read_write("to change a policy")
        with self._session.lock.changing(), translated("to change a policy"):
            newest = self._keys.of(cmk_id)[0]
            old = self._policies(cmk_id, newest.name)
            # The time, so that it counts also where an older policy was put back: those who know better refuse that.
            epoch = max(time.time_ns() // 1000, *(record.epoch + 1 for _, record in old), 1)
            value = PolicyRecord(cmk_id, epoch, text).to_bytes()
            self._session.raw().create_object(new_record(policy_records(newest.name), value))
            # The oldest first, so that at each moment the highest epoch is the right one.
            for item, _ in old:
                try:
                    item.destroy()
                except GONE:
                    continue  # Somebody else sets the policy too, and has removed this one.

    # -- How ---------------------------------------------------------------------------------------

    def _decrypt(self, version: CmkVersion, wrapped: bytes, context: bytes) -> bytearray:
        iv, cipher = wrapped[:IV_SIZE], wrapped[IV_SIZE:]
        secret = self._keys.decrypt(version.cmk_id, version.version, iv, cipher, context)
        if len(secret) != SECRET_SIZE:
            raise TokenUnavailable(f"the token unwrapped to {len(secret)} bytes")
        return secret

    def _cmk(self, versions: list[KeyObject]) -> Cmk:
        newest = max(versions, key=lambda item: item.version)
        record = self._record(newest)
        # Enabled as long as anything of it can be used: nobody shall take a half-done disable for done.
        usable = any(item.rights for item in versions)
        return Cmk(
            name=newest.name,
            cmk_id=newest.cmk_id,
            state=CmkState.ENABLED if usable else CmkState.DISABLED,
            key_type=record.key_type,
            origin=record.origin,
            created=record.created,
            versions=tuple(sorted(item.version for item in versions)),
            enforced_by="token",
        )

    def _record(self, key: KeyObject) -> CmkRecord:
        found = self._session.search(meta_records(key.name), lambda item: CmkRecord.from_bytes(read_value(item)))
        for record in found.values:
            if record.cmk_id == key.cmk_id:
                return record
        # Half-written or lost: the key itself is whole, only its history is unknown.
        return CmkRecord(key.cmk_id, key.name, cmk.KEY_TYPE, _UNKNOWN, _UNKNOWN)

    def _policies(self, cmk_id: CmkId, name: str) -> list[tuple[pkcs11.Object, PolicyRecord]]:
        """The CMK's policies that can be read, by epoch."""

        def read(item: pkcs11.Object) -> tuple[pkcs11.Object, PolicyRecord]:
            return item, PolicyRecord.from_bytes(read_value(item))

        found = self._session.search(policy_records(name), read).values
        ours = [(item, record) for item, record in found if record.cmk_id == cmk_id]
        return sorted(ours, key=lambda pair: (pair[1].epoch, pair[1].text or ""))

    def _require_read_write(self, doing: str) -> None:
        if not self._session.read_write:
            raise KeyDenied(f"a read-only session is not allowed {doing}")

    def _require_new(self, name: str) -> None:
        try:
            self._keys.named(name)
        except CmkNotFound:
            return
        raise AlreadyExists(f"the token has a CMK {name!r} already", hint=f"cmkfs cmk show {name}")

    def _create(self, name: str, cmk_id: CmkId, key_type: str) -> bool:
        """Make version 1 and its description; False, and nothing left, if another process did the same.

        PKCS#11 has no unique names. Each creator looks again when its key is complete, and whoever sees
        another one goes. Of two, the one that looks last always sees both, so at most one stays.
        """
        created = datetime.now(UTC).isoformat(timespec="seconds")
        record = CmkRecord(cmk_id, name, key_type, "generated", created)
        policy = PolicyRecord(cmk_id, 0, None)
        session = self._session.raw()
        with translated("to create a CMK"):
            # The records first: a crash leaves records without a key, which nobody looks at.
            made: list[pkcs11.Object] = []
            try:
                made.append(session.create_object(new_record(meta_records(name), record.to_bytes())))
                made.append(session.create_object(new_record(policy_records(name), policy.to_bytes())))
                made.append(self._generate(name, cmk_id, version=1))
                found = self._session.search(keys_named(name), read_key).values
                if {item.cmk_id for item in found} == {cmk_id}:
                    made.clear()
                    return True
            finally:
                for item in reversed(made):
                    item.destroy()
        return False

    def _generate(self, name: str, cmk_id: CmkId, version: int) -> pkcs11.SecretKey:
        key = self._session.raw().generate_key(
            KeyType.AES,
            256,
            store=True,
            capabilities=MechanismFlag(0),
            template=new_key(name, cmk_id, version),
        )
        got = read_attributes(key, *MUST_HOLD)
        if got != MUST_HOLD:
            key.destroy()
            wrong = ", ".join(right.name for right, value in MUST_HOLD.items() if got.get(right) is not value)
            raise KeyDenied(f"the token makes no keys as cmkfs needs them (wrong: {wrong})")
        return key

    @staticmethod
    def _to_enable(versions: list[KeyObject]) -> list[tuple[KeyObject, Attribute]]:
        return [(item, right) for item in reversed(versions) for right in GRANTED if right not in item.rights]

    @staticmethod
    def _to_disable(versions: list[KeyObject]) -> list[tuple[KeyObject, Attribute]]:
        return [(item, right) for item in versions for right in USAGE if right in item.rights]

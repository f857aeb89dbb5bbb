"""The audit log's part of a token: a key that signs while any CMK is disabled, and the ends of the logs.

The session of a mount is read-only. The two things that are written here, the key at its first use and a data
object at each checkpoint, go through a second session that may write and is closed at once. A token that does
not allow that to this user answers KeyDenied: then nothing is remembered, and `cmkfs audit verify` cannot tell
that the end of a log was cut off.
"""

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag

from cmkfs.errors import KeyDenied, TokenUnavailable
from cmkfs.keys.pkcs11_errors import GONE, translated
from cmkfs.keys.pkcs11_objects import AUDIT_KEY, head_records, new_audit_key, new_record, read_attributes, read_value
from cmkfs.keys.pkcs11_session import TokenSession
from cmkfs.keys.provider import Head
from cmkfs.keys.records import head_from_bytes, head_to_bytes

MAC_SIZE: Final = 32


class TokenAudit:
    """The audit key and the heads in one token. Not for two threads, like the session itself."""

    def __init__(self, session: TokenSession) -> None:
        self._session = session
        self._key: pkcs11.SignMixin | None = None

    def forget(self) -> None:
        """Drop the key's handle: the module is initialised again."""
        self._key = None

    def mac(self, message: bytes) -> bytes:
        """HMAC-SHA256 under the audit key. Raises TokenUnavailable, KeyDenied."""
        try:
            return self._mac(message)
        except GONE:
            self.forget()
        with translated("to sign for the audit log"):
            return self._mac(message)

    def _mac(self, message: bytes) -> bytes:
        self._session.raw()
        key = self._key or self._find() or self._make()
        self._key = key
        with self._session.lock.reading():
            signed = bytes(key.sign(message, mechanism=Mechanism.SHA256_HMAC))
        if len(signed) != MAC_SIZE:
            raise TokenUnavailable(f"the token signs with {len(signed)} bytes")
        return signed

    def _find(self) -> pkcs11.SignMixin | None:
        """The audit key; of several, which only a race of two tokens' users could make, always the oldest."""

        def read(item: pkcs11.Object) -> tuple[bytes, pkcs11.SignMixin] | None:
            raw_id = read_attributes(item, Attribute.ID).get(Attribute.ID, b"")
            return (raw_id, item) if isinstance(item, pkcs11.SignMixin) else None

        found = self._session.search(AUDIT_KEY, read).values
        return min(found, key=lambda pair: pair[0])[1] if found else None

    def _make(self) -> pkcs11.SignMixin:
        # A new view of the token first: SoftHSM can fail to show what another process has just made.
        self._session.reopen()
        with self._session.lock.changing():
            if (key := self._find()) is not None:
                return key
            with self._writable("to make the audit key") as session:
                session.generate_key(
                    KeyType.GENERIC_SECRET,
                    256,
                    store=True,
                    capabilities=MechanismFlag.SIGN,
                    template=new_audit_key(time.time_ns().to_bytes(8, "big") + secrets.token_bytes(8)),
                )
        made = self._find()
        if made is None:
            raise KeyDenied("the token made no audit key that can sign")
        return made

    def heads(self) -> tuple[Head, ...]:
        """The newest end of each log that the token remembers. Raises TokenUnavailable."""
        newest: dict[str, Head] = {}
        for _, head in self._all_heads(None):
            if head.chain not in newest or newest[head.chain].seq < head.seq:
                newest[head.chain] = head
        return tuple(sorted(newest.values(), key=lambda head: (head.place, head.name, head.seq)))

    def remember(self, head: Head) -> None:
        """Keep this end of a log, and not the older ones. Raises TokenUnavailable, KeyDenied."""
        with self._session.lock.changing(), self._writable("to remember the end of the audit log") as session:
            session.create_object(new_record(head_records(), head_to_bytes(head)))
            for item, old in self._all_heads(session):
                if old.chain == head.chain and old.seq < head.seq:
                    try:
                        item.destroy()
                    except GONE:
                        continue  # another process did

    def _all_heads(self, through: pkcs11.Session | None) -> list[tuple[pkcs11.Object, Head]]:
        def read(item: pkcs11.Object) -> tuple[pkcs11.Object, Head]:
            return item, head_from_bytes(read_value(item))

        return self._session.search(head_records(), read, through=through).values

    @contextmanager
    def _writable(self, doing: str) -> Iterator[pkcs11.Session]:
        """A session that may write, for a moment; the session's own if it may."""
        with translated(doing):
            if self._session.read_write:
                yield self._session.raw()
                return
            session = self._session.second()
            try:
                yield session
            finally:
                session.close()

"""The keys of a zone, and everything small that they seal: names, directory ids, targets, xattrs, records.

docs/format.md, sections 4 to 7 and 9. None of these keys opens the content of a file.
"""

import hashlib
import hmac
import os
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from cmkfs.crypto.kdf import commitment, kdf, mac
from cmkfs.errors import Damaged, Tampered
from cmkfs.format import b64
from cmkfs.format.vault import (
    ID_SIZE,
    SESSION_BODY,
    Session,
    ZoneRecord,
    ZoneRoot,
    parse_zone_body,
    parse_zone_list,
    zone_body,
    zone_list,
)

NONCE_SIZE = 16
SIV_SIZE = 16
NAME_PAD = 16
MAX_NAME = 255
MAX_TARGET = 4095
TARGET_OVERHEAD = NONCE_SIZE + SIV_SIZE


class ZoneKeys:
    """All that a zone's secret gives. Raises Tampered if it is not the secret that `expected` commits to."""

    def __init__(self, zone_id: bytes, secret: bytes | bytearray, expected: bytes) -> None:
        if not hmac.compare_digest(commitment(secret), expected):
            raise Tampered("the unwrapped zone secret is not the one that the zone record commits to")
        self.zone_id = zone_id

        def derive(label: bytes, length: int = 64) -> bytes:
            return kdf(secret, b"cmkfs zone v1 " + label, length)

        self._names = AESSIV(derive(b"names"))
        self._directories = AESSIV(derive(b"directories"))
        self._links = AESSIV(derive(b"links"))
        self._xattrs = AESSIV(derive(b"xattrs"))
        self._records = AESSIV(derive(b"records"))
        self.session = SessionSeal(derive(b"session", 32))
        self.header_secret = derive(b"header", 32)
        # Programs use the same names again and again; a few thousand answers cost little memory.
        self.seal_name = lru_cache(maxsize=8192)(self._seal_name)
        self.open_name = lru_cache(maxsize=8192)(self._open_name)

    def forget(self) -> None:
        """The zone is locked: names in the caches go, and the cycle that would keep the keys until it is collected."""
        self.seal_name.cache_clear()
        self.open_name.cache_clear()
        self.__dict__.clear()

    # -- names ----------------------------------------------------------------------------------

    def _seal_name(self, dir_id: bytes, name: bytes) -> bytes:
        """`C` of docs/format.md, section 6. The caller has checked that `name` is a possible name."""
        padded = name + bytes(-len(name) % NAME_PAD)
        return b64.encode(self._names.encrypt(padded, [dir_id]))

    def _open_name(self, dir_id: bytes, sealed: bytes) -> bytes:
        """The plain name. Raises Damaged for everything that `seal_name` does not make."""
        padded = _open(self._names, b64.decode(sealed), [dir_id], "a name")
        name = padded.rstrip(b"\0")
        if not 1 <= len(name) <= MAX_NAME or len(padded) != len(name) + -len(name) % NAME_PAD:
            raise Damaged("a name with wrong padding")
        if b"/" in name or b"\0" in name or name in (b".", b".."):
            raise Damaged("a name that cannot be one")
        return name

    # -- directory ids --------------------------------------------------------------------------

    def seal_dir_id(self, dir_id: bytes) -> bytes:
        """The target of `cmkfs.dir`."""
        return b64.encode(self.zone_id + self._directories.encrypt(dir_id, [b"dir", self.zone_id]))

    def open_dir_id(self, sealed: bytes) -> bytes:
        """The directory id in `sealed`, which begins with this zone's id. Raises Damaged."""
        dir_id = _open(self._directories, sealed[ID_SIZE:], [b"dir", self.zone_id], "a directory id")
        if len(dir_id) != ID_SIZE:
            raise Damaged("a directory id of the wrong length")
        return dir_id

    # -- symlink targets ------------------------------------------------------------------------

    def seal_target(self, target: bytes) -> bytes:
        """`T` of docs/format.md, section 7."""
        nonce = os.urandom(NONCE_SIZE)
        return b64.encode(nonce + self._links.encrypt(target, [b"link", self.zone_id, nonce]))

    def open_target(self, sealed: bytes) -> bytes:
        """The plain target. Raises Damaged."""
        data = b64.decode(sealed)
        nonce = data[:NONCE_SIZE]
        target = _open(self._links, data[NONCE_SIZE:], [b"link", self.zone_id, nonce], "a symlink target")
        if not 1 <= len(target) <= MAX_TARGET or b"\0" in target:
            raise Damaged("a symlink target that cannot be one")
        return target

    # -- extended attributes --------------------------------------------------------------------

    def xattr_handle(self, owner_id: bytes, name: bytes) -> bytes:
        """`H` of docs/format.md, section 7: what stands for `name` in the vault, at this owner only."""
        return b64.encode(self._xattrs.encrypt(name, [b"name", owner_id])[:SIV_SIZE])

    def seal_xattr(self, owner_id: bytes, name: bytes, value: bytes) -> bytes:
        """The backing value of attribute `name` of the file or directory `owner_id`."""
        nonce = os.urandom(NONCE_SIZE)
        plain = bytes([len(name)]) + name + value
        return nonce + self._xattrs.encrypt(plain, [b"value", owner_id, self.xattr_handle(owner_id, name), nonce])

    def open_xattr(self, owner_id: bytes, handle: bytes, sealed: bytes) -> tuple[bytes, bytes]:
        """Name and value. Raises Damaged."""
        nonce = sealed[:NONCE_SIZE]
        plain = _open(self._xattrs, sealed[NONCE_SIZE:], [b"value", owner_id, handle, nonce], "an attribute")
        name = plain[1 : 1 + plain[0]] if plain else b""
        if not name or len(name) != plain[0] or self.xattr_handle(owner_id, name) != handle:
            raise Damaged("an attribute under another's name")
        return name, plain[1 + plain[0] :]

    # -- the vault's records --------------------------------------------------------------------

    def seal_zone_root(self, vault_hash: bytes, root: ZoneRoot) -> bytes:
        """The sealed part of a zone record."""
        return self._records.encrypt(zone_body(root), [b"zone", vault_hash, self.zone_id])

    def open_zone_root(self, vault_hash: bytes, record: ZoneRecord) -> ZoneRoot:
        """Where the zone hangs. Raises Damaged, UnknownFormat."""
        body = _open(self._records, record.sealed, [b"zone", vault_hash, self.zone_id], "a zone record")
        return parse_zone_body(self.zone_id, body)

    def seal_zone_list(self, vault_hash: bytes, roots: tuple[ZoneRoot, ...]) -> bytes:
        """The content of `cmkfs.zones`; root zone only."""
        nonce = os.urandom(NONCE_SIZE)
        return nonce + self._records.encrypt(zone_list(roots), [b"zones", vault_hash, nonce])

    def open_zone_list(self, vault_hash: bytes, data: bytes) -> tuple[ZoneRoot, ...]:
        """The zones below the root. Raises Damaged."""
        nonce = data[:NONCE_SIZE]
        associated = [b"zones", vault_hash, nonce]
        return parse_zone_list(_open(self._records, data[NONCE_SIZE:], associated, "the list of zones"))


class SessionSeal:
    """Seals the session record of the root zone. Kept by itself: a locked vault must still be closed cleanly."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, vault_hash: bytes, number: int, session: Session) -> bytes:
        """The 512 bytes of a slot of `cmkfs.session`."""
        body = session.body()
        return body + mac(self._key, vault_hash + bytes([number]) + body)

    def open(self, vault_hash: bytes, number: int, data: bytes) -> Session | None:
        """The session in a slot, None if the slot is damaged."""
        body = data[:SESSION_BODY]
        if not hmac.compare_digest(mac(self._key, vault_hash + bytes([number]) + body), data[SESSION_BODY:]):
            return None
        try:
            return Session.from_body(body)
        except Damaged:
            return None  # by somebody who has the key: damaged all the same (docs/format.md, section 9)


def name_hash(sealed: bytes) -> bytes:
    """`HASH` of docs/format.md, section 6, for a sealed name that is too long."""
    return b64.encode(hashlib.sha256(sealed).digest())


def _open(cipher: AESSIV, data: bytes, associated: list[bytes], what: str) -> bytes:
    if len(data) < SIV_SIZE:
        raise Damaged(f"{what} is cut off")
    try:
        return cipher.decrypt(data, associated)
    except InvalidTag as error:
        raise Damaged(f"{what} does not authenticate") from error

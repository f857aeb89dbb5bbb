"""The second reader, sections 3 to 7 and 9 of docs/format.md: everything but the content of files.

Pure: bytes in, values out. One function for each layer of the format, in the order of the specification.
Every function raises one of:

- `DamagedError`: damage or tampering; what a program sees is `EIO` (for a name: it is not shown)
- `UnknownFormatError`: made by a later version, refused by name
- `NoKeyError`: no recipient is wrapped by a CMK that the token has

Each error says which layer found it.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hmac import compare_digest

from cryptography.exceptions import InvalidTag
from primitives import b64, kdf, mac, sha256, siv_open, siv_seal, unb64

PAGE = 4096  # backing bytes of a block and of the header page
SLOT = 512  # bytes of a slot, its MAC is the last 32
KIND_FILE, KIND_ZONE = 1, 2


class ReadError(Exception):
    """What a reader answers instead of bytes; `kind` is the word that the vectors use."""

    kind = ""

    def __init__(self, layer: str, why: str) -> None:
        super().__init__(f"{layer}: {why}")
        self.layer = layer


class DamagedError(ReadError):
    """Damage or tampering."""

    kind = "damaged"


class UnknownFormatError(ReadError):
    """A format, flag or feature of a later version."""

    kind = "unknown-format"


class NoKeyError(ReadError):
    """The token has none of the CMKs."""

    kind = "no-key"


class Cursor:
    """Takes fields off the front of `data`; running out of bytes is damage of `layer`."""

    def __init__(self, data: bytes, layer: str) -> None:
        self._data, self._at, self._layer = data, 0, layer

    def take(self, length: int) -> bytes:
        """The next `length` bytes."""
        field = self._data[self._at : self._at + length]
        if len(field) != length:
            raise DamagedError(self._layer, "ends within a field")
        self._at += length
        return field

    def number(self, length: int) -> int:
        """The next `length` bytes as an unsigned integer."""
        return int.from_bytes(self.take(length), "big")

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(len(self._data) - self._at)

    def more(self) -> bool:
        """Is anything left?"""
        return self._at < len(self._data)


def _decode(text: str, layer: str) -> bytes:
    try:
        return unb64(text)
    except ValueError as error:
        raise DamagedError(layer, "not canonical base64url") from error


def _unseal(layer: str, key: bytes, associated: list[bytes], sealed: bytes) -> bytes:
    if len(sealed) < 16:
        raise DamagedError(layer, "too short to be sealed")
    try:
        return siv_open(key, associated, sealed)
    except InvalidTag as error:
        raise DamagedError(layer, "does not authenticate") from error


# --- section 3: the vault file


def read_vault_file(raw: bytes) -> tuple[bytes, bytes]:
    """(vault id, vault hash) from the bytes of `cmkfs.vault`."""
    try:
        fields = json.loads(raw.decode("utf-8"))
    except ValueError as error:
        raise DamagedError("vaultfile", "not JSON") from error
    if not isinstance(fields, dict) or fields.get("cmkfs") != "vault" or type(fields.get("format")) is not int:
        raise DamagedError("vaultfile", "not a vault")
    if fields["format"] > 1:
        raise UnknownFormatError("vaultfile", f"format {fields['format']}")
    unknown = sorted(fields.keys() - {"cmkfs", "format", "vault_id", "block_size", "features"})
    if unknown:
        raise UnknownFormatError("vaultfile", f"unknown key {unknown[0]}")
    vault_id, features = fields.get("vault_id"), fields.get("features")
    if not isinstance(features, list) or not isinstance(vault_id, str) or fields["format"] < 1:
        raise DamagedError("vaultfile", "a field is missing or of the wrong type")
    if features:
        raise UnknownFormatError("vaultfile", f"unknown feature {features[0]}")
    if fields.get("block_size") != PAGE:
        raise UnknownFormatError("vaultfile", f"block size {fields.get('block_size')}")
    if not re.fullmatch("[0-9a-f]{32}", vault_id):
        raise DamagedError("vaultfile", "vault id is not 32 hex digits")
    return bytes.fromhex(vault_id), sha256(raw)


# --- section 4: keys


@dataclass(frozen=True, slots=True)
class Recipient:
    """A secret wrapped by one version of one CMK."""

    scheme: int
    version: int
    cmk_id: bytes
    wrapped: bytes


Unwrap = Callable[[Recipient, bytes], bytes]
"""The token: (recipient, context) -> secret; NoKeyError without that CMK, DamagedError when it refuses."""


def read_recipient(cursor: Cursor, layer: str) -> Recipient:
    """The recipient at the cursor."""
    scheme, version, cmk_id = cursor.number(1), cursor.number(4), cursor.take(16)
    if scheme == 0:
        raise DamagedError(layer, "recipient of scheme 0")
    return Recipient(scheme, version, cmk_id, cursor.take(cursor.number(2)))


def commitment(secret: bytes) -> bytes:
    """What a secret commits to, 32 bytes."""
    return kdf(secret, b"cmkfs commit v1", 32)


@dataclass(frozen=True, slots=True)
class Wrapped:
    """All that a wrap's context binds beside the recipient itself."""

    kind: int
    vault_hash: bytes
    zone_id: bytes
    object_id: bytes
    commitment: bytes

    def context(self, to: Recipient) -> bytes:
        """The associated data of the wrap for recipient `to`."""
        head = b"cmkfs wrap v1" + bytes([self.kind]) + self.vault_hash + self.zone_id + self.object_id
        return head + to.cmk_id + to.version.to_bytes(4, "big") + bytes([to.scheme]) + self.commitment


def unwrap_secret(recipients: Sequence[Recipient], what: Wrapped, unwrap: Unwrap) -> bytes:
    """The secret, from the first recipient that the token opens."""
    failure: ReadError = NoKeyError("wrap", "no recipient of a CMK in the token")
    for recipient in recipients:
        try:
            secret = unwrap(recipient, what.context(recipient))
        except NoKeyError:
            continue
        except DamagedError as error:
            failure = error
            continue
        if not compare_digest(commitment(secret), what.commitment):
            raise DamagedError("wrap", "the secret is not the one committed to")
        return secret
    raise failure


@dataclass(frozen=True, slots=True)
class Zone:
    """A zone whose secret is at hand."""

    zone_id: bytes
    secret: bytes

    def key(self, label: str) -> bytes:
        """One of the zone's keys, by its label in the specification."""
        length = 32 if label in ("session", "header") else 64
        return kdf(self.secret, b"cmkfs zone v1 " + label.encode(), length)


# --- section 5: zones


@dataclass(frozen=True, slots=True)
class Place:
    """Where a zone's root must be; for the vault's root the parent is zeros and the name empty."""

    zone_id: bytes
    parent_id: bytes
    root_id: bytes
    name: bytes


def read_zone_record(target: str, vault_hash: bytes, unwrap: Unwrap) -> tuple[Zone, Place]:
    """The zone and its place from the target of `cmkfs.zone`."""
    cursor = Cursor(_decode(target, "zone"), "zone")
    if cursor.take(4) != b"CZR1":
        raise DamagedError("zone", "not a zone record")
    zone_id, committed = cursor.take(16), cursor.take(32)
    recipient = read_recipient(cursor, "zone")
    what = Wrapped(KIND_ZONE, vault_hash, zone_id, zone_id, committed)
    zone = Zone(zone_id, unwrap_secret([recipient], what, unwrap))
    plain = _unseal("zone", zone.key("records"), [b"zone", vault_hash, zone_id], cursor.rest())
    cursor = Cursor(plain, "zone")
    if features := cursor.number(4):
        raise UnknownFormatError("zone", f"feature bits {features:#x}")
    return zone, Place(zone_id, cursor.take(16), cursor.take(16), cursor.rest())


def read_zone_list(raw: bytes, vault_hash: bytes, root_zone: Zone) -> list[Place]:
    """The zones below the root from the bytes of `cmkfs.zones`."""
    nonce, sealed = raw[:16], raw[16:]
    cursor = Cursor(_unseal("zones", root_zone.key("records"), [b"zones", vault_hash, nonce], sealed), "zones")
    places = []
    while cursor.more():
        zone_id, parent, root = cursor.take(16), cursor.take(16), cursor.take(16)
        places.append(Place(zone_id, parent, root, cursor.take(cursor.number(1))))
    return places


# --- section 6: directories and names


def dir_zone_id(target: str) -> bytes:
    """Which zone a directory says it belongs to, not yet authenticated."""
    return Cursor(_decode(target, "dir"), "dir").take(16)


def read_dir(target: str, zone: Zone) -> bytes:
    """The directory id from the target of `cmkfs.dir`; `zone` is the one that the directory must be of."""
    cursor = Cursor(_decode(target, "dir"), "dir")
    if cursor.take(16) != zone.zone_id:
        raise DamagedError("dir", "of another zone")
    dir_id = _unseal("dir", zone.key("directories"), [b"dir", zone.zone_id], cursor.rest())
    if len(dir_id) != 16:
        raise DamagedError("dir", "a directory id has 16 bytes")
    return dir_id


def read_name(entry: str, sidecar: str | None, zone: Zone, dir_id: bytes) -> bytes:
    """The plain name of a backing entry; `sidecar` is the target of `cmkfs.long.HASH`, if there is one."""
    cipher = entry
    if entry.startswith("long."):
        if sidecar is None or entry != "long." + b64(sha256(sidecar.encode("utf-8", "surrogateescape"))):
            raise DamagedError("name", "no sidecar, or the hash of another")
        cipher = sidecar
    if entry.startswith("long.") != (len(cipher) > 255):
        raise DamagedError("name", "a long name in the place of a short one, or the reverse")
    padded = _unseal("name", zone.key("names"), [dir_id], _decode(cipher, "name"))
    name = padded.rstrip(b"\0")
    if not 1 <= len(name) <= 255 or len(padded) != -(-len(name) // 16) * 16:
        raise DamagedError("name", "wrong length or padding")
    if b"\0" in name or b"/" in name or name in (b".", b".."):
        raise DamagedError("name", "not a name")
    return name


# --- section 7: symlinks and extended attributes


def read_link(target: str, part: Callable[[str], str], zone: Zone) -> bytes:
    """A symlink's plain target; `part` gives the target of `cmkfs.links/NAME` or raises KeyError."""
    sealed, length = target, None
    if target.startswith("."):
        fields = re.fullmatch(r"\.([A-Za-z0-9_-]{22})\.([1-9][0-9]*)\.([1-9][0-9]{0,3})", target)
        if not fields or int(fields[2]) > 6:
            raise DamagedError("link", "not a reference to parts")
        length = int(fields[3])
        try:
            parts = [part(f"{fields[1]}.{number}") for number in range(int(fields[2]))]
        except KeyError as error:
            raise DamagedError("link", "a part is missing") from error
        if any(len(one) != 1000 for one in parts[:-1]) or len(parts[-1]) > 1000:
            raise DamagedError("link", "a part has the wrong length")
        sealed = "".join(parts)
    if target.startswith(".") != (len(sealed) > 1000):
        raise DamagedError("link", "in one piece although too long, or in parts although not")
    raw = _decode(sealed, "link")
    plain = _unseal("link", zone.key("links"), [b"link", zone.zone_id, raw[:16]], raw[16:])
    if not 1 <= len(plain) <= 4095 or b"\0" in plain or length not in (None, len(plain)):
        raise DamagedError("link", "wrong length")
    return plain


def read_xattr(attribute: str, raw: bytes, zone: Zone, object_id: bytes) -> tuple[bytes, bytes]:
    """(name, value) of the attribute that the backing calls `user.cmkfs.H` on the object `object_id`."""
    hashed = attribute.removeprefix("user.cmkfs.").encode()
    key = zone.key("xattrs")
    cursor = Cursor(_unseal("xattr", key, [b"value", object_id, hashed, raw[:16]], raw[16:]), "xattr")
    name = cursor.take(cursor.number(1))
    if not name or attribute != "user.cmkfs." + b64(siv_seal(key, [b"name", object_id], name)[:16]):
        raise DamagedError("xattr", "not the attribute of this name")
    return name, cursor.rest()


# --- section 9: session


@dataclass(frozen=True, slots=True)
class Session:
    """`unclosed`: an earlier session was not closed. `since` is a ctime in nanoseconds, 0 for all."""

    unclosed: bool
    since: int


def _read_session(raw: bytes, number: int, key: bytes, vault_hash: bytes) -> tuple[int, Session]:
    if not compare_digest(mac(key, vault_hash + bytes([number]) + raw[:480]), raw[480:]):
        raise DamagedError("session", "MAC")
    cursor = Cursor(raw[:480], "session")
    sequence, state, zero, _, since = (cursor.number(length) for length in (8, 1, 7, 16, 8))
    if state not in (1, 2) or zero or any(cursor.rest()):
        raise DamagedError("session", "a field is out of range")
    return sequence, Session(state == 2, since)


def read_session(raw: bytes, vault_hash: bytes, root_zone: Zone) -> Session:
    """The session record that counts, from the bytes of `cmkfs.session`; beside a damaged one it is open."""
    if len(raw) != 2 * SLOT:
        raise DamagedError("session", "wrong length")
    valid = []
    for number in (0, 1):
        slot = raw[SLOT * number : SLOT * (number + 1)]
        try:
            valid.append(_read_session(slot, number, root_zone.key("session"), vault_hash))
        except DamagedError:
            continue
    if not valid or (len(valid) == 2 and valid[0][0] == valid[1][0]):
        raise DamagedError("session", "both damaged, or both with one sequence")
    best = max(valid, key=lambda slot: slot[0])[1]
    return Session(best.unclosed or len(valid) == 1, best.since)

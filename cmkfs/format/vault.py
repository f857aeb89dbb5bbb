"""The vault's own records: vault file, session, zones (docs/format.md, sections 3, 5 and 9). Bytes and values only."""

import hashlib
import json
import re
import struct
from dataclasses import dataclass, field
from enum import IntEnum

from cmkfs.errors import Damaged, NotAVault, UnknownFormat
from cmkfs.format.layout import PAGE
from cmkfs.format.recipient import Recipient

FORMAT = 1
KNOWN_FEATURES: frozenset[str] = frozenset()
SESSION_SLOT = 512
SESSION_BODY = 480

ID_SIZE = 16
"""Bytes of vault, zone, directory and file ids."""
NO_DIRECTORY = bytes(ID_SIZE)
"""Stands for the parent of the vault's root."""

_VAULT_ID = re.compile(rf"[0-9a-f]{{{2 * ID_SIZE}}}")
_SESSION = struct.Struct(">QB7x16sQ")
_ZONE_HEAD = struct.Struct(">4s16s32s")
_ZONE_BODY = struct.Struct(">I16s16s")
_ZONE_ENTRY = struct.Struct(">16s16s16sB")


@dataclass(frozen=True, slots=True)
class VaultFile:
    """The immutable description of a vault; `vault_hash` is part of every wrap's context."""

    raw: bytes
    vault_id: str
    vault_hash: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "vault_hash", hashlib.sha256(self.raw).digest())

    @classmethod
    def new(cls, vault_id: bytes) -> "VaultFile":
        """The description of a new vault."""
        fields = {"cmkfs": "vault", "format": FORMAT, "vault_id": vault_id.hex(), "block_size": PAGE, "features": []}
        return cls.from_bytes(json.dumps(fields, separators=(",", ":")).encode() + b"\n")

    @classmethod
    def from_bytes(cls, raw: bytes) -> "VaultFile":
        """Parse `cmkfs.vault`. Raises NotAVault, UnknownFormat (naming what is unknown), Damaged."""
        try:
            fields = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise NotAVault("cmkfs.vault is not a vault description") from error
        if not isinstance(fields, dict) or fields.get("cmkfs") != "vault":
            raise NotAVault("cmkfs.vault is not a vault description")
        number, features = fields.get("format"), fields.get("features")
        if type(number) is not int or number < 1 or not isinstance(features, list):
            raise Damaged("cmkfs.vault has no format or no features")
        if number > FORMAT:
            raise UnknownFormat(f"the vault has format {number}; this version reads up to {FORMAT}")
        unknown = sorted(str(feature) for feature in features if str(feature) not in KNOWN_FEATURES)
        unknown += sorted(set(fields) - {"cmkfs", "format", "vault_id", "block_size", "features"})
        if unknown:
            raise UnknownFormat(f"the vault uses features that this version does not know: {', '.join(unknown)}")
        if number != FORMAT or fields.get("block_size") != PAGE:
            raise UnknownFormat("the vault has a block size or format that this version does not know")
        vault_id = fields.get("vault_id")
        if not isinstance(vault_id, str) or not _VAULT_ID.fullmatch(vault_id):
            raise Damaged("cmkfs.vault has no vault id")
        return cls(raw, vault_id)


class SessionState(IntEnum):
    """CLOSED: every file was settled at unmount. OPEN: a mount is at work, or ended without closing."""

    CLOSED = 1
    OPEN = 2


@dataclass(frozen=True, slots=True)
class Session:
    """One slot of `cmkfs.session`. `unsettled_since` is a backing ctime in ns; 0 means every file."""

    sequence: int
    state: SessionState
    session_id: bytes
    unsettled_since: int

    def body(self) -> bytes:
        """The 480 bytes that the MAC covers."""
        fields = _SESSION.pack(self.sequence, self.state, self.session_id, self.unsettled_since)
        return fields.ljust(SESSION_BODY, b"\0")

    @classmethod
    def from_body(cls, body: bytes) -> "Session":
        """Parse the 480 bytes. Raises Damaged."""
        sequence, state, session_id, since = _SESSION.unpack_from(body)
        if state not in (SessionState.CLOSED, SessionState.OPEN):
            raise Damaged("the session record has a state out of range")
        session = cls(sequence, SessionState(state), session_id, since)
        if session.body() != body[:SESSION_BODY]:
            raise Damaged("the session record has bytes where there should be zeros")
        return session


@dataclass(frozen=True, slots=True)
class ZoneRoot:
    """Where a zone hangs: the directory that is its root, at that name in that parent."""

    zone_id: bytes
    parent_dir_id: bytes
    dir_id: bytes
    name: bytes


@dataclass(frozen=True, slots=True)
class ZoneRecord:
    """`cmkfs.zone`: the wrapped zone secret, and the sealed place of the zone (`sealed_body`)."""

    zone_id: bytes
    commitment: bytes
    recipient: Recipient
    sealed: bytes

    MAGIC = b"CZR1"

    def to_bytes(self) -> bytes:
        """The record before base64."""
        head = _ZONE_HEAD.pack(self.MAGIC, self.zone_id, self.commitment)
        return head + self.recipient.to_bytes() + self.sealed

    @classmethod
    def from_bytes(cls, data: bytes) -> "ZoneRecord":
        """Parse a record. Raises Damaged, UnknownFormat."""
        if len(data) < _ZONE_HEAD.size or data[:4] != cls.MAGIC:
            raise Damaged("no zone record")
        _, zone_id, commitment = _ZONE_HEAD.unpack_from(data)
        recipient, at = Recipient.read(data, _ZONE_HEAD.size)
        return cls(zone_id, commitment, recipient, data[at:])


def zone_body(root: ZoneRoot) -> bytes:
    """What is sealed in a zone record."""
    return _ZONE_BODY.pack(0, root.parent_dir_id, root.dir_id) + root.name


def parse_zone_body(zone_id: bytes, body: bytes) -> ZoneRoot:
    """The sealed part of a zone record. Raises Damaged, UnknownFormat for unknown features."""
    if len(body) < _ZONE_BODY.size:
        raise Damaged("a zone record is cut off")
    features, parent, dir_id = _ZONE_BODY.unpack_from(body)
    if features:
        raise UnknownFormat(f"the zone uses features that this version does not know: {features:#010x}")
    return ZoneRoot(zone_id, parent, dir_id, body[_ZONE_BODY.size :])


def zone_list(roots: tuple[ZoneRoot, ...]) -> bytes:
    """What is sealed in `cmkfs.zones`."""
    return b"".join(
        _ZONE_ENTRY.pack(root.zone_id, root.parent_dir_id, root.dir_id, len(root.name)) + root.name for root in roots
    )


def parse_zone_list(data: bytes) -> tuple[ZoneRoot, ...]:
    """The entries of `cmkfs.zones`. Raises Damaged."""
    at, roots = 0, []
    while at < len(data):
        if at + _ZONE_ENTRY.size > len(data):
            raise Damaged("the list of zones is cut off")
        zone_id, parent, dir_id, length = _ZONE_ENTRY.unpack_from(data, at)
        at += _ZONE_ENTRY.size
        if at + length > len(data):
            raise Damaged("the list of zones is cut off")
        roots.append(ZoneRoot(zone_id, parent, dir_id, data[at : at + length]))
        at += length
    return tuple(roots)

"""Makes the structures of docs/format.md, right ones and, by overriding a field, wrong ones; for the vectors.

Shares nothing with the reader but `primitives`. All randomness is `rnd(label)`, a SHA-256 counter under a
fixed seed, so that every run gives the same bytes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from primitives import b64, kdf, mac, sha256, siv_seal, xaes_seal

SEED = b"cmkfs vectors, format 1"
PAGE, PLAIN = 4096, 4048
CLEAN, DIRTY = 1, 2
Holes = Sequence[tuple[int, int]]


def rnd(label: str, length: int) -> bytes:
    """`length` bytes that look random and depend only on `label`."""
    count = -(-length // 32)
    stream = b"".join(sha256(SEED + b"\0" + label.encode() + b"\0" + n.to_bytes(8, "big")) for n in range(count))
    return stream[:length]


def text(label: str, length: int) -> bytes:
    """Plain content: `length` bytes without a NUL, so that no part of it looks like a hole."""
    return rnd("text " + label, length).replace(b"\0", b"\1")


def number(value: int, length: int) -> bytes:
    """An unsigned big-endian integer."""
    return value.to_bytes(length, "big")


@dataclass(frozen=True, slots=True)
class Cmk:
    """One version of a CMK, its key in the open."""

    label: str
    version: int

    @property
    def cmk_id(self) -> bytes:
        """16 bytes, the same for all versions."""
        return rnd(f"cmk id {self.label}", 16)

    @property
    def key(self) -> bytes:
        """AES-256."""
        return rnd(f"cmk key {self.label} {self.version}", 32)

    def recipient(
        self,
        secret: bytes,
        kind: int,
        zone_id: bytes,
        object_id: bytes,
        vault_hash: bytes,
        *,
        committed: bytes | None = None,
    ) -> bytes:
        """`secret` wrapped for this version, scheme gcm."""
        head = b"cmkfs wrap v1" + bytes([kind]) + vault_hash + zone_id + object_id
        context = head + self.cmk_id + number(self.version, 4) + b"\1" + (committed or commitment(secret))
        iv = rnd(f"iv {kind} {context.hex()}", 12)
        return self.bare_recipient(1, iv + AESGCM(self.key).encrypt(iv, secret, context))

    def bare_recipient(self, scheme: int, wrapped: bytes) -> bytes:
        """The record around wrapped bytes."""
        return bytes([scheme]) + number(self.version, 4) + self.cmk_id + number(len(wrapped), 2) + wrapped


def commitment(secret: bytes) -> bytes:
    """Section 4."""
    return kdf(secret, b"cmkfs commit v1", 32)


def vault_file(**fields: object) -> bytes:
    """`cmkfs.vault`, with fields replaced or, if None, left out."""
    whole = {
        "cmkfs": "vault",
        "format": 1,
        "vault_id": rnd("vault id", 16).hex(),
        "block_size": 4096,
        "features": [],
    }
    chosen = {key: value for key, value in {**whole, **fields}.items() if value is not None}
    return json.dumps(chosen, separators=(",", ":")).encode() + b"\n"


VAULT_HASH = sha256(vault_file())
ALPHA, ALPHA_2, BETA, ALIEN = Cmk("alpha", 1), Cmk("alpha", 2), Cmk("beta", 1), Cmk("not in the token", 1)
TOKEN = (ALPHA, ALPHA_2, BETA)


@dataclass(frozen=True, slots=True)
class ZoneSpec:
    """A zone and all that it seals; the fields follow from the label."""

    label: str
    cmk: Cmk

    @property
    def zone_id(self) -> bytes:
        """16 bytes."""
        return rnd(f"zone id {self.label}", 16)

    @property
    def secret(self) -> bytes:
        """32 bytes."""
        return rnd(f"zone secret {self.label}", 32)

    def key(self, label: str) -> bytes:
        """The table of section 4."""
        return kdf(self.secret, b"cmkfs zone v1 " + label.encode(), 32 if label in ("session", "header") else 64)

    def record(self, parent_id: bytes, root_id: bytes, name: bytes, features: int = 0, **over: bytes) -> bytes:
        """The raw zone record; `over` replaces magic, zone_id, commitment, recipient or vault_hash."""
        vault_hash = over.get("vault_hash", VAULT_HASH)
        wrapped = self.cmk.recipient(self.secret, 2, self.zone_id, self.zone_id, vault_hash)
        associated = [b"zone", vault_hash, self.zone_id]
        sealed = siv_seal(self.key("records"), associated, number(features, 4) + parent_id + root_id + name)
        head = over.get("magic", b"CZR1") + over.get("zone_id", self.zone_id)
        head += over.get("commitment", commitment(self.secret))
        return head + over.get("recipient", wrapped) + over.get("sealed", sealed)

    def zone_list(self, entries: Sequence[tuple[bytes, bytes, bytes, bytes]], raw: bytes | None = None) -> bytes:
        """`cmkfs.zones` with (zone id, parent id, root id, name)s, or with `raw` as the sealed bytes."""
        plain = b"".join(zone + parent + root + bytes([len(name)]) + name for zone, parent, root, name in entries)
        plain = plain if raw is None else raw
        nonce = rnd(f"zones {self.label} {plain.hex()}", 16)
        return nonce + siv_seal(self.key("records"), [b"zones", VAULT_HASH, nonce], plain)

    def directory(self, dir_id: bytes) -> bytes:
        """The raw bytes of a `cmkfs.dir`."""
        return self.zone_id + siv_seal(self.key("directories"), [b"dir", self.zone_id], dir_id)

    def name(self, dir_id: bytes, name: bytes) -> str:
        """The sealed name `C`."""
        return self.sealed_name(dir_id, name.ljust(-(-len(name) // 16) * 16, b"\0"))

    def sealed_name(self, dir_id: bytes, padded: bytes) -> str:
        """As `name`, without padding."""
        return b64(siv_seal(self.key("names"), [dir_id], padded))

    def link(self, target: bytes) -> str:
        """The sealed target `T` in one piece."""
        nonce = rnd(f"link {self.label} {target.hex()}", 16)
        return b64(nonce + siv_seal(self.key("links"), [b"link", self.zone_id, nonce], target))

    def attribute(self, object_id: bytes, name: bytes) -> str:
        """What the backing calls the extended attribute `name`."""
        return "user.cmkfs." + b64(siv_seal(self.key("xattrs"), [b"name", object_id], name)[:16])

    def value(self, object_id: bytes, attribute: str, plain: bytes) -> bytes:
        """The sealed value of a backing attribute; `plain` is length ‖ name ‖ value."""
        nonce = rnd(f"xattr {object_id.hex()} {plain.hex()}", 16)
        hashed = attribute.removeprefix("user.cmkfs.").encode()
        return nonce + siv_seal(self.key("xattrs"), [b"value", object_id, hashed, nonce], plain)

    def session_slot(self, slot: int, sequence: int, state: int, since: int = 0, **over: bytes) -> bytes:
        """One slot of `cmkfs.session`; `over` replaces zero (7 bytes) or tail (440)."""
        body = number(sequence, 8) + bytes([state]) + over.get("zero", bytes(7)) + rnd("session id", 16)
        body += number(since, 8) + over.get("tail", bytes(440))
        return body + mac(self.key("session"), over.get("vault_hash", VAULT_HASH) + bytes([slot]) + body)


def long_entry(cipher: str) -> str:
    """`long.HASH`."""
    return "long." + b64(sha256(cipher.encode()))


def link_parts(label: str, sealed: str, length: int) -> tuple[str, dict[str, str]]:
    """(the entry's target, name in `cmkfs.links` -> target) of a long symlink."""
    link_id = b64(rnd(f"link id {label}", 16))
    pieces = [sealed[at : at + 1000] for at in range(0, len(sealed), 1000)]
    return f".{link_id}.{len(pieces)}.{length}", {f"{link_id}.{n}": piece for n, piece in enumerate(pieces)}


@dataclass(frozen=True, slots=True)
class SlotSpec:
    """The fields of a slot."""

    sequence: int
    state: int
    size: int
    generation: int = 1
    holes: Holes = ()

    def raw(self, **over: bytes) -> bytes:
        """The 480 bytes before the MAC; `over` replaces count (1), zero (2), reserved (32) or ranges."""
        ranges = b"".join(number(first, 8) + number(count, 8) for first, count in self.holes)
        body = number(self.sequence, 8) + number(self.generation, 4) + bytes([self.state])
        body += over.get("count", bytes([len(self.holes)])) + over.get("zero", bytes(2)) + number(self.size, 8)
        return (body + over.get("reserved", bytes(32)) + over.get("ranges", ranges)).ljust(480, b"\0")


@dataclass(frozen=True, slots=True)
class FileSpec:
    """A file and all that it seals; the fields follow from the label."""

    label: str
    zone: ZoneSpec
    cmks: tuple[Cmk, ...] = (ALPHA,)

    @property
    def file_id(self) -> bytes:
        """16 bytes."""
        return rnd(f"file id {self.label}", 16)

    @property
    def dek(self) -> bytes:
        """32 bytes."""
        return rnd(f"dek {self.label}", 32)

    @property
    def content_key(self) -> bytes:
        """Section 4."""
        return kdf(self.dek, b"cmkfs content v1", 32)

    @property
    def header_key(self) -> bytes:
        """Section 4."""
        return kdf(self.dek + self.zone.key("header"), b"cmkfs header v1", 32)

    def identity(self, recipients: bytes | None = None, count: int | None = None, **over: bytes) -> bytes:
        """Bytes 0 to 3071; `over` replaces form (2), flags (2), zero (4) or zone_id (16)."""
        zone_id = over.get("zone_id", self.zone.zone_id)
        wrapped = [cmk.recipient(self.dek, 1, zone_id, self.file_id, VAULT_HASH) for cmk in self.cmks]
        head = b"CMKFSv1\n" + over.get("form", b"\0\1") + over.get("flags", bytes(2)) + over.get("zero", bytes(4))
        head += self.file_id + zone_id + commitment(self.dek)
        head += number(len(wrapped) if count is None else count, 2)
        return (head + (b"".join(wrapped) if recipients is None else recipients)).ljust(3072, b"\0")

    def slot(self, at: int, raw: bytes, identity: bytes | None = None) -> bytes:
        """480 bytes of slot number `at` with their MAC."""
        identity_hash = sha256((identity or self.identity())[:80])
        return raw + mac(self.header_key, identity_hash + bytes([at]) + raw)

    def slots(self, *specs: SlotSpec) -> bytes:
        """Both slots; where only one is given, it is the newer one beside the clean slot of a new file."""
        both = specs if len(specs) > 1 else (SlotSpec(1, CLEAN, 0), *specs)
        return b"".join(self.slot(at, spec.raw()) for at, spec in enumerate(both))

    def block(
        self,
        at: int,
        plain: bytes,
        generation: int = 1,
        *,
        length: int | None = None,
        flags: int = 0,
        padding: bytes = b"",
    ) -> bytes:
        """One block; `length` and `padding` (what follows the plain bytes) only for wrong ones."""
        length = len(plain) if length is None else length
        padded = (plain + padding).ljust(PLAIN, b"\0")
        nonce = rnd(f"nonce {self.label} {at} {generation} {length} {flags} {sha256(padded).hex()}", 24)
        fields = number(length, 2) + number(flags, 2) + number(generation, 4)
        return nonce + fields + xaes_seal(self.content_key, nonce, padded, self.file_id + number(at, 8) + fields)

    def blocks(self, plain: bytes, holes: Holes = ()) -> list[bytes]:
        """All blocks of a content; what lies in `holes` is left as zeros, but for a partial last block."""
        pieces = [plain[at : at + PLAIN] for at in range(0, len(plain), PLAIN)]
        inside = [any(first <= at < first + count for first, count in holes) for at in range(len(pieces))]
        sealed = zip(inside, enumerate(pieces), strict=True)
        return [bytes(PAGE) if hole and len(piece) == PLAIN else self.block(at, piece) for hole, (at, piece) in sealed]

    def settled(self, plain: bytes, holes: Holes = ()) -> bytes:
        """The whole backing of a clean file."""
        head = self.identity() + self.slots(SlotSpec(2, CLEAN, len(plain), holes=holes))
        return head + b"".join(self.blocks(plain, holes)) + bytes(len(plain) % PLAIN)

"""What reads bytes that somebody else may have written, each with the errors that it may end in.

A target takes any bytes. It returns, or raises one of its `errors`; anything else is a bug. What it accepts it
must give back: a value that was read is written as the same bytes, so nothing has two spellings.
"""

import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, tzinfo

from cmkfs import config, policyfile
from cmkfs.audit import chain
from cmkfs.control import protocol
from cmkfs.crypto.content import ContentCipher
from cmkfs.crypto.kdf import commitment
from cmkfs.crypto.zonekeys import ZoneKeys
from cmkfs.errors import CmkfsError, Damaged, MountFailed
from cmkfs.format import b64
from cmkfs.format.header import IDENTITY_SIZE, SLOT_BODY, Identity, Slot, is_unwritten, peek_slot
from cmkfs.format.layout import BLOCK, PAGE
from cmkfs.format.recipient import CmkId, Recipient
from cmkfs.format.vault import (
    SESSION_BODY,
    Session,
    VaultFile,
    ZoneRecord,
    parse_zone_body,
    parse_zone_list,
    zone_body,
    zone_list,
)
from cmkfs.fs import symlinks
from cmkfs.fs.acl import Acl
from cmkfs.fuse import init
from cmkfs.fuse.messages import Entry, Listing, attr_bytes, entry_bytes, xattr_bytes
from cmkfs.keys.provider import Head
from cmkfs.keys.records import CmkRecord, PolicyRecord, head_from_bytes, head_to_bytes

_SECRET, _ID, _HASH = bytes(range(32)), bytes(16), bytes(32)
_KEYS = ZoneKeys(_ID, _SECRET, commitment(_SECRET))
_CONTENT = ContentCipher(_SECRET, _ID)


@dataclass(frozen=True, slots=True)
class Target:
    """A parser; `examples` are inputs to begin with."""

    run: Callable[[bytes], object]
    errors: tuple[type[BaseException], ...] = (CmkfsError,)
    examples: tuple[bytes, ...] = ()


def _same(written: bytes, read: bytes) -> None:
    if written != read:
        raise AssertionError(f"two spellings: {read!r} and {written!r}")


def _header(data: bytes) -> None:
    data = data.ljust(IDENTITY_SIZE, b"\0")
    _same(Identity.from_bytes(data).to_bytes(), data[:IDENTITY_SIZE])


def _slot(data: bytes) -> None:
    page = data.ljust(PAGE, b"\0")
    is_unwritten(page)
    peek_slot(page)
    body = data.ljust(SLOT_BODY, b"\0")[:SLOT_BODY]
    _same(Slot.from_body(body).body(), body)


def _recipient(data: bytes) -> None:
    found, end = Recipient.read(data, 0)
    _same(found.to_bytes(), data[:end])


def _vault(data: bytes) -> None:
    _same(VaultFile.from_bytes(data).raw, data)


def _session(data: bytes) -> None:
    body = data.ljust(SESSION_BODY, b"\0")[:SESSION_BODY]
    _same(Session.from_body(body).body(), body)
    _KEYS.session.open(_HASH, 0, data)


def _zone_record(data: bytes) -> None:
    _same(ZoneRecord.from_bytes(data).to_bytes(), data)


def _zone_body(data: bytes) -> None:
    _same(zone_body(parse_zone_body(_ID, data)), data)


def _zone_list(data: bytes) -> None:
    _same(zone_list(parse_zone_list(data)), data)


def _base64(data: bytes) -> None:
    _same(b64.encode(b64.decode(data)), data)


def _name(data: bytes) -> None:
    """As it lies in the vault, and as somebody with the key might have sealed it."""
    sealed = b64.encode(_KEYS._names.encrypt(data or b"\0", [_ID]))
    for text in (data, sealed):
        try:
            name = _KEYS.open_name(_ID, text)
        except Damaged:
            continue
        _same(_KEYS.seal_name(_ID, name), text)


def _directory(data: bytes) -> None:
    _same(_KEYS._directories.encrypt(_KEYS.open_dir_id(data), [b"dir", _ID]), data[16:])


def _symlink(data: bytes) -> None:
    """A target in the vault, of one piece and of several; and one by somebody who has the key."""
    nonce = bytes(16)
    for text in (data, b64.encode(nonce + _KEYS._links.encrypt(data or b"\0", [b"link", _ID, nonce]))):
        try:
            _KEYS.open_target(text)
        except Damaged:
            continue
    name, count, length = symlinks._parse(data)
    _same(b".%b.%d.%d" % (name, count, length), data)


def _attribute(data: bytes) -> None:
    handle = _KEYS.xattr_handle(_ID, b"user.x")
    nonce = bytes(16)
    sealed = nonce + _KEYS._xattrs.encrypt(data or b"\0", [b"value", _ID, handle, nonce])
    for value in (data, sealed):
        try:
            _KEYS.open_xattr(_ID, handle, value)
        except Damaged:
            continue


def _block(data: bytes) -> None:
    _CONTENT.open(3, data.ljust(PAGE, b"\0")[:PAGE], 1)
    raise AssertionError("a block of nobody's was opened")


class _Accounts:
    """Names of digits are known."""

    def uid(self, name: str) -> int | None:
        return len(name) if name.isascii() else None

    gid = uid

    def timezone(self, name: str) -> tzinfo | None:
        return UTC if name == "UTC" else None


def _policy(data: bytes) -> None:
    policyfile.parse(data.decode("utf-8", "replace"), name="policy", accounts=_Accounts())


def _config(data: bytes) -> None:
    config.parse(data.decode("utf-8", "replace"), name="cmkfs.toml")


def _options(data: bytes) -> None:
    config.parse_options([data.decode("utf-8", "surrogateescape")], defaults=config.MountOptions())


def _audit(data: bytes) -> None:
    line = chain.parse(data)
    if line is not None:
        _same(line.raw, data)
        line.text("event")


def _control(data: bytes) -> None:
    with suppress(CmkfsError):
        protocol.result_of(data)
    protocol.Request.from_line(data)


def _token_records(data: bytes) -> None:
    for read in (CmkRecord.from_bytes, PolicyRecord.from_bytes):
        try:
            _same(read(data).to_bytes(), data)
        except ValueError:
            continue
    _same(head_to_bytes(head_from_bytes(data)), data)


def _acl(data: bytes) -> None:
    _same(Acl.from_bytes(data).to_bytes(), data)


def _init(data: bytes) -> None:
    init.negotiate(data, init.Wish())


def _fuse(data: bytes) -> None:
    """What the daemon says to the kernel, of any numbers that a backing may have told it."""
    numbers = [int.from_bytes(data[at : at + 4].ljust(4, b"\0")) for at in range(0, 56, 4)]
    entry = Entry(*numbers)._replace(st_atime_ns=-numbers[0] << 20, st_mtime_ns=numbers[1] << 28)
    listing = Listing(numbers[2] % 5000, plus=bool(numbers[3] % 2))
    name = data[:255] or b"x"
    while listing.add(name, entry, numbers[4]):
        pass
    _same(entry_bytes(entry)[40:], attr_bytes(entry)[16:])
    if len(listing.to_bytes()) > numbers[2] % 5000 or len(listing.to_bytes()) % 8:
        raise AssertionError("a listing that is longer than was asked for, or not aligned")
    xattr_bytes(data, numbers[5] % 300)


_VAULT = VaultFile.new(_ID).raw
_RULE = b'[[rule]]\nid = "a"\neffect = "allow"\nwho = ["user:x", "gid:3"]\nactions = ["read"]\nhours = "08:00-18:00"\n'
_LINE = chain.seal(_SECRET, "2026-01-01T00:00:00Z", 1, '"event":"x"', "0" * 64)[0]
_CMK = CmkRecord(CmkId(_ID), "name", "aes-256", "generated", "2026-01-01T00:00:00+00:00")
_HEAD = Head("0" * 32, "place", "name", 7, "0" * 64, "{}")
_INIT = struct.pack("<IIQQIIIHHIIII", 56, 26, 1, 0, 0, 0, 0, 0, 0, 7, 38, 1 << 17, int(init.NEEDED) & 0xFFFFFFFF)

TARGETS: dict[str, Target] = {
    "header": Target(_header, examples=(b"CMKFSv1\n\0\1" + bytes(70) + b"\0\1\1" + bytes(22),)),
    "slot": Target(_slot, examples=(Slot.from_body(bytes(12) + b"\1" + bytes(467)).body(),)),
    "recipient": Target(_recipient, examples=(b"\1" + bytes(20) + b"\0\2ab",)),
    "vault": Target(_vault, examples=(_VAULT,)),
    "session": Target(_session, examples=(bytes(8) + b"\2",)),
    "zone record": Target(_zone_record, examples=(b"CZR1" + bytes(48) + b"\1" + bytes(20) + b"\0\2abrest",)),
    "zone body": Target(_zone_body, examples=(bytes(36) + b"name",)),
    "zone list": Target(_zone_list, examples=((bytes(48) + b"\4name") * 2,)),
    "base64": Target(_base64, examples=(b"AAAA", b"AA")),
    "name": Target(_name, examples=(_KEYS.seal_name(_ID, b"name"), b"name".ljust(16, b"\0"))),
    "directory": Target(_directory, examples=(b64.decode(_KEYS.seal_dir_id(_ID)),)),
    "symlink": Target(_symlink, examples=(_KEYS.seal_target(b"x"), b".%b.2.900" % b64.encode(_ID))),
    "attribute": Target(_attribute, examples=(_KEYS.seal_xattr(_ID, b"user.x", b"v"), b"\6user.xvalue")),
    "block": Target(_block, examples=(bytes(ContentCipher(_SECRET, bytes(16)).seal(2, bytes(BLOCK), 1)),)),
    "policy": Target(_policy, examples=(_RULE,)),
    "configuration": Target(_config, examples=(b"[mount]\nnoxattr = true\n[audit]\nrotate_mib = 64\n",)),
    "mount options": Target(_options, examples=(b"ro,idle=5,revocation_bound=1.5,allow_other",)),
    "audit line": Target(_audit, examples=(_LINE,)),
    "control": Target(
        _control, examples=(b'{"op":"lock"}\n', b'{"error":{"class":"Busy","message":"m","hint":"h"}}\n')
    ),
    "token records": Target(_token_records, (ValueError,), (_CMK.to_bytes(), head_to_bytes(_HEAD))),
    "ACL": Target(_acl, (OSError,), (bytes.fromhex("020000000100060000000000040004000000000020000400ffffffff"),)),
    "INIT": Target(_init, (MountFailed,), (_INIT,)),
    "messages": Target(_fuse, (OSError,), (bytes(range(64)),)),
}


def attempt(target: Target, data: bytes) -> bool:
    """True if it was accepted. Raises what is a bug."""
    try:
        target.run(data)
    except target.errors:
        return False
    return True

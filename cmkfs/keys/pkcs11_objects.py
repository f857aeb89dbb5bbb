"""How a CMK and its records look in a token: labels, ids, templates, and reading them back.

| object | class | label | id |
|---|---|---|---|
| a version of a CMK | secret key, AES-256 | `cmkfs-cmk:NAME` | CMK id (16) ‖ version (4) |
| its description | data, application `cmkfs` | `cmkfs-meta:NAME` | |
| its policy | data, application `cmkfs` | `cmkfs-policy:NAME` | |
| the audit key | generic secret, 256 bits | `cmkfs-audit` | when it was made (8, ns), then 8 random bytes |
| the end of an audit log | data, application `cmkfs` | `cmkfs-audit-head` | |
"""

import struct
from dataclasses import dataclass
from typing import Any, Final

import pkcs11
from pkcs11 import Attribute, KeyType, ObjectClass

from cmkfs.keys.provider import CmkId

_KEY_LABEL: Final = "cmkfs-cmk:"
_KEY_ID = struct.Struct(">16sI")

USAGE: Final = (Attribute.DECRYPT, Attribute.UNWRAP, Attribute.ENCRYPT, Attribute.WRAP, Attribute.SIGN)
"""Every right to use a key. A disable takes them away in this order: what gives out secrets goes first."""

GRANTED: Final = (Attribute.ENCRYPT, Attribute.DECRYPT)
"""The rights of an enabled CMK, in the order in which an enable gives them back: whoever may decrypt may
do the rest, so that a canary that decrypts tells all."""


@dataclass(frozen=True, slots=True)
class KeyObject:
    """One version of a CMK as found in the token; `rights` are those of `USAGE` that it has now."""

    key: pkcs11.Object
    name: str
    cmk_id: CmkId
    version: int
    rights: frozenset[Attribute]


def key_id(cmk_id: CmkId, version: int) -> bytes:
    """CKA_ID of a version."""
    return _KEY_ID.pack(cmk_id, version)


def keys_named(name: str) -> dict[Attribute, Any]:
    """Search template: all versions of the CMK of this name."""
    return {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.LABEL: _KEY_LABEL + name}


def key_of(cmk_id: CmkId, version: int) -> dict[Attribute, Any]:
    """Search template: one version of a CMK."""
    return {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.ID: key_id(cmk_id, version)}


def all_keys() -> dict[Attribute, Any]:
    """Search template: every AES key, of whomever; `read_key` picks ours."""
    return {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.AES}


def new_key(name: str, cmk_id: CmkId, version: int) -> dict[Attribute, Any]:
    """Template of a new version: it never leaves the token, not even as a copy that is enabled again.

    Without COPYABLE=False a read-only session can copy a disabled key into an enabled session object.
    """
    return {
        Attribute.CLASS: ObjectClass.SECRET_KEY,
        Attribute.LABEL: _KEY_LABEL + name,
        Attribute.ID: key_id(cmk_id, version),
        Attribute.TOKEN: True,
        Attribute.PRIVATE: True,
        Attribute.MODIFIABLE: True,
        Attribute.DERIVE: False,
        **MUST_HOLD,
    }


MUST_HOLD: Final[dict[Attribute, bool]] = {
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.COPYABLE: False,
    Attribute.ENCRYPT: True,
    Attribute.DECRYPT: True,
    Attribute.WRAP: False,
    Attribute.UNWRAP: False,
    Attribute.SIGN: False,
    Attribute.VERIFY: False,
}
"""What a new key is asked for and is checked for afterwards: a token may ignore what it does not know."""


def meta_records(name: str) -> dict[Attribute, Any]:
    """Search template: descriptions of the CMK of this name."""
    return _data(f"cmkfs-meta:{name}")


def policy_records(name: str) -> dict[Attribute, Any]:
    """Search template: policies of the CMK of this name."""
    return _data(f"cmkfs-policy:{name}")


AUDIT_KEY: Final[dict[Attribute, Any]] = {
    Attribute.CLASS: ObjectClass.SECRET_KEY,
    Attribute.KEY_TYPE: KeyType.GENERIC_SECRET,
    Attribute.LABEL: "cmkfs-audit",
}
"""Search template: the audit key. Its usage is not touched by any state of a CMK."""


def new_audit_key(raw_id: bytes) -> dict[Attribute, Any]:
    """Template of the audit key: it signs, and never leaves the token."""
    return {
        **AUDIT_KEY,
        Attribute.ID: raw_id,
        Attribute.TOKEN: True,
        Attribute.PRIVATE: True,
        Attribute.DERIVE: False,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        Attribute.COPYABLE: False,
        Attribute.SIGN: True,
        **dict.fromkeys((Attribute.VERIFY, *USAGE[:-1]), False),
    }


def head_records() -> dict[Attribute, Any]:
    """Search template: the ends of audit logs."""
    return _data("cmkfs-audit-head")


def _data(label: str) -> dict[Attribute, Any]:
    return {Attribute.CLASS: ObjectClass.DATA, Attribute.APPLICATION: "cmkfs", Attribute.LABEL: label}


def new_record(search: dict[Attribute, Any], value: bytes) -> dict[Attribute, Any]:
    """Template of a new data object that `search` finds, readable only after login."""
    return {**search, Attribute.TOKEN: True, Attribute.PRIVATE: True, Attribute.VALUE: value}


def read_attributes(item: pkcs11.Object, *wanted: Attribute) -> dict[Attribute, Any]:
    """Those of the attributes that the object has; a half-written one lacks some.

    Raises ObjectHandleInvalid if the object is gone.
    """
    try:
        return item.get_attributes(list(wanted))
    except (pkcs11.AttributeTypeInvalid, pkcs11.FunctionFailed):
        return {}


def read_key(item: pkcs11.Object) -> KeyObject | None:
    """The object as a version of a CMK, None if it is none or only half of one."""
    found = read_attributes(item, Attribute.LABEL, Attribute.ID, *USAGE)
    label, raw_id = found.get(Attribute.LABEL, ""), found.get(Attribute.ID, b"")
    if not label.startswith(_KEY_LABEL) or len(raw_id) != _KEY_ID.size:
        return None
    cmk_id, version = _KEY_ID.unpack(raw_id)
    rights = frozenset(right for right in USAGE if found.get(right, False))
    return KeyObject(item, label.removeprefix(_KEY_LABEL), CmkId(cmk_id), version, rights)


def read_value(item: pkcs11.Object) -> bytes:
    """The value of a data object, empty if it has none."""
    value = read_attributes(item, Attribute.VALUE).get(Attribute.VALUE, b"")
    assert isinstance(value, bytes)
    return value

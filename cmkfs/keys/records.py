"""What the token keeps beside a CMK, as bytes: its description, its policy, and the heads of audit logs. Pure.

All are JSON in one exact form, kept as the value of a private data object. `from_bytes` accepts
nothing but what `to_bytes` gives, so a half-written or foreign object is told at once.
"""

import json
from dataclasses import asdict, dataclass
from typing import Final, Self

from cmkfs.keys.provider import CmkId, Head

_FORMAT: Final = 1


def _encode(fields: dict[str, str | int]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _decode(raw: bytes, kind: str, texts: tuple[str, ...], numbers: tuple[str, ...]) -> dict[str, str | int]:
    try:
        fields = json.loads(raw)
    except RecursionError as error:
        raise ValueError(f"not a {kind} record") from error
    if not isinstance(fields, dict) or fields.keys() != {"cmkfs", "format", *texts, *numbers}:
        raise ValueError(f"not a {kind} record")
    if fields["cmkfs"] != kind or fields["format"] != _FORMAT:
        raise ValueError(f"not a {kind} record of format {_FORMAT}")
    if not all(type(fields[name]) is str for name in texts):
        raise ValueError(f"a field of the {kind} record is no text")
    if not all(type(fields[name]) is int and fields[name] >= 0 for name in numbers):
        raise ValueError(f"a field of the {kind} record is no number")
    return fields


def _cmk_id(text: str | int) -> CmkId:
    raw = bytes.fromhex(str(text))
    if len(raw) != 16:
        raise ValueError("a CMK id has 16 bytes")
    return CmkId(raw)


@dataclass(frozen=True, slots=True)
class CmkRecord:
    """How a CMK came to be. `created` is ISO 8601 in UTC."""

    cmk_id: CmkId
    name: str
    key_type: str
    origin: str
    created: str

    def to_bytes(self) -> bytes:
        """The record as it is kept in the token."""
        return _encode(
            {
                "cmkfs": "cmk",
                "format": _FORMAT,
                "cmk_id": self.cmk_id.hex(),
                "name": self.name,
                "key_type": self.key_type,
                "origin": self.origin,
                "created": self.created,
            }
        )

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """The record again. Raises ValueError for anything that `to_bytes` did not make."""
        texts = ("cmk_id", "name", "key_type", "origin", "created")
        fields = _decode(raw, "cmk", texts, ())
        name, key_type, origin, created = (str(fields[key]) for key in texts[1:])
        record = cls(_cmk_id(fields["cmk_id"]), name, key_type, origin, created)
        if record.to_bytes() != raw:
            raise ValueError("the cmk record is not in its exact form")
        return record


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """A CMK's policy as TOML text, or that it has none (None). The record with the highest `epoch` counts.

    The epoch is when it was set, in microseconds since 1970, or one more than that of the one before if that is more.

    Every CMK has such a record from the beginning, so that a lost one cannot pass for "no policy", which
    would allow more.
    """

    cmk_id: CmkId
    epoch: int
    text: str | None

    def to_bytes(self) -> bytes:
        """The record as it is kept in the token."""
        return _encode(
            {
                "cmkfs": "policy",
                "format": _FORMAT,
                "cmk_id": self.cmk_id.hex(),
                "epoch": self.epoch,
                "set": int(self.text is not None),
                "text": self.text or "",
            }
        )

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """The record again. Raises ValueError for anything that `to_bytes` did not make."""
        fields = _decode(raw, "policy", ("cmk_id", "text"), ("epoch", "set"))
        text = str(fields["text"]) if fields["set"] else None
        record = cls(_cmk_id(fields["cmk_id"]), int(fields["epoch"]), text)
        if record.to_bytes() != raw:
            raise ValueError("the policy record is not in its exact form")
        return record


def head_to_bytes(head: Head) -> bytes:
    """The end of an audit log as it is kept in the token."""
    return _encode({"cmkfs": "audit-head", "format": _FORMAT, **asdict(head)})


def head_from_bytes(raw: bytes) -> Head:
    """The end of an audit log again. Raises ValueError for anything that `head_to_bytes` did not make."""
    texts = ("chain", "place", "name", "mac", "settings")
    fields = _decode(raw, "audit-head", texts, ("seq",))
    chain, place, name, mac, settings = (str(fields[key]) for key in texts)
    head = Head(chain, place, name, int(fields["seq"]), mac, settings)
    if head_to_bytes(head) != raw:
        raise ValueError("the record of an audit log's end is not in its exact form")
    return head

"""A secret wrapped by one version of one CMK, and the context it is bound to (docs/format.md, section 4)."""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NewType

from cmkfs.errors import Damaged

_HEAD = struct.Struct(">BI16sH")
_CONTEXT = struct.Struct(">13sB32s16s16s16sIB32s")


CmkId = NewType("CmkId", bytes)
"""16 random bytes, the same for all versions of a CMK."""


class Scheme(IntEnum):
    """How a secret is wrapped."""

    GCM = 1


@dataclass(frozen=True, slots=True)
class CmkVersion:
    """One version of a CMK, as wraps name it; `scheme` is a `Scheme`, or one of a later version of cmkfs."""

    cmk_id: CmkId
    version: int
    scheme: int

    @property
    def usable(self) -> bool:
        """True if this version of cmkfs knows the scheme."""
        return self.scheme in tuple(Scheme)


class WrapKind(IntEnum):
    """What a wrapped secret is: the same bytes never serve as another kind."""

    FILE = 1
    ZONE = 2


@dataclass(frozen=True, slots=True)
class Recipient:
    """A wrapped secret and the CMK version that unwraps it."""

    version: CmkVersion
    wrapped: bytes

    def to_bytes(self) -> bytes:
        """As on disk."""
        version = self.version
        return _HEAD.pack(version.scheme, version.version, version.cmk_id, len(self.wrapped)) + self.wrapped

    @classmethod
    def read(cls, data: bytes, at: int) -> tuple["Recipient", int]:
        """The recipient at `at` and where it ends. Raises Damaged.

        A scheme that this version does not know is no error: another recipient may be for it.
        """
        if at + _HEAD.size > len(data):
            raise Damaged("a recipient is cut off")
        scheme, number, cmk_id, length = _HEAD.unpack_from(data, at)
        end = at + _HEAD.size + length
        if end > len(data):
            raise Damaged("a recipient is cut off")
        if not scheme:
            raise Damaged("a recipient without a scheme")
        version = CmkVersion(CmkId(cmk_id), number, scheme)
        return cls(version, data[at + _HEAD.size : end]), end


@dataclass(frozen=True, slots=True)
class WrapContext:
    """What a wrap is bound to, beside the CMK version: moved to any other place it does not unwrap."""

    kind: WrapKind
    vault_hash: bytes
    zone_id: bytes
    object_id: bytes
    commitment: bytes

    def to_bytes(self, version: CmkVersion) -> bytes:
        """The associated data of the wrap under `version`."""
        return _CONTEXT.pack(
            b"cmkfs wrap v1",
            self.kind,
            self.vault_hash,
            self.zone_id,
            self.object_id,
            version.cmk_id,
            version.version,
            version.scheme,
            self.commitment,
        )

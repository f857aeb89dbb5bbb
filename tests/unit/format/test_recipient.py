"""Recipients and the context that binds a wrap (docs/format.md, section 4)."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmkfs.errors import Damaged
from cmkfs.format.recipient import CmkId, CmkVersion, Recipient, Scheme, WrapContext, WrapKind

VERSION = CmkVersion(CmkId(b"c" * 16), 0x01020304, Scheme.GCM)
CONTEXT = WrapContext(WrapKind.FILE, b"v" * 32, b"z" * 16, b"o" * 16, b"k" * 32)


def test_the_bytes_of_a_recipient() -> None:
    assert Recipient(VERSION, b"wrapped").to_bytes() == b"\1" + b"\1\2\3\4" + b"c" * 16 + b"\0\7" + b"wrapped"


@given(st.integers(0, 2**32 - 1), st.binary(min_size=16, max_size=16), st.binary(max_size=200), st.binary(max_size=9))
def test_round_trip(number: int, cmk_id: bytes, wrapped: bytes, before: bytes) -> None:
    recipient = Recipient(CmkVersion(CmkId(cmk_id), number, Scheme.GCM), wrapped)
    data = before + recipient.to_bytes()
    assert Recipient.read(data + b"behind", len(before)) == (recipient, len(data))


@given(st.binary(max_size=60))
def test_what_parses_is_written_the_same(data: bytes) -> None:
    try:
        recipient, end = Recipient.read(data, 0)
    except Damaged:
        return
    assert recipient.to_bytes() == data[:end]


@pytest.mark.parametrize("cut", [0, 1, 22, 23, 29])
def test_one_that_is_cut_off_is_damage(cut: int) -> None:
    with pytest.raises(Damaged):
        Recipient.read(Recipient(VERSION, b"wrapped").to_bytes()[:cut], 0)


@pytest.mark.parametrize("scheme", [2, 3, 4, 255])
def test_an_unknown_scheme_is_read_and_not_usable(scheme: int) -> None:
    data = bytes([scheme]) + Recipient(VERSION, b"wrapped").to_bytes()[1:]
    recipient, _ = Recipient.read(data, 0)
    assert not recipient.version.usable
    assert recipient.to_bytes() == data
    assert VERSION.usable


def test_no_scheme_is_damage() -> None:
    with pytest.raises(Damaged):
        Recipient.read(b"\0" + Recipient(VERSION, b"wrapped").to_bytes()[1:], 0)


def test_the_bytes_of_a_context() -> None:
    assert CONTEXT.to_bytes(VERSION) == (
        b"cmkfs wrap v1\1" + b"v" * 32 + b"z" * 16 + b"o" * 16 + b"c" * 16 + b"\1\2\3\4" + b"\1" + b"k" * 32
    )


def test_every_field_is_in_the_context() -> None:
    other = b"x"
    variants = {
        CONTEXT.to_bytes(VERSION),
        WrapContext(WrapKind.ZONE, b"v" * 32, b"z" * 16, b"o" * 16, b"k" * 32).to_bytes(VERSION),
        WrapContext(WrapKind.FILE, other * 32, b"z" * 16, b"o" * 16, b"k" * 32).to_bytes(VERSION),
        WrapContext(WrapKind.FILE, b"v" * 32, other * 16, b"o" * 16, b"k" * 32).to_bytes(VERSION),
        WrapContext(WrapKind.FILE, b"v" * 32, b"z" * 16, other * 16, b"k" * 32).to_bytes(VERSION),
        WrapContext(WrapKind.FILE, b"v" * 32, b"z" * 16, b"o" * 16, other * 32).to_bytes(VERSION),
        CONTEXT.to_bytes(CmkVersion(CmkId(other * 16), 0x01020304, Scheme.GCM)),
        CONTEXT.to_bytes(CmkVersion(VERSION.cmk_id, 2, Scheme.GCM)),
    }
    assert len(variants) == 8
    assert {len(variant) for variant in variants} == {struct.calcsize(">13sB32s16s16s16sIB32s")}

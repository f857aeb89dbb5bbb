"""Base64url: one text for each value, and no other is accepted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmkfs.errors import Damaged
from cmkfs.format import b64


@given(st.binary(max_size=300))
def test_round_trip(data: bytes) -> None:
    text = b64.encode(data)
    assert b"=" not in text
    assert b64.decode(text) == data


@given(st.binary(max_size=12) | st.text("AQgw_-=+/ \n", max_size=12).map(str.encode))
def test_what_decodes_is_what_encode_gives(text: bytes) -> None:
    try:
        data = b64.decode(text)
    except Damaged:
        return
    assert b64.encode(data) == text


@pytest.mark.parametrize("text", [b"A", b"AB", b"AA==", b"AA=", b"A A", b"AA\n", b"AA+/", b"\xff\xff", b"AAAAA"])
def test_anything_but_the_canonical_form_is_damage(text: bytes) -> None:
    with pytest.raises(Damaged):
        b64.decode(text)


def test_the_alphabet_is_the_one_for_names() -> None:
    assert b64.encode(b"\xfb\xef\xbe\xff\xff\xff") == b"----____"

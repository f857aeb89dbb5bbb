"""Vault file, session and zone records (docs/format.md, sections 3, 5 and 9)."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmkfs.errors import CmkfsError, Damaged, NotAVault, UnknownFormat
from cmkfs.format.recipient import CmkId, CmkVersion, Recipient, Scheme
from cmkfs.format.vault import (
    NO_DIRECTORY,
    SESSION_BODY,
    Session,
    SessionState,
    VaultFile,
    ZoneRecord,
    ZoneRoot,
    parse_zone_body,
    parse_zone_list,
    zone_body,
    zone_list,
)

RAW = b'{"cmkfs":"vault","format":1,"vault_id":"' + b"0f" * 16 + b'","block_size":4096,"features":[]}\n'
IDS = st.binary(min_size=16, max_size=16)


def edited(**changes: object) -> bytes:
    fields = {**json.loads(RAW), **changes}
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


# -- cmkfs.vault -----------------------------------------------------------------------------------


def test_a_new_vault_is_the_line_of_the_specification() -> None:
    vault = VaultFile.new(b"\x0f" * 16)
    assert vault.raw == RAW
    assert vault.vault_id == "0f" * 16
    assert vault.vault_hash == hashlib.sha256(RAW).digest()


def test_the_hash_is_of_the_raw_bytes() -> None:
    """The same fields in other words are another vault: an edited file opens nothing."""
    other = VaultFile.from_bytes(edited())
    assert other.vault_id == VaultFile.from_bytes(RAW).vault_id
    assert other.vault_hash != VaultFile.from_bytes(RAW).vault_hash


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b'"vault"', b"\xff", b"{}", edited(cmkfs="x"), b"[" * 60_000]
)
def test_something_else_is_no_vault(raw: bytes) -> None:
    with pytest.raises(NotAVault):
        VaultFile.from_bytes(raw)


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (edited(format=2), "format 2"),
        (edited(block_size=8192), "block size"),
        (edited(block_size=...), "block size"),
        (edited(features=["zones2", "abc"]), "abc, zones2"),
        (edited(features=[["nested"]]), "nested"),
        (edited(features=[{}]), "{}"),
        (edited(surprise=1), "surprise"),
    ],
)
def test_what_is_unknown_is_named(raw: bytes, word: str) -> None:
    with pytest.raises(UnknownFormat, match=word):
        VaultFile.from_bytes(raw)


@pytest.mark.parametrize(
    "raw",
    [
        edited(format=...),
        edited(format="1"),
        edited(format=True),
        edited(format=1.0),
        edited(format=0),
        edited(features=...),
        edited(features="x"),
        edited(vault_id=...),
        edited(vault_id=7),
        edited(vault_id="0f"),
        edited(vault_id="xy" * 16),
        edited(vault_id="0F" * 16),
    ],
)
def test_fields_that_make_no_sense_are_damage(raw: bytes) -> None:
    with pytest.raises(Damaged):
        VaultFile.from_bytes(raw)


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(
        lambda value: json.dumps({"cmkfs": "vault", "format": 1, "features": value}).encode()
    )
)
def test_no_bytes_surprise_the_parser(raw: bytes) -> None:
    with pytest.raises(CmkfsError):
        VaultFile.from_bytes(raw)


# -- cmkfs.session ---------------------------------------------------------------------------------

SESSION = Session(5, SessionState.OPEN, b"s" * 16, 1_700_000_000_000_000_000)


def test_the_fields_of_a_session_lie_where_the_specification_says() -> None:
    body = SESSION.body()
    assert body[:16] == bytes([0, 0, 0, 0, 0, 0, 0, 5, 2, 0, 0, 0, 0, 0, 0, 0])
    assert body[16:40] == b"s" * 16 + (1_700_000_000_000_000_000).to_bytes(8)
    assert body[40:] == bytes(SESSION_BODY - 40)


@given(st.integers(0, 2**64 - 1), st.sampled_from(SessionState), IDS, st.integers(0, 2**64 - 1))
def test_sessions_round_trip(sequence: int, state: SessionState, session_id: bytes, since: int) -> None:
    session = Session(sequence, state, session_id, since)
    assert Session.from_body(session.body()) == session


def test_a_session_that_parses_is_written_the_same() -> None:
    for at in range(SESSION_BODY):
        body = bytearray(SESSION.body())
        body[at] ^= 0x40
        if at < 8 or 16 <= at < 40:
            assert Session.from_body(bytes(body)).body() == body
        else:
            with pytest.raises(Damaged):
                Session.from_body(bytes(body))


# -- zones -----------------------------------------------------------------------------------------

RECORD = ZoneRecord(b"z" * 16, b"k" * 32, Recipient(CmkVersion(CmkId(b"c" * 16), 1, Scheme.GCM), b"w" * 60), b"sealed")


def test_the_bytes_of_a_zone_record() -> None:
    data = RECORD.to_bytes()
    assert data == b"CZR1" + b"z" * 16 + b"k" * 32 + RECORD.recipient.to_bytes() + b"sealed"
    assert ZoneRecord.from_bytes(data) == RECORD


@given(st.binary(max_size=150))
def test_a_zone_record_that_parses_is_written_the_same(data: bytes) -> None:
    for candidate in (data, b"CZR1" + data, RECORD.to_bytes()[:80] + data):
        try:
            record = ZoneRecord.from_bytes(candidate)
        except (Damaged, UnknownFormat):
            continue
        assert record.to_bytes() == candidate


@pytest.mark.parametrize("cut", [0, 4, 51, 52, 60, 130])
def test_a_zone_record_that_is_cut_off(cut: int) -> None:
    with pytest.raises(Damaged):
        ZoneRecord.from_bytes(RECORD.to_bytes()[:cut])


def test_another_magic_is_no_zone_record() -> None:
    with pytest.raises(Damaged):
        ZoneRecord.from_bytes(b"CZR2" + RECORD.to_bytes()[4:])


def test_the_body_of_a_zone_record() -> None:
    root = ZoneRoot(b"z" * 16, NO_DIRECTORY, b"d" * 16, b"")
    assert zone_body(root) == bytes(4) + bytes(16) + b"d" * 16
    assert parse_zone_body(b"z" * 16, zone_body(root)) == root
    with pytest.raises(UnknownFormat, match="0x00000004"):
        parse_zone_body(b"z" * 16, b"\0\0\0\4" + zone_body(root)[4:])
    with pytest.raises(Damaged):
        parse_zone_body(b"z" * 16, zone_body(root)[:-1])


ROOTS = st.lists(st.builds(ZoneRoot, IDS, IDS, IDS, st.binary(max_size=255)), max_size=4).map(tuple)


@given(ROOTS)
def test_lists_of_zones_round_trip(roots: tuple[ZoneRoot, ...]) -> None:
    assert parse_zone_list(zone_list(roots)) == roots


@given(st.binary(max_size=200))
def test_a_list_of_zones_that_parses_is_written_the_same(data: bytes) -> None:
    try:
        roots = parse_zone_list(data)
    except Damaged:
        return
    assert zone_list(roots) == data


def test_a_list_of_zones_that_is_cut_off() -> None:
    data = zone_list((ZoneRoot(b"z" * 16, b"p" * 16, b"d" * 16, b"name"),))
    for cut in range(1, len(data)):
        with pytest.raises(Damaged):
            parse_zone_list(data[:cut])

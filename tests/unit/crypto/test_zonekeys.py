"""What a zone's keys seal: docs/format.md, sections 5 to 7 and 9."""

import hashlib
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from hypothesis import given
from hypothesis import strategies as st

from cmkfs.crypto.kdf import commitment, kdf, mac
from cmkfs.crypto.zonekeys import SessionSeal, ZoneKeys, name_hash
from cmkfs.errors import Damaged, Tampered
from cmkfs.format import b64
from cmkfs.format.recipient import CmkId, CmkVersion, Recipient, Scheme
from cmkfs.format.vault import NO_DIRECTORY, Session, SessionState, ZoneRecord, ZoneRoot

SECRET, ZONE = b"s" * 32, b"z" * 16
KEYS = ZoneKeys(ZONE, SECRET, commitment(SECRET))
OTHER_ZONE = ZoneKeys(b"y" * 16, SECRET, commitment(SECRET))
DIR, OTHER_DIR, VH = b"d" * 16, b"e" * 16, b"v" * 32
NAMES = st.binary(min_size=1, max_size=255).filter(lambda name: not {0, 47} & set(name) and name not in (b".", b".."))
RECIPIENT = Recipient(CmkVersion(CmkId(b"c" * 16), 1, Scheme.GCM), b"w" * 60)


def siv(label: bytes) -> AESSIV:
    return AESSIV(kdf(SECRET, b"cmkfs zone v1 " + label, 64))


def flips(data: bytes) -> list[bytes]:
    return [data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :] for at in range(len(data))]


def refused(open_: Callable[..., object], *arguments: object) -> bool:
    with pytest.raises(Damaged):
        open_(*arguments)
    return True


def test_a_secret_that_is_not_the_one_committed_to_is_tampering() -> None:
    with pytest.raises(Tampered):
        ZoneKeys(ZONE, b"t" * 32, commitment(SECRET))


# -- names -----------------------------------------------------------------------------------------


@given(NAMES)
def test_names_round_trip(name: bytes) -> None:
    assert KEYS.open_name(DIR, KEYS.seal_name(DIR, name)) == name


@pytest.mark.parametrize(("length", "characters"), [(1, 43), (16, 43), (17, 64), (160, 235), (161, 256), (255, 363)])
def test_the_lengths_of_the_specification(length: int, characters: int) -> None:
    assert len(KEYS.seal_name(DIR, b"n" * length)) == characters


def test_a_name_is_padded_and_sealed_under_its_directory() -> None:
    assert KEYS.seal_name(DIR, b"name") == b64.encode(siv(b"names").encrypt(b"name".ljust(16, b"\0"), [DIR]))
    assert b"." not in KEYS.seal_name(DIR, b"name")


def test_a_name_of_another_directory_is_damage() -> None:
    assert refused(KEYS.open_name, OTHER_DIR, KEYS.seal_name(DIR, b"name"))


def test_a_name_that_is_edited_is_damage() -> None:
    sealed = KEYS.seal_name(DIR, b"name")
    assert all(refused(KEYS.open_name, DIR, edited) for edited in flips(sealed))
    assert refused(KEYS.open_name, DIR, b"")
    assert refused(KEYS.open_name, DIR, b"AAAA")


@pytest.mark.parametrize(
    "padded",
    [
        b"",
        bytes(16),
        b"name",
        b"name".ljust(32, b"\0"),
        b"n" * 17,
        b"a\0b".ljust(16, b"\0"),
        b"a/b".ljust(16, b"\0"),
        b".".ljust(16, b"\0"),
        b"..".ljust(16, b"\0"),
        b"n" * 256,
    ],
)
def test_what_cannot_be_a_name_is_damage_though_it_authenticates(padded: bytes) -> None:
    assert refused(KEYS.open_name, DIR, b64.encode(siv(b"names").encrypt(padded, [DIR])) if padded else b"")


def test_the_hash_of_a_long_name() -> None:
    assert name_hash(b"C" * 256) == b64.encode(hashlib.sha256(b"C" * 256).digest())
    assert len(name_hash(b"")) == 43


# -- directory ids ---------------------------------------------------------------------------------


def test_a_directory_id() -> None:
    sealed = KEYS.seal_dir_id(DIR)
    assert len(sealed) == 64
    data = b64.decode(sealed)
    assert data == ZONE + siv(b"directories").encrypt(DIR, [b"dir", ZONE])
    assert KEYS.open_dir_id(data) == DIR
    assert all(refused(KEYS.open_dir_id, edited) for edited in flips(data)[16:])
    assert refused(OTHER_ZONE.open_dir_id, data)
    assert refused(KEYS.open_dir_id, ZONE)
    assert refused(KEYS.open_dir_id, ZONE + siv(b"directories").encrypt(b"short", [b"dir", ZONE]))


# -- symlink targets -------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=4095).filter(lambda target: 0 not in target))
def test_targets_round_trip(target: bytes) -> None:
    sealed = KEYS.seal_target(target)
    assert KEYS.open_target(sealed) == target
    assert len(sealed) * 3 // 4 - 32 == len(target)


@pytest.mark.parametrize("target", [b"a\0b", b"t" * 4096])
def test_what_cannot_be_a_target_is_damage_though_it_authenticates(target: bytes) -> None:
    nonce = bytes(16)
    sealed = siv(b"links").encrypt(target, [b"link", ZONE, nonce])
    assert refused(KEYS.open_target, b64.encode(nonce + sealed))


def test_a_target_that_is_edited_or_of_another_zone_is_damage() -> None:
    sealed = KEYS.seal_target(b"target")
    assert sealed != KEYS.seal_target(b"target")
    assert all(refused(KEYS.open_target, edited) for edited in flips(sealed))
    assert refused(OTHER_ZONE.open_target, sealed)
    assert refused(KEYS.open_target, b"")
    assert refused(KEYS.open_target, sealed[:40])


# -- extended attributes ---------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=255), st.binary(max_size=500))
def test_attributes_round_trip(name: bytes, value: bytes) -> None:
    handle = KEYS.xattr_handle(DIR, name)
    assert len(handle) == 22
    assert KEYS.open_xattr(DIR, handle, KEYS.seal_xattr(DIR, name, value)) == (name, value)


def test_an_attribute_of_another_owner_or_name_or_edited_is_damage() -> None:
    sealed, handle = KEYS.seal_xattr(DIR, b"user.a", b"value"), KEYS.xattr_handle(DIR, b"user.a")
    assert handle != KEYS.xattr_handle(OTHER_DIR, b"user.a")  # who has the same attributes cannot be seen
    assert refused(KEYS.open_xattr, OTHER_DIR, handle, sealed)
    assert refused(KEYS.open_xattr, DIR, KEYS.xattr_handle(DIR, b"user.b"), sealed)
    assert all(refused(KEYS.open_xattr, DIR, handle, edited) for edited in flips(sealed))
    assert all(refused(KEYS.open_xattr, DIR, handle, sealed[:cut]) for cut in range(len(sealed)))


@pytest.mark.parametrize("plain", [b"\0", b"\0value", b"\x06user.b", b"\xffuser.a"])
def test_an_attribute_whose_name_is_not_its_own_is_damage_though_it_authenticates(plain: bytes) -> None:
    handle = KEYS.xattr_handle(DIR, b"user.a")
    nonce = bytes(16)
    sealed = siv(b"xattrs").encrypt(plain, [b"value", DIR, handle, nonce])
    assert refused(KEYS.open_xattr, DIR, handle, nonce + sealed)


# -- zones and session -----------------------------------------------------------------------------

ROOT = ZoneRoot(ZONE, NO_DIRECTORY, DIR, b"")


def test_a_zone_record() -> None:
    sealed = KEYS.seal_zone_root(VH, ROOT)
    record = ZoneRecord(ZONE, commitment(SECRET), RECIPIENT, sealed)
    assert KEYS.open_zone_root(VH, record) == ROOT
    assert refused(KEYS.open_zone_root, b"w" * 32, record)
    assert refused(OTHER_ZONE.open_zone_root, VH, record)
    for edited in flips(sealed):
        assert refused(KEYS.open_zone_root, VH, ZoneRecord(ZONE, commitment(SECRET), RECIPIENT, edited))


def test_the_list_of_zones() -> None:
    roots = (ZoneRoot(b"a" * 16, DIR, OTHER_DIR, b"one"), ZoneRoot(b"b" * 16, DIR, b"x" * 16, b"two"))
    sealed = KEYS.seal_zone_list(VH, roots)
    assert KEYS.open_zone_list(VH, sealed) == roots
    assert KEYS.open_zone_list(VH, KEYS.seal_zone_list(VH, ())) == ()
    assert refused(KEYS.open_zone_list, b"w" * 32, sealed)
    assert refused(KEYS.open_zone_list, VH, b"")
    assert all(refused(KEYS.open_zone_list, VH, edited) for edited in flips(sealed))


SESSION = Session(3, SessionState.OPEN, b"i" * 16, 5)


def test_a_session_slot() -> None:
    key = kdf(SECRET, b"cmkfs zone v1 session", 32)
    sealed = KEYS.session.seal(VH, 1, SESSION)
    assert sealed == SESSION.body() + mac(key, VH + b"\1" + SESSION.body())
    assert SessionSeal(key).open(VH, 1, sealed) == SESSION


def test_a_session_slot_that_is_edited_moved_or_of_another_vault_does_not_count() -> None:
    sealed = KEYS.session.seal(VH, 1, SESSION)
    assert KEYS.session.open(VH, 0, sealed) is None
    assert KEYS.session.open(b"w" * 32, 1, sealed) is None
    assert KEYS.session.open(VH, 1, b"") is None
    assert all(KEYS.session.open(VH, 1, edited) is None for edited in flips(sealed))


def test_a_session_out_of_range_does_not_count_though_it_authenticates() -> None:
    key = kdf(SECRET, b"cmkfs zone v1 session", 32)
    body = SESSION.body()[:-1] + b"\1"
    assert KEYS.session.open(VH, 1, body + mac(key, VH + b"\1" + body)) is None


def test_no_two_purposes_share_a_key() -> None:
    """What is sealed for one purpose opens for no other, even with the right associated data."""
    sealed = siv(b"names").encrypt(DIR, [b"dir", ZONE])
    assert refused(KEYS.open_dir_id, ZONE + sealed)
    labels = (b"names", b"directories", b"links", b"xattrs", b"records", b"session", b"header")
    derived = [kdf(SECRET, b"cmkfs zone v1 " + label, 32) for label in labels]
    assert len(set(derived)) == len(labels)
    assert KEYS.header_secret == derived[-1]

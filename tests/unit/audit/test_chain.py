"""The chain finds every edit, removal, reordering; and its keys lead forward only."""

import hmac
import json

import pytest

from cmkfs.audit.chain import NO_MAC, Verifier, context, next_key, parse, seal

CHAIN = "ab" * 16
TS = "2026-01-31T08:00:00.000000Z"


def token_mac(message: bytes) -> bytes:
    return hmac.digest(b"the token's audit key", message, "sha256")


def chain_of(*epochs: int, chain: str = CHAIN, first: int = 1, prev: str = NO_MAC) -> list[bytes]:
    """Lines of epochs of so many records."""
    lines, seq = [], first
    for number, count in enumerate(epochs):
        key = token_mac(context(chain, f"{number:016x}"))
        for at in range(count):
            body = f'"event":"open.read","outcome":"allowed","uid":{seq}'
            if not at:
                body += f',"chain":"{chain}","epoch":"{number:016x}"'
            line, prev = seal(key, TS, seq, body, prev)
            key, seq = next_key(key), seq + 1
            lines.append(line)
    return lines


def first_fault(lines: list[bytes], *, partial: bool = False) -> str:
    verifier = Verifier(CHAIN, token_mac, partial=partial)
    return next((fault for line in lines if (fault := verifier.fault(parse(line)))), "")


def test_a_chain_is_genuine_over_epochs() -> None:
    lines = chain_of(3, 1, 4)
    assert first_fault(lines) == ""
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, 9))
    verifier = Verifier(CHAIN, token_mac)
    assert not any(verifier.fault(parse(line)) for line in lines)
    assert (verifier.first, verifier.seq, verifier.checkpoint_seq) == (1, 8, 5)


@pytest.mark.parametrize("at", range(8))
def test_an_edited_record_is_named(at: int) -> None:
    lines = chain_of(3, 1, 4)
    lines[at] = lines[at].replace(b'"allowed"', b'"refused"')
    assert first_fault(lines) == f"record {at + 1} was edited: its MAC is wrong"


@pytest.mark.parametrize("at", range(7))
def test_a_removed_record_is_named(at: int) -> None:
    lines = chain_of(3, 1, 4)
    del lines[at]
    assert first_fault(lines) == f"record {at + 1} was removed"


def test_several_removed_records_are_named() -> None:
    lines = chain_of(3, 1, 4)
    assert first_fault(lines[:2] + lines[5:]) == "records 3 to 5 were removed"


@pytest.mark.parametrize("at", range(7))
def test_reordered_records_are_found(at: int) -> None:
    lines = chain_of(3, 1, 4)
    lines[at], lines[at + 1] = lines[at + 1], lines[at]
    assert f"record {at + 1} was" in first_fault(lines)


@pytest.mark.parametrize("at", range(8))
def test_a_repeated_record_is_found(at: int) -> None:
    lines = chain_of(3, 1, 4)
    assert first_fault([*lines, lines[at]]) == f"record {at + 1} is out of order: it stands behind record 8"


@pytest.mark.parametrize("at", range(8))
def test_every_flipped_byte_is_found(at: int) -> None:
    lines = chain_of(3, 1, 4)
    good = lines[at]
    for place in range(len(good) - 1):
        lines[at] = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
        assert first_fault(lines), (place, lines[at])


def test_records_of_another_chain_do_not_pass() -> None:
    other = chain_of(2, chain="cd" * 16)
    assert "another chain" in first_fault(other)
    assert first_fault([*chain_of(2), *chain_of(2, chain="cd" * 16, first=3)]) != ""


def test_an_epoch_cannot_be_taken_from_another_history() -> None:
    mine, other = chain_of(2), chain_of(1, 1, 2)
    assert "put in the place of another" in first_fault([*mine, *other[2:]])


def test_the_oldest_may_be_elsewhere_only_if_that_is_said() -> None:
    lines = chain_of(3, 1, 4)[3:]
    assert first_fault(lines) == "records 1 to 3 were removed"
    assert first_fault(lines, partial=True) == ""
    # Not even then in the middle of an epoch: nobody could tell what its key was.
    assert first_fault(lines[2:], partial=True) != ""


def test_a_key_from_memory_opens_no_past() -> None:
    """What is known after a record neither gives the keys before it, nor that of the next checkpoint."""
    keys = [token_mac(context(CHAIN, "0" * 16))]
    for _ in range(5):
        keys.append(next_key(keys[-1]))
    stolen = keys[3]
    later = [stolen]
    for _ in range(1000):
        later.append(next_key(later[-1]))
    assert not set(keys[:3]) & set(later)
    forged, _ = seal(stolen, TS, 2, '"event":"x","outcome":"done"', parse(chain_of(1)[0]).text("mac"))  # type: ignore[union-attr]
    assert first_fault([*chain_of(1), forged]) == "record 2 was edited: its MAC is wrong"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\n",
        b"{}\n",
        b'{"seq":1,"prev":"","mac":"' + b"0" * 64 + b'"}',
        b'{"seq":"1","prev":"","mac":"' + b"0" * 64 + b'"}\n',
        b'{"seq":1,"mac":"' + b"0" * 64 + b'"}\n',
        b'{"seq":1,"prev":"","mac":"' + b"\xff" * 64 + b'"}\n',
        b"[" * 100_000 + b',"mac":"' + b"0" * 64 + b'"}\n',
    ],
)
def test_what_is_no_record(raw: bytes) -> None:
    assert parse(raw) is None
    assert first_fault([raw]) == "record 1 was edited: it is no record any more"

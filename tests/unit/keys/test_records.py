"""Records beside a CMK: exact, and nothing else is taken for one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmkfs.keys.provider import CmkId
from cmkfs.keys.records import CmkRecord, PolicyRecord

ids = st.binary(min_size=16, max_size=16).map(CmkId)
cmk_records = st.builds(CmkRecord, ids, st.text(), st.text(), st.text(), st.text())
policy_records = st.builds(PolicyRecord, ids, st.integers(0, 2**63), st.none() | st.text())


@given(cmk_records)
def test_cmk_record_round_trip(record: CmkRecord) -> None:
    assert CmkRecord.from_bytes(record.to_bytes()) == record


@given(policy_records)
def test_policy_record_round_trip(record: PolicyRecord) -> None:
    assert PolicyRecord.from_bytes(record.to_bytes()) == record


def test_an_empty_policy_is_not_no_policy() -> None:
    empty, none = (PolicyRecord(CmkId(bytes(16)), 1, text) for text in ("", None))
    assert PolicyRecord.from_bytes(empty.to_bytes()).text == ""
    assert PolicyRecord.from_bytes(none.to_bytes()).text is None


@given(policy_records, st.data())
def test_every_cut_is_refused(record: PolicyRecord, data: st.DataObject) -> None:
    raw = record.to_bytes()
    with pytest.raises(ValueError):
        PolicyRecord.from_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])


@given(st.binary() | policy_records.map(lambda record: record.to_bytes()), st.data())
def test_what_is_accepted_is_exact(raw: bytes, data: st.DataObject) -> None:
    if raw:
        at = data.draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] + bytes([data.draw(st.integers(0, 255))]) + raw[at + 1 :]
    for kind in (CmkRecord, PolicyRecord):
        try:
            record = kind.from_bytes(raw)
        except ValueError:
            continue
        assert record.to_bytes() == raw


def _policy(**changes: object) -> bytes:
    fields = {
        "cmkfs": "policy",
        "format": 1,
        "cmk_id": "00" * 16,
        "epoch": 1,
        "set": 1,
        "text": "x",
        **changes,
    }
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "raw",
    [
        _policy(cmkfs="cmk"),
        _policy(format=2),
        _policy(more=1),
        _policy(epoch=-1),
        _policy(epoch=True),
        _policy(epoch="1"),
        _policy(text=None),
        _policy(set=2),
        _policy(set=0),
        _policy(cmk_id="00" * 15),
        _policy(cmk_id="AA" * 16),
        _policy() + b"\n",
        b" " + _policy(),
        b"[]",
        b"1",
        b"[" * 100_000,
    ],
)
def test_faults(raw: bytes) -> None:
    PolicyRecord.from_bytes(_policy())
    with pytest.raises(ValueError):
        PolicyRecord.from_bytes(raw)
    with pytest.raises(ValueError):
        CmkRecord.from_bytes(raw)

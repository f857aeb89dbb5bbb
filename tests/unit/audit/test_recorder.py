"""What a mount tells becomes records: repeats folded, refusals and changes never; closed when it cannot write."""

import hmac
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cmkfs.audit import recorder as recorder_module
from cmkfs.audit.alarm import Alert, Kind
from cmkfs.audit.logfile import LogFile
from cmkfs.audit.process import own_process
from cmkfs.audit.reading import chains, verify
from cmkfs.audit.recorder import FOLD_SECONDS, Recorder
from cmkfs.config import AuditConfig, OnFailure
from cmkfs.errors import AuditFailed, Damaged, Disabled, Locked, PolicyDenied

FILE, OTHER = bytes(16), bytes([1] * 16)


@dataclass
class FakeZone:
    zone_id: bytes = bytes([2] * 16)
    cmk_name: str = "finance"
    cmk_id: bytes = bytes([3] * 16)


@dataclass(frozen=True)
class User:
    uid: int
    gid: int = 100
    pid: int = 0


ZONE, ALICE, BOB = FakeZone(), User(1000), User(2000)


def token_mac(message: bytes) -> bytes:
    return hmac.digest(b"the token's audit key", message, "sha256")


@dataclass
class Log:
    """A recorder, its clock, its alerts, and its records as read back."""

    recorder: Recorder
    directory: Path
    alerts: list[Alert]
    seconds: float = 0.0
    full: bool = False

    def records(self) -> list[dict[str, object]]:
        text = (self.directory / "mount-1.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()][1:]

    def events(self) -> list[str]:
        return [str(record["event"]) for record in self.records()]

    def use(self, user: User = ALICE, file: bytes = FILE, event: str = "open.read", rule: str | None = None) -> None:
        self.recorder.used(ZONE, user, event, file, 1, rule=rule)

    def genuine(self) -> bool:
        (chain,) = chains([self.directory])
        return not verify(chain, token_mac, []).fault


def new_log(directory: Path, monkeypatch: pytest.MonkeyPatch, settings: AuditConfig) -> Log:
    file = LogFile(directory, "mount-1")
    file.open(wait=False)
    file.go_on_from(None)
    alerts: list[Alert] = []
    log = Log(Recorder(file, settings, "/mnt/finance", alerts.append), directory, alerts)
    monkeypatch.setattr(recorder_module.time, "monotonic", lambda: log.seconds)
    write = os.write

    def may_be_full(fd: int, data: bytes) -> int:
        if log.full and fd == file._fd:
            return write(fd, data[: len(data) // 2])  # a disk takes what still fits
        return write(fd, data)

    monkeypatch.setattr(os, "write", may_be_full)
    log.recorder.begin(file.new_epoch(token_mac), None, "settings")
    return log


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    made = new_log(tmp_path, monkeypatch, AuditConfig(alert_refusals=3, alert_uses=5))
    yield made
    made.recorder.file.close()


def test_a_use_has_all_its_facts(log: Log) -> None:
    me = own_process()
    log.recorder.used(ZONE, me, "open.write", FILE, 7, rule='staff "x"', began_ns=1)
    (record,) = log.records()
    assert {name: record[name] for name in record if name not in ("ts", "prev", "mac", "latency_us")} == {
        "seq": 2,
        "event": "open.write",
        "outcome": "allowed",
        "rule": 'staff "x"',
        "uid": me.uid,
        "gid": me.gid,
        "pid": me.pid,
        "exe": os.path.realpath("/proc/self/exe"),
        "mount": "/mnt/finance",
        "zone": ZONE.zone_id.hex(),
        "cmk": "finance",
        "cmk_id": ZONE.cmk_id.hex(),
        "file_id": FILE.hex(),
        "cmk_version": 7,
    }
    assert isinstance(record["latency_us"], int)
    assert log.genuine()


def test_repeats_are_one_record_with_a_count(log: Log) -> None:
    for _ in range(5):
        log.use()
    assert len(log.records()) == 1
    log.seconds = FOLD_SECONDS
    assert not log.recorder.end_folds()
    first, folded = log.records()
    assert "count" not in first
    assert folded["count"] == 4
    assert {**folded, **dict.fromkeys(("ts", "seq", "prev", "mac", "count"))} == {
        **first,
        **dict.fromkeys(("ts", "seq", "prev", "mac", "count")),
    }
    log.use()
    assert len(log.records()) == 3


@pytest.mark.parametrize(
    "other",
    [
        {"user": BOB},
        {"user": User(1000, 101)},
        {"file": OTHER},
        {"event": "open.write"},
        {"rule": "another"},
    ],
)
def test_another_user_file_event_or_rule_is_no_repeat(log: Log, other: dict[str, object]) -> None:
    log.use()
    log.use(**other)  # type: ignore[arg-type]
    assert len(log.records()) == 2


def test_a_use_after_a_lock_is_no_repeat(log: Log) -> None:
    log.use()
    log.use()
    log.recorder.changed("lock", zone=ZONE)
    log.use()
    assert log.events() == ["open.read", "open.read", "lock", "open.read"]


def test_refusals_and_changes_are_never_folded(log: Log) -> None:
    for _ in range(2):
        log.recorder.refused("open", PolicyDenied("no"), caller=ALICE, zone=ZONE, rule="no-contractors")
        log.recorder.changed("lock", reason="by hand", caller=ALICE, zone=ZONE)
    assert log.events() == ["open", "lock", "open", "lock"]
    assert log.records()[0]["rule"] == "no-contractors"


def test_damage_names_the_file(log: Log) -> None:
    log.recorder.refused("read", Damaged("block 3"), caller=ALICE, zone=ZONE, file_id=FILE, path="abc/def")
    record, alert = log.records()
    assert (record["outcome"], record["path"], record["file_id"]) == ("damaged", "abc/def", FILE.hex())
    assert (alert["event"], alert["rule"]) == ("alert", "tampering")
    assert [told.kind for told in log.alerts] == [Kind.TAMPERING]


def test_many_folds_do_not_use_up_the_memory(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "FOLDS", 10)
    for number in range(50):
        log.use(file=number.to_bytes(16, "big"))
        log.use(file=number.to_bytes(16, "big"))
    assert len(log.recorder._folds) == 10
    log.recorder.end_folds(everything=True)
    assert [record.get("count") for record in log.records() if record["event"] == "open.read"].count(1) == 50


# -- When it cannot be written ---------------------------------------------------------------------


def test_no_key_is_used_while_the_log_is_full_and_all_is_there_afterwards(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    log.use()
    log.full = True
    for _ in range(3):
        with pytest.raises(AuditFailed, match="No space left on device"):
            log.use(BOB)
        with pytest.raises(AuditFailed):
            log.use()  # a repeat too: its count could not be written
    log.recorder.refused("open", Locked("locked"), caller=BOB, zone=ZONE)
    log.recorder.changed("lock", zone=ZONE)
    assert log.events() == ["open.read"]
    assert log.genuine()
    log.full = False
    log.use(BOB)
    assert log.events() == ["open.read", "open", "lock", "open.read"]
    assert log.genuine()
    assert log.recorder.failure is None
    assert [record.message for record in caplog.records if record.name == "cmkfs.audit.recorder"] == [
        f"the audit log cannot be written: [Errno 28] No space left on device: '{log.directory / 'mount-1.jsonl'}'",
        "the audit log can be written again",
    ]


def test_it_recovers_without_being_used(log: Log) -> None:
    log.full = True
    log.recorder.changed("lock", zone=ZONE)
    log.full = False
    log.recorder.end_folds()
    assert log.events() == ["lock"]


def test_what_waits_is_bounded_and_what_is_lost_is_counted(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "WAITING", 3)
    log.full = True
    for _ in range(5):
        log.recorder.changed("lock", zone=ZONE)
    assert (log.recorder.waiting, log.recorder.lost) == (3, 2)
    log.full = False
    log.use()
    assert log.events() == ["lock", "lock", "lock", "audit.lost", "open.read"]
    assert log.records()[3]["count"] == 2
    assert log.genuine()


def test_with_warn_keys_are_used_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = new_log(tmp_path, monkeypatch, AuditConfig(on_failure=OnFailure.WARN))
    log.full = True
    log.use()
    log.full = False
    log.use()
    assert log.events() == ["open.read"]
    log.recorder.file.close()


# -- Alerts ----------------------------------------------------------------------------------------


def test_a_burst_of_refusals_of_one_user(log: Log) -> None:
    for user in (ALICE, BOB, ALICE, BOB):
        log.recorder.refused("open", PolicyDenied("no"), caller=user, zone=ZONE)
    assert log.alerts == []
    for _ in range(5):
        log.recorder.refused("open", PolicyDenied("no"), caller=ALICE, zone=ZONE)
    assert [(alert.kind, alert.uid) for alert in log.alerts] == [(Kind.REFUSALS, 1000)]
    log.seconds += 3600
    for _ in range(3):
        log.recorder.refused("open", PolicyDenied("no"), caller=ALICE, zone=ZONE)
    assert len(log.alerts) == 2


def test_slow_refusals_are_no_burst(log: Log) -> None:
    for _ in range(10):
        log.seconds += 6
        log.recorder.refused("open", PolicyDenied("no"), caller=ALICE, zone=ZONE)
    assert log.alerts == []


def test_mass_copying(log: Log) -> None:
    for number in range(5):
        log.use(file=bytes([number] * 16))
        log.use(BOB)
    assert [(alert.kind, alert.uid) for alert in log.alerts] == [(Kind.MASS_USE, 1000)]


def test_the_use_of_a_disabled_key(log: Log) -> None:
    for _ in range(2):
        log.recorder.refused("open", Disabled("CMK finance is disabled"), caller=ALICE, zone=ZONE)
    assert [(alert.kind, alert.uid) for alert in log.alerts] == [(Kind.DISABLED_KEY, 1000)]


def test_a_changed_policy(log: Log) -> None:
    log.recorder.changed("policy.taken", reason="abc", zone=ZONE)
    assert [alert.kind for alert in log.alerts] == [Kind.POLICY]

"""Alerts reach the command of the configuration, and a command that fails harms nobody."""

import json
from pathlib import Path

import pytest

from cmkfs.audit.alarm import Alert, Kind
from cmkfs.audit.delivery import Delivery
from cmkfs.config import AuditConfig

ALERT = Alert(Kind.MASS_USE, "uid 1000 used the keys of 1000 files within 60 s", 1000)


def test_the_command_hears_of_each_alert(tmp_path: Path) -> None:
    told = tmp_path / "told"
    delivery = Delivery(AuditConfig(syslog=False, alert_command=("sh", "-c", f"cat >> {told}")), "/mnt/finance")
    delivery.send(ALERT)
    delivery.send(Alert(Kind.TAMPERING, "block 3", None))
    delivery.close()
    first, second = [json.loads(line) for line in told.read_text().splitlines()]
    assert first == {"alert": "mass-use", "message": ALERT.message, "uid": 1000, "mount": "/mnt/finance"}
    assert second["alert"] == "tampering"


@pytest.mark.parametrize("command", [("false",), ("/nowhere/at-all",)])
def test_a_command_that_fails_is_logged(command: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    delivery = Delivery(AuditConfig(alert_command=command))  # syslog: where there is none, it goes nowhere
    delivery.send(ALERT)
    delivery.close()
    assert [record.message for record in caplog.records] == [
        message for message in caplog.messages if message.startswith("the alert command failed: ")
    ]
    assert len(caplog.records) == 1


def test_nothing_runs_without_an_alert() -> None:
    delivery = Delivery(AuditConfig(alert_command=("false",)))
    delivery.close()
    assert delivery._thread is None

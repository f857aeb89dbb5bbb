"""Telling people: an alert to syslog (and so to journald), and to a command of the configuration.

In a thread of its own, because neither may hold up a mount.
"""

import json
import logging
import queue
import subprocess
import syslog
import threading
from typing import Final

from cmkfs.audit.alarm import Alert
from cmkfs.config import AuditConfig

HOOK_SECONDS: Final = 30.0
_WAITING: Final = 1000

log = logging.getLogger(__name__)


class Delivery:
    """Delivers alerts in order. The thread begins with the first one."""

    def __init__(self, settings: AuditConfig, mount: str | None = None) -> None:
        self._settings = settings
        self._mount = mount
        self._waiting: queue.Queue[Alert | None] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None

    def send(self, alert: Alert) -> None:
        """Deliver soon; never waits."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="cmkfs-alerts", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(alert)
        except queue.Full:
            log.error("too many alerts wait; this one is in the audit log only: %s", alert.message)

    def close(self, seconds: float = HOOK_SECONDS) -> None:
        """Wait until what was sent is delivered, for so long at most."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(seconds)

    def _run(self) -> None:
        while (alert := self._waiting.get()) is not None:
            log.info("%s: %s", alert.kind, alert.message)
            if self._settings.syslog:
                where = f" on {self._mount}" if self._mount else ""
                syslog.openlog("cmkfs", syslog.LOG_PID, syslog.LOG_AUTHPRIV)
                syslog.syslog(syslog.LOG_ALERT, f"{alert.kind}: {alert.message}{where}")
            if self._settings.alert_command:
                self._call(self._settings.alert_command, alert)

    def _call(self, command: tuple[str, ...], alert: Alert) -> None:
        told = {"alert": alert.kind, "message": alert.message, "uid": alert.uid, "mount": self._mount}
        try:
            subprocess.run(command, input=json.dumps(told).encode() + b"\n", timeout=HOOK_SECONDS, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            log.error("the alert command failed: %s", error)

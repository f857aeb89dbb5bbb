"""The audit log of a mount: what is told of becomes records; repeats are folded; alarms are raised.

A use is in the log (write(2) has returned) before its key is given. The same use again within `FOLD_SECONDS`
is counted, and the count is a record of its own when the time is over. Refusals and changes are never folded;
when they cannot be written they wait in memory until there is room.
"""

import json
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from cmkfs.audit.alarm import Alarm, Alert, Kind
from cmkfs.audit.auditor import Auditor, Caller, UnderCmk
from cmkfs.audit.logfile import Epoch, LogFile
from cmkfs.audit.process import executable, login_uid
from cmkfs.audit.record import Facts
from cmkfs.config import AuditConfig, OnFailure
from cmkfs.errors import AuditFailed, Damaged, Disabled, Revoked

FOLD_SECONDS: Final = 10.0
FOLDS: Final = 50_000
"""Uses that are remembered to be folded; the oldest make room."""
WAITING: Final = 10_000
"""Refusals and changes that wait in memory while the log cannot be written; more are counted only."""

log = logging.getLogger(__name__)

_Use = tuple[str, int, int, bytes, int, str | None]


class _Fold:
    """How often a use was repeated, since it was recorded."""

    __slots__ = ("count", "exe", "pid", "until", "zone")

    def __init__(self, until: float, zone: UnderCmk, pid: int, exe: str) -> None:
        self.count = 0
        self.until = until
        self.zone = zone
        self.pid = pid
        self.exe = exe


class Recorder(Auditor):
    """The `Auditor` of a mount. Everything is called on the event loop."""

    def __init__(self, file: LogFile, settings: AuditConfig, mount: str, tell: Callable[[Alert], None]) -> None:
        self.file = file
        self._must = settings.on_failure is OnFailure.REFUSE
        self._mount = mount
        self._tell = tell
        self._alarm = Alarm(settings)
        self._folds: OrderedDict[_Use, _Fold] = OrderedDict()  # a dict would search its front for the oldest
        self._zones: dict[bytes, str] = {}
        self._programs: dict[str, str] = {}
        self._waiting: deque[tuple[str, str]] = deque()
        self._unbegun: tuple[Epoch, str] | None = None
        self.lost = 0
        self.changes = False
        """Was there a change since the last checkpoint?"""
        self.failure: OSError | None = None
        self.on_record: Callable[[], None] = lambda: None
        """Called when there is a record that no checkpoint covers."""

    # -- Auditor ---------------------------------------------------------------------------------

    def used(
        self,
        zone: UnderCmk,
        caller: Caller,
        event: str,
        file_id: bytes,
        version: int,
        *,
        rule: str | None = None,
        began_ns: int = 0,
    ) -> None:
        """See `Auditor`."""
        now = time.monotonic()
        use = (event, caller.uid, caller.gid, file_id, version, rule)
        fold = self._folds.get(use)
        if fold is not None and now < fold.until and self.failure is None:
            fold.count += 1
            return
        exe = self._program(caller.pid)
        latency = f',"latency_us":{(time.monotonic_ns() - began_ns) // 1000}' if began_ns else ""
        if not self._write(self._use_body(use, zone, caller.pid, exe) + latency):
            if self._must:
                raise AuditFailed(f"the use of keys cannot be recorded: {self._why()}")
            return
        if fold is not None:
            self._end_fold(use)
        self._folds[use] = _Fold(now + FOLD_SECONDS, zone, caller.pid, exe)
        self._end_oldest(now)
        self._raise(self._alarm.use(caller.uid, now))

    def refused(
        self,
        event: str,
        error: Exception,
        *,
        caller: Caller | None = None,
        zone: UnderCmk | None = None,
        file_id: bytes | None = None,
        path: str | None = None,
        rule: str | None = None,
    ) -> None:
        """See `Auditor`."""
        outcome = "damaged" if isinstance(error, Damaged) else "refused"
        facts = self._facts(event, outcome, str(error), rule, caller, zone, file_id, path)
        self._write_or_keep(facts.body())
        now = time.monotonic()
        uid = caller.uid if caller is not None else None
        if isinstance(error, Damaged):
            self._raise(self._alarm.about(Kind.TAMPERING, f"{error} ({path or 'no path'})", None, now))
        elif uid is not None:
            self._raise(self._alarm.refusal(uid, now))
        if isinstance(error, Disabled | Revoked):
            what = "a CMK" if zone is None else f"CMK {zone.cmk_name}"
            self._raise(self._alarm.about(Kind.DISABLED_KEY, f"uid {uid} wants to use {what}: {error}", uid, now))

    def changed(
        self,
        event: str,
        *,
        outcome: str = "done",
        reason: str | None = None,
        caller: Caller | None = None,
        zone: UnderCmk | None = None,
        rule: str | None = None,
    ) -> None:
        """See `Auditor`."""
        self.changes = True
        if event == "lock":
            self.end_folds(everything=True)  # what is used after it gets its key anew
        facts = self._facts(event, outcome, reason, rule, caller, zone, None, None)
        login = login_uid(caller.pid) if caller is not None else None
        self._write_or_keep(replace(facts, login_uid=login).body())
        if event.startswith("policy."):
            name = zone.cmk_name if zone is not None else "?"
            self.alert(Kind.POLICY, f"the policy of CMK {name} changed")

    def require_room(self) -> None:
        """See `Auditor`."""
        if self._must and not (self._catch_up() and self._try(self.file.require_room)):
            raise AuditFailed(f"the use of keys cannot be recorded: {self._why()}")

    @property
    def waiting(self) -> int:
        """Refusals and changes that are not written yet."""
        return len(self._waiting)

    # -- for whoever keeps the log ---------------------------------------------------------------

    def begin(self, epoch: Epoch, reason: str | None, settings: str) -> None:
        """The first record of a mount. Raises AuditFailed if it cannot be written and must be."""
        body = Facts("audit.begin", "done", reason, mount=self._mount, settings=settings).body()
        self._unbegun = (epoch, body)
        if not self._catch_up() and self._must:
            raise AuditFailed(f"the audit log cannot be written: {self._why()}")

    def checkpoint(self, epoch: Epoch) -> bool:
        """Write one; False if that is not possible now."""
        if not self._catch_up():
            return False
        body = Facts("audit.checkpoint", "done", mount=self._mount).body()
        self.changes = False
        return self._try(lambda: self.file.begin_epoch(epoch, body))

    def rotate(self, epoch: Epoch, reason: str) -> bool:
        """Go on in a new file; False if that is not possible now."""
        body = Facts("audit.rotate", "done", reason, mount=self._mount).body()
        return self._try(lambda: self.file.rotate(epoch, body))

    def alert(self, kind: Kind, message: str) -> None:
        """Raise an alert that is about nobody."""
        self._raise(self._alarm.about(kind, message, None, time.monotonic()))

    def end_folds(self, *, everything: bool = False) -> bool:
        """Record the counts whose time is over, or all; False if nothing is left to be folded."""
        self._catch_up()
        self._end_oldest(float("inf") if everything else time.monotonic(), limit=FOLDS)
        return bool(self._folds)

    # -- how -------------------------------------------------------------------------------------

    def _why(self) -> str:
        return (self.failure.strerror or str(self.failure)) if self.failure is not None else "it is not open"

    def _try(self, write: Callable[[], None]) -> bool:
        try:
            write()
        except OSError as error:
            return self._failed(error)
        if self.failure is not None:
            log.warning("the audit log can be written again")
            self.failure = None
        self.on_record()
        return True

    def _failed(self, error: OSError) -> bool:
        if self.failure is None:
            log.error("the audit log cannot be written: %s", error)
        self.failure = error
        return False

    def _catch_up(self) -> bool:
        """Write what waits; False if it waits on."""
        if self._unbegun is not None:
            epoch, body = self._unbegun
            if not self._try(lambda: self.file.begin_epoch(epoch, body)):
                return False
            self._unbegun = None
        while self._waiting:
            ts, body = self._waiting[0]
            if not self._try(lambda body=body, ts=ts: self.file.append(body, ts)):  # type: ignore[misc]
                return False
            self._waiting.popleft()
        if self.lost:
            facts = Facts("audit.lost", "failed", "while the log could not be written", count=self.lost)
            if not self._try(lambda: self.file.append(facts.body())):
                return False
            self.lost = 0
        return True

    def _write(self, body: str) -> bool:
        if (self._waiting or self._unbegun is not None or self.lost) and not self._catch_up():
            return False
        return self._try(lambda: self.file.append(body))

    def _write_or_keep(self, body: str) -> None:
        if self._write(body):
            return
        if len(self._waiting) < WAITING:
            self._waiting.append((self.file.now(), body))
        else:
            self.lost += 1

    def _use_body(self, use: _Use, zone: UnderCmk, pid: int, exe: str) -> str:
        event, uid, gid, file_id, version, rule = use
        by = f'"rule":{json.dumps(rule)},' if rule else ""
        return (
            f'"event":"{event}","outcome":"allowed",{by}"uid":{uid},"gid":{gid},"pid":{pid},{exe}'
            f'{self._under(zone)},"file_id":"{file_id.hex()}","cmk_version":{version}'
        )

    def _under(self, zone: UnderCmk) -> str:
        found = self._zones.get(zone.zone_id)
        if found is None:
            found = json.dumps(
                {
                    "mount": self._mount,
                    "zone": zone.zone_id.hex(),
                    "cmk": zone.cmk_name,
                    "cmk_id": zone.cmk_id.hex(),
                },
                separators=(",", ":"),
            )[1:-1]
            self._zones[zone.zone_id] = found
        return found

    def _program(self, pid: int) -> str:
        exe = executable(pid)
        if exe is None:
            return ""
        found = self._programs.get(exe)
        if found is None:
            if len(self._programs) >= 1000:
                self._programs.clear()
            found = self._programs[exe] = f'"exe":{json.dumps(exe)},'
        return found

    def _facts(
        self,
        event: str,
        outcome: str,
        reason: str | None,
        rule: str | None,
        caller: Caller | None,
        zone: UnderCmk | None,
        file_id: bytes | None,
        path: str | None,
    ) -> Facts:
        return Facts(
            event,
            outcome,
            reason,
            rule,
            uid=caller.uid if caller is not None else None,
            gid=caller.gid if caller is not None else None,
            pid=caller.pid if caller is not None else None,
            exe=executable(caller.pid) if caller is not None else None,
            mount=self._mount,
            zone=zone.zone_id.hex() if zone is not None else None,
            file_id=file_id.hex() if file_id is not None else None,
            cmk=zone.cmk_name if zone is not None else None,
            cmk_id=zone.cmk_id.hex() if zone is not None else None,
            path=path,
        )

    def _end_fold(self, use: _Use) -> None:
        fold = self._folds.pop(use)
        if fold.count:
            body = f'{self._use_body(use, fold.zone, fold.pid, fold.exe)},"count":{fold.count}'
            self._write_or_keep(body)

    def _end_oldest(self, now: float, limit: int = 2) -> None:
        """End up to `limit` folds whose time is over, and those that are too many."""
        for _ in range(min(limit, len(self._folds))):
            use = next(iter(self._folds))
            if self._folds[use].until > now and len(self._folds) <= FOLDS:
                return
            self._end_fold(use)

    def _raise(self, alert: Alert | None) -> None:
        if alert is not None:
            self._write_or_keep(Facts("alert", "done", alert.message, alert.kind, alert.uid, mount=self._mount).body())
            self._tell(alert)

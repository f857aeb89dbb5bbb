"""What the commands change at the token is in the audit log too: one chain for all commands of a home."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cmkfs import config
from cmkfs.audit.alarm import Alarm, Alert, Kind
from cmkfs.audit.delivery import Delivery
from cmkfs.audit.logfile import LogFile
from cmkfs.audit.process import executable, login_uid, own_process
from cmkfs.audit.record import Facts
from cmkfs.auditing import audit_directory, newest_head, place_of
from cmkfs.cli.output import complain
from cmkfs.config import AuditConfig, OnFailure
from cmkfs.errors import EXIT_FAILED, AuditFailed, CmkfsError, KeyDenied, PolicyDenied
from cmkfs.home import Home
from cmkfs.keys.provider import Cmk, KeyProvider

COMMANDS = "commands"
"""The name of the log of all commands."""


@dataclass(slots=True)
class Change:
    """What is being recorded; the command fills in what it learns."""

    event: str
    cmk: Cmk | None = None
    reason: str | None = None
    rule: str | None = None
    recorded: bool = True

    @property
    def exit_code(self) -> int:
        """1 if it could not be recorded."""
        return 0 if self.recorded else EXIT_FAILED


@contextmanager
def recorded(
    home: Home, provider: KeyProvider, event: str, *, takes_away: bool = False, reason: str | None = None
) -> Iterator[Change]:
    """Record a change, done in the block, with how it ended.

    If it could not be recorded, nothing is changed (AuditFailed), unless it only `takes_away`: a disable does not
    wait for a full disk. Then, and with `on_failure = "warn"`, the command complains.
    """
    settings = config.load(home.config_file).audit
    log = CommandLog(home, settings, provider)
    if not takes_away and settings.on_failure is OnFailure.REFUSE:
        log.require_room()
    change = Change(event, reason=reason)
    try:
        yield change
    except CmkfsError as error:
        outcome = "refused" if isinstance(error, PolicyDenied | KeyDenied) else "failed"
        change.reason = f"{change.reason}: {error}" if change.reason else str(error)
        change.rule = error.rule or None if isinstance(error, PolicyDenied) else None
        _record(log, change, outcome)
        raise
    _record(log, change, "done")


def _record(log: "CommandLog", change: Change, outcome: str) -> None:
    try:
        log.write(change, outcome)
    except CmkfsError as error:
        change.recorded = False
        complain(f"{change.event} is {outcome}, but not recorded: {error}", hint=error.next_step)


class CommandLog:
    """The log of commands; a command is its writer for as long as a record takes."""

    def __init__(self, home: Home, settings: AuditConfig, provider: KeyProvider) -> None:
        self._settings = settings
        self._provider = provider
        self._directory = audit_directory(home)
        self._place = place_of(self._directory)

    def require_room(self) -> None:
        """Return if a record can be written now. Raises AuditFailed."""
        with self._opened() as file:
            file.require_room()

    def write(self, change: Change, outcome: str) -> None:
        """Write a record, which is a checkpoint too. Raises AuditFailed, TokenUnavailable, KeyDenied."""
        process = own_process()
        facts = Facts(
            change.event,
            outcome,
            change.reason,
            change.rule,
            uid=process.uid,
            gid=process.gid,
            pid=process.pid,
            exe=executable(process.pid),
            login_uid=login_uid(process.pid),
            cmk=change.cmk.name if change.cmk is not None else None,
            cmk_id=change.cmk.cmk_id.hex() if change.cmk is not None else None,
        )
        with self._opened() as file:
            head = newest_head(self._provider.audit_heads(), self._place, COMMANDS)
            lacking = head.seq - file.seq if head is not None else 0
            file.go_on_from(head)
            body = facts.body()
            epoch = file.new_epoch(self._provider.audit_mac)
            if file.size > self._settings.rotate_mib << 20:
                file.rotate(epoch, body)
            else:
                file.begin_epoch(epoch, body)
            file.sync()
            self._provider.remember_audit_head(file.head(self._place, ""))
        if outcome == "done" and change.event.startswith("policy."):
            name = change.cmk.name if change.cmk is not None else "?"
            self._tell(Kind.POLICY, f"uid {process.uid} changed the policy of CMK {name} ({change.event})")
        if lacking > 0:
            self._tell(Kind.LOG_CUT, f"{lacking} records that the token remembers are not in {file.path}")

    def _tell(self, kind: Kind, message: str) -> None:
        alert = Alarm(self._settings).about(kind, message, None, 0.0)
        assert isinstance(alert, Alert)
        delivery = Delivery(self._settings)
        delivery.send(alert)
        delivery.close()

    @contextmanager
    def _opened(self) -> Iterator[LogFile]:
        file = LogFile(self._directory, COMMANDS)
        try:
            file.open(wait=True)
            yield file
        except OSError as error:
            raise AuditFailed(f"{file.path}: {error.strerror or error}") from error
        finally:
            file.close()

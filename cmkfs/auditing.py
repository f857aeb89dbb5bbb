"""The audit log of a mount while it is kept: begun before any key is used, checkpointed, moved aside, ended.

The records themselves are `audit.recorder`'s; here is what needs the token and time.
"""

import logging
import os
import socket
from pathlib import Path
from typing import Protocol

import trio

from cmkfs.audit.alarm import Kind
from cmkfs.audit.chain import Head, context, new_epoch_name
from cmkfs.audit.delivery import Delivery
from cmkfs.audit.logfile import Epoch, LogFile
from cmkfs.audit.process import Process, own_process
from cmkfs.audit.recorder import Recorder
from cmkfs.config import AuditConfig
from cmkfs.errors import AuditFailed, Busy, CmkfsError
from cmkfs.home import Home, private_directory, private_tree

CHECKPOINT_SECONDS = 60.0
"""A record is covered by a checkpoint, and its end remembered by the token, after this at the latest."""
CHANGE_SECONDS = 2.0
"""The same for a change: it is rare, and what somebody would cut off first."""
LOOK_SECONDS = 1.0
"""While there are records: how often folds are ended and the file is looked at."""
DELIVERY_SECONDS = 5.0
"""How long the end of a mount waits for alerts to be delivered."""
MOST_MOUNTS = 1000

log = logging.getLogger(__name__)


def audit_directory(home: Home) -> Path:
    """The directory of the audit log, made if it is missing. Raises ConfigError."""
    private_tree(home.state)
    return private_directory(home.audit_dir)


def place_of(directory: Path) -> str:
    """What the token calls a directory of logs: it may know those of several hosts."""
    return f"{socket.gethostname()}:{directory}"


def newest_head(heads: tuple[Head, ...], place: str, name: str) -> Head | None:
    """The end that the token remembers of the log of this name here."""
    return max((head for head in heads if (head.place, head.name) == (place, name)), key=_age, default=None)


def _age(head: Head) -> int:
    return head.seq


class AuditToken(Protocol):
    """What the log needs of a token (`KeyProvider`), from trio."""

    async def audit_mac(self, message: bytes) -> bytes:
        """See `KeyProvider`."""
        ...

    async def audit_heads(self) -> tuple[Head, ...]:
        """See `KeyProvider`."""
        ...

    async def remember_audit_head(self, head: Head) -> None:
        """See `KeyProvider`."""
        ...


class MountAudit:
    """One mount's log. `recorder` is what the mount tells."""

    def __init__(self, home: Home, settings: AuditConfig, mount: str, token: AuditToken) -> None:
        self._directory = audit_directory(home)
        self._settings = settings
        self._token = token
        self._delivery = Delivery(settings, mount)
        self.file = _first_free(self._directory)
        self.recorder = Recorder(self.file, settings, mount, self._delivery.send)
        self.recorder.on_record = self._wake
        self.place = place_of(self._directory)
        self.process: Process = own_process()
        self._awake = trio.Event()
        self._checkpointed = 0
        self._since = 0.0
        self._said_not_remembered = False
        self._closed = False

    async def begin(self) -> None:
        """Write the first record. Raises AuditFailed, TokenUnavailable, KeyDenied."""
        try:
            heads = await self._token.audit_heads()
            head = newest_head(heads, self.place, self.file.name)
            lacking = head.seq - self.file.seq if head is not None else 0
            self.file.go_on_from(head)
            reason = f"{self.file.dropped} bytes of an unfinished record were dropped" if self.file.dropped else None
            if lacking > 0:
                reason = f"{lacking} records that the token remembers are not in the log"
            settings = self._settings.fingerprint()
            self.recorder.begin(await self._new_epoch(), reason, settings)
        except BaseException:
            self.file.close()
            raise
        if lacking > 0:
            self.recorder.alert(Kind.LOG_CUT, f"{self.file.path}: {reason}")
        if head is not None and head.settings and head.settings != settings:
            self.recorder.changed("audit.settings", reason=f"was {head.settings}; is {settings}", caller=self.process)
            self.recorder.alert(Kind.SETTINGS, f"the audit settings changed to {settings}")
        await self._remember()

    def head(self) -> Head:
        """Where the log ends now, the counts of what is being folded apart."""
        return self.file.head(self.place, self._settings.fingerprint())

    @property
    def failure(self) -> str | None:
        """Why the log cannot be written; None if it can."""
        failure = self.recorder.failure
        return None if failure is None else failure.strerror or str(failure)

    def facts(self) -> dict[str, object]:
        """What `status` tells of the log."""
        waiting, lost = self.recorder.waiting, self.recorder.lost
        log, records = str(self.file.path), self.file.seq
        return {"log": log, "records": records, "failure": self.failure, "waiting": waiting, "lost": lost}

    async def run(self) -> None:
        """Background task: nothing while there are no records; else look, and write checkpoints."""
        while True:
            await self._awake.wait()
            await trio.sleep(LOOK_SECONDS)
            folding = self.recorder.end_folds()
            try:
                await self._look_at_file()
            except OSError as error:  # of the log's disk: it must not end the mount
                log.error("the audit log cannot be looked at: %s", error)
            waits = CHANGE_SECONDS if self.recorder.changes else CHECKPOINT_SECONDS
            if self.file.seq != self._checkpointed and trio.current_time() - self._since >= waits:
                await self._checkpoint()
            if not folding and self.file.seq == self._checkpointed and self.recorder.failure is None:
                self._awake = trio.Event()

    async def close(self) -> None:
        """End the log: what is folded is written, and the token remembers the end. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.recorder.end_folds(everything=True)
        await self._checkpoint()
        await trio.to_thread.run_sync(self._delivery.close, DELIVERY_SECONDS)
        self.file.close()

    # -- how -------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self.file.seq == self._checkpointed + 1 or not self._awake.is_set():
            self._since = trio.current_time()
            self._awake.set()

    async def _new_epoch(self) -> Epoch:
        name = new_epoch_name()
        return Epoch(name, await self._token.audit_mac(context(self.file.chain, name)))

    async def _checkpoint(self) -> None:
        self._since = trio.current_time()
        try:
            epoch = await self._new_epoch()
        except CmkfsError as error:
            log.info("the audit log has no checkpoint: %s", error)
            return
        if self.recorder.checkpoint(epoch):
            await self._remember()

    async def _remember(self) -> None:
        """The log up to here survives a power cut, and the token knows its end: in this order, or a power cut
        would look like tampering."""
        head = self.head()
        self._checkpointed = head.seq
        try:
            await trio.to_thread.run_sync(self.file.sync)
            await self._token.remember_audit_head(head)
        except OSError as error:
            log.error("the audit log could not be made durable: %s", error)
        except CmkfsError as error:
            if not self._said_not_remembered:
                log.warning("the token does not remember where the audit log ends: %s", error)
            self._said_not_remembered = True

    async def _look_at_file(self) -> None:
        """Moved away (logrotate), too long, or cut under the writer's hands: go on in a new file."""
        if self.recorder.failure is not None:
            return
        if self.file.moved:
            await self._rotate("the file was moved")
        elif self.file.cut:
            await self._rotate("the file was changed")  # first, so that nothing stands behind the cut
            self.recorder.alert(Kind.LOG_CUT, f"{self.file.path} was changed while it was written")
        elif self.file.size > self._settings.rotate_mib << 20:
            await self._rotate(f"longer than {self._settings.rotate_mib} MiB")

    async def _rotate(self, reason: str) -> None:
        try:
            epoch = await self._new_epoch()
        except CmkfsError as error:
            log.info("the audit log goes on in the old file: %s", error)
            return
        if self.recorder.rotate(epoch, reason):
            await self._remember()


def _first_free(directory: Path) -> LogFile:
    """The first log that no other mount writes. Raises AuditFailed."""
    for number in range(1, MOST_MOUNTS + 1):
        file = LogFile(directory, f"mount-{number}")
        try:
            file.open(wait=False)
            return file
        except Busy:
            continue
        except OSError as error:
            raise AuditFailed(f"{file.path} cannot be opened: {os.strerror(error.errno or 0)}") from error
    raise AuditFailed(f"{MOST_MOUNTS} mounts write to {directory}")

"""The vault's own records on disk: vault file, zone record, list of zones, session (docs/format.md, 2, 3, 5, 9)."""

import contextlib
import errno
import os
import stat
import struct
from pathlib import Path

from cmkfs.crypto.zonekeys import SessionSeal, ZoneKeys
from cmkfs.errors import Damaged, NotAVault
from cmkfs.format import b64
from cmkfs.format.vault import (
    SESSION_BODY,
    SESSION_SLOT,
    Session,
    SessionState,
    VaultFile,
    ZoneRecord,
    ZoneRoot,
)
from cmkfs.fs.backing import Backing
from cmkfs.keys.pool import random_id

VAULT_FILE = "cmkfs.vault"
SESSION_FILE = "cmkfs.session"
ZONES_FILE = "cmkfs.zones"
OWNER_FILE = "cmkfs.owner"
SPARE_FILE = "cmkfs.spare"
ZONE_RECORD = "cmkfs.zone"
ZONE_COPY_PREFIX = b"cmkfs.zone."
_NEW_ZONES = "cmkfs.tmp.zones"
_LARGEST_VAULT_FILE = 65_536
_LARGEST_RECORD = 16 * 1024 * 1024


def read_vault_file(vault: Path) -> VaultFile:
    """The description of a vault. Raises NotAVault, UnknownFormat, Damaged."""
    try:
        return VaultFile.from_bytes(_read_file(vault / VAULT_FILE, _LARGEST_VAULT_FILE))
    except NotAVault as error:
        if (vault / SPARE_FILE).is_file():
            raise Damaged(str(error), hint=f"cmkfs check {vault} --repair") from error
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise NotAVault(f"{vault} is not a vault") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Damaged(f"{vault / VAULT_FILE} is no regular file") from None
        raise


def read_zone_record(dir_fd: int, name: bytes = ZONE_RECORD.encode()) -> ZoneRecord:
    """The zone record in a zone's root. Raises Damaged, UnknownFormat."""
    try:
        target = os.readlink(name, dir_fd=dir_fd)
    except OSError as error:
        raise Damaged("the root of a zone has no zone record") from error
    return ZoneRecord.from_bytes(b64.decode(target))


class VaultDir:
    """The session record of an open vault, and its list of zones."""

    def __init__(self, backing: Backing, vault: VaultFile, seal: SessionSeal) -> None:
        self._backing = backing
        self._vault = vault
        self._seal = seal
        self._number = 0

    def zone_roots(self, root_keys: ZoneKeys) -> tuple[ZoneRoot, ...]:
        """The zones below the root. Raises Damaged."""
        return root_keys.open_zone_list(self._vault.vault_hash, self._read(ZONES_FILE))

    def sealed_zone_roots(self, root_keys: ZoneKeys, roots: tuple[ZoneRoot, ...]) -> bytes:
        """The list of zones, for `write_zone_roots`."""
        return root_keys.seal_zone_list(self._vault.vault_hash, roots)

    async def write_zone_roots(self, data: bytes) -> None:
        """Replace the list of zones, durably: a crash leaves the old one or the new one. Raises OSError."""
        _unlink_if_there(os.fsencode(_NEW_ZONES), self._backing.root_fd)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(_NEW_ZONES, flags, 0o600, dir_fd=self._backing.root_fd)
        try:
            self._backing.append(fd, data, 0)
            await self._backing.fsync(fd)
        finally:
            os.close(fd)
        os.rename(_NEW_ZONES, ZONES_FILE, src_dir_fd=self._backing.root_fd, dst_dir_fd=self._backing.root_fd)
        await self._backing.fsync(self._backing.root_fd)

    def zone_record_copy(self, zone_id: bytes) -> ZoneRecord:
        """The copy of a zone's record, found without a walk to its root. Raises Damaged, UnknownFormat."""
        record = read_zone_record(self._backing.root_fd, zone_copy_name(zone_id))
        if record.zone_id != zone_id:
            raise Damaged("the copy of a zone's record is that of another")
        return record

    def write_zone_record_copy(self, record: ZoneRecord) -> None:
        """Put the copy of a record in its place. Raises OSError."""
        self.remove_zone_record_copy(record.zone_id)
        os.symlink(b64.encode(record.to_bytes()), zone_copy_name(record.zone_id), dir_fd=self._backing.root_fd)

    def remove_zone_record_copy(self, zone_id: bytes) -> None:
        """Remove it, if it is there. Raises OSError."""
        _unlink_if_there(zone_copy_name(zone_id), self._backing.root_fd)

    def session(self) -> Session:
        """The session that counts; one that a crash left half-written counts as open. Raises Damaged."""
        data = self._read(SESSION_FILE)
        if len(data) != 2 * SESSION_SLOT:
            raise Damaged("the session record has the wrong length")
        slots: dict[int, Session] = {}
        for number in (0, 1):
            piece = data[number * SESSION_SLOT : (number + 1) * SESSION_SLOT]
            session = self._seal.open(self._vault.vault_hash, number, piece)
            if session is not None:
                slots[number] = session
        if not slots:
            raise Damaged("the session record does not authenticate")
        if len(slots) == 2 and slots[0].sequence == slots[1].sequence:
            raise Damaged("both slots of the session record claim to be the newest")
        self._number = max(slots, key=lambda number: slots[number].sequence)
        newest = slots[self._number]
        if len(slots) == 2:
            return newest
        return Session(newest.sequence, SessionState.OPEN, newest.session_id, newest.unsettled_since)

    async def write_session(self, session: Session) -> None:
        """Write the next session over the older slot, durably. Raises OSError."""
        number = 1 - self._number
        data = self._seal.seal(self._vault.vault_hash, number, session)
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(SESSION_FILE, flags, dir_fd=self._backing.root_fd)
        try:
            check_own_file(fd, SESSION_FILE)
            self._backing.overwrite(fd, data, number * SESSION_SLOT)
            await self._backing.fsync(fd)
        finally:
            os.close(fd)
        self._number = number

    def backing_now_ns(self) -> int:
        """The time by the backing's own clock: the ctime that a change now gets."""
        os.utime(SESSION_FILE, dir_fd=self._backing.root_fd, follow_symlinks=False)
        return os.stat(SESSION_FILE, dir_fd=self._backing.root_fd, follow_symlinks=False).st_ctime_ns

    def _read(self, name: str) -> bytes:
        try:
            return _read_file(name, _LARGEST_RECORD, dir_fd=self._backing.root_fd)
        except FileNotFoundError as error:
            raise Damaged(f"the vault has no {name}", hint="cmkfs check VAULT --repair") from error
        except OSError as error:
            raise Damaged(f"the vault's {name} cannot be read: {error.strerror}") from error


def read_own_file(backing: Backing, name: str) -> bytes:
    """All of a file of the vault's own. Raises OSError, Damaged."""
    return _read_file(name, _LARGEST_VAULT_FILE, dir_fd=backing.root_fd)


def session_says_open(backing: Backing) -> bool:
    """What the newest slot of the session record says, *not authenticated*; open, if it cannot be read."""
    try:
        data = _read_file(SESSION_FILE, _LARGEST_RECORD, dir_fd=backing.root_fd)
        slots = [Session.from_body(data[at : at + SESSION_BODY]) for at in (0, SESSION_SLOT)]
    except (Damaged, OSError, struct.error):
        return True
    return max(slots, key=lambda slot: slot.sequence).state is SessionState.OPEN


def _read_file(path: Path | str, limit: int, dir_fd: int | None = None) -> bytes:
    """All of a regular file. Raises OSError, and Damaged for what is none: a fifo would hold up the mount for ever."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Damaged(f"{path} is no regular file")
        with open(fd, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    finally:
        os.close(fd)
    if len(data) > limit:
        raise Damaged(f"{path} is too long")
    return data


def first_session() -> tuple[Session, Session]:
    """The two slots of a new vault: closed, nothing to settle."""
    session_id = random_id()
    return (
        Session(1, SessionState.CLOSED, session_id, 0),
        Session(2, SessionState.CLOSED, session_id, 0),
    )


def check_own_file(fd: int, name: str) -> None:
    """Raise Damaged unless `fd` is a regular file with one name: a link would have the daemon write elsewhere."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise Damaged(f"{name} in the vault is not the vault's own file")


def zone_copy_name(zone_id: bytes) -> bytes:
    """What the copy of a zone's record is called in the vault's root."""
    return ZONE_COPY_PREFIX + b64.encode(zone_id)


def _unlink_if_there(name: bytes, dir_fd: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=dir_fd)

"""Making a vault: the one place that writes `cmkfs.vault` (docs/format.md, sections 2 to 6 and 9)."""

import errno
import os
from pathlib import Path

from cmkfs.crypto.zonekeys import ZoneKeys
from cmkfs.errors import AlreadyExists, Disabled, NotFound, UsageError
from cmkfs.format import b64
from cmkfs.format.layout import PAGE
from cmkfs.format.vault import NO_DIRECTORY, VaultFile, ZoneRecord
from cmkfs.fs.directory import DIR_ID
from cmkfs.fs.symlinks import LINKS_DIR
from cmkfs.fs.vaultdir import SESSION_FILE, SPARE_FILE, VAULT_FILE, ZONE_RECORD, ZONES_FILE, first_session
from cmkfs.keys.newzone import make_zone
from cmkfs.keys.pool import random_id
from cmkfs.keys.provider import Cmk, CmkState, KeyProvider
from cmkfs.maintenance.spare import spare_of


def create_vault(path: Path, provider: KeyProvider, cmk: Cmk) -> None:
    """Make `path` a vault under `cmk`; it must not exist or be empty, and its parent must exist.

    Everything is written and synced before `cmkfs.vault`, so what was interrupted is no vault. Raises
    AlreadyExists, NotFound, UsageError (a backing that cannot hold a vault), Disabled, TokenUnavailable.
    """
    if cmk.state is not CmkState.ENABLED:
        raise Disabled(f"CMK {cmk.name} is {cmk.state}", hint=f"cmkfs cmk enable {cmk.name}")
    vault = VaultFile.new(random_id())
    dir_id, zone = random_id(), make_zone(provider, vault, cmk.cmk_id)
    record = zone.record(vault, NO_DIRECTORY, dir_id, b"")

    made = _make_directory(path)
    try:
        _check_backing(path)
        _write_vault(path, vault, zone.keys, record, dir_id)
    except BaseException:
        _remove_what_was_made(path, made)
        raise


def _make_directory(path: Path) -> bool:
    try:
        path.mkdir(mode=0o700)
        return True
    except FileNotFoundError:
        raise NotFound(f"{path.parent} does not exist", hint=f"mkdir -p {path.parent}") from None
    except FileExistsError:
        if not path.is_dir():
            raise AlreadyExists(f"{path} is not a directory") from None
        if (path / VAULT_FILE).exists():
            raise AlreadyExists(f"{path} is a vault already", hint=f"cmkfs mount {path} MOUNTPOINT") from None
        if any(path.iterdir()):
            raise AlreadyExists(f"{path} is not empty", hint="name a new or empty directory") from None
        return False


def _check_backing(path: Path) -> None:
    """What a vault needs of its filesystem. Raises UsageError."""
    if os.statvfs(path).f_bsize < PAGE:
        raise UsageError(f"{path} lies on a filesystem with blocks smaller than {PAGE} bytes", hint="mkfs -b 4096")
    probe = path / "cmkfs.tmp.Probe"
    try:
        probe.symlink_to("x" * 1000)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENAMETOOLONG):  # symlink(2)
            raise
        raise UsageError(f"{path} lies on a filesystem that cannot hold symlinks: {error.strerror}") from error
    folded = (path / "cmkfs.tmp.pROBE").is_symlink()
    probe.unlink()
    if folded:
        raise UsageError(f"{path} lies on a filesystem that ignores case: encrypted names would collide")


def _write_vault(path: Path, vault: VaultFile, keys: ZoneKeys, record: ZoneRecord, dir_id: bytes) -> None:
    os.symlink(keys.seal_dir_id(dir_id), os.fsencode(path) + b"/" + DIR_ID)
    os.symlink(b64.encode(record.to_bytes()), os.fsencode(path / ZONE_RECORD))
    os.mkdir(os.fsencode(path) + b"/" + LINKS_DIR, 0o700)
    sessions = first_session()
    slots = [keys.session.seal(vault.vault_hash, number, session) for number, session in enumerate(sessions)]
    _write(path / SESSION_FILE, b"".join(slots))
    _write(path / ZONES_FILE, keys.seal_zone_list(vault.vault_hash, ()))
    _write(path / SPARE_FILE, spare_of(vault, record))
    _sync_directory(path)
    _write(path / VAULT_FILE, vault.raw, mode=0o400)
    _sync_directory(path)
    _sync_directory(path.parent)


def _write(path: Path, data: bytes, mode: int = 0o600) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove_what_was_made(path: Path, made: bool) -> None:
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            entry.rmdir()
        else:
            entry.unlink()
    if made:
        path.rmdir()

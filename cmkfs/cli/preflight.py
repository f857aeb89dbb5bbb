"""What can be seen to be wrong with a mount before anything is started or changed."""

import errno
import logging
import os
import shutil
from pathlib import Path

from cmkfs.cli import detached
from cmkfs.cli.mounts import is_mounted, resolved
from cmkfs.config import MountOptions
from cmkfs.control import registry
from cmkfs.control.registry import Entry
from cmkfs.errors import Busy, CmkfsError, Damaged, MountFailed, NotAVault, NotFound, UsageError
from cmkfs.fs import kernel_mount
from cmkfs.home import Home

VAULT_FILE = "cmkfs.vault"
SPARE_FILE = "cmkfs.spare"
FUSE_CONF = Path("/etc/fuse.conf")

log = logging.getLogger(__name__)


def places(home: Home, vault: Path, mountpoint: Path) -> tuple[Path, Path]:
    """Vault and mount point, resolved. A dead mount there is cleared first.

    Raises NotFound, NotAVault, UsageError (one inside the other), Busy (mounted already), CmkfsError
    (no directory, not empty).
    """
    real_vault = existing_vault(vault)
    where = resolved(mountpoint)
    _require_apart(real_vault, Path(where))
    _require_not_mounted(home, where)
    _require_empty_directory(Path(where))
    return real_vault, Path(where)


def fuse(options: MountOptions) -> None:
    """Return if FUSE can be used as wanted. Raises MountFailed, saying what to install or set."""
    if not kernel_mount.DEVICE.exists():
        raise MountFailed(f"there is no {kernel_mount.DEVICE}", hint="modprobe fuse")
    if os.geteuid() == 0:
        return
    if shutil.which("fusermount3") is None:
        raise MountFailed("fusermount3 is not installed", hint="apt-get install fuse3")
    if options.allow_other and not _users_may_allow_other():
        raise MountFailed(
            f"{FUSE_CONF} does not let users mount with allow_other",
            hint=f"as root: echo user_allow_other >> {FUSE_CONF}",
        )


def existing_vault(path: Path) -> Path:
    """The vault, resolved. Raises NotFound, NotAVault."""
    if not path.exists():
        raise NotFound(f"{path} does not exist", hint="cmkfs init VAULT --cmk NAME")
    if not (path / VAULT_FILE).is_file():
        if (path / SPARE_FILE).is_file():
            raise Damaged(f"{path} has lost its {VAULT_FILE}", hint=f"cmkfs check {path} --repair")
        raise NotAVault(f"{path} is not a vault: it has no {VAULT_FILE}")
    return path.resolve()


def _require_apart(vault: Path, mountpoint: Path) -> None:
    if vault == mountpoint:
        raise UsageError(f"{vault} cannot be both vault and mount point", hint="mkdir another mount point")
    if vault.is_relative_to(mountpoint):
        raise UsageError(f"the vault {vault} is inside the mount point {mountpoint}", hint="mount elsewhere")
    if mountpoint.is_relative_to(vault):
        raise UsageError(f"the mount point {mountpoint} is inside the vault {vault}", hint="mount elsewhere")


def _require_not_mounted(home: Home, where: str) -> None:
    entry = registry.find(home, where)
    if entry is not None and entry.alive and not is_mounted(where):
        entry = _once_ended(home, where, entry)
    if entry is not None and entry.alive:
        by = f" (vault {entry.record.vault}, pid {entry.record.pid})" if entry.record else ""
        if not is_mounted(where):
            raise Busy(f"the mount before at {where} has not ended{by}", hint="try again in a moment")
        raise Busy(f"{where} is already mounted{by}", hint=f"cmkfs umount {where}")
    if is_mounted(where):
        if not kernel_mount.clear_dead_mount(Path(where)):
            raise Busy(f"{where} is already mounted", hint=f"cmkfs umount {where}")
        if entry is not None:
            registry.clear(home, entry)


def _once_ended(home: Home, where: str, entry: Entry) -> Entry | None:
    """What is there when it has ended: umount(8) returns while the daemon stores what it was given. Raises Busy."""
    try:
        detached.end_of(where, entry)
    except Busy:
        raise
    except CmkfsError as error:
        log.debug("%s: %s", where, error)  # it has ended in between, or says nothing: that shows now
    return registry.find(home, where)


def _require_empty_directory(where: Path) -> None:
    try:
        entries = os.listdir(where)
    except FileNotFoundError as error:
        raise NotFound(f"the mount point {where} does not exist", hint=f"mkdir {where}") from error
    except NotADirectoryError as error:
        raise CmkfsError(f"the mount point {where} is not a directory", hint="name a directory") from error
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            hint = f"umount {where}"
            raise CmkfsError(f"something dead is mounted at {where}, not by cmkfs", hint=hint) from error
        raise
    if entries:
        raise CmkfsError(f"the mount point {where} is not empty", hint="name an empty directory")


def _users_may_allow_other() -> bool:
    try:
        lines = FUSE_CONF.read_text(errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)

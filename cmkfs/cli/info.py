"""`cmkfs info`: one file, on a mount or in a vault."""

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import click

from cmkfs.cli.options import PATH, Command, json_option
from cmkfs.cli.output import facts
from cmkfs.cli.preflight import VAULT_FILE
from cmkfs.control import client, registry
from cmkfs.control.protocol import Fields
from cmkfs.control.registry import Entry
from cmkfs.errors import CmkfsError, Damaged, KeyUnavailable, NotFound, PolicyDenied, Revoked
from cmkfs.format.header import Identity, is_unwritten, peek_slot
from cmkfs.format.layout import PAGE, plain_size_at_least
from cmkfs.fs import kernel_mount
from cmkfs.home import Home

_REFUSALS: Mapping[int, type[CmkfsError]] = {
    errno.ENOKEY: KeyUnavailable,
    errno.EKEYREVOKED: Revoked,
    errno.EACCES: PolicyDenied,
    errno.EIO: Damaged,
}
"""What a program on a mount sees, as errors with their exit codes."""


@click.command(cls=Command, epilog="Example: cmkfs info /mnt/finance/report.pdf")
@click.argument("path", type=PATH)
@json_option
def info(path: Path, as_json: bool) -> None:
    """Show a file on a mount, or a backing file: format, zone, CMK and version, sizes, state.

    Of a backing file it shows what its header says; without the key that is not authenticated.
    """
    where = _resolved(path)
    document = document_of(where)
    facts(document, _lines(where, document), as_json=as_json)


def _resolved(path: Path) -> Path:
    if path.absolute() == Path("/"):
        return Path("/")
    return Path(os.path.realpath(path.absolute().parent)) / path.absolute().name


def document_of(path: Path) -> Fields:
    """What is known of a file on a mount, or of a backing file. Raises NotFound, KeyUnavailable, Damaged, OSError."""
    where = _resolved(path)
    status = status_of(where)
    entry = mount_of(Home.from_environment(), where)
    if entry is not None:
        return {**client.ask(entry, "info", ino=status.st_ino), "authenticated": True}
    return _backing(where, status)


def status_of(path: Path) -> os.stat_result:
    """lstat, with what a mount refuses as the error it stands for."""
    try:
        return path.lstat()
    except OSError as error:
        kind = _REFUSALS.get(error.errno or 0)
        if kind is None:
            raise
        raise kind(f"{path}: {error.strerror}", hint="cmkfs status") from error


def mount_of(home: Home, path: Path) -> Entry | None:
    """The live mount of cmkfs that `path` is on, None if it is on something else."""
    for place in (path, *path.parents):
        mounted = kernel_mount.mounted_at(os.fsencode(place))
        if mounted is None:
            continue
        if mounted.fstype != f"fuse.{kernel_mount.SUBTYPE}".encode():
            return None
        entry = registry.find(home, str(place))
        if entry is None or not entry.alive:
            raise CmkfsError(
                f"{place} was not mounted from this CMKFS_HOME ({home.runtime})",
                hint="set CMKFS_HOME as for mount",
            )
        return entry
    return None


def _backing(path: Path, status: os.stat_result) -> Fields:
    vault = next((place for place in (path, *path.parents) if (place / VAULT_FILE).is_file()), None)
    if vault is None:
        raise NotFound(f"{path} is neither on a mount nor in a vault", hint="cmkfs status")
    base: Fields = {
        "backing_path": str(path),
        "vault": str(vault),
        "kind": _kind(status),
        "authenticated": False,
    }
    if not stat.S_ISREG(status.st_mode) or path.name.startswith("cmkfs."):
        return base
    with path.open("rb") as file:
        page = file.read(PAGE)
    if is_unwritten(page):
        return {**base, "cipher_size": status.st_size, "state": "unwritten"}
    identity = Identity.from_bytes(page)
    slot = peek_slot(page)
    version = identity.recipients[0].version
    return {
        **base,
        "format": 1,
        "zone": identity.zone_id.hex(),
        "file_id": identity.file_id.hex(),
        "cmk": _name_of(version.cmk_id.hex()),
        "cmk_id": version.cmk_id.hex(),
        "cmk_version": version.version,
        "plain_size": plain_size_at_least(status.st_size),
        "cipher_size": status.st_size,
        "state": slot.state.name.lower() if slot is not None else "damaged",
    }


def _name_of(cmk_id: str) -> str | None:
    """The CMK's name, if a mount of this home uses it: the token is not asked, which would need the PIN."""
    for entry in registry.entries(Home.from_environment()):
        if entry.record is not None and cmk_id in entry.record.cmks:
            return entry.record.cmks[cmk_id]
    return None


def _kind(status: os.stat_result) -> str:
    kinds = {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "directory",
        stat.S_IFLNK: "symlink",
        stat.S_IFIFO: "fifo",
        stat.S_IFSOCK: "socket",
    }
    return kinds.get(stat.S_IFMT(status.st_mode), "device")


def _lines(path: Path, document: Fields) -> list[str]:
    shown = {name: value for name, value in document.items() if name != "authenticated" and value is not None}
    width = max(map(len, shown), default=0) + 1
    lines = [
        str(path),
        *(f"  {name.replace('_', ' ') + ':':<{width}} {value}" for name, value in shown.items()),
    ]
    return lines if document["authenticated"] else [*lines, "  (read without a key: not authenticated)"]

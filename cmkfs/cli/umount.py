"""`cmkfs umount`: detach a mount and wait until everything is stored."""

import os
from pathlib import Path
from typing import cast

import click

from cmkfs.cli import detached
from cmkfs.cli.holders import holders
from cmkfs.cli.mounts import is_mounted, resolved
from cmkfs.cli.options import PATH, Command, json_option
from cmkfs.cli.output import complain, facts
from cmkfs.cli.progress import shown
from cmkfs.control import client, registry
from cmkfs.control.protocol import Fields
from cmkfs.control.registry import Entry
from cmkfs.errors import EXIT_FAILED, Busy, CmkfsError, NotFound, UsageError
from cmkfs.fs import kernel_mount
from cmkfs.home import Home


@click.command(cls=Command, epilog="Example: cmkfs umount /mnt/finance")
@click.argument("mountpoint", type=PATH)
@click.option("--lazy", is_flag=True, help="Detach now, even while files are open, and do not wait.")
@json_option
def umount(mountpoint: Path, lazy: bool, as_json: bool) -> int:
    """Unmount and wait until everything is stored; exit 1 names the files that could not be.

    Clears a dead mount too. Exit 6 if files are open.
    """
    home = Home.from_environment()
    where = resolved(mountpoint)
    entry = registry.find(home, where)
    alive = entry is not None and entry.alive
    if not is_mounted(where):
        did, code = _not_mounted(home, where, entry, wait=not lazy)
    elif lazy:  # nothing is asked of the mount, so that one that hangs can be detached as well
        kernel_mount.unmount(os.fsencode(where), lazy=True)
        did, code = f"detached {where}; what is open there stays so until it is closed", 0
    elif not alive and kernel_mount.is_dead_mount(Path(where)):
        did, code = _clear_dead(home, where, entry), 0
    else:
        did, code = _unmount(where, entry)
    facts({"mountpoint": where, "done": code == 0, "what": did}, [did] if code == 0 else [], as_json=as_json)
    return code


def _clear_dead(home: Home, where: str, entry: Entry | None) -> str:
    kernel_mount.unmount(os.fsencode(where), lazy=True)
    if entry is not None:
        registry.clear(home, entry)
    return f"cleared the dead mount at {where}"


def _not_mounted(home: Home, where: str, entry: Entry | None, *, wait: bool) -> tuple[str, int]:
    if entry is not None and entry.alive:
        ended = detached.end_of(where, entry) if wait else None
        return (f"{where} is not mounted", 0) if ended is None else _told(where, ended)
    if not os.path.lexists(where):
        raise NotFound(f"{where} does not exist", hint="cmkfs status")
    other = kernel_mount.mounted_at(os.fsencode(where))
    if other is not None:
        kind = os.fsdecode(other.fstype)
        raise UsageError(f"what is mounted at {where} is {kind}, not cmkfs", hint=f"umount {where}")
    if entry is not None:
        registry.clear(home, entry)
    return f"{where} is not mounted", 0


def _unmount(where: str, entry: Entry | None) -> tuple[str, int]:
    if entry is None or not entry.alive:
        raise CmkfsError(
            f"{where} was not mounted from this CMKFS_HOME, so its daemon cannot be asked when all is stored",
            hint=f"set CMKFS_HOME as for mount, or cmkfs umount --lazy {where}",
        )
    # Before the unmount: afterwards the daemon may be gone too soon to be asked.
    farewell = client.ask_to_say_when_ended(entry)
    with farewell, detached.until_gone(entry), shown(lambda: detached.left(entry)):
        try:
            kernel_mount.unmount(os.fsencode(where))
        except Busy as error:
            raise _held(where) from error
        return _told(where, farewell.receive(seconds=None))


def _told(where: str, result: Fields) -> tuple[str, int]:
    unsaved = [str(path) for path in cast(list[object], result.get("unsaved") or [])]
    for path in unsaved:
        complain(f"{path} could not be stored", hint="see the log of the mount")
    if result.get("error"):
        complain(f"{where}: {result['error']}")
    if unsaved or result.get("error"):
        return f"unmounted {where}; not everything is stored", EXIT_FAILED
    return f"unmounted {where}; everything is stored", 0


def _held(where: str) -> Busy:
    found = holders(where)
    names = ", ".join(f"{holder.program} (pid {holder.pid}): {holder.path}" for holder in found[:5])
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    held = f"; open by {names}{more}" if found else ""
    return Busy(f"{where} is busy{held}", hint=f"close the files, or cmkfs umount --lazy {where}")

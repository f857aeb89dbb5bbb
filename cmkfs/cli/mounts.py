"""The mounts of this home as the commands see them: registry and mount table together."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cmkfs.cli.cutoff import SILENCE, ask_or_cut_off, cut_off_line
from cmkfs.control import client, registry
from cmkfs.control.protocol import Fields
from cmkfs.control.registry import Entry
from cmkfs.errors import CmkfsError, NotFound
from cmkfs.fs import kernel_mount
from cmkfs.home import Home
from cmkfs.keys.provider import Cmk

CONFIRM_MARGIN = 5.0
"""Seconds beyond the revocation bound that a mount has to confirm a change."""


def resolved(path: Path) -> str:
    """The mount point that a user means by `path`. The last component is not asked if it is mounted on."""
    parent = os.path.realpath(path.absolute().parent)
    here = os.path.join(parent, path.absolute().name)
    if kernel_mount.mounted_at(os.fsencode(here)) is not None:
        return here
    return os.path.realpath(path)


def is_mounted(mountpoint: str) -> bool:
    """Is a cmkfs mounted right there?"""
    entry = kernel_mount.mounted_at(os.fsencode(mountpoint))
    return entry is not None and entry.fstype == f"fuse.{kernel_mount.SUBTYPE}".encode()


def known(home: Home) -> tuple[list[Entry], list[Entry]]:
    """Live mounts, and dead ones that are still in the mount table; what is gone is cleared."""
    live, dead = [], []
    for entry in registry.entries(home):
        if entry.alive:
            live.append(entry)
        elif entry.record is not None and kernel_mount.is_dead_mount(Path(entry.record.mountpoint)):
            dead.append(entry)
        else:
            registry.clear(home, entry)
    return live, dead


def live(home: Home, mountpoint: Path) -> Entry:
    """The live mount at `mountpoint`. Raises NotFound, CmkfsError if it is dead or of another home."""
    where = resolved(mountpoint)
    entry = registry.find(home, where)
    if entry is not None and entry.alive:
        return entry
    if kernel_mount.is_dead_mount(Path(where)):
        raise CmkfsError(f"the mount at {where} is dead: its daemon is gone", hint=f"cmkfs umount {where}")
    if is_mounted(where):
        raise CmkfsError(
            f"{where} was not mounted from this CMKFS_HOME ({home.runtime})",
            hint="set CMKFS_HOME as for mount",
        )
    raise NotFound(f"nothing of cmkfs is mounted at {where}", hint="cmkfs status")


@dataclass(frozen=True, slots=True)
class Confirmations:
    """Which mounts have confirmed a change, and which have not, with why."""

    confirmed: tuple[str, ...]
    unconfirmed: tuple[tuple[str, str], ...]
    cut_off: tuple[str, ...] = ()
    """Those of the confirmed that did not answer, so that nothing of them can be read any more."""
    locked: tuple[str, ...] = ()
    """Those of the confirmed that an operator has locked."""

    def to_json(self) -> Fields:
        """As the commands print it."""
        return {
            "confirmed": list(self.confirmed),
            "unconfirmed": [{"mountpoint": where, "reason": why} for where, why in self.unconfirmed],
        }

    def lines(self, *, still_locked: str = "") -> list[str]:
        """What to say to people of those that confirmed; of the locked ones `still_locked` too."""
        return [self._line(where, still_locked) for where in self.confirmed]

    def _line(self, where: str, still_locked: str) -> str:
        if where in self.cut_off:
            return cut_off_line(where)
        return f"in force on {where}" + (still_locked.format(where=where) if where in self.locked else "")


def confirm(home: Home, cmk: Cmk, objection: Callable[[Fields], str], *, shut: bool = False) -> Confirmations:
    """Have every mount that uses `cmk` take notice of a change.

    `objection` says what is wrong with a mount's answer, or nothing. A dead mount cannot confirm: what
    the kernel has cached of it stays readable through open descriptors. To `shut` them, what hangs is cut off.
    """
    live, dead = known(home)
    confirmed: list[str] = []
    cut_off: list[str] = []
    locked: list[str] = []
    unconfirmed = [(entry.label, "dead; clear it with cmkfs umount") for entry in dead if _uses(entry, cmk)]
    for entry, answer in client.ask_each((entry for entry in live if _uses(entry, cmk)), _question(cmk, shut)):
        if isinstance(answer, CmkfsError):
            why = str(answer)
        elif answer.get("cut_off"):
            why = ""
            cut_off.append(entry.label)
        else:
            why = objection(answer)
            locked += [entry.label] * (answer.get("state") == "locked")
        if why:
            unconfirmed.append((entry.label, why))
        else:
            confirmed.append(entry.label)
    return Confirmations(tuple(confirmed), tuple(unconfirmed), tuple(cut_off), tuple(locked))


def _uses(entry: Entry, cmk: Cmk) -> bool:
    # A mount whose record cannot be read may use any CMK.
    return entry.record is None or cmk.cmk_id.hex() in entry.record.cmks


def _question(cmk: Cmk, shut: bool) -> Callable[[Entry], Fields]:
    def question(entry: Entry) -> Fields:
        seconds = CONFIRM_MARGIN + (entry.record.revocation_bound if entry.record else 1.0)
        cmk_id = cmk.cmk_id.hex()
        if shut:
            return ask_or_cut_off(entry, "confirm", seconds=seconds, silence=SILENCE, cmk_id=cmk_id)
        return client.ask(entry, "confirm", seconds=seconds, cmk_id=cmk_id)

    return question

"""`cmkfs lock` and `cmkfs unlock`: end and begin all use of keys on a mount."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import click

from cmkfs.cli.cutoff import SILENCE, SILENCE_NOW, ask_or_cut_off, cut_off_line, record_cut_offs
from cmkfs.cli.mounts import known
from cmkfs.cli.mounts import live as live_at
from cmkfs.cli.options import PATH, Command, cmk_option, exactly_one, json_option
from cmkfs.cli.output import combined, complain, facts
from cmkfs.control import client
from cmkfs.control.protocol import Fields
from cmkfs.control.registry import Entry
from cmkfs.errors import EXIT_FAILED, CmkfsError, NotFound
from cmkfs.home import Home

SECONDS = 600.0
"""How long a lock may take: dirty pages are encrypted and stored first, and the backing may be slow."""


@click.command(cls=Command, epilog="Example: cmkfs lock --all")
@click.argument("mountpoint", type=PATH, required=False)
@cmk_option(required=False)
@click.option("--all", "every", is_flag=True, help="Every mount.")
@click.option("--now", is_flag=True, help="Drop what is not stored yet instead of storing it.")
@json_option
def lock(mountpoint: Path | None, name: str | None, every: bool, now: bool, as_json: bool) -> int:
    """Refuse all use of a mount's files until `unlock`; what was written is encrypted and stored first.

    Prints what was open. A mount whose daemon hangs is cut off: it must be mounted again.
    """
    entries, dead = _targets(mountpoint, name, every)
    silence = SILENCE_NOW if now else SILENCE
    answers = client.ask_each(
        entries, lambda entry: ask_or_cut_off(entry, "lock", seconds=SECONDS, silence=silence, now=now, cmk=name)
    )
    codes = [_print(answers, _locked_lines, as_json)]
    for entry, answer in answers:
        if not isinstance(answer, CmkfsError) and answer.get("not_recorded"):
            complain(
                f"{entry.label}: the lock is in force, but not recorded yet: {answer['not_recorded']}",
                hint=f"make room for the audit log before {entry.label} is unmounted",
            )
            codes.append(EXIT_FAILED)
    cut = [entry.label for entry, answer in answers if not isinstance(answer, CmkfsError) and answer.get("cut_off")]
    if cut:
        codes.append(record_cut_offs(Home.from_environment(), cut))
    for entry in dead:
        complain(f"the mount at {entry.label} is dead and cannot be locked", hint=f"cmkfs umount {entry.label}")
    return combined([*codes, EXIT_FAILED if dead else 0])


@click.command(cls=Command, epilog="Example: cmkfs unlock /mnt/finance")
@click.argument("mountpoint", type=PATH, required=False)
@cmk_option(required=False)
@click.option("--all", "every", is_flag=True, help="Every mount.")
@json_option
def unlock(mountpoint: Path | None, name: str | None, every: bool, as_json: bool) -> int:
    """Let a locked mount work again; exit 4 if its CMK is disabled."""
    entries, _ = _targets(mountpoint, name, every)
    answers = client.ask_each(entries, lambda entry: client.ask(entry, "unlock", seconds=SECONDS, cmk=name))
    return _print(answers, _unlocked_lines, as_json)


def _targets(mountpoint: Path | None, name: str | None, every: bool) -> tuple[list[Entry], list[Entry]]:
    """Live mounts to talk to, and dead ones that were meant too. Raises NotFound if none is meant."""
    exactly_one(MOUNTPOINT=mountpoint, **{"--cmk": name, "--all": every})
    home = Home.from_environment()
    if mountpoint is not None:
        return [live_at(home, mountpoint)], []
    entries, dead = known(home)
    if name is None:
        return entries, dead
    using = [entry for entry in entries if _uses(entry, name)]
    if not using:
        raise NotFound(f"no mount uses CMK {name}", hint="cmkfs status")
    return using, [entry for entry in dead if _uses(entry, name)]


def _uses(entry: Entry, name: str) -> bool:
    return entry.record is None or name in entry.record.cmks.values()


def _print(
    answers: list[tuple[Entry, Fields | CmkfsError]],
    lines_of: Callable[[str, Fields], list[str]],
    as_json: bool,
) -> int:
    """Print what each mount answered; the errors go to stderr. Returns the exit code."""
    documents: list[Fields] = []
    lines = [] if answers else ["nothing is mounted"]
    codes: list[int] = []
    for entry, answer in answers:
        if isinstance(answer, CmkfsError):
            documents.append({"mountpoint": entry.label, "error": str(answer)})
            complain(f"{entry.label}: {answer}", hint=answer.next_step)
            codes.append(answer.exit_code)
        else:
            documents.append({"mountpoint": entry.label, **answer})
            lines += lines_of(entry.label, answer)
    facts({"mounts": documents}, lines, as_json=as_json)
    return combined(codes)


def _locked_lines(where: str, answer: Fields) -> list[str]:
    if answer.get("cut_off"):
        return [cut_off_line(where)]
    if answer.get("was_locked"):
        lines = [f"{where} is locked already"]
    else:
        dropped = answer.get("dropped_bytes") or 0
        lines = [f"locked {where}: {answer.get('stored_bytes') or 0} bytes stored, {dropped} dropped"]
    for held in cast(list[Fields], answer.get("open") or []):
        lines.append(f"  was open: {held.get('path')} (uid {held.get('uid')}, pid {held.get('pid')})")
    return lines


def _unlocked_lines(where: str, answer: Fields) -> list[str]:
    return [f"{where} is unlocked already" if answer.get("was_unlocked") else f"unlocked {where}"]

"""`cmkfs check`: a vault looked at, and mended, without mounting it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import trio

from cmkfs import config
from cmkfs.cli import progress
from cmkfs.cli.options import PATH, Command, json_option
from cmkfs.cli.output import facts
from cmkfs.cli.preflight import existing_vault
from cmkfs.cli.recorded import recorded
from cmkfs.cli.token_session import token
from cmkfs.errors import EXIT_DAMAGED, EXIT_KEY, CmkfsError, KeyUnavailable, NotFound
from cmkfs.format.layout import PAGE
from cmkfs.fs.backing import Backing
from cmkfs.fs.ownership import Ownership
from cmkfs.fs.vaultdir import SPARE_FILE, read_vault_file
from cmkfs.home import Home
from cmkfs.keys.access import TokenAccess
from cmkfs.keys.memory import protect_memory
from cmkfs.keys.token_client import TokenClient
from cmkfs.keys.token_process import TokenProcess
from cmkfs.maintenance.check import Access, Check
from cmkfs.maintenance.findings import Report
from cmkfs.maintenance.lost import Action, free_owner
from cmkfs.maintenance.readers import Readers
from cmkfs.maintenance.repair import Repair
from cmkfs.maintenance.spare import restore

_SHOWN = 50
"""Findings that are printed; `--json` has them all."""


@click.command(cls=Command, epilog="Example: cmkfs check ~/vault")
@click.argument("vault", type=PATH)
@click.option("--repair", is_flag=True, help="Bring the vault to one that checks clean; deletes nothing.")
@click.option("--break-lock", is_flag=True, help="Take over a vault whose owner died on another host.")
@json_option
def check(vault: Path, repair: bool, break_lock: bool, as_json: bool) -> int:
    """Read every header, name and block of VAULT without mounting it, and say what is damaged.

    With --repair: what can be read is saved, what cannot is moved to cmkfs.lost in the vault.
    """
    path = vault.resolve() if repair and (vault / SPARE_FILE).is_file() else existing_vault(vault)
    protect_memory()
    home, event = Home.from_environment(), "vault.repair" if repair else "vault.check"
    with _owned(path, repair=repair, break_lock=break_lock) as backing, Readers() as readers:
        why_not = _record(home, event, str(path))
        report, actions = trio.run(_run, path, backing, readers, repair, why_not)
        if not why_not and (report.damage or actions):
            _record(home, event, f"{path}: {len(report.damage)} damaged, {len(actions)} things done")
    document = {
        "vault": str(path),
        **report.facts(),
        "repaired": [action.facts() for action in actions] if repair else None,
    }
    facts(document, _lines(report, actions if repair else None), as_json=as_json)
    if report.locked:
        return EXIT_KEY
    return EXIT_DAMAGED if report.damage else 0


@contextmanager
def _owned(path: Path, *, repair: bool, break_lock: bool) -> Iterator[Backing]:
    """The vault's directory, which nobody else uses meanwhile. Raises Busy."""
    read_only = bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    if read_only and repair:
        raise CmkfsError(f"{path} lies on a read-only filesystem", hint="mount it writable, or copy the vault")
    backing = Backing(path, read_only=read_only)
    try:
        if repair:
            free_owner(backing)
        ownership = Ownership(backing, path)
        if not read_only:
            ownership.take(None, break_lock=break_lock)
        try:
            yield backing
        finally:
            ownership.release(clean=True)
    finally:
        backing.close()


def _record(home: Home, event: str, reason: str) -> str:
    """Every key of the vault is used: the audit log says so before. Gives why the token is not there, if it is not.

    Raises AuditFailed: then no key is used.
    """
    try:
        with token(home, read_write=True) as provider, recorded(home, provider, event, reason=reason):
            return ""
    except (KeyUnavailable, NotFound) as error:
        return str(error)


async def _run(
    path: Path, backing: Backing, readers: Readers, repair: bool, why_not: str
) -> tuple[Report, list[Action]]:
    """Check, or repair, with the token as far as it is there: without it the structure can be looked at."""
    home = Home.from_environment()
    settings = config.load(home.config_file)
    process, actions = TokenProcess(), list[Action]()
    client = None if why_not else TokenClient(process, settings.token.deadline)
    try:
        if client is not None:
            access = TokenAccess.of(settings.token, home)
            await process.open(access, access.read_pin(), settings.token.deadline)
        if repair and client is not None:
            actions += await restore(backing, client)
        vault = read_vault_file(path)
        checking = Check(Access(backing, vault, client, why_not), readers)
        try:
            with progress.shown(lambda: _far(checking.report)):
                actions += await Repair(checking).run() if repair else []
                report = checking.report if repair else await checking.run()
        finally:
            checking.close()
    finally:
        process.close(wait=1.0)
    return report, actions


def _far(report: Report) -> str:
    """How far it is."""
    mib = report.blocks * PAGE >> 20
    return f"checking: {report.directories} directories, {report.files} files, {mib} MiB, {len(report.damage)} damaged"


def _lines(report: Report, actions: list[Action] | None) -> list[str]:
    lines = [action.line for action in actions or []]
    lines += [finding.line for finding in report.damage[:_SHOWN]]
    if len(report.damage) > _SHOWN:
        lines.append(f"… and {len(report.damage) - _SHOWN} more (--json)")
    lines += [f"only the structure was checked where the key is away: {why}" for why in report.locked]
    if report.recovery_pending:
        lines.append("the last session was not closed; the next mount recovers it, which is no damage")
    lines += [f"note: {finding.line}" for finding in report.notes[:_SHOWN]]
    if report.put_away:
        lines.append(f"note: {report.put_away} things lie in cmkfs.lost of the vault")
    counts = f"{report.directories} directories, {report.files} files, {report.blocks} blocks"
    result = f"{len(report.damage)} damaged" if report.damage else "no damage"
    return [*lines, f"{counts}: {result}"]

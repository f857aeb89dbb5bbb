"""`cmkfs status`: what is mounted and how it is."""

from pathlib import Path
from typing import cast

import click

from cmkfs.cli.mounts import known
from cmkfs.cli.mounts import live as live_at
from cmkfs.cli.options import PATH, Command, json_option
from cmkfs.cli.output import complain, facts
from cmkfs.control import client
from cmkfs.control.protocol import Fields
from cmkfs.errors import EXIT_FAILED, EXIT_KEY, EXIT_NOT_FOUND, CmkfsError
from cmkfs.home import Home

SECONDS = 10.0


@click.command(cls=Command, epilog="Example: cmkfs status /mnt/finance --json")
@click.argument("mountpoint", type=PATH, required=False)
@json_option
def status(mountpoint: Path | None, as_json: bool) -> int:
    """Show mounts, zones, states of CMKs, leases, open files, dirty bytes, health of the token.

    For one MOUNTPOINT: exit 0 serving, 4 locked or disabled, 7 not mounted or detached, 1 dead.
    """
    home = Home.from_environment()
    if mountpoint is not None:
        answer = _as_seen(client.ask(live_at(home, mountpoint), "status", seconds=SECONDS))
        facts(answer, _lines(answer), as_json=as_json)
        if answer.get("state") == "detached":
            return EXIT_NOT_FOUND
        return 0 if answer.get("state") == "serving" else EXIT_KEY
    return _all(home, as_json)


def _all(home: Home, as_json: bool) -> int:
    live, dead = known(home)
    documents: list[Fields] = []
    lines = [] if live or dead else ["nothing is mounted"]
    failed = bool(dead)
    for entry, answer in client.ask_each(live, lambda entry: client.ask(entry, "status", seconds=SECONDS)):
        if isinstance(answer, CmkfsError):
            failed = True
            documents.append({"mountpoint": entry.label, "state": "unknown", "error": str(answer)})
            complain(str(answer), hint=answer.next_step)
        else:
            documents.append(_as_seen(answer))
            lines += _lines(documents[-1])
    for entry in dead:
        documents.append({"mountpoint": entry.label, "state": "dead"})
        complain(f"the mount at {entry.label} is dead: its daemon is gone", hint=f"cmkfs umount {entry.label}")
    facts({"mounts": documents}, lines, as_json=as_json)
    return EXIT_FAILED if failed else 0


def _as_seen(answer: Fields) -> Fields:
    """A mount that was detached serves on what is open; at its place there is another directory now."""
    return {**answer, "state": "detached"} if answer.get("detached") else answer


def _lines(answer: Fields) -> list[str]:
    access = ", read-only" if answer.get("read_only") else ""
    return [
        f"{answer.get('mountpoint')}  {answer.get('state')}{access}",
        f"  vault {answer.get('vault')}, pid {answer.get('pid')} on {answer.get('host')}",
        *(_zone(zone) for zone in cast(list[Fields], answer.get("zones") or [])),
        f"  leases {answer.get('leases')}, open files {answer.get('open_files')},"
        f" known inodes {answer.get('known_inodes')},"
        f" dirty files {answer.get('dirty_files')} ({answer.get('dirty_bytes')} bytes)",
        _of_token(cast(Fields, answer.get("token") or {})),
        *recovery_lines(answer),
        *(f"  damaged: {file['path']}: {file['why']}" for file in cast(list[Fields], answer.get("damaged") or [])),
        *(f"  warning: {warning}" for warning in cast(list[str], answer.get("warnings") or [])),
    ]


def recovery_lines(answer: Fields) -> list[str]:
    """What the recovery after an unclean end did, if there was one."""
    recovered = cast(Fields | None, answer.get("recovered"))
    if not recovered:
        return []
    return ["  recovered: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in recovered.items())]


def _zone(zone: Fields) -> str:
    reason = f" ({zone['reason']})" if zone.get("reason") else ""
    return f"  zone {zone.get('zone')} under CMK {zone.get('cmk')}: {zone.get('state')}{reason}"


def _of_token(token: Fields) -> str:
    if token.get("label") is None:
        return "  the token does not answer"
    health = "healthy" if token.get("healthy") else "not answering"
    return f"  token {token.get('label')} (serial {token.get('serial')}) {health}"

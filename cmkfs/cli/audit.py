"""`cmkfs audit`: who used which key, who was refused, who changed what; and whether the log says so truly."""

import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click

from cmkfs.accounts import uid_of, user_name
from cmkfs.audit.chain import Line, parse
from cmkfs.audit.reading import Filter, chains, columns, records
from cmkfs.cli.options import PATH, Group, json_option
from cmkfs.cli.output import complain, facts, note, printable
from cmkfs.cli.times import point_in_time
from cmkfs.errors import EXIT_DAMAGED, NotFound, UsageError
from cmkfs.home import Home

FOLLOW_SECONDS = 0.25


@click.group(cls=Group)
def group() -> None:
    """The audit log: uses of keys, refusals, changes."""


@group.command(epilog="Example: cmkfs audit show --since 2h --outcome refused --follow")
@click.option("--since", metavar="T", help="From T on: ISO 8601 or an age (10m, 2h, 7d).")
@click.option("--until", metavar="T", help="Up to T.")
@click.option("--user", metavar="U", help="What this user (name or uid) did.")
@click.option("--event", metavar="E", help="One event, or all that begin so: open, create, cmk, policy, lock, alert.")
@click.option(
    "--outcome",
    type=click.Choice(["allowed", "refused", "done", "failed", "damaged"]),
    help="How it ended.",
)
@click.option("--cmk", metavar="NAME", help="What concerned this CMK.")
@click.option("--mount", metavar="MOUNTPOINT", type=PATH, help="What happened on this mount.")
@click.option("--file", metavar="PATH", type=PATH, help="What was done with this file on a mount.")
@click.option("--follow", is_flag=True, help="Go on with records as they come.")
@json_option
def show(
    since: str | None,
    until: str | None,
    user: str | None,
    event: str | None,
    outcome: str | None,
    cmk: str | None,
    mount: Path | None,
    file: Path | None,
    follow: bool,
    as_json: bool,
) -> None:
    """Show records in the order of time. They are shown as they are: `audit verify` tells if they are genuine."""
    home = Home.from_environment()
    now = time.time()
    wanted = Filter(
        since=point_in_time(since, now) if since else None,
        until=point_in_time(until, now) if until else None,
        uid=_uid(user),
        event=event,
        outcome=outcome,
        cmk=cmk,
        mount=str(mount.absolute()) if mount else None,
        file_id=_file_id(file) if file else None,
    )
    if follow:
        _follow(home.audit_dir, wanted, as_json)
        return
    found = (line for line in records(chains([home.audit_dir])) if wanted.wants(line))
    if as_json:
        print(json.dumps({"records": [columns(line) for line in found]}))
        return
    line = None
    for line in found:
        print(printable(_text(line)))
    if line is None:
        note("nothing is recorded" if wanted == Filter() else "nothing like that is recorded; all: cmkfs audit show")


def _uid(user: str | None) -> int | None:
    if user is None:
        return None
    uid = uid_of(user)
    if uid is None:
        raise UsageError(f"there is no user {user!r}", hint="give the uid")
    return uid


def _file_id(file: Path) -> str:
    """The id of a file on a mount, by which records name it."""
    from cmkfs.cli.info import document_of

    found = document_of(file).get("file_id")
    if not isinstance(found, str):
        raise NotFound(f"{file} has no file id: it is not a regular file", hint=f"cmkfs info {file}")
    return found


def _text(line: Line) -> str:
    """One record for people."""
    words = [line.text("ts"), line.text("outcome"), line.text("event")]
    uid = line.fields.get("uid")
    if isinstance(uid, int):
        words.append(user_name(uid) or f"uid {uid}")
    for name, label in (("login_uid", "login"), ("pid", "pid"), ("exe", ""), ("cmk", "cmk"), ("file_id", "file")):
        value = line.fields.get(name)
        if value is not None and not (name == "login_uid" and value == uid):
            words.append(f"{label} {value}".strip())
    for name in ("path", "mount"):
        if name in line.fields:
            words.append(f"{'in the vault' if name == 'path' else 'on'} {line.fields[name]}")
    if line.fields.get("rule"):
        words.append(f"[{line.fields['rule']}]")
    if line.fields.get("count"):
        words.append(f"({line.fields['count']} more times)")
    reason = line.text("reason")
    return " ".join(words) + (f": {reason}" if reason else "")


def _follow(directory: Path, wanted: Filter, as_json: bool) -> None:
    for line in _tail(directory):
        if wanted.wants(line):
            print(json.dumps(columns(line)) if as_json else printable(_text(line)))
            sys.stdout.flush()


def _tail(directory: Path) -> Iterator[Line]:
    """What there is, then what comes, also into files that come later or are moved aside."""
    read: dict[int, int] = {}
    while True:
        came: list[Line] = []
        for path in sorted(directory.glob("*.jsonl*")):
            if path.suffix == ".gz" and read:
                continue  # read when it was not compressed yet
            with path.open("rb") as file:
                inode = path.stat().st_ino
                file.seek(read.get(inode, 0))
                for raw in file:
                    if not raw.endswith(b"\n"):
                        break
                    read[inode] = read.get(inode, 0) + len(raw)
                    line = parse(raw)
                    if line is not None:
                        came.append(line)
        yield from sorted(came, key=lambda line: line.text("ts"))
        time.sleep(FOLLOW_SECONDS)


@group.command(epilog="Example: cmkfs audit verify --archive /srv/audit-2025")
@click.option("--archive", multiple=True, metavar="DIR", type=PATH, help="A directory with older files of the log.")
@click.option("--partial", is_flag=True, help="The oldest records are elsewhere: begin with what is here.")
@json_option
def verify(archive: tuple[Path, ...], partial: bool, as_json: bool) -> int:
    """Check every record: exit 5 names the first that was edited, removed, reordered or cut off.

    The token's audit key is needed, no CMK.
    """
    from cmkfs.cli.audit_verify import verify_all

    results, notes = verify_all(Home.from_environment(), archive, partial=partial)
    lines = []
    for result in results:
        if result.fault:
            complain(f"{result.name}: {result.fault} ({result.where})", hint="compare with a copy of the log")
        else:
            span = f"records {result.first} to {result.last}" if result.records else "no records"
            lines.append(f"{result.name}: {span} are genuine and complete")
    facts(
        {
            "genuine": not any(result.fault for result in results),
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "chains": [
                {
                    "name": result.name,
                    "chain": result.chain,
                    "records": result.records,
                    "first": result.first,
                    "last": result.last,
                    "checkpoint": result.checkpoint,
                    "fault": result.fault or None,
                    "where": result.where or None,
                }
                for result in results
            ],
            "notes": notes,
        },
        [*(lines or ([] if results else ["there is no audit log yet"])), *notes],
        as_json=as_json,
    )
    return EXIT_DAMAGED if any(result.fault for result in results) else 0

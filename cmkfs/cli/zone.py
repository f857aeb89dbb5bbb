"""`cmkfs zone`: parts of a vault under CMKs of their own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import click

from cmkfs.cli.info import mount_of, status_of
from cmkfs.cli.mounts import live
from cmkfs.cli.options import PATH, Group, cmk_option, json_option
from cmkfs.cli.output import facts, table
from cmkfs.control import client
from cmkfs.control.protocol import Fields
from cmkfs.control.registry import Entry
from cmkfs.errors import NotFound
from cmkfs.home import Home

SECONDS = 120.0
"""How long a search for the roots of zones may take in a large vault."""


@click.group(cls=Group)
def group() -> None:
    """Zones: directories whose files are under a CMK of their own."""


@group.command(epilog="Example: cmkfs zone create /mnt/company/hr --cmk hr")
@click.argument("directory", metavar="DIR", type=PATH)
@cmk_option(required=True)
@json_option
def create(directory: Path, name: str, as_json: bool) -> None:
    """Make DIR, a new or empty directory on a mount, the root of a zone: all that is put into it is under the CMK."""
    where = _resolved(directory)
    entry = _mount_of(where)
    made = _make(where)
    try:
        with _held(where) as number:
            answer = client.ask(entry, "zone_create", ino=number, cmk=name)
    except BaseException:
        if made:
            where.rmdir()
        raise
    facts({"path": str(where), **answer}, [f"{where} is a zone under CMK {name}"], as_json=as_json)


@group.command(epilog="Example: cmkfs zone remove /mnt/company/hr && rmdir /mnt/company/hr")
@click.argument("directory", metavar="DIR", type=PATH)
@json_option
def remove(directory: Path, as_json: bool) -> None:
    """Make DIR, the empty root of a zone, a plain directory of the zone around it again."""
    where = _resolved(directory)
    entry = _mount_of(where)
    with _held(where) as number:
        answer = client.ask(entry, "zone_remove", ino=number)
    facts({"path": str(where), **answer}, [f"{where} is no zone any more"], as_json=as_json)


@group.command("list", epilog="Example: cmkfs zone list /mnt/company")
@click.argument("mountpoint", type=PATH)
@json_option
def list_(mountpoint: Path, as_json: bool) -> None:
    """List the zones of a mount: where they are, their CMKs and states."""
    answer = client.ask(live(Home.from_environment(), mountpoint), "zones", seconds=SECONDS)
    rows = [("PATH", "CMK", "STATE", "ZONE")]
    for zone in cast(list[Fields], answer.get("zones") or []):
        path = zone.get("path") or "(inside a zone that is locked)"
        rows.append((str(path), str(zone.get("cmk")), str(zone.get("state")), str(zone.get("zone"))))
    facts(answer, table(rows), as_json=as_json)


def _resolved(path: Path) -> Path:
    """The path without symlinks on the way; its last component is taken as it is."""
    return Path(os.path.realpath(path.absolute().parent)) / path.absolute().name


def _mount_of(where: Path) -> Entry:
    entry = mount_of(Home.from_environment(), where)
    if entry is None:
        raise NotFound(f"{where} is not on a mount of cmkfs", hint="cmkfs status")
    return entry


def _make(where: Path) -> bool:
    """Make the directory if it is not there, with the rights and the policy of who asks; False if it is."""
    try:
        where.mkdir()
    except FileExistsError:
        return False
    return True


@contextmanager
def _held(where: Path) -> Iterator[int]:
    """The inode number of a directory, which the mount knows as long as the block lasts."""
    status_of(where)
    fd = os.open(where, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield os.fstat(fd).st_ino
    finally:
        os.close(fd)

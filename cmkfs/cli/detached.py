"""A mount whose daemon outlives it: it is storing what it was given, or serves what programs have open there still."""

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager

from cmkfs.cli.progress import shown
from cmkfs.control import client
from cmkfs.control.protocol import Fields
from cmkfs.control.registry import Entry
from cmkfs.errors import Busy, CmkfsError, NoAnswer

GONE_SECONDS = 10.0
"""How long to wait for the process itself, once it has said that everything is stored."""
LOOK_SECONDS = 1.0
"""How often to look whether the daemon still stores."""


def end_of(where: str, entry: Entry) -> Fields:
    """Wait while it is storing; what it says at its end. Raises Busy where it ends only with others' files."""
    with client.ask_to_say_when_ended(entry) as farewell, until_gone(entry), shown(lambda: left(entry)):
        while True:
            try:
                return farewell.receive(seconds=LOOK_SECONDS)
            except NoAnswer:
                _require_storing(where, entry)


def _require_storing(where: str, entry: Entry) -> None:
    """Raises Busy if files are open there, or if there is nothing to store: then it is somebody's working directory."""
    try:
        answer = client.ask(entry, "status", seconds=LOOK_SECONDS)
    except CmkfsError:
        return  # its socket goes first when the mount ends
    if answer.get("open_files") or not (answer.get("dirty_files") or answer.get("ending")):
        vault, pid = (entry.record.vault, entry.record.pid) if entry.record else ("?", "?")
        raise Busy(
            f"{where} was detached, and programs still use what they had open there"
            f" ({answer.get('open_files')} files of {vault})",
            hint=f"end them: the daemon (pid {pid}) ends with the last of them, and everything is stored",
        )


@contextmanager
def until_gone(entry: Entry) -> Iterator[None]:
    """After the block wait for the daemon's end, a moment after its answer: what it owned is free then."""
    daemon = _pidfd(entry)
    if daemon is None:
        yield
        return
    try:
        yield
        select.select([daemon], [], [], GONE_SECONDS)
    finally:
        os.close(daemon)


def _pidfd(entry: Entry) -> int | None:
    try:
        return os.pidfd_open(entry.record.pid) if entry.record is not None else None
    except OSError:  # in another pid namespace, or gone
        return None


def left(entry: Entry) -> str:
    """What it has to do yet, for whoever waits."""
    try:
        answer: Fields = client.ask(entry, "status", seconds=LOOK_SECONDS)
    except CmkfsError:
        return "storing the rest"  # its socket goes first when the mount ends
    return f"storing {answer.get('dirty_bytes')} bytes in {answer.get('dirty_files')} files"

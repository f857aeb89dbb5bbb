"""A disk below the vault that does not answer: the daemon hangs in the kernel, and the lock is in force all the same.

The vault is on an ext4 of its own that is frozen: whoever writes there sleeps uninterruptibly until it is thawed, so
that not even SIGKILL ends the daemon. That is as bad as a disk gets.
"""

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from doors import SIZE, Doors, cached_pages, opened, outcome
from loop_disk import loop_disk
from real_mount import OWN_CMK, REPOSITORY, RealMount, Site

from cmkfs.cli import mounts
from cmkfs.cli.cutoff import SILENCE_NOW, ask_or_cut_off
from cmkfs.control import registry
from cmkfs.control.registry import Entry
from cmkfs.format.recipient import CmkId
from cmkfs.keys.provider import Cmk, CmkState

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
CUT_OFF = "cut off {}: its daemon does not answer; what was not stored yet is lost"
ENDED_BADLY = "could not be made durable|the connection|lockdown|settle|locked|the guardian cannot be told"
DROP_SECONDS = 3.0
"""For the guardian to see that the connection was cut, and to drop what is cached."""


class Disk:
    """A filesystem that can be frozen."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def order(self, ioctl: int) -> None:
        fd = os.open(self.where, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, ioctl, 0)
        finally:
            os.close(fd)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.order(FIFREEZE)
        try:
            yield
        finally:
            self.order(FITHAW)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    with loop_disk(tmp_path_factory.mktemp("hung"), "ext4") as where:
        yield Disk(where)


@pytest.fixture
def served(site: Site, disk: Disk, request: pytest.FixtureRequest) -> Iterator[RealMount]:
    vault = disk.where / f"v-{request.node.name.partition('[')[0]}"
    site.cmkfs("init", str(vault), "--cmk", OWN_CMK)
    mounted = site.mount(vault)
    mounted.expected_log = [ENDED_BADLY]
    yield mounted
    mounted.clear()


def hang(mounted: RealMount, doors: Doors) -> threading.Thread:
    """Have a program wait for the disk, and with it the daemon; what it waits for is dirty."""

    def program() -> None:
        os.pwrite(doors.written, b"d" * (1 << 20), 0)
        outcomes.append(outcome(lambda: os.fsync(doors.written)))

    outcomes: list[str] = []
    waiting = threading.Thread(target=program)
    waiting.start()
    while state(mounted.pid) != "D":
        assert waiting.is_alive(), outcomes
        time.sleep(0.01)
    return waiting


def state(pid: int) -> str:
    """How the kernel says that a process is; `D` is uninterruptible sleep."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@contextmanager
def at_a_word(site: Site, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command that begins once it is sent a line.

    It is forked before the test opens what hangs: a child closes what it inherits, and the kernel stores it then.
    """
    with subprocess.Popen(
        ["sh", "-c", 'read -r word && exec "$@"', "command", sys.executable, "-P", "-m", "cmkfs", *arguments],
        env={**os.environ, "CMKFS_HOME": str(site.home.root), "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        yield process


def nothing_is_readable(doors: Doors) -> None:
    assert set(doors.outcomes().values()) <= {"ENOTCONN", "ECONNABORTED", "SIGBUS"}
    assert cached_pages(doors.mapping) == 0


def works_again(mounted: RealMount) -> None:
    """What was stored before the disk hung is there, once the daemon could end."""
    mounted.await_end()
    mounted.up()
    assert (mounted.path / "dir" / "file").read_bytes() == b"s" * SIZE


def entry_of(mounted: RealMount) -> Entry:
    entry = registry.find(mounted.site.home, str(mounted.path))
    assert entry is not None
    return entry


def cmk_of(mounted: RealMount) -> Cmk:
    record = entry_of(mounted).record
    assert record is not None
    (cmk_id,) = record.cmks
    return Cmk(OWN_CMK, CmkId(bytes.fromhex(cmk_id)), CmkState.DISABLED, "aes-256", "token", "", (1,), "token")


def test_lock_now_cuts_off_a_daemon_that_hangs(served: RealMount, disk: Disk) -> None:
    with at_a_word(served.site, "lock", "--now", str(served.path)) as lock, opened(served.path) as doors:
        with disk.frozen():
            waiting = hang(served, doors)
            assert os.pread(doors.file, 4, 0) == b"ssss"  # from the kernel's cache
            began = time.monotonic()
            said, _ = lock.communicate("lock\n", timeout=60)
            took = time.monotonic() - began
            nothing_is_readable(doors)
            assert state(served.pid) == "D"  # the disk has not answered yet
            waiting.join(10)
            assert not waiting.is_alive()
        assert (lock.returncode, said) == (0, CUT_OFF.format(served.path) + "\n")
        assert SILENCE_NOW < took < SILENCE_NOW + DROP_SECONDS
        shown = json.loads(served.site.cmkfs("audit", "show", "--event", "lock", "--json"))["records"]
        assert ("done", CUT_OFF.format(served.path)) in [(found["outcome"], found.get("reason")) for found in shown]
    works_again(served)


def test_a_lock_that_the_disk_holds_up_is_completed(served: RealMount, disk: Disk) -> None:
    """The daemon begins it and hangs at the first dirty page that it is to store."""
    with opened(served.path) as doors:
        os.pwrite(doors.written, b"d" * (1 << 20), 0)
        with disk.frozen():
            answer = ask_or_cut_off(entry_of(served), "lock", seconds=60.0, silence=1.5)
            assert answer == {"cut_off": True}
            nothing_is_readable(doors)
            assert state(served.pid) == "D"
    works_again(served)


def test_a_disable_cuts_off_as_well(served: RealMount, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "SILENCE", 1.5)
    with opened(served.path) as doors:
        with disk.frozen():
            waiting = hang(served, doors)
            found = mounts.confirm(served.site.home, cmk_of(served), lambda answer: "it answered", shut=True)
            assert (found.confirmed, found.unconfirmed) == ((str(served.path),), ())
            assert found.lines() == [CUT_OFF.format(served.path)]
            nothing_is_readable(doors)
        waiting.join(10)
    works_again(served)


def test_a_disk_that_is_slow_is_waited_for(served: RealMount, disk: Disk) -> None:
    """It answers before the silence is over: nothing is cut off, nothing is lost."""
    with opened(served.path) as doors:
        disk.order(FIFREEZE)
        thaw = threading.Timer(2.5, lambda: disk.order(FITHAW))
        thaw.start()
        try:
            waiting = hang(served, doors)
            answer = ask_or_cut_off(entry_of(served), "lock", seconds=60.0, silence=30.0)
        finally:
            thaw.join()
        waiting.join(10)
        assert answer["dropped_bytes"] == 0
        served.ask("unlock")
        assert os.pread(doors.written, 1 << 20, 0) == b"d" * (1 << 20)

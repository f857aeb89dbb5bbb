"""What an operation costs, counted: the table of docs/performance.md is what really happens."""

import itertools
import os
import re
import select
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from real_mount import OWN_CMK, REPOSITORY, SECONDS, RealMount, Site

from cmkfs.fs.backingfile import STORE_AT_ONCE

pytestmark = pytest.mark.alone  # whoever drops the kernel's caches meanwhile makes it ask again

MANY = 20
NONE = "\N{EN DASH}"
CALLS = (
    "openat,newfstatat,fstat,pread64,preadv2,pwrite64,renameat,renameat2,unlinkat,mkdirat,linkat,symlinkat,readlinkat,"
    "readlink,ftruncate,utimensat,fchmod,chmod,fchownat,fchown,listxattr,flistxattr,getxattr,fadvise64,getdents64,"
    "sync_file_range,fsync,fdatasync"
)
RESUMED = re.compile(r"\d+ +<\.\.\. ")
BLOCK = os.urandom(4096)
MEBIBYTE = os.urandom(1 << 20)


class Cost(NamedTuple):
    """Of one operation; requests in any order."""

    requests: frozenset[str]
    calls: int
    token: int
    possible: frozenset[str] = frozenset()
    """Requests that come or do not come."""


def documented() -> dict[str, Cost]:
    rows = {}
    counted, _, _ = (REPOSITORY / "docs" / "performance.md").read_text().partition("\n## ")  # what follows is timed
    for line in counted.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[2].isdigit():
            words = set(cells[1].split()) - {NONE}
            possible = {word for word in words if word.startswith("(")}
            rows[cells[0]] = Cost(
                frozenset(words - possible),
                int(cells[2]),
                int(cells[3]),
                frozenset(word.strip("()") for word in possible),
            )
    return rows


def _files(top: Path) -> list[Path]:
    return [top / f"f{number}" for number in range(MANY)]


def _create(top: Path) -> None:
    for path in _files(top):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, BLOCK)
        os.close(fd)


def _stat(top: Path) -> None:
    for path in _files(top):
        path.stat()


def _read(top: Path) -> None:
    for path in _files(top):
        fd = os.open(path, os.O_RDONLY)
        assert len(os.read(fd, 4096)) == 4096
        os.close(fd)


def _append(top: Path) -> None:
    fd = os.open(_files(top)[0], os.O_WRONLY | os.O_APPEND)
    try:
        for _ in range(100):
            os.write(fd, BLOCK[:100])
    finally:
        os.close(fd)


def _write_much(top: Path) -> None:
    for path in _files(top):
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, MEBIBYTE)
        os.close(fd)


def _rename(top: Path) -> None:
    for path in _files(top):
        path.rename(path.with_suffix(".new"))


def _rename_back(top: Path) -> None:
    for path in _files(top):
        path.with_suffix(".new").rename(path)


def _each(call: Callable[[Path], object]) -> Callable[[Path], None]:
    def every(top: Path) -> None:
        for path in _files(top):
            call(path)

    return every


Step = tuple[str, Callable[[Path], None]]
BEFORE_A_REMOUNT: list[Step] = [
    ("create, write 4 KiB, close", _create),
    ("`stat`, just written", _stat),
    ("`stat` again", _stat),
    ("open, read, close; just written, for the first time", _read),
]
AFTER_A_REMOUNT: list[Step] = [
    ("open, read, close; first time since the mount", _read),
    ("open, read, close; again, settled", _read),
    ("append 100 bytes to an open file, 100 times", _append),
    ("write 1 MiB, close", _write_much),
    ("rename", _rename),
    ("", _rename_back),
    ("unlink", _each(os.unlink)),
    ("mkdir", _each(os.mkdir)),
    ("rmdir", _each(os.rmdir)),
    ("symlink", _each(lambda path: path.symlink_to("somewhere"))),
    ("readlink", _each(os.readlink)),
]


class Counting:
    """Counts what a daemon does in a block: requests and token calls by its own word, system calls by strace."""

    def __init__(self, mounted: RealMount, log: Path) -> None:
        self._mounted = mounted
        self._log = log

    def of(self, work: Callable[[], None]) -> tuple[Counter[str], Counter[str], int]:
        daemon = str(self._mounted.ask("status")["pid"])
        command = ["strace", "-f", "-o", str(self._log), "-e", f"trace={CALLS}", "-p", daemon]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
            assert tracer.stderr is not None
            ready, _, _ = select.select([tracer.stderr], [], [], SECONDS)
            assert ready
            assert b"attached" in tracer.stderr.readline()
            try:
                before = self._mounted.ask("status")
                work()
                after = self._mounted.ask("status")
            finally:
                tracer.send_signal(signal.SIGINT)
                tracer.stderr.read()
                tracer.wait(SECONDS)
        requests = Counter(after["requests_by_kind"])
        requests.subtract(Counter(before["requests_by_kind"]))
        calls = Counter(
            line.split(maxsplit=1)[1].partition("(")[0]
            for line in self._log.read_text().splitlines()
            if not RESUMED.match(line) and "(" in line and "+++" not in line and "---" not in line
        )
        return requests, calls, int(after["unwraps"]) - int(before["unwraps"])


@pytest.fixture(scope="module")
def measured(site: Site, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Cost, Counter[str]]]:
    """Every row, done once: what it cost, and the calls by name."""
    vault = site.new_vault(OWN_CMK)
    log = tmp_path_factory.mktemp("strace") / "log"
    found: dict[str, tuple[Cost, Counter[str]]] = {}
    for steps in (BEFORE_A_REMOUNT, AFTER_A_REMOUNT):
        mounted = site.mount(vault)
        try:
            top = mounted.path / "directory"
            if steps is BEFORE_A_REMOUNT:
                top.mkdir()
                (top / "first").write_bytes(b"")  # the pool of keys begins to be filled with the first file
            for name, work in steps:
                count = 100 if work is _append else MANY
                requests, calls, unwraps = Counting(mounted, log).of(partial(work, top))
                usual = frozenset(kind for kind, times in requests.items() if times >= count / 2 and kind != "statfs")
                spent = sum(times for times in calls.values() if times >= count / 2) / count
                found[name] = (Cost(usual, int(spent), round(unwraps / count)), calls)
            mounted.down()
        finally:
            mounted.clear()
    return found


@pytest.mark.parametrize("name", [name for name, _ in BEFORE_A_REMOUNT + AFTER_A_REMOUNT if name])
def test_it_costs_what_the_table_says(measured: dict[str, tuple[Cost, Counter[str]]], name: str) -> None:
    told = documented()[name]
    found, calls = measured[name]
    assert found.requests - told.possible == told.requests
    assert found.token == told.token
    assert found.calls <= told.calls, calls


def test_every_row_of_the_table_is_done() -> None:
    assert set(documented()) == {name for name, _ in BEFORE_A_REMOUNT + AFTER_A_REMOUNT if name}


def test_what_a_file_grows_by_goes_to_the_disk_meanwhile(site: Site, tmp_path: Path) -> None:
    """Nobody asks for durability, and still the disk does not stand idle until somebody does."""
    mounted = site.mount(site.new_vault(OWN_CMK))
    log = tmp_path / "log"

    def grow() -> None:
        with (mounted.path / "large").open("wb", buffering=0) as file:
            for _ in range(34):
                file.write(MEBIBYTE)

    try:
        Counting(mounted, log).of(grow)
        # Without the closing bracket: strace ends the line early where another thread's call comes between.
        begun = re.findall(r"sync_file_range\((\d+), (\d+), (\d+), SYNC_FILE_RANGE_WRITE\b", log.read_text())
        ranges = [(int(offset), int(offset) + int(length)) for _, offset, length in begun]
        assert len(ranges) >= 2
        assert all(stop - start >= STORE_AT_ONCE for start, stop in ranges)
        assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(ranges))
        mounted.down()
    finally:
        mounted.clear()

"""A vault made to cost as much as it can: by whoever may write to it, before a mount or a check of it begins.

Time and memory stay bounded by what a mount is asked for, never by what the vault claims (docs/threat-model.md).
"""

import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from real_mount import OWN_CMK, REPOSITORY, RealMount, Site

from cmkfs.fs.vaultdir import OWNER_FILE, SESSION_FILE, SPARE_FILE, VAULT_FILE, ZONES_FILE

TERABYTE = 1 << 40
MANY = 5_000
DEEP = 600
SECONDS = 30.0
"""A bound for a loaded machine; each of these takes a second or two on an idle one."""
MORE_MEMORY = 64 << 20


def _peak(pid: int) -> int:
    """The most memory that a process had resident, in bytes (proc_pid_status(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) << 10


def _check(site: Site, vault: Path) -> tuple[int, str, int]:
    """`cmkfs check`: its exit code, what it says, and the most memory that it or a child of it had, in bytes."""
    program = (
        "import resource, runpy, sys\n"
        "try:\n    runpy.run_module('cmkfs', run_name='__main__')\n"
        "finally:\n"
        "    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]\n"
        "    print('peak', max(usage), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, "check", str(vault)],
        env={**os.environ, "CMKFS_HOME": str(site.home.root), "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr, int(done.stderr.rsplit("peak ", 1)[1]) << 10


# -- the vault's own files -------------------------------------------------------------------------


def _is_a_fifo(path: Path) -> None:
    os.mkfifo(path)


def _is_a_terabyte(path: Path) -> None:
    path.touch()
    os.truncate(path, TERABYTE)


def _leads_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def _leads_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _is_a_directory(path: Path) -> None:
    path.mkdir()


REPLACED: dict[str, list[Callable[[Path], None]]] = {
    VAULT_FILE: [_is_a_fifo, _is_a_terabyte, _leads_to_itself, _leads_to_zeros, _is_a_directory],
    SESSION_FILE: [_is_a_fifo, _is_a_terabyte, _leads_to_zeros],
    ZONES_FILE: [_is_a_fifo, _is_a_terabyte],
    OWNER_FILE: [_is_a_fifo],
    SPARE_FILE: [_is_a_terabyte],
    "cmkfs.dir": [_leads_to_itself],
    "cmkfs.zone": [_is_a_terabyte],
    "cmkfs.links": [_is_a_fifo],
}


@pytest.fixture(scope="module")
def pristine(site: Site) -> Iterator[Path]:
    """A vault with a file in it, not mounted."""
    mounted = site.mount(site.new_vault(OWN_CMK))
    try:
        (mounted.path / "file").write_bytes(b"x" * 10_000)
        mounted.down()
        yield mounted.vault
    finally:
        mounted.clear()


@pytest.mark.parametrize("name", REPLACED)
def test_nothing_in_the_place_of_an_own_file_holds_up_a_mount(site: Site, pristine: Path, name: str) -> None:
    point = site.directory(f"hostile.{name}")
    for kind in REPLACED[name]:
        vault = point.with_name(f"{point.name}.{kind.__name__}")
        shutil.copytree(pristine, vault, symlinks=True)
        path = vault / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        kind(path)
        began = time.monotonic()
        said = site.cmkfs("mount", str(vault), str(point), codes=range(10))
        if os.path.ismount(point):  # what the mount can do without
            assert (point / "file").read_bytes() == b"x" * 10_000
            site.cmkfs("umount", str(point))
        else:
            assert said.startswith("cmkfs: "), said
            assert "Traceback" not in said
        assert time.monotonic() - began < SECONDS
        shutil.rmtree(vault)


# -- what lies in it -------------------------------------------------------------------------------


def _fill(directory: Path, one: Path) -> None:
    """Put into a directory of the vault what claims much; `one` is the backing of a settled file in it."""
    for number in range(MANY):
        (directory / f"junk{number:0>20}").touch()
    deep = os.open(directory, os.O_RDONLY)
    for _ in range(DEEP):
        os.mkdir("deeper-and-deeper", dir_fd=deep)
        below = os.open("deeper-and-deeper", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    for name, target in (("loop", "loop"), ("there", "back"), ("back", "there"), ("up", ".."), ("zeros", "/dev/zero")):
        (directory / name).symlink_to(target)
    os.mkfifo(directory / "fifo")
    (directory / "longer").symlink_to("A" * 4_000)
    (directory / "cmkfs.long.AAAA").symlink_to("A" * 4_000)
    os.truncate(one, TERABYTE)


@pytest.fixture
def hostile(site: Site) -> Iterator[tuple[RealMount, int, int]]:
    """A mount of a vault full of claims, with the peaks of a daemon and a check of it before that."""
    mounted = site.mount(site.new_vault(OWN_CMK))
    mounted.expected_log = ["Damaged|damage|alert|readdir|open|guard"]
    try:
        (mounted.path / "file").write_bytes(b"x" * 10_000)
        (mounted.path / "claims").write_bytes(b"x" * 10_000)
        usual = _peak(mounted.pid)
        mounted.down()
        code, said, usual_of_check = _check(site, mounted.vault)
        assert code == 0, said
        mounted.up()
        claims = (mounted.path / "claims").stat().st_ino
        mounted.down()
        (one,) = [path for path in mounted.vault.iterdir() if path.lstat().st_ino == claims]
        _fill(mounted.vault, one)
        mounted.up()
        yield mounted, usual, usual_of_check
    finally:
        mounted.clear()


def _see_all(top: Path) -> tuple[int, list[str]]:
    """How many names there are below, and those that cannot be looked at or read to their end."""
    seen, failed = 0, []
    for at, below, names in os.walk(top):
        for name in [*below, *names]:
            path = Path(at, name)
            seen += 1
            try:
                if stat.S_ISREG(path.lstat().st_mode):
                    with path.open("rb") as file:
                        while file.read(1 << 20):
                            pass
            except OSError:
                failed.append(name)
    return seen, failed


def test_a_vault_full_of_claims_costs_little(hostile: tuple[RealMount, int, int]) -> None:
    mounted, usual, usual_of_check = hostile
    began = time.monotonic()
    seen, failed = _see_all(mounted.path)
    assert time.monotonic() - began < SECONDS
    assert (mounted.path / "file").read_bytes() == b"x" * 10_000
    assert (seen, failed) == (2, ["claims"])
    assert _peak(mounted.pid) < usual + MORE_MEMORY
    damage = mounted.site.cmkfs("audit", "show", "--outcome", "damaged", "--mount", str(mounted.path)).splitlines()
    assert sum("more entries that are no names" in line for line in damage) == 1
    assert 100 < len(damage) < 110
    mounted.down()
    began = time.monotonic()
    code, said, peak = _check(mounted.site, mounted.vault)
    assert time.monotonic() - began < SECONDS
    assert code == 5, said
    assert peak < usual_of_check + MORE_MEMORY

"""The systemd unit of a mount: systemd takes it, and its rights and system calls are enough for all that a mount does.

There is no systemd to run it here. The capabilities are those of the unit, by setpriv; every system call of the three
processes is recorded and must be one of those that the unit allows, by systemd's own list of them.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import ALICE, in_child
from real_mount import REPOSITORY, SHARED_CMK, RealMount, Site, processes_of
from systemd_units import command, path_of, unit

UNIT = "cmkfs-mount@.service"
HIDES_THE_MOUNT = re.compile(r"^(Protect|Private|ReadOnly|ReadWrite|Inaccessible|Bind|Temporary|Root|Mount|Dynamic)")
"""Directives that give a service a mount namespace, by how they begin (systemd.exec(5))."""


def _capabilities() -> list[str]:
    return [name.removeprefix("CAP_").lower() for name in unit(UNIT)["Service"]["CapabilityBoundingSet"].split()]


def _allowed_calls() -> set[str]:
    """By the unit: sets and names in order, those behind `~` taken away."""
    found: set[str] = set()
    for line in unit(UNIT)["Service"]["SystemCallFilter"].splitlines():
        calls = {call for name in line.lstrip("~").split() for call in _members(name)}
        found = found - calls if line.startswith("~") else found | calls
    return found


def _members(name: str) -> set[str]:
    if not name.startswith("@"):
        return {name}
    said = subprocess.check_output(["systemd-analyze", "syscall-filter", name], text=True)
    words = [line.strip() for line in said.splitlines()[1:] if line.strip() and not line.strip().startswith("#")]
    return {call for word in words for call in _members(word)}


@pytest.fixture
def limited(site: Site, tmp_path: Path) -> Iterator[tuple[RealMount, Path]]:
    """A mount with what the unit leaves it, and the log of its system calls."""
    mounted = site.mount(site.new_vault(SHARED_CMK))
    mounted.expected_log = ["lockdown: "]
    mounted.down()
    log = tmp_path / "calls"
    bounds = ",".join(["-all", *(f"+{name}" for name in _capabilities())])
    start = command(UNIT, "x")
    assert start == ["/usr/local/bin/cmkfs", "mount", "-o", "${OPTIONS}", "${VAULT}", "${MOUNTPOINT}"]
    words = [*start[1:3], "allow_other,suid,dev", str(mounted.vault), str(mounted.path)]
    strace = ["strace", "--follow-forks", "--quiet=all", "--signal=none", f"--output={log}", "--daemonize"]
    subprocess.run(
        [*strace, "setpriv", f"--bounding-set={bounds}", "--no-new-privs", sys.executable, "-P", "-m", "cmkfs", *words],
        env={**os.environ, "CMKFS_HOME": str(site.home.root), "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=60,
    )
    try:
        mounted.adopt(mounted.ask("status")["pid"])
        yield mounted, log
    finally:
        mounted.clear()


def _use_everything(top: Path) -> None:
    """What needs a capability, each."""
    file = top / "file"
    file.write_bytes(b"x" * 100_000)
    os.chown(file, ALICE.uid, ALICE.gid)
    file.chmod(0o4755)
    assert file.stat().st_mode & 0o7777 == 0o4755
    os.setxattr(file, "user.colour", b"red")
    os.setxattr(file, "trusted.secret", b"1")
    os.setxattr(file, "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.mknod(top / "null", 0o020666, os.makedev(1, 3))
    os.mkfifo(top / "fifo")
    (top / "link").symlink_to("file")
    os.chown(top / "link", ALICE.uid, ALICE.gid, follow_symlinks=False)
    (top / "closed").mkdir(mode=0o700)
    (top / "closed" / "within").write_bytes(b"y")
    os.chown(top / "closed", ALICE.uid, ALICE.gid)
    (top / "closed" / "within").rename(top / "moved")
    os.link(file, top / "hard")
    with file.open("r+b") as opened:
        opened.truncate(10)
        os.fsync(opened.fileno())
    assert in_child(file.read_bytes, ALICE) == b"x" * 10
    assert sorted(path.name for path in top.iterdir()) == ["closed", "fifo", "file", "hard", "link", "moved", "null"]


def test_a_mount_can_do_everything_with_what_the_unit_leaves_it(limited: tuple[RealMount, Path]) -> None:
    mounted, log = limited
    _use_everything(mounted.path)
    status = Path(f"/proc/{mounted.pid}/status").read_text()
    assert re.search(r"^NoNewPrivs:\t1$", status, re.M)
    assert not re.search(r"^VmLck:\t +0 kB$", status, re.M)  # its memory is not swapped
    bound = re.search(r"^CapBnd:\t(\w+)$", status, re.M)
    assert bound is not None
    names = subprocess.check_output(["capsh", f"--decode={bound[1]}"], text=True).strip().split("=")[1].split(",")
    assert {name.removeprefix("cap_") for name in names} <= set(_capabilities())
    program = in_child(lambda: os.readlink("/proc/self/exe"), ALICE)
    shown = mounted.site.cmkfs("audit", "show", "--event", "open.read", "--user", str(ALICE.uid), "--json")
    assert f'"exe": "{program}"' in shown  # of a process of another user
    assert len(processes_of(mounted.pid)) == 3
    mounted.site.cmkfs("lock", str(mounted.path))
    mounted.site.cmkfs("unlock", str(mounted.path))
    assert mounted.ask("status")["bugs"] == 0
    mounted.down()
    calls = set(re.findall(r"^\d+ +(\w+)\(", log.read_text(errors="replace"), re.M))
    assert {"mount", "mlockall", "writev", "mknodat"} <= calls
    assert calls - _allowed_calls() == set()


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """And nothing in it hides the mount from everybody else."""
    service = tmp_path / "cmkfs-mount@x.service"
    shutil.copyfile(path_of(UNIT), service)
    done = subprocess.run(["systemd-analyze", "verify", str(service)], capture_output=True, text=True, check=False)
    said = "\n".join(line for line in done.stderr.splitlines() if "/usr/local/bin/cmkfs is not executable" not in line)
    assert said == ""
    directives = unit(UNIT)["Service"]
    assert [name for name in directives if HIDES_THE_MOUNT.match(name)] == []
    assert "RestrictSUIDSGID" not in directives

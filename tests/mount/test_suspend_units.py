"""The systemd units that lock before the host sleeps: their commands, as written, lock real mounts.

They run in a mount namespace in which /usr/local/bin/cmkfs is this tree's, and the runtime directories are those of
the test's mounts; with the environment that systemd gives a service, which is next to nothing.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import Who
from doors import outcome
from real_mount import OWN_CMK, REPOSITORY, RealMount, Site
from systemd_units import UNITS, command, unit

from cmkfs.cli.cutoff import SILENCE
from cmkfs.fs.lockdown import FORGET_SECONDS, STORE_SECONDS

FOR_ROOT, FOR_A_USER = "cmkfs-lock-on-suspend.service", "cmkfs-lock-on-suspend@.service"


def run_as_a_service(site: Site, words: list[str], runtime: str, who: Who | None) -> str:
    """Execute it where /usr/local/bin and /run are a test's own, as the user of the service."""
    binaries = site.top / "bin"
    binaries.mkdir(exist_ok=True)
    program = binaries / "cmkfs"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -P -m cmkfs "$@"\n')
    program.chmod(0o755)
    binaries.chmod(0o755)
    user = [] if who is None else ["setpriv", f"--reuid={who.uid}", f"--regid={who.gid}", "--clear-groups"]
    prepare = (
        f"mount --bind {binaries} /usr/local/bin && mount -t tmpfs -o mode=755 none /run && mkdir -p {runtime} && "
        f"mount --bind {site.home.runtime} {runtime}"
    )
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LANG": "C.UTF-8"}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{prepare} && exec "$@"', "service", *user, *words],
        env=environment if who is None else {**environment, "HOME": str(site.top)},  # systemd.exec(5), "User="
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def roots_mount() -> Iterator[RealMount]:
    """In a home of its own: all mounts of a home are locked."""
    with tempfile.TemporaryDirectory(prefix="cmkfs-test-") as top:
        site = Site(Path(top))
        site.prepare()
        mounted = site.mount(site.new_vault(OWN_CMK))
        try:
            yield mounted
        finally:
            mounted.clear()


def test_roots_mounts_are_locked(roots_mount: RealMount) -> None:
    mounted = roots_mount
    mounted.expected_log = ["lockdown: (un)?locked"]
    (mounted.path / "file").write_bytes(b"stored")
    said = run_as_a_service(mounted.site, command(FOR_ROOT), "/run/cmkfs", None)
    assert f"locked {mounted.path}: " in said
    assert outcome(lambda: (mounted.path / "file").read_bytes()) == "ENOKEY"
    mounted.site.cmkfs("unlock", "--all")
    assert (mounted.path / "file").read_bytes() == b"stored"


def test_a_users_mounts_are_locked(user_mount: RealMount) -> None:
    user_mount.expected_log = ["lockdown: (un)?locked"]
    who = user_mount.site.who
    assert who is not None
    words = command(FOR_A_USER, "alice")
    assert unit(FOR_A_USER)["Service"]["User"] == "%i"
    said = run_as_a_service(user_mount.site, words, f"/run/user/{who.uid}/cmkfs", who)
    assert said.startswith(f"locked {user_mount.path}: ")
    assert user_mount.ask("status")["state"] == "locked"
    user_mount.site.cmkfs("unlock", "--all")


@pytest.mark.parametrize("name", [FOR_ROOT, FOR_A_USER])
def test_sleep_waits_for_the_lock(name: str) -> None:
    """`oneshot` and `Before=` make it wait; the time suffices for a lock that takes as long as it may."""
    parsed = unit(name)
    assert parsed["Service"]["Type"] == "oneshot"
    assert parsed["Unit"]["Before"] == parsed["Install"]["WantedBy"] == "sleep.target"
    longest = SILENCE + STORE_SECONDS + FORGET_SECONDS
    assert float(parsed["Service"]["TimeoutStartSec"]) > longest


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_accepts_them(tmp_path: Path) -> None:
    names = [FOR_ROOT, FOR_A_USER.replace("@", "@root")]
    for name in names:
        text = (UNITS / name.replace("@root", "@")).read_text()
        (tmp_path / name).write_text(text.replace("/usr/local/bin/cmkfs", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / name) for name in names)],
        env={**os.environ, "SYSTEMD_PAGER": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")

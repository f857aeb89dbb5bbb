"""The commands against real mounts: what they say, what they exit with, what they leave."""

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runner import REPOSITORY, Cmkfs, Ran

SHIM = REPOSITORY / "scripts/mount.fuse.cmkfs"


@pytest.fixture
def vault(with_token: Cmkfs) -> Iterator[Cmkfs]:
    """A vault `v` and a mount point `mp`; nothing is left mounted."""
    with_token.ok("init", "v", "--cmk", "main")
    (with_token.work / "mp").mkdir()
    yield with_token
    with_token("umount", "mp", "--lazy")
    with_token("cmk", "enable", "main")
    (with_token.work / "mp").rmdir()
    shutil.rmtree(with_token.work / "v")


@pytest.fixture
def mounted(vault: Cmkfs) -> Cmkfs:
    assert vault.ok("mount", "v", "mp") == "mounted WORK/v at WORK/mp\n"
    return vault


def pid_of(cmkfs: Cmkfs) -> int:
    return int(json.loads(cmkfs.ok("status", "mp", "--json"))["pid"])


def kill(pid: int, number: signal.Signals) -> None:
    """Send a signal to a daemon and wait for its end."""
    watched = os.pidfd_open(pid)
    try:
        os.kill(pid, number)
        assert select.select([watched], [], [], 20)[0], "the daemon does not end"
    finally:
        os.close(watched)


def is_mounted(path: Path) -> bool:
    return f" {path} " in Path("/proc/self/mountinfo").read_text()


# -- mount and umount ------------------------------------------------------------------------------


def test_mount_write_umount_mount_again(mounted: Cmkfs) -> None:
    file = mounted.work / "mp/hello"
    file.write_text("hello")
    assert mounted.ok("umount", "mp") == "unmounted WORK/mp; everything is stored\n"
    assert list((mounted.work / "mp").iterdir()) == []
    assert mounted.ok("umount", "mp") == "WORK/mp is not mounted\n"
    mounted.ok("mount", "v", "mp", "-o", "ro,noatime", "-o", "nosuid,x-anything")
    assert file.read_text() == "hello"
    assert json.loads(mounted.ok("status", "mp", "--json"))["read_only"] is True
    assert json.loads(mounted.ok("umount", "mp", "--json")) == {
        "mountpoint": "WORK/mp",
        "done": True,
        "what": "unmounted WORK/mp; everything is stored",
    }


def test_a_mount_leaves_no_descriptor_of_the_caller_open(vault: Cmkfs) -> None:
    """`out=$(cmkfs mount …)` would wait for ever for a daemon that kept its standard output."""
    report = json.loads(vault.ok("mount", "v", "mp", "--json"))
    assert report["mountpoint"] == "WORK/mp"
    assert os.readlink(f"/proc/{report['pid']}/cwd") == "/"
    assert os.readlink(f"/proc/{report['pid']}/fd/0") == "/dev/null"
    assert os.getsid(report["pid"]) == report["pid"]


@pytest.mark.parametrize("arguments", [("v", "mp"), ("v", "mp2")])
def test_a_second_mount_is_refused_and_says_who_has_it(mounted: Cmkfs, arguments: tuple[str, str]) -> None:
    (mounted.work / "mp2").mkdir(exist_ok=True)
    ran = mounted("mount", *arguments)
    assert (ran.code, ran.out) == (6, "")
    assert ran.err.count("\n") == 1
    assert str(pid_of(mounted)) in ran.err
    (mounted.work / "mp2").rmdir()


def test_a_disabled_cmk_fails_the_mount_command_and_nothing_is_mounted(vault: Cmkfs) -> None:
    vault.ok("cmk", "disable", "main")
    assert vault("mount", "v", "mp") == Ran(4, "", "cmkfs: CMK main is disabled; try: cmkfs cmk enable main\n")
    assert not is_mounted(vault.work / "mp")


def test_allow_other_without_a_policy_gives_a_hint(vault: Cmkfs) -> None:
    ran = vault("mount", "v", "mp", "-o", "allow_other")
    assert (ran.code, ran.out) == (0, "mounted WORK/v at WORK/mp\n")
    assert "only root and whoever mounted" in ran.err
    assert "cmkfs policy set" in ran.err


def test_a_busy_mount_names_who_holds_it(mounted: Cmkfs) -> None:
    with (mounted.work / "mp/held").open("w"):
        ran = mounted("umount", "mp")
        assert ran.code == 6
        assert ran.err.startswith("cmkfs: WORK/mp is busy; open by ")
        assert f"(pid {os.getpid()}): WORK/mp/held; try: close the files, or cmkfs umount --lazy WORK/mp\n" in ran.err
        assert is_mounted(mounted.work / "mp")
    mounted.ok("umount", "mp")


def test_a_lazy_umount_detaches_what_is_in_use(mounted: Cmkfs) -> None:
    pid = pid_of(mounted)
    watched = os.pidfd_open(pid)
    with (mounted.work / "mp/held").open("w") as held:
        assert mounted.ok("umount", "--lazy", "mp").startswith("detached WORK/mp")
        assert not is_mounted(mounted.work / "mp")
        held.write("still works")
    assert select.select([watched], [], [], 20)[0]
    os.close(watched)


def test_sigterm_is_umount(mounted: Cmkfs) -> None:
    (mounted.work / "mp/a").write_text("kept")
    kill(pid_of(mounted), signal.SIGTERM)
    assert not is_mounted(mounted.work / "mp")
    mounted.ok("mount", "v", "mp")
    assert (mounted.work / "mp/a").read_text() == "kept"


def test_a_mount_in_the_foreground_ends_with_sigint(vault: Cmkfs) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "cmkfs", "mount", "-f", "v", "mp"],
        stdout=subprocess.PIPE,
        cwd=vault.work,
        env=vault.environment,
    )
    with running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith(b"mounted ")
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=20) == 0


# -- a daemon that was killed ----------------------------------------------------------------------


def test_a_dead_mount_is_reported_and_cleared_by_umount(mounted: Cmkfs) -> None:
    kill(pid_of(mounted), signal.SIGKILL)
    dead = "cmkfs: the mount at WORK/mp is dead: its daemon is gone; try: cmkfs umount WORK/mp\n"
    assert mounted("status", "mp") == Ran(1, "", dead)
    assert mounted("status") == Ran(1, "", dead)
    assert mounted("lock", "mp").code == 1
    assert mounted("lock", "--all").code == 1
    ran = mounted("cmk", "disable", "main")
    assert ran.code == 1
    assert ran.err.startswith("cmkfs: WORK/mp has not confirmed: dead")
    assert mounted.ok("umount", "mp") == "cleared the dead mount at WORK/mp\n"
    assert mounted.ok("status") == "nothing is mounted\n"
    assert mounted.ok("cmk", "enable", "main") == "CMK main is enabled\n"


def test_a_dead_mount_is_cleared_by_the_next_mount(mounted: Cmkfs) -> None:
    (mounted.work / "mp/a").write_text("written before the kill")
    kill(pid_of(mounted), signal.SIGKILL)
    assert mounted.ok("mount", "v", "mp").startswith("mounted WORK/v at WORK/mp\n")
    assert mounted.ok("umount", "mp") == "unmounted WORK/mp; everything is stored\n"


# -- lock, disable, policy, info -------------------------------------------------------------------


def test_lock_and_unlock(mounted: Cmkfs) -> None:
    file = mounted.work / "mp/a"
    file.write_text("x")
    assert mounted.ok("lock", "mp").startswith("locked WORK/mp: ")
    assert mounted.ok("lock", "--cmk", "main") == "WORK/mp is locked already\n"
    with pytest.raises(OSError, match="Required key not available"):
        file.read_text()
    assert mounted("status", "mp").code == 4
    assert mounted("info", "mp/a").code == 4
    assert mounted.ok("unlock", "--all") == "unlocked WORK/mp\n"
    assert mounted.ok("unlock", "mp") == "WORK/mp is unlocked already\n"
    assert file.read_text() == "x"


def test_disable_and_enable_are_confirmed_and_unlock_cannot_undo_them(mounted: Cmkfs) -> None:
    file = mounted.work / "mp/a"
    file.write_text("x")
    assert mounted.ok("cmk", "disable", "main") == "CMK main is disabled\nin force on WORK/mp\n"
    with pytest.raises(OSError, match="Required key not available"):
        file.read_text()
    ran = mounted("unlock", "mp")
    assert (ran.code, ran.out) == (4, "")
    assert ran.err.endswith("try: cmkfs cmk enable main\n")
    assert mounted("status", "mp").code == 4
    assert mounted.ok("cmk", "enable", "main") == "CMK main is enabled\nin force on WORK/mp\n"
    assert file.read_text() == "x"


def test_a_policy_is_in_force_when_the_command_returns(mounted: Cmkfs) -> None:
    (mounted.work / "mp/a").write_text("x")
    policy = mounted.work / "nobody.toml"
    policy.write_text('[[rule]]\nid = "a"\neffect = "allow"\nwho = ["uid:12345"]\nactions = ["read"]\n')
    assert mounted.ok("policy", "set", "main", str(policy)).endswith("in force on WORK/mp\n")
    with pytest.raises(PermissionError):
        (mounted.work / "mp/a").read_text()
    assert mounted.ok("policy", "unset", "main").endswith("in force on WORK/mp\n")
    assert (mounted.work / "mp/a").read_text() == "x"


def test_info_of_a_file_and_of_its_ciphertext_agree(mounted: Cmkfs) -> None:
    (mounted.work / "mp/a").write_bytes(b"x" * 10_000)
    clear = json.loads(mounted.ok("info", "mp/a", "--json"))
    assert clear["plain_size"] == 10_000
    assert clear["cmk"] == "main"
    backing = clear["backing_path"].replace("WORK", str(mounted.work))
    mounted.ok("umount", "mp")
    cipher = json.loads(mounted.ok("info", backing, "--json"))
    assert cipher["authenticated"] is False
    assert cipher["state"] == "clean"
    for name in ("format", "zone", "file_id", "plain_size", "cmk_version", "kind", "backing_path"):
        assert cipher[name] == clear[name], name


# -- PINs ------------------------------------------------------------------------------------------


def use_module(cmkfs: Cmkfs, source: str, *, of_mounts: str = "") -> str:
    """Configure the embedded token as if it were somebody's HSM; its PIN."""
    module = json.loads(cmkfs.ok("token", "list", "--json"))["tokens"][0]["provider"]
    (cmkfs.home / "cmkfs.toml").write_text(
        f'[token]\nmodule = "{module}"\nsofthsm2_conf = "{cmkfs.home}/token/softhsm2.conf"\npin_source = {source}\n'
        + (f"[token.mount]\npin_source = {of_mounts}\n" if of_mounts else "")
    )
    return (cmkfs.home / "token/pin").read_text().strip()


@pytest.fixture
def configured(vault: Cmkfs) -> Iterator[Cmkfs]:
    yield vault
    vault("umount", "mp", "--lazy")
    (vault.home / "cmkfs.toml").unlink()


def test_a_pin_from_the_environment_reaches_the_daemon_by_a_pipe_only(configured: Cmkfs) -> None:
    pin = use_module(configured, '{ env = "THE_PIN" }')
    ran = configured("mount", "v", "mp", "--json", THE_PIN=pin)
    assert ran.code == 0, ran
    process = Path(f"/proc/{json.loads(ran.out)['pid']}")
    assert pin.encode() not in (process / "cmdline").read_bytes()
    assert b"THE_PIN" not in (process / "environ").read_bytes()
    assert configured("umount", "mp").code == 0


def test_a_pin_from_a_command(configured: Cmkfs) -> None:
    use_module(configured, f'{{ command = ["cat", "{configured.home}/token/pin"] }}')
    configured.ok("mount", "v", "mp")


def test_a_wrong_pin_fails_the_mount_command(configured: Cmkfs) -> None:
    use_module(configured, '{ env = "THE_PIN" }')
    ran = configured("mount", "v", "mp", THE_PIN="1234")
    assert (ran.code, ran.out) == (4, "")
    assert "tried once" in ran.err
    assert not is_mounted(configured.work / "mp")


def test_mounts_log_in_with_their_own_pin_and_commands_with_theirs(configured: Cmkfs) -> None:
    pin = use_module(configured, '{ env = "ADMIN" }', of_mounts='{ env = "LESSER" }')
    assert configured("mount", "v", "mp", ADMIN=pin, LESSER="1234").code == 4
    assert configured("mount", "v", "mp", LESSER=pin).code == 0
    assert configured("cmk", "disable", "main", ADMIN="1234", LESSER=pin).code == 4
    assert configured("umount", "mp").code == 0
    assert configured("cmk", "list", ADMIN=pin).code == 0


def test_a_prompt_asks_on_the_terminal_before_going_to_the_background(configured: Cmkfs) -> None:
    pin = use_module(configured, "{ prompt = true }")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(configured.work)
        os.execve(sys.executable, [sys.executable, "-m", "cmkfs", "mount", "v", "mp"], configured.environment)
    seen = b""
    while b"PIN of token" not in seen:
        seen += os.read(terminal, 1000)
    os.write(terminal, pin.encode() + b"\n")
    while b"mounted" not in seen:
        seen += os.read(terminal, 1000)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)
    assert pin.encode() not in seen
    assert is_mounted(configured.work / "mp")


# -- fstab -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["-n", "-s"], ["-v"], ["-sn"]])
def test_the_helper_of_mount_8(vault: Cmkfs, flags: list[str]) -> None:
    """mount(8) puts its flags before or after -o; the helper takes them in any order."""
    program = vault.work / "cmkfs-for-test"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m cmkfs "$@"\n')
    program.chmod(0o755)
    subprocess.run(
        [
            SHIM,
            vault.work / "v",
            vault.work / "mp",
            *flags,
            "-o",
            "rw,noauto,nosuid,nodev,noatime",
            "-t",
            "fuse.cmkfs",
        ],
        check=True,
        cwd="/",
        env={**vault.environment, "CMKFS": str(program)},
        timeout=60,
    )
    assert is_mounted(vault.work / "mp")
    vault.ok("umount", "mp")


def test_the_helper_fakes_when_told_to(vault: Cmkfs) -> None:
    subprocess.run([SHIM, "v", "mp", "-f", "-o", "rw"], check=True, cwd=vault.work, env=vault.environment)
    assert not is_mounted(vault.work / "mp")


def test_the_helper_says_how_it_is_used() -> None:
    ran = subprocess.run([SHIM, "v"], check=False, capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr.startswith("mount.fuse.cmkfs: usage: ")


def test_what_the_daemon_meets_on_the_disk_is_one_line_of_the_command(vault: Cmkfs) -> None:
    """A directory in the place of a file of the vault's own, say: not a traceback, nor the last line of a log."""
    owner = vault.work / "v" / "cmkfs.owner"
    owner.mkdir()
    ran = vault("mount", "v", "mp")
    owner.rmdir()
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.count("cmkfs: ") == 1
    assert "cmkfs.owner" in ran.err

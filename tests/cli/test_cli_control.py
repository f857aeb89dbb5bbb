"""Commands against a mount that gives answers that a healthy one seldom gives."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_runner import Cmkfs, Ran

DAEMON = Path(__file__).with_name("scripted_daemon.py")
LOCKED = {"was_locked": False, "stored_bytes": 4096, "dropped_bytes": 0}
STATUS = {
    "mountpoint": "/mnt/a", "vault": "/the/vault", "pid": 7, "host": "here", "state": "serving",
    "read_only": True,
    "zones": [{"zone": "00ff", "cmk": "main", "cmk_id": "11", "state": "disabled", "reason": "why"}],
    "leases": 1, "open_files": 2, "known_inodes": 3, "dirty_files": 4, "dirty_bytes": 5,
    "token": {"label": "t", "serial": "s", "healthy": False}, "recovered": {"settled_files": 3},
    "stable_pages": "device", "warnings": ["the sky\nis falling"],
}  # fmt: skip


@contextmanager
def daemon(
    cmkfs: Cmkfs, answers: dict[str, object], *, at: str = "/mnt/a", cmk_id: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """A scripted mount at `at`, killed afterwards if it has not ended."""
    script = {"mountpoint": at, "cmks": {cmk_id or "00" * 16: "main"}, "answers": answers}
    running = subprocess.Popen(
        [sys.executable, str(DAEMON), json.dumps(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=cmkfs.environment,
    )
    with running:
        assert running.stdout is not None
        assert running.stdout.readline() == "listening\n"
        try:
            yield running
        finally:
            running.kill()


def error(name: str, message: str, hint: str = "") -> dict[str, object]:
    return {"error": {"class": name, "message": message, "hint": hint}}


# -- status ----------------------------------------------------------------------------------------


def test_status_says_all_that_the_mount_tells(cmkfs: Cmkfs) -> None:
    with daemon(cmkfs, {"status": STATUS}):
        assert cmkfs.ok("status").splitlines() == [
            "/mnt/a  serving, read-only",
            "  vault /the/vault, pid 7 on here",
            "  zone 00ff under CMK main: disabled (why)",
            "  leases 1, open files 2, known inodes 3, dirty files 4 (5 bytes)",
            "  token t (serial s) not answering",
            "  recovered: settled files 3",
            r"  warning: the sky\nis falling",
        ]
        assert json.loads(cmkfs.ok("status", "/mnt/a", "--json")) == STATUS
        assert json.loads(cmkfs.ok("status", "--json")) == {"mounts": [STATUS]}


@pytest.mark.parametrize(("state", "code"), [("serving", 0), ("locked", 4), ("disabled", 4)])
def test_the_exit_code_of_status_is_the_state(cmkfs: Cmkfs, state: str, code: int) -> None:
    with daemon(cmkfs, {"status": {**STATUS, "state": state}}):
        assert cmkfs("status", "/mnt/a").code == code
        assert cmkfs("status").code == 0


def test_a_killed_daemon_leaves_nothing_once_status_has_looked(cmkfs: Cmkfs) -> None:
    with daemon(cmkfs, {}) as running:
        running.kill()
        running.wait()
        assert cmkfs("status") == Ran(0, "nothing is mounted\n", "")
        assert list((cmkfs.home / "run/mounts").iterdir()) == []
        assert cmkfs("status", "/mnt/a").code == 7


# -- lock and unlock -------------------------------------------------------------------------------


def test_lock_prints_what_was_open(cmkfs: Cmkfs) -> None:
    held = [{"uid": 5, "pid": 6, "path": "/mnt/a/x\x1b[2J"}]
    with daemon(cmkfs, {"lock": {**LOCKED, "open": held}}):
        assert cmkfs.ok("lock", "/mnt/a").splitlines() == [
            "locked /mnt/a: 4096 bytes stored, 0 dropped",
            r"  was open: /mnt/a/x\x1b[2J (uid 5, pid 6)",
        ]
        assert json.loads(cmkfs.ok("lock", "--cmk", "main", "--json"))["mounts"][0]["open"] == held
        assert cmkfs("lock", "--cmk", "other").code == 7


def test_already_so_is_said(cmkfs: Cmkfs) -> None:
    with daemon(cmkfs, {"lock": {"was_locked": True}, "unlock": {"was_unlocked": True}}):
        assert cmkfs.ok("lock", "--all") == "/mnt/a is locked already\n"
        assert cmkfs.ok("unlock", "--all") == "/mnt/a is unlocked already\n"


def test_one_mount_that_fails_does_not_keep_the_others_from_being_locked(cmkfs: Cmkfs) -> None:
    with (
        daemon(cmkfs, {"lock": error("CmkfsError", "it is stuck")}, at="/mnt/a"),
        daemon(cmkfs, {"lock": LOCKED}, at="/mnt/b"),
    ):
        assert cmkfs("lock", "--all") == Ran(
            1, "locked /mnt/b: 4096 bytes stored, 0 dropped\n", "cmkfs: /mnt/a: it is stuck\n"
        )


def test_unlock_while_disabled_exits_4_even_if_another_mount_fails_otherwise(cmkfs: Cmkfs) -> None:
    disabled = error("Disabled", "CMK main is disabled", "cmkfs cmk enable main")
    with (
        daemon(cmkfs, {"unlock": error("CmkfsError", "it is stuck")}, at="/mnt/a"),
        daemon(cmkfs, {"unlock": disabled}, at="/mnt/b"),
    ):
        ran = cmkfs("unlock", "--all")
    assert ran.code == 4
    assert ran.err.splitlines()[1] == "cmkfs: /mnt/b: CMK main is disabled; try: cmkfs cmk enable main"


# -- umount ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [{"dirty_files": 4}, {"dirty_files": 0, "ending": True}], ids=["files", "the end"])
def test_umount_waits_for_a_daemon_that_still_stores_and_names_what_it_could_not(
    cmkfs: Cmkfs, left: dict[str, object]
) -> None:
    """Also for the last sync, when no file is dirty any more."""
    (cmkfs.work / "mp").mkdir()
    at = str(cmkfs.work / "mp")
    with daemon(cmkfs, {"status": {**STATUS, "open_files": 0, **left}}, at=at) as running:
        waiting = subprocess.Popen(
            [sys.executable, "-m", "cmkfs", "umount", at],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=cmkfs.environment,
        )
        with waiting:
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(timeout=3)  # it looks each second
            running.communicate(json.dumps({"unsaved": [f"{at}/a", f"{at}/b\n"], "error": "disk full"}) + "\n")
            out, err = waiting.communicate()
    assert (waiting.returncode, out) == (1, "")
    assert err.splitlines() == [
        f"cmkfs: {at}/a could not be stored; try: see the log of the mount",
        rf"cmkfs: {at}/b\n could not be stored; try: see the log of the mount",
        f"cmkfs: {at}: disk full",
    ]


@pytest.mark.parametrize("dirty", [0, 4], ids=["a working directory", "a program that writes on"])
def test_a_detached_mount_that_is_used_is_not_waited_for(cmkfs: Cmkfs, dirty: int) -> None:
    """Its end is its users': with each write there would be more to store."""
    (cmkfs.work / "mp").mkdir()
    (cmkfs.work / "vault").mkdir()
    (cmkfs.work / "vault" / "cmkfs.vault").touch()
    at = str(cmkfs.work / "mp")
    with daemon(cmkfs, {"status": {**STATUS, "open_files": dirty // 2, "dirty_files": dirty}}, at=at) as running:
        for command in (["umount"], ["mount", str(cmkfs.work / "vault")]):
            assert cmkfs(*command, at) == Ran(
                6,
                "",
                "cmkfs: WORK/mp was detached, and programs still use what they had open there"
                f" ({dirty // 2} files of /the/vault); try: end them: the daemon (pid {running.pid}) ends with the"
                " last of them, and everything is stored\n",
            )


def test_a_daemon_that_dies_while_umount_waits_is_no_success(cmkfs: Cmkfs) -> None:
    (cmkfs.work / "mp").mkdir()
    at = str(cmkfs.work / "mp")
    with daemon(cmkfs, {}, at=at) as running:
        waiting = subprocess.Popen(
            [sys.executable, "-m", "cmkfs", "umount", at],
            stderr=subprocess.PIPE,
            text=True,
            env=cmkfs.environment,
        )
        with waiting:
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(timeout=1)
            running.kill()
            _, err = waiting.communicate()
    assert waiting.returncode == 1
    assert err == f"cmkfs: the mount at {at} ended without an answer\n"


# -- disable, enable and policies ------------------------------------------------------------------


@pytest.fixture
def cmk_id(with_token: Cmkfs) -> str:
    return str(json.loads(with_token.ok("cmk", "show", "main", "--json"))["cmk_id"])


def test_disable_names_the_mounts_that_have_not_confirmed(with_token: Cmkfs, cmk_id: str) -> None:
    with (
        daemon(with_token, {"confirm": {"state": "disabled", "policy": ""}}, at="/mnt/a", cmk_id=cmk_id),
        daemon(with_token, {"confirm": {"state": "serving", "policy": ""}}, at="/mnt/b", cmk_id=cmk_id),
        daemon(with_token, {"confirm": error("TokenUnavailable", "no token")}, at="/mnt/c", cmk_id=cmk_id),
        daemon(with_token, {"confirm": None}, at="/mnt/d", cmk_id=cmk_id),
        daemon(with_token, {}, at="/mnt/e"),
    ):
        ran = with_token("cmk", "disable", "main")
    with_token.ok("cmk", "enable", "main")
    assert (ran.code, ran.out) == (1, "CMK main is disabled\nin force on /mnt/a\n")
    assert ran.err.splitlines() == [
        "cmkfs: /mnt/b has not confirmed: it still serves; try: cmkfs status /mnt/b",
        "cmkfs: /mnt/c has not confirmed: no token; try: cmkfs status /mnt/c",
        "cmkfs: /mnt/d has not confirmed: the mount at /mnt/d did not answer within 5.1 s; try: cmkfs status /mnt/d",
    ]


def test_enable_leaves_locked_what_someone_locked(with_token: Cmkfs, cmk_id: str) -> None:
    with (
        daemon(with_token, {"confirm": {"state": "locked", "policy": ""}}, at="/mnt/a", cmk_id=cmk_id),
        daemon(with_token, {"confirm": {"state": "disabled", "policy": ""}}, at="/mnt/b", cmk_id=cmk_id),
    ):
        ran = with_token("cmk", "enable", "main")
        document = json.loads(with_token("cmk", "enable", "main", "--json").out)
    assert document["confirmed"] == ["/mnt/a"]
    assert document["unconfirmed"] == [{"mountpoint": "/mnt/b", "reason": "it is disabled"}]
    assert ran.code == 1
    assert ran.out == "CMK main is enabled already\nin force on /mnt/a, which stays locked until cmkfs unlock /mnt/a\n"
    assert ran.err == "cmkfs: /mnt/b has not confirmed: it is disabled; try: cmkfs status /mnt/b\n"


def test_policy_set_insists_on_the_new_policy(with_token: Cmkfs, cmk_id: str) -> None:
    policy = with_token.work / "p.toml"
    policy.write_text('[[rule]]\nid = "a"\neffect = "allow"\nwho = ["*"]\nactions = ["read"]\n')
    new = json.loads(with_token.ok("policy", "check", "p.toml", "--json"))["fingerprint"]
    with (
        daemon(with_token, {"confirm": {"state": "serving", "policy": new}}, at="/mnt/a", cmk_id=cmk_id),
        daemon(with_token, {"confirm": {"state": "serving", "policy": ""}}, at="/mnt/b", cmk_id=cmk_id),
    ):
        ran = with_token("policy", "set", "main", "p.toml")
    with_token.ok("policy", "unset", "main")
    assert ran.code == 1
    assert ran.out.splitlines() == [f"CMK main has policy {new[:12]}", "in force on /mnt/a"]
    assert ran.err == (
        "cmkfs: /mnt/b has not confirmed: it still decides by another policy; try: cmkfs status /mnt/b\n"
    )

"""`cmkfs check`: what it says and exits with, on vaults that are whole, mounted, locked and damaged."""

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runner import Cmkfs, Ran

CLEAN = "1 directories, 2 files, 3 blocks: no damage\n"


@pytest.fixture(scope="module")
def vault(with_token: Cmkfs) -> Iterator[Cmkfs]:
    """A vault `v` with two files, not mounted; a test damages a copy of it."""
    with_token.ok("init", "v", "--cmk", "main")
    (with_token.work / "mp").mkdir()
    with_token.ok("mount", "v", "mp")
    (with_token.work / "mp/one").write_bytes(b"1" * 5000)
    (with_token.work / "mp/two").write_bytes(b"2")
    with_token.ok("umount", "mp")
    yield with_token
    with_token("umount", "mp", "--lazy")


@pytest.fixture
def copy(vault: Cmkfs) -> Iterator[Path]:
    copied = vault.work / "copy"
    shutil.copytree(vault.work / "v", copied, symlinks=True)
    yield copied
    shutil.rmtree(copied)


def largest(vault: Path) -> Path:
    return max((path for path in vault.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)


def damage(vault: Path) -> None:
    with largest(vault).open("r+b") as file:
        file.seek(4096 + 200)
        file.write(b"?")


def test_a_whole_vault(vault: Cmkfs) -> None:
    assert vault("check", "v") == Ran(0, CLEAN, "")
    document = json.loads(vault.ok("check", "v", "--json"))
    assert (document["files"], document["damage"], document["repaired"]) == (2, [], None)
    assert vault.ok("check", "v", "--repair") == CLEAN


def test_damage_is_named_then_mended(vault: Cmkfs, copy: Path) -> None:
    damage(copy)
    ran = vault("check", "copy")
    assert (ran.code, ran.err) == (5, "")
    assert ran.out == "/one: block 0 does not authenticate\n1 directories, 2 files, 3 blocks: 1 damaged\n"
    ran = vault("check", "copy", "--repair", "--json")
    assert ran.code == 0
    document = json.loads(ran.out)
    assert document["damage"] == []
    assert [action["path"] for action in document["repaired"]] == ["/one"]
    ran = vault("check", "copy")
    assert (ran.code, ran.out.splitlines()[0]) == (0, "note: 1 things lie in cmkfs.lost of the vault")
    vault.ok("mount", "copy", "mp")
    try:
        assert sorted(os.listdir(vault.work / "mp")) == ["one.rescued", "two"]
        assert (vault.work / "mp/one.rescued").read_bytes() == bytes(4048) + b"1" * 952
    finally:
        vault.ok("umount", "mp")


def test_the_audit_log_says_who_checked_and_what_was_found(vault: Cmkfs, copy: Path) -> None:
    damage(copy)
    vault("check", "copy")
    vault("check", "copy", "--repair")
    shown = json.loads(vault.ok("audit", "show", "--json"))["records"]
    events = [(record["event"], record["reason"]) for record in shown if record["event"].startswith("vault.")]
    assert events[-4:] == [
        ("vault.check", "WORK/copy"),
        ("vault.check", "WORK/copy: 1 damaged, 0 things done"),
        ("vault.repair", "WORK/copy"),
        ("vault.repair", "WORK/copy: 0 damaged, 1 things done"),
    ]
    vault.ok("audit", "verify")


def test_a_mounted_vault_is_busy(vault: Cmkfs) -> None:
    vault.ok("mount", "v", "mp")
    try:
        ran = vault("check", "v")
        assert ran.code == 6
        assert "WORK/v is mounted already by pid" in ran.err
    finally:
        vault.ok("umount", "mp")


def test_a_disabled_cmk_leaves_the_structure(vault: Cmkfs, copy: Path) -> None:
    vault.ok("cmk", "disable", "main")
    try:
        os.truncate(largest(copy), 4096)
        ran = vault("check", "copy")
    finally:
        vault.ok("cmk", "enable", "main")
    assert ran.code == 4
    assert "only the structure was checked where the key is away: CMK main is disabled" in ran.out
    assert "the file was truncated" in ran.out


def test_a_terminal_sees_how_far_it_is(vault: Cmkfs) -> None:
    """The line appears only if it takes long, so the delay is taken away."""
    controller, terminal = pty.openpty()
    code = "import cmkfs.cli.progress as p; p.FIRST_AFTER = 0.0; from cmkfs.cli.app import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "check", "v"],
        stderr=terminal,
        stdout=subprocess.PIPE,
        cwd=vault.work,
        env=vault.environment,
    )
    os.close(terminal)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out.decode()) == (0, CLEAN)
    assert b"checking: " in os.read(controller, 65_536)
    os.close(controller)


@pytest.mark.parametrize("lost", ["cmkfs.vault", "cmkfs.session"])
@pytest.mark.parametrize("how", ["removed", "emptied"])
def test_a_lost_file_of_the_vaults_own_is_damage_that_repair_mends(
    vault: Cmkfs, copy: Path, lost: str, how: str
) -> None:
    (copy / lost).unlink()
    if how == "emptied":
        (copy / lost).touch()
    for command in (["check", "copy"], ["mount", "copy", "mp"]):
        ran = vault(*command)
        assert ran.code == 5, ran
        assert lost.removeprefix("cmkfs.") in ran.out + ran.err
        if command[0] == "mount":
            assert "cmkfs check" in ran.err or lost == "cmkfs.session"
    vault.ok("check", "copy", "--repair")
    assert vault("check", "copy").code == 0
    vault.ok("mount", "copy", "mp")
    try:
        assert (vault.work / "mp/one").read_bytes() == b"1" * 5000
    finally:
        vault.ok("umount", "mp")

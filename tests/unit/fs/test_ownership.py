"""One mount at a time owns a vault; the dead of this host own nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmkfs.errors import Busy
from cmkfs.fs.backing import Backing
from cmkfs.fs.ownership import Ownership, host_id

MOUNTPOINT = Path("/mnt/here")


@pytest.fixture
def backing(tmp_path: Path) -> Iterator[Backing]:
    made = Backing(tmp_path, read_only=False)
    yield made
    made.close()


def owner_file(backing: Backing) -> Path:
    return Path(f"/proc/self/fd/{backing.root_fd}") / "cmkfs.owner"


def test_the_owner_says_who_it_is_and_leaves_nothing(backing: Backing, tmp_path: Path) -> None:
    ownership = Ownership(backing, tmp_path)
    ownership.take(MOUNTPOINT, break_lock=False)
    assert json.loads(owner_file(backing).read_text()) == {
        "host": host_id(),
        "pid": os.getpid(),
        "mountpoint": "/mnt/here",
    }
    ownership.release(clean=True)
    ownership.release(clean=True)
    assert owner_file(backing).read_text() == ""


def test_a_second_mount_is_refused_and_told_by_whom(backing: Backing, tmp_path: Path) -> None:
    first, second = Ownership(backing, tmp_path), Ownership(backing, tmp_path)
    first.take(MOUNTPOINT, break_lock=False)
    for break_lock in (False, True):
        with pytest.raises(Busy, match=f"mounted already by pid {os.getpid()} on") as caught:
            second.take(Path("/mnt/there"), break_lock=break_lock)
        assert caught.value.next_step == "cmkfs umount /mnt/here"
    first.release(clean=True)
    second.take(MOUNTPOINT, break_lock=False)
    second.release(clean=True)


def test_one_that_died_here_owns_nothing(backing: Backing, tmp_path: Path) -> None:
    code = (
        "import sys, os; from pathlib import Path;"
        "from cmkfs.fs.backing import Backing; from cmkfs.fs.ownership import Ownership;"
        "Ownership(Backing(Path(sys.argv[1]), read_only=False), Path(sys.argv[1]))"
        ".take(Path('/mnt/x'), break_lock=False); os._exit(9)"
    )
    dead = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert dead.returncode == 9
    assert json.loads(owner_file(backing).read_text())["mountpoint"] == "/mnt/x"
    ownership = Ownership(backing, tmp_path)
    ownership.take(MOUNTPOINT, break_lock=False)
    ownership.release(clean=False)
    assert json.loads(owner_file(backing).read_text())["pid"] == os.getpid()


def test_of_another_host_only_the_operator_can_tell(backing: Backing, tmp_path: Path) -> None:
    owner_file(backing).write_text(json.dumps({"host": "other/1234", "pid": 77, "mountpoint": "/m"}))
    ownership = Ownership(backing, tmp_path)
    with pytest.raises(Busy, match="pid 77 on other") as caught:
        ownership.take(MOUNTPOINT, break_lock=False)
    assert "--break-lock" in caught.value.next_step
    ownership.take(MOUNTPOINT, break_lock=True)
    assert json.loads(owner_file(backing).read_text())["host"] == host_id()
    ownership.release(clean=True)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"host"', "7"])
def test_what_is_half_written_is_nobody(backing: Backing, tmp_path: Path, text: str) -> None:
    owner_file(backing).write_text(text)
    ownership = Ownership(backing, tmp_path)
    ownership.take(MOUNTPOINT, break_lock=False)
    ownership.release(clean=True)


def test_a_refused_one_leaves_no_descriptor(backing: Backing, tmp_path: Path) -> None:
    first = Ownership(backing, tmp_path)
    first.take(MOUNTPOINT, break_lock=False)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Busy):
        Ownership(backing, tmp_path).take(MOUNTPOINT, break_lock=False)
    assert len(os.listdir("/proc/self/fd")) == before
    first.release(clean=True)

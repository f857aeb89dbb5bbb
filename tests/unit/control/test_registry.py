"""The registry of mounts, dead and alive."""

import os
import subprocess
import sys

import pytest

from cmkfs.control import registry
from cmkfs.control.registry import MountRecord
from cmkfs.home import SOCKET_NAME_SIZE, Home


def record(mountpoint: str) -> MountRecord:
    return MountRecord(mountpoint, "/vault", os.getpid(), {"0a" * 16: "main"}, 2.5)


def leave_a_dead_one(home: Home, mountpoint: str) -> None:
    """What a daemon leaves that was killed."""
    registry.bind(home, record(mountpoint)).close()


def test_no_directory_means_no_mounts(home: Home) -> None:
    assert registry.entries(home) == ()
    assert registry.find(home, "/mnt/a") is None
    assert not home.runtime.exists()


def test_live_and_dead_mounts_are_told_apart(home: Home) -> None:
    leave_a_dead_one(home, "/mnt/b")
    with registry.bind(home, record("/mnt/a")):
        found = registry.entries(home)
    assert [(entry.label, entry.alive) for entry in found] == [("/mnt/a", True), ("/mnt/b", False)]
    assert found[0].record == record("/mnt/a")


def test_the_socket_of_a_killed_process_is_dead(home: Home) -> None:
    program = (
        "import os, signal, sys; from cmkfs.control import registry; from cmkfs.home import Home\n"
        "s = registry.bind(Home.from_environment(), registry.MountRecord('/mnt/k', '/v', 1, {}, 1.0))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "CMKFS_HOME": str(home.root), "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == -9
    (found,) = registry.entries(home)
    assert not found.alive
    registry.clear(home, found)
    assert registry.entries(home) == ()
    assert list(home.mounts_dir.iterdir()) == []


def test_a_living_mount_is_not_cleared(home: Home) -> None:
    with registry.bind(home, record("/mnt/a")):
        (found,) = registry.entries(home)
        registry.clear(home, found)
        assert registry.find(home, "/mnt/a") == found


def test_a_new_daemon_takes_the_place_of_a_dead_one(home: Home) -> None:
    leave_a_dead_one(home, "/mnt/a")
    with registry.bind(home, record("/mnt/a")):
        assert [entry.alive for entry in registry.entries(home)] == [True]


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"mountpoint": 1, "more": 2}', "\0\0\0"])
def test_a_record_that_a_power_cut_emptied_does_not_hide_the_others(home: Home, text: str) -> None:
    leave_a_dead_one(home, "/mnt/b")
    registry.socket_path(home, "/mnt/b").with_suffix(".json").write_text(text)
    with registry.bind(home, record("/mnt/a")):
        found = registry.entries(home)
    assert {entry.record.mountpoint if entry.record else None for entry in found} == {"/mnt/a", None}


def test_an_update_is_seen(home: Home) -> None:
    with registry.bind(home, record("/mnt/a")):
        changed = MountRecord("/mnt/a", "/vault", os.getpid(), {"0a" * 16: "main", "0b" * 16: "second"}, 2.5)
        registry.update(home, changed)
        assert [entry.record for entry in registry.entries(home)] == [changed]


def test_a_mount_point_of_any_bytes_has_a_socket(home: Home) -> None:
    odd = os.fsdecode(b"/mnt/\xff\n" + b"x" * 3000)
    with registry.bind(home, record(odd)):
        (found,) = registry.entries(home)
    assert found.record == record(odd)


def test_the_longest_home_that_is_allowed_has_room_for_a_socket(home: Home) -> None:
    base = home.root
    assert base is not None
    room = 107 - SOCKET_NAME_SIZE - len(os.fsencode(base)) - len("//run")
    home = Home.from_environment({"CMKFS_HOME": f"{base}/{'h' * room}"})
    with registry.bind(home, record("/mnt/a")):
        assert [entry.alive for entry in registry.entries(home)] == [True]

"""A daemon that is killed leaves nothing readable behind: no descriptor, mapping, directory or page in the cache."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from children import in_child
from doors import SIZE, Doors, cached_pages, opened, outcome
from real_mount import OWN_CMK, NewMount, RealMount

from cmkfs.errors import CmkfsError

DIED = "guardian: the daemon died"
SECONDS = 1.0


def guardians(mounted: RealMount) -> list[int]:
    """The guardian processes of this test run whose parent is the daemon, or was."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
            parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if any(word.endswith(b"guardian_process.py") for word in words) and parent == mounted.pid:
            found.append(int(path.parent.name))
    return found


def await_end(pid: int, seconds: float) -> None:
    """Fails if the process has not ended after so many seconds; a zombie has."""
    began = time.monotonic()
    while True:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        assert time.monotonic() - began < seconds, "the guardian lives on"
        time.sleep(0.005)


@pytest.fixture
def served(new_mount: NewMount) -> RealMount:
    mounted = new_mount(cmk=OWN_CMK)
    mounted.expected_log = [DIED]
    return mounted


def all_dead(doors: Doors) -> None:
    """What a program gets from a mount without a daemon, and nothing else, wherever it tries."""
    assert set(doors.outcomes().values()) <= {"ENOTCONN", "SIGBUS"}
    assert outcome(lambda: os.stat(doors.top)) == "ENOTCONN"


def test_killed_daemon_leaves_nothing_readable(served: RealMount) -> None:
    with opened(served.path) as doors:
        os.pwrite(doors.written, b"d" * 65536, 0)  # dirty: no daemon is left to store it
        before = os.getcwd()
        os.chdir(served.path / "dir")
        try:
            (guardian,) = guardians(served)
            served.kill()
            await_end(guardian, SECONDS)
            all_dead(doors)
            assert outcome(lambda: os.listdir(".")) == "ENOTCONN"
            assert outcome(lambda: os.stat("file")) == "ENOTCONN"
            assert cached_pages(doors.mapping) == 0
        finally:
            os.chdir(before)
    served.site.cmkfs("umount", str(served.path))
    served.up()
    assert (served.path / "dir" / "file").read_bytes() == b"s" * SIZE


def test_killed_in_the_middle_of_a_lock(served: RealMount) -> None:
    """Its guardian is writing back dirty pages just then, which nobody stores any more. What was fsynced is stored."""
    with opened(served.path) as doors, ThreadPoolExecutor(1) as elsewhere:
        (guardian,) = guardians(served)
        written = os.readlink(f"/proc/self/fd/{doors.written}")
        os.pwrite(doors.written, b"f" * 100_000, 0)
        os.fsync(doors.written)
        os.pwrite(doors.written, b"d" * (32 << 20), 1 << 20)
        locking = elsewhere.submit(served.ask, "lock")
        while outcome(lambda: os.listdir(served.path)) == "ok":
            assert not locking.done()
        assert served.ask("status")["leases"] == 0
        served.kill()
        await_end(guardian, SECONDS)
        assert isinstance(locking.exception(), CmkfsError)  # it was not locked, and the command says so
        all_dead(doors)
    served.site.cmkfs("umount", str(served.path))
    served.up()
    assert (served.path / "dir" / "file").read_bytes() == b"s" * SIZE
    with open(written, "rb") as file:
        assert file.read(100_000) == b"f" * 100_000


def test_a_guardian_that_is_killed_has_a_successor(served: RealMount) -> None:
    served.expected_log += ["the guardian was killed", "lockdown: "]
    with opened(served.path) as doors:
        (first,) = guardians(served)
        os.kill(first, signal.SIGKILL)
        began = time.monotonic()
        while guardians(served) in ([], [first]):
            assert time.monotonic() - began < 10
            assert os.pread(doors.file, 10, 0) == b"s" * 10
        (second,) = guardians(served)
        served.site.cmkfs("lock", str(served.path))
        assert set(doors.outcomes().values()) == {"ENOKEY", "SIGBUS"}
        served.kill()
        await_end(second, SECONDS)
        assert outcome(lambda: os.pread(doors.file, 10, 0)) == "ENOTCONN"
    served.site.cmkfs("umount", str(served.path))
    served.up()


@pytest.mark.parametrize("way", ["umount", "sigterm", "lazy"])
def test_no_guardian_stays_behind(served: RealMount, way: str) -> None:
    (guardian,) = guardians(served)
    os.kill(guardian, signal.SIGTERM)  # as the end of a service sends it to all its processes
    if way == "umount":
        served.site.cmkfs("umount", str(served.path))
    elif way == "sigterm":
        os.kill(served.pid, signal.SIGTERM)
    else:
        served.site.cmkfs("umount", "--lazy", str(served.path))
    served.await_end()
    await_end(guardian, SECONDS)
    assert DIED not in served.log.read_text()


def test_a_guardian_has_no_key_no_environment_and_few_descriptors(served: RealMount) -> None:
    (guardian,) = guardians(served)
    assert Path(f"/proc/{guardian}/environ").read_bytes() == b""
    targets = [os.readlink(entry) for entry in Path(f"/proc/{guardian}/fd").iterdir()]
    kinds = sorted(target.partition(":")[0].partition(" ")[0] for target in targets if "/log/" not in target)
    assert kinds == ["/dev/fuse", "/dev/null", "/dev/null", "/memfd", "/memfd", "pipe", "pipe", "socket"]
    private = next(line for line in Path(f"/proc/{guardian}/status").read_text().splitlines() if "RssAnon" in line)
    assert int(private.split()[1]) < 8192


def test_an_ordinary_users_daemon_is_guarded_too(user_mount: RealMount) -> None:
    """No privilege is needed, and no fusectl."""
    user_mount.expected_log = [DIED]
    (guardian,) = guardians(user_mount)

    def program() -> tuple[dict[tuple[str, str], str], int]:
        with opened(user_mount.path) as doors:
            os.kill(user_mount.pid, signal.SIGKILL)
            await_end(guardian, SECONDS)
            return doors.outcomes(), cached_pages(doors.mapping)

    outcomes, pages = in_child(program, user_mount.site.who)
    assert set(outcomes.values()) == {"ENOTCONN", "SIGBUS"}
    assert pages == 0
    user_mount.await_end()
    user_mount.site.cmkfs("umount", str(user_mount.path))
    user_mount.up()

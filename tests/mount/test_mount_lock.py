"""Lock, disable and outage on real mounts: tried through every door that was open before, and back to work after."""

import contextlib
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from doors import SIZE, Doors, cached_pages, everything_works, opened, outcome
from real_mount import OWN_CMK, NewMount, RealMount, Site

LOCKED = "lockdown: (un)?locked"
TOKEN_TROUBLE = "the token does not answer|lockdown: "


def everything_is_refused(doors: Doors) -> None:
    """No way in is left but stat and statfs of the mount point, and no page of it is in the kernel's cache."""
    assert set(doors.outcomes().values()) == {"ENOKEY", "SIGBUS"}
    assert cached_pages(doors.mapping) == 0
    os.stat(doors.top)
    os.statvfs(doors.top)


@pytest.fixture
def served(new_mount: NewMount) -> RealMount:
    mounted = new_mount(cmk=OWN_CMK)
    mounted.expected_log = [LOCKED]
    return mounted


def test_lock_closes_every_door_and_unlock_opens_them(served: RealMount) -> None:
    with opened(served.path) as doors:
        served.site.cmkfs("lock", str(served.path))
        everything_is_refused(doors)
        served.site.cmkfs("status", str(served.path), codes=[4])
        served.site.cmkfs("unlock", str(served.path))
        everything_works(doors)


def test_enable_says_what_stays_locked(served: RealMount) -> None:
    served.site.cmkfs("lock", str(served.path))
    served.site.cmkfs("cmk", "disable", OWN_CMK)
    said = served.site.cmkfs("cmk", "enable", OWN_CMK)
    assert f"in force on {served.path}, which stays locked until cmkfs unlock {served.path}\n" in said
    served.site.cmkfs("unlock", str(served.path))


def test_disabled_from_another_process_shuts_within_the_bound(served: RealMount) -> None:
    with opened(served.path) as doors:
        served.site.cmkfs("cmk", "disable", OWN_CMK)
        try:
            everything_is_refused(doors)
            served.site.cmkfs("unlock", str(served.path), codes=[4])
            everything_is_refused(doors)
        finally:
            served.site.cmkfs("cmk", "enable", OWN_CMK)
        everything_works(doors)


@pytest.mark.alone
def test_disabled_behind_the_mounts_back_shuts_within_the_bound(served: RealMount) -> None:
    """Nobody tells the mount: its own watch must see what the token says. (Another host, say.)"""
    with opened(served.path) as doors:
        with served.site.nobody_is_told():
            served.site.cmkfs("cmk", "disable", OWN_CMK)
            disabled = time.monotonic()
            try:
                while outcome(lambda: os.pread(doors.file, 10, 0)) == "ok":
                    assert time.monotonic() - disabled < 1.5, "still readable after the revocation bound"
                everything_is_refused(doors)
            finally:
                served.site.cmkfs("cmk", "enable", OWN_CMK)
            enabled = time.monotonic()
            while outcome(lambda: os.pread(doors.file, 10, 0)) != "ok":
                assert time.monotonic() - enabled < 10
        everything_works(doors)


def test_lock_stores_dirty_pages_and_now_drops_them(served: RealMount) -> None:
    with opened(served.path) as doors:
        os.pwrite(doors.written, b"kept" * 100_000, 0)
        report = served.ask("lock")
        assert report["dropped_bytes"] == 0
        served.ask("unlock")
        assert os.pread(doors.written, 400_000, 0) == b"kept" * 100_000
        os.fsync(doors.written)
        os.pwrite(doors.written, b"lost" * 100_000, 0)
        report = served.ask("lock", now=True)
        served.ask("unlock")
        # What was dropped is told to the program that wrote it, once, at its next fsync or close.
        assert (outcome(lambda: os.fsync(doors.written)) != "ok") == (report["dropped_bytes"] > 0)
        content = os.pread(doors.written, 400_000, 0)
        lost = sum(content[at : at + 4096] == (b"kept" * 1024) for at in range(0, 400_000, 4096))
        assert report["dropped_bytes"] >= lost * 4096


def test_whole_pages_written_after_an_unlock_survive_the_next_lock(served: RealMount) -> None:
    """They reach the daemon only at the second lock; by then it must have the file's key again."""
    with opened(served.path) as doors:
        os.ftruncate(doors.written, 8192)
        served.ask("lock")
        served.ask("unlock")
        os.pwrite(doors.written, b"w" * 8192, 0)
        served.ask("lock")
        served.ask("unlock")
        assert os.pread(doors.written, 8192, 0) == b"w" * 8192


def test_caches_work_after_an_unlock_as_before(served: RealMount) -> None:
    with opened(served.path) as doors:
        served.ask("lock")
        served.ask("unlock")
        for _ in range(2):
            os.pread(doors.file, SIZE, 0)
            os.stat(served.path / "dir" / "file")
        before = served.ask("status")["requests"]
        for _ in range(100):
            assert os.pread(doors.file, SIZE, 0) == b"s" * SIZE
            os.stat(served.path / "dir" / "file")
        assert served.ask("status")["requests"] == before


def test_lock_and_unlock_say_what_was_so_already(served: RealMount) -> None:
    assert served.ask("lock")["was_locked"] is False
    assert served.ask("lock")["was_locked"] is True
    assert served.ask("unlock")["was_unlocked"] is False
    assert served.ask("unlock")["was_unlocked"] is True


def test_sigusr1_locks_and_stores(served: RealMount) -> None:
    with opened(served.path) as doors:
        os.pwrite(doors.written, b"kept" * 1000, 0)
        os.kill(served.pid, signal.SIGUSR1)
        began = time.monotonic()
        while outcome(lambda: os.pread(doors.file, 10, 0)) == "ok":
            assert time.monotonic() - began < 5
        assert served.ask("lock")["was_locked"] is True  # and it is complete
        everything_is_refused(doors)
        assert "SIGUSR1" in served.ask("status")["zones"][0]["reason"]
        served.ask("unlock")
        assert os.pread(doors.written, 4000, 0) == b"kept" * 1000


def test_lock_names_who_had_what_open(served: RealMount) -> None:
    with opened(served.path):
        found = served.ask("lock")["open"]
        assert {"uid": 0, "pid": os.getpid(), "path": "dir/file"} in found
        served.ask("unlock")


@pytest.mark.alone
def test_lock_under_load_is_complete_and_loses_no_acknowledged_write(served: RealMount) -> None:
    """Writers and readers at work: each fsynced record is there afterwards, and no read succeeds after the lock."""
    paths = [served.path / f"log{number}" for number in range(4)]
    synced: dict[Path, int] = dict.fromkeys(paths, 0)
    last_success: list[float] = []

    def work(path: Path) -> None:
        with contextlib.suppress(OSError), open(path, "ab", buffering=0) as log:
            for number in range(1_000_000):
                log.write(number.to_bytes(8, "big") * 64)
                os.fsync(log.fileno())
                synced[path] = number + 1
                with open(path, "rb") as reader:
                    reader.read(512)
                last_success.append(time.monotonic())

    workers = [threading.Thread(target=work, args=(path,)) for path in paths]
    for worker in workers:
        worker.start()
    while not all(synced.values()):
        assert any(worker.is_alive() for worker in workers)
    served.ask("lock")
    locked = time.monotonic()
    for worker in workers:
        worker.join(10)
    assert not any(worker.is_alive() for worker in workers)
    assert max(last_success) <= locked
    served.ask("unlock")
    for path, count in synced.items():
        content = path.read_bytes()
        assert content[: count * 512] == b"".join(number.to_bytes(8, "big") * 64 for number in range(count))


def test_unmounted_while_locked_and_mounted_again(served: RealMount) -> None:
    (served.path / "file").write_bytes(b"stored before")
    served.ask("lock")
    served.again()
    assert (served.path / "file").read_bytes() == b"stored before"
    assert served.ask("status")["recovered"] is None


@pytest.fixture
def lonely_mount() -> Iterator[RealMount]:
    """A mount whose token no other mount uses: it is taken away."""
    top = Path(tempfile.mkdtemp(prefix="cmkfs-test-"))
    try:
        site = Site(top)
        site.prepare()
        mounted = site.mount(site.new_vault(OWN_CMK), "outage_grace=3")
        mounted.expected_log = [TOKEN_TROUBLE]
        try:
            yield mounted
        finally:
            mounted.clear()
    finally:
        shutil.rmtree(top)


@pytest.mark.alone
def test_outage_goes_on_then_locks_then_comes_back(lonely_mount: RealMount) -> None:
    mounted = lonely_mount
    tokens = mounted.site.home.token_dir / "tokens"
    with opened(mounted.path) as doors:
        tokens.rename(tokens.with_name("away"))
        try:
            while mounted.ask("status")["token"]["healthy"]:
                assert os.pread(doors.file, 4, 0) == b"ssss"
            assert os.pread(doors.file, 4, 0) == b"ssss"
            gone = time.monotonic()
            while outcome(lambda: os.pread(doors.file, 4, 0)) == "ok":
                assert time.monotonic() - gone < 10
            assert time.monotonic() - gone > 1
            while "lockdown: locked" not in mounted.log.read_text():  # the first refusal is the lock's beginning
                assert time.monotonic() - gone < 10
            everything_is_refused(doors)
        finally:
            tokens.with_name("away").rename(tokens)
        back = time.monotonic()
        while outcome(lambda: os.pread(doors.file, 4, 0)) != "ok":
            assert time.monotonic() - back < 20
        everything_works(doors)

"""The life of a mount: numbers and content over remounts, death of the daemon, signals, busy, read-only."""

import errno
import os
import signal
from pathlib import Path

import pytest
from children import in_child
from real_mount import RealMount, Site


def _fill(top: Path, count: int = 40) -> None:
    for number in range(count):
        directory = top / f"d{number % 5}" / ("l" * (150 + number))
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "file").write_bytes(bytes([number]) * (number * 1000))
        (directory / "link").symlink_to("x" * (1 + number * 70))


def _look(top: Path, *, times: bool = True) -> dict[str, tuple[object, ...]]:
    seen: dict[str, tuple[object, ...]] = {}
    for place, directories, files in os.walk(top):
        for name in directories + files:
            path = os.path.join(place, name)
            found = os.lstat(path)
            what = os.readlink(path) if os.path.islink(path) else b""
            if os.path.isfile(path):
                what = Path(path).read_bytes()
            mtime = found.st_mtime_ns if times else 0
            seen[path] = (found.st_ino, found.st_mode, found.st_nlink, found.st_size, mtime, what)
    return seen


def _lstat_all(top: Path) -> dict[str, tuple[int, int, int]]:
    """mtime, ctime and size of everything, to see that nothing was touched."""
    seen = {}
    for place, directories, files in os.walk(top):
        for path in [place, *(os.path.join(place, name) for name in directories + files)]:
            found = os.lstat(path)
            seen[path] = (found.st_mtime_ns, found.st_ctime_ns, found.st_size)
    return seen


def test_numbers_and_everything_else_survive_a_remount(own_mount: RealMount) -> None:
    _fill(own_mount.path)
    before = _look(own_mount.path)
    for _ in range(2):
        own_mount.again()
        assert _look(own_mount.path) == before


def test_what_was_closed_survives_the_death_of_the_daemon(own_mount: RealMount) -> None:
    """And the next mount clears the dead one, settles, and says so.

    But for mtime, which then is when the data was stored: the kernel's was not there yet.
    """
    _fill(own_mount.path)
    before = _look(own_mount.path, times=False)
    own_mount.kill()
    with pytest.raises(OSError) as dead:
        os.listdir(own_mount.path)
    assert dead.value.errno == errno.ENOTCONN
    own_mount.up()
    assert own_mount.ask("status")["recovered"]
    assert _look(own_mount.path, times=False) == before
    own_mount.again()
    assert own_mount.ask("status")["recovered"] is None
    assert _look(own_mount.path, times=False) == before


def test_umount_clears_a_dead_mount(own_mount: RealMount) -> None:
    own_mount.kill()
    own_mount.site.cmkfs("umount", str(own_mount.path))
    assert not own_mount.mounted
    assert os.listdir(own_mount.path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_umount(own_mount: RealMount, number: signal.Signals) -> None:
    (own_mount.path / "file").write_bytes(b"content")
    os.kill(own_mount.pid, number)
    own_mount.await_end()
    assert not own_mount.mounted
    own_mount.up()
    assert own_mount.ask("status")["recovered"] is None
    assert (own_mount.path / "file").read_bytes() == b"content"


def test_a_busy_mount_stays_and_goes_on(own_mount: RealMount) -> None:
    with (own_mount.path / "file").open("wb") as file:
        said = own_mount.site.cmkfs("umount", str(own_mount.path), codes=(6,))
        assert "busy" in said
        assert str(os.getpid()) in said
        file.write(b"still written")
    assert (own_mount.path / "file").read_bytes() == b"still written"


def test_a_mount_that_was_detached_serves_until_the_last_file_is_closed(own_mount: RealMount) -> None:
    with (own_mount.path / "file").open("wb", buffering=0) as file:
        own_mount.site.cmkfs("umount", "--lazy", str(own_mount.path))
        assert not own_mount.mounted
        file.write(b"written after")
        os.fsync(file.fileno())
        assert "detached" in own_mount.site.cmkfs("status", str(own_mount.path), codes=(7,))
        for command in (["umount"], ["mount", str(own_mount.vault)]):
            said = own_mount.site.cmkfs(*command, str(own_mount.path), codes=(6,))
            assert "was detached, and programs still use what they had open there" in said
    own_mount.await_end()
    own_mount.up()
    assert (own_mount.path / "file").read_bytes() == b"written after"


def test_read_only_changes_nothing(own_mount: RealMount) -> None:
    _fill(own_mount.path, 8)
    os.setxattr(own_mount.path / "d0", "user.x", b"1")
    before = _look(own_mount.path)
    own_mount.down()
    below = _lstat_all(own_mount.vault)
    own_mount.up("ro")
    top = own_mount.path
    assert _look(top) == before
    assert os.getxattr(top / "d0", "user.x") == b"1"
    some = next(path for path in map(Path, before) if path.name == "file")
    for refused in (
        lambda: (top / "new").touch(),
        lambda: some.write_bytes(b""),
        lambda: os.truncate(some, 0),
        lambda: some.unlink(),
        lambda: os.utime(some),
        lambda: os.setxattr(some, "user.y", b"1"),
        lambda: os.mkdir(top / "new"),
        lambda: os.rename(some, top / "new"),
    ):
        with pytest.raises(OSError) as error:
            refused()
        assert error.value.errno == errno.EROFS
    own_mount.down()
    after = _lstat_all(own_mount.vault)
    assert set(after) == set(below)
    for path, facts in after.items():
        assert facts == below[path], path
    own_mount.up("rw")


def test_two_mounts_of_one_vault_are_refused(own_mount: RealMount, site: Site) -> None:
    second = site.directory("second")
    said = site.cmkfs("mount", str(own_mount.vault), str(second), codes=(6,))
    assert str(own_mount.pid) in said
    assert in_child(lambda: os.listdir(own_mount.path)) == []

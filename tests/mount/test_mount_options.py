"""Options as mount(8) and fstab have them: what they do, what a remount changes, and what it refuses to change."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from real_mount import REPOSITORY, NewMount, RealMount
from side_by_side import errno_name

SHIM = REPOSITORY / "scripts" / "mount.fuse.cmkfs"
OLD = 86_400 * 10**9
"""An access time of 1970: relatime moves it whenever something is read."""


_OF_THE_MOUNT_TABLE = "user_id=0,group_id=0,default_permissions,allow_other"
_FLAGS = {
    "ro": os.ST_RDONLY,
    "nosuid": os.ST_NOSUID,
    "nodev": os.ST_NODEV,
    "noexec": os.ST_NOEXEC,
    "noatime": os.ST_NOATIME,
}
_ENDED_BY = {"rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec", "atime": "noatime", "relatime": "noatime"}


def _merged(path: Path, words: list[str]) -> list[str]:
    """The flags that are on, but for those that a word ends; then the words that are not the default."""
    ended = {_ENDED_BY.get(word) for word in words}
    on = [name for name, flag in _FLAGS.items() if os.statvfs(path).f_flag & flag and name not in ended]
    given = [word for word in words if word not in _ENDED_BY and word != "diratime"]
    return [*([] if "ro" in on + given else ["rw"]), *on, *given]


@pytest.fixture(scope="module")
def helper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What /sbin/mount.fuse.cmkfs is to run: this checkout."""
    program = tmp_path_factory.mktemp("helper") / "cmkfs"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m cmkfs "$@"\n')
    program.chmod(0o755)
    return program


@pytest.fixture
def remount(helper: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`mount -o remount,OPTIONS MOUNTPOINT`: the helper with the words that mount(8) of Debian 12 makes of that."""

    def run(mounted: RealMount, options: str) -> subprocess.CompletedProcess[str]:
        words = ",".join(("remount", *_merged(mounted.path, options.split(",")), _OF_THE_MOUNT_TABLE))
        return subprocess.run(
            [SHIM, str(mounted.vault), str(mounted.path), "-o", words],
            env={**os.environ, "CMKFS_HOME": str(mounted.site.home.root), "CMKFS": str(helper)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def file(own_mount: RealMount) -> Path:
    """A program on a mount."""
    path = own_mount.path / "file"
    path.write_text("#!/bin/sh\nexit 0\n")
    path.chmod(0o755)
    return path


Remount = Callable[[RealMount, str], subprocess.CompletedProcess[str]]


def done(ran: subprocess.CompletedProcess[str]) -> None:
    """It worked and said nothing, as mount(8) does."""
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_read_only_and_back(own_mount: RealMount, file: Path, remount: Remount) -> None:
    before = file.read_text()
    done(remount(own_mount, "ro"))
    assert os.statvfs(file).f_flag & os.ST_RDONLY
    for change in (
        lambda: file.write_text("new"),
        lambda: file.chmod(0o600),
        lambda: os.utime(file),
        lambda: file.unlink(),
        lambda: (own_mount.path / "new").mkdir(),
        lambda: os.setxattr(file, "user.x", b""),
    ):
        assert errno_name(change) == "EROFS"
    assert file.read_text() == before
    done(remount(own_mount, "rw"))
    file.write_text("new")
    own_mount.again()
    assert file.read_text() == "new"


def test_what_is_open_for_writing_keeps_it_from_becoming_read_only(
    own_mount: RealMount, file: Path, remount: Remount
) -> None:
    with file.open("r+b"):
        ran = remount(own_mount, "ro")
    assert ran.returncode == 6
    assert "open for writing" in ran.stderr
    file.write_text("still")


def test_what_was_mounted_read_only_stays_so(new_mount: NewMount, remount: Remount) -> None:
    mounted = new_mount("allow_other")
    (mounted.path / "file").write_text("x")
    mounted.again("ro", "allow_other")
    ran = remount(mounted, "rw")
    assert ran.returncode == 2
    assert "mounted read-only" in ran.stderr
    assert os.statvfs(mounted.path).f_flag & os.ST_RDONLY
    done(remount(mounted, "noexec"))


@pytest.mark.parametrize("word", ["acl", "noxattr", "idle=5", "revocation_bound=3", "outage_grace=1"])
def test_what_cannot_change_is_named(shared_mount: RealMount, remount: Remount, word: str) -> None:
    ran = remount(shared_mount, f"ro,{word}")
    assert ran.returncode == 2
    assert f"{word!r} cannot change while the vault is mounted" in ran.stderr
    assert not os.statvfs(shared_mount.path).f_flag & os.ST_RDONLY


def _atime_moves(read: Callable[[], object], path: Path) -> bool:
    """By reading what the kernel has not cached."""
    os.utime(path, ns=(OLD, path.stat().st_mtime_ns))
    read()
    return path.stat().st_atime_ns != OLD


def _read_anew(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.read(fd, 100)
    finally:
        os.close(fd)


def test_access_times(own_mount: RealMount, file: Path, remount: Remount) -> None:
    directory = own_mount.path / "directory"
    directory.mkdir()
    keep = os.open(file, os.O_RDONLY)  # what is open already is to follow, too
    told = []
    for options in ("relatime", "noatime", "atime", "nodiratime", "diratime,strictatime"):
        done(remount(own_mount, options))
        told.append(
            (_atime_moves(lambda: _read_anew(file), file), _atime_moves(lambda: os.listdir(directory), directory))
        )
    os.close(keep)
    assert told == [(True, True), (False, False), (True, True), (True, False), (True, True)]


def test_access_times_from_the_beginning(own_mount: RealMount, file: Path) -> None:
    own_mount.again("allow_other", "noatime")
    assert os.statvfs(file).f_flag & os.ST_NOATIME
    assert not _atime_moves(lambda: _read_anew(file), file)
    assert not _atime_moves(lambda: os.listdir(own_mount.path), own_mount.path)
    new = own_mount.path / "new"
    new.write_bytes(b"content")
    assert not _atime_moves(lambda: _read_anew(new), new)


def test_programs_and_devices(new_mount: NewMount, remount: Remount) -> None:
    """exec, suid and dev, each taken and given."""
    mounted = new_mount("allow_other")
    program, device = mounted.path / "true", mounted.path / "null"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o4755)
    os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))

    def told() -> tuple[str, str, bool]:
        run = errno_name(lambda: subprocess.run([program], check=True))
        opened = errno_name(lambda: os.close(os.open(device, os.O_RDONLY)))
        return run, opened, bool(os.statvfs(device).f_flag & os.ST_NOSUID)

    assert told() == ("done", "EACCES", True)
    done(remount(mounted, "noexec,dev,suid"))
    assert told() == ("EACCES", "done", False)
    done(remount(mounted, "exec,nodev,nosuid"))
    assert told() == ("done", "EACCES", True)


def test_umount_and_mount_again_at_once(own_mount: RealMount) -> None:
    """As scripts do with umount(8), which returns while the daemon still stores: the mount waits for it."""
    for number in range(3000):  # so many take the daemon longer to settle than a command takes to begin
        (own_mount.path / f"file {number}").write_bytes(b"x")
    own_mount.check()
    subprocess.run(["umount", str(own_mount.path)], check=True)
    said = own_mount.site.cmkfs("mount", str(own_mount.vault), str(own_mount.path), "--json")
    own_mount.await_end()
    own_mount.adopt(json.loads(said.splitlines()[0])["pid"])
    assert (own_mount.path / "file 2999").read_bytes() == b"x"


def test_of_a_mount_that_is_not_there(shared_mount: RealMount) -> None:
    said = shared_mount.site.cmkfs(
        "mount", "-o", "remount,ro", str(shared_mount.vault), str(shared_mount.site.top / "nowhere"), codes=(7,)
    )
    assert "nothing of cmkfs is mounted" in said

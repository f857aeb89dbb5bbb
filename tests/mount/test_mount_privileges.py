"""What the three processes of a mount may do, and what others see of them: the daemon, the token's, the guardian.

Of root's mount all three have no_new_privs; a daemon that is not root's cannot, since it unmounts by fusermount3.
"""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import ALICE, in_child
from real_mount import RealMount, processes_of


@pytest.fixture(params=["root", "user"])
def mounted(request: pytest.FixtureRequest) -> RealMount:
    """A mount of root, and one of an ordinary user."""
    found: RealMount = request.getfixturevalue("shared_mount" if request.param == "root" else "user_mount")
    return found


def status(pid: int, field: str) -> str:
    """proc_pid_status(5)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{field}:"))


def test_no_process_gains_privileges(mounted: RealMount) -> None:
    found = {what: status(pid, "NoNewPrivs") for what, pid in processes_of(mounted.pid).items()}
    assert found == {"daemon": "0" if mounted.site.who else "1", "token": "1", "guardian": "1"}


def test_no_process_leaves_a_core(mounted: RealMount) -> None:
    for what, pid in processes_of(mounted.pid).items():
        (limit,) = [
            line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith("Max core")
        ]
        assert limit.split()[4:6] == ["0", "0"], what


def test_who_mounted_cannot_look_into_the_processes(user_mount: RealMount) -> None:
    """Not dumpable (prctl(2)): neither a debugger, nor a core through a pipe, which no limit stops."""
    who = user_mount.site.who
    assert who is not None
    for what, pid in processes_of(user_mount.pid).items():
        assert status(pid, "Uid") == str(who.uid)
        for name in ("mem", "environ", "maps", "fd"):
            path = Path(f"/proc/{pid}/{name}")
            assert path.stat().st_uid == 0, (what, name)
            with pytest.raises(PermissionError):
                in_child(lambda path=path: os.listdir(path) if path.is_dir() else path.read_bytes()[:1], who)  # type: ignore[misc]


def _below(top: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for place, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = Path(place, name)
            yield path, path.lstat()


def test_sockets_and_token_are_for_nobody_else(mounted: RealMount) -> None:
    home = mounted.site.home
    assert home.root is not None
    private = [home.root, home.token_dir, home.token_dir / "tokens", home.mounts_dir, home.log_dir, home.audit_dir]
    assert {path: stat.S_IMODE(path.stat().st_mode) for path in private} == dict.fromkeys(private, 0o700)
    assert stat.S_IMODE((home.token_dir / "pin").stat().st_mode) == 0o600
    for path, found in _below(home.token_dir):
        assert not found.st_mode & 0o077, path
    (control,) = [
        path for path in home.mounts_dir.glob("*.sock") if str(mounted.path) in path.with_suffix(".json").read_text()
    ]

    def connect() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(control))

    connect()
    with pytest.raises(PermissionError):
        in_child(connect, ALICE)


def test_what_the_daemon_makes_for_itself_nobody_else_can_write(mounted: RealMount) -> None:
    """Its umask is 0, because the modes of users' files are theirs: what is its own has a mode that says so."""
    assert status(mounted.pid, "Umask") == "0000"
    own = [path for path in mounted.vault.iterdir() if path.name.startswith("cmkfs.") and not path.is_symlink()]
    assert {"cmkfs.owner", "cmkfs.session", "cmkfs.vault"} <= {path.name for path in own}
    home = mounted.site.home.root
    assert home is not None
    made = [(path, path.stat()) for path in own] + [
        (path, found) for path, found in _below(home) if stat.S_ISREG(found.st_mode)
    ]
    assert not [path for path, found in made if found.st_mode & 0o022]


def test_no_attribute_of_a_mount_makes_it_dump_its_stacks(shared_mount: RealMount) -> None:
    """As `fuse_stacktrace` did in pyfuse3, for whoever could set an attribute of the mount point."""
    with pytest.raises(OSError) as refused:
        os.setxattr(shared_mount.path, "fuse_stacktrace", b"1")
    assert refused.value.errno == errno.EOPNOTSUPP
    shared_mount.check()

"""What the next mount does after a daemon was killed, a host died or a copy was taken of a vault at work."""

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from real_mount import OWN_CMK, NewMount, RealMount


@pytest.fixture
def killed(new_mount: NewMount) -> RealMount:
    """A mount whose daemon was killed with files written, closed, open, renamed and emptied."""
    mounted = new_mount(cmk=OWN_CMK)
    _work(mounted.path)
    mounted.kill()
    return mounted


def _work(top: Path) -> None:
    (top / "dir").mkdir()
    (top / "closed").write_bytes(b"c" * 100_000)
    (top / "dir" / ("long" * 60)).write_bytes(b"long name")
    (top / "sparse").touch()
    os.truncate(top / "sparse", 1 << 30)
    with open(top / "sparse", "r+b") as file:
        file.seek(500_000_000)
        file.write(b"middle")
    (top / "short").write_bytes(b"s" * 50_000)
    os.truncate(top / "short", 3)
    (top / "emptied").write_bytes(b"gone")
    (top / "emptied").write_bytes(b"")
    (top / "before").write_bytes(b"renamed")
    os.rename(top / "before", top / "after")
    os.symlink("closed", top / "link")


def _is_all_there(top: Path) -> None:
    assert sorted(os.listdir(top)) == ["after", "closed", "dir", "emptied", "link", "short", "sparse"]
    assert (top / "link").read_bytes() == b"c" * 100_000
    assert (top / "dir" / ("long" * 60)).read_bytes() == b"long name"
    assert (top / "short").read_bytes() == b"sss"
    assert (top / "emptied").read_bytes() == b""
    assert (top / "after").read_bytes() == b"renamed"
    with open(top / "sparse", "rb") as file:
        assert os.fstat(file.fileno()).st_size == 1 << 30
        file.seek(499_999_990)
        assert file.read(30) == bytes(10) + b"middle" + bytes(14)


def test_killed_daemon_leaves_a_dead_mount_point_and_not_a_plain_directory(killed: RealMount) -> None:
    with pytest.raises(OSError) as caught:
        os.listdir(killed.path)
    assert caught.value.errno == errno.ENOTCONN
    with pytest.raises(OSError) as caught:
        (killed.path / "file").write_bytes(b"lost?")
    assert caught.value.errno == errno.ENOTCONN
    killed.site.cmkfs("umount", str(killed.path))


def test_next_mount_clears_it_recovers_and_says_so(killed: RealMount) -> None:
    said = json.loads(killed.site.cmkfs("mount", str(killed.vault), str(killed.path), "--json").splitlines()[0])
    assert said["recovered"]["files_settled"] >= 5
    assert said["recovered"]["unreadable"] == []
    _is_all_there(killed.path)
    killed.site.cmkfs("umount", str(killed.path))
    killed.up()
    assert killed.ask("status")["recovered"] is None
    _is_all_there(killed.path)


def test_killed_again_while_it_recovers_nothing_is_lost(killed: RealMount) -> None:
    for _ in range(3):
        killed.up()
        _is_all_there(killed.path)
        killed.kill()
    killed.up()
    _is_all_there(killed.path)


def test_read_only_mount_of_an_unclean_vault_changes_nothing(killed: RealMount) -> None:
    killed.site.cmkfs("umount", str(killed.path))
    before = _fingerprint(killed.vault)
    killed.up("ro")
    _is_all_there(killed.path)
    with pytest.raises(OSError) as caught:
        (killed.path / "new").touch()
    assert caught.value.errno == errno.EROFS
    killed.down()
    assert _fingerprint(killed.vault) == before
    killed.up()
    _is_all_there(killed.path)


def _fingerprint(vault: Path) -> dict[str, tuple[int, int, bytes]]:
    found = {}
    for top, _, files in os.walk(vault):
        for name in files:
            path = Path(top, name)
            status = path.lstat()
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()[:5_000_000]
            found[str(path)] = (status.st_size, status.st_mtime_ns, content)
    return found


def test_read_only_backing_is_mounted_only_read_only(new_mount: NewMount) -> None:
    mounted = new_mount(cmk=OWN_CMK)
    mounted.expected_log = ["read-only filesystem"]
    _work(mounted.path)
    mounted.down()
    subprocess.run(["mount", "--bind", str(mounted.vault), str(mounted.vault)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(mounted.vault)], check=True)
    try:
        said = mounted.site.cmkfs("mount", str(mounted.vault), str(mounted.path), codes=[1])
        assert "read-only" in said
        mounted.up("ro")
        _is_all_there(mounted.path)
        mounted.down()
    finally:
        subprocess.run(["umount", str(mounted.vault)], check=True)
    mounted.up()


def test_second_mount_is_refused_and_says_by_whom(new_mount: NewMount) -> None:
    mounted = new_mount(cmk=OWN_CMK)
    second = mounted.site.directory(f"second-{mounted.vault.name}")
    said = mounted.site.cmkfs("mount", str(mounted.vault), str(second), codes=[6])
    assert str(mounted.pid) in said
    assert os.uname().nodename in said


def test_vault_of_a_host_that_died_needs_break_lock(killed: RealMount) -> None:
    killed.site.cmkfs("umount", str(killed.path))
    killed.expected_log.append("is mounted by pid")
    owner = killed.vault / "cmkfs.owner"
    facts = json.loads(owner.read_text())
    owner.write_text(json.dumps({**facts, "host": "elsewhere/0123"}))
    said = killed.site.cmkfs("mount", str(killed.vault), str(killed.path), codes=[6])
    assert "elsewhere" in said
    assert "--break-lock" in said
    killed.site.cmkfs("mount", str(killed.vault), str(killed.path), "--break-lock")
    _is_all_there(killed.path)
    killed.site.cmkfs("umount", str(killed.path))
    killed.up()


def test_copy_taken_while_at_work_opens_too(new_mount: NewMount) -> None:
    mounted = new_mount(cmk=OWN_CMK)
    _work(mounted.path)
    copy = mounted.vault.with_name("v-copy")
    shutil.copytree(mounted.vault, copy, symlinks=True)
    mounted.down()
    shutil.rmtree(mounted.vault)
    copy.rename(mounted.vault)
    mounted.up()
    _is_all_there(mounted.path)


def test_leftovers_of_a_crash_are_swept(killed: RealMount) -> None:
    killed.site.cmkfs("umount", str(killed.path))
    (killed.vault / "cmkfs.tmp.half-made").mkdir()
    (killed.vault / "cmkfs.gone.half-removed").mkdir()
    os.symlink("x", killed.vault / "cmkfs.gone.half-removed" / "cmkfs.dir")
    os.symlink("orphan", killed.vault / "cmkfs.long.orphan")
    killed.up()
    assert killed.ask("status")["recovered"]["leftovers_removed"] == 3
    assert not [name for name in os.listdir(killed.vault) if name.startswith(("cmkfs.tmp", "cmkfs.gone", "cmkfs.long"))]


def test_file_without_a_header_is_empty_after_a_crash_and_damage_otherwise(killed: RealMount) -> None:
    killed.site.cmkfs("umount", str(killed.path))
    victim = max(
        (path for path in killed.vault.iterdir() if path.is_file() and not path.name.startswith("cmkfs.")),
        key=lambda path: path.stat().st_size if path.stat().st_size < 200_000 else 0,
    )
    with open(victim, "r+b") as file:
        file.truncate(0)
    killed.up()
    assert killed.ask("status")["recovered"]["files_emptied"] == 1
    assert (killed.path / "closed").read_bytes() == b""
    killed.down()
    with open(victim, "r+b") as file:
        file.truncate(0)
    killed.expected_log.append("open: ")
    killed.up()
    with pytest.raises(OSError) as caught:
        (killed.path / "closed").read_bytes()
    assert caught.value.errno == errno.EIO

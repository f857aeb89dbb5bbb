"""Hard links, symlinks, fifos, sockets and devices."""

import ctypes
import os
import socket
import stat
from pathlib import Path

import pytest
from children import ALICE, Child, in_child
from real_mount import RealMount
from side_by_side import SideBySide

AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400


def test_all_names_of_a_file_are_one_file(both: SideBySide) -> None:
    def story(place: Path) -> list[object]:
        (place / "d").mkdir()
        (place / "a").write_bytes(b"first")
        os.link(place / "a", place / "b")
        os.link(place / "b", place / "d" / ("l" * 255))
        seen: list[object] = [os.stat(place / "a").st_nlink, os.stat(place / "a").st_ino == os.stat(place / "b").st_ino]
        with (place / "b").open("ab") as file:
            file.write(b" more")
        os.chmod(place / "d" / ("l" * 255), 0o600)
        os.unlink(place / "a")
        seen += [(place / "d" / ("l" * 255)).read_bytes(), os.stat(place / "b").st_nlink]
        os.rename(place / "b", place / "c")
        os.unlink(place / "d" / ("l" * 255))
        return [*seen, (place / "c").read_bytes(), os.stat(place / "c").st_nlink, oct(os.stat(place / "c").st_mode)]

    both.same(story)
    both.same_trees()


@pytest.mark.parametrize("opened", [True, False])
def test_names_that_the_mount_has_not_seen_since_it_began(own_mount: RealMount, opened: bool) -> None:
    """The name that it knows goes, the file stays under one that it does not know."""
    (own_mount.path / "known").write_bytes(b"content")
    os.link(own_mount.path / "known", own_mount.path / "unknown")
    own_mount.again()
    fd = os.open(own_mount.path / "known", os.O_RDONLY if opened else os.O_PATH)
    try:
        os.unlink(own_mount.path / "known")
        assert os.fstat(fd).st_nlink == 1
        os.chmod(f"/proc/self/fd/{fd}", 0o640)
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        os.write(again, b"CON")
        os.close(again)
    finally:
        os.close(fd)
    assert (own_mount.path / "unknown").read_bytes() == b"CONtent"
    assert (own_mount.path / "unknown").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("kind", ["file", "fifo", "socket", "symlink", "directory"])
def test_a_node_without_a_name_that_is_held_by_a_path_descriptor(both: SideBySide, kind: str) -> None:
    def story(place: Path) -> list[object]:
        path = place / kind
        if kind == "file":
            path.write_bytes(b"x" * 5000)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            os.mknod(path, stat.S_IFSOCK | 0o644)
        elif kind == "symlink":
            path.symlink_to("target")
        else:
            path.mkdir()
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            (os.rmdir if kind == "directory" else os.unlink)(path)
            found = os.fstat(fd)
            seen: list[object] = [oct(found.st_mode), found.st_nlink]
            if kind == "symlink":
                seen += [found.st_size, os.readlink("", dir_fd=fd)]
            if kind == "file":
                seen.append(Path(f"/proc/self/fd/{fd}").read_bytes())
            if kind != "symlink":
                os.chmod(f"/proc/self/fd/{fd}", 0o600)
                seen.append(oct(os.fstat(fd).st_mode))
            return seen
        finally:
            os.close(fd)

    both.same(story)


def test_a_link_to_what_has_no_name_is_refused(both: SideBySide) -> None:
    def story(place: Path) -> None:
        fd = os.open(place / "file", os.O_RDWR | os.O_CREAT)
        try:
            os.unlink(place / "file")
            source, target = f"/proc/self/fd/{fd}".encode(), os.fsencode(place / "again")
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.linkat(AT_FDCWD, source, AT_FDCWD, target, AT_SYMLINK_FOLLOW):
                raise OSError(ctypes.get_errno(), "linkat")
        finally:
            os.close(fd)

    assert both.same(story) == "ENOENT"


@pytest.mark.parametrize("length", [1, 2, 15, 16, 100, 700, 717, 718, 719, 750, 1000, 1023, 1024, 2000, 4094, 4095])
def test_symlink_targets_of_every_length(work: Path, length: int) -> None:
    target = bytes(1 + (number * 7 + length) % 255 for number in range(length)).replace(b"/", b"x")
    os.symlink(target, os.fsencode(work / "link"))
    assert os.readlink(os.fsencode(work / "link")) == target
    assert os.lstat(work / "link").st_size == length
    os.rename(work / "link", work / "moved")
    os.link(work / "moved", work / "hard", follow_symlinks=False)
    os.unlink(work / "moved")
    assert os.readlink(os.fsencode(work / "hard")) == target
    assert os.lstat(work / "hard").st_nlink == 1


def test_parts_of_long_targets_go_with_the_last_link(own_mount: RealMount) -> None:
    links = own_mount.vault / "cmkfs.links"
    for number in range(4):
        os.symlink("t" * 4095, own_mount.path / f"link {number}")
    assert len(os.listdir(links)) > 4
    own_mount.again()
    assert all(len(os.readlink(own_mount.path / f"link {number}")) == 4095 for number in range(4))
    os.link(own_mount.path / "link 0", own_mount.path / "hard", follow_symlinks=False)
    os.unlink(own_mount.path / "link 0")
    assert len(os.readlink(own_mount.path / "hard")) == 4095
    (own_mount.path / "file").touch()
    os.rename(own_mount.path / "file", own_mount.path / "hard")
    os.rename(own_mount.path / "link 1", own_mount.path / "link 2")
    os.unlink(own_mount.path / "link 2")
    os.unlink(own_mount.path / "link 3")
    assert os.listdir(links) == []


def test_a_target_that_is_too_long_is_refused(both: SideBySide) -> None:
    assert both.same(lambda place: os.symlink("x" * 4096, place / "link")) == "ENAMETOOLONG"
    assert both.same(os.listdir) == []


def test_symlinks_lead_where_they_say(both: SideBySide) -> None:
    def story(place: Path) -> list[object]:
        (place / "d").mkdir()
        (place / "d" / "file").write_text("content")
        (place / "relative").symlink_to("d/file")
        (place / "absolute").symlink_to(place / "d" / "file")
        (place / "directory").symlink_to("d")
        (place / "bytes").symlink_to(os.fsdecode(b"\xff\xfe\n"))
        seen: list[object] = [(place / name).read_text() for name in ("relative", "absolute", "directory/file")]
        os.lchown(place / "relative", ALICE.uid, ALICE.gid)
        os.utime(place / "relative", ns=(11, 12), follow_symlinks=False)
        found = os.lstat(place / "relative")
        seen += [found.st_uid, found.st_gid, found.st_mtime_ns, oct(found.st_mode)]
        return [*seen, (place / "d" / "file").stat().st_uid, os.fsencode(os.readlink(place / "bytes"))]

    both.same(story)


def test_a_fifo_connects_two_processes(work: Path) -> None:
    os.mkfifo(work / "fifo")
    reader = Child((work / "fifo").read_bytes)
    writer = Child(lambda: (work / "fifo").write_bytes(b"through the pipe"))
    reader.go()
    writer.go()
    assert (reader.result(), writer.result()) == (b"through the pipe", 16)


def test_a_socket_connects_two_processes(work: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(work / "socket"))
        server.listen()
        assert stat.S_ISSOCK(os.stat(work / "socket").st_mode)

        def talk() -> bytes:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(work / "socket"))
                client.sendall(b"hello")
                return client.recv(10)

        child = Child(talk)
        child.go()
        connection, _ = server.accept()
        with connection:
            assert connection.recv(10) == b"hello"
            connection.sendall(b"back")
        assert child.result() == b"back"


def test_devices_by_root_only_and_usable_where_asked_for(both: SideBySide) -> None:
    for name, kind, number in (("null", stat.S_IFCHR, os.makedev(1, 3)), ("loop", stat.S_IFBLK, os.makedev(7, 99))):
        both.same(lambda place: os.mknod(place / name, kind | 0o666, number))  # noqa: B023 - called at once
        refused = both.same(lambda place: os.mknod(place / "no", kind | 0o666, number), ALICE)  # noqa: B023
        assert refused == "EPERM"
    both.same_trees()
    both.same(lambda place: os.chmod(place / "null", 0o666))
    assert both.same(lambda place: (place / "null").write_bytes(b"x")) == 1  # the shared mount has the option dev


def test_devices_and_setuid_programs_do_nothing_unless_asked_for(own_mount: RealMount) -> None:
    os.mknod(own_mount.path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with pytest.raises(PermissionError):
        (own_mount.path / "null").read_bytes()
    assert os.statvfs(own_mount.path).f_flag & os.ST_NOSUID
    assert os.statvfs(own_mount.path).f_flag & os.ST_NODEV
    assert in_child(lambda: os.stat(own_mount.path / "null").st_rdev, ALICE) == os.makedev(1, 3)

"""What processes do with files: run, lock, watch and copy them; the same on the mount and on ext4."""

import ctypes
import errno
import fcntl
import mmap
import os
import select
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from children import ALICE, in_child
from real_mount import RealMount
from side_by_side import SideBySide

F_OFD_GETLK, F_OFD_SETLK = 36, 37  # linux/fcntl.h
_libc = ctypes.CDLL(None, use_errno=True)
_FLOCK = struct.Struct("hhqqi")


def _lock(fd: int, command: int, kind: int, start: int = 0, length: int = 0) -> tuple[int, int, int]:
    """A record lock: its kind, start and length as the kernel answers."""
    answer = fcntl.fcntl(fd, command, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    kind, _, start, length, _ = _FLOCK.unpack(answer[: _FLOCK.size])
    return kind, start, length


def _outcome(call: Callable[[], object]) -> object:
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


# -- programs ----------------------------------------------------------------------------------------


def test_a_running_program_cannot_be_written_nor_one_that_is_written_be_run(both: SideBySide) -> None:
    def story(place: Path) -> list[object]:
        program = place / "program"
        shutil.copy("/bin/sleep", program)
        with subprocess.Popen([program, "60"]) as running:
            try:
                told = [
                    _outcome(lambda: os.open(program, os.O_WRONLY)),
                    _outcome(lambda: os.open(program, os.O_RDWR | os.O_TRUNC)),
                    _outcome(lambda: os.truncate(program, 0)),
                    _outcome(lambda: os.rename(program, place / "moved")),
                    _outcome(lambda: os.unlink(place / "moved")),
                ]
                assert running.poll() is None
            finally:
                running.kill()
        shutil.copy("/bin/true", program)
        with program.open("r+b"):
            told.append(_outcome(lambda: subprocess.run([program], check=True).returncode))
        told.append(_outcome(lambda: subprocess.run([program], check=True).returncode))
        return told

    assert both.same(story) == ["ETXTBSY", "ETXTBSY", "ETXTBSY", None, None, "ETXTBSY", 0]


@pytest.mark.parametrize("mode", [0o755, 0o711, 0o644, 0o744, 0o555, 0o111])
def test_who_may_run_a_program(both: SideBySide, mode: int) -> None:
    def prepare(place: Path) -> None:
        shutil.copy("/bin/true", place / "binary")
        (place / "script").write_text("#!/bin/sh\nexit 3\n")
        for name in ("binary", "script"):
            (place / name).chmod(mode)

    def run(place: Path) -> list[object]:
        names = ("binary", "script")
        return [_outcome(lambda name=name: subprocess.run([place / name]).returncode) for name in names]  # type: ignore[misc]

    both.same(prepare)
    both.same(run)
    both.same(run, ALICE)


# -- locks -------------------------------------------------------------------------------------------


def test_locks_of_open_file_descriptions(both: SideBySide) -> None:
    """They conflict within a process, outlive a dup's close, and go with the last descriptor (fcntl(2))."""

    def story(place: Path) -> list[object]:
        (place / "file").write_bytes(b"x" * 100)
        first, second = (os.open(place / "file", os.O_RDWR) for _ in range(2))
        told: list[object] = [
            _outcome(lambda: _lock(first, F_OFD_SETLK, fcntl.F_WRLCK, 10, 20)),
            _outcome(lambda: _lock(second, F_OFD_SETLK, fcntl.F_RDLCK, 15, 1)),
            _outcome(lambda: _lock(second, F_OFD_SETLK, fcntl.F_WRLCK, 30, 1)),
            _outcome(lambda: _lock(second, F_OFD_GETLK, fcntl.F_RDLCK, 0, 0)),
            _outcome(lambda: in_child(lambda: _lock(second, F_OFD_SETLK, fcntl.F_RDLCK, 12, 1))),
            _outcome(lambda: _lock(first, fcntl.F_SETLK, fcntl.F_WRLCK, 12, 1)),
        ]
        os.close(os.dup(first))
        told.append(_outcome(lambda: _lock(second, F_OFD_SETLK, fcntl.F_RDLCK, 15, 1)))
        os.close(first)
        told.append(_outcome(lambda: _lock(second, F_OFD_SETLK, fcntl.F_WRLCK, 0, 0)))
        os.close(second)
        return told

    told = both.same(story)
    assert told[1] == told[6] == "EAGAIN"
    assert told[7] != "EAGAIN"


def test_record_locks_of_processes(both: SideBySide) -> None:
    """Split and merged by range, gone with any close of the file by the process."""

    def story(place: Path) -> list[object]:
        (place / "file").write_bytes(b"x" * 100)
        fd = os.open(place / "file", os.O_RDWR)

        def other(kind: int, start: int, length: int) -> object:
            return _outcome(lambda: in_child(lambda: _lock(fd, fcntl.F_SETLK, kind, start, length)))

        _lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 50)
        _lock(fd, fcntl.F_SETLK, fcntl.F_UNLCK, 20, 10)
        _lock(fd, fcntl.F_SETLK, fcntl.F_RDLCK, 40, 0)
        told = [other(fcntl.F_RDLCK, at, 1) for at in (0, 19, 20, 29, 30, 40, 500)]
        told += [other(fcntl.F_WRLCK, at, 1) for at in (19, 25, 45, 500)]
        told.append(in_child(lambda: _lock(fd, fcntl.F_GETLK, fcntl.F_WRLCK, 0, 0)))
        os.close(os.open(place / "file", os.O_RDONLY))
        told.append(other(fcntl.F_WRLCK, 0, 0))
        read_only = os.open(place / "file", os.O_RDONLY)
        told.append(_outcome(lambda: _lock(read_only, fcntl.F_SETLK, fcntl.F_WRLCK)))
        os.close(read_only)
        os.close(fd)
        return told

    both.same(story)


def test_flock(both: SideBySide) -> None:
    def story(place: Path) -> list[object]:
        (place / "file").touch()
        first, second = (os.open(place / "file", os.O_RDONLY) for _ in range(2))
        told: list[object] = []
        for fd, how in (
            (first, fcntl.LOCK_SH),
            (second, fcntl.LOCK_SH),
            (first, fcntl.LOCK_EX),
            (second, fcntl.LOCK_UN),
            (first, fcntl.LOCK_EX),
            (second, fcntl.LOCK_SH),
        ):
            told.append(_outcome(lambda fd=fd, how=how: fcntl.flock(fd, how | fcntl.LOCK_NB)))  # type: ignore[misc]
        os.close(first)
        told.append(_outcome(lambda: fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)))
        os.close(second)
        directory = os.open(place, os.O_RDONLY)
        told.append(_outcome(lambda: fcntl.flock(directory, fcntl.LOCK_EX)))
        os.close(directory)
        return told

    both.same(story)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
@pytest.mark.parametrize("kind", [fcntl.F_RDLCK, fcntl.F_WRLCK])
def test_leases(both: SideBySide, flags: int, kind: int) -> None:
    def story(place: Path) -> list[object]:
        (place / "file").touch()
        fd = os.open(place / "file", flags)
        try:
            told = [_outcome(lambda: fcntl.fcntl(fd, fcntl.F_SETLEASE, kind))]
            return [*told, fcntl.fcntl(fd, fcntl.F_GETLEASE)]
        finally:
            os.close(fd)

    both.same(story)


# -- watching ----------------------------------------------------------------------------------------

_EVENT = struct.Struct("iIII")
IN_ALL_EVENTS = 0xFFF


def _watched(place: Path, act: Callable[[], object]) -> list[tuple[int, str]]:
    """What inotify(7) tells of a directory and a file in it while `act` runs: masks and names."""
    (place / "file").write_bytes(b"content")
    fd = _libc.inotify_init1(os.O_NONBLOCK)
    try:
        for path in (place, place / "file"):
            assert _libc.inotify_add_watch(fd, os.fsencode(path), IN_ALL_EVENTS) >= 0
        act()
        told = []
        while select.select([fd], [], [], 0)[0]:
            data, at = os.read(fd, 65_536), 0
            while at < len(data):
                _, mask, _, length = _EVENT.unpack_from(data, at)
                name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
                told.append((mask, os.fsdecode(name)))
                at += _EVENT.size + length
        return told
    finally:
        os.close(fd)


def test_inotify_tells_of_everything(both: SideBySide) -> None:
    def write(path: Path) -> None:
        with path.open("ab") as file:
            file.write(b"more")

    acts: dict[str, Callable[[Path], object]] = {
        "read": lambda place: (place / "file").read_bytes(),
        "write": lambda place: write(place / "file"),
        "truncate": lambda place: os.truncate(place / "file", 3),
        "empty by open": lambda place: os.close(os.open(place / "file", os.O_WRONLY | os.O_TRUNC)),
        "chmod": lambda place: os.chmod(place / "file", 0o600),
        "times": lambda place: os.utime(place / "file"),
        "xattr": lambda place: os.setxattr(place / "file", "user.x", b"1"),
        "create": lambda place: (place / "new").touch(),
        "mkdir": lambda place: (place / "d").mkdir(),
        "symlink": lambda place: (place / "s").symlink_to("x"),
        "link": lambda place: os.link(place / "file", place / "hard"),
        "rename": lambda place: os.rename(place / "file", place / "moved"),
        "unlink": lambda place: os.unlink(place / "file"),
        "list": lambda place: os.listdir(place),
    }
    for name, act in acts.items():

        def story(place: Path) -> list[tuple[int, str]]:
            (place / name).mkdir()  # noqa: B023 - called at once
            return _watched(place / name, lambda: act(place / name))  # noqa: B023

        assert both.same(story), name


# -- copying -----------------------------------------------------------------------------------------


def test_sendfile_to_a_socket_and_into_a_file(both: SideBySide) -> None:
    def story(place: Path) -> list[object]:
        data = bytes(range(256)) * 300
        (place / "from").write_bytes(data)
        source, target = os.open(place / "from", os.O_RDONLY), os.open(place / "to", os.O_RDWR | os.O_CREAT)
        here, there = socket.socketpair()
        with here, there:
            told: list[object] = [os.sendfile(here.fileno(), source, 100, 5000), there.recv(9000)]
            there.sendall(b"from a socket" * 100)
            told.append(_outcome(lambda: os.sendfile(target, here.fileno(), None, 1300)))
        told.append(os.sendfile(target, source, 0, len(data)))
        os.close(source)
        os.close(target)
        return [*told, (place / "to").read_bytes()]

    both.same(story)


def test_splice_tee_and_vmsplice(both: SideBySide) -> None:
    def story(place: Path) -> list[object]:
        data = bytes(range(256)) * 300
        (place / "from").write_bytes(data)
        source, target = os.open(place / "from", os.O_RDONLY), os.open(place / "to", os.O_RDWR | os.O_CREAT)
        pipe, second = os.pipe(), os.pipe()
        told: list[object] = []
        at = 0
        while at < len(data):
            count = os.splice(source, pipe[1], 30_000, at)
            told.append(_libc.tee(pipe[0], second[1], 30_000, 0))
            while count:
                moved = os.splice(pipe[0], target, count, None, at)
                count, at = count - moved, at + moved
            told.append(os.read(second[0], 60_000))
        os.write(pipe[1], b"appended")
        append = os.open(place / "to", os.O_WRONLY | os.O_APPEND)
        told.append(_outcome(lambda: os.splice(pipe[0], append, 8)))
        for fd in (source, target, append, *pipe, *second):
            os.close(fd)
        return [*told, (place / "to").read_bytes()]

    both.same(story)


def test_copy_file_range_within_and_between_files(both: SideBySide) -> None:
    def story(place: Path) -> list[object]:
        (place / "from").write_bytes(bytes(range(256)) * 100)
        source, target = os.open(place / "from", os.O_RDWR), os.open(place / "to", os.O_RDWR | os.O_CREAT)
        read_only = os.open(place / "from", os.O_RDONLY)
        calls: list[Callable[[], object]] = [
            lambda: os.copy_file_range(source, target, 5000, 100, 4000),
            lambda: os.copy_file_range(source, source, 1000, 0, 30_000),
            lambda: os.copy_file_range(source, source, 1000, 0, 500),  # they overlap
            lambda: os.copy_file_range(source, target, 1000, 10**9, 0),
            lambda: os.copy_file_range(source, read_only, 1000),
            lambda: os.copy_file_range(source, target, 0),
        ]
        told = [_outcome(call) for call in calls]
        for fd in (source, target, read_only):
            os.close(fd)
        return [*told, (place / "from").read_bytes(), (place / "to").read_bytes()]

    both.same(story)


# -- durability --------------------------------------------------------------------------------------


def _msync(file: Path) -> None:
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 4096) as mapped:
        mapped[0:4] = b"sync"
        mapped.flush()


def _written(file: Path, flags: int, write_flags: int = 0) -> None:
    fd = os.open(file, os.O_WRONLY | flags)
    try:
        os.pwritev(fd, [b"durable"], 0, write_flags)
    finally:
        os.close(fd)


SYNCS: dict[str, Callable[[Path], object]] = {
    "O_SYNC": lambda file: _written(file, os.O_SYNC),
    "O_DSYNC": lambda file: _written(file, os.O_DSYNC),
    "RWF_SYNC": lambda file: _written(file, 0, os.RWF_SYNC),
    "RWF_DSYNC": lambda file: _written(file, 0, os.RWF_DSYNC),
    "msync": _msync,
    "sync_file of coreutils": lambda file: subprocess.run(["sync", str(file)], check=True),
    "sync of a directory": lambda file: subprocess.run(["sync", str(file.parent)], check=True),
}


@pytest.mark.parametrize("how", SYNCS)
def test_what_syncs_reaches_the_disk(shared_mount: RealMount, work: Path, how: str) -> None:
    """Each of them ends in an fsync of the vault before it returns."""
    file = work / "file"
    file.write_bytes(bytes(8192))
    before = shared_mount.ask("status")["backing_syncs"]
    SYNCS[how](file)
    assert shared_mount.ask("status")["backing_syncs"] > before


def test_attributes_of_a_file_without_a_name(both: SideBySide) -> None:
    def story(place: Path) -> list[object]:
        fd = os.open(place / "file", os.O_RDWR | os.O_CREAT, 0o640)
        os.link(place / "file", place / "other")
        told: list[object] = []
        for name in ("file", "other"):
            os.unlink(place / name)
            os.pwrite(fd, b"x" * 5000, 5000)
            os.fchmod(fd, 0o604)
            os.setxattr(fd, "user.x", b"1")
            os.utime(fd, ns=(5, 6))
            found = os.fstat(fd)
            told += [found.st_nlink, found.st_size, oct(found.st_mode), found.st_atime_ns, found.st_mtime_ns]
            told += [found.st_blksize, os.listxattr(fd), len(os.pread(fd, 20_000, 0))]
            os.ftruncate(fd, 100)
            told.append(os.fstat(fd).st_size)
        os.close(fd)
        return told

    both.same(story)

"""More open files than the daemon may have descriptors: refused, and everything else goes on."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from real_mount import RealMount

MANY = 10_000
ROOM = 200
"""Descriptors that the daemon may open beyond those that it has."""


@contextmanager
def limited(pid: int) -> Iterator[None]:
    """A process that has only `ROOM` left."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) + ROOM, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def _open_all(paths: list[Path], flags: int, opened: list[int]) -> int:
    """Open until it is refused; the errno."""
    for path in paths:
        try:
            opened.append(os.open(path, flags))
        except OSError as error:
            return error.errno or 0
    return 0


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR | os.O_CREAT | os.O_EXCL], ids=["open", "create"])
def test_no_more_files_can_be_opened_and_all_else_goes_on(own_mount: RealMount, flags: int) -> None:
    own_mount.expected_log = ["lockdown: "]
    top = own_mount.path
    (top / "d").mkdir()
    (top / "file").write_bytes(b"content")
    paths = [top / "d" / f"{number}" for number in range(ROOM)]
    if not flags & os.O_CREAT:
        for path in paths:
            path.write_bytes(b"content")
        own_mount.again()
    opened: list[int] = []
    with limited(own_mount.pid):
        try:
            assert _open_all(paths, flags, opened) == errno.ENFILE
            assert len(opened) > ROOM // 4
            assert paths[len(opened)].exists() != bool(flags & os.O_CREAT)
            os.pread(opened[-1], 7, 0)
            os.rename(top / "file", top / "d" / "moved")
            (top / "new").mkdir()
            (top / "link").symlink_to("d")
            assert (top / "d" / "moved").stat().st_size == 7
            assert len(os.listdir(top / "link")) > len(opened)
            own_mount.ask("lock")
            own_mount.ask("unlock")
        finally:
            for fd in opened:
                os.close(fd)
        # Closing is told to the daemon a little later (FUSE_RELEASE waits for nobody).
        again: list[int] = []
        while _open_all([top / "d" / "moved"], os.O_RDONLY, again) == errno.ENFILE:
            own_mount.ask("status")
        assert os.pread(again[0], 7, 0) == b"content"
        os.close(again[0])


def test_ten_thousand_files_are_open_at_once(own_mount: RealMount) -> None:
    """Each can be read and written; a lock refuses all of them, and stores what was written."""
    own_mount.expected_log = ["lockdown: "]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    opened: list[int] = []
    try:
        for number in range(MANY):
            opened.append(os.open(own_mount.path / f"{number}", os.O_RDWR | os.O_CREAT | os.O_EXCL))
            os.write(opened[-1], b"%d" % number)
        assert own_mount.ask("status")["open_files"] == MANY
        for number in range(0, MANY, 97):
            assert os.pread(opened[number], 10, 0) == b"%d" % number
        own_mount.ask("lock")
        for number in (0, MANY // 2, MANY - 1):
            with pytest.raises(OSError) as caught:
                os.pread(opened[number], 10, 0)
            assert caught.value.errno == errno.ENOKEY
        own_mount.ask("unlock")
        for number in range(0, MANY, 97):
            assert os.pread(opened[number], 10, 0) == b"%d" % number
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

"""More open files than the daemon may have descriptors: refused, and everything else goes on."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from real_mount import RealMount

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

"""Open directories: together they hold no more names than the daemon has memory for."""

import errno
import stat

import pytest

from cmkfs.caller import Request
from cmkfs.fs import handles as handles_module
from cmkfs.fs.handles import DirHandle, Handles
from cmkfs.fs.inode import Ino, Inode


@pytest.fixture
def handles(monkeypatch: pytest.MonkeyPatch) -> Handles:
    """With a limit that is soon reached."""
    monkeypatch.setattr(handles_module, "MOST_NAMES", 10)
    return Handles()


def opened(handles: Handles, ino: int) -> int:
    return handles.add_directory(DirHandle(Inode(Ino(ino), stat.S_IFDIR), Request(uid=1, gid=1, pid=1)))


def test_listings_have_a_limit_all_together(handles: Handles) -> None:
    first, second = opened(handles, 2), opened(handles, 3)
    handles.listed(first, [b"name"] * 8)
    with pytest.raises(OSError) as refused:
        handles.listed(second, [b"name"] * 3)
    assert refused.value.errno == errno.ENOMEM
    assert handles.directories[second].entries == []
    handles.listed(second, [b"name"] * 2)
    handles.listed(first, [b"name"] * 8)  # its own one goes for it
    for _ in range(2):
        handles.drop_directory(first)
    handles.listed(second, [b"name"] * 50)  # a large directory can be listed, alone


def test_a_listing_whose_handle_was_released_while_it_was_read_counts_for_nothing(handles: Handles) -> None:
    gone, other = opened(handles, 2), opened(handles, 3)
    handles.drop_directory(gone)
    with pytest.raises(OSError) as refused:
        handles.listed(gone, [b"name"] * 8)
    assert refused.value.errno == errno.EBADF
    handles.listed(other, [b"name"] * 3)
    handles.listed(opened(handles, 4), [b"name"] * 7)

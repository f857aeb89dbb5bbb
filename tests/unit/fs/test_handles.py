"""Open directories: together they hold no more names than the daemon has memory for."""

import errno
import stat

import pytest

from cmkfs.caller import Request
from cmkfs.fs import handles as handles_module
from cmkfs.fs.handles import DirHandle, Handles
from cmkfs.fs.inode import Ino, Inode


def test_listings_have_a_limit_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handles_module, "MOST_NAMES", 10)
    handles, who = Handles(), Request(uid=1, gid=1, pid=1)
    first, second = (DirHandle(Inode(Ino(number), stat.S_IFDIR), who) for number in (2, 3))
    numbers = [handles.add_directory(handle) for handle in (first, second)]
    handles.listed(first, [b"name"] * 8)
    with pytest.raises(OSError) as refused:
        handles.listed(second, [b"name"] * 3)
    assert refused.value.errno == errno.ENOMEM
    assert second.entries == []
    handles.listed(second, [b"name"] * 2)
    handles.listed(first, [b"name"] * 8)  # its own one goes for it
    for _ in range(2):
        handles.drop_directory(numbers[0])
    handles.listed(second, [b"name"] * 50)  # a large directory can be listed, alone

"""Access times: the first read after a change of a file comes to the daemon, whatever the kernel has cached of it.

The kernel leaves access times to the server of a FUSE filesystem (S_NOATIME in fs/fuse/inode.c), and what it reads
from its cache no server hears of. A read that comes here moves atime as the mount of the vault says (relatime).
"""

import os
import time
from functools import partial

from cmkfs.fs.backing import Backing
from cmkfs.fs.diskthread import in_thread
from cmkfs.fs.forgetting import Device
from cmkfs.fs.openfile import OpenFile
from cmkfs.fuse.messages import KEEP_CACHE

_READ_AGAIN = 65_536
"""Up to so many bytes a file is read again as a whole, in one request; of a longer one only the first page is."""
_FIRST_PAGE = 4096
_DAY_NS = 86_400 * 10**9


class AccessTimes:
    """Has the kernel ask for what it has cached, when a read of it is to be seen in atime."""

    def __init__(self, backing: Backing) -> None:
        self._backing = backing
        self._device: Device | None = None

    def use(self, device: Device) -> None:
        """From now on this kernel connection is told what to read again."""
        self._device = device

    async def opened(self, file: OpenFile, flags: int) -> int:
        """The FOPEN_ flags of an open, the file's handle of which is counted already.

        Only when nobody else has the file open: then nothing of it is dirty, and the kernel waits for no page of it.
        And not for who may write: a page that a write keeps a part of would be asked for, which is no read.
        """
        if flags & (os.O_ACCMODE | os.O_TRUNC | os.O_NOATIME) or file.handles > 1 or not self._is_due(file):
            return KEEP_CACHE
        file.inode.ctime_moved = False
        if file.size <= _READ_AGAIN:
            return 0
        if self._device is not None:
            again = partial(self._device.invalidate_inode, file.inode.ino, length=_FIRST_PAGE)
            await in_thread(again)
        return KEEP_CACHE

    def _is_due(self, file: OpenFile) -> bool:
        """What relatime asks (fs/inode.c, relatime_need_update). Of ctime what programs did: settling moves it too."""
        if self._backing.reads_leave_no_trace:
            return False
        if file.inode.ctime_moved:
            return True
        found, kept = os.fstat(file.fd), file.pages.mtime_ns
        mtime_ns = found.st_mtime_ns if kept is None else kept
        return mtime_ns >= found.st_atime_ns or time.time_ns() - found.st_atime_ns >= _DAY_NS

"""A filesystem in memory on pyfuse3: what no filesystem on it can be faster than. `python memory_on_pyfuse3.py DIR`."""

import errno
import sys
from collections.abc import Sequence
from typing import Any

import pyfuse3  # type: ignore[import-not-found,unused-ignore]
import trio

from benchmark.memory_tree import Node, Tree, to_background

KEEP_SECONDS = 300


class Operations(pyfuse3.Operations):  # type: ignore[misc,unused-ignore]
    """Every handler that the workloads need, and nothing in it but what it must do."""

    enable_writeback_cache = True
    supports_dot_lookup = False

    def __init__(self) -> None:
        super().__init__()
        self.tree = Tree()

    def _attributes(self, node: Node) -> Any:
        found = pyfuse3.EntryAttributes()
        found.st_ino, found.st_mode, found.st_nlink, found.st_size = node.ino, node.mode, node.links, len(node.content)
        found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns = node.times
        found.entry_timeout = found.attr_timeout = KEEP_SECONDS
        found.st_blksize, found.st_blocks = 4096, (len(node.content) + 511) // 512
        return found

    async def lookup(self, parent: int, name: bytes, _ctx: Any) -> Any:
        node = self.tree.lookup(parent, name)
        if node is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(node)

    async def getattr(self, inode: int, _ctx: Any = None) -> Any:
        return self._attributes(self.tree.nodes[inode])

    async def setattr(self, inode: int, attr: Any, fields: Any, _fh: int | None, _ctx: Any) -> Any:
        node = self.tree.nodes[inode]
        if fields.update_size:
            self.tree.resize(inode, attr.st_size)
        if fields.update_mode:
            node.mode = attr.st_mode
        if fields.update_mtime:
            node.times[1] = attr.st_mtime_ns
        return self._attributes(node)

    async def mkdir(self, parent: int, name: bytes, mode: int, _ctx: Any) -> Any:
        return self._attributes(self.tree.make(parent, name, mode))

    async def create(self, parent: int, name: bytes, mode: int, _flags: int, _ctx: Any) -> Any:
        node = self.tree.make(parent, name, mode)
        return pyfuse3.FileInfo(fh=node.ino, keep_cache=True), self._attributes(node)

    async def unlink(self, parent: int, name: bytes, _ctx: Any) -> None:
        self.tree.remove(parent, name)

    async def rmdir(self, parent: int, name: bytes, _ctx: Any) -> None:
        try:
            self.tree.remove(parent, name)
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno) from error

    async def rename(self, parent: int, name: bytes, to: int, new: bytes, _flags: int, _ctx: Any) -> None:
        self.tree.rename(parent, name, to, new)

    async def open(self, inode: int, _flags: int, _ctx: Any) -> Any:
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    async def opendir(self, inode: int, _ctx: Any) -> int:
        return inode

    async def readdir(self, fh: int, start: int, token: Any) -> None:
        entries = list(self.tree.nodes[fh].entries.items())
        for number in range(start, len(entries)):
            name, node = entries[number]
            if not pyfuse3.readdir_reply(token, name, self._attributes(node), number + 1):
                return

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        return self.tree.read(fh, offset, size)

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        return self.tree.write(fh, offset, data)

    async def fsync(self, _fh: int, _datasync: bool) -> None:
        return

    async def flush(self, _fh: int) -> None:
        return

    async def release(self, _fh: int) -> None:
        return

    async def releasedir(self, _fh: int) -> None:
        return

    async def statfs(self, _ctx: Any) -> Any:
        found = pyfuse3.StatvfsData()
        found.f_bsize = found.f_frsize = 4096
        found.f_blocks = found.f_bfree = found.f_bavail = found.f_files = found.f_ffree = found.f_favail = 1 << 20
        found.f_namemax = 255
        return found


def main(arguments: Sequence[str]) -> None:
    """Mount, go to the background, serve until unmounted."""
    options = {*pyfuse3.default_options, "fsname=memory", "default_permissions", "allow_other"}
    pyfuse3.init(Operations(), arguments[0], options)
    to_background()
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main(sys.argv[1:])

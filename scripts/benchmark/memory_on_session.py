"""A filesystem in memory on the session of cmkfs: what its own part of a request costs. `python … DIR`."""

import errno
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from benchmark.memory_tree import Node, Tree, to_background
from cmkfs.caller import Request
from cmkfs.fs.fusedev import FuseDevice, MountRequest, open_device
from cmkfs.fuse.dispatch import Arguments
from cmkfs.fuse.messages import Changes, Entry, Listing, Opened

KEEP_SECONDS = 300
MAX_TASKS = 512


def entry(node: Node) -> Entry:
    """What the kernel is told of a node."""
    size = len(node.content)
    return Entry(
        *(node.ino, 1, KEEP_SECONDS, KEEP_SECONDS, node.mode, node.links, 0, 0, 0, size, (size + 511) // 512),
        *node.times,
    )


class Operations:
    """Every handler that the workloads need, and nothing in it but what it must do."""

    def __init__(self) -> None:
        self.tree = Tree()

    def errno_of(self, _name: str, _args: Arguments, error: Exception) -> int:
        return error.errno or errno.EIO if isinstance(error, OSError) else errno.EIO

    def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:  # noqa: ARG002 - as the session calls it
        return

    async def lookup(self, parent: int, name: bytes, _request: Request) -> Entry:
        node = self.tree.lookup(parent, name)
        return Entry(0) if node is None else entry(node)

    async def getattr(self, inode: int, _request: Request) -> Entry:
        return entry(self.tree.nodes[inode])

    async def setattr(self, inode: int, changes: Changes, _fh: int | None, _request: Request) -> Entry:
        node = self.tree.nodes[inode]
        if changes.size is not None:
            self.tree.resize(inode, changes.size)
        if changes.mode is not None:
            node.mode = changes.mode
        if changes.mtime_ns is not None:
            node.times[1] = changes.mtime_ns
        return entry(node)

    async def mkdir(self, parent: int, name: bytes, mode: int, _umask: int, _request: Request) -> Entry:
        return entry(self.tree.make(parent, name, stat.S_IFDIR | mode))

    async def create(
        self, parent: int, name: bytes, mode: int, _flags: int, _umask: int, _request: Request
    ) -> tuple[Opened, Entry]:
        node = self.tree.make(parent, name, mode)
        return Opened(node.ino), entry(node)

    async def unlink(self, parent: int, name: bytes, _request: Request) -> None:
        self.tree.remove(parent, name)

    async def rmdir(self, parent: int, name: bytes, _request: Request) -> None:
        self.tree.remove(parent, name)

    async def rename(self, parent: int, name: bytes, to: int, new: bytes, _flags: int, _request: Request) -> None:
        self.tree.rename(parent, name, to, new)

    async def open(self, inode: int, _flags: int, _kill: bool, _request: Request) -> Opened:
        return Opened(inode)

    async def opendir(self, inode: int, _request: Request) -> Opened:
        return Opened(inode)

    async def readdir(self, fh: int, offset: int, listing: Listing) -> Listing:
        entries = list(self.tree.nodes[fh].entries.items())
        for number in range(offset, len(entries)):
            name, node = entries[number]
            if not listing.add(name, entry(node), number + 1):
                break
        return listing

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        return self.tree.read(fh, offset, size)

    async def write(self, fh: int, offset: int, data: memoryview, _kill: bool) -> int:
        return self.tree.write(fh, offset, data)

    async def fsync(self, _fh: int, _datasync: bool) -> None:
        return

    async def release(self, _fh: int) -> None:
        return

    async def releasedir(self, _fh: int) -> None:
        return

    async def statfs(self, _request: Request) -> os.statvfs_result:
        return os.statvfs("/dev/shm")


async def serve(device: FuseDevice) -> None:
    """Until it is unmounted."""
    await device.serve(max_tasks=MAX_TASKS)


def main(arguments: Sequence[str]) -> None:
    """Mount, go to the background, serve until unmounted."""
    device = open_device(Path(arguments[0]), MountRequest(source=b"memory", allow_other=True))
    to_background()
    device.attach(Operations())
    trio.run(serve, device)
    device.close()


if __name__ == "__main__":
    main(sys.argv[1:])

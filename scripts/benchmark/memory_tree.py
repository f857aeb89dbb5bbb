"""A tree of files in memory: the least that a filesystem can do. Inodes are numbered; 1 is the root."""

import errno
import os
import stat
import time


class Node:
    """A file or directory."""

    __slots__ = ("content", "entries", "ino", "links", "mode", "times")

    def __init__(self, ino: int, mode: int) -> None:
        self.ino = ino
        self.mode = mode
        self.links = 2 if stat.S_ISDIR(mode) else 1
        self.times = [time.time_ns()] * 3
        self.content = bytearray()
        self.entries: dict[bytes, Node] = {}

    @property
    def is_dir(self) -> bool:
        """True for a directory."""
        return stat.S_ISDIR(self.mode)


class Tree:
    """All nodes by number. Nodes without a name stay as long as the process: it does not live long."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {1: Node(1, stat.S_IFDIR | 0o755)}

    def lookup(self, parent: int, name: bytes) -> Node | None:
        """What has the name."""
        return self.nodes[parent].entries.get(name)

    def make(self, parent: int, name: bytes, mode: int) -> Node:
        """A new node."""
        node = Node(len(self.nodes) + 1, mode)
        self.nodes[node.ino] = node
        self.nodes[parent].entries[name] = node
        self.nodes[parent].links += node.is_dir
        return node

    def remove(self, parent: int, name: bytes) -> None:
        """Take a name away. Raises OSError ENOTEMPTY."""
        node = self.nodes[parent].entries[name]
        if node.entries:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        del self.nodes[parent].entries[name]
        self.nodes[parent].links -= node.is_dir
        node.links = 0

    def rename(self, parent: int, name: bytes, to: int, new: bytes) -> None:
        """Move a name, over another one if need be."""
        node = self.nodes[parent].entries.pop(name)
        self.nodes[to].entries[new] = node
        self.nodes[parent].links -= node.is_dir
        self.nodes[to].links += node.is_dir

    def read(self, ino: int, offset: int, size: int) -> bytes:
        """Part of a file."""
        return bytes(memoryview(self.nodes[ino].content)[offset : offset + size])

    def write(self, ino: int, offset: int, data: "bytes | memoryview") -> int:
        """Store a part."""
        content = self.nodes[ino].content
        if len(content) < offset:
            content.extend(bytes(offset - len(content)))
        content[offset : offset + len(data)] = data
        return len(data)

    def resize(self, ino: int, size: int) -> None:
        """truncate(2)."""
        content = self.nodes[ino].content
        del content[size:]
        content.extend(bytes(size - len(content)))


def to_background() -> None:
    """The mount is there: whoever waits for the command, or for the end of its output, goes on."""
    if os.fork():
        os._exit(0)
    os.setsid()
    with open(os.devnull, "r+b") as nothing:
        for descriptor in range(3):
            os.dup2(nothing.fileno(), descriptor)

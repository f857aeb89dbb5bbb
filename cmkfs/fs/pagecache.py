"""What the kernel remembers of a mount, and how it is told to forget: raw FUSE notifications.

The messages go straight to a descriptor of /dev/fuse: they must also work after the connection was aborted and the
session is gone. Source: linux/fuse.h,
`fuse_notify_inval_inode_out`, `fuse_notify_inval_entry_out`.
"""

import errno
import os
import struct

_NOTIFY_INVAL_INODE = 2
_NOTIFY_INVAL_ENTRY = 3
_HEADER = struct.Struct("<IiQ")  # length, code, unique (0: not an answer)
_INVAL_INODE = struct.Struct("<Qqq")  # inode, offset (below 0: attributes only), length (0: to the end)
_INVAL_ENTRY = struct.Struct("<QII")  # parent inode, length of the name, flags
_EXPIRE_ONLY = 1 << 0


def inval_inode_message(inode: int, *, attr_only: bool, length: int = 0) -> bytes:
    """The notification that drops `inode`'s attributes and, unless `attr_only`, its pages: 40 bytes.

    `length`: only the pages of the first bytes, if it is not 0.
    """
    header = _HEADER.pack(_HEADER.size + _INVAL_INODE.size, _NOTIFY_INVAL_INODE, 0)
    return header + _INVAL_INODE.pack(inode, -1 if attr_only else 0, length)


def inval_entry_message(parent: int, name: bytes, *, expire_only: bool = False) -> bytes:
    """The notification that drops `name` in the directory `parent`: 32 bytes, the name and a NUL.

    `expire_only`: the name stays, and who comes to it asks for it again (since Linux 6.2; dropped before).
    """
    if not name or b"\0" in name or b"/" in name:
        raise ValueError(f"not a name: {name!r}")
    body = _INVAL_ENTRY.pack(parent, len(name), _EXPIRE_ONLY if expire_only else 0) + name + b"\0"
    return _HEADER.pack(_HEADER.size + len(body), _NOTIFY_INVAL_ENTRY, 0) + body


def notify(device: int, message: bytes) -> bool:
    """Send `message` to the kernel. False if it does not know the inode or name, which is no error.

    Blocks until write-back of the inode is answered and related requests are done: only from a thread.
    Raises OSError for everything but ENOENT.
    """
    try:
        os.write(device, message)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True

"""From an opcode to a handler: how the arguments of each request are read, and how its result is written.

A handler is a coroutine function of the operations, named as in `HANDLERS`. It gets what `arguments` reads and gives
what `answer` writes, and raises what the operations' `errno_of` knows.
"""

import struct
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from cmkfs.caller import Request
from cmkfs.fuse.messages import (
    Buffer,
    Changes,
    Listing,
    Opcode,
    attr_bytes,
    entry_bytes,
    opened_bytes,
    statfs_bytes,
    xattr_bytes,
)

Arguments = tuple[Any, ...]


class Handler(NamedTuple):
    """How the requests of one opcode are served."""

    name: str
    arguments: Callable[[int, Request, memoryview], Arguments]
    """From the inode's number, who asks, and the message behind its header."""
    answer: Callable[[Any, memoryview], Buffer]
    """From the handler's result, and the message again."""


_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_U32_U32, _U64_U32 = struct.Struct("<II"), struct.Struct("<QI")
_FH_OFFSET_SIZE = struct.Struct("<QQI")
_READ_WRITE_BYTES = 40
_WRITTEN = struct.Struct("<I4x")


def _names(body: memoryview, offset: int) -> list[bytes]:
    """The strings from `offset` on, each of which ends with a NUL."""
    return bytes(body[offset:-1]).split(b"\0")


# -- Arguments -------------------------------------------------------------------------------------


def _caller(_nodeid: int, request: Request, _body: memoryview) -> Arguments:
    return (request,)


def _inode(nodeid: int, request: Request, _body: memoryview) -> Arguments:
    return nodeid, request


def _inode_name(nodeid: int, request: Request, body: memoryview) -> Arguments:
    return nodeid, bytes(body[:-1]), request


_SETATTR = struct.Struct("<I4xQQ8xqqqIIII4xII4x")
_MODE, _UID, _GID, _SIZE, _ATIME, _MTIME, _FH, _ATIME_NOW, _MTIME_NOW = (1 << bit for bit in range(9))
_CTIME, _KILL_SUIDGID = 1 << 10, 1 << 11


def _setattr(nodeid: int, request: Request, body: memoryview) -> Arguments:
    valid, fh, size, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns, mode, uid, gid = _SETATTR.unpack_from(body)
    atime_ns += atime * 10**9
    mtime_ns += mtime * 10**9
    if valid & (_ATIME_NOW | _MTIME_NOW):
        now = time.time_ns()
        atime_ns = now if valid & _ATIME_NOW else atime_ns
        mtime_ns = now if valid & _MTIME_NOW else mtime_ns
    changes = Changes(
        size if valid & _SIZE else None,
        mode if valid & _MODE else None,
        uid if valid & _UID else None,
        gid if valid & _GID else None,
        atime_ns if valid & (_ATIME | _ATIME_NOW) else None,
        mtime_ns if valid & (_MTIME | _MTIME_NOW) else None,
        ctime * 10**9 + ctime_ns if valid & _CTIME else None,
        bool(valid & _KILL_SUIDGID),
    )
    return nodeid, changes, fh if valid & _FH else None, request


def _symlink(nodeid: int, request: Request, body: memoryview) -> Arguments:
    name, target = _names(body, 0)
    return nodeid, name, target, request


_MKNOD = struct.Struct("<III4x")


def _mknod(nodeid: int, request: Request, body: memoryview) -> Arguments:
    mode, rdev, umask = _MKNOD.unpack_from(body)
    return nodeid, bytes(body[_MKNOD.size : -1]), mode, rdev, umask, request


def _mkdir(nodeid: int, request: Request, body: memoryview) -> Arguments:
    mode, umask = _U32_U32.unpack_from(body)
    return nodeid, bytes(body[_U32_U32.size : -1]), mode, umask, request


def _rename(nodeid: int, request: Request, body: memoryview) -> Arguments:
    old, new = _names(body, _U64.size)
    return nodeid, old, _U64.unpack_from(body)[0], new, 0, request


def _rename2(nodeid: int, request: Request, body: memoryview) -> Arguments:
    directory, flags = _U64_U32.unpack_from(body)
    old, new = _names(body, 16)
    return nodeid, old, directory, new, flags, request


def _link(nodeid: int, request: Request, body: memoryview) -> Arguments:
    return _U64.unpack_from(body)[0], nodeid, bytes(body[_U64.size : -1]), request


_OPEN_KILL_SUIDGID = 1 << 0


def _open(nodeid: int, request: Request, body: memoryview) -> Arguments:
    flags, open_flags = _U32_U32.unpack_from(body)
    return nodeid, flags, bool(open_flags & _OPEN_KILL_SUIDGID), request


_CREATE = struct.Struct("<III4x")


def _create(nodeid: int, request: Request, body: memoryview) -> Arguments:
    flags, mode, umask = _CREATE.unpack_from(body)
    return nodeid, bytes(body[_CREATE.size : -1]), mode, flags, umask, request


def _read(_nodeid: int, _request: Request, body: memoryview) -> Arguments:
    return _FH_OFFSET_SIZE.unpack_from(body)


_WRITE = struct.Struct("<QQII")
_WRITE_KILL_SUIDGID = 1 << 2


def _write(_nodeid: int, _request: Request, body: memoryview) -> Arguments:
    fh, offset, size, flags = _WRITE.unpack_from(body)
    return fh, offset, body[_READ_WRITE_BYTES : _READ_WRITE_BYTES + size], bool(flags & _WRITE_KILL_SUIDGID)


def _handle(_nodeid: int, _request: Request, body: memoryview) -> Arguments:
    return _U64.unpack_from(body)


def _fsync(_nodeid: int, _request: Request, body: memoryview) -> Arguments:
    fh, flags = _U64_U32.unpack_from(body)
    return fh, bool(flags & 1)


def _readdir(_nodeid: int, _request: Request, body: memoryview) -> Arguments:
    fh, offset, size = _FH_OFFSET_SIZE.unpack_from(body)
    return fh, offset, Listing(size, plus=False)


def _readdirplus(_nodeid: int, _request: Request, body: memoryview) -> Arguments:
    fh, offset, size = _FH_OFFSET_SIZE.unpack_from(body)
    return fh, offset, Listing(size, plus=True)


def _setxattr(nodeid: int, request: Request, body: memoryview) -> Arguments:
    size, flags = _U32_U32.unpack_from(body)
    whole = bytes(body[_U32_U32.size :])
    end = whole.index(b"\0")
    return nodeid, whole[:end], whole[end + 1 : end + 1 + size], flags, request


def _getxattr(nodeid: int, request: Request, body: memoryview) -> Arguments:
    return nodeid, bytes(body[_U64.size : -1]), request


# -- Answers ---------------------------------------------------------------------------------------


def _nothing(_result: None, _body: memoryview) -> bytes:
    return b""


def _entry(result: Any, _body: memoryview) -> bytes:
    return entry_bytes(result)


def _attr(result: Any, _body: memoryview) -> bytes:
    return attr_bytes(result)


def _bytes(result: Buffer, _body: memoryview) -> Buffer:
    return result


def _opened(result: Any, _body: memoryview) -> bytes:
    return opened_bytes(result)


def _created(result: Any, _body: memoryview) -> bytes:
    opened, entry = result
    return entry_bytes(entry) + opened_bytes(opened)


def _written(result: int, _body: memoryview) -> bytes:
    return _WRITTEN.pack(result)


def _statfs(result: Any, _body: memoryview) -> bytes:
    return statfs_bytes(result)


def _value(result: bytes, body: memoryview) -> bytes:
    return xattr_bytes(result, _U32.unpack_from(body)[0])


def _list(result: list[bytes], body: memoryview) -> bytes:
    return xattr_bytes(b"".join(name + b"\0" for name in result), _U32.unpack_from(body)[0])


def _listing(result: Listing, _body: memoryview) -> bytes:
    return result.to_bytes()


HANDLERS: dict[int, Handler] = {
    Opcode.LOOKUP: Handler("lookup", _inode_name, _entry),
    Opcode.GETATTR: Handler("getattr", _inode, _attr),
    Opcode.SETATTR: Handler("setattr", _setattr, _attr),
    Opcode.READLINK: Handler("readlink", _inode, _bytes),
    Opcode.SYMLINK: Handler("symlink", _symlink, _entry),
    Opcode.MKNOD: Handler("mknod", _mknod, _entry),
    Opcode.MKDIR: Handler("mkdir", _mkdir, _entry),
    Opcode.UNLINK: Handler("unlink", _inode_name, _nothing),
    Opcode.RMDIR: Handler("rmdir", _inode_name, _nothing),
    Opcode.RENAME: Handler("rename", _rename, _nothing),
    Opcode.RENAME2: Handler("rename", _rename2, _nothing),
    Opcode.LINK: Handler("link", _link, _entry),
    Opcode.OPEN: Handler("open", _open, _opened),
    Opcode.CREATE: Handler("create", _create, _created),
    Opcode.READ: Handler("read", _read, _bytes),
    Opcode.WRITE: Handler("write", _write, _written),
    Opcode.STATFS: Handler("statfs", _caller, _statfs),
    Opcode.RELEASE: Handler("release", _handle, _nothing),
    Opcode.FSYNC: Handler("fsync", _fsync, _nothing),
    Opcode.SETXATTR: Handler("setxattr", _setxattr, _nothing),
    Opcode.GETXATTR: Handler("getxattr", _getxattr, _value),
    Opcode.LISTXATTR: Handler("listxattr", _inode, _list),
    Opcode.REMOVEXATTR: Handler("removexattr", _inode_name, _nothing),
    Opcode.OPENDIR: Handler("opendir", _inode, _opened),
    Opcode.READDIR: Handler("readdir", _readdir, _listing),
    Opcode.READDIRPLUS: Handler("readdir", _readdirplus, _listing),
    Opcode.RELEASEDIR: Handler("releasedir", _handle, _nothing),
    Opcode.FSYNCDIR: Handler("fsyncdir", _fsync, _nothing),
}
"""All others are answered ENOSYS, which makes the kernel do without (no FLUSH, no ACCESS, no LSEEK, …)."""

_FORGET_ONE = struct.Struct("<QQ")


def forgotten(opcode: int, nodeid: int, body: memoryview) -> list[tuple[int, int]]:
    """Inode numbers and counts of lookups that the kernel drops, of a FORGET or BATCH_FORGET."""
    if opcode == Opcode.FORGET:
        return [(nodeid, _U64.unpack_from(body)[0])]
    (count,) = _U32.unpack_from(body)
    return [_FORGET_ONE.unpack_from(body, 8 + number * _FORGET_ONE.size) for number in range(count)]

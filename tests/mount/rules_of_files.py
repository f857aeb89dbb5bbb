"""Rules about a file: what each kind of user may do with it at each mode, and what that does to mode and times."""

import mmap
import os
import stat
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from calls import CAP_NET_RAW, CAPABILITY, UTIME_NOW, UTIME_OMIT, futimens, utimensat
from rules import MEMBER, OTHER, OWNER, TEAM, Act, Rule

CONTENT = b"content of the file\n"
MODES = (0o644, 0o664, 0o666, 0o000, 0o222, 0o060, 0o006, 0o4755, 0o6777, 0o2644)
PRIVILEGED = (0o4755, 0o2755, 0o6777, 0o2666, 0o6666)
VALUE = (77, 123_456_789)
NOW, OMIT = (0, UTIME_NOW), (0, UTIME_OMIT)


def a_file(cell: Path, mode: int, *, capability: bool = False) -> None:
    """`cell/f` of OWNER and TEAM, in a directory of theirs, with attributes of every namespace."""
    file = cell / "f"
    file.write_bytes(CONTENT)
    os.setxattr(file, "user.here", b"value")
    os.setxattr(file, "trusted.here", b"value")
    os.setxattr(file, "security.here", b"value")
    os.chown(cell, OWNER.uid, TEAM)
    os.chown(file, OWNER.uid, TEAM)
    if capability:
        os.setxattr(file, CAPABILITY, CAP_NET_RAW)
    file.chmod(mode)


def _open(cell: Path, flags: int, mode: int = 0o666) -> str:
    os.close(os.open(cell / "f", flags, mode))
    return "opened"


def _read(cell: Path, flags: int = os.O_RDONLY) -> bytes:
    fd = os.open(cell / "f", flags)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


def _read_nothing(cell: Path, flags: int) -> None:
    os.close(os.open(cell / "f", flags))


def _read_mapped(cell: Path) -> bytes:
    with (cell / "f").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        return mapped[:]


def _read_by_sendfile(cell: Path) -> int:
    read, write = os.pipe()
    fd = os.open(cell / "f", os.O_RDONLY)
    try:
        return os.sendfile(write, fd, 0, 100)
    finally:
        for one in (read, write, fd):
            os.close(one)


def _write(cell: Path, data: bytes, at: int = 0, flags: int = os.O_WRONLY) -> int:
    fd = os.open(cell / "f", flags)
    try:
        return os.pwrite(fd, data, at)
    finally:
        os.close(fd)


def _ftruncate(cell: Path, size: int, flags: int = os.O_WRONLY) -> None:
    fd = os.open(cell / "f", flags)
    try:
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def _map_shared(cell: Path) -> bytes:
    fd = os.open(cell / "f", os.O_RDWR)
    try:
        with mmap.mmap(fd, 0) as mapped:
            mapped[:3] = b"map"
            mapped.flush()
            return mapped[:]
    finally:
        os.close(fd)


def _set_times(cell: Path, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    utimensat(cell / "f", atime, mtime)


def _set_times_by_descriptor(cell: Path, flags: int, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    fd = os.open(cell / "f", flags)
    try:
        futimens(fd, atime, mtime)
    finally:
        os.close(fd)


def _fchmod(cell: Path, mode: int) -> None:
    fd = os.open(cell / "f", os.O_RDONLY)
    try:
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def _chown(cell: Path, uid: int, gid: int) -> None:
    os.chown(cell / "f", uid, gid)


def _access(cell: Path) -> list[bool]:
    file = cell / "f"
    checks = (os.F_OK, os.R_OK, os.W_OK, os.X_OK, os.R_OK | os.W_OK)
    return [os.access(file, how, effective_ids=effective) for how in checks for effective in (False, True)]


def _exchange_xattrs(cell: Path, name: str) -> list[object]:
    """Each call on an attribute, with what it answered."""
    file = cell / "f"
    calls: list[Act] = [
        lambda file: os.getxattr(file, name),
        lambda file: os.setxattr(file, name, b"new", os.XATTR_CREATE),
        lambda file: os.setxattr(file, name, b"new", os.XATTR_REPLACE),
        lambda file: os.removexattr(file, name),
        lambda file: sorted(os.listxattr(file)),
    ]
    return [_told(call, file) for call in calls]


def _told(call: Act, file: Path) -> object:
    try:
        return call(file)
    except OSError as error:
        return error.errno


OPENS: Mapping[str, int] = {
    "read only": os.O_RDONLY,
    "write only": os.O_WRONLY,
    "read and write": os.O_RDWR,
    "truncate": os.O_WRONLY | os.O_TRUNC,
    "truncate, read only": os.O_RDONLY | os.O_TRUNC,
    "append": os.O_WRONLY | os.O_APPEND,
    "create, there already": os.O_WRONLY | os.O_CREAT,
    "create, read only": os.O_RDONLY | os.O_CREAT,
    "create and truncate": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    "exclusive, there already": os.O_RDWR | os.O_CREAT | os.O_EXCL,
    "a directory": os.O_RDONLY | os.O_DIRECTORY,
    "without atime": os.O_RDONLY | os.O_NOATIME,
    "as a path": os.O_PATH,
    "synchronous": os.O_WRONLY | os.O_SYNC,
    "direct": os.O_RDWR | os.O_DIRECT,
    "access mode 3": os.O_ACCMODE,
}
READS: Mapping[str, Act] = {
    "read": _read,
    "read nothing": partial(_read_nothing, flags=os.O_RDONLY),
    "without atime": partial(_read, flags=os.O_RDONLY | os.O_NOATIME),
    "by a writer's descriptor": partial(_read, flags=os.O_RDWR),
    "from a mapping": _read_mapped,
    "by sendfile": _read_by_sendfile,
    "twice": lambda cell: _read(cell) + _read(cell),
}
READ_BY_WRITERS = ("by a writer's descriptor", "shared mapping")
CONTENT_CHANGES: Mapping[str, Act] = {
    "write": partial(_write, data=b"new"),
    "append": partial(_write, data=b"new", flags=os.O_WRONLY | os.O_APPEND),
    "write behind the end": partial(_write, data=b"new", at=9000),
    "write synchronously": partial(_write, data=b"new", flags=os.O_WRONLY | os.O_SYNC),
    "write nothing": partial(_write, data=b""),
    "shorter": lambda cell: os.truncate(cell / "f", 5),
    "longer": lambda cell: os.truncate(cell / "f", 9000),
    "empty": lambda cell: os.truncate(cell / "f", 0),
    "shorter by descriptor": partial(_ftruncate, size=5),
    "longer by descriptor": partial(_ftruncate, size=9000),
    "empty by descriptor": partial(_ftruncate, size=0),
    "by a read-only descriptor": partial(_ftruncate, size=0, flags=os.O_RDONLY),
    "negative": lambda cell: os.truncate(cell / "f", -1),
    "empty by open": partial(_open, flags=os.O_WRONLY | os.O_TRUNC),
    "shared mapping": _map_shared,
}
TIMES: Mapping[str, Act] = {
    **{
        f"{first} and {second}": partial(_set_times, atime=one, mtime=two)
        for first, one in (("now", NOW), ("omit", OMIT), ("a value", VALUE))
        for second, two in (("now", NOW), ("omit", OMIT), ("a value", VALUE))
    },
    "utime without times": lambda cell: os.utime(cell / "f"),
    "negative nanoseconds": partial(_set_times, atime=(0, -1), mtime=NOW),
    "a whole second in nanoseconds": partial(_set_times, atime=NOW, mtime=(0, 10**9)),
    "now by a writer's descriptor": partial(_set_times_by_descriptor, flags=os.O_WRONLY, atime=NOW, mtime=NOW),
    "value by a writer's descriptor": partial(_set_times_by_descriptor, flags=os.O_WRONLY, atime=VALUE, mtime=VALUE),
    "now by a reader's descriptor": partial(_set_times_by_descriptor, flags=os.O_RDONLY, atime=NOW, mtime=NOW),
}
MODE_CHANGES: Mapping[str, Act] = {
    f"chmod {mode:o}": partial(lambda cell, mode: os.chmod(cell / "f", mode), mode=mode)
    for mode in (0o600, 0o755, 0o4755, 0o2755, 0o6711, 0o1644, 0o7777, 0)
} | {"fchmod": partial(_fchmod, mode=0o2640)}
OWNER_CHANGES: Mapping[str, Act] = {
    "nothing": partial(_chown, uid=-1, gid=-1),
    "to its owner": partial(_chown, uid=OWNER.uid, gid=-1),
    "to its owner and group": partial(_chown, uid=OWNER.uid, gid=TEAM),
    "to its group": partial(_chown, uid=-1, gid=TEAM),
    "to the owner's group": partial(_chown, uid=-1, gid=OWNER.gid),
    "to a supplementary group": partial(_chown, uid=-1, gid=24),
    "to another": partial(_chown, uid=MEMBER.uid, gid=-1),
    "to another group": partial(_chown, uid=-1, gid=OTHER.gid),
    "to root": partial(_chown, uid=0, gid=0),
    "the link itself": lambda cell: os.lchown(cell / "f", OWNER.uid, OWNER.gid),
}
XATTRS: Mapping[str, Act] = {
    name: partial(_exchange_xattrs, name=name)
    for name in (
        *(f"{namespace}.{name}" for namespace in ("user", "trusted", "security") for name in ("here", "missing", "")),
        *("system.x", "nothing", "user." + "n" * 250, "user." + "n" * 251),
    )
} | {
    "capability": lambda cell: os.setxattr(cell / "f", CAPABILITY, CAP_NET_RAW),
    "take the capability": lambda cell: os.removexattr(cell / "f", CAPABILITY),
    "nonsense for a capability": lambda cell: os.setxattr(cell / "f", CAPABILITY, b"nonsense"),
}


def _on(acts: Mapping[str, Act], modes: tuple[int, ...], *, capability: bool = False) -> dict[str, Rule]:
    prepare = partial(a_file, capability=capability)
    return {
        f"{name} at {mode:o}": Rule(act, partial(prepare, mode=mode), name in READ_BY_WRITERS)
        for mode in modes
        for name, act in acts.items()
    }


GROUPS: Mapping[str, Mapping[str, Rule]] = {
    "open": _on({name: partial(_open, flags=flags) for name, flags in OPENS.items()}, MODES),
    "read": _on(READS, MODES),
    "access": _on({"access": _access}, MODES),
    "content": _on(CONTENT_CHANGES, (0o644, 0o664, 0o666, 0o444, 0o222)),
    "privileges go with a change of content": _on(CONTENT_CHANGES, PRIVILEGED)
    | _on(CONTENT_CHANGES, (0o777,), capability=True),
    "privileges go with a change of owner": _on(OWNER_CHANGES, (*PRIVILEGED, 0o2644))
    | _on(OWNER_CHANGES, (0o755,), capability=True),
    "chown": _on(OWNER_CHANGES, (0o644, 0o666, 0o000)),
    "chmod": _on(MODE_CHANGES, (0o644, 0o2755, 0o000)),
    "utimensat": _on(TIMES, (0o644, 0o664, 0o666, 0o444, 0o222, 0o000)),
    "xattr": _on(XATTRS, (0o644, 0o666, 0o222, 0o000)),
    "stat": _on({"stat": lambda cell: stat.S_IMODE(os.stat(cell / "f").st_mode)}, (0o000,)),
}

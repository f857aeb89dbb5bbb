"""Random POSIX calls, each done alike in two directories: one on a mount, one on a plain filesystem.

`draw` gives a step from a random source and the number of open descriptors, and nothing else, so a seed gives the
same steps again. `Side.run` does a step in one directory and gives what a program can see of it, in a form that
must be equal for both.
"""

import ctypes
import fcntl
import mmap
import os
import random
import stat
from dataclasses import dataclass
from typing import Any

BLOCK = 4048  # plain bytes of a block of the vault: the edges are where a filesystem of blocks goes wrong
NAMES = [
    b"a",
    b"b",
    b"c",
    b"d",
    "\u00e4".encode(),
    b"\xff\xfe",
    b"cmkfs.dir",
    b"long.x",
    b"x" * 160,
    b"y" * 200,
    b"z" * 255,
]
NAME_WEIGHTS = [8, 8, 6, 4, 2, 1, 1, 1, 2, 2, 1]
XATTRS = ["user.one", "user.two", "user." + "n" * 100]
OLD = 1_000_000_000 * 10**9 + 123_456_789
"""A modification time in the past (ns), to see whether a call changes it."""
MOST_OPEN = 12
_EDGES = [0, 1, 100, BLOCK - 1, BLOCK, BLOCK + 1, 4096, 2 * BLOCK, 3 * BLOCK + 7, 65_536, 200_000, 1 << 20]
_LENGTHS = [0, 1, 10, 512, BLOCK - 1, BLOCK, BLOCK + 1, 4096, 8192, 20_000]
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Step:
    """A call with its arguments; paths are relative to the side's directory, descriptors are numbered as opened."""

    call: str
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.call}({', '.join(_short(argument) for argument in self.arguments)})"


def _short(argument: object) -> str:
    text = repr(argument)
    return text if len(text) < 40 else f"{text[:18]}..{len(text)}..{text[-8:]}"


# -- Drawing ---------------------------------------------------------------------------------------

CALLS = {
    "open": 14,
    "close": 6,
    "pread": 10,
    "pwrite": 12,
    "read": 5,
    "write": 6,
    "seek": 2,
    "ftruncate": 5,
    "fsync": 2,
    "fstat": 6,
    "map": 3,
    "dup": 1,
    "flock": 2,
    "fchmod": 1,
    "copy": 2,
    "truncate": 4,
    "mkdir": 7,
    "rmdir": 4,
    "unlink": 6,
    "rename": 9,
    "link": 5,
    "symlink": 4,
    "readlink": 2,
    "mknod": 1,
    "chmod": 3,
    "chown": 2,
    "utime": 2,
    "setxattr": 3,
    "getxattr": 3,
    "listxattr": 2,
    "removexattr": 2,
    "lstat": 6,
    "stat": 4,
    "access": 2,
    "listdir": 4,
    "content": 4,
    "umask": 1,
    "times_of": 6,
    "through": 2,
}
_BY_DESCRIPTOR = {
    *("close", "pread", "pwrite", "read", "write", "seek", "ftruncate", "fsync", "fstat", "map", "dup", "flock"),
    *("fchmod", "copy"),
}


def draw(rng: random.Random, open_files: int, calls: dict[str, int] = CALLS) -> Step:
    """The next step."""
    call = rng.choices(list(calls), list(calls.values()))[0]
    if (call in _BY_DESCRIPTOR and not open_files) or (call in ("open", "dup") and open_files >= MOST_OPEN):
        call = "close" if open_files else "open"
    if call in _BY_DESCRIPTOR:
        return Step(call, (rng.randrange(open_files), *_for_descriptor(rng, call, open_files)))
    if call == "times_of":
        inner = draw(rng, 0, {one: CALLS[one] for one in _CHANGE_TIMES})
        return Step(call, (inner,))
    return Step(call, _for_path(rng, call))


_CHANGE_TIMES = ["truncate", "mkdir", "rmdir", "unlink", "rename", "link", "symlink", "chmod", "setxattr", "through"]


def path(rng: random.Random) -> bytes:
    """A path of one to four names; now and then with something that a path may have, too."""
    names = rng.choices(NAMES, NAME_WEIGHTS, k=rng.choice([1, 1, 1, 2, 2, 3, 4]))
    found = b"/".join(names)
    odd = rng.random()
    if odd < 0.02:
        return found + b"/"
    if odd < 0.03:
        return found + b"/../" + rng.choice(NAMES)
    if odd < 0.04:
        return found + b"/" + b"w" * 256
    return found


def _for_descriptor(rng: random.Random, call: str, open_files: int) -> tuple[Any, ...]:
    if call == "pread":
        return (_offset(rng), _length(rng))
    if call == "pwrite":
        return (_offset(rng), _bytes(rng))
    if call == "read":
        return (_length(rng),)
    if call == "write":
        return (_bytes(rng),)
    if call == "seek":
        return (_offset(rng), rng.choice([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]))
    if call == "ftruncate":
        return (_offset(rng),)
    if call == "map":
        return (_offset(rng), rng.randbytes(rng.choice([1, 100, 5000])))
    if call == "flock":
        return (rng.choice([fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN]),)
    if call == "fchmod":
        return (_mode(rng),)
    if call == "copy":
        return (rng.randrange(open_files), _offset(rng), _offset(rng), _length(rng))
    if call == "fsync":
        return (rng.random() < 0.5,)
    return ()


def _for_path(rng: random.Random, call: str) -> tuple[Any, ...]:
    if call == "umask":
        return (rng.choice([0o022, 0o077, 0o002, 0o000]),)
    first = path(rng)
    if call == "open":
        flags = rng.choice([os.O_RDONLY, os.O_RDWR, os.O_RDWR, os.O_WRONLY])
        for flag, chance in ((os.O_CREAT, 0.6), (os.O_EXCL, 0.2), (os.O_TRUNC, 0.2), (os.O_APPEND, 0.2)):
            flags |= flag if rng.random() < chance else 0
        flags |= rng.choice([0] * 12 + [os.O_NOFOLLOW, os.O_DIRECTORY, os.O_SYNC])
        return (first, flags, _mode(rng))
    if call in ("rename", "link"):
        return (first, path(rng), rng.choice([0, 0, 0, 1, 2]))
    if call == "truncate":
        return (first, _offset(rng))
    if call in ("mkdir", "chmod"):
        return (first, _mode(rng))
    if call == "mknod":
        return (first, _mode(rng) | rng.choice([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG]))
    if call == "symlink":
        return (first, rng.choice([path(rng), b"../" + path(rng), b"t" * 719, b"u" * 4000]))
    if call == "chown":
        # Not -1 and -1: whether somebody else may is told wrong while the file is open (docs/limits.md).
        return (first, rng.choice([0, 12345, 12346]), rng.choice([-1, 0, 12345, 12346]))
    if call == "utime":
        return (first, rng.choice([0, 1, OLD, 2**31 * 10**9, 1_700_000_000_000_000_001]))
    if call == "setxattr":
        return (first, rng.choice(XATTRS), rng.randbytes(rng.choice([0, 1, 30, 300])), rng.choice([0, 0, 1, 2]))
    if call in ("getxattr", "removexattr"):
        return (first, rng.choice(XATTRS))
    if call == "access":
        return (first, rng.choice([os.F_OK, os.R_OK, os.W_OK, os.X_OK]))
    if call == "through":
        return (first, path(rng))
    return (first,)


def _offset(rng: random.Random) -> int:
    return max(0, rng.choice([rng.choice(_EDGES), rng.randrange(30_000), rng.choice(_EDGES) - rng.randrange(9)]))


def _length(rng: random.Random) -> int:
    return rng.choice([*_LENGTHS, rng.randrange(20_000), 300_000])


def _bytes(rng: random.Random) -> bytes:
    length = _length(rng)
    return rng.randbytes(min(length, 64)) * (length // 64 + 1) if length > 64 else rng.randbytes(length)


def _mode(rng: random.Random) -> int:
    return rng.choice([0o644, 0o600, 0o755, 0o777, 0o700, 0o400, 0o000, 0o4755, 0o2755, 0o1777, rng.randrange(0o10000)])


# -- Doing -----------------------------------------------------------------------------------------


class Side:
    """One of the two directories, with the descriptors that are open there."""

    def __init__(self, top: bytes) -> None:
        self.top = top
        self.open: list[int] = []

    def outcome(self, step: Step) -> object:
        """What a program sees: a value, or the name of an error."""
        try:
            return getattr(self, f"do_{step.call}")(*step.arguments)
        except OSError as error:
            return os.strerror(error.errno or 0)

    def close_all(self) -> None:
        """Close what is open."""
        while self.open:
            os.close(self.open.pop())

    def _at(self, relative: bytes) -> bytes:
        return self.top + b"/" + relative

    # -- by descriptor

    def do_close(self, number: int) -> None:
        os.close(self.open.pop(number))

    def do_pread(self, number: int, offset: int, length: int) -> bytes:
        return os.pread(self.open[number], length, offset)

    def do_pwrite(self, number: int, offset: int, data: bytes) -> int:
        return os.pwrite(self.open[number], data, offset)

    def do_read(self, number: int, length: int) -> bytes:
        return os.read(self.open[number], length)

    def do_write(self, number: int, data: bytes) -> int:
        return os.write(self.open[number], data)

    def do_seek(self, number: int, offset: int, whence: int) -> int:
        if stat.S_ISDIR(os.fstat(self.open[number]).st_mode):
            return 0  # what a position in a directory means is each filesystem's own
        return os.lseek(self.open[number], offset, whence)

    def do_ftruncate(self, number: int, size: int) -> None:
        os.ftruncate(self.open[number], size)

    def do_fsync(self, number: int, data: bool) -> None:
        (os.fdatasync if data else os.fsync)(self.open[number])

    def do_fstat(self, number: int) -> object:
        return facts(os.fstat(self.open[number]))

    def do_dup(self, number: int) -> None:
        self.open.append(os.dup(self.open[number]))

    def do_flock(self, number: int, how: int) -> None:
        fcntl.flock(self.open[number], how | fcntl.LOCK_NB)

    def do_fchmod(self, number: int, mode: int) -> None:
        os.fchmod(self.open[number], mode)

    def do_copy(self, number: int, target: int, source_off: int, target_off: int, length: int) -> object:
        source, into = self.open[number], self.open[target]
        return os.copy_file_range(source, into, length, source_off, target_off)

    def do_map(self, number: int, offset: int, data: bytes) -> object:
        fd = self.open[number]
        size = os.fstat(fd).st_size
        if not stat.S_ISREG(os.fstat(fd).st_mode) or not size:
            return None
        start = offset % size
        data = data[: size - start]
        with mmap.mmap(fd, size) as memory:
            before = bytes(memory[start : start + len(data)])
            memory[start : start + len(data)] = data
            if len(data) % 2:
                memory.flush()
        return before

    # -- by path

    def do_open(self, relative: bytes, flags: int, mode: int) -> str:
        fd = os.open(self._at(relative), flags | os.O_NONBLOCK, mode)
        self.open.append(fd)
        return oct(stat.S_IFMT(os.fstat(fd).st_mode))

    def do_truncate(self, relative: bytes, size: int) -> None:
        os.truncate(self._at(relative), size)

    def do_mkdir(self, relative: bytes, mode: int) -> None:
        os.mkdir(self._at(relative), mode)

    def do_rmdir(self, relative: bytes) -> None:
        os.rmdir(self._at(relative))

    def do_unlink(self, relative: bytes) -> None:
        os.unlink(self._at(relative))

    def do_rename(self, source: bytes, target: bytes, flags: int) -> None:
        if _libc.renameat2(-100, self._at(source), -100, self._at(target), flags):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def do_link(self, source: bytes, target: bytes, how: int) -> None:
        os.link(self._at(source), self._at(target), follow_symlinks=how == 1)

    def do_symlink(self, relative: bytes, target: bytes) -> None:
        os.symlink(target, self._at(relative))

    def do_readlink(self, relative: bytes) -> bytes:
        return os.readlink(self._at(relative))

    def do_mknod(self, relative: bytes, mode: int) -> None:
        os.mknod(self._at(relative), mode)

    def do_chmod(self, relative: bytes, mode: int) -> None:
        os.chmod(self._at(relative), mode)

    def do_chown(self, relative: bytes, uid: int, gid: int) -> None:
        os.chown(self._at(relative), uid, gid, follow_symlinks=False)

    def do_utime(self, relative: bytes, when: int) -> int:
        os.utime(self._at(relative), ns=(when, when), follow_symlinks=False)
        return os.lstat(self._at(relative)).st_mtime_ns

    def do_setxattr(self, relative: bytes, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self._at(relative), name, value, flags)

    def do_getxattr(self, relative: bytes, name: str) -> bytes:
        return os.getxattr(self._at(relative), name)

    def do_listxattr(self, relative: bytes) -> list[str]:
        return sorted(os.listxattr(self._at(relative)))

    def do_removexattr(self, relative: bytes, name: str) -> None:
        os.removexattr(self._at(relative), name)

    def do_lstat(self, relative: bytes) -> object:
        return facts(os.lstat(self._at(relative)))

    def do_stat(self, relative: bytes) -> object:
        return facts(os.stat(self._at(relative)))

    def do_access(self, relative: bytes, how: int) -> bool:
        return os.access(self._at(relative), how)

    def do_listdir(self, relative: bytes) -> list[bytes]:
        return sorted(os.listdir(self._at(relative)))

    def do_content(self, relative: bytes) -> bytes:
        fd = os.open(self._at(relative), os.O_RDONLY | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            return file.read()

    def do_umask(self, mask: int) -> None:
        os.umask(mask)

    def do_through(self, relative: bytes, below: bytes) -> object:
        """A file made and read through the descriptor of a directory."""
        fd = os.open(self._at(relative), os.O_RDONLY | os.O_DIRECTORY)
        try:
            made = os.open(below, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o644, dir_fd=fd)
            try:
                os.write(made, b"through")
            finally:
                os.close(made)
            return facts(os.stat(below, dir_fd=fd, follow_symlinks=False))
        finally:
            os.close(fd)

    def _has_size(self, relative: bytes, size: int) -> bool:
        try:
            return os.stat(self._at(relative)).st_size == size
        except OSError:
            return False

    def do_times_of(self, step: Step) -> object:
        """Which modification times a call changes: of the nodes that it names and of their directories."""
        if step.call == "truncate" and self._has_size(*step.arguments):
            return "no change"  # ext4 takes the time even so; the kernel does not for FUSE (docs/limits.md)
        paths = [argument for argument in step.arguments if isinstance(argument, bytes)]
        if step.call in ("symlink", "setxattr"):
            paths = paths[:1]
        near = sorted({self._at(one) for one in paths} | {os.path.dirname(self._at(one.rstrip(b"/"))) for one in paths})
        old = [_make_old(one) for one in near]
        outcome = self.outcome(step)
        return outcome, [before and _mtime(one) == OLD for one, before in zip(near, old, strict=True)]


def _make_old(at: bytes) -> bool:
    try:
        os.utime(at, ns=(OLD, OLD), follow_symlinks=False)
    except OSError:
        return False
    return True


def _mtime(at: bytes) -> int:
    try:
        return os.lstat(at).st_mtime_ns
    except OSError:
        return 0


def facts(found: os.stat_result) -> dict[str, object]:
    """What must be equal of an inode: neither numbers nor times, and no size of a directory."""
    told: dict[str, object] = {
        "mode": oct(found.st_mode),
        "links": found.st_nlink,
        "owner": (found.st_uid, found.st_gid),
    }
    if not stat.S_ISDIR(found.st_mode):
        told["size"] = found.st_size
    return told

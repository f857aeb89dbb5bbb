"""Every way to the data of a mount that was open before something shut it: descriptors, mappings, directories, names.

`Doors.attempts` is the table's left side: (operation, path by which it is tried). What each answers in which state
is in `test_mount_states.py`.
"""

import contextlib
import ctypes
import errno
import faulthandler
import mmap
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SIZE = 60_000
Attempt = tuple[str, str]
"""An operation and the path by which it is tried."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Doors:
    """Everything that was opened, mapped or entered while the mount served."""

    top: Path
    file: int
    written: int
    directory: int
    path_only: int
    mapping: mmap.mmap

    def attempts(self) -> dict[Attempt, Callable[[], object]]:
        """Each way in."""
        file = self.top / "dir" / "file"
        link = self.top / "link"
        return {
            ("read", "descriptor"): lambda: os.pread(self.file, 10, 0),
            ("write", "descriptor"): lambda: os.pwrite(self.written, b"x" * 4096, 0),
            ("append", "descriptor"): lambda: os.pwrite(self.written, b"x" * 100, os.fstat(self.written).st_size),
            ("stat", "descriptor"): lambda: os.fstat(self.file),
            ("fsync", "descriptor"): lambda: os.fsync(self.written),
            ("truncate", "descriptor"): lambda: os.ftruncate(self.written, 3),
            ("chmod", "descriptor"): lambda: os.fchmod(self.written, 0o600),
            ("xattr", "descriptor"): lambda: os.getxattr(self.file, "user.note"),
            ("open", "descriptor"): lambda: _open(f"/proc/self/fd/{self.file}"),
            ("stat", "O_PATH descriptor"): lambda: os.fstat(self.path_only),
            ("open", "O_PATH descriptor"): lambda: _open(f"/proc/self/fd/{self.path_only}"),
            ("read", "mapping"): self.read_mapping,
            ("list", "directory handle"): lambda: os.listdir(self.directory),
            ("stat", "directory handle"): lambda: os.stat("file", dir_fd=self.directory),
            ("open", "directory handle"): lambda: _open("file", dir_fd=self.directory),
            ("create", "directory handle"): lambda: _create("new", dir_fd=self.directory),
            ("unlink", "directory handle"): lambda: os.unlink("file", dir_fd=self.directory),
            ("list", "cwd"): lambda: self._inside(lambda: os.listdir(".")),
            ("stat", "cwd"): lambda: self._inside(lambda: os.stat("file")),
            ("open", "cwd"): lambda: self._inside(lambda: _open("file")),
            ("list", "name"): lambda: os.listdir(self.top / "dir"),
            ("list", "mount point"): lambda: os.listdir(self.top),
            ("stat", "name"): lambda: os.stat(file),
            ("lstat", "name"): lambda: os.lstat(link),
            ("open", "name"): lambda: _open(file),
            ("open to write", "name"): lambda: _open(file, os.O_WRONLY),
            ("create", "name"): lambda: _create(self.top / "new"),
            ("mkdir", "name"): lambda: os.mkdir(self.top / "new directory"),
            ("symlink", "name"): lambda: os.symlink("x", self.top / "new link"),
            ("link", "name"): lambda: os.link(file, self.top / "new name"),
            ("mknod", "name"): lambda: os.mkfifo(self.top / "new fifo"),
            ("rename", "name"): lambda: os.rename(self.top / "dir", self.top / "moved"),
            ("unlink", "name"): lambda: os.unlink(file),
            ("rmdir", "name"): lambda: os.rmdir(self.top / "empty"),
            ("truncate", "name"): lambda: os.truncate(file, 3),
            ("chmod", "name"): lambda: os.chmod(file, 0o600),
            ("utimes", "name"): lambda: os.utime(file, (1, 1)),
            ("xattr", "name"): lambda: os.getxattr(file, "user.note"),
            ("list xattrs", "name"): lambda: os.listxattr(file),
            ("set xattr", "name"): lambda: os.setxattr(file, "user.new", b"n"),
            ("readlink", "name"): lambda: os.readlink(link),
        }

    def outcomes(self) -> dict[Attempt, str]:
        """What each way in answers: the name of an errno, `SIGBUS`, or `ok`."""
        return {attempt: outcome(call) for attempt, call in self.attempts().items()}

    def outcomes_of_reading(self) -> dict[Attempt, str]:
        """The same of those that change nothing: all of them work while the zone serves."""
        harmless = ("read", "stat", "lstat", "list", "xattr", "list xattrs", "readlink")
        return {attempt: outcome(call) for attempt, call in self.attempts().items() if attempt[0] in harmless}

    def read_mapping(self) -> None:
        """Read the mapping in a child, which SIGBUS may kill. Raises OSError EFAULT then."""
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException):
                faulthandler.disable()  # SIGBUS is what is looked for
                os._exit(0 if self.mapping[SIZE // 2] == ord("s") else 1)
            os._exit(2)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGBUS
            raise OSError(errno.EFAULT, "SIGBUS")
        assert os.WEXITSTATUS(status) == 0

    def _inside(self, task: Callable[[], object]) -> object:
        """With the open directory as the working directory, which the kernel enters without a request."""
        before = os.open(".", os.O_PATH)
        try:
            os.fchdir(self.directory)
            return task()
        finally:
            os.fchdir(before)
            os.close(before)


def outcome(attempt: Callable[[], object]) -> str:
    """The name of the errno, `SIGBUS` for what a mapping gets, or `ok`."""
    try:
        attempt()
    except OSError as error:
        return "SIGBUS" if error.errno == errno.EFAULT else errno.errorcode[error.errno or 0]
    return "ok"


def _open(path: Path | str, flags: int = os.O_RDONLY, dir_fd: int | None = None) -> None:
    os.close(os.open(path, flags, dir_fd=dir_fd))


def _create(path: Path | str, dir_fd: int | None = None) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, dir_fd=dir_fd))


def cached_pages(mapping: mmap.mmap) -> int:
    """How many pages of a mapping are in the page cache: mincore(2)."""
    pages = -(-len(mapping) // mmap.PAGESIZE)
    vector = (ctypes.c_ubyte * pages)()
    address = ctypes.addressof(_Head.from_buffer(mapping))
    if _libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapping)), vector):
        raise OSError(ctypes.get_errno(), "mincore")
    return sum(entry & 1 for entry in vector)


class _Head(ctypes.Structure):
    _fields_ = (("first", ctypes.c_ubyte),)


@contextlib.contextmanager
def opened(top: Path) -> Iterator[Doors]:
    """A file that is open, mapped and cached, one that is open for writing, an open directory, a symlink."""
    (top / "dir").mkdir(exist_ok=True)
    (top / "empty").mkdir(exist_ok=True)
    (top / "dir" / "file").write_bytes(b"s" * SIZE)
    os.setxattr(top / "dir" / "file", "user.note", b"n")
    if not (top / "link").is_symlink():
        (top / "link").symlink_to("dir/file")
    file = os.open(top / "dir" / "file", os.O_RDONLY)
    written = os.open(top / "written", os.O_RDWR | os.O_CREAT)
    directory = os.open(top / "dir", os.O_RDONLY)
    path_only = os.open(top / "dir" / "file", os.O_PATH)
    # Private and writable, so that its address can be had for mincore; it is only read.
    mapping = mmap.mmap(file, SIZE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    try:
        assert mapping[:SIZE] == b"s" * SIZE
        yield Doors(top, file, written, directory, path_only, mapping)
    finally:
        mapping.close()
        for fd in (file, written, directory, path_only):
            os.close(fd)


def everything_works(doors: Doors) -> None:
    """The descriptors and the mapping of before serve again."""
    assert os.pread(doors.file, SIZE, 0) == b"s" * SIZE
    doors.read_mapping()
    assert os.listdir(doors.directory) == ["file"]
    os.fsync(doors.written)
    assert (doors.top / "dir" / "file").read_bytes() == b"s" * SIZE

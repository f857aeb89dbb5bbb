"""The backing directory, through the system calls that Python lacks and the rules that filesystems differ in.

What a backing cannot do is answered here, with a fallback or a clear refusal at mount. docs/adr/0004 has the
measurements behind `overwrite`.
"""

import ctypes
import errno
import fcntl
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from cmkfs.errors import UsageError
from cmkfs.format.layout import PAGE
from cmkfs.fs.diskthread import in_thread, in_thread_for_a_moment
from cmkfs.fs.newdirs import NewDirectories
from cmkfs.looking import look_for

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
_SYNC_FILE_RANGE_WAIT_BEFORE = 1
_SYNC_FILE_RANGE_WRITE = 2
_WAITS_BY_ITSELF = frozenset({"btrfs", "zfs", "bcachefs", "tmpfs"})
_ONLY_AS_A_WHOLE = frozenset({"btrfs"})
"""Where one file is made durable by syncing all. What fsync of btrfs (Linux 6.18) logs of one inode is not always
what it replays: of programs that rename and link, each fifth cut lost fsynced bytes of btrfs itself, or left a
filesystem that cannot be mounted; a commit of the whole lost none (docs/adr/0021)."""
_ORDERS_NAMES = frozenset({"ext4", "ext3", "xfs", "tmpfs"}) | _ONLY_AS_A_WHOLE
"""Where fsync of a file makes durable all names that were made before it, since there is one journal for all."""

_DISK_SECONDS = 400e-6
"""How long to look for what the disk brings before a thread waits for it."""
_AHEAD = 32_768
"""Bytes asked of the disk at least: a header is followed by the first blocks of its file."""

_AT_EMPTY_PATH = 0x1000
ST_NOATIME = 0x400  # statvfs(3)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_libc.renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
_libc.fchownat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_int]
_libc.syncfs.argtypes = [ctypes.c_int]


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def rename(source_dir: int, source: bytes, target_dir: int, target: bytes, flags: int = 0) -> None:
    """renameat2(2). Raises OSError; EINVAL where the backing knows no flags."""
    if flags == 0:
        os.rename(source, target, src_dir_fd=source_dir, dst_dir_fd=target_dir)
    else:
        _check(_libc.renameat2(source_dir, source, target_dir, target, flags))


def exchange_directories(source_dir: int, source: bytes, target_dir: int, target: bytes) -> None:
    """The first step of a rename over an empty directory, which leaves the mtime of what is moved. Raises OSError.

    In an exchange xfs moves it, because `..` is another directory then (fs/xfs/xfs_inode.c, xfs_cross_rename).
    """
    before = os.stat(source, dir_fd=source_dir, follow_symlinks=False)
    rename(source_dir, source, target_dir, target, RENAME_EXCHANGE)
    after = os.stat(target, dir_fd=target_dir, follow_symlinks=False)
    if after.st_mtime_ns != before.st_mtime_ns:
        os.utime(target, ns=(after.st_atime_ns, before.st_mtime_ns), dir_fd=target_dir, follow_symlinks=False)


def chown(fd: int, uid: int, gid: int) -> None:
    """fchownat(2) of what `fd` means, an O_PATH descriptor of a symlink too."""
    _check(_libc.fchownat(fd, b"", uid, gid, _AT_EMPTY_PATH))


@dataclass(frozen=True, slots=True)
class BackingKind:
    """What sort of filesystem the vault lies on."""

    fstype: str
    waits_by_itself: bool
    orders_names: bool
    syncs_as_a_whole: bool
    only_as_a_whole: bool = False


def backing_kind(fd: int) -> BackingKind:
    """Look up the filesystem type behind `fd` (proc_pid_fdinfo(5), proc_pid_mountinfo(5)).

    By mount, not by device number: btrfs tells stat(2) another one than mountinfo.
    """
    mount_id = _field(Path(f"/proc/self/fdinfo/{fd}").read_text(), "mnt_id:")
    fstype = ""
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[0] == mount_id:
            fstype = right.split()[0]
    return BackingKind(
        fstype=fstype or "unknown",
        waits_by_itself=fstype in _WAITS_BY_ITSELF,
        orders_names=fstype in _ORDERS_NAMES,
        # syncfs never reaches the server of a FUSE filesystem: it would report success and do nothing.
        syncs_as_a_whole=not fstype.startswith("fuse") and bool(fstype),
        only_as_a_whole=fstype in _ONLY_AS_A_WHOLE,
    )


def _field(text: str, name: str) -> str:
    return next((line.split()[1] for line in text.splitlines() if line.startswith(name)), "")


class Backing:
    """The vault directory while it is mounted: one descriptor for its root, kept for the life of the mount."""

    def __init__(self, vault: Path, *, read_only: bool) -> None:
        """Raises UsageError for a backing whose blocks are smaller than a page (P3 could not hold)."""
        self.read_only = read_only
        self.root_fd = os.open(vault, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.kind = backing_kind(self.root_fd)
        self._new = NewDirectories(self._fsync, self.sync_whole if self.kind.syncs_as_a_whole else None)
        found = os.fstat(self.root_fd)
        self.device = found.st_dev
        self.links_count_directories = found.st_nlink > 1
        """False on btrfs, where each directory has one link whatever is in it."""
        self.fsyncs = 0
        self._storing = False
        self.noatime = False
        """True if reading moves no access time of files: `-o noatime`."""
        self.nodiratime = False
        """The same for listing directories."""
        self._noatime_below = bool(os.fstatvfs(self.root_fd).f_flag & ST_NOATIME)
        self.failed: OSError | None = None
        """The first error of a sync of the whole: from then on nothing is called durable without its own fsync."""
        if os.fstatvfs(self.root_fd).f_bsize < PAGE:
            os.close(self.root_fd)
            raise UsageError(
                f"{vault} lies on a filesystem with blocks smaller than {PAGE} bytes: a power cut could tear a block",
                hint="use a filesystem with 4096-byte blocks (mkfs.ext4 -b 4096)",
            )

    def close(self) -> None:
        """Let go of the vault's directory."""
        self._new.close()
        os.close(self.root_fd)

    @property
    def reads_leave_no_trace(self) -> bool:
        """True if no read of a file moves its access time, here or below."""
        return self.noatime or self.read_only or self._noatime_below

    # -- content --------------------------------------------------------------------------------

    def read(self, fd: int, length: int, cipher_off: int) -> bytes | bytearray | None:
        """What is in memory already, else None: then `fetch`."""
        buffer = bytearray(length)
        try:
            got = os.preadv(fd, [buffer], cipher_off, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            got = os.preadv(fd, [buffer], cipher_off)
        if got == length:
            return buffer
        # Short: the end of the file, or the end of what is cached; only a read that may wait can tell.
        return None

    async def fetch(self, fd: int, length: int, cipher_off: int) -> bytes | bytearray:
        """`length` bytes, fewer only at the end of the file; other requests are served while the disk is waited for.

        A disk that is quick has them before a thread could be told to wait for them (200 µs, twice that while
        another one holds Python's lock): so the kernel is asked to read, and looked at again for a while.
        """
        data = self.read(fd, length, cipher_off)
        if data is None:
            self.prefetch(fd, max(length, _AHEAD), cipher_off)
            data = await look_for(partial(self.read, fd, length, cipher_off), _DISK_SECONDS)
        if data is not None:
            return data
        return await in_thread(self.read_blocking, fd, length, cipher_off)

    def read_blocking(self, fd: int, length: int, cipher_off: int) -> bytes:
        """`length` bytes, fewer only at the end of the file. Waits for the disk."""
        data = os.pread(fd, length, cipher_off)
        while 0 < len(data) < length:
            more = os.pread(fd, length - len(data), cipher_off + len(data))
            if not more:
                break
            data += more
        return data

    def zeros_until(self, fd: int, cipher_off: int) -> int:
        """Where the next bytes are stored at or behind `cipher_off`, as far as the backing knows (lseek(2))."""
        try:
            return os.lseek(fd, cipher_off, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return os.fstat(fd).st_size
            if error.errno == errno.EINVAL:
                return cipher_off  # a backing that knows no holes: everything is stored
            raise

    def prefetch(self, fd: int, length: int, cipher_off: int) -> None:
        """Have the kernel begin to read this part, so that `read` finds it in memory; waits for nothing."""
        os.posix_fadvise(fd, cipher_off, length, os.POSIX_FADV_WILLNEED)

    def count_reads(self, fd: int, *, counts: bool) -> None:
        """From now on reads of a descriptor move the access time, as the backing's mount says (relatime), or do not."""
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, 0 if counts else os.O_NOATIME)
        except PermissionError:  # the node of somebody else than the user whose daemon this is
            fcntl.fcntl(fd, fcntl.F_SETFL, 0)

    def append(self, fd: int, data: bytes | bytearray | memoryview, cipher_off: int) -> None:
        """Write pages that were never written before. Raises OSError; what was written before it stays written."""
        view = memoryview(data)
        while view:
            count = os.pwrite(fd, view, cipher_off)
            view, cipher_off = view[count:], cipher_off + count

    def overwrite(self, fd: int, data: bytes | bytearray | memoryview, cipher_off: int) -> None:
        """Write pages that were written before, none of them while the device may be reading it.

        ext4 and xfs let a page change while it is written back, and half of each version then lies on the
        medium: a plain file survives that, a sealed block does not.
        """
        if not self.kind.waits_by_itself:
            first = cipher_off - cipher_off % PAGE
            length = cipher_off + len(data) - first
            _check(_libc.sync_file_range(fd, first, length, _SYNC_FILE_RANGE_WAIT_BEFORE))
        self.append(fd, data, cipher_off)

    def begin_to_store(self, fd: int, length: int, cipher_off: int) -> bool:
        """Have a thread tell the disk to begin with this part; waits for nothing. False if it has enough to do.

        Whatever the disk refuses is told by fsync (sync_file_range(2): only its waiting flags report).
        """
        if self._storing:
            return False
        self._storing = True
        own = os.dup(fd)

        def begin() -> None:
            _libc.sync_file_range(own, cipher_off, length, _SYNC_FILE_RANGE_WRITE)
            os.close(own)

        def done(_: object) -> None:
            self._storing = False

        trio.lowlevel.start_thread_soon(begin, done)
        return True

    def set_size(self, fd: int, size: int) -> None:
        """ftruncate that leaves mtime as it was: the plain file's mtime is the backing's."""
        before = os.fstat(fd)
        os.ftruncate(fd, size)
        os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))

    # -- durability -----------------------------------------------------------------------------

    def changed_own(self, dir_fd: int, name: bytes = b".") -> None:
        """A directory is new, or got a sidecar: where names are not ordered it is synced before anything else is.

        Raises OSError.
        """
        if not self.kind.orders_names:
            self._new.add(dir_fd, name)

    async def fsync(self, fd: int) -> None:
        """fsync in a thread. Raises OSError."""
        if self.kind.only_as_a_whole:
            await self.sync_whole()
            return
        if self._new:
            await self._new.sync()
        await self._fsync(fd)

    async def _fsync(self, fd: int) -> None:
        self.fsyncs += 1
        await in_thread_for_a_moment(os.fsync, fd)

    async def sync_whole(self) -> None:
        """syncfs(2) on the descriptor that is kept for the life of the mount, so that no error is missed."""
        self.fsyncs += 1
        try:
            await in_thread(lambda: _check(_libc.syncfs(self.root_fd)))
        except OSError as error:
            self.failed = self.failed or error
            raise

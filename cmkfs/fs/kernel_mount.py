"""Mounting and unmounting: mount(2) for root, fusermount3 for everybody else, and what is mounted where.

The result of a mount is a descriptor of /dev/fuse on which the kernel's INIT waits.
"""

import ctypes
import errno
import os
import re
import shutil
import socket
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cmkfs.errors import Busy, CmkfsError, MountFailed

DEVICE = Path("/dev/fuse")
FUSECTL = Path("/sys/fs/fuse/connections")
SUBTYPE = "cmkfs"
FUSERMOUNT_SECONDS = 10.0

_MOUNTINFO = Path("/proc/self/mountinfo")
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_NOATIME, _MS_NODIRATIME = 1 << 10, 1 << 11
_MNT_FORCE, _MNT_DETACH, _UMOUNT_NOFOLLOW = 1, 2, 8

_HINT_MODULE = "modprobe fuse (in a container: run it with --device /dev/fuse)"
_HINT_FUSERMOUNT = "install the package fuse3, which has fusermount3"
_HINT_ALLOW_OTHER = "put the line user_allow_other into /etc/fuse.conf, or mount without allow_other"
# What fusermount3 says, and what helps. Source: libfuse, util/fusermount.c.
_FUSERMOUNT_HINTS = (
    ("user_allow_other", _HINT_ALLOW_OTHER),
    ("device not found", _HINT_MODULE),
    ("failed to open /dev/fuse", "chmod 0666 /dev/fuse, or mount as root"),
    ("no write access", "choose a mount point that you may write to"),
    ("not owned by user", "choose a mount point that is yours"),
    ("determine username", "give this uid a name in the user database (/etc/passwd)"),
    ("mount_max", "unmount others, or raise mount_max in /etc/fuse.conf"),
    (
        "mount failed: Operation not permitted",
        "fusermount3 has to be setuid root; see ls -l $(which fusermount3)",
    ),
)


@dataclass(frozen=True, slots=True)
class MountRequest:
    """How to mount: `source` is what df shows, any bytes but NUL; `max_read` is in bytes, 0: no limit."""

    source: bytes
    read_only: bool = False
    allow_other: bool = False
    default_permissions: bool = True
    suid: bool = False
    dev: bool = False
    noexec: bool = False
    noatime: bool = False
    nodiratime: bool = False
    max_read: int = 0

    def __post_init__(self) -> None:
        if not self.source or b"\0" in self.source:
            raise ValueError(f"not a source: {self.source!r}")
        if self.max_read < 0:
            raise ValueError(f"max_read of {self.max_read} bytes")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """A line of /proc/self/mountinfo. `minor` is also the number of a FUSE connection under fusectl."""

    mount_id: int
    parent_id: int
    minor: int
    mountpoint: bytes
    fstype: bytes
    source: bytes

    def is_mount(self, other: "MountEntry") -> bool:
        """The same mount, moved perhaps? Not by its id alone: the kernel gives that to the next mount anywhere."""
        return (self.mount_id, self.minor, self.source) == (other.mount_id, other.minor, other.source)


# -- What is mounted -------------------------------------------------------------------------------


def parse_mountinfo(text: bytes) -> list[MountEntry]:
    """All mounts in the kernel's order, see proc_pid_mountinfo(5)."""
    entries = []
    for line in text.splitlines():
        left, _, right = line.partition(b" - ")
        mount_id, parent_id, device, _root, mountpoint, *_ = left.split(b" ")
        fstype, source, *_ = right.split(b" ")
        minor = int(device.partition(b":")[2])
        entries.append(
            MountEntry(int(mount_id), int(parent_id), minor, _unescape(mountpoint), fstype, _unescape(source))
        )
    return entries


def _unescape(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)


def top_mount(entries: list[MountEntry], mountpoint: bytes) -> MountEntry | None:
    """The mount that a path lookup of `mountpoint` ends on, if something is mounted right there."""
    here = [entry for entry in entries if entry.mountpoint == mountpoint]
    covered = {entry.parent_id for entry in here}
    return next((entry for entry in reversed(here) if entry.mount_id not in covered), None)


def mounts() -> list[MountEntry]:
    """All mounts of this process' namespace; asks no mounted filesystem, so a hanging one does no harm."""
    return parse_mountinfo(_MOUNTINFO.read_bytes())


def mounted_at(mountpoint: bytes) -> MountEntry | None:
    """What is mounted at the resolved path `mountpoint` now."""
    return top_mount(mounts(), mountpoint)


# -- Mounting --------------------------------------------------------------------------------------


def mount(mountpoint: bytes, request: MountRequest) -> int:
    """Mount at the resolved path `mountpoint`; the descriptor of its connection. Raises MountFailed."""
    if os.geteuid() == 0:
        return _mount_as_root(mountpoint, request)
    return _mount_as_user(mountpoint, request)


def _mount_as_root(mountpoint: bytes, request: MountRequest) -> int:
    device = _open_device()
    try:
        mode = stat.S_IFMT(os.stat(mountpoint).st_mode)
        data = f"fd={device},rootmode={mode:o},user_id={os.getuid()},group_id={os.getgid()}"
        data = ",".join([data, *_kernel_options(request)])
        _mount(request.source, mountpoint, _flags(request), data)
    except BaseException as error:
        os.close(device)
        if isinstance(error, OSError):
            raise _refusal(mountpoint, error) from error
        raise
    return device


def _open_device() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO)
        hint = _HINT_MODULE if missing else f"ls -l {DEVICE}"
        raise MountFailed(f"cannot open {DEVICE}: {error.strerror}", hint=hint) from error


def _kernel_options(request: MountRequest) -> list[str]:
    options = []
    if request.default_permissions:
        options.append("default_permissions")
    if request.allow_other:
        options.append("allow_other")
    if request.max_read:
        options.append(f"max_read={request.max_read}")
    return options


def _flags(request: MountRequest) -> int:
    return (
        (_MS_RDONLY if request.read_only else 0)
        | (0 if request.suid else _MS_NOSUID)
        | (0 if request.dev else _MS_NODEV)
        | (_MS_NOEXEC if request.noexec else 0)
        | (_MS_NOATIME if request.noatime else 0)
        | (_MS_NODIRATIME if request.nodiratime else 0)
    )


def _refusal(mountpoint: bytes, error: OSError) -> MountFailed:
    where = os.fsdecode(mountpoint)
    if error.errno == errno.ENODEV:
        return MountFailed("this kernel has no FUSE", hint=_HINT_MODULE)
    if error.errno == errno.EPERM:
        hint = "mounting needs CAP_SYS_ADMIN (in a container: --cap-add SYS_ADMIN)"
        return MountFailed(f"not allowed to mount at {where}", hint=hint)
    return MountFailed(f"cannot mount at {where}: {error.strerror}")


def _mount(source: bytes, target: bytes, flags: int, data: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    kind = f"fuse.{SUBTYPE}".encode()
    if libc.mount(source, target, kind, ctypes.c_ulong(flags), data.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _mount_as_user(mountpoint: bytes, request: MountRequest) -> int:
    if request.suid or request.dev:
        raise MountFailed("only root can mount with suid or dev", hint="mount without suid and dev")
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno()), "LC_ALL": "C"}
            _run_fusermount(
                [b"-o", _fusermount_options(request), b"--", mountpoint],
                environment,
                (theirs.fileno(),),
                FUSERMOUNT_SECONDS,
            )
        _data, descriptors, _flags, _address = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        raise MountFailed("fusermount3 passed no descriptor", hint="fusermount3 --version")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _fusermount_options(request: MountRequest) -> bytes:
    """The words for `fusermount3 -o`: in the source backslash and comma are escaped, other bytes are not."""
    words = [option.encode() for option in _kernel_options(request)]
    words += [b"ro"] * request.read_only + [b"noexec"] * request.noexec
    words += [b"noatime"] * request.noatime + [b"nodiratime"] * request.nodiratime
    words.append(b"subtype=" + SUBTYPE.encode())
    words.append(b"fsname=" + re.sub(rb"([\\,])", rb"\\\1", request.source))
    return b",".join(words)


def _run_fusermount(
    arguments: list[bytes], environment: dict[str, str], pass_fds: tuple[int, ...], seconds: float | None
) -> None:
    program = shutil.which("fusermount3")
    if program is None:
        raise MountFailed("fusermount3 is not installed", hint=_HINT_FUSERMOUNT)
    try:
        done = subprocess.run(
            [program.encode(), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            pass_fds=pass_fds,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MountFailed(f"fusermount3 does not end within {seconds} s") from error
    if done.returncode:
        said = os.fsdecode(done.stderr).strip().removeprefix(f"{program}: ")
        hint = next((hint for words, hint in _FUSERMOUNT_HINTS if words in said), None)
        if said.endswith("busy"):
            raise Busy(said, hint="cmkfs umount --lazy MOUNTPOINT")
        raise MountFailed(said or f"fusermount3 ended with {done.returncode}", hint=hint)


# -- Unmounting ------------------------------------------------------------------------------------


def unmount(mountpoint: bytes, *, lazy: bool = False) -> None:
    """Detach what is on top at the resolved path `mountpoint`.

    Dirty pages are written back, so the daemon must serve. Raises Busy if files on it are open (never when
    lazy), MountFailed otherwise.
    """
    if os.geteuid():
        arguments = [b"-u", *([b"-z"] if lazy else []), b"--", mountpoint]
        return _run_fusermount(arguments, {**os.environ, "LC_ALL": "C"}, (), None)
    try:
        _umount2(mountpoint, _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0))
    except OSError as error:
        where = os.fsdecode(mountpoint)
        if error.errno == errno.EBUSY:
            raise Busy(f"files on {where} are in use", hint=f"cmkfs umount --lazy {where}") from error
        raise MountFailed(f"cannot unmount {where}: {error.strerror}") from error


def _umount2(mountpoint: bytes, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(mountpoint, flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def abort_connection(entry: MountEntry) -> None:
    """Cut the connection of the mount `entry`: its requests end with an error, its daemon reads ENODEV.

    fusectl does only that, and also for the user who mounted. Without it MNT_FORCE does, for root, and
    unmounts too if nothing is open. Raises MountFailed.
    """
    try:
        (FUSECTL / str(entry.minor) / "abort").write_bytes(b"1")
        return
    except OSError as refusal:
        reason: CmkfsError = MountFailed(
            f"cannot abort FUSE connection {entry.minor}: {refusal.strerror}",
            hint=f"as root: mount -t fusectl none {FUSECTL}",
        )
    try:
        _umount2(entry.mountpoint, _MNT_FORCE | _UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno != errno.EBUSY:  # busy: it stays mounted, the connection is cut all the same
            raise reason from error


def is_dead_mount(path: Path) -> bool:
    """Is `path` a cmkfs mount whose daemon is gone?

    Asks with statfs, which the kernel never answers from its cache; it waits for a daemon that lives. Of
    another user's mount without allow_other nothing can be told, not even by root: False.
    """
    entry = mounted_at(os.path.realpath(os.fsencode(path)))
    if entry is None or entry.fstype != f"fuse.{SUBTYPE}".encode():
        return False
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def clear_dead_mount(path: Path) -> bool:
    """Detach a dead mount, if `path` is one, and say whether it was. Raises MountFailed."""
    if not is_dead_mount(path):
        return False
    unmount(os.path.realpath(os.fsencode(path)), lazy=True)
    return True

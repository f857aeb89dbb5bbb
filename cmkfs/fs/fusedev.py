"""A mounted FUSE connection: negotiated, served, invalidated and cut.

Order of life: `open_device` mounts, `attach` takes the operations and the kernel's INIT, `serve` answers it and runs
until the mount ends, `close` frees.
"""

import os
import select
from dataclasses import dataclass, field
from pathlib import Path

import trio

from cmkfs.errors import Busy, MountFailed
from cmkfs.fs import kernel_mount, pagecache
from cmkfs.fs.guardian import Guardian
from cmkfs.fs.kernel_mount import MountEntry, MountRequest, clear_dead_mount, is_dead_mount
from cmkfs.fs.roster import Roster
from cmkfs.fuse.init import Negotiated, Wish, negotiate
from cmkfs.fuse.polling import DEFAULT_WINDOW
from cmkfs.fuse.session import FuseOperations, Session

__all__ = ["DeviceOptions", "FuseDevice", "MountRequest", "clear_dead_mount", "is_dead_mount", "open_device"]

INIT_SECONDS = 5.0
_LARGEST_INIT = 1 << 16


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """How to serve. `poll_window` is in seconds, 0: never poll; it is 0 too where there is one processor."""

    wish: Wish = field(default_factory=Wish)
    poll_window: float = DEFAULT_WINDOW


class FuseDevice:
    """One mount. Everything that talks to the kernel blocks, so call it from a thread while serving.

    Exceptions: `serve` and `stop` belong to the event loop.
    """

    def __init__(self, device: int, entry: MountEntry, options: DeviceOptions) -> None:
        self._device = device
        self._entry = entry
        self._options = options
        self._init_answer = b""
        self._session: Session | None = None
        self._negotiated: Negotiated | None = None
        self.serving = trio.Event()  # set once the kernel has its answer and requests are served

    @property
    def mountpoint(self) -> Path:
        """The resolved mount point."""
        return Path(os.fsdecode(self._entry.mountpoint))

    @property
    def connection(self) -> int:
        """The connection's number: the minor device number of its files, and its name under fusectl."""
        return self._entry.minor

    @property
    def negotiated(self) -> Negotiated | None:
        """What was agreed on with the kernel; None until `attach`."""
        return self._negotiated

    # -- Serving -----------------------------------------------------------------------------------

    def attach(self, operations: FuseOperations) -> None:
        """Take what is to be served, and agree with the kernel how. Raises MountFailed. Once."""
        self._init_answer, self._negotiated = negotiate(self._read_init(), self._options.wish)
        window = self._options.poll_window if len(os.sched_getaffinity(0)) > 1 else 0.0
        self._session = Session(self._device, operations, window)

    def _read_init(self) -> bytes:
        poll = select.poll()
        poll.register(self._device, select.POLLIN)
        if not poll.poll(INIT_SECONDS * 1000):
            raise MountFailed(f"the kernel sent no INIT within {INIT_SECONDS} s")
        try:
            return os.read(self._device, _LARGEST_INIT)
        except OSError as error:
            raise MountFailed(f"no INIT from the kernel: {error.strerror}") from error

    async def serve(self, *, max_tasks: int) -> None:
        """Handle requests until the mount ends or `stop` is called, at most `max_tasks` at a time.

        Further ones wait in the kernel. Raises OSError.
        """
        if self._session is None:
            raise RuntimeError("nothing is attached")
        os.write(self._device, self._init_answer)
        # Non-blocking: a request can vanish between poll and read when its caller is killed, and a blocking read
        # would stop the event loop, revocation included, until somebody uses the mount again.
        os.set_blocking(self._device, False)
        self.serving.set()
        await self._session.serve(max_tasks=max_tasks)

    def stop(self) -> None:
        """Make `serve` return; requests that are being handled are finished. On the event loop only."""
        if self._session is not None:
            self._session.stop()

    # -- What the kernel remembers -----------------------------------------------------------------

    def invalidate_inode(self, inode: int, *, attr_only: bool = False, length: int = 0) -> bool:
        """Drop the kernel's attributes and pages of `inode`, or of its first `length` bytes; dirty ones are written.

        False if the kernel does not know it. Works after `abort` too. Raises OSError.
        """
        return pagecache.notify(self._device, pagecache.inval_inode_message(inode, attr_only=attr_only, length=length))

    def invalidate_entry(self, parent: int, name: bytes) -> bool:
        """Drop `name` in the directory `parent`; False if the kernel does not know it. Raises OSError."""
        return pagecache.notify(self._device, pagecache.inval_entry_message(parent, name))

    def expire_entry(self, parent: int, name: bytes) -> bool:
        """Have the kernel ask for `name` again; False if it does not know it. Raises OSError."""
        return pagecache.notify(self._device, pagecache.inval_entry_message(parent, name, expire_only=True))

    async def start_guardian(self, roster: Roster) -> Guardian:
        """A process that drops what is cached of `roster` when this one dies. Raises GuardianGone."""
        return await Guardian.start(self._device, roster)

    # -- The end -----------------------------------------------------------------------------------

    def _connected(self) -> bool:
        poll = select.poll()
        poll.register(self._device, 0)
        return not poll.poll(0)  # POLLERR, which needs no asking for: aborted, or unmounted for good

    def abort(self) -> None:
        """Cut the connection: every request fails from now on, dirty pages are lost. Raises MountFailed.

        Does not drop what is cached: invalidate every known inode afterwards. Idempotent.
        """
        if self._connected():
            kernel_mount.abort_connection(self._entry)

    def _still_mounted(self) -> bool:
        entries = kernel_mount.mounts()
        if not any(self._entry.is_mount(entry) and entry.mountpoint == self._entry.mountpoint for entry in entries):
            return False
        top = kernel_mount.top_mount(entries, self._entry.mountpoint)
        if top is None or not self._entry.is_mount(top):
            raise Busy(f"something else is mounted over {self.mountpoint}", hint=f"umount {self.mountpoint}")
        return True

    @property
    def mounted(self) -> bool:
        """False once it was unmounted, though it may serve files that are open still."""
        return any(self._entry.is_mount(entry) for entry in kernel_mount.mounts())

    @property
    def cut(self) -> bool:
        """True if the connection has ended: unmounted for good, or aborted."""
        return not self._connected()

    def unmount(self, *, lazy: bool = False) -> bool:
        """Unmount; False if it is not mounted any more. Raises Busy (never when lazy), MountFailed.

        Dirty pages may be written back meanwhile: call it while serving, or after `close`.
        """
        if not self._still_mounted():
            return False
        kernel_mount.unmount(self._entry.mountpoint, lazy=lazy)
        return True

    def close(self) -> None:
        """Free the descriptor; what is still mounted is dead then. Idempotent."""
        if self._device >= 0:
            device, self._device = self._device, -1
            os.close(device)


def open_device(mountpoint: Path, request: MountRequest, options: DeviceOptions | None = None) -> FuseDevice:
    """Mount at `mountpoint`, a directory: as root with mount(2), else with fusermount3. Raises MountFailed.

    Whoever touches the mount point from now on waits until it is served or closed.
    """
    resolved = os.path.realpath(os.fsencode(mountpoint))
    device = kernel_mount.mount(resolved, request)
    entry = kernel_mount.mounted_at(resolved)
    if entry is None:
        os.close(device)
        raise MountFailed(f"{mountpoint} is not mounted although the kernel said so")
    return FuseDevice(device, entry, options or DeviceOptions())

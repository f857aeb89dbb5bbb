"""The guardian of a mount, in a process of its own: tells the kernel to forget inodes (docs/adr/0017-guardian.md).

Run as `python -I -S guardian_process.py DEVICE ROSTER ORDERS TALK`, four descriptors, by `fs.guardian`:

- DEVICE: a clone of the connection (FUSE_DEV_IOC_CLONE). It has its own list of requests that are being
  answered, so those that the daemon had taken end when the daemon does, and new ones can be read here.
- ROSTER: the numbers of all inodes that the kernel may know (`fs.roster`).
- ORDERS: what the orders are about, each in a place of its own: numbers of inodes, or notifications as the kernel
  takes them. TALK: a SOCK_SEQPACKET socket to the daemon, and to nobody else.

While the daemon lives it does what it is ordered: invalidate these inodes, send these notifications, in a process
whose Python the daemon's requests do not slow down. Orders are carried out side by side: none waits for the dirty
pages of another. When TALK ends without a farewell the daemon is dead: every request is refused from then on, every
inode is invalidated, and with the end of this process the kernel aborts the connection. When somebody else aborts it,
as a lock does with a daemon that hangs, every inode is invalidated too, and this process ends: nothing is left that
could be read. It has no key, imports nothing of cmkfs, reads no file, and needs no privilege. Source: linux/fuse.h;
fs/fuse/dev.c, `fuse_dev_release`, `fuse_notify_inval_inode`.
"""

import _thread
import ctypes
import os
import select
import signal
import struct
import sys
import time

READY = b"ready"
FAREWELL = b"bye"
ORDER = struct.Struct("<QQQQ")  # its own number, INODES or MESSAGES, where in ORDERS it begins and its length, in UNITs
ANSWER = struct.Struct("<QQ")  # which order is done, how much of it failed
INODES, MESSAGES = 0, 1
UNIT = 8
"""Bytes: an inode's number is one; a message begins with its own length in bytes, and is padded to whole ones."""

STALLED_SECONDS = 0.05
"""An inode whose dirty pages take longer to be stored does not hold up the others: a further thread goes on."""
MOST_THREADS = 64
LOOK_SECONDS = 1.0
"""How often it is looked whether the connection was aborted: waiting for that would cost a wake-up per request."""
LAST_SECONDS = 60.0
"""How long the inodes of a dead daemon may take; nobody is left who could hold them up."""

_INVAL_INODE = struct.Struct("<IiQQqq")  # fuse_out_header, fuse_notify_inval_inode_out
_NOTIFY_INVAL_INODE = 2
_REQUEST = struct.Struct("<IIQ")  # length, opcode, unique
_REFUSAL = struct.Struct("<IiQ")  # length, error, unique
_UNANSWERED = (2, 36, 41, 42)  # FORGET, INTERRUPT, NOTIFY_REPLY, BATCH_FORGET
_LARGEST_REQUEST = (1 << 21) + (1 << 16)
_ENOENT, _ENODEV, _ENOTCONN = 2, 19, 107
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_CUT = 0
"""The number of the order that nobody gave: the connection was aborted. The daemon's begin at 1."""


def inval_inodes(numbers: bytes) -> list[bytes | int]:
    """The inodes of an order; one of 0 is none."""
    return [number for number in memoryview(numbers).cast("Q") if number]


def messages(data: bytes) -> list[bytes | int]:
    """The notifications of an order."""
    found: list[bytes | int] = []
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        found.append(data[at : at + length])
        at += -(-length // UNIT) * UNIT
    return found


class Order:
    """What to tell the kernel, by as many threads as it takes: inodes to invalidate, and other notifications.

    `wake` hears of the end.
    """

    def __init__(self, device: int, items: list[bytes | int], wake: int = -1) -> None:
        self._device = device
        self._wake = wake
        self._items = items
        self._lock = _thread.allocate_lock()
        self._next = 0
        self._threads = 0
        self._begun = False
        self._seen = -1
        self.failed = 0
        self.done = _thread.allocate_lock()
        self.done.acquire()

    def further_thread(self) -> None:
        """Begin, or go on beside an inode that takes its time."""
        with self._lock:
            if self._threads >= MOST_THREADS or (self._begun and self._next >= len(self._items)):
                return
            self._begun = True
            self._threads += 1
        _thread.start_new_thread(self._work, ())

    def hurry(self) -> None:
        """Called again and again: a further thread if there was no progress since the last time."""
        if self._next == self._seen:
            self.further_thread()
        self._seen = self._next

    def _work(self) -> None:
        failed = 0
        message = bytearray(_INVAL_INODE.pack(_INVAL_INODE.size, _NOTIFY_INVAL_INODE, 0, 0, 0, 0))
        while True:
            with self._lock:
                at = self._next
                if at >= len(self._items):
                    break
                self._next = at + 1
            item = self._items[at]
            if isinstance(item, int):
                struct.pack_into("<Q", message, 16, item)
            try:
                os.write(self._device, message if isinstance(item, int) else item)
            except OSError as error:
                failed += error.errno != _ENOENT  # ENOENT: the kernel does not know it, which is as good
        with self._lock:
            self.failed += failed
            self._threads -= 1
            if not self._threads:
                self.done.release()
                if self._wake >= 0:
                    os.write(self._wake, b"!")


def refuse(device: int) -> None:
    """Answer every request with ENOTCONN, in the place of the dead daemon, until the connection is gone."""
    buffer = bytearray(_LARGEST_REQUEST)
    while True:
        try:
            os.readv(device, [buffer])
            _, opcode, unique = _REQUEST.unpack_from(buffer)
            if opcode not in _UNANSWERED:
                os.write(device, _REFUSAL.pack(_REFUSAL.size, -_ENOTCONN, unique))
        except OSError as error:
            if error.errno in (_ENODEV, _ENOTCONN):
                return
            if error.errno != _ENOENT:  # the request was withdrawn meanwhile: its program was killed
                raise


def stand_in(device: int, roster: int) -> None:
    """The daemon is dead: nothing of the mount may be read any more."""
    began = time.monotonic()
    _thread.start_new_thread(refuse, (device,))
    order = Order(device, inval_inodes(os.pread(roster, os.fstat(roster).st_size, 0)))
    order.further_thread()
    while not order.done.acquire(timeout=STALLED_SECONDS):
        order.hurry()
        if time.monotonic() - began > LAST_SECONDS:
            break
    took = 1000 * (time.monotonic() - began)
    os.write(2, b"guardian: the daemon died; what the kernel had cached was dropped in %.1f ms\n" % took)


class Desk:
    """Where the daemon's orders arrive, and where it is seen that there is nothing left to guard."""

    def __init__(self, device: int, roster: int, orders: int, talk: int) -> None:
        self._device = device
        self._roster = roster
        self._orders = orders
        self._talk = talk
        self._done, self._wake = os.pipe()
        self._running: dict[int, Order] = {}
        self._look_at = 0.0

    def serve(self) -> bool:
        """Carry out orders until the daemon says farewell or the connection has ended: True.

        False if the daemon ends without a farewell. Raises OSError if it does so while it is being answered.
        """
        waiting = select.poll()
        for fd in (self._talk, self._done):
            waiting.register(fd, select.POLLIN)
        hurry_at, cut = 0.0, False
        while not cut or self._running:
            ready = dict(waiting.poll(1000 * (STALLED_SECONDS if self._running else LOOK_SECONDS)))
            if self._talk in ready:
                message = os.read(self._talk, 64)
                if message in (b"", FAREWELL):
                    return message == FAREWELL
                self._begin(*ORDER.unpack(message))
            if self._done in ready:
                os.read(self._done, 4096)
            self._answer()
            now = time.monotonic()
            if not cut and now >= self._look_at:
                self._look_at = now + LOOK_SECONDS
                cut = self._is_cut()
            if now >= hurry_at:
                hurry_at = now + STALLED_SECONDS
                for order in self._running.values():
                    order.hurry()
        return True

    def _begin(self, number: int, kind: int, begin: int, length: int) -> None:
        data = os.pread(self._orders, length * UNIT, begin * UNIT)
        self._carry_out(number, messages(data) if kind == MESSAGES else inval_inodes(data))

    def _carry_out(self, number: int, items: list[bytes | int]) -> None:
        self._running[number] = Order(self._device, items, self._wake)
        self._running[number].further_thread()

    def _answer(self) -> None:
        for number, order in list(self._running.items()):
            if order.done.acquire(blocking=False):
                del self._running[number]
                if number != _CUT:
                    os.write(self._talk, ANSWER.pack(number, order.failed))

    def _is_cut(self) -> bool:
        """True once the connection is aborted, also by its unmount; then what was cached is being dropped."""
        look = select.poll()
        look.register(self._device, 0)  # POLLERR, which needs no asking for
        if not look.poll(0):
            return False
        self._carry_out(_CUT, inval_inodes(os.pread(self._roster, os.fstat(self._roster).st_size, 0)))
        return True


def give_up_privileges() -> None:
    """No core dumps, nobody's debugger, and nothing gained by a program that is set-user-id (prctl(2))."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def main(arguments: list[str]) -> None:
    """Serve, then stand in for a daemon that died. Ends without waiting for threads that hang in the kernel."""
    give_up_privileges()
    device, roster, orders, talk = (int(text) for text in arguments)
    # The end of a service or a session sends these to every process of it; the daemon's end decides.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        os.write(talk, READY)
        farewell = Desk(device, roster, orders, talk).serve()
    except OSError:  # the daemon died while it was being answered
        farewell = False
    if not farewell:
        stand_in(device, roster)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])

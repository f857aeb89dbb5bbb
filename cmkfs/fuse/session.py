"""Serving a connection: requests are read from /dev/fuse, handled, and answered, one call down and one value back.

Any number of workers share the device, one of which reads. It handles what it has read on the spot, and reads on as
long as nothing waits: no task switch, no lock. When a handler suspends, for the disk or the token, the next worker
takes over the reading.
"""

import errno
import logging
import os
import struct
import types
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Sequence
from functools import partial
from mmap import mmap
from typing import Any, ClassVar, NamedTuple, Protocol

import trio

from cmkfs.caller import Request
from cmkfs.fuse.dispatch import HANDLERS, Arguments, forgotten
from cmkfs.fuse.init import MAX_WRITE
from cmkfs.fuse.messages import IN_HEADER, OUT_HEADER, UNANSWERED, Buffer, Opcode, refusal
from cmkfs.fuse.polling import Readiness

log = logging.getLogger(__name__)

_HEADER_BYTES = 40
_BUFFER_BYTES = MAX_WRITE + 4096
"""The largest request: a WRITE, with its headers. The kernel demands that much room (`fuse_dev_do_read`)."""
_SPARE_WORKERS = 4
"""Idle workers beyond so many end, and free their buffers."""
_SHORT = 4096
"""An answer of fewer bytes is joined with its header: one copy is cheaper than a vector."""
_VANISHED = (errno.EAGAIN, errno.EINTR, errno.ENOENT)
"""Between the poll and the read: its caller was killed."""
_CUT = (errno.ENODEV, errno.ECONNABORTED)
"""The connection has ended. ECONNABORTED: it was aborted, and the one who did it has not been heard yet."""
_FAILURES = 100
"""A read that fails otherwise has cost one request, which the kernel has ended; so many in a row end the mount."""
_ERRNOS = range(1, 512)
"""What the kernel takes for an errno; it would wait on after another one (`fuse_dev_do_write`)."""


class Requests:
    """How many requests came from the kernel, by handler: what it answers from its caches costs none.

    `quiet` of them are no use of the data: a monitor that asks for free space keeps no mount awake.
    """

    by_kind: ClassVar[Counter[str]] = Counter()
    quiet = 0

    @classmethod
    def total(cls) -> int:
        """All of them."""
        return cls.by_kind.total()


class _NotTaken(Exception):
    """A bug: an answer that is none to its request. The kernel has ended that with EIO, most often."""


class FuseOperations(Protocol):
    """What a session serves: beside these two, a coroutine function for each handler of `dispatch` that it has."""

    def errno_of(self, name: str, args: Arguments, error: Exception) -> int:
        """What the kernel is told when the handler `name` raised. Never raises."""
        ...

    def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The kernel drops so many lookups of each inode. Never raises."""
        ...


Call = Coroutine[Any, Any, Any]


class _Bound(NamedTuple):
    """A handler of `dispatch` with the function of the operations behind it."""

    name: str
    arguments: Callable[[int, Request, memoryview], Arguments]
    call: Callable[..., Call]
    answer: Callable[[Any, memoryview], Buffer]


class _Suspended(NamedTuple):
    """A request whose handler waits; `trap` is what it told trio."""

    call: Call
    trap: object
    unique: int
    bound: _Bound
    args: Arguments
    body: memoryview


class Session:
    """Serves the requests of one device, a non-blocking descriptor of /dev/fuse after INIT."""

    def __init__(self, device: int, operations: FuseOperations, window: float) -> None:
        """`window`: for how many seconds to look for a request before really waiting."""
        self._device = device
        self._operations = operations
        self._ready = Readiness(device, window)
        self._bound: dict[int, _Bound] = {}
        for opcode, (name, arguments, answer) in HANDLERS.items():
            call = getattr(operations, name, None)
            if call is not None:
                self._bound[opcode] = _Bound(name, arguments, call, answer)
        self._reading = False
        self._ended = False
        self._failures = 0
        self._idle = trio.lowlevel.ParkingLot()
        self._workers = 0

    async def serve(self, *, max_tasks: int) -> None:
        """Handle requests until the mount ends or `stop` is called, at most `max_tasks` at a time.

        Further ones wait in the kernel. Returns when those that are being handled are finished. Raises OSError.
        """
        self._most = max_tasks
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._add_worker()

    def stop(self) -> None:
        """Make `serve` return. On the event loop only."""
        self._ended = True
        self._ready.close()
        self._idle.unpark_all()

    # -- Workers -----------------------------------------------------------------------------------

    def _add_worker(self) -> None:
        """Raises OSError if there is no memory for its buffer."""
        buffer = mmap(-1, _BUFFER_BYTES)  # not a bytearray: memory that no request needed is never touched
        self._workers += 1
        self._nursery.start_soon(self._work, buffer)

    async def _work(self, buffer: mmap) -> None:
        message = memoryview(buffer)
        try:
            while await self._may_read():
                suspended = await self._read_on(buffer, message)
                self._reading = False
                if suspended is not None:
                    self._hand_over()
                    await self._finish(suspended)
        finally:
            self._workers -= 1

    async def _may_read(self) -> bool:
        """Wait until nobody else reads. False if this worker is not needed any more."""
        while self._reading and not self._ended:
            if len(self._idle) >= _SPARE_WORKERS:
                return False
            await self._idle.park()
        self._reading = not self._ended
        return self._reading

    def _hand_over(self) -> None:
        """Somebody else reads from now on, unless all that may wait do."""
        if self._idle:
            self._idle.unpark()
        elif self._workers < self._most:
            try:
                self._add_worker()
            except OSError as error:
                log.error("no further request is read until one is answered: %s", error.strerror)

    async def _read_on(self, buffer: mmap, message: memoryview) -> _Suspended | None:
        """Serve one request after the other; gives the first one whose handler waits, None at the end."""
        ready, device = self._ready, self._device
        while not self._ended:
            if not ready.at_once():
                try:
                    await ready.wait()
                except trio.ClosedResourceError:
                    continue
            try:
                length = os.readv(device, [buffer])
            except OSError as error:
                self._not_read(error)
                continue
            if length < _HEADER_BYTES:
                log.error("bug: a request of %s bytes", length)
                continue
            self._failures = 0
            suspended = self._begin(message[:length])
            if suspended is not None:
                return suspended
        return None

    def _not_read(self, error: OSError) -> None:
        if error.errno in _CUT:
            self._ended = True
            self._idle.unpark_all()
        elif error.errno not in _VANISHED:
            self._failures += 1
            log.error("a request could not be read: %s", error.strerror)
            if self._failures >= _FAILURES:
                raise error

    # -- One request -------------------------------------------------------------------------------

    def _begin(self, message: memoryview) -> _Suspended | None:
        """Handle a request as far as nothing waits."""
        opcode, unique, nodeid, uid, gid, pid = IN_HEADER.unpack_from(message)
        body = message[_HEADER_BYTES:]
        bound = self._bound.get(opcode)
        if bound is None:
            self._other(opcode, unique, nodeid, body)
            return None
        Requests.by_kind[bound.name] += 1
        args: Arguments = ()
        try:
            args = bound.arguments(nodeid, Request(uid, gid, pid), body)
            call = bound.call(*args)
            trap = call.send(None)
        except StopIteration as done:
            self._answer(unique, bound, args, done.value, body)
        except Exception as error:
            self._refuse(unique, bound, args, error)
        else:
            return _Suspended(call, trap, unique, bound, args, body)
        return None

    async def _finish(self, suspended: _Suspended) -> None:
        """Handle the rest of a request, and answer it."""
        call, trap, unique, bound, args, body = suspended
        try:
            result = await _rest(call, trap)
        except Exception as error:
            self._refuse(unique, bound, args, error)
        else:
            self._answer(unique, bound, args, result, body)

    def _other(self, opcode: int, unique: int, nodeid: int, body: memoryview) -> None:
        if opcode in (Opcode.FORGET, Opcode.BATCH_FORGET):
            Requests.by_kind["forget"] += 1
            try:
                inodes = forgotten(opcode, nodeid, body)
            except struct.error:
                log.error("bug: a FORGET of %s bytes", len(body))
                return
            self._operations.forget(inodes)
        elif opcode not in UNANSWERED:
            try:
                self._write([refusal(unique, errno.ENOSYS)])
            except _NotTaken as failure:
                log.error("%s", failure)

    # -- Answers -----------------------------------------------------------------------------------

    def _answer(self, unique: int, bound: _Bound, args: Arguments, result: object, body: memoryview) -> None:
        try:
            data = bound.answer(result, body)
            header = OUT_HEADER.pack(OUT_HEADER.size + len(data), 0, unique)
            if len(data) < _SHORT:
                self._write([header + data])
            else:
                self._write([header, data])
        except Exception as error:
            self._refuse(unique, bound, args, error)

    def _refuse(self, unique: int, bound: _Bound, args: Arguments, error: Exception) -> None:
        number = self._operations.errno_of(bound.name, args, error)
        try:
            self._write([refusal(unique, number if number in _ERRNOS else errno.EIO)])
        except _NotTaken as failure:
            log.error("%s", failure)

    def _write(self, parts: list[Buffer]) -> None:
        try:
            os.writev(self._device, parts)
        except OSError as error:
            # The connection was cut meanwhile, or the request is ended: nobody waits any more.
            if error.errno not in (errno.ENOENT, *_CUT):
                raise _NotTaken(f"the kernel does not take an answer: {error.strerror}") from error


@types.coroutine
def _rest(call: Call, trap: object) -> Generator[object, Any, Any]:
    """What `await` does with a coroutine, from its first suspension on (PEP 492, PEP 380)."""
    while True:
        try:
            received = yield trap
        except BaseException as error:
            step = partial(call.throw, error)
        else:
            step = partial(call.send, received)
        try:
            trap = step()
        except StopIteration as done:
            return done.value

"""The mount's end of the control socket; runs on trio inside the daemon's nursery.

Only root and the daemon's own user are answered. A client that sends nonsense, sends slowly, does not
read, or goes away harms nobody but itself.
"""

import contextlib
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import trio

from cmkfs.control import registry
from cmkfs.control.protocol import AWAIT_EXIT, PEER, REQUEST_LIMIT, Fields, Peer, Request, answer_line, error_line
from cmkfs.control.registry import MountRecord
from cmkfs.errors import Busy, CmkfsError, PolicyDenied, UsageError
from cmkfs.home import Home

Handler = Callable[[Fields], Awaitable[Fields]]
"""Answers one operation: arguments to answer. A CmkfsError that it raises is told to the client."""

IDLE_SECONDS: Final = 30.0
"""How long a client may take to send a request, or to read an answer."""

LAST_CALL_SECONDS: Final = 0.1
"""The same once the mount has ended: only what was sent before is waited for."""

FAREWELL_SECONDS: Final = 5.0
"""How long `finish` waits for clients to read their last answers."""

RETRY_SECONDS: Final = 0.1
MAX_CONNECTIONS: Final = 128

_UCRED = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)

_log = logging.getLogger(__name__)


class ControlServer:
    """Serves one mount's socket from `open` until `finish`.

    `handlers` maps operations to what answers them; `await_exit` is answered here, by `finish`.
    """

    def __init__(self, home: Home, record: MountRecord, handlers: Mapping[str, Handler]) -> None:
        self._home = home
        self._record = record
        self._handlers = dict(handlers)
        self._listener: socket.socket | None = None
        self._scope = trio.CancelScope()
        self._clients: trio.Nursery | None = None
        self._reading: set[trio.CancelScope] = set()
        self._connections = 0
        self._all_gone = trio.Event()
        self._ended = trio.Event()
        self._result: Fields = {}

    def open(self) -> None:
        """Make the socket and the record. Raises Busy if the mount point has a live daemon."""
        self._listener = registry.bind(self._home, self._record)
        self._listener.setblocking(False)

    def update(self, record: MountRecord) -> None:
        """Store what has changed in the record, such as a CMK that a new zone uses."""
        self._record = record
        registry.update(self._home, record)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer clients until `finish` or cancelled; then socket and record are gone.

        Start it with `nursery.start`: `finish` can answer the last clients once it runs.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as self._clients:
                    task_status.started()
                    await self._accept_until_closed(self._clients)
                    await trio.sleep_forever()  # `finish` cancels, once the last clients have been answered
        finally:
            self._close()

    async def finish(self, result: Fields) -> None:
        """Answer every `await_exit` with `result` and stop; call it when the mount has ended.

        Socket and record go first, so that who hears the answer may mount again at once. Requests that
        were sent before are still answered: `umount` sends its `await_exit` first and unmounts then.
        """
        if self._listener is not None and self._clients is not None:
            try:
                self._accept_waiting(self._listener, self._clients)
            except OSError as error:
                _log.warning("control socket: %s", error)
        self._close()
        self._result = result
        self._ended.set()
        for scope in self._reading:
            scope.deadline = min(scope.deadline, trio.current_time() + LAST_CALL_SECONDS)
        if self._connections:
            with trio.move_on_after(FAREWELL_SECONDS):
                await self._all_gone.wait()
        self._scope.cancel()

    def _close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            registry.withdraw(self._home, self._record)
            trio.lowlevel.notify_closing(listener)
            listener.close()

    # -- accepting -------------------------------------------------------------------------------

    async def _accept_until_closed(self, clients: trio.Nursery) -> None:
        while (listener := self._listener) is not None:
            try:
                self._accept_waiting(listener, clients)
            except OSError as error:  # out of descriptors (accept(2)): the clients that wait are not lost
                _log.warning("control socket: %s", error)
                await trio.sleep(RETRY_SECONDS)
            try:
                await trio.lowlevel.wait_readable(listener)
            except trio.ClosedResourceError:
                return

    def _accept_waiting(self, listener: socket.socket, clients: trio.Nursery) -> None:
        """Take in every client that has connected by now. Raises OSError if no descriptor is left."""
        while True:
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return
            self._connections += 1
            clients.start_soon(self._client, trio.socket.from_stdlib_socket(connection))

    async def _client(self, connection: trio.socket.SocketType) -> None:
        stream = trio.SocketStream(connection)
        try:
            async with stream:
                await self._converse(stream)
        except (trio.BrokenResourceError, trio.TooSlowError) as error:
            _log.debug("control client dropped: %r", error)
        finally:
            self._connections -= 1
            if self._ended.is_set() and not self._connections:
                self._all_gone.set()

    # -- one client ------------------------------------------------------------------------------

    async def _converse(self, stream: trio.SocketStream) -> None:
        try:
            unread = bytearray()
            while (line := await self._next_line(stream, unread)) is not None:
                # Refused only now that its request is read: a socket that is closed with bytes unread
                # can reset the client's end before it has seen why.
                peer = self._admit(stream)
                if not await self._answer(stream, line, peer):
                    return
        except CmkfsError as error:  # one that ends the conversation, not the answer to a request
            await _send(stream, error_line(error))

    def _admit(self, stream: trio.SocketStream) -> Peer:
        credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, gid = _UCRED.unpack(credentials)
        if uid not in (0, os.geteuid()):
            raise PolicyDenied(f"uid {uid} may not control a mount of uid {os.geteuid()}")
        if self._connections > MAX_CONNECTIONS:
            raise Busy(f"more than {MAX_CONNECTIONS} control clients")
        return Peer(uid, gid, pid)

    async def _next_line(self, stream: trio.SocketStream, unread: bytearray) -> bytes | None:
        """The next request, None when the client has no more. Raises UsageError if it is too long."""
        allowed = LAST_CALL_SECONDS if self._ended.is_set() else IDLE_SECONDS
        with trio.move_on_after(allowed) as scope:
            self._reading.add(scope)
            try:
                while (end := unread.find(b"\n")) < 0:
                    if len(unread) >= REQUEST_LIMIT:
                        raise UsageError(f"a request may have {REQUEST_LIMIT} bytes")
                    chunk = await stream.receive_some(REQUEST_LIMIT - len(unread))
                    if not chunk:
                        return None
                    unread += chunk
            finally:
                self._reading.discard(scope)
            line = bytes(unread[: end + 1])
            del unread[: end + 1]
            return line
        return None

    async def _answer(self, stream: trio.SocketStream, line: bytes, peer: Peer) -> bool:
        """Answer one request; False if nothing can follow it."""
        more = True
        try:
            request = Request.from_line(line)
            if request.op == AWAIT_EXIT:
                await self._until_ended_or_gone(stream)
                answer, more = answer_line(self._result), False
            else:
                answer = answer_line(await self._handle(request, peer))
        except CmkfsError as error:
            answer = error_line(error)
        await _send(stream, answer)
        return more

    async def _handle(self, request: Request, peer: Peer) -> Fields:
        handler = self._handlers.get(request.op)
        if handler is None:
            raise UsageError(f"this mount knows no operation {request.op!r}")
        try:
            return await handler({**request.arguments, PEER: peer})
        except CmkfsError:
            raise
        except Exception as error:
            _log.exception("control operation %s failed", request.op)
            raise CmkfsError(f"{request.op} failed inside the mount: {error!r}; its log has more") from error

    async def _until_ended_or_gone(self, stream: trio.SocketStream) -> None:
        """Return when the mount has ended. Raises trio.BrokenResourceError if the client leaves first."""
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.receive_some(1)
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            await self._ended.wait()
            nursery.cancel_scope.cancel()
        if not self._ended.is_set():
            raise trio.BrokenResourceError("the client left before the mount ended")


async def _send(stream: trio.SocketStream, line: bytes) -> None:
    with trio.fail_after(IDLE_SECONDS):
        await stream.send_all(line)

"""Processes that open the content of files: Python opens a block at a time, and each processor can do that.

They begin before the token's module is loaded (docs/adr/0003: never on both sides of a fork), get one file
descriptor and one file's key with each task through a socket, and keep neither.
"""

import multiprocessing
import os
import pickle
import selectors
import socket
from collections.abc import Callable
from types import TracebackType

from cmkfs.errors import CmkfsError
from cmkfs.maintenance.content import Outcome, Task, check_part

_MESSAGE = 65_536
_WAITING = 4
"""Tasks that a reader has besides the one at work."""

Done = Callable[[Outcome], None]


class Readers:
    """As many processes as this one may use processors. A context: at its end they are gone."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._waiting: dict[socket.socket, list[Done]] = {}
        self._processes: list[multiprocessing.process.BaseProcess] = []
        context = multiprocessing.get_context("fork")
        for _ in os.sched_getaffinity(0):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            process = context.Process(
                target=_serve, args=(theirs, [*self._waiting, ours]), daemon=True, name="cmkfs-reader"
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._waiting[ours] = []
            self._selector.register(ours, selectors.EVENT_READ)

    def __enter__(self) -> "Readers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for ours in self._waiting:
            ours.close()
        self._selector.close()
        for process in self._processes:
            if kind is not None:
                process.terminate()
            process.join()

    def submit(self, fd: int, task: Task, done: Done) -> None:
        """Have one part of a file read; `done` is called from a later call of this object. `fd` stays the caller's."""
        reader = min(self._waiting, key=lambda one: len(self._waiting[one]))
        while len(self._waiting[reader]) > _WAITING:
            self._take()
            reader = min(self._waiting, key=lambda one: len(self._waiting[one]))
        socket.send_fds(reader, [pickle.dumps(task)], [fd])
        self._waiting[reader].append(done)

    def finish(self) -> None:
        """Wait for everything that was submitted."""
        while any(self._waiting.values()):
            self._take()

    def _take(self) -> None:
        for key, _ in self._selector.select():
            reader = key.fileobj
            assert isinstance(reader, socket.socket)
            message = reader.recv(_MESSAGE)
            if not message:
                raise CmkfsError("a process that reads files has died", hint="the same again")
            outcome = pickle.loads(message)  # noqa: S301  # from a child of this process
            self._waiting[reader].pop(0)(outcome)


def _serve(ours: socket.socket, parents: list[socket.socket]) -> None:
    """The life of a reader: until its socket is closed, which nobody but the parent may hold open."""
    for one in parents:
        one.close()
    while True:
        message, fds, _, _ = socket.recv_fds(ours, _MESSAGE, 1)
        if not message:
            return
        try:
            answer = check_part(fds[0], pickle.loads(message))  # noqa: S301  # from the process that made this one
        finally:
            os.close(fds[0])
        ours.send(pickle.dumps(answer))

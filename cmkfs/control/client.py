"""The commands' end of the control socket: plain blocking sockets with a deadline."""

import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from cmkfs.control.protocol import ANSWER_LIMIT, AWAIT_EXIT, Fields, Request, result_of
from cmkfs.control.registry import Entry
from cmkfs.errors import CmkfsError, NoAnswer

ANSWER_SECONDS: Final = 30.0
"""How long an answer may take unless told otherwise."""

_CHUNK = 64 * 1024
_T = TypeVar("_T")


class Connection:
    """One connection to one mount; answers come in the order of the requests."""

    def __init__(self, path: Path, *, label: str) -> None:
        """Raises CmkfsError if nobody listens, NoAnswer if too many wait. `label` is what messages call the mount."""
        self._label = label
        self._unread = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_SECONDS)
        try:
            self._socket.connect(str(path))
        except TimeoutError as error:
            self._socket.close()
            raise NoAnswer(f"the mount at {label} takes no more requests") from error
        except OSError as error:
            self._socket.close()
            raise CmkfsError(f"the mount at {label} cannot be reached: {_reason(error)}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def ask(self, op: str, *, seconds: float | None = ANSWER_SECONDS, **arguments: object) -> Fields:
        """Send a request and return its answer. Raises the error that the mount answers.

        `seconds` None waits for as long as the mount lives. Raises NoAnswer if the answer is late.
        """
        self.send(op, **arguments)
        return self.receive(seconds=seconds)

    def send(self, op: str, **arguments: object) -> None:
        """Send a request without waiting for its answer."""
        try:
            self._socket.sendall(Request(op, arguments).to_line())
        except OSError as error:
            raise CmkfsError(f"the mount at {self._label} does not listen: {_reason(error)}") from error

    def receive(self, *, seconds: float | None = ANSWER_SECONDS) -> Fields:
        """The answer to the oldest request that has none yet. Raises NoAnswer if it is late: it may come yet."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while (end := self._unread.find(b"\n")) < 0:
            if len(self._unread) > ANSWER_LIMIT:
                raise CmkfsError(f"the mount at {self._label} gives an answer without an end")
            self._unread += self._chunk(deadline, seconds)
        line = bytes(self._unread[: end + 1])
        del self._unread[: end + 1]
        return result_of(line)

    def _chunk(self, deadline: float | None, seconds: float | None) -> bytes:
        try:
            # Zero would mean "do not block", which is another error than "too late".
            self._socket.settimeout(None if deadline is None else max(deadline - time.monotonic(), 0.001))
            chunk = self._socket.recv(_CHUNK)
        except TimeoutError as error:
            raise NoAnswer(f"the mount at {self._label} did not answer within {seconds:g} s") from error
        except OSError as error:
            raise CmkfsError(f"the mount at {self._label} broke off: {_reason(error)}") from error
        if not chunk:
            raise CmkfsError(f"the mount at {self._label} ended without an answer")
        return chunk


def ask(entry: Entry, op: str, *, seconds: float | None = ANSWER_SECONDS, **arguments: object) -> Fields:
    """One request to one mount. Raises the error that it answers, CmkfsError if it does not."""
    with Connection(entry.socket, label=entry.label) as connection:
        return connection.ask(op, seconds=seconds, **arguments)


def ask_to_say_when_ended(entry: Entry) -> Connection:
    """A connection whose `receive` returns when the mount has ended and everything is stored."""
    connection = Connection(entry.socket, label=entry.label)
    connection.send(AWAIT_EXIT)
    return connection


def ask_each(entries: Iterable[Entry], question: Callable[[Entry], _T]) -> list[tuple[Entry, _T | CmkfsError]]:
    """Put a question to several mounts at once: what each gives, or the error it raises."""

    def guarded(entry: Entry) -> _T | CmkfsError:
        try:
            return question(entry)
        except CmkfsError as error:
            return error

    asked = list(entries)
    if not asked:
        return []
    with ThreadPoolExecutor(max_workers=min(len(asked), 32)) as pool:
        return list(zip(asked, pool.map(guarded, asked), strict=True))


def _reason(error: OSError) -> str:
    return error.strerror or str(error)

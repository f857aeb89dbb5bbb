"""Work done in forked children: as another user, or by several processes at once.

A child inherits the descriptors that are open, so "another process writes through the old descriptor" is a
lambda. What it returns or raises comes back to the test.
"""

import ctypes
import os
import pickle
import select
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

SECONDS = 60.0
"""How long a child may take before it is killed and the test fails."""

_PR_SET_PDEATHSIG = 1
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Who:
    """The user that a child becomes, for good."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def become(self) -> None:
        """Give up what the process was."""
        os.setgroups(list(self.groups))
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)


ALICE = Who(12345, 12345)
BOB = Who(12346, 12346)


class Child:
    """A forked child that runs `task`, once the test lets it."""

    def __init__(self, task: Callable[[], object], who: Who | None = None) -> None:
        self._read, write = os.pipe()
        gate, self._gate = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _run(task, who, gate, write)
        os.close(write)
        os.close(gate)

    def go(self) -> None:
        """Let it begin. A byte and not the end of the pipe, since other children have its end too."""
        os.write(self._gate, b"!")
        os.close(self._gate)

    def result(self) -> Any:
        """Wait for its end; what the task returned. Raises what it raised."""
        said = bytearray()
        try:
            while True:
                ready, _, _ = select.select([self._read], [], [], SECONDS)
                if not ready:
                    os.kill(self.pid, signal.SIGKILL)
                    raise AssertionError(f"a child did not end within {SECONDS} s")
                chunk = os.read(self._read, 1 << 20)
                if not chunk:
                    break
                said += chunk
        finally:
            os.close(self._read)
            os.waitpid(self.pid, 0)
        assert said, "a child died without a word"
        returned, value = pickle.loads(said)
        if not returned:
            raise value
        return value


def _run(task: Callable[[], object], who: Who | None, gate: int, write: int) -> None:
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.read(gate, 1)
        try:
            if who is not None:
                who.become()
            answer = pickle.dumps((True, task()))
        except BaseException as error:
            answer = pickle.dumps((False, error))
        with open(write, "wb") as pipe:
            pipe.write(answer)
    finally:
        os._exit(0)


def in_child(task: Callable[[], _T], who: Who | None = None) -> _T:
    """What `task` returns in another process, that of `who` if given. Raises what it raises there."""
    child = Child(task, who)
    child.go()
    result: _T = child.result()
    return result


def all_at_once(tasks: Sequence[Callable[[], _T]], who: Who | None = None) -> list[_T]:
    """Run every task in a process of its own, all begun together; what they return, in order."""
    children = [Child(task, who) for task in tasks]
    for child in children:
        child.go()
    results, errors = [], []
    for child in children:
        try:
            results.append(child.result())
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return results

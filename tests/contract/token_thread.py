"""A transport to a provider in the tests' own process: one thread for all calls, with a deadline for each caller.

A mount has a process for that (`cmkfs.keys.token_process`). python-pkcs11 initialises modules as single-threaded
and SoftHSM crashes when two threads use it, so every call of a process goes through one `TokenWorker`, in the order
in which they were made.

A call that passes its deadline raises TokenUnavailable. If it had not begun it never will; if it had,
nobody can interrupt it: it runs on, the calls behind it wait no longer than their own deadlines, and
what it brings in the end is dropped (and wiped, if it is a bytearray). Then the worker serves again.

Who runs: callers (trio tasks or threads) put jobs in and take them out again at their deadline, the
worker's thread takes them in turn. `_wake` guards the queue, the states of the jobs and `_busy_since`.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import Any, Final, Generic, TypeVar, TypeVarTuple

import trio

from cmkfs.errors import TokenUnavailable
from cmkfs.keys.provider import KeyProvider
from cmkfs.keys.token_client import perform

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

MAX_WAITING: Final = 1024
"""Calls that may wait. At 5 ms each, a usual token on a network, the last of them takes 5 s: what waits
behind them would pass the default deadline anyway."""


class _State(Enum):
    WAITING = auto()
    RUNNING = auto()
    DONE = auto()
    ABANDONED = auto()


class _Job(Generic[R]):
    """One call. `tell` is called in the worker's thread when there is a result that somebody waits for."""

    def __init__(self, work: Callable[[], R], tell: Callable[[], None]) -> None:
        self.work = work
        self.tell = tell
        self.state = _State.WAITING
        self._result: R | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result = self.work()
        except BaseException as error:  # It belongs to the caller, whatever it is: this thread lives on.
            self._error = error

    def result(self) -> R:
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # `work` has returned

    def drop(self) -> None:
        """Nobody will take the result: do not keep a secret in memory."""
        if isinstance(self._result, bytearray):
            self._result[:] = bytes(len(self._result))
        self._result = None


def _late(deadline: float) -> TokenUnavailable:
    return TokenUnavailable(f"the token did not answer within {deadline:g} s")


class TokenWorker:
    """The thread. It starts at the first call, so a process may fork before that; idle, it uses no CPU."""

    def __init__(self, *, max_waiting: int = MAX_WAITING) -> None:
        self._wake = threading.Condition()
        self._waiting: deque[_Job[object]] = deque()
        self._max_waiting = max_waiting
        self._thread: threading.Thread | None = None
        self._busy_since: float | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Calls that have not begun."""
        return len(self._waiting)

    @property
    def busy_seconds(self) -> float:
        """How long the call that is in the token now has run; 0.0 when there is none."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    async def call(self, function: Callable[[*Ts], R], *args: *Ts, deadline: float) -> R:
        """`function(*args)` in the worker's thread, from trio.

        `deadline` is in seconds from now. Raises what `function` raises, and TokenUnavailable at the
        deadline, after `close`, or if too many calls wait. A cancelled call is abandoned likewise.
        """
        done = trio.Event()
        loop = trio.lowlevel.current_trio_token()

        def tell() -> None:
            try:
                loop.run_sync_soon(done.set)
            except trio.RunFinishedError:
                job.drop()  # The event loop ended meanwhile, and the caller with it.

        job = _Job(lambda: function(*args), tell)
        self._put(job, deadline)
        try:
            with trio.move_on_after(deadline):
                await done.wait()
        except BaseException:
            self._take_back(job)
            job.drop()  # It may be done already, when the caller was cancelled just then.
            raise
        return self._result_of(job, deadline)

    def run(self, function: Callable[[*Ts], R], *args: *Ts, deadline: float) -> R:
        """`call` for threads without an event loop: the commands."""
        done = threading.Event()
        job = _Job(lambda: function(*args), done.set)
        self._put(job, deadline)
        try:
            done.wait(deadline)
        except BaseException:
            self._take_back(job)
            job.drop()
            raise
        return self._result_of(job, deadline)

    def close(self, *, wait: float = 0.0) -> bool:
        """Take no more calls and end the thread after the present one; idempotent.

        Calls that wait fail with TokenUnavailable. Waits up to `wait` seconds; True if the thread has
        ended. It is a daemon thread, so one that hangs in a token does not keep the process alive.
        """
        with self._wake:
            self._closed = True
            refused = list(self._waiting)
            self._waiting.clear()
            for job in refused:
                self._refuse(job)
            self._wake.notify()
            thread = self._thread
        if thread is None:
            return True
        thread.join(max(0.0, wait))
        return not thread.is_alive()

    def _put(self, job: _Job[R], deadline: float) -> None:
        if deadline <= 0:
            raise _late(deadline)
        with self._wake:
            if self._closed:
                raise TokenUnavailable("the token is closed")
            if len(self._waiting) >= self._max_waiting:
                raise TokenUnavailable(f"the token is too slow: {len(self._waiting)} calls wait for it")
            if self._thread is None:
                thread = threading.Thread(target=self._serve, name="cmkfs-token", daemon=True)
                thread.start()
                self._thread = thread
            self._waiting.append(job)  # type: ignore[arg-type]  # a job of R is a job of some object
            self._wake.notify()

    def _take_back(self, job: _Job[R]) -> bool:
        """True if the job is done; otherwise it is abandoned from now on."""
        with self._wake:
            if job.state is _State.DONE:
                return True
            if job.state is _State.WAITING:
                self._waiting.remove(job)  # type: ignore[arg-type]
            job.state = _State.ABANDONED
            return False

    def _result_of(self, job: _Job[R], deadline: float) -> R:
        if not self._take_back(job):
            raise _late(deadline)
        return job.result()

    @staticmethod
    def _refuse(job: _Job[object]) -> None:
        def closed() -> object:
            raise TokenUnavailable("the token was closed before the call began")

        job.work = closed
        job.run()
        job.state = _State.DONE
        job.tell()

    def _serve(self) -> None:
        while self._serve_one():
            pass

    def _serve_one(self) -> bool:
        job = self._next()
        if job is None:
            return False
        job.run()
        with self._wake:
            self._busy_since = None
            wanted = job.state is _State.RUNNING
            if wanted:
                job.state = _State.DONE
        if wanted:
            job.tell()
        else:
            job.drop()
        return True

    def _next(self) -> _Job[object] | None:
        with self._wake:
            while not self._waiting:
                if self._closed:
                    return None
                self._wake.wait()
            job = self._waiting.popleft()
            job.state = _State.RUNNING
            self._busy_since = time.monotonic()
            return job


class ThreadTransport:
    """For a provider in this process: the worker's thread makes every call."""

    def __init__(self, worker: TokenWorker, provider: KeyProvider) -> None:
        self._worker = worker
        self._provider = provider
        self.parallel = 1

    async def ask(self, deadline: float, name: str, *args: Any, **named: Any) -> Any:
        """See Transport."""
        return await self._worker.call(partial(perform, self._provider, name, *args, **named), deadline=deadline)

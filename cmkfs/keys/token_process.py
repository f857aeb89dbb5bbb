"""A process for the token, with a deadline for each caller (docs/adr/0014).

A mount makes every PKCS#11 call in a process of its own: the module has one thread, as it needs, and neither its
time nor its faults are the event loop's. One request is under way at a time; others wait their turn in order.

A call that passes its deadline raises TokenUnavailable. If it had not begun it never will; if it had, its answer
is thrown away when it comes, and the calls behind it wait no longer than their own deadlines. `recover` ends a
process that has not answered by then, and begins a new one: a module that hangs or crashes costs an outage, never
the mount.
"""

import logging
import pickle
from collections.abc import Awaitable, Callable
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Any, Final

import trio

from cmkfs.errors import PinRefused, TokenUnavailable
from cmkfs.keys.access import TokenAccess
from cmkfs.keys.token_client import OPEN
from cmkfs.keys.token_start import LARGEST_MESSAGE, Started, overwrite
from cmkfs.looking import look_for

log = logging.getLogger(__name__)

MAX_WAITING: Final = 1024
"""Calls that may wait. At 5 ms each, a usual token on a network, the last of them takes 5 s: what waits behind
them would pass the default deadline anyway."""

_LOOK_SECONDS: Final = 500e-6
"""How long to look for an answer before waiting for it in earnest: an embedded token answers within 150 µs, and
being woken takes as long again."""

OF_THE_WATCH: Final = frozenset({"canary", "policy"})
"""The calls that are made twice a second also while nobody uses the mount."""

_OPEN_SECONDS: Final = 10.0
_KILL_SECONDS: Final = 5.0


class _Server:
    """One process, and what is under way with it."""

    def __init__(self, started: Started | None = None) -> None:
        """Raises OSError if no process can be begun."""
        # One for all answers, and private: what is in it is overwritten once it was read.
        self._buffer = mmap(-1, LARGEST_MESSAGE, flags=MAP_PRIVATE | MAP_ANONYMOUS)
        self._message = memoryview(self._buffer)
        self._started = started or Started()
        self.process = self._started.process
        self.socket = self._started.socket
        self.abandoned = False
        """True while an answer is due for which nobody waits any more."""
        self.logging_in = False
        """True while the answer to a login is due, whether somebody waits for it or not."""

    @property
    def lost(self) -> bool:
        """True if it has ended, or has not answered within somebody's deadline."""
        return self.abandoned or self.ended

    @property
    def ended(self) -> bool:
        """True if there is no process any more."""
        return self.process.poll() is not None

    async def ask(self, message: bytes, *, urgent: bool = True) -> Any:
        """One exchange. After one that was cancelled the next waits for its answer first, and drops it.

        `urgent`: a program waits for it, which is worth some processor time.
        """
        if self.abandoned:
            overwrite(await self._receive(urgent=urgent))
        try:
            self.socket.send(message)
        except OSError as error:
            raise TokenUnavailable(f"the token's process is gone: {error.strerror}") from error
        return await self.answer(urgent=urgent)

    async def answer(self, *, urgent: bool = False) -> Any:
        """What is answered to what was asked last. Raises what the call raised, and TokenUnavailable."""
        message = await self._receive(urgent=urgent)
        try:
            succeeded, answer = pickle.loads(message)  # noqa: S301 - from the process that we began
        finally:
            overwrite(message)
        if succeeded:
            return answer
        raise answer

    async def _receive(self, *, urgent: bool) -> memoryview:
        answered = self.abandoned = False
        try:
            data = await look_for(self._received, _LOOK_SECONDS) if urgent else None
            while data is None:
                await trio.lowlevel.wait_readable(self.socket)
                data = self._received()
            answered = True
        finally:
            self.abandoned = not answered
        return data

    def _received(self) -> memoryview | None:
        """The message in the buffer; whoever has read it overwrites it."""
        try:
            length = self.socket.recv_into(self._buffer)
        except BlockingIOError:
            return None
        except OSError as error:
            raise TokenUnavailable(f"the token's process is gone: {error.strerror}") from error
        if not length:
            raise TokenUnavailable("the token's process has ended")
        return self._message[:length]

    def end(self, wait: float) -> None:
        """See `Started`."""
        self._started.end(wait)


class PinRefusal:
    """What the token said of the PIN when it refused it; shared by all processes that would try the same one."""

    def __init__(self) -> None:
        self.said: str | None = None

    def check(self) -> None:
        """Raises PinRefused if it was refused to anybody."""
        if self.said is not None:
            raise PinRefused(self.said)


class TokenProcess:
    """A transport for `TokenClient`."""

    def __init__(self, refusal: PinRefusal | None = None, started: Started | None = None) -> None:
        """Takes over a process that was started, or begins one. Raises OSError if none can be begun."""
        self._server = _Server(started)
        self._turn = trio.Lock()
        self._open_message: bytes | None = None
        self._logged_in = False
        self._refusal = refusal or PinRefusal()
        self._waiting = 0

    @property
    def pid(self) -> int:
        """The process that has the token now."""
        return self._server.process.pid

    @property
    def parallel(self) -> int:
        """One thread makes the calls."""
        return 1

    @property
    def lost(self) -> bool:
        """True if it has ended, or has not answered somebody within his deadline."""
        return self._server.lost

    def kill(self) -> None:
        """At once; whoever waits for an answer gets TokenUnavailable. `close` is still to come."""
        self._server.process.kill()

    async def open(self, access: TokenAccess, pin: str, deadline: float, *, once: bool = False) -> None:
        """Log in. Raises TokenUnavailable, PinRefused, Busy.

        `once`: the provider is not to log in again by itself, and is of no use when its session ends.
        """
        self._open_message = pickle.dumps((OPEN, (access, pin, once), {}), pickle.HIGHEST_PROTOCOL)
        await self._begin_anew(deadline)

    async def ask(self, deadline: float, name: str, *args: Any, **named: Any) -> Any:
        """See Transport."""
        message = pickle.dumps((name, args, named), pickle.HIGHEST_PROTOCOL)
        if name == "recover":
            self._refusal.check()
            if self._server.lost or not self._logged_in:
                await self._begin_anew(deadline)
                return None
        elif not self._logged_in:
            raise TokenUnavailable("the token is not open")
        try:
            return await self._in_turn(message, deadline, urgent=name not in OF_THE_WATCH)
        except PinRefused as error:  # it has logged in again by itself, to look for a key that it does not see
            self._refusal.said = str(error)
            raise

    async def _in_turn(self, message: bytes, deadline: float, *, urgent: bool) -> Any:
        if self._waiting >= MAX_WAITING:
            raise TokenUnavailable(f"the token is too slow: {self._waiting} calls wait for it")
        with trio.move_on_after(deadline):
            await self._take_turn()
            try:
                return await self._server.ask(message, urgent=urgent)
            finally:
                self._turn.release()
        raise TokenUnavailable(f"the token did not answer within {deadline:g} s")

    async def _take_turn(self) -> None:
        try:
            self._turn.acquire_nowait()
        except trio.WouldBlock:
            self._waiting += 1
            try:
                await self._turn.acquire()
            finally:
                self._waiting -= 1

    async def _begin_anew(self, deadline: float) -> None:
        """Log in, in a new process if the present one is lost. Raises TokenUnavailable, PinRefused, Busy.

        Of several who come at once, one for each CMK, the first does it. A PIN that was refused is never tried again,
        and a login that nobody waits for any more has another such time to be answered before it is made again.
        """
        if self._server.lost and not self._server.logging_in:
            log.warning("the token's process does not answer; a new one takes its place")
            self._server.process.kill()  # whoever waits for it is told, and gives up the turn
        seconds = max(deadline, _OPEN_SECONDS)
        with trio.move_on_after(seconds):
            await self._take_turn()
            try:
                self._refusal.check()
                if self._server.logging_in and not self._server.ended:
                    await self._log_in(self._late_answer)
                elif self._server.lost:
                    self._logged_in = False
                    await trio.to_thread.run_sync(self._server.end, _KILL_SECONDS)
                    self._server = _Server()
                if not self._logged_in:
                    await self._log_in(self._answer_to_login)
                return
            except OSError as error:
                raise TokenUnavailable(f"no process for the token can be begun: {error.strerror}") from error
            except RuntimeError as error:  # "can't start new thread"
                raise TokenUnavailable(f"a process of the token cannot be ended: {error}") from error
            finally:
                self._turn.release()
        raise TokenUnavailable(f"the token did not answer within {seconds:g} s")

    async def _log_in(self, answer: Callable[[], Awaitable[Any]]) -> None:
        try:
            await answer()
        except PinRefused as error:
            self._refusal.said = str(error)
            raise
        self._logged_in = True

    async def _answer_to_login(self) -> None:
        if self._open_message is None:
            raise TokenUnavailable("the token is not open")
        server = self._server
        server.logging_in = True
        try:
            await server.ask(self._open_message)
        finally:
            server.logging_in = server.abandoned

    async def _late_answer(self) -> None:
        self._server.logging_in = False  # the next one does not wait for it once more
        await self._server.answer()

    def close(self, *, wait: float = 0.0) -> None:
        """End the process; it is killed if it takes longer than `wait` seconds. Idempotent."""
        self._server.end(wait)

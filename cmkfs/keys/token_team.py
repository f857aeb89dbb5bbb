"""Several processes for a token that is slow: its calls overlap (docs/adr/0022).

One process is enough for a token that answers at once, and is all there is until calls are seen to take long while
others wait. Then `help` begins more, each with a login of its own. They are alike to whoever asks: a call goes to one
that is free, in the order of asking. But the watch asks the first one only, before everybody else: what it is told
decides when all begin anew. A helper that fails is ended, another takes its place, and its call is made again.
"""

import logging
import time
from collections import deque
from typing import Any, Final

import trio

from cmkfs.errors import CmkfsError, TokenUnavailable
from cmkfs.keys.access import TokenAccess
from cmkfs.keys.token_process import MAX_WAITING, OF_THE_WATCH, PinRefusal, TokenProcess
from cmkfs.keys.token_start import Started

log = logging.getLogger(__name__)

SLOW_SECONDS: Final = 0.004
"""A token whose unwraps, of two calls each, take longer is worth more processes; an embedded one takes a tenth of a
millisecond, some more on a host that is busy."""
_WEIGHT: Final = 0.1
_LOGIN_SECONDS: Final = 10.0


class _Turn:
    """Somebody's place in a queue."""

    __slots__ = ("given", "process")

    def __init__(self) -> None:
        self.given = trio.Event()
        self.process: TokenProcess | None = None


class TokenTeam:
    """A transport for `TokenClient`. `help` is a task that the mount runs; without it there is one process."""

    def __init__(self, most: int, started: Started | None = None) -> None:
        """`most` processes, `started` the first: 1 for a token that does not take parallel calls. Raises OSError."""
        self._wished = self._most = most
        self._refusal = PinRefusal()
        self._lead = TokenProcess(self._refusal, started)
        self._helpers: set[TokenProcess] = set()
        self._ended: list[TokenProcess] = []
        self._idle: list[TokenProcess] = [self._lead]
        self._watching: deque[_Turn] = deque()
        self._waiting: deque[_Turn] = deque()
        self._pace = 0.0
        self._wanted = trio.Event()
        self._login: tuple[TokenAccess, str] | None = None

    @property
    def pids(self) -> list[int]:
        """The processes that have the token now, the first one first."""
        return [process.pid for process in (self._lead, *self._helpers)]

    @property
    def parallel(self) -> int:
        """How many calls are worth making at once."""
        return self._most if self._pace > SLOW_SECONDS else 1

    async def open(self, access: TokenAccess, pin: str, deadline: float) -> None:
        """Log in. Raises TokenUnavailable, PinRefused, Busy."""
        await self._lead.open(access, pin, deadline)
        self._login = (access, pin)

    async def ask(self, deadline: float, name: str, *args: Any, **named: Any) -> Any:
        """See Transport."""
        if name == "recover":
            return await self._recover(deadline)
        by_watch = name in OF_THE_WATCH
        if len(self._waiting) >= MAX_WAITING and not by_watch:
            raise TokenUnavailable(f"the token is too slow: {len(self._waiting)} calls wait for it")
        with trio.move_on_after(deadline) as scope:
            while True:
                process = await self._take(by_watch=by_watch)
                failed, began = False, time.monotonic()
                try:
                    answer = await process.ask(deadline, name, *args, **named)
                except TokenUnavailable:
                    failed = True
                    if process is self._lead:
                        raise
                else:
                    self._note_pace(name, answer, time.monotonic() - began)
                    return answer
                finally:
                    self._put_back(process, failed=failed or scope.cancel_called)
        raise TokenUnavailable(f"the token did not answer within {deadline:g} s")

    def _note_pace(self, name: str, answer: Any, seconds: float) -> None:
        """By calls that cost the same each time; a single one that took long, on a busy host, makes no token slow."""
        if name == "unwrap" or name.endswith("_many"):
            each = seconds if name == "unwrap" else seconds / max(1, len(answer))
            self._pace += _WEIGHT * (min(each, 2 * SLOW_SECONDS) - self._pace)
            if self._waiting and len(self._helpers) + 1 < self.parallel:
                self._wanted.set()

    # -- whose turn it is ------------------------------------------------------------------------

    async def _take(self, *, by_watch: bool) -> TokenProcess:
        free = [one for one in self._idle if (one is self._lead if by_watch else self._is_of_use(one))]
        if free:
            process = min(free, key=lambda one: one.lost)  # not the one whose last caller gave up, if there is another
            self._idle.remove(process)
            return process
        turn, queue = _Turn(), self._watching if by_watch else self._waiting
        queue.append(turn)
        try:
            await turn.given.wait()
        except BaseException:
            if turn.process is None:
                queue.remove(turn)
            else:
                self._put_back(turn.process, failed=False)
            raise
        assert turn.process is not None
        return turn.process

    def _is_of_use(self, process: TokenProcess) -> bool:
        """A first process that is late, or was left in the middle of a call, is the watch's while there are others."""
        return process in self._helpers or (process is self._lead and not (self._helpers and process.lost))

    def _put_back(self, process: TokenProcess, *, failed: bool) -> None:
        if process is not self._lead and (failed or process not in self._helpers):
            self._end(process)
        else:
            self._give(process)

    def _give(self, process: TokenProcess) -> None:
        if process is self._lead and self._watching:
            turn = self._watching.popleft()
        elif self._waiting and self._is_of_use(process):
            turn = self._waiting.popleft()
        else:
            self._idle.append(process)
            return
        turn.process = process
        turn.given.set()

    def _give_lead(self) -> None:
        """It may be of use again."""
        if self._lead in self._idle:
            self._idle.remove(self._lead)
            self._give(self._lead)

    # -- more of them, and fewer -----------------------------------------------------------------

    async def help(self) -> None:
        """Background task: begin processes when they are wanted, and bury those that have ended."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            await self._bury()
            try:
                await self._begin_helpers()
            except (CmkfsError, OSError) as error:
                # It gives no more sessions, or the host no more processes. If it is away, the watch finds that.
                log.info("the token has %s processes and gets no more: %s", len(self._helpers) + 1, error)
                self._most = len(self._helpers) + 1
                await self._bury()

    async def _bury(self) -> None:
        try:
            while self._ended:
                ended = self._ended[0]
                await trio.to_thread.run_sync(ended.close, abandon_on_cancel=True)
                self._ended.remove(ended)
        except RuntimeError as error:  # "can't start new thread": they stay until the next one ends
            log.info("%s processes of the token have ended, and are not waited for: %s", len(self._ended), error)

    async def _begin_helpers(self) -> None:
        """One after the other: a PIN that was changed meanwhile is tried once. Raises CmkfsError, OSError."""
        while len(self._helpers) + 1 < self.parallel:
            await self._bury()  # those that fail at their first call do so again and again
            if self._login is None:
                raise TokenUnavailable("the token is not open")
            self._refusal.check()
            helper = TokenProcess(self._refusal)
            self._ended.append(helper)  # until it is of use
            await helper.open(*self._login, _LOGIN_SECONDS, once=True)
            self._ended.remove(helper)
            self._helpers.add(helper)
            self._give(helper)

    def _end(self, helper: TokenProcess) -> None:
        helper.kill()
        self._helpers.discard(helper)
        self._ended.append(helper)
        self._wanted.set()
        self._give_lead()

    async def _recover(self, deadline: float) -> None:
        """Begin anew: the helpers' sessions are no better than the first one's."""
        for helper in list(self._helpers):
            helper.kill()  # whoever waits for its answer is told, puts it back and asks another one
            self._helpers.discard(helper)
            if helper in self._idle:
                self._idle.remove(helper)
                self._end(helper)
        self._most, self._pace = self._wished, 0.0
        try:
            await self._lead.ask(deadline, "recover")
        finally:
            self._give_lead()

    def close(self, *, wait: float = 0.0) -> None:
        """End the processes; one is killed if it takes longer than `wait` seconds. Idempotent."""
        for process in (self._lead, *self._helpers, *self._ended):
            process.close(wait=wait)

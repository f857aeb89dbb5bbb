"""The watch: asks the token again and again whether each CMK may still be used, and what its policy is.

Refused: its zones lock. Unreachable: work goes on for the outage grace, then they lock. Both end by
themselves when the token answers again; a lock by an operator does not. An explicit disable always wins.
"""

import logging
import math
from collections.abc import Awaitable, Callable

import trio

from cmkfs.accounts import SystemAccounts
from cmkfs.errors import (
    CmkfsError,
    CmkNotFound,
    ConfigError,
    Disabled,
    KeyUnavailable,
    PinRefused,
    Revoked,
    Tampered,
    TokenUnavailable,
)
from cmkfs.format.recipient import CmkId
from cmkfs.keys.policies import Policies
from cmkfs.keys.token_client import TokenClient
from cmkfs.policy import fingerprint
from cmkfs.policyfile import parse

log = logging.getLogger(__name__)

Lock = Callable[[KeyUnavailable], Awaitable[None]]
Unlock = Callable[[], Awaitable[None]]


class CmkWatch:
    """Watches one CMK for one mount."""

    def __init__(
        self,
        cmk_id: CmkId,
        name: str,
        token: TokenClient,
        policies: Policies,
        lock: Lock,
        unlock: Unlock,
        *,
        revocation_bound: float,
        outage_grace: float,
        revoke: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._cmk_id = cmk_id
        self._name = name
        self._token = token
        self._policies = policies
        self._lock = lock
        self._unlock = unlock
        self._interval = revocation_bound / 2
        self._grace = outage_grace
        self._unreachable_since: float | None = None
        self._policy_text: str | None = None
        self._looking = trio.Lock()
        self._running = trio.CancelScope()
        self._revoke = revoke
        self._carried_out: object = None
        self.refusal: KeyUnavailable | None = None
        self.on_policy: Callable[[str], None] = lambda _: None
        """Told the fingerprint of each policy that takes the place of another."""

    @property
    def healthy(self) -> bool:
        """True if the token answered the last time."""
        return self._unreachable_since is None

    @property
    def policy_hash(self) -> str:
        """The fingerprint of the policy in force; empty if there is none."""
        return fingerprint(self._policy_text)

    async def run(self) -> None:
        """Look twice within each revocation bound; the policy, which costs twenty canaries, is read once in it."""
        with self._running:
            policy_too, began = False, trio.current_time()
            while True:
                # From when the last one began: a look may take long, on a host that is busy.
                await trio.sleep_until(min(began + self._interval, trio.current_time() + self._grace_left()))
                began = trio.current_time()
                await self.look(policy_too=policy_too)
                policy_too = not policy_too

    def end(self) -> None:
        """No zone of the mount is under the CMK any more: `run` returns."""
        self._running.cancel()

    def _patience(self) -> float:
        """Seconds for one look."""
        return min(max(self._grace, 2 * self._interval), self._grace_left() or math.inf)

    def _grace_left(self) -> float:
        """Seconds until an outage locks; infinite if there is none, or if it has."""
        if self._unreachable_since is None or isinstance(self.refusal, TokenUnavailable):
            return math.inf
        return max(0.0, self._unreachable_since + self._grace - trio.current_time())

    async def begin(self) -> None:
        """Read the policy before anything is served. Raises Disabled, TokenUnavailable, …"""
        try:
            await self._ask()
        except Disabled:
            await self._ask_for_policy()
            raise
        self._carried_out = self._policies.in_force(self._cmk_id)

    async def look(self, *, policy_too: bool = True) -> None:
        """Look now; returns when what was found has taken effect."""
        async with self._looking:
            if not self._grace_left():
                await self._refused(self._outage())
            # A CMK that was disabled when the mount began has a policy that was never read.
            # And what a refusal has locked is not unlocked by an older one.
            canary_will_do = not policy_too and self.refusal is None and self._policies.knows(self._cmk_id)
            if not await self._look(self._ask_the_canary if canary_will_do else self._ask) and await self._recovered():
                await self._look(self._ask)

    async def _look(self, ask: Callable[[], Awaitable[None]]) -> bool:
        """Ask once; False if the token is away."""
        if await self._asked(ask):
            await self._answered()
            await self._carry_out()
        return self.healthy

    async def _asked(self, ask: Callable[[], Awaitable[None]]) -> bool:
        """True if the CMK may be used; else what follows from that has taken effect."""
        began = trio.current_time()
        try:
            # Not the interval: a token that is slow but answers is no outage. Nor longer than an outage may last.
            with trio.fail_after(self._patience()):
                await ask()
        except (Disabled, Revoked, CmkNotFound) as error:
            self._reached()
            await self._refused(_as_refusal(error, self._name))
            if isinstance(error, Disabled) and ask == self._ask:
                await self._learn_policy()
        except Tampered as error:
            # Somebody edited what the token keeps of the CMK; who may use it cannot be told.
            self._reached()
            await self._refused(KeyUnavailable(str(error), hint=error.next_step))
        except CmkfsError as error:
            await self._unreachable(error, began)
        except trio.TooSlowError:
            await self._unreachable(TokenUnavailable("the token does not answer"), began)
        except Exception as error:
            # A module can fail in ways nobody thought of; that must not end the mount, only its use of keys.
            log.exception("the token failed")
            await self._unreachable(TokenUnavailable(f"the token failed: {error!r}"), began)
        else:
            self._reached()
            return True
        return False

    async def _ask(self) -> None:
        await self._ask_the_canary()
        await self._ask_for_policy()

    async def _ask_for_policy(self) -> None:
        self.take_policy(await self._token.policy(self._cmk_id))

    async def _learn_policy(self) -> None:
        """What is in order when it is enabled again is set while it is not, in an incident. The lock came first."""
        try:
            with trio.fail_after(self._patience()):
                await self._ask_for_policy()
        except (CmkfsError, trio.TooSlowError) as error:  # before it is unlocked again, it is asked for again
            log.warning("the policy of %s is not known: %s", self._name, error or "the token does not answer")
        except Exception:
            log.exception("the token failed")

    async def _ask_the_canary(self) -> None:
        await self._token.canary(self._cmk_id)

    async def _carry_out(self) -> None:
        """What the policy, or the clock, takes from somebody is taken from what he has open too."""
        in_force = self._policies.in_force(self._cmk_id)
        if in_force is not self._carried_out and (self._revoke is None or await self._revoke()):
            self._carried_out = in_force

    def take_policy(self, text: str | None) -> None:
        """Decide by this policy from now on; one that cannot be read allows nobody anything."""
        if text == self._policy_text and self._policies.knows(self._cmk_id):
            return
        replaces, self._policy_text = self._policies.knows(self._cmk_id), text
        self._put_in_force(text)
        if replaces:
            self.on_policy(self.policy_hash)

    def _put_in_force(self, text: str | None) -> None:
        try:
            policy = None if text is None else parse(text, name=f"policy of {self._name}", accounts=SystemAccounts())
        except ConfigError as error:
            log.error("the policy of %s cannot be read, nobody is allowed anything: %s", self._name, error)
            self._policies.refuse_all(self._cmk_id)
            return
        self._policies.set_policy(self._cmk_id, policy)

    def _reached(self) -> None:
        self._unreachable_since = None
        self._token.outage = None

    async def _refused(self, why: KeyUnavailable) -> None:
        if self.refusal is None or type(self.refusal) is not type(why):
            self.refusal = why
            await self._lock(why)

    async def _unreachable(self, error: CmkfsError, began: float) -> None:
        if self._unreachable_since is None:
            self._unreachable_since = began
            log.warning("the token does not answer: %s", error)
        self._token.outage = str(error)
        if trio.current_time() - self._unreachable_since >= self._grace:
            await self._refused(self._outage())

    def _outage(self) -> TokenUnavailable:
        return TokenUnavailable(f"the token has not answered for {self._grace:g} s")

    async def _recovered(self) -> bool:
        """Initialise the token again, and log in once if it is there. Not longer than the grace."""
        with trio.move_on_after(self._grace_left() or math.inf):
            try:
                await self._token.recover()
            except PinRefused as failure:
                await self._needs_another_pin(failure)
                return False
            except CmkfsError as failure:
                log.debug("the token is not back: %s", failure)
                return False
            except Exception:
                log.exception("the token failed")
                return False
            return True
        return False

    async def _needs_another_pin(self, failure: PinRefused) -> None:
        """Such an outage does not end by itself, and whoever looks why the zones are locked must see that."""
        self._token.outage = str(failure)
        if isinstance(self.refusal, TokenUnavailable) and str(failure) not in str(self.refusal):
            hint = "unmount, and mount with the PIN that the token has now"
            self.refusal = TokenUnavailable(f"{self.refusal}: {failure}", hint=hint)
            await self._lock(self.refusal)

    async def _answered(self) -> None:
        """Unlock what a refusal has locked."""
        if self.refusal is None:
            return
        before, self.refusal = self.refusal, None
        failure: CmkfsError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_meanwhile)
            try:
                await self._unlock()
            except CmkfsError as error:
                failure = error
            if self.refusal is None:  # else a lock is under way, which cancelled would drop what it should store
                nursery.cancel_scope.cancel()
        if failure is not None:
            log.warning("the zones of %s stay locked: %s", self._name, failure)
            self.refusal = self.refusal or before

    async def _look_meanwhile(self) -> None:
        """An unlock can take minutes, with recovery: what is refused or lost meanwhile is not noticed after it."""
        while self.refusal is None:
            await trio.sleep(min(self._interval, self._grace_left()))
            if not self._grace_left():
                await self._refused(self._outage())
            elif not await self._asked(self._ask_the_canary) and not self.healthy:
                await self._recovered()


def _as_refusal(error: CmkfsError, name: str) -> KeyUnavailable:
    if isinstance(error, CmkNotFound):
        return Revoked(f"CMK {name} is not in the token any more")
    if isinstance(error, Revoked):
        return error
    return Disabled(f"CMK {name} is disabled", hint=f"cmkfs cmk enable {name}")

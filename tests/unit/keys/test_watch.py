"""The watch: what a CMK's state, its policy and an unreachable token do to its zones."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing
from one_zone import OWNER, OneZone, until
from test_policies import rules

from cmkfs.errors import CmkfsError, Disabled, KeyUnavailable, Revoked, Tampered, TokenUnavailable
from cmkfs.keys.watch import CmkWatch
from cmkfs.policy import Action, fingerprint

BOUND, GRACE, DEADLINE = 1.0, 30.0, 5.0


@dataclass(slots=True)
class Watched:
    """A watch and what it asked for."""

    made: OneZone
    watch: CmkWatch
    locks: list[KeyUnavailable] = field(default_factory=list)
    unlocks: int = 0
    unlock_fails: CmkfsError | None = None

    async def lock(self, why: KeyUnavailable) -> None:
        self.locks.append(why)

    async def unlock(self) -> None:
        self.unlocks += 1
        if self.unlock_fails is not None:
            raise self.unlock_fails


@pytest.fixture
async def watched(serving: OneZone) -> Watched:
    found = Watched(serving, None)  # type: ignore[arg-type]
    found.watch = CmkWatch(
        serving.cmk.cmk_id,
        serving.cmk.name,
        serving.keyring.token,
        serving.policies,
        found.lock,
        found.unlock,
        revocation_bound=BOUND,
        outage_grace=GRACE,
    )
    return found


def set_enabled(watched: Watched, enabled: bool) -> None:
    watched.made.token.elsewhere.set_enabled(watched.made.cmk.cmk_id, enabled)


def set_policy(watched: Watched, text: str | None) -> None:
    watched.made.token.elsewhere.set_policy(watched.made.cmk.cmk_id, text)


async def test_enabled_asks_for_nothing(watched: Watched) -> None:
    await watched.watch.look()
    assert (watched.locks, watched.unlocks, watched.watch.healthy) == ([], 0, True)


async def test_disabled_locks_once_and_enabled_unlocks(watched: Watched) -> None:
    set_enabled(watched, False)
    await watched.watch.look()
    await watched.watch.look()
    (why,) = watched.locks
    assert isinstance(why, Disabled)
    assert why.next_step == "cmkfs cmk enable data"
    set_enabled(watched, True)
    await watched.watch.look()
    await watched.watch.look()
    assert watched.unlocks == 1
    assert watched.watch.refusal is None


async def test_a_policy_that_is_set_while_it_is_disabled_counts_at_once(watched: Watched) -> None:
    """`cmkfs policy set` returns when every mount decides by it, and in an incident it comes before the enable."""
    await watched.watch.look()
    set_enabled(watched, False)
    await watched.watch.look()
    text = rules(("allow", "uid:4000", "read"))
    set_policy(watched, text)
    await watched.watch.look()
    assert watched.watch.policy_hash == fingerprint(text)
    assert isinstance(watched.watch.refusal, Disabled)


async def test_a_lock_does_not_wait_for_the_policy(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which a token on a network takes as long for as for many canaries."""
    locked = 0

    def policy(_: object) -> None:
        nonlocal locked
        locked = len(watched.locks)
        raise TokenUnavailable("away")

    monkeypatch.setattr(watched.made.provider, "policy", policy)
    set_enabled(watched, False)
    await watched.watch.look()
    assert locked == 1
    assert isinstance(watched.watch.refusal, Disabled)


async def test_a_policy_that_a_disable_did_not_wait_for_counts_before_it_is_unlocked(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    await watched.watch.look()
    text = rules(("allow", "uid:7", "read"))
    set_policy(watched, text)
    set_enabled(watched, False)

    def away(_: object) -> None:
        raise TokenUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(watched.made.provider, "policy", away)
        await watched.watch.look()
    assert watched.watch.policy_hash != fingerprint(text)
    set_enabled(watched, True)
    hashes: list[str] = []

    async def unlock() -> None:
        hashes.append(watched.watch.policy_hash)

    monkeypatch.setattr(watched.watch, "_unlock", unlock)
    await watched.watch.look(policy_too=False)
    assert hashes == [fingerprint(text)]


async def test_whatever_a_policy_does_to_the_reader_the_mount_lives_on(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deep(_: object) -> None:
        raise RecursionError

    monkeypatch.setattr(watched.made.provider, "policy", deep)
    set_enabled(watched, False)
    await watched.watch.look()
    assert isinstance(watched.watch.refusal, Disabled)


async def test_a_cmk_that_is_gone_locks_too(watched: Watched) -> None:
    taken = watched.made.token.cmks.pop(watched.made.cmk.cmk_id)
    await watched.watch.look()
    assert isinstance(watched.locks[0], Revoked)
    watched.made.token.cmks[taken.cmk_id] = taken
    await watched.watch.look()
    assert watched.unlocks == 1


async def test_an_unlock_that_fails_is_tried_again(watched: Watched) -> None:
    set_enabled(watched, False)
    await watched.watch.look()
    set_enabled(watched, True)
    watched.unlock_fails = TokenUnavailable("just now")
    await watched.watch.look()
    assert watched.watch.refusal is not None
    watched.unlock_fails = None
    await watched.watch.look()
    assert watched.unlocks == 2
    assert watched.watch.refusal is None


class LongUnlock(Watched):
    """Unlocking goes on until a lock ends it, as recovery may for minutes; `meanwhile` happens at its beginning."""

    def __init__(self, made: OneZone, meanwhile: Callable[[], None]) -> None:
        keyring, cmk = made.keyring, made.cmk
        watch = CmkWatch(
            *(cmk.cmk_id, cmk.name, keyring.token, made.policies, self.lock, self.unlock),
            revocation_bound=0.02,
            outage_grace=0.1,
        )
        super().__init__(made, watch)
        self.meanwhile = meanwhile
        self.ended = trio.Event()

    async def lock(self, why: KeyUnavailable) -> None:
        await super().lock(why)
        if self.unlocks:
            self.ended.set()

    async def unlock(self) -> None:
        await super().unlock()
        self.meanwhile()
        await self.ended.wait()
        raise Disabled("a lock came")


async def test_a_refusal_is_noticed_while_zones_are_being_unlocked(serving: OneZone) -> None:
    """Other zones under the CMK serve already."""
    watched = LongUnlock(serving, lambda: set_enabled(watched, False))
    set_enabled(watched, False)
    await watched.watch.look()
    set_enabled(watched, True)
    with trio.fail_after(5):
        await watched.watch.look()
    assert [type(why) for why in watched.locks] == [Disabled, Disabled]
    assert isinstance(watched.watch.refusal, Disabled)


async def test_an_outage_ends_an_unlock_too(serving: OneZone) -> None:
    watched = LongUnlock(serving, serving.token.remove)
    set_enabled(watched, False)
    await watched.watch.look()
    set_enabled(watched, True)
    began = trio.current_time()
    with trio.fail_after(5):
        await watched.watch.look()
    assert trio.current_time() - began >= 0.1
    assert [type(why) for why in watched.locks] == [Disabled, TokenUnavailable]


async def test_an_outage_locks_only_after_the_grace(watched: Watched, mock_clock: trio.testing.MockClock) -> None:
    await watched.watch.look()
    watched.made.token.remove()
    await watched.watch.look()
    assert not watched.watch.healthy
    mock_clock.jump(GRACE - 0.1)
    await watched.watch.look()
    assert watched.locks == []
    mock_clock.jump(0.2)
    await watched.watch.look()
    (why,) = watched.locks
    assert isinstance(why, TokenUnavailable)
    await watched.watch.look()
    assert len(watched.locks) == 1


async def test_a_short_outage_starts_the_grace_anew(watched: Watched, mock_clock: trio.testing.MockClock) -> None:
    for _ in range(3):
        watched.made.token.remove()
        await watched.watch.look()
        mock_clock.jump(GRACE - 1)
        watched.made.token.put_back()
        await watched.watch.look()  # recovers
        await watched.watch.look()
        assert watched.watch.healthy
    assert (watched.locks, watched.unlocks) == ([], 0)


async def test_after_a_long_outage_the_zones_come_back(watched: Watched, mock_clock: trio.testing.MockClock) -> None:
    watched.made.token.remove()
    await watched.watch.look()
    mock_clock.jump(GRACE + 1)
    await watched.watch.look()
    watched.made.token.put_back()
    await watched.watch.look()  # recovers
    await watched.watch.look()
    assert (len(watched.locks), watched.unlocks, watched.watch.refusal) == (1, 1, None)


async def test_disabled_beats_the_grace(watched: Watched, mock_clock: trio.testing.MockClock) -> None:
    watched.made.token.remove()
    await watched.watch.look()
    watched.made.token.put_back()
    set_enabled(watched, False)
    await watched.watch.look()  # recovers
    await watched.watch.look()
    assert isinstance(watched.locks[0], Disabled)


async def test_a_token_that_hangs_is_an_outage_at_the_deadline(
    watched: Watched, mock_clock: trio.testing.MockClock
) -> None:
    watched.made.token.hang()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.watch.look)
        await until(watched.made.token.entered.is_set)
        assert watched.watch.healthy
        mock_clock.jump(DEADLINE + 0.1)
        await until(lambda: not watched.watch.healthy)
        mock_clock.jump(DEADLINE + 0.1)  # of the attempt to recover
    assert watched.locks == []


async def test_known_to_be_away_it_is_not_asked_for_keys(watched: Watched) -> None:
    """What is leased works; what would need the token fails without a wait, and works again when it is back."""
    made = watched.made
    identity, _ = await made.keyring.new_file(made.zone)
    other, _ = await made.keyring.new_file(made.zone)
    made.keyring._caches[made.zone.zone_id]._keys.pop(other.hash())
    made.token.remove()
    await watched.watch.look()
    before = made.token.calls["unwrap"]
    for _ in range(3):
        await made.keyring.lease(made.zone, identity)
        with pytest.raises(TokenUnavailable):
            await made.keyring.lease(made.zone, other)
    assert made.token.calls["unwrap"] == before
    made.token.put_back()
    await watched.watch.look()
    await made.keyring.lease(made.zone, other)


async def test_one_look_finds_it_away_and_brings_it_back(watched: Watched) -> None:
    """Handles that died with a short absence are no outage, and one login is enough."""
    watched.made.token.remove()
    watched.made.token.put_back()
    tries = watched.made.token.pin_tries
    await watched.watch.look()
    assert watched.watch.healthy
    assert watched.made.token.pin_tries == tries + 1


async def test_back_but_disabled_stays_locked(watched: Watched, mock_clock: trio.testing.MockClock) -> None:
    watched.made.token.remove()
    await watched.watch.look()
    mock_clock.jump(GRACE + 1)
    await watched.watch.look()
    watched.made.token.put_back()
    set_enabled(watched, False)
    await watched.watch.look()
    assert [type(why) for why in watched.locks] == [TokenUnavailable, Disabled]
    assert watched.unlocks == 0
    set_enabled(watched, True)
    await watched.watch.look()
    assert (watched.unlocks, watched.watch.refusal) == (1, None)


async def test_the_grace_ends_to_the_moment(watched: Watched, mock_clock: trio.testing.MockClock) -> None:
    watched.made.token.remove()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.watch.run)
        began = trio.current_time()
        while not watched.locks:
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(0.01)
            await until(lambda: not watched.watch._looking.locked())
        nursery.cancel_scope.cancel()
    assert GRACE <= trio.current_time() - began - BOUND / 2 < GRACE + BOUND / 2


async def test_it_looks_twice_within_the_bound(watched: Watched, mock_clock: trio.testing.MockClock) -> None:
    calls = watched.made.token.calls
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.watch.run)
        for number in range(1, 5):
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(BOUND / 2 + 0.001)
            await until(lambda wanted=number: calls["canary"] == wanted)  # type: ignore[misc]
            await until(lambda: not watched.watch._looking.locked())  # it sleeps again when the clock jumps next
        await until(lambda: calls["policy"] == 2)
        nursery.cancel_scope.cancel()


async def test_two_who_look_at_once_take_turns(watched: Watched) -> None:
    """The control socket's `confirm` is answered when the effect is complete."""
    set_enabled(watched, False)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(watched.watch.look)
    assert len(watched.locks) == 1


# -- policy ----------------------------------------------------------------------------------------


def may_read(watched: Watched) -> bool:
    return watched.made.policies.allows(watched.made.cmk.cmk_id, OWNER, Action.READ)


async def test_a_policy_is_in_force_after_the_next_look(watched: Watched) -> None:
    await watched.watch.begin()
    assert may_read(watched)
    text = rules(("allow", "uid:7", "*"))
    set_policy(watched, text)
    await watched.watch.look(policy_too=False)
    assert may_read(watched)
    await watched.watch.look()
    assert not may_read(watched)
    assert watched.watch.policy_hash == fingerprint(text)
    set_policy(watched, None)
    await watched.watch.look()
    assert may_read(watched)
    assert watched.watch.policy_hash == fingerprint(None)


@pytest.mark.parametrize("text", ["", "not TOML", rules(("allow", "user:nobody-has-this-name", "*"))])
async def test_one_that_cannot_be_read_denies_all_until_it_can(watched: Watched, text: str) -> None:
    set_policy(watched, text)
    await watched.watch.look()
    assert not may_read(watched)
    assert watched.locks == []
    set_policy(watched, rules(("allow", "uid:1000", "*")))
    await watched.watch.look()
    assert may_read(watched)


async def test_one_that_the_token_cannot_vouch_for_locks(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    def tampered(cmk_id: object) -> str:
        raise Tampered("the policy cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr(watched.made.provider, "policy", tampered)
        await watched.watch.look()
    assert len(watched.locks) == 1
    await watched.watch.look()
    assert watched.unlocks == 1


async def test_begin_says_why_nothing_can_be_served(watched: Watched) -> None:
    set_enabled(watched, False)
    with pytest.raises(Disabled):
        await watched.watch.begin()
    watched.made.token.remove()
    with pytest.raises(TokenUnavailable):
        await watched.watch.begin()

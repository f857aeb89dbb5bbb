"""Several processes for a slow token: real SoftHSM behind a module that makes each call take a while."""

import errno
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from campaign.token_faults import TokenFaults
from contract.softhsm_token import SoftHsmToken
from one_zone import until

from cmkfs.errors import Disabled, PinRefused, TokenUnavailable
from cmkfs.keys import token_start, token_team
from cmkfs.keys.provider import CmkId, CmkVersion
from cmkfs.keys.token_client import TokenClient
from cmkfs.keys.token_team import TokenTeam

SECRET, CONTEXT = b"s" * 32, b"context"
DEADLINE = 20.0
MOST = 4
SLOW = 0.005
CKR_PIN_INCORRECT = 0xA0
CKR_SESSION_COUNT = 0xB1


@pytest.fixture
def faults(tmp_path: Path, token: SoftHsmToken, monkeypatch: pytest.MonkeyPatch) -> TokenFaults:
    made = TokenFaults(tmp_path, token.module)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


class Site:
    """A team that is open, its client, and a secret that it has wrapped."""

    def __init__(self, team: TokenTeam, cmk_id: CmkId, version: CmkVersion, wrapped: bytes) -> None:
        self.team, self.cmk_id = team, cmk_id
        self.client = TokenClient(team, DEADLINE)
        self._secret = version, wrapped

    async def unwrap(self, client: TokenClient | None = None) -> None:
        version, wrapped = self._secret
        assert await (client or self.client).unwrap(version, wrapped, context=CONTEXT) == SECRET

    async def unwrap_at_once(self, times: int) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(times):
                nursery.start_soon(self.unwrap)

    async def grow(self, size: int = MOST) -> None:
        """Until there are so many processes."""
        while len(self.team.pids) < size:
            await self.unwrap_at_once(2 * MOST)


@pytest.fixture
async def site(token: SoftHsmToken, faults: TokenFaults, nursery: trio.Nursery) -> AsyncIterator[Site]:
    cmk_id = token.elsewhere.create("data", "aes-256")
    team = TokenTeam(MOST)
    try:
        await team.open(token.access(str(faults.library)), token.pin, DEADLINE)
        nursery.start_soon(team.help)
        client = TokenClient(team, DEADLINE)
        version = await client.newest(cmk_id)
        (wrapped,) = await client.wrap_many(version, [(SECRET, CONTEXT)])
        yield Site(team, cmk_id, version, wrapped)
    finally:
        nursery.cancel_scope.cancel()
        team.close(wait=5.0)


async def test_a_fast_token_has_one_process(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_team, "SLOW_SECONDS", 0.05)  # a host that is busy with other tests makes no token slow
    for _ in range(20):
        await site.unwrap_at_once(8)
    assert len(site.team.pids) == 1
    assert site.client.parallel == 1


async def test_calls_of_a_slow_token_overlap(site: Site, faults: TokenFaults) -> None:
    faults.delay(SLOW)
    await site.grow()
    faults.delay(SLOW)
    await site.unwrap_at_once(40)
    assert faults.most_at_once == MOST
    assert site.client.parallel == MOST


async def test_a_disable_reaches_each_of_them(site: Site, faults: TokenFaults, token: SoftHsmToken) -> None:
    faults.delay(SLOW)
    await site.grow()
    refused = 0

    async def ask() -> None:
        nonlocal refused
        with pytest.raises(Disabled):
            await site.unwrap()
        refused += 1

    token.elsewhere.set_enabled(site.cmk_id, False)
    async with trio.open_nursery() as nursery:
        for _ in range(5 * MOST):
            nursery.start_soon(ask)
    assert refused == 5 * MOST
    token.elsewhere.set_enabled(site.cmk_id, True)
    await site.unwrap_at_once(5 * MOST)


async def test_the_watch_waits_for_one_call_at_most(site: Site, faults: TokenFaults) -> None:
    await site.client.canary(site.cmk_id)  # the first one makes it
    faults.delay(SLOW)
    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(site.unwrap)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        await site.client.canary(site.cmk_id)
        took = trio.current_time() - began
        waiting = len(site.team._waiting)
    assert waiting > 100, took


async def test_a_helper_that_crashes_costs_nobody_anything(site: Site, faults: TokenFaults) -> None:
    faults.delay(SLOW)
    await site.grow()
    first, *helpers = site.team.pids
    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(site.unwrap)
        await trio.testing.wait_all_tasks_blocked()
        for pid in helpers:
            os.kill(pid, signal.SIGKILL)
    assert site.team.pids[0] == first
    assert not set(helpers) & set(site.team.pids)
    await site.grow()  # others take their places


async def test_a_helper_that_hangs_is_ended_at_the_deadline(site: Site, faults: TokenFaults) -> None:
    faults.delay(SLOW)
    await site.grow()
    hanging = site.team.pids[1]
    os.kill(hanging, signal.SIGSTOP)
    late = 0

    async def ask() -> None:
        nonlocal late
        try:
            await site.unwrap(TokenClient(site.team, 0.5))
        except TokenUnavailable:
            late += 1

    async with trio.open_nursery() as nursery:
        for _ in range(5 * MOST):
            nursery.start_soon(ask)
    assert late == 1
    await until(lambda: not Path(f"/proc/{hanging}").exists())
    await site.unwrap_at_once(5 * MOST)


async def test_who_gives_up_costs_no_process(site: Site, faults: TokenFaults) -> None:
    """A lock, or a signal: the answer that nobody waits for is dropped, and not taken for the next one's."""
    faults.delay(SLOW)
    await site.grow()
    before = site.team.pids
    async with trio.open_nursery() as nursery:
        for _ in range(5 * MOST):
            nursery.start_soon(site.unwrap)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await site.client.canary(site.cmk_id)
    await site.unwrap_at_once(5 * MOST)
    assert site.team.pids == before
    assert not site.team._waiting


async def test_recover_begins_all_anew(site: Site, faults: TokenFaults) -> None:
    faults.delay(SLOW)
    await site.grow()
    old = site.team.pids
    async with trio.open_nursery() as nursery:
        for _ in range(5 * MOST):
            nursery.start_soon(site.unwrap)
        await trio.testing.wait_all_tasks_blocked()
        await site.client.recover()
    assert site.team.pids[0] == old[0]  # it answers: its module is initialised again
    assert not set(old[1:]) & set(site.team.pids)
    await site.grow()


async def test_a_first_process_that_is_late_is_the_watchs_to_mend(site: Site, faults: TokenFaults) -> None:
    faults.delay(SLOW)
    await site.grow()
    first = site.team.pids[0]
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(TokenUnavailable):
        await TokenClient(site.team, 0.2).canary(site.cmk_id)
    await site.unwrap_at_once(5 * MOST)  # the others do without
    await site.client.recover()
    assert site.team.pids[0] != first
    await site.client.canary(site.cmk_id)
    await site.unwrap_at_once(5 * MOST)


@pytest.mark.parametrize("error", [CKR_SESSION_COUNT, CKR_PIN_INCORRECT])
async def test_a_token_that_gives_no_more_sessions_is_asked_once(site: Site, faults: TokenFaults, error: int) -> None:
    """Nor is a PIN tried again that was changed meanwhile."""
    faults.delay(SLOW)
    faults.fail_login(error)
    while not faults.logins or site.client.parallel > 1:
        await site.unwrap_at_once(2 * MOST)
    for _ in range(5):
        await site.unwrap_at_once(2 * MOST)
    assert faults.logins == 1
    assert len(site.team.pids) == 1
    faults.fail_login(0)
    if error == CKR_PIN_INCORRECT:
        with pytest.raises(PinRefused):
            await site.client.recover()
    else:
        await site.client.recover()
        await site.grow()


async def test_a_host_that_gives_no_more_processes_keeps_the_mount(
    site: Site, faults: TokenFaults, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_named: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    faults.delay(SLOW)
    monkeypatch.setattr(token_start.subprocess, "Popen", refuse)
    while True:
        await site.unwrap_at_once(2 * MOST)
        if site.team._most == 1:
            break
    await site.unwrap_at_once(2 * MOST)
    assert len(site.team.pids) == 1


async def test_a_host_that_gives_no_more_threads_keeps_the_helpers(
    site: Site, faults: TokenFaults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has ended is not waited for yet; another one takes its place all the same."""
    tries = 0

    def refuse(*_args: object, **_named: object) -> None:
        nonlocal tries
        tries += 1
        raise RuntimeError("can't start new thread")

    faults.delay(SLOW)
    await site.grow()
    with monkeypatch.context() as without_threads:
        without_threads.setattr(trio.to_thread, "run_sync", refuse)
        os.kill(site.team.pids[1], signal.SIGKILL)
        while not tries:
            await site.unwrap_at_once(2 * MOST)
        await site.grow()
        await site.unwrap_at_once(5 * MOST)
        assert tries < 5  # not again and again
        assert len(site.team._ended) == 1
    os.kill(site.team.pids[1], signal.SIGKILL)
    while len(site.team.pids) == MOST:
        await site.unwrap_at_once(2 * MOST)
    await until(lambda: not site.team._ended)
    await site.grow()


async def test_a_session_that_ended_is_not_begun_anew_by_a_helper(site: Site, faults: TokenFaults) -> None:
    """Each would try the PIN, which may have been changed: the first process does, and the helpers are others then."""
    faults.delay(SLOW)
    await site.grow()
    faults.fail_login(0)
    before = site.team.pids
    for helper in site.team._helpers:
        with pytest.raises(TokenUnavailable, match="the session with the token has ended"):
            await helper.ask(DEADLINE, "recover")
    assert faults.logins == 0
    await site.unwrap_at_once(5 * MOST)
    assert site.team.pids == before

"""The token's own process, with a real SoftHSM token: answers, deadlines, and the way back from a hang or a crash."""

import os
import pickle
import signal
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from contract.softhsm_token import SoftHsmToken

from cmkfs.errors import Disabled, PinRefused, Tampered, TokenUnavailable
from cmkfs.keys import token_server
from cmkfs.keys.provider import CmkId
from cmkfs.keys.token_client import TokenClient
from cmkfs.keys.token_process import TokenProcess

SECRET, CONTEXT = b"s" * 32, b"context"
DEADLINE = 10.0
SHORT = 0.2


@pytest.fixture
def cmk_id(token: SoftHsmToken) -> CmkId:
    return token.elsewhere.create("data", "aes-256")


@pytest.fixture
async def process(token: SoftHsmToken, cmk_id: CmkId) -> AsyncIterator[TokenProcess]:
    made = TokenProcess()
    try:
        await made.open(token.access(), token.pin, DEADLINE)
        yield made
    finally:
        made.close(wait=5.0)


async def test_it_wraps_and_unwraps(process: TokenProcess, cmk_id: CmkId) -> None:
    client = TokenClient(process, DEADLINE)
    version = await client.newest(cmk_id)
    (wrapped,) = await client.wrap_many(version, [(SECRET, CONTEXT)])
    assert await client.unwrap(version, wrapped, context=CONTEXT) == SECRET
    assert (await client.describe(cmk_id)).name == "data"
    assert (await client.find("data")).cmk_id == cmk_id


async def test_no_key_stays_where_messages_come_in(process: TokenProcess, cmk_id: CmkId) -> None:
    """Shorter ones come after it, and would leave it there after a lock."""
    client = TokenClient(process, DEADLINE)
    version = await client.newest(cmk_id)
    (wrapped,) = await client.wrap_many(version, [(SECRET, CONTEXT)])
    assert await client.unwrap(version, wrapped, context=CONTEXT) == SECRET
    assert not any(process._server._buffer[:100_000])


def test_no_pin_stays_where_calls_come_in() -> None:
    call = bytearray(pickle.dumps(("open", (None, "1234", False), {})))
    assert token_server._read(memoryview(call)) == ("open", (None, "1234", False), {})
    assert not any(call)


async def test_errors_arrive_as_what_they_are(process: TokenProcess, cmk_id: CmkId, token: SoftHsmToken) -> None:
    client = TokenClient(process, DEADLINE)
    version = await client.newest(cmk_id)
    (wrapped,) = await client.wrap_many(version, [(SECRET, CONTEXT)])
    with pytest.raises(Tampered):
        await client.unwrap(version, wrapped, context=b"another")
    token.elsewhere.set_enabled(cmk_id, False)
    with pytest.raises(Disabled) as refused:
        await client.unwrap(version, wrapped, context=CONTEXT)
    assert refused.value.next_step == "cmkfs cmk enable data"


async def test_what_no_provider_knows_is_an_error_and_not_the_end(process: TokenProcess, cmk_id: CmkId) -> None:
    with pytest.raises(TokenUnavailable, match="AttributeError"):
        await process.ask(DEADLINE, "no_such_call")
    await TokenClient(process, DEADLINE).canary(cmk_id)


async def test_a_wrong_pin_is_refused(token: SoftHsmToken, cmk_id: CmkId) -> None:
    process = TokenProcess()
    try:
        with pytest.raises(PinRefused):
            await process.open(token.access(), "9999", DEADLINE)
    finally:
        process.close(wait=5.0)


async def test_calls_behind_a_hanging_one_end_at_their_deadlines(process: TokenProcess, cmk_id: CmkId) -> None:
    client = TokenClient(process, SHORT)
    late = 0

    async def ask() -> None:
        nonlocal late
        with pytest.raises(TokenUnavailable, match=r"did not answer within 0\.2 s"):
            await client.canary(cmk_id)
        late += 1

    os.kill(process.pid, signal.SIGSTOP)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert late == 5
    os.kill(process.pid, signal.SIGCONT)
    # The answer that nobody waited for is not taken for the next one's.
    assert (await TokenClient(process, DEADLINE).find("data")).cmk_id == cmk_id


async def test_recover_replaces_a_process_that_hangs(process: TokenProcess, cmk_id: CmkId) -> None:
    old = process.pid
    os.kill(old, signal.SIGSTOP)
    with pytest.raises(TokenUnavailable):
        await TokenClient(process, SHORT).canary(cmk_id)
    await TokenClient(process, DEADLINE).recover()
    assert process.pid != old
    await TokenClient(process, DEADLINE).canary(cmk_id)
    with pytest.raises(ProcessLookupError):
        os.kill(old, 0)


async def test_recover_replaces_a_process_that_a_module_crashed(process: TokenProcess, cmk_id: CmkId) -> None:
    client = TokenClient(process, DEADLINE)
    os.kill(process.pid, signal.SIGSEGV)
    with pytest.raises(TokenUnavailable):
        await client.canary(cmk_id)
    await client.recover()
    await client.canary(cmk_id)


async def test_recover_of_one_that_answers_keeps_it(process: TokenProcess, cmk_id: CmkId) -> None:
    client, old = TokenClient(process, DEADLINE), process.pid
    await client.recover()
    await client.canary(cmk_id)
    assert process.pid == old


async def test_a_batch_of_wraps_is_cut_short_and_never_empty(process: TokenProcess, cmk_id: CmkId) -> None:
    client = TokenClient(process, DEADLINE)
    version = await client.newest(cmk_id)
    made = await client.wrap_many(version, [(SECRET, CONTEXT)] * 5000)
    assert 1 <= len(made) < 5000
    assert len(set(made)) == len(made)


async def test_a_process_begun_while_the_token_was_away_logs_in_when_it_is_back(
    process: TokenProcess, cmk_id: CmkId, token: SoftHsmToken
) -> None:
    client = TokenClient(process, DEADLINE)
    await kill(process, cmk_id)
    token.remove()
    for _ in range(2):
        with pytest.raises(TokenUnavailable):
            await client.recover()
    token.put_back()
    await client.recover()
    await client.canary(cmk_id)


async def test_of_several_who_recover_at_once_one_begins_a_process(process: TokenProcess, cmk_id: CmkId) -> None:
    client = TokenClient(process, DEADLINE)
    await kill(process, cmk_id)
    pids: list[int] = []

    async def recover() -> None:
        await client.recover()
        await client.canary(cmk_id)
        pids.append(process.pid)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(recover)
    assert len(pids) == 3
    assert len(set(pids)) == 1


async def kill(process: TokenProcess, cmk_id: CmkId) -> None:
    """Returns when it is known to be gone."""
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(TokenUnavailable):
        await TokenClient(process, DEADLINE).canary(cmk_id)


async def test_a_refused_pin_is_tried_once(token: SoftHsmToken, cmk_id: CmkId) -> None:
    process = TokenProcess()
    try:
        with pytest.raises(PinRefused):
            await process.open(token.access(), "9999", DEADLINE)
        os.kill(process.pid, signal.SIGKILL)  # where there is no process there is no try
        for _ in range(3):
            with pytest.raises(PinRefused):
                await TokenClient(process, DEADLINE).recover()
    finally:
        process.close(wait=5.0)


async def test_a_login_that_is_under_way_is_not_ended_by_who_comes_next(
    process: TokenProcess, cmk_id: CmkId, token: SoftHsmToken
) -> None:
    """Nor one that nobody waits for any more: its answer is taken before the PIN is tried again."""
    await kill(process, cmk_id)
    login, began = process._server, process.pid
    first = trio.CancelScope()

    async def give_up() -> None:
        with first:
            await process.ask(DEADLINE, "recover")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_up)
        while process.pid == began or not process._server.logging_in:
            await trio.lowlevel.checkpoint()
        login, began = process._server, process.pid
        os.kill(began, signal.SIGSTOP)
        nursery.start_soon(process.ask, DEADLINE, "recover")
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
        await trio.testing.wait_all_tasks_blocked()
        os.kill(began, signal.SIGCONT)
    assert process._server is login
    await TokenClient(process, DEADLINE).canary(cmk_id)

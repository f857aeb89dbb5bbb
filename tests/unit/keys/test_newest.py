"""The newest version of a CMK: asked for once for many wraps, by one of those who want it."""

import pytest
import trio
from one_zone import OneZone

from cmkfs.keys import newest
from cmkfs.keys.newest import NewestVersion


async def test_of_several_who_ask_at_once_one_asks_the_token(serving: OneZone) -> None:
    version, before = NewestVersion(serving.keyring.token, serving.cmk.cmk_id), serving.token.calls["newest"]
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(version.ask)
    assert (await version.ask()).version == 1
    assert serving.token.calls["newest"] == before + 1


async def test_it_is_asked_for_again_when_it_is_old(serving: OneZone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newest, "_KEEP_SECONDS", 0.0)
    monkeypatch.setattr(newest, "_KEEP_TIMES_ITS_COST", 0)
    version = NewestVersion(serving.keyring.token, serving.cmk.cmk_id)
    assert (await version.ask()).version == 1
    serving.token.rotate(serving.cmk.cmk_id)
    assert (await version.ask()).version == 2


async def test_what_cost_much_is_kept_longer(serving: OneZone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newest, "_KEEP_SECONDS", 0.0)
    monkeypatch.setattr(newest, "_KEEP_TIMES_ITS_COST", 1e9)
    version, before = NewestVersion(serving.keyring.token, serving.cmk.cmk_id), serving.token.calls["newest"]
    for _ in range(3):
        await version.ask()
    assert serving.token.calls["newest"] == before + 1

"""Zones of a mount that begin, come and go: what stays of them, and what must not keep the rest from being served."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from model.checking import check
from model.harness import ROOT, Harness, scratch

from cmkfs.caller import Request
from cmkfs.keys.zone import Zone, ZoneState
from cmkfs.maintenance.readers import Readers
from cmkfs.policy import Action

ALICE = Request(uid=1001, gid=1001, pid=0)
FOR_ALICE = '[[rule]]\nid = "alice"\neffect = "allow"\nwho = ["uid:1001"]\nactions = ["read"]\n'


@pytest.fixture
def harness() -> Iterator[Harness]:
    """A new vault, and a second CMK, `hr`."""
    with scratch() as directory:
        made = Harness(directory)
        with made.token.open() as admin:
            admin.create("hr", "aes-256")
        yield made


def hr_id(harness: Harness) -> bytes:
    return harness.token.elsewhere.find("hr").cmk_id


async def make_zone(harness: Harness, nursery: trio.Nursery | None = None) -> Zone:
    """The directory `hr`, made a zone under the CMK `hr`."""
    mounted = harness.mounted
    mounted.start_soon = (lambda task: None) if nursery is None else nursery.start_soon
    ino = await harness.program.mkdir(ROOT, b"hr")
    return await mounted.create_zone(mounted.inodes[ino], "hr")


async def give_up(harness: Harness) -> None:
    await harness.mounted.remove_zone(harness.mounted.inodes[await harness.program.walk(b"hr")])


# -- gone without a trace --------------------------------------------------------------------------


async def test_nothing_is_left_of_a_zone_that_was_removed(harness: Harness, nursery: trio.Nursery) -> None:
    mounted = await harness.mount()
    keyring = mounted.keyring
    before = [len(kept) for kept in (keyring.zones, keyring._caches, keyring._pools, keyring._newest)]
    watches, tasks = dict(mounted.watches), len(nursery.child_tasks)
    for _ in range(3):
        zone = await make_zone(harness, nursery)
        await mounted.watches[zone.cmk_id].look()
        await harness.program.save(await harness.program.walk(b"hr"), b"x", b"x")
        await harness.program.unlink(await harness.program.walk(b"hr"), b"x")
        assert len(nursery.child_tasks) == tasks + 2  # the watch, and who keeps the pool filled
        await give_up(harness)
        await harness.program.rmdir(ROOT, b"hr")
        with trio.fail_after(5):
            while len(nursery.child_tasks) > tasks:  # who fills the pool may be in a pause
                await trio.lowlevel.checkpoint()
    assert mounted.watches == watches
    assert [len(kept) for kept in (keyring.zones, keyring._caches, keyring._pools, keyring._newest)] == before


async def test_a_cmk_that_others_are_under_is_watched_on(harness: Harness, nursery: trio.Nursery) -> None:
    mounted = await harness.mount()
    mounted.start_soon = nursery.start_soon
    zones = []
    for name in (b"one", b"two"):
        ino = await harness.program.mkdir(ROOT, name)
        zones.append(await mounted.create_zone(mounted.inodes[ino], "hr"))
    await mounted.remove_zone(mounted.inodes[await harness.program.walk(b"one")])
    harness.token.elsewhere.set_enabled(hr_id(harness), False)
    with trio.fail_after(5):
        while zones[1].state is not ZoneState.LOCKED:
            await trio.lowlevel.checkpoint()
    nursery.cancel_scope.cancel()


async def test_the_policy_of_before_does_not_count_for_a_new_zone(harness: Harness) -> None:
    """It was removed from the CMK while no zone of the mount was under it."""
    mounted = await harness.mount()
    harness.token.elsewhere.set_policy(hr_id(harness), FOR_ALICE)
    zone = await make_zone(harness)
    assert mounted.keyring.policies.allows(zone.cmk_id, ALICE, Action.READ)
    await give_up(harness)
    harness.token.elsewhere.set_policy(hr_id(harness), None)
    await harness.program.rmdir(ROOT, b"hr")
    zone = await make_zone(harness)
    assert not mounted.keyring.policies.allows(zone.cmk_id, ALICE, Action.READ)


# -- trouble with one zone -------------------------------------------------------------------------


async def test_a_record_that_can_have_no_copy_keeps_nobody_from_mounting(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    await harness.mount()
    await make_zone(harness)
    await harness.unmount()
    (copy,) = harness.vault.glob("cmkfs.zone.*")
    copy.unlink()
    copy.mkdir()
    (copy / "in the way").touch()
    await harness.mount()
    assert len(harness.keyring.zones) == 2
    assert "has no copy" in caplog.text
    await harness.unmount()


# -- killed at every step --------------------------------------------------------------------------

STEPS = ("symlink", "rename", "unlink", "fsync", "pwrite", "ftruncate", "replace", "link", "mkdir", "rmdir")


class Killed(BaseException):
    """The daemon does nothing any more."""


class Killer:
    """Lets a number of changes to the disk happen, and none after them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        for name in STEPS:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            if self.left is not None:
                if not self.left:
                    raise Killed
                self.left -= 1
            return step(*arguments, **named)

        return counted


async def dies(killer: Killer, steps: int, change: Callable[[], Any]) -> bool:
    """Did the change not come to its end within so many steps?"""
    killer.left = steps
    try:
        await change()
    except Killed:
        return True
    finally:
        killer.left = None
    return False


async def killed(harness: Harness, killer: Killer, steps: int, *, removing: bool) -> bool:
    """Killed while a zone is made or given up; then the next mount, where the directory must be one or the other."""
    await harness.mount()
    program, mounted = harness.program, harness.mounted
    if removing:
        await make_zone(harness)
    else:
        await program.mkdir(ROOT, b"hr")
    inode = mounted.inodes[await program.walk(b"hr")]
    mounted.start_soon = lambda task: None
    died = await dies(
        killer, steps, lambda: mounted.remove_zone(inode) if removing else mounted.create_zone(inode, "hr")
    )
    harness.kill()
    await harness.mount()
    program = harness.program
    ino = await program.walk(b"hr")
    is_zone = harness.mounted.operations.zone_of(harness.mounted.inodes[ino]) is not harness.zone
    assert len(harness.keyring.zones) == 1 + is_zone
    assert died or is_zone != removing
    await program.save(ino, b"file", b"x" * 5000)
    await program.unlink(ino, b"file")
    if is_zone:
        await give_up(harness)
    await program.rmdir(ROOT, b"hr")
    await harness.unmount()
    return died


@pytest.mark.parametrize("removing", [False, True], ids=["made", "given up"])
def test_killed_at_every_step(harness: Harness, monkeypatch: pytest.MonkeyPatch, removing: bool) -> None:
    killer, steps = Killer(monkeypatch), 0
    while trio.run(partial(killed, harness, killer, steps, removing=removing)):
        steps += 1
    assert steps > 5
    with Readers() as readers:
        report = check(harness, readers)
    assert (report.damage, report.notes) == ([], [])

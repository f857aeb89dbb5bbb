"""The lock: what it does in which order, and what it gives back."""

import errno
import threading
from collections.abc import Callable

import pytest
import trio
import trio.testing
from model.harness import ROOT, Harness

from cmkfs.answers import ControlAnswers
from cmkfs.errors import CmkfsError, Disabled, KeyUnavailable, Locked
from cmkfs.fs.forgetting import KernelCache
from cmkfs.fs.lockdown import FORGET_SECONDS, STORE_SECONDS, Lockdown
from cmkfs.keys.zone import Zone, ZoneState

WHY = Locked("an operator locked the zone")


class FakeKernel:
    """Notes what it is told to forget and in which state the zone was; can hand over dirty pages, or hang."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self.told: list[tuple[int, ZoneState]] = []
        self.dirty: dict[int, Callable[[], None]] = {}
        self.hang: threading.Event | None = None
        self.cut = False
        self.expired: list[tuple[int, bytes, ZoneState]] = []

    def invalidate_inode(self, inode: int, *, attr_only: bool = False, length: int = 0) -> bool:
        assert not attr_only
        self.told.append((inode, self._harness.zone.state))
        if self.hang is not None:
            self.hang.wait(30)
            if self.cut:
                raise OSError(errno.ENOTCONN, "cut")
        write_back = self.dirty.pop(inode, None)
        if write_back is not None:
            write_back()
        return True

    def expire_entry(self, parent: int, name: bytes) -> bool:
        self.expired.append((parent, name, self._harness.zone.state))
        return True

    def abort(self) -> None:
        self.cut = True
        if self.hang is not None:
            self.hang.set()


class Site:
    """A mount with a kernel that the test controls."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.kernel = FakeKernel(harness)
        self.lockdown = Lockdown(
            harness.keyring,
            harness.mounted.inodes,
            harness.mounted.operations,
            harness.mounted.settler,
            KernelCache(self.kernel),
        )

    async def lock(self, **how: bool) -> object:
        return await self.lockdown.lock([self.harness.zone], WHY, **how)

    def dirty_page(self, ino: int, fh: int, data: bytes, outcomes: list[str]) -> None:
        """The kernel has a dirty page of a file, which it hands over when it is told to forget it."""

        async def write() -> None:
            try:
                await self.harness.program.write(fh, 0, data)
                outcomes.append("stored")
            except OSError as error:
                outcomes.append(str(error))

        self.kernel.dirty[ino] = lambda: trio.from_thread.run(write)


@pytest.fixture
async def site(mounted: Harness) -> Site:
    return Site(mounted)


async def test_open_files_are_forgotten_first_while_settling_and_again_when_the_keys_are_gone(site: Site) -> None:
    program = site.harness.program
    closed = await program.save(ROOT, b"closed", b"x")
    await site.harness.mounted.settler.settle_all()
    fh = await program.create(ROOT, b"open")
    opened = program.file(fh).inode.ino
    report = await site.lockdown.lock([site.harness.zone], WHY)
    assert site.kernel.told[0] == (opened, ZoneState.SETTLING)
    assert {(ROOT, ZoneState.SETTLING), (closed, ZoneState.SETTLING)} <= set(site.kernel.told)
    assert site.kernel.told[-1] == (opened, ZoneState.LOCKED)
    assert [(by.uid, by.path) for by in report.open] == [(0, "open")]
    assert site.harness.keyring.leases == 0
    assert set(site.kernel.expired) == {(ROOT, name, ZoneState.LOCKED) for name in (b"closed", b"open")}


async def test_dirty_pages_are_stored_encrypted_and_counted(site: Site) -> None:
    program = site.harness.program
    fh = await program.create(ROOT, b"file")
    outcomes: list[str] = []
    site.dirty_page(program.file(fh).inode.ino, fh, b"dirty" * 1000, outcomes)
    report = await site.lockdown.lock([site.harness.zone], WHY)
    assert outcomes == ["stored"]
    assert (report.stored_bytes, report.dropped_bytes) == (5000, 0)
    with pytest.raises(OSError, match="Required key"):
        await program.read(fh, 0, 1)
    await site.harness.mounted.settler.settle_all()
    assert site.harness.mounted.settler.dirty == []
    await site.lockdown.unlock([site.harness.zone])
    assert await program.read(fh, 0, 5000) == b"dirty" * 1000


async def test_now_drops_them_and_says_how_much(site: Site) -> None:
    program = site.harness.program
    fh = await program.create(ROOT, b"file")
    outcomes: list[str] = []
    site.dirty_page(program.file(fh).inode.ino, fh, b"dirty" * 1000, outcomes)
    report = await site.lockdown.lock([site.harness.zone], WHY, drop_dirty=True)
    assert len(outcomes) == 1
    assert "Required key" in outcomes[0]
    assert (report.stored_bytes, report.dropped_bytes) == (0, 5000)
    assert {state for _, state in site.kernel.told} == {ZoneState.LOCKED}
    await site.lockdown.unlock([site.harness.zone])
    assert await program.read(fh, 0, 5000) == b""


async def test_what_was_dirtied_in_between_is_refused(site: Site) -> None:
    """The second round: pages that a program wrote after the first one went by."""
    program = site.harness.program
    fh = await program.create(ROOT, b"file")
    ino, outcomes = program.file(fh).inode.ino, list[str]()
    site.kernel.dirty[ino] = lambda: site.dirty_page(ino, fh, b"late", outcomes)
    await site.lock()
    assert len(outcomes) == 1
    assert "Required key" in outcomes[0]


async def test_pages_of_a_file_opened_before_an_earlier_lock_are_stored_too(site: Site) -> None:
    """After an unlock whole pages are written without a request: the key is there, or fetched while it settles."""
    program = site.harness.program
    fh = await program.create(ROOT, b"file")
    await program.write(fh, 0, b"x" * 10)
    await site.lock()
    await site.lockdown.unlock([site.harness.zone])
    outcomes: list[str] = []
    site.dirty_page(program.file(fh).inode.ino, fh, b"again", outcomes)
    await site.lock()
    assert outcomes == ["stored"]


async def test_a_kernel_that_does_not_answer_does_not_keep_the_keys(
    site: Site, mock_clock: trio.testing.MockClock
) -> None:
    fh = await site.harness.program.create(ROOT, b"file")
    site.kernel.hang = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.lock)
        while not site.kernel.told:
            await trio.lowlevel.checkpoint()
        assert site.harness.zone.state is ZoneState.SETTLING
        mock_clock.jump(STORE_SECONDS + 0.1)
        while site.harness.zone.state is ZoneState.SETTLING:
            await trio.lowlevel.checkpoint()
        with pytest.raises(Locked):
            site.harness.zone.keys_to_settle()
        site.kernel.hang.set()
    with pytest.raises(OSError, match="Required key"):
        await site.harness.program.read(fh, 0, 1)


async def test_what_the_kernel_does_not_let_go_is_cut_off(site: Site, mock_clock: trio.testing.MockClock) -> None:
    """The last resort: a request hangs for ever, so the connection is aborted, and everything is invalidated."""
    program = site.harness.program
    fh = await program.create(ROOT, b"file")
    closed = await program.save(ROOT, b"closed", b"x")
    site.kernel.hang = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.lock)
        for seconds, hanging in ((STORE_SECONDS, 2), (FORGET_SECONDS + 1, 3)):  # what is open, and the rest; once more
            while len(site.kernel.told) < hanging:
                await trio.lowlevel.checkpoint()
            assert not site.kernel.cut
            mock_clock.jump(seconds + 0.1)
    assert site.kernel.cut
    told = [ino for ino, state in site.kernel.told if state is ZoneState.LOCKED]
    assert {ROOT, closed, program.file(fh).inode.ino} <= set(told)
    with pytest.raises(OSError, match="Required key"):
        await program.read(fh, 0, 1)


async def test_a_lock_during_another_returns_when_that_is_complete(site: Site) -> None:
    fh = await site.harness.program.create(ROOT, b"file")
    site.kernel.hang = threading.Event()
    complete: list[int] = []

    async def lock() -> None:
        await site.lock()
        complete.append(len(site.kernel.told))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(lock)
        while not site.kernel.told:
            await trio.lowlevel.checkpoint()
        assert complete == []
        site.kernel.hang.set()
    assert complete == [len(site.kernel.told)] * 3
    assert site.kernel.told[-1] == (site.harness.program.file(fh).inode.ino, ZoneState.LOCKED)


# -- unlock, and what comes while it is under way --------------------------------------------------


@pytest.fixture
async def second(site: Site) -> Zone:
    """A second zone, under the same CMK, with an open file in it."""
    mounted = site.harness.mounted
    mounted.start_soon = lambda task: None
    zone = await mounted.create_zone(mounted.inodes[await site.harness.program.mkdir(ROOT, b"zone")], "data")
    fh = await site.harness.program.create(await site.harness.program.walk(b"zone"), b"inside")
    await site.harness.program.write(fh, 0, b"inside")
    return zone


def hanging_recovery(site: Site, zone: Zone) -> trio.Event:
    """From now on an unlock of the zone has much to settle; the event says that it has begun."""
    begun = trio.Event()

    async def settle(unlocked: Zone) -> None:
        if unlocked is zone:
            begun.set()
            await trio.sleep_forever()

    site.lockdown.before_serving = settle
    return begun


async def refused(site: Site, zone: Zone, unlocks: list[str]) -> None:
    try:
        await site.lockdown.unlock([zone])
        unlocks.append("unlocked")
    except CmkfsError as error:
        unlocks.append(str(error))


async def test_a_lock_waits_for_no_recovery(site: Site, second: Zone) -> None:
    """Neither for that of its zone, which ends, nor for that of another one, which goes on."""
    first, unlocks = site.harness.zone, list[str]()
    await site.lockdown.lock([second], WHY)
    begun = hanging_recovery(site, second)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, site, second, unlocks)
        await begun.wait()
        assert second.state is ZoneState.RECOVERING
        await site.lock()
        assert (first.state, second.state) == (ZoneState.LOCKED, ZoneState.RECOVERING)
        why = Disabled("CMK data is disabled")
        await site.lockdown.lock([second], why)
        assert second.state is ZoneState.LOCKED
        with pytest.raises(Disabled):
            second.keys_to_settle()
    assert unlocks == ["CMK data is disabled"]
    site.lockdown.before_serving = None
    assert await site.lockdown.unlock([first, second])


async def test_a_lock_counts_although_the_token_was_asked_before_it(site: Site, second: Zone) -> None:
    token, unlocks = site.harness.token, list[str]()
    await site.lockdown.lock([second], WHY)
    token.hang()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, site, second, unlocks)
        while not token.entered.is_set():
            await trio.lowlevel.checkpoint()
        await site.lockdown.lock([second], WHY)
        await site.lock()
        token.answer()
    assert unlocks == [str(WHY)]
    assert (site.harness.zone.state, second.state) == (ZoneState.LOCKED, ZoneState.LOCKED)
    assert await site.lockdown.unlock([second])


async def test_a_lock_does_not_wait_for_that_of_another_zone(site: Site, second: Zone) -> None:
    """The kernel writes back what the first one has, and takes its time."""
    site.kernel.hang = hang = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.lock)
        while not site.kernel.told:
            await trio.lowlevel.checkpoint()
        site.kernel.hang = None
        await site.lockdown.lock([second], WHY)
        assert second.state is ZoneState.LOCKED
        assert site.harness.zone.state is ZoneState.SETTLING
        hang.set()


async def test_each_zone_is_unlocked_by_itself(site: Site, second: Zone) -> None:
    """One that cannot be recovered keeps no other locked; what it met is told."""
    first = site.harness.zone
    await site.lockdown.lock([first, second], WHY)

    async def settle(zone: Zone) -> None:
        if zone is first:
            raise OSError(errno.EIO, "the disk")

    site.lockdown.before_serving = settle
    with pytest.raises(KeyUnavailable, match="the disk"):
        await site.lockdown.unlock([first, second])
    assert (first.state, second.state) == (ZoneState.LOCKED, ZoneState.SERVING)


async def test_a_mount_that_ends_waits_for_no_unlock(site: Site, second: Zone) -> None:
    unlocks = list[str]()
    await site.lockdown.lock([second], WHY)
    begun = hanging_recovery(site, second)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, site, second, unlocks)
        await begun.wait()
        await site.lockdown.finish()
    assert second.state is ZoneState.LOCKED
    await refused(site, second, unlocks)
    assert unlocks[1] == "the mount is ending"


async def test_unlock_fails_as_the_token_does_and_stays_locked(site: Site) -> None:
    await site.lock()
    site.harness.token.elsewhere.set_enabled(site.harness.cmk.cmk_id, False)
    with pytest.raises(Disabled):
        await site.lockdown.unlock([site.harness.zone])
    assert site.harness.zone.state is ZoneState.LOCKED
    site.harness.token.elsewhere.set_enabled(site.harness.cmk.cmk_id, True)
    assert await site.lockdown.unlock([site.harness.zone])
    assert not await site.lockdown.unlock([site.harness.zone])


async def look(mounted: Harness) -> None:
    """The watch looks now, as it does of itself all the time."""
    await ControlAnswers(mounted.mounted).handlers()["confirm"]({"cmk_id": mounted.cmk.cmk_id.hex()})


async def test_an_operators_lock_outlasts_the_watch(mounted: Harness) -> None:
    """Disabled and enabled again meanwhile, the zone stays locked until the operator unlocks it."""
    await mounted.lock()
    admin = mounted.token.elsewhere
    admin.set_enabled(mounted.cmk.cmk_id, False)
    await look(mounted)
    with pytest.raises(Disabled):
        await mounted.unlock()
    admin.set_enabled(mounted.cmk.cmk_id, True)
    await mounted.lock()
    await look(mounted)
    assert mounted.zone.state is ZoneState.LOCKED
    await mounted.unlock()
    assert mounted.zone.state is ZoneState.SERVING


async def test_a_disabled_cmk_locks_and_an_enabled_one_unlocks(mounted: Harness) -> None:
    await mounted.program.save(ROOT, b"file", b"x")
    admin = mounted.token.elsewhere
    admin.set_enabled(mounted.cmk.cmk_id, False)
    await look(mounted)
    status = await ControlAnswers(mounted.mounted).handlers()["status"]({})
    assert status["state"] == "disabled"
    for call in (mounted.program.walk(b"file"), mounted.program.entries(ROOT)):
        with pytest.raises(OSError, match="Required key"):
            await call
    assert (await mounted.program.stat(ROOT)).st_ino == ROOT  # or nothing could unmount it
    admin.set_enabled(mounted.cmk.cmk_id, True)
    await look(mounted)
    assert await mounted.program.content(await mounted.program.walk(b"file")) == b"x"
    assert (await ControlAnswers(mounted.mounted).handlers()["status"]({}))["state"] == "serving"

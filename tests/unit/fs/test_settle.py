"""Settling in batches: what is synced how, and what a failed sync leaves dirty."""

import errno
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
import trio
import trio.testing
from model.harness import ROOT, Harness, scratch

from cmkfs.answers import ControlAnswers
from cmkfs.fs.backing import Backing
from cmkfs.fs.settle import FEW, INTERVAL


class CountingBacking(Backing):
    """Counts syncs by kind; can fail them, or wait in them."""

    single = 0
    whole = 0
    error: OSError | None = None
    entered: trio.Event | None = None
    go: trio.Event | None = None

    async def fsync(self, fd: int) -> None:
        self.single += 1
        await self._wait()
        await super().fsync(fd)

    async def sync_whole(self) -> None:
        self.whole += 1
        await self._wait()
        self.fsyncs += 1

    async def _wait(self) -> None:
        if self.error is not None:
            raise self.error
        if self.entered is not None and self.go is not None:
            self.entered.set()
            await self.go.wait()


@pytest.fixture
async def counting() -> Iterator[Harness]:  # type: ignore[misc]
    with scratch() as directory:
        harness = Harness(directory, CountingBacking)
        await harness.mount()
        yield harness


def backing(harness: Harness) -> CountingBacking:
    assert isinstance(harness.backing, CountingBacking)
    return harness.backing


async def dirty(harness: Harness, count: int) -> list[int]:
    """That many dirty files, open; the counts begin anew."""
    handles = [await harness.program.create(ROOT, b"%d" % number) for number in range(count)]
    for fh in handles:
        await harness.program.write(fh, 0, b"x" * 100)
    backing(harness).single = backing(harness).whole = 0
    return handles


async def test_few_files_are_synced_one_by_one(counting: Harness) -> None:
    await dirty(counting, FEW)
    await counting.mounted.settler.settle_all()
    assert (backing(counting).single, backing(counting).whole) == (FEW, 0)
    assert counting.mounted.settler.dirty == []


async def test_many_are_synced_all_at_once(counting: Harness) -> None:
    await dirty(counting, FEW + 1)
    await counting.mounted.settler.settle_all()
    assert (backing(counting).single, backing(counting).whole) == (0, 1)
    assert counting.mounted.settler.dirty == []


async def test_where_syncfs_does_nothing_every_file_is_synced(counting: Harness) -> None:
    """A FUSE backing never hears of it; the clean slot is synced there too."""
    backing(counting).kind = replace(backing(counting).kind, syncs_as_a_whole=False)
    await dirty(counting, FEW + 1)
    await counting.mounted.settler.settle_all()
    assert (backing(counting).single, backing(counting).whole) == (2 * (FEW + 1), 0)
    assert counting.mounted.settler.dirty == []


async def test_nothing_dirty_costs_nothing(counting: Harness) -> None:
    await dirty(counting, 0)
    await counting.mounted.settler.settle_all()
    assert (backing(counting).single, backing(counting).whole) == (0, 0)


@pytest.mark.parametrize("count", [1, FEW + 1])
async def test_a_failed_sync_leaves_all_of_its_files_dirty(counting: Harness, count: int) -> None:
    await dirty(counting, count)
    backing(counting).error = OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        await counting.mounted.settler.settle_all()
    backing(counting).error = None
    await counting.mounted.settler.settle_all()
    assert len(counting.mounted.settler.dirty) == count
    for number in range(count, count + 2):  # files that come later are settled as ever
        await counting.program.save(ROOT, b"%d" % number, b"x")
    await counting.mounted.settler.settle_all()
    assert len(counting.mounted.settler.dirty) == count
    warnings = (await ControlAnswers(counting.mounted).handlers()["status"]({}))["warnings"]
    assert f"{count} files could not be made durable" in warnings


async def test_what_is_written_during_the_sync_stays_dirty(counting: Harness) -> None:
    (fh, other) = await dirty(counting, 2)
    backing(counting).entered, backing(counting).go = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(counting.mounted.settler.settle_all)
        await backing(counting).entered.wait()  # type: ignore[union-attr]
        await counting.program.write(fh, 0, b"y")
        backing(counting).go.set()  # type: ignore[union-attr]
    assert counting.mounted.settler.dirty == [counting.program.file(fh)]
    await counting.mounted.settler.settle_all()
    assert counting.mounted.settler.dirty == []
    assert await counting.program.read(other, 0, 1) == b"x"


async def test_a_file_that_is_closed_during_the_sync_keeps_its_descriptor_so_long(counting: Harness) -> None:
    (fh,) = await dirty(counting, 1)
    file = counting.program.file(fh)
    backing(counting).entered, backing(counting).go = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(counting.mounted.settler.settle_all)
        await backing(counting).entered.wait()  # type: ignore[union-attr]
        await counting.program.unlink(ROOT, b"0")
        await counting.program.close(fh)
        await counting.program.forget_all()
        os.fstat(file.fd)
        backing(counting).go.set()  # type: ignore[union-attr]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.fd)


async def test_a_removed_file_needs_no_settling(counting: Harness) -> None:
    (fh,) = await dirty(counting, 1)
    await counting.program.unlink(ROOT, b"0")
    await counting.program.close(fh)
    await counting.program.forget_all()
    await counting.mounted.settler.settle_all()
    assert backing(counting).single == 0
    assert counting.mounted.settler.dirty == []


async def test_a_closed_file_is_let_go_when_it_is_settled(counting: Harness) -> None:
    (fh,) = await dirty(counting, 1)
    inode = counting.program.file(fh).inode
    await counting.program.close(fh)
    assert inode.file is not None
    await counting.mounted.settler.settle_all()
    assert inode.file is None


async def test_the_background_settles_after_the_interval(
    counting: Harness, mock_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    nursery.start_soon(counting.mounted.settler.run)
    await trio.testing.wait_all_tasks_blocked()
    await dirty(counting, 1)
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(INTERVAL / 2)
    await trio.testing.wait_all_tasks_blocked()
    assert backing(counting).single == 0
    mock_clock.jump(INTERVAL)
    while counting.mounted.settler.dirty:
        await trio.lowlevel.checkpoint()
    nursery.cancel_scope.cancel()


async def test_too_many_dirty_files_are_settled_at_once(counting: Harness, nursery: trio.Nursery) -> None:
    counting.mounted.settler._max_dirty = 20
    nursery.start_soon(counting.mounted.settler.run)
    await dirty(counting, 20)
    with trio.fail_after(INTERVAL / 2):
        while counting.mounted.settler.dirty:
            await trio.lowlevel.checkpoint()
    nursery.cancel_scope.cancel()


async def test_a_backing_that_fails_does_not_end_the_background(
    counting: Harness, mock_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    nursery.start_soon(counting.mounted.settler.run)
    (fh,) = await dirty(counting, 1)
    backing(counting).error = OSError(errno.EIO, os.strerror(errno.EIO))
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(INTERVAL + 1)
    while not counting.program.file(fh).sync_failed:
        await trio.lowlevel.checkpoint()
    backing(counting).error = None
    await trio.testing.wait_all_tasks_blocked()
    other = await counting.program.create(ROOT, b"other")
    await counting.program.write(other, 0, b"x")
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(INTERVAL + 1)
    while counting.program.file(other).slots.dirty:
        await trio.lowlevel.checkpoint()
    nursery.cancel_scope.cancel()

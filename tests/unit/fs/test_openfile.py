"""One open file: what it costs, what it keeps when something fails, what it refuses. Contents are tests/model's."""

import errno
import os
from collections.abc import Iterator

import pytest
import trio
from model.harness import ROOT, Harness, scratch

from cmkfs.errors import Locked
from cmkfs.format.header import SLOT_OFFSETS, Slot, State, peek_slot
from cmkfs.format.layout import BLOCK, MAX_PLAIN_SIZE, PAGE, cipher_off, cipher_size
from cmkfs.fs.backing import Backing


class FailingBacking(Backing):
    """A backing that can be full, or fail to sync."""

    pages_left: int | None = None
    sync_error: OSError | None = None

    def append(self, fd: int, data: bytes | bytearray | memoryview, cipher_off: int) -> None:
        if self.pages_left is None or cipher_off < os.fstat(fd).st_size // PAGE * PAGE:
            super().append(fd, data, cipher_off)
            return
        whole = min(self.pages_left * PAGE, len(data))
        self.pages_left -= whole // PAGE
        super().append(fd, data[:whole], cipher_off)
        if whole < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def fsync(self, fd: int) -> None:
        if self.sync_error is not None:
            raise self.sync_error
        await super().fsync(fd)

    async def sync_whole(self) -> None:
        if self.sync_error is not None:
            raise self.sync_error
        await super().sync_whole()


@pytest.fixture
def failing() -> Iterator[Harness]:
    with scratch() as directory:
        yield Harness(directory, FailingBacking)


def backing(harness: Harness) -> FailingBacking:
    assert isinstance(harness.backing, FailingBacking)
    return harness.backing


def page(harness: Harness, fh: int, number: int = 0) -> bytes:
    return os.pread(harness.program.file(fh).fd, PAGE, number * PAGE)


def slot(harness: Harness, fh: int) -> Slot:
    found = peek_slot(page(harness, fh))
    assert found is not None
    return found


async def settle(harness: Harness) -> None:
    await harness.mounted.settler.settle_all()


# -- what it costs ---------------------------------------------------------------------------------


async def test_only_what_a_program_asks_for_is_synced(mounted: Harness) -> None:
    program = mounted.program
    fh = await program.create(ROOT, b"file")
    before = mounted.backing.fsyncs
    await program.write(fh, 0, b"x" * 10_000)
    await program.truncate(fh, 20_000)
    await program.write(fh, 100_000, b"y")
    await program.truncate(fh, 15_000)  # above the floor, which is 0
    await program.truncate(fh, 0)
    await program.write(fh, 0, b"x" * 10_000)
    assert mounted.backing.fsyncs == before
    await program.fsync(fh)
    assert mounted.backing.fsyncs == before + 1


async def test_shrinking_below_the_floor_is_one_sync(mounted: Harness) -> None:
    program = mounted.program
    fh = await program.create(ROOT, b"file")
    await program.write(fh, 0, b"x" * 10_000)
    await settle(mounted)
    before = mounted.backing.fsyncs
    await program.truncate(fh, 9000)
    assert mounted.backing.fsyncs == before + 1
    assert slot(mounted, fh).size == mounted.program.file(fh).slots.floor == 9000
    await program.truncate(fh, 8000)
    assert mounted.backing.fsyncs == before + 2
    await program.write(fh, 8000, b"y" * 5000)
    await program.truncate(fh, 12_000)
    assert mounted.backing.fsyncs == before + 2


async def test_settling_what_was_synced_already_costs_no_sync(mounted: Harness) -> None:
    fh = await mounted.program.create(ROOT, b"file")
    await mounted.program.write(fh, 0, b"x")
    await mounted.program.fsync(fh)
    before = mounted.backing.fsyncs
    await settle(mounted)
    assert mounted.backing.fsyncs == before
    assert slot(mounted, fh).state is State.CLEAN


# -- states ----------------------------------------------------------------------------------------


async def test_slots_go_from_dirty_to_clean_and_back(mounted: Harness) -> None:
    fh = await mounted.program.create(ROOT, b"file")
    assert slot(mounted, fh) == Slot(2, 0, State.DIRTY, 0)
    await mounted.program.write(fh, 0, b"x" * 100)
    assert slot(mounted, fh) == Slot(2, 0, State.DIRTY, 0)
    await settle(mounted)
    assert slot(mounted, fh) == Slot(4, 0, State.CLEAN, 100)
    assert os.fstat(mounted.program.file(fh).fd).st_size == cipher_size(100)
    await mounted.program.write(fh, 100, b"x" * 5000)
    await mounted.program.write(fh, 200, b"y")
    assert slot(mounted, fh) == Slot(5, 1, State.DIRTY, 100)
    await settle(mounted)
    assert slot(mounted, fh) == Slot(7, 1, State.CLEAN, 5100)


async def test_a_dirty_slot_goes_over_the_older_one_and_both_become_clean(mounted: Harness) -> None:
    """The slot that counts is never the one that is written; no floor of long ago is left beside a clean one."""
    fh = await mounted.program.create(ROOT, b"file")
    for number in range(4):
        before = [Slot.from_body(page(mounted, fh)[at : at + 480]) for at in SLOT_OFFSETS]
        await mounted.program.write(fh, number * 100, b"x" * 100)
        after = [Slot.from_body(page(mounted, fh)[at : at + 480]) for at in SLOT_OFFSETS]
        if number:
            assert max(before, key=lambda slot: slot.sequence) in after
            assert sorted(slot.state for slot in after) == [State.CLEAN, State.DIRTY]
        await settle(mounted)
        clean = [Slot.from_body(page(mounted, fh)[at : at + 480]) for at in SLOT_OFFSETS]
        assert {(slot.state, slot.size) for slot in clean} == {(State.CLEAN, (number + 1) * 100)}
        assert clean[0].sequence != clean[1].sequence


async def test_a_block_carries_the_generation_it_was_written_in(mounted: Harness) -> None:
    fh = await mounted.program.create(ROOT, b"file")
    await mounted.program.write(fh, 0, b"x" * 2 * BLOCK)
    await settle(mounted)
    await mounted.program.write(fh, 0, b"y" * BLOCK)
    generations = [int.from_bytes(page(mounted, fh, number)[28:32]) for number in (1, 2)]
    assert generations == [1, 0]


async def test_an_overwritten_page_is_not_under_writeback(mounted: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is new is appended, what was written before goes through the one function that waits."""
    calls: list[tuple[str, int]] = []
    fh = await mounted.program.create(ROOT, b"file")
    for name in ("append", "overwrite"):
        real = getattr(Backing, name)

        def seen(self: Backing, fd: int, data: bytes, at: int, name: str = name, real: object = real) -> None:
            calls.append((name, at // PAGE))
            assert callable(real)
            real(self, fd, data, at)

        monkeypatch.setattr(Backing, name, seen)
    await mounted.program.write(fh, 0, b"x" * BLOCK)
    assert calls == [("append", 1)]
    calls.clear()
    await mounted.program.write(fh, 10, b"y")
    await mounted.program.write(fh, BLOCK, b"z")
    assert [call for call in calls if call[0] == "overwrite"] == [("overwrite", 1)]
    calls.clear()
    await mounted.program.write(fh, BLOCK + 1, b"z")
    assert calls[0] == ("overwrite", 2)
    calls.clear()
    await settle(mounted)
    assert calls[0] == ("overwrite", 0)


async def test_storing_and_settling_keep_the_time_that_the_kernel_was_told(mounted: Harness) -> None:
    """The kernel owns mtime; when pages are stored must not show."""
    fh = await mounted.program.create(ROOT, b"file")
    fd, ino = mounted.program.file(fh).fd, mounted.program.file(fh).inode.ino
    told = (await mounted.program.stat(ino)).st_mtime_ns
    await mounted.program.write(fh, 0, b"x")
    assert (await mounted.program.stat(ino)).st_mtime_ns == told
    await mounted.program.fsync(fh)
    await settle(mounted)
    assert (await mounted.program.stat(ino)).st_mtime_ns == os.fstat(fd).st_mtime_ns == told


async def test_what_changed_during_the_sync_stays_dirty(mounted: Harness) -> None:
    fh = await mounted.program.create(ROOT, b"file")
    await mounted.program.write(fh, 0, b"x")
    file = mounted.program.file(fh)
    snapshot = file.changes
    await mounted.program.write(fh, 0, b"y")
    assert not file.settle(snapshot)
    assert file.slots.dirty
    assert file.settle(file.changes)
    assert not file.slots.dirty
    assert file.settle(snapshot)


# -- holes -----------------------------------------------------------------------------------------


async def test_a_zeroed_block_is_damage_and_a_hole_is_not(mounted: Harness) -> None:
    program = mounted.program
    fh = await program.create(ROOT, b"file")
    await program.write(fh, 3 * BLOCK, b"x" * 2 * BLOCK)
    await settle(mounted)
    assert slot(mounted, fh).holes.ranges == ((0, 3),)
    os.pwrite(program.file(fh).fd, bytes(PAGE), cipher_off(3))
    assert await program.read(fh, 0, 3 * BLOCK) == bytes(3 * BLOCK)
    with pytest.raises(OSError, match="Input/output"):
        await program.read(fh, 3 * BLOCK, 1)
    assert await program.read(fh, 4 * BLOCK, 1) == b"x"


async def test_a_hole_that_was_filled_is_listed_until_the_file_is_clean(mounted: Harness) -> None:
    program = mounted.program
    fh = await program.create(ROOT, b"file")
    await program.write(fh, 3 * BLOCK, b"x")
    await program.write(fh, BLOCK, b"y" * BLOCK)
    assert slot(mounted, fh).holes.ranges == ((0, 3),)
    await program.fsync(fh)
    assert slot(mounted, fh).holes.ranges == ((0, 3),)
    await settle(mounted)
    assert slot(mounted, fh).holes.ranges == ((0, 1), (2, 3))


async def test_a_hole_beyond_the_end_is_not_listed_after_an_fsync(mounted: Harness) -> None:
    """Listed on, it would turn a block that is lost later into a hole: zeros that nobody wrote."""
    program = mounted.program
    fh = await program.create(ROOT, b"file")
    await program.write(fh, 9 * BLOCK, b"x")
    await program.truncate(fh, 2 * BLOCK)
    await program.fsync(fh)
    assert slot(mounted, fh).holes.ranges == ((0, 2),)


async def test_what_a_crash_left_in_the_tail_is_no_part_of_a_hole(mounted: Harness) -> None:
    """The remainder is told by bytes that nobody reads; a piece of a lost block may lie in them."""
    program = mounted.program
    fh = await program.create(ROOT, b"file")
    await program.write(fh, 0, b"x" * 100)
    await settle(mounted)
    fd = program.file(fh).fd
    os.pwrite(fd, b"a piece of a lost block", cipher_size(100) - 30)
    await program.write(fh, 5 * BLOCK, b"y" * 90)
    assert await program.read(fh, 0, 6 * BLOCK) == b"x" * 100 + bytes(5 * BLOCK - 100) + b"y" * 90
    await settle(mounted)
    os.pwrite(fd, b"a piece of a lost block", cipher_size(5 * BLOCK + 90) - 30)
    await program.truncate(fh, 9 * BLOCK)
    assert await program.read(fh, 5 * BLOCK, 5 * BLOCK) == b"y" * 90 + bytes(4 * BLOCK - 90)


async def test_more_holes_than_a_slot_lists_are_merged(mounted: Harness) -> None:
    program = mounted.program
    fh = await program.create(ROOT, b"file")
    for number in range(40):
        await program.write(fh, (3 * number + 2) * BLOCK, bytes([number + 1]) * BLOCK)
    await settle(mounted)
    assert len(slot(mounted, fh).holes.ranges) == 26
    await program.close(fh)
    await program.forget_all()
    content = await program.content(await program.walk(b"file"))
    assert content == b"".join(bytes(2 * BLOCK) + bytes([number + 1]) * BLOCK for number in range(40))


@pytest.mark.parametrize("size", [BLOCK + 7, 3 * BLOCK + 1])
async def test_no_file_ends_inside_a_hole(mounted: Harness, size: int) -> None:
    program = mounted.program
    fh = await program.create(ROOT, b"file")
    await program.truncate(fh, 5 * BLOCK)
    await program.truncate(fh, size)
    assert page(mounted, fh, 1 + size // BLOCK) != bytes(PAGE)
    assert int.from_bytes(page(mounted, fh, 1 + size // BLOCK)[24:26]) == size % BLOCK


# -- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("synced", [False, True])
@pytest.mark.parametrize("pages", range(4))
@pytest.mark.parametrize(
    ("plain_off", "length"), [(100, 3 * BLOCK), (2 * BLOCK, 2 * BLOCK), (50, BLOCK), (7 * BLOCK, 10)]
)
async def test_a_write_to_a_full_disk_leaves_the_file_as_it_was(
    failing: Harness, pages: int, plain_off: int, length: int, synced: bool
) -> None:
    """Also after an fsync that follows, and a crash after that: nothing of the failed write may show."""
    await failing.mount()
    fh = await failing.program.create(ROOT, b"file")
    await failing.program.write(fh, 0, b"x" * 100)
    backing(failing).pages_left = pages
    needed = (plain_off + length - 1) // BLOCK + 1 - max(1, plain_off // BLOCK)
    expected = b"x" * 100
    if pages < needed:
        with pytest.raises(OSError, match="No space"):
            await failing.program.write(fh, plain_off, b"y" * length)
    else:
        await failing.program.write(fh, plain_off, b"y" * length)
        expected = expected.ljust(plain_off, b"\0")[:plain_off] + b"y" * length
    backing(failing).pages_left = None
    assert failing.program.file(fh).size == len(expected)
    assert await failing.program.read(fh, 0, 100_000) == expected
    if synced:
        await failing.program.fsync(fh)
    failing.kill()
    await failing.mount()
    assert await failing.program.content(await failing.program.walk(b"file")) == expected
    await failing.unmount()


async def test_the_stored_half_of_a_failed_write_does_not_show_after_a_crash(failing: Harness) -> None:
    """Whole blocks right behind a full last one would pass for the file's own."""
    await failing.mount()
    fh = await failing.program.create(ROOT, b"file")
    await failing.program.write(fh, 0, b"x" * BLOCK)
    backing(failing).pages_left = 2
    with pytest.raises(OSError, match="No space"):
        await failing.program.write(fh, BLOCK, b"y" * 3 * BLOCK)
    backing(failing).pages_left = None
    failing.kill()
    await failing.mount()
    assert await failing.program.content(await failing.program.walk(b"file")) == b"x" * BLOCK
    await failing.unmount()


@pytest.mark.parametrize("pages", [0, 1])
async def test_a_truncate_on_a_full_disk_leaves_the_file_as_it_was(failing: Harness, pages: int) -> None:
    await failing.mount()
    fh = await failing.program.create(ROOT, b"file")
    await failing.program.write(fh, 0, b"x" * 100)
    backing(failing).pages_left = pages
    if pages:
        await failing.program.truncate(fh, 3 * BLOCK + 1)
    with pytest.raises(OSError, match="No space"):
        await failing.program.truncate(fh, 9 * BLOCK + 1)
    backing(failing).pages_left = None
    size = failing.program.file(fh).size
    assert size == (3 * BLOCK + 1 if pages else 100)
    await failing.program.fsync(fh)
    failing.kill()
    await failing.mount()
    assert len(await failing.program.content(await failing.program.walk(b"file"))) == size
    await failing.unmount()


async def test_after_a_failed_sync_a_file_is_never_clean(failing: Harness) -> None:
    await failing.mount()
    fh = await failing.program.create(ROOT, b"file")
    await failing.program.write(fh, 0, b"x")
    backing(failing).sync_error = OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        await failing.program.fsync(fh)
    backing(failing).sync_error = None
    await settle(failing)
    assert slot(failing, fh).state is State.DIRTY
    assert await failing.program.read(fh, 0, 10) == b"x"
    result = await failing.mounted.close()
    assert result["unsaved"]
    failing._let_go()
    await failing.mount()  # recovery looks at it
    assert failing.mounted.recovered is not None
    assert await failing.program.content(await failing.program.walk(b"file")) == b"x"
    await failing.unmount()


async def test_a_size_that_no_offset_can_name_is_refused(mounted: Harness) -> None:
    fh = await mounted.program.create(ROOT, b"file")
    for plain_off in (MAX_PLAIN_SIZE, 2**62 * 2 - 1):
        with pytest.raises(OSError, match="too large"):
            await mounted.program.write(fh, plain_off, b"x")
    with pytest.raises(OSError, match="too large"):
        await mounted.program.truncate(fh, MAX_PLAIN_SIZE + 1)
    assert mounted.program.file(fh).size == 0


# -- emptying --------------------------------------------------------------------------------------


async def test_emptying_gives_a_new_id_and_a_new_key(mounted: Harness) -> None:
    fh = await mounted.program.create(ROOT, b"file")
    await mounted.program.write(fh, 0, b"x" * BLOCK)
    file = mounted.program.file(fh)
    before, old = file.identity, page(mounted, fh, 1)
    await mounted.program.truncate(fh, 0)
    assert file.identity.file_id != before.file_id
    assert file.identity.commitment != before.commitment
    await mounted.program.write(fh, 0, b"y" * BLOCK)
    os.pwrite(file.fd, old, PAGE)  # a block of before is of another file
    with pytest.raises(OSError, match="Input/output"):
        await mounted.program.read(fh, 0, 1)


async def test_emptying_a_file_with_attributes_keeps_its_id(mounted: Harness) -> None:
    fh = await mounted.program.create(ROOT, b"file")
    await mounted.program.write(fh, 0, b"x" * BLOCK)
    file = mounted.program.file(fh)
    await mounted.program.set_xattr(file.inode.ino, b"user.a", b"value")
    before = file.identity
    await mounted.program.truncate(fh, 0)
    assert file.identity == before
    assert await mounted.program.get_xattr(file.inode.ino, b"user.a") == b"value"
    assert os.fstat(file.fd).st_size == PAGE


async def test_emptying_an_empty_file_does_nothing(mounted: Harness) -> None:
    fh = await mounted.program.create(ROOT, b"file")
    before = page(mounted, fh)
    await mounted.program.truncate(fh, 0)
    assert page(mounted, fh) == before


# -- lock ------------------------------------------------------------------------------------------


async def test_a_locked_file_is_refused_and_goes_on_after_the_unlock(mounted: Harness) -> None:
    program = mounted.program
    fh = await program.create(ROOT, b"file")
    await program.write(fh, 0, b"x" * 100)
    await mounted.lock()
    for call in (
        lambda: program.read(fh, 0, 1),
        lambda: program.write(fh, 0, b"y"),
        lambda: program.truncate(fh, 50),
        lambda: program.truncate(fh, 0),
        lambda: program.fsync(fh),
    ):
        with pytest.raises(OSError, match="Required key"):
            await call()
    with pytest.raises(Locked):
        await program.file(fh).key.reading()
    await mounted.unlock()
    assert await program.read(fh, 0, 200) == b"x" * 100
    await program.write(fh, 0, b"y")
    assert await program.read(fh, 0, 2) == b"yx"


async def test_a_dirty_file_is_settled_after_its_key_is_gone(mounted: Harness) -> None:
    fh = await mounted.program.create(ROOT, b"file")
    await mounted.program.write(fh, 0, b"x" * 100)
    await mounted.lock()
    assert slot(mounted, fh).state is State.DIRTY
    await settle(mounted)
    assert slot(mounted, fh) == Slot(4, 0, State.CLEAN, 100)


async def test_a_slot_sealed_before_the_lock_does_not_stand_in_the_way(mounted: Harness) -> None:
    """It was sealed, not written; after the unlock an fsync writes another slot in its place."""
    program = mounted.program
    fh = await program.create(ROOT, b"file")
    await program.write(fh, 9 * BLOCK, b"x")
    await program.truncate(fh, 2 * BLOCK)
    await mounted.lock()
    await mounted.unlock()
    await program.fsync(fh)
    await settle(mounted)
    assert slot(mounted, fh).state is State.CLEAN


async def test_a_request_that_waits_for_the_disk_is_refused_by_a_lock(harness: Harness) -> None:
    """The last look at the lease is after the last await."""
    reading, go = trio.Event(), trio.Event()
    harness._backing_class = ColdBacking
    await harness.mount()
    fh = await harness.program.create(ROOT, b"file")
    await harness.program.write(fh, 0, b"x" * 100)
    refused: list[OSError] = []

    async def read() -> None:
        try:
            await harness.program.read(fh, 0, 100)
        except OSError as error:
            refused.append(error)

    file = harness.program.file(fh)
    fetch = file.pages.fetch

    async def slow(first: int, count: int, *, counts: bool) -> object:
        reading.set()
        await go.wait()
        return await fetch(first, count, counts=counts)

    file.pages = Slow(file.pages, slow)  # type: ignore[assignment]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await reading.wait()
        await harness.lock()
        go.set()
    assert [error.errno for error in refused] == [errno.ENOKEY]


class ColdBacking(Backing):
    """Nothing is ever in memory."""

    def read(self, fd: int, length: int, cipher_off: int) -> None:
        return None


class Slow:
    """The backing of a file whose disk takes its time."""

    def __init__(self, real: object, fetch: object) -> None:
        self._real = real
        self.fetch = fetch

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

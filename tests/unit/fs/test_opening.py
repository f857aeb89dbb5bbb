"""The first open of a file: the table of docs/format.md, 8.4, end to end."""

import errno
import os
from pathlib import Path

import pytest
import trio
from model.harness import ROOT, Harness

from cmkfs.format.header import SLOT_OFFSETS, Slot, State, peek_slot
from cmkfs.format.layout import BLOCK, PAGE, blocks_end, cipher_off, cipher_size

SIZE = 2 * BLOCK + 100
CONTENT = b"1" * BLOCK + b"2" * BLOCK + b"3" * 100


def entry(harness: Harness) -> Path:
    (found,) = [path for path in harness.vault.iterdir() if path.is_file() and not path.name.startswith("cmkfs.")]
    return found


async def closed(harness: Harness, content: bytes = CONTENT) -> Path:
    """A vault with one settled file, its mount closed."""
    await harness.mount()
    await harness.program.save(ROOT, b"file", content)
    await harness.unmount()
    return entry(harness)


async def crashed(harness: Harness) -> Path:
    """The same, and a session after it that was not closed."""
    path = await closed(harness)
    await harness.mount()
    harness.kill()
    os.utime(path)  # the session changed it: ctime is what recovery goes by
    return path


async def content(harness: Harness) -> bytes:
    return await harness.program.content(await harness.program.walk(b"file"))


async def refused(harness: Harness) -> str:
    """Why the file cannot be opened."""
    with pytest.raises(OSError, match="Input/output") as caught:
        await content(harness)
    return caught.value.__notes__[0]


def put(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


async def sealed(harness: Harness, slot: Slot | None, *blocks: tuple[int, bytes, int]) -> None:
    """Write a slot and blocks (number, plain, generation) with the file's own key, as a lost session would have."""
    await harness.mount()
    inode = harness.mounted.inodes[await harness.program.walk(b"file")]
    file = await harness.mounted._opener.open(inode, harness.zone)
    key = await file.key.reading()
    page = os.pread(file.fd, PAGE, 0)
    newest = peek_slot(page)
    assert newest is not None
    for number, plain, generation in blocks:
        os.pwrite(file.fd, key.content.seal(number, plain, generation), cipher_off(number))
    if slot is not None:
        place = 1 - file.slots._number
        os.pwrite(file.fd, key.seal_slot(place, slot), SLOT_OFFSETS[place])
    harness.kill()


# -- clean -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("recovering", [False, True])
async def test_clean_and_equal(harness: Harness, recovering: bool) -> None:
    await (crashed(harness) if recovering else closed(harness))
    await harness.mount()
    assert (harness.mounted.recovered is not None) == recovering
    assert await content(harness) == CONTENT


@pytest.mark.parametrize("recovering", [False, True])
@pytest.mark.parametrize(
    "length", [PAGE, cipher_size(BLOCK), blocks_end(BLOCK), cipher_size(SIZE) - 1, cipher_size(SIZE - BLOCK)]
)
async def test_clean_and_less_is_eio(harness: Harness, recovering: bool, length: int) -> None:
    path = await (crashed(harness) if recovering else closed(harness))
    os.truncate(path, length)
    await harness.mount()
    assert "truncated" in await refused(harness)
    if recovering:
        assert harness.mounted.recovered is not None
        assert len(harness.mounted.recovered.unreadable) == 1


@pytest.mark.parametrize(
    "length", [blocks_end(SIZE), cipher_size(SIZE) + 1, blocks_end(SIZE) + PAGE, blocks_end(SIZE) + 4060]
)
async def test_clean_and_more_is_cut_while_recovering_and_eio_otherwise(harness: Harness, length: int) -> None:
    path = await closed(harness)
    os.truncate(path, length)
    await harness.mount()
    assert "extended" in await refused(harness)
    harness.kill()
    os.utime(path)
    await harness.mount()
    assert await content(harness) == CONTENT
    assert path.stat().st_size == cipher_size(SIZE)


async def test_a_longer_last_block_is_cut_while_recovering(harness: Harness) -> None:
    """What a lost append left there must not come back after the next crash."""
    path = await closed(harness)
    await sealed(harness, None, (2, b"3" * 100 + b"lost", 1))
    before = path.read_bytes()
    await harness.mount()
    assert await content(harness) == CONTENT
    assert path.read_bytes()[cipher_off(2) :][:PAGE] != before[cipher_off(2) :][:PAGE]
    await harness.unmount()
    await sealed(harness, Slot(9, 9, State.DIRTY, SIZE))
    await harness.mount()
    assert await content(harness) == CONTENT


async def test_what_a_longer_last_block_holds_is_never_given_out(harness: Harness) -> None:
    path = await closed(harness)
    block = path.read_bytes()
    await sealed(harness, None, (2, b"3" * 100 + b"beyond", 0))
    longer = path.read_bytes()
    path.write_bytes(block)
    await harness.mount()
    await harness.unmount()
    path.write_bytes(longer)
    await harness.mount()
    assert harness.mounted.recovered is None
    assert await content(harness) == CONTENT
    fh = await harness.program.open(await harness.program.walk(b"file"))
    await harness.program.truncate(fh, SIZE + 20)
    assert await harness.program.read(fh, 0, SIZE + 20) == CONTENT + bytes(20)


@pytest.mark.parametrize("recovering", [False, True])
@pytest.mark.parametrize("block", [0, 1, 2])
async def test_a_damaged_block_is_eio_alone(harness: Harness, recovering: bool, block: int) -> None:
    path = await (crashed(harness) if recovering else closed(harness))
    put(path, cipher_off(block) + 100, b"damage")
    await harness.mount()
    fh = await harness.program.open(await harness.program.walk(b"file"))
    for number in range(3):
        if number == block:
            with pytest.raises(OSError, match="Input/output"):
                await harness.program.read(fh, number * BLOCK, BLOCK)
        else:
            found = await harness.program.read(fh, number * BLOCK, BLOCK)
            assert found == CONTENT[number * BLOCK : (number + 1) * BLOCK]
    with pytest.raises(OSError, match="Input/output"):
        await harness.program.read(fh, 0, SIZE)


async def test_a_shorter_last_block_is_eio_alone(harness: Harness) -> None:
    await closed(harness)
    await sealed(harness, None, (2, b"3" * 99, 0))
    await harness.mount()
    fh = await harness.program.open(await harness.program.walk(b"file"))
    with pytest.raises(OSError, match="Input/output"):
        await harness.program.read(fh, 2 * BLOCK, 1)
    assert await harness.program.read(fh, 0, 2 * BLOCK) == CONTENT[: 2 * BLOCK]


async def test_a_block_two_generations_ahead_is_tampering(harness: Harness) -> None:
    await closed(harness)
    await sealed(harness, None, (0, b"a" * BLOCK, 1), (1, b"b" * BLOCK, 2))
    await harness.mount()
    fh = await harness.program.open(await harness.program.walk(b"file"))
    assert await harness.program.read(fh, 0, 1) == b"a"
    with pytest.raises(OSError, match="Input/output"):
        await harness.program.read(fh, BLOCK, 1)


# -- dirty -----------------------------------------------------------------------------------------

DIRTY = Slot(9, 1, State.DIRTY, SIZE)


@pytest.mark.parametrize(
    ("blocks", "size"),
    [
        ([], SIZE),
        ([(2, b"3" * 150, 1)], 2 * BLOCK + 150),
        ([(2, b"3" * BLOCK, 1)], 3 * BLOCK),
        ([(2, b"3" * BLOCK, 1), (3, b"4" * 7, 1)], 3 * BLOCK + 7),
        ([(2, b"3" * BLOCK, 1), (4, b"5" * 7, 1)], 3 * BLOCK),  # a lost block in between
        ([(3, b"4" * BLOCK, 1)], SIZE),  # the last block was not filled
        ([(2, b"3" * BLOCK, 1), (3, b"4" * BLOCK, 3)], 3 * BLOCK),  # of a generation too far ahead
        ([(1, b"x" * BLOCK, 1)], SIZE),
    ],
)
async def test_where_a_dirty_file_ends(harness: Harness, blocks: list[tuple[int, bytes, int]], size: int) -> None:
    path = await closed(harness)
    await sealed(harness, DIRTY, *blocks)
    await harness.mount()
    assert harness.mounted.recovered is not None
    assert harness.mounted.recovered.files_settled == 1
    found = await content(harness)
    assert len(found) == size
    assert found[BLOCK : 2 * BLOCK][:BLOCK] in (b"2" * BLOCK, b"x" * BLOCK)
    assert path.stat().st_size == cipher_size(size)
    slot = peek_slot(path.read_bytes()[:PAGE])
    assert slot is not None
    assert (slot.state, slot.size) == (State.CLEAN, size)


@pytest.mark.parametrize("stored", [False, True])
async def test_a_listed_hole_counts_as_full(harness: Harness, stored: bool) -> None:
    """Also where a copy has stored its zeros."""
    path = await closed(harness)
    holes = Slot(9, 1, State.DIRTY, SIZE).holes.add(3, 5)
    await sealed(harness, Slot(9, 1, State.DIRTY, SIZE, holes), (2, b"3" * BLOCK, 1), (5, b"6" * 7, 1))
    if stored:
        put(path, cipher_off(3), bytes(2 * PAGE))
    await harness.mount()
    assert await content(harness) == CONTENT[: 2 * BLOCK] + b"3" * BLOCK + bytes(2 * BLOCK) + b"6" * 7


async def test_below_the_floor_a_bad_block_is_eio_alone(harness: Harness) -> None:
    path = await closed(harness)
    await sealed(harness, DIRTY)
    put(path, cipher_off(1), bytes(PAGE))
    await harness.mount()
    fh = await harness.program.open(await harness.program.walk(b"file"))
    assert harness.program.file(fh).size == SIZE
    with pytest.raises(OSError, match="Input/output"):
        await harness.program.read(fh, BLOCK, 1)
    assert await harness.program.read(fh, 2 * BLOCK, 100) == b"3" * 100


@pytest.mark.parametrize("how", ["zeroed", "shorter"])
async def test_a_bad_block_that_holds_the_floor_ends_the_file_there(harness: Harness, how: str) -> None:
    path = await closed(harness)
    blocks = [(2, b"3" * 50, 1)] if how == "shorter" else []
    await sealed(harness, DIRTY, *blocks, (3, b"4" * BLOCK, 1))
    if how == "zeroed":
        put(path, cipher_off(2), bytes(PAGE))
    await harness.mount()
    fh = await harness.program.open(await harness.program.walk(b"file"))
    assert harness.program.file(fh).size == SIZE
    with pytest.raises(OSError, match="Input/output"):
        await harness.program.read(fh, 2 * BLOCK, 100)
    assert await harness.program.read(fh, 0, 2 * BLOCK) == CONTENT[: 2 * BLOCK]


@pytest.mark.parametrize("recovering", [False, True])
async def test_dirty_and_less_than_the_floor_is_eio(harness: Harness, recovering: bool) -> None:
    path = await closed(harness)
    session = (harness.vault / "cmkfs.session").read_bytes()
    await sealed(harness, DIRTY)
    os.truncate(path, cipher_size(SIZE - 1))
    if not recovering:
        (harness.vault / "cmkfs.session").write_bytes(session)
    await harness.mount()
    assert "below" in await refused(harness)


async def test_a_dirty_file_in_a_closed_vault_is_told_anew(harness: Harness) -> None:
    """The kernel keeps the first size it is told: another generation behind the same number makes it look again."""
    await closed(harness)
    session = (harness.vault / "cmkfs.session").read_bytes()
    await sealed(harness, DIRTY, (2, b"3" * BLOCK, 1), (4, b"5", 1))
    (harness.vault / "cmkfs.session").write_bytes(session)
    await harness.mount()
    before = await harness.program.lookup(ROOT, b"file")
    with pytest.raises(OSError, match="Stale") as caught:
        await harness.program.open(before.st_ino)
    assert caught.value.errno == errno.ESTALE
    after = await harness.program.lookup(ROOT, b"file")
    assert (after.st_ino, after.st_size) == (before.st_ino, 3 * BLOCK)
    assert after.generation != before.generation
    assert await content(harness) == CONTENT[: 2 * BLOCK] + b"3" * BLOCK
    await harness.unmount()


async def test_a_damaged_slot_makes_the_other_one_a_floor(harness: Harness) -> None:
    path = await closed(harness)
    page = path.read_bytes()[:PAGE]
    sequences = [int.from_bytes(page[at : at + 8]) for at in SLOT_OFFSETS]
    put(path, SLOT_OFFSETS[sequences.index(min(sequences))] + 20, b"damage")
    await harness.mount()
    assert await content(harness) == CONTENT
    await harness.unmount()
    page = path.read_bytes()[:PAGE]
    assert all(int.from_bytes(page[at : at + 8]) for at in SLOT_OFFSETS)


# -- no header -------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", bytes(PAGE), bytes(PAGE) + b"rest" * 2000])
async def test_without_a_header_a_file_is_empty_while_recovering_and_eio_otherwise(
    harness: Harness, data: bytes
) -> None:
    path = await closed(harness)
    os.setxattr(path, "user.cmkfs.AAAAAAAAAAAAAAAAAAAAAA", b"of the lost file")
    path.write_bytes(data)
    await harness.mount()
    await refused(harness)
    harness.kill()
    os.utime(path)
    await harness.mount()
    assert await content(harness) == b""
    assert os.listxattr(path) == []
    fh = await harness.program.open(await harness.program.walk(b"file"))
    await harness.program.write(fh, 0, b"works")
    assert await harness.program.read(fh, 0, 9) == b"works"
    await harness.unmount()


@pytest.mark.parametrize("data", [b"x", bytes(100), bytes(PAGE - 1), b"x" * PAGE, bytes(PAGE - 1) + b"x"])
async def test_anything_else_in_its_place_is_eio_always(harness: Harness, data: bytes) -> None:
    path = await crashed(harness)
    path.write_bytes(data)
    await harness.mount()
    await refused(harness)


# -- two of one file -------------------------------------------------------------------------------


async def two_clones(harness: Harness) -> list[int]:
    """Two files of one id; gives their inode numbers."""
    await harness.mount()
    for name in (b"one", b"two"):
        await harness.program.save(ROOT, name, name)
    await harness.unmount()
    paths = [path for path in harness.vault.iterdir() if path.is_file() and not path.name.startswith("cmkfs.")]
    paths[1].write_bytes(paths[0].read_bytes())
    await harness.mount()
    return [await harness.program.walk(name) for name in (b"one", b"two")]


async def test_a_cloned_file_is_damage_as_soon_as_both_are_used(harness: Harness) -> None:
    one, two = await two_clones(harness)
    fh = await harness.program.open(one)
    await harness.program.close(fh)
    with pytest.raises(OSError, match="Input/output") as caught:
        await harness.program.open(two)
    assert "two files with one id" in caught.value.__notes__[0]
    await harness.program.forget_all()
    await harness.program.close(await harness.program.open(await harness.program.walk(b"two")))  # by itself: a copy


async def test_a_cloned_file_is_damage_also_when_both_are_opened_at_once(harness: Harness) -> None:
    """Neither is open yet when the other one looks: the token is asked for the key of both."""
    numbers = await two_clones(harness)
    outcomes: list[str] = []

    async def open_one(ino: int) -> None:
        try:
            await harness.program.open(ino)
            outcomes.append("open")
        except OSError:
            outcomes.append("refused")

    async with trio.open_nursery() as nursery:
        for ino in numbers:
            nursery.start_soon(open_one, ino)
    assert sorted(outcomes) == ["open", "refused"]


async def test_the_id_of_a_file_that_was_emptied_is_its_own_no_more(harness: Harness) -> None:
    await harness.mount()
    fh = await harness.program.create(ROOT, b"one")
    await harness.program.write(fh, 0, b"x")
    await harness.mounted.settler.settle_all()
    copy = entry(harness).read_bytes()
    await harness.program.truncate(fh, 0)
    await harness.program.save(ROOT, b"two", b"")
    await harness.mounted.settler.settle_all()
    await harness.program.forget_all()
    two = harness.mounted.operations.directory_of(harness.mounted.inodes.root)
    target = harness.vault / os.fsdecode(two.zone.keys.seal_name(two.dir_id, b"two"))
    target.write_bytes(copy)
    assert await harness.program.content(await harness.program.walk(b"two")) == b"x"
    await harness.program.close(fh)


# -- read-only -------------------------------------------------------------------------------------


async def test_a_read_only_mount_recovers_in_memory_only(harness: Harness) -> None:
    """Sizes are told as they will be, reads honour them, and not a byte of the vault changes."""
    path = await closed(harness)
    await sealed(harness, DIRTY, (2, b"3" * BLOCK, 1), (3, b"4" * 7, 1))
    await harness.mount()
    await harness.program.save(ROOT, b"unwritten", b"")
    await harness.program.save(ROOT, b"longer", b"x" * 10)
    await harness.mounted.settler.settle_all()
    harness.kill()
    for other in harness.vault.iterdir():
        if other.is_file() and not other.name.startswith("cmkfs.") and other != path:
            os.truncate(other, 0 if other.stat().st_size == PAGE else PAGE * 3)
    before = {one.name: one.read_bytes() for one in harness.vault.iterdir() if one.is_file()}
    await harness.mount(read_only=True)
    sizes = {name: (await harness.program.lookup(ROOT, name)).st_size for name in (b"file", b"unwritten", b"longer")}
    assert sizes == {b"file": 3 * BLOCK + 7, b"unwritten": 0, b"longer": 10}
    assert await harness.program.content(await harness.program.walk(b"longer")) == b"x" * 10
    assert await harness.program.content(await harness.program.walk(b"unwritten")) == b""
    assert await content(harness) == CONTENT[: 2 * BLOCK] + b"3" * BLOCK + b"4" * 7
    await harness.unmount()
    assert {one.name: one.read_bytes() for one in harness.vault.iterdir() if one.is_file()} == before

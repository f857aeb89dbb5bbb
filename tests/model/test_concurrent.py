"""Requests for one file at the same time, each waiting for the disk in the middle: as if one after the other."""

import random
from pathlib import Path

import pytest
import trio

from cmkfs.format.layout import BLOCK
from cmkfs.fs.backing import Backing

from .harness import ROOT, Harness, scratch


class ColdBacking(Backing):
    """A backing where nothing is ever in memory: each read waits in a thread, and others get their turn."""

    def read(self, fd: int, length: int, cipher_off: int) -> None:
        return None


@pytest.fixture
def cold() -> object:
    with scratch() as directory:
        yield Harness(directory, ColdBacking)


async def test_neighbours_in_one_block_do_not_lose_each_other(cold: Harness) -> None:
    """Two write-backs that meet inside a block both read, change and write it."""
    await cold.mount()
    program = cold.program
    fh = await program.create(ROOT, b"file")
    await program.write(fh, 0, bytes(10 * 1000))
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(program.write, fh, number * 1000, bytes([number + 1]) * 1000)
    assert await program.read(fh, 0, 10_000) == b"".join(bytes([number + 1]) * 1000 for number in range(10))
    await cold.unmount()


async def test_appends_by_offset_and_reads_agree(cold: Harness) -> None:
    """A reader sees each block as it was before or after each write, never half of both, never damage."""
    await cold.mount()
    program = cold.program
    fh = await program.create(ROOT, b"file")
    await program.write(fh, 0, b"\1" * BLOCK)
    seen: set[bytes] = set()

    async def rewrite() -> None:
        for stamp in range(2, 20):
            await program.write(fh, 0, bytes([stamp]) * BLOCK)

    async def look() -> None:
        for _ in range(20):
            seen.add(await program.read(fh, 0, BLOCK))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rewrite)
        for _ in range(3):
            nursery.start_soon(look)
    assert all(len(set(block)) == 1 and len(block) == BLOCK for block in seen)
    await cold.unmount()


@pytest.mark.parametrize("seed", range(12))
async def test_any_mixture_leaves_a_sound_file(cold: Harness, seed: int) -> None:
    """Writes, truncates, syncs, settling and opens at once: told size and readable size agree, also after a kill."""
    await cold.mount()
    rng = random.Random(seed)
    fh = await cold.program.create(ROOT, b"file")
    stop = trio.Event()

    async def settle() -> None:
        while not stop.is_set():
            await cold.mounted.settler.settle_all()
            await trio.lowlevel.checkpoint()

    async def one() -> None:
        for _ in range(12):
            await _any_call(cold, fh, rng)

    async with trio.open_nursery() as outer:
        outer.start_soon(settle)
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(one)
        stop.set()
    before = await cold.program.content(await cold.program.walk(b"file"))
    cold.kill()
    await cold.mount()
    assert cold.mounted.recovered is not None
    assert cold.mounted.recovered.unreadable == []
    assert await cold.program.content(await cold.program.walk(b"file")) == before
    await cold.unmount()


async def _any_call(cold: Harness, fh: int, rng: random.Random) -> None:
    program = cold.program
    call = rng.choice(["write", "write", "write", "truncate", "empty", "fsync", "read", "reopen"])
    if call == "write":
        await program.write(fh, rng.randrange(6 * BLOCK), b"w" * rng.randint(1, 2 * BLOCK))
    elif call == "truncate":
        await program.operations.handles.files[fh].file.truncate(rng.randrange(6 * BLOCK))
    elif call == "empty":
        await cold.mounted._opener.truncate_to_zero(program.file(fh))
    elif call == "fsync":
        await program.fsync(fh)
    elif call == "read":
        await program.read(fh, rng.randrange(6 * BLOCK), BLOCK)
    else:
        await program.close(await program.open(await program.walk(b"file")))


async def test_many_openers_share_one_file(cold: Harness) -> None:
    """One unwrap, one OpenFile, whoever comes first."""
    await cold.mount()
    ino = await cold.program.save(ROOT, b"file", b"content")
    await cold.unmount()
    await cold.mount()
    ino = await cold.program.walk(b"file")
    before = cold.token.calls["unwrap"]
    handles: list[int] = []

    async def open_one() -> None:
        handles.append(await cold.program.open(ino))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(open_one)
    assert len({id(cold.program.file(fh)) for fh in handles}) == 1
    assert cold.token.calls["unwrap"] == before + 1
    for fh in handles:
        await cold.program.close(fh)
    await cold.unmount()


def test_the_backing_is_cold(tmp_path: Path) -> None:
    backing = ColdBacking(tmp_path, read_only=True)
    assert backing.read(backing.root_fd, 1, 0) is None
    backing.close()

"""One open file against a `bytearray`: whatever is done to both, both hold the same bytes."""

import os

import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cmkfs.format.layout import BLOCK

from .harness import ROOT, Harness, scratch

NAME = b"file"
EDGES = [0, 1, 8, *(n * BLOCK + near for n in (1, 2, 3, 9) for near in (-1, 0, 1)), 4096, 8192, 12288, 40_000]
OFFSETS = st.sampled_from(EDGES) | st.integers(0, 50_000)
LENGTHS = st.sampled_from([1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 4096, 2 * BLOCK, 8192]) | st.integers(1, 14_000)
FAR = st.sampled_from([60 * BLOCK, 200 * BLOCK + 7, 1_000_003])


class OpenFileMachine(RuleBasedStateMachine):
    """`model` is what the file must hold; `fh` the handle in use."""

    def __init__(self) -> None:
        super().__init__()
        self._scratch = scratch()
        self.harness = Harness(self._scratch.__enter__())
        self.model = bytearray()
        self.stamp = 0
        self.locked = False

    @initialize()
    def begin(self) -> None:
        async def create() -> int:
            await self.harness.mount()
            return await self.harness.program.create(ROOT, NAME)

        self.fh = trio.run(create)

    # -- a program's calls ------------------------------------------------------------------------

    def _data(self, length: int) -> bytes:
        self.stamp = self.stamp % 255 + 1
        return bytes([self.stamp]) * length

    @precondition(lambda self: not self.locked)
    @rule(plain_off=OFFSETS | FAR, length=LENGTHS)
    def write(self, plain_off: int, length: int) -> None:
        data = self._data(length)
        trio.run(self.harness.program.write, self.fh, plain_off, data)
        self.model.extend(bytes(max(0, plain_off - len(self.model))))
        self.model[plain_off : plain_off + length] = data

    @precondition(lambda self: not self.locked)
    @rule(length=LENGTHS)
    def append(self, length: int) -> None:
        data = self._data(length)
        trio.run(self.harness.program.write, self.fh, len(self.model), data)
        self.model += data

    @precondition(lambda self: not self.locked)
    @rule(size=OFFSETS | FAR)
    def truncate(self, size: int) -> None:
        trio.run(self.harness.program.truncate, self.fh, size)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    @precondition(lambda self: not self.locked)
    @rule(plain_off=OFFSETS, length=st.integers(1, 140_000))
    def read(self, plain_off: int, length: int) -> None:
        found = trio.run(self.harness.program.read, self.fh, plain_off, length)
        assert found == bytes(self.model[plain_off : plain_off + length])

    @precondition(lambda self: not self.locked)
    @rule()
    def fsync(self) -> None:
        trio.run(self.harness.program.fsync, self.fh)

    @precondition(lambda self: not self.locked)
    @rule()
    def set_xattr(self) -> None:
        async def mark() -> None:
            program = self.harness.program
            await program.set_xattr(program.file(self.fh).inode.ino, b"user.mark", b"1")

        trio.run(mark)

    @precondition(lambda self: not self.locked)
    @rule()
    def reopen(self) -> None:
        async def again() -> int:
            program = self.harness.program
            await program.close(self.fh)
            return await program.open(await program.walk(NAME))

        self.fh = trio.run(again)

    @precondition(lambda self: not self.locked)
    @rule()
    def reopen_and_truncate(self) -> None:
        async def again() -> int:
            program = self.harness.program
            await program.close(self.fh)
            return await program.open(await program.walk(NAME), os.O_RDWR | os.O_TRUNC)

        self.fh = trio.run(again)
        self.model.clear()

    # -- what happens beside ----------------------------------------------------------------------

    @rule()
    def settle(self) -> None:
        trio.run(self.harness.mounted.settler.settle_all)

    @precondition(lambda self: not self.locked)
    @rule()
    def settle_and_open_anew(self) -> None:
        """A new OpenFile, from what lies in the vault."""

        async def again() -> int:
            program = self.harness.program
            await program.close(self.fh)
            await self.harness.mounted.settler.settle_all()
            await program.forget_all()
            assert len(self.harness.mounted.inodes) == 1
            return await program.open(await program.walk(NAME))

        self.fh = trio.run(again)

    @precondition(lambda self: not self.locked)
    @rule()
    def lock(self) -> None:
        trio.run(self.harness.lock)
        self.locked = True

    @precondition(lambda self: self.locked)
    @rule()
    def unlock(self) -> None:
        trio.run(self.harness.unlock)
        self.locked = False

    @rule()
    def remount(self) -> None:
        async def again() -> int:
            await self.harness.unmount()
            return await self._mount_again()

        self.fh = trio.run(again)

    @rule()
    def kill(self) -> None:
        """The daemon dies: the operating system still has all that was handed to it."""
        self.harness.kill()
        self.fh = trio.run(self._mount_again)
        report = self.harness.mounted.recovered
        assert report is not None
        assert report.unreadable == []

    async def _mount_again(self) -> int:
        self.locked = False
        mounted = await self.harness.mount()
        program = self.harness.program
        entry = await program.lookup(ROOT, NAME)
        assert entry.st_size == len(self.model)
        fh = await program.open(entry.st_ino)
        assert not mounted.settler.dirty
        return fh

    @invariant()
    def the_same(self) -> None:
        if self.locked or not hasattr(self, "fh"):
            return
        file = self.harness.program.file(self.fh)
        assert file.size == len(self.model)
        found = trio.run(self.harness.program.read, self.fh, 0, len(self.model) + 1)
        assert found == bytes(self.model)

    def teardown(self) -> None:
        try:
            trio.run(self.harness.unmount)
        finally:
            self._scratch.__exit__(None, None, None)


TestOpenFile = OpenFileMachine.TestCase
TestOpenFile.settings = settings(
    max_examples=28, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)

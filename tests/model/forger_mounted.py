"""Somebody who can write the vault while it is mounted (P2): one random change below open, half-written files.

Before the change some files are open and some of them written to; after it everything is read again, through the
handles too, written to, and read once more after a remount. What is read must be what was stored or written there,
be missing, or an error. Of a file that was written to, blocks and size may be those of before, and what is
written later may lie over them: these are the older states that P2 does not promise to tell apart.
"""

import random
from dataclasses import replace

import trio

from cmkfs.errors import CmkfsError
from cmkfs.format.layout import BLOCK
from cmkfs.fs.guard import Bugs

from .forger import CHANGES, Error, Forger, Forgery, Licence, Names, Seen, Tree, compare, look, see_open_file
from .harness import Program

SECONDS = 20.0
"""For one attempt: what takes longer hangs."""


class MountedForger(Forger):
    """`attempt(seed)` makes one change below a mount in use."""

    def attempt(self, seed: int) -> None:
        """Raises Forgery, and TooSlowError for a hang."""
        rng = random.Random(seed)
        self.put_back()
        change = rng.choice(CHANGES)
        try:
            trio.run(self._attempt, rng, change)
        except BaseException as error:
            error.add_note(f"seed {seed}: {change.__name__}")
            raise

    async def _attempt(self, rng: random.Random, change: object) -> None:
        with trio.fail_after(SECONDS):
            await self.harness.mount()
            use = Use(self, self.harness.program, rng)
            await use.begin()
            licence: Licence = change(self, rng)  # type: ignore[operator]
            await use.go_on(licence)
            await self._end()
            try:
                await self.harness.mount()
            except (CmkfsError, OSError):
                self.outcomes["refused"] += 1
                return
            self.outcomes["served"] += 1
            use.judge(await look(self.harness.program), licence)
            await self._end()

    async def _end(self) -> None:
        """Unmount; what was damaged below may be said to be unsaved."""
        await self.harness.mounted.close()
        self.harness._let_go()
        bugs, Bugs.count = Bugs.count, 0
        if bugs:
            raise Forgery(f"{bugs} handlers ended in an exception nobody expected")


def _overwritten(state: Seen, at: int, data: bytes) -> Seen:
    content = b"".join(block for block in state.blocks if isinstance(block, bytes))
    content = content[:at].ljust(at, b"\0") + data + content[at + len(data) :]
    blocks: list[bytes | Error] = [content[start : start + BLOCK] for start in range(0, len(content), BLOCK)]
    return replace(state, size=len(content), blocks=blocks)


class Use:
    """What a program does on the mount, and what may be found of it."""

    def __init__(self, forger: Forger, program: Program, rng: random.Random) -> None:
        self._forger, self._program, self._rng = forger, program, rng
        self._handles: dict[Names, int] = {}
        self._written: dict[Names, list[Seen]] = {}

    async def begin(self) -> None:
        """Everything is known to the kernel; some files are open, some of these dirty."""
        stored = await look(self._program)
        for path, seen in stored.items():
            if isinstance(seen, Seen) and seen.kind == "file" and self._rng.random() < 0.5:
                self._handles[path] = await self._program.open(await self._program.walk(*path))
                if self._rng.random() < 0.4:
                    await self._write(path)
        if self._rng.random() < 0.3:
            await self._forger.harness.mounted.settler.settle_all()
        if self._rng.random() < 0.5:
            await self._program.forget_all()

    async def go_on(self, licence: Licence) -> None:
        """Read, write and read again."""
        self.judge(await look(self._program), licence)
        await self._judge_handles(licence)
        for path in self._handles:
            if self._rng.random() < 0.4:
                await self._write(path)
        if self._rng.random() < 0.3:
            await self._forger.harness.mounted.settler.settle_all()
        self.judge(await look(self._program), licence)
        await self._judge_handles(licence)
        for fh in self._handles.values():
            await self._close(fh)

    async def _write(self, path: Names) -> None:
        """Some bytes within the file or at its end; refused is as good as done, and what it leaves is judged later."""
        states = self._states(path)
        data = self._rng.randbytes(self._rng.choice([1, 10, BLOCK + 3]))
        at = self._rng.choice([states[-1].size, self._rng.randint(0, states[-1].size)])
        # Over any earlier state: a block that was brought back is one that a program writes into.
        self._written[path] = [*states, *(_overwritten(state, at, data) for state in states)]
        self._forger.outcomes["writes"] += 1
        try:
            await self._program.write(self._handles[path], at, data)
            if self._rng.random() < 0.3:
                await self._program.fsync(self._handles[path])
        except OSError:
            self._forger.outcomes["writes refused"] += 1

    def _states(self, path: Names) -> list[Seen]:
        trees = (self._forger.older, self._forger.stored)
        return self._written.get(path) or [seen for tree in trees if isinstance(seen := tree[path], Seen)]

    async def _close(self, fh: int) -> None:
        try:
            await self._program.close(fh)
        except OSError:
            self._forger.outcomes["closes refused"] += 1

    async def _judge_handles(self, licence: Licence) -> None:
        """A handle goes on with the file that was opened: never with another one."""
        for path, fh in self._handles.items():
            seen = await see_open_file(self._program, fh)
            self.judge({path: seen}, replace(licence, whole=False))

    def judge(self, seen: Tree, licence: Licence) -> None:
        """Raises Forgery."""
        compare(self._forger.stored, self._forger.older, seen, licence, self._written)

"""P3 with names: what a power cut may leave of a whole vault, and whether the next mount keeps the promise.

The program `campaign.files` works on a vault without a kernel; at a random instant, in the midst of a call or of a
recovery, the power goes. Several trees that this may leave (`recorded_tree`) are each mounted by the real code: all
that was fsynced is there under its name, every directory opens, every file reads as it is told, and nothing is there
that never was; and `cmkfs check` calls none of it damage. What recovery found without a name that lasted is called
`recovered-…`; only `check` looks at that.
"""

import os
import random
import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio
from campaign.files import Cut, Files

from cmkfs.fs.backing import RENAME_EXCHANGE, Backing
from cmkfs.maintenance.readers import Readers

from .checking import checking
from .crash import Violation
from .harness import ROOT, Harness, Program, is_dir
from .recorded_tree import PowerGone, Recorder, put, tree_after_cut

STATES = 4
"""How many trees of each cut are looked at; the work goes on from the last."""


class ByRule(Backing):
    """A backing of which it is known how it orders names, and whose syncfs is recorded."""

    recorder: Recorder | None = None
    rule = "ordered"

    def __init__(self, vault: Path, *, read_only: bool) -> None:
        super().__init__(vault, read_only=read_only)
        whole = self.rule == "btrfs"
        self.kind = replace(self.kind, orders_names=self.rule == "ordered" or whole, only_as_a_whole=whole)

    async def sync_whole(self) -> None:
        self.fsyncs += 1
        if self.recorder is not None:
            self.recorder.spend()
            self.recorder.synced(None)


@dataclass(slots=True)
class Calls:
    """`os` for a program, answered by the mount's handlers; a path is relative to the vault's root."""

    program: Program
    _handles: dict[int, int] = field(default_factory=dict)

    async def _walk(self, path: object) -> tuple[int, bytes]:
        names = os.fsencode(str(path)).strip(b"/").split(b"/")
        return await self.program.walk(*names[:-1]), names[-1]

    async def _ino(self, path: object) -> int:
        parent, name = await self._walk(path)
        return (await self.program.lookup(parent, name)).st_ino if name else ROOT

    def open(self, path: object, flags: int, mode: int = 0) -> int:
        async def call() -> int:
            if flags & os.O_DIRECTORY:
                return -1 - await self._ino(path)
            parent, name = await self._walk(path)
            if flags & os.O_CREAT:
                return await self.program.create(parent, name)
            return await self.program.open((await self.program.lookup(parent, name)).st_ino, flags)

        return trio.run(call)

    def close(self, fd: int) -> None:
        if fd >= 0:
            trio.run(self.program.close, fd)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        trio.run(self.program.write, fd, offset, data)
        return len(data)

    def ftruncate(self, fd: int, size: int) -> None:
        trio.run(self.program.truncate, fd, size)

    def fsync(self, fd: int) -> None:
        if fd >= 0:
            trio.run(self.program.fsync, fd)
        else:
            trio.run(self.program.fsync_directory, -1 - fd)

    def mkdir(self, path: object) -> None:
        async def call() -> None:
            await self.program.mkdir(*await self._walk(path))

        trio.run(call)

    def rmdir(self, path: object) -> None:
        async def call() -> None:
            await self.program.rmdir(*await self._walk(path))

        trio.run(call)

    def unlink(self, path: object) -> None:
        async def call() -> None:
            await self.program.unlink(*await self._walk(path))

        trio.run(call)

    def rename(self, source: object, target: object) -> None:
        async def call() -> None:
            await self.program.rename(*await self._walk(source), *await self._walk(target))

        trio.run(call)

    def exchange(self, one: object, other: object) -> None:
        async def call() -> None:
            await self.program.rename(*await self._walk(one), *await self._walk(other), RENAME_EXCHANGE)

        trio.run(call)

    def link(self, source: object, target: object) -> None:
        async def call() -> None:
            await self.program.link(await self._ino(source), *await self._walk(target))

        trio.run(call)

    def symlink(self, target: bytes, path: object) -> None:
        async def call() -> None:
            await self.program.symlink(*await self._walk(path), target)

        trio.run(call)


class NamesCampaign:
    """Runs on one vault, whose backing keeps one rule."""

    def __init__(self, directory: Path, rule: str, readers: Readers | None = None) -> None:
        self.rule, self.readers = rule, readers
        ByRule.rule, ByRule.recorder = rule, None
        self.harness = Harness(directory, ByRule)
        self.counts: Counter[str] = Counter()
        self._links = 0

    def run(self, seed: int, cuts: int = 4) -> None:
        """A vault through some cuts. Raises Violation."""
        rng = random.Random(f"{seed} {self.rule}")
        trio.run(self.harness.mount)
        files = Files(Cut.POWER)
        for _ in range(cuts):
            recorder = ByRule.recorder = Recorder(self.harness.vault)
            with recorder.recording():
                self._work(files, rng, recorder)
            self.harness.kill()
            while rng.random() < 0.3:
                self._cut_recovery(rng)
            files = self._judge(files, rng, ByRule.recorder)
        ByRule.recorder = None
        trio.run(self._empty)
        trio.run(self.harness.unmount)

    def _work(self, files: Files, rng: random.Random, recorder: Recorder) -> None:
        """Until the power goes, which is at any call to the backing."""
        files.calls = Calls(self.harness.program)
        recorder.budget = rng.randint(1, 160)
        try:
            files.run(Path("/"), str(rng.random()), self._beside)
        except PowerGone:
            return

    def _beside(self, rng: random.Random) -> None:
        """What else happens meanwhile: the settler's batch, and symlinks, which no fsync covers."""
        word = rng.random()
        if word < 0.04:
            trio.run(self.harness.mounted.settler.settle_all)
        elif word < 0.10:
            self._links += 1
            Calls(self.harness.program).symlink(b"t" * rng.choice([10, 900, 3000]), f"/link{self._links}")

    def _cut_recovery(self, rng: random.Random) -> None:
        """The power comes back, and goes in the midst of what the next mount does."""
        before = ByRule.recorder
        assert before is not None
        self._put(rng, before)
        recorder = ByRule.recorder = Recorder(self.harness.vault)
        recorder.budget = rng.randint(0, 30)
        with recorder.recording():
            try:
                trio.run(self.harness.mount)
            except PowerGone:
                return
            except BaseExceptionGroup as group:
                if group.subgroup(PowerGone) is None:
                    raise
                return
        self.harness.kill()

    def _put(self, rng: random.Random, recorder: Recorder) -> None:
        tree = tree_after_cut(recorder, self.rule, rng)
        shutil.rmtree(self.harness.vault)
        self.harness.vault.mkdir()
        put(tree, self.harness.vault)

    def _judge(self, files: Files, rng: random.Random, recorder: Recorder) -> Files:
        ByRule.recorder = None
        judged = files
        for number in range(STATES):
            self._put(rng, recorder)
            if self.readers is not None:
                trio.run(self._check)
            trio.run(self.harness.mount)
            names = {name: list(may) for name, may in files.names.items()}
            judged = replace(files, names=names, exchanged=list(files.exchanged))
            found, numbers, directories = trio.run(self._look)
            judged.directories = set(files.directories)
            judged.compare(found, numbers, directories)
            self.counts["states"] += 1
            if number < STATES - 1:
                trio.run(self.harness.unmount)
        return judged

    async def _check(self) -> None:
        assert self.readers is not None
        with checking(self.harness, self.readers) as one:
            report = await one.run()
        if report.damage:
            raise Violation(f"check calls it damage: {[finding.line for finding in report.damage]}")

    async def _look(self) -> tuple[dict[str, bytes], dict[str, int], set[str]]:
        """All that is found; every directory opens, and what is listed is there."""
        report = self.harness.mounted.recovered
        if report is None or report.unreadable:
            raise Violation(f"not recovered: {report and report.unreadable}")
        program = self.harness.program
        found: dict[str, bytes] = {}
        numbers: dict[str, int] = {}
        directories: set[str] = set()
        waiting = [(ROOT, "")]
        while waiting:
            ino, path = waiting.pop()
            for name, entry in (await program.entries(ino)).items():
                below = os.path.join(path, os.fsdecode(name))
                if name in (b".", b"..") or name.startswith(b"recovered-"):
                    continue
                known = await program.lookup(ino, name)
                if is_dir(entry):
                    directories.add(below)
                    waiting.append((known.st_ino, below))
                elif below.startswith("link"):
                    await program.readlink(known.st_ino)
                else:
                    found[below] = await program.content(known.st_ino)
                    numbers[below] = known.st_ino
        return found, numbers, directories

    async def _empty(self) -> None:
        """All is removed: what a crash left cannot be in the way of that."""
        program = self.harness.program

        async def remove(parent: int) -> None:
            for name, entry in (await program.entries(parent)).items():
                if name in (b".", b".."):
                    continue
                if is_dir(entry):
                    await remove((await program.lookup(parent, name)).st_ino)
                    await program.rmdir(parent, name)
                else:
                    await program.unlink(parent, name)

        await remove(ROOT)

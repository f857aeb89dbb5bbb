"""P7 by several processes: the same calls on a mount and on a plain directory have the same outcomes.

A round: each process works in a subtree of its own, and now and then, one at a time, in a directory that all share.
Between the phases of a round all stand still, and the mount is locked and unlocked, its CMK disabled and enabled,
or the kernel's caches are dropped, with descriptors open all the while. After the round both trees are compared;
then the mount may be taken down and up again, or its daemon killed.
"""

import fcntl
import multiprocessing
import os
import random
import shutil
import subprocess
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from children import ALICE, Child, Who
from real_mount import SHARED_CMK, RealMount, Site
from side_by_side import tree

from .posix_steps import Side, Step, draw

STEPS = 1000
PHASES = 3
BARRIER_SECONDS = 60.0
WHO: list[Who | None] = [None, ALICE, None]
"""Who works: root, somebody without rights, root."""


class Difference(AssertionError):
    """The mount and the plain directory are not alike."""


class Rounds:
    """A vault, its mount, and a plain directory on the same filesystem."""

    def __init__(self, top: Path, *options: str, keeps_daemon: bool = False) -> None:
        top.chmod(0o755)
        self.afterwards = ["nothing"] if keeps_daemon else ["nothing", "remount", "kill"]
        self.site = Site(top)
        self.site.prepare()
        self.mount: RealMount = self.site.mount(self.site.new_vault(SHARED_CMK), "allow_other", "suid", "dev", *options)
        self.mount.expected_log = ["fs.lockdown: (un)?locked: ", "cmk enable", "is disabled"]
        self.plain = self.site.directory("plain")
        self.gate = top / "gate"
        self.gate.touch()
        self.gate.chmod(0o666)
        self.calls = self.succeeded = 0
        self.between: Counter[str] = Counter()

    def run(self, seed: int) -> None:
        """One round. Raises Difference."""
        rng = random.Random(seed)
        tops = [Path(side, f"r{seed}") for side in (self.plain, self.mount.path)]
        for top in tops:
            top.mkdir()
            _share(top, "shared")
            _share(top, "shared/top")
            for number, who in enumerate(WHO):
                _share(top, f"own{number}", who)
                _share(top, f"own{number}/top", who)
        barrier = multiprocessing.get_context("fork").Barrier(len(WHO) + 1, timeout=BARRIER_SECONDS)
        children = [
            Child(partial(_work, number, who, seed, tops, self.gate, barrier)) for number, who in enumerate(WHO)
        ]
        for child in children:
            child.go()
        disturbing = threading.Thread(target=self._disturb, args=(barrier, rng))
        disturbing.start()
        errors = [error for child in children if (error := self._end(child)) is not None]
        disturbing.join()
        if errors:
            raise next((error for error in errors if "another process" not in str(error)), errors[0])
        _compare(*tops)
        self._afterwards(rng)
        _compare(*tops)
        for top in tops:
            shutil.rmtree(top)
        self.mount.check()

    # -- between ----------------------------------------------------------------------------------

    def _between(self, rng: random.Random) -> Callable[[], None]:
        return rng.choice([self._lock, self._lock_now, self._disable, self._drop_caches, self._sync])

    def _end(self, child: Child) -> Exception | None:
        try:
            calls, succeeded = child.result()
            self.calls, self.succeeded = self.calls + calls, self.succeeded + succeeded
        except Exception as error:
            return error
        return None

    def _disturb(self, barrier: threading.Barrier, rng: random.Random) -> None:
        try:
            for _ in range(PHASES - 1):
                deed = self._between(rng)
                barrier.wait()
                deed()
                self.between[deed.__name__.strip("_")] += 1
                barrier.wait()
        except threading.BrokenBarrierError:
            return  # a worker has failed, and says so itself
        except BaseException:
            barrier.abort()
            raise

    def _lock(self) -> None:
        self.mount.ask("lock")
        self.mount.ask("unlock")

    def _lock_now(self) -> None:
        """What is dirty would be lost: so it is stored first."""
        self.mount.ask("lock")
        self.mount.ask("lock", now=True)
        self.mount.ask("unlock")

    def _disable(self) -> None:
        self.site.cmkfs("cmk", "disable", SHARED_CMK)
        self.site.cmkfs("cmk", "enable", SHARED_CMK)

    def _drop_caches(self) -> None:
        Path("/proc/sys/vm/drop_caches").write_text("2")
        subprocess.run(["sync", "--file-system", str(self.mount.path)], stderr=subprocess.DEVNULL, check=False)

    def _sync(self) -> None:
        subprocess.run(["sync", "--file-system", str(self.mount.path)], stderr=subprocess.DEVNULL, check=False)

    def _afterwards(self, rng: random.Random) -> None:
        deed = rng.choice(self.afterwards)
        if deed == "remount":
            self.mount.again()
        elif deed == "kill":
            self.mount.kill()
            self.mount.up()
        self.between[deed] += 1


def _share(top: Path, name: str, who: Who | None = None) -> None:
    made = top / name
    made.mkdir()
    made.chmod(0o777)
    if who is not None:
        os.chown(made, who.uid, who.gid)


def _compare(plain: Path, mounted: Path) -> None:
    known, found = tree(plain, times=False), tree(mounted, times=False)
    for path in sorted(known.keys() | found.keys()):
        if known.get(path) != found.get(path):
            raise Difference(f"{path!r}: plain {known.get(path)}, mount {found.get(path)}")


def _work(
    number: int, who: Who | None, seed: int, tops: list[Path], gate: Path, barrier: threading.Barrier
) -> tuple[int, int]:
    """What a process does; gives how many calls it compared, and how many of them succeeded."""
    guard = os.open(gate, os.O_RDWR)
    if who is not None:
        who.become()
    os.umask(0o022)
    rng = random.Random(f"{seed} {number}")
    # One level down: a symlink may lead to `../name`, and there must be nobody else.
    own = [Side(os.fsencode(top / f"own{number}/top")) for top in tops]
    shared = [Side(os.fsencode(top / "shared/top")) for top in tops]
    trace: deque[str] = deque(maxlen=25)
    succeeded = 0
    try:
        for phase in range(PHASES):
            for _ in range(STEPS):
                sides = shared if rng.random() < 0.15 else own
                step = draw(rng, len(sides[0].open))
                trace.append(f"{'shared ' if sides is shared else ''}{step}")
                succeeded += _both(sides, step, guard if sides is shared else None)
            if phase < PHASES - 1:
                barrier.wait()
                barrier.wait()
    except threading.BrokenBarrierError:
        raise Difference("another process has failed") from None
    except BaseException as error:
        barrier.abort()
        raise Difference(f"process {number}: {error}; before: {'; '.join(trace)}") from error
    for side in own + shared:
        side.close_all()
    return PHASES * STEPS, succeeded


def _both(sides: list[Side], step: Step, guard: int | None) -> bool:
    if guard is not None:
        fcntl.flock(guard, fcntl.LOCK_EX)
    try:
        plain, mounted = (side.outcome(step) for side in sides)
    finally:
        if guard is not None:
            fcntl.flock(guard, fcntl.LOCK_UN)
    if plain != mounted:
        raise Difference(f"{step}: plain {plain!r:.300}, mount {mounted!r:.300}{_now(sides, step)}")
    return not isinstance(plain, str) or plain.startswith("0o")


def _now(sides: list[Side], step: Step) -> str:
    """What the names of a step mean right after the difference, on the plain side and on the mount."""
    names = [argument for argument in step.arguments if isinstance(argument, bytes) and len(argument) < 1000]
    told = []
    for name in names:
        for at in range(1, name.count(b"/") + 2):
            part = b"/".join(name.split(b"/")[:at])
            told.append(f"{part!r:.40}: {[side.outcome(Step('lstat', (part,))) for side in sides]}")
            told.append(str([side.outcome(Step("readlink", (part,))) for side in sides])[:200])
    return f" [{'; '.join(told)}]"


def temporary() -> "tempfile.TemporaryDirectory[str]":
    """A directory on a real filesystem."""
    return tempfile.TemporaryDirectory(prefix="cmkfs-campaign-")

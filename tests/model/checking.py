"""`cmkfs check` and `--repair` on the vault of a harness, which is not mounted meanwhile."""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trio
from contract.token_thread import ThreadTransport, TokenWorker

from cmkfs.fs.backing import Backing
from cmkfs.fs.vaultdir import read_vault_file
from cmkfs.keys.token_client import TokenClient
from cmkfs.maintenance.check import Access, Check
from cmkfs.maintenance.findings import Report
from cmkfs.maintenance.lost import Action, free_owner
from cmkfs.maintenance.readers import Readers
from cmkfs.maintenance.repair import Repair
from cmkfs.maintenance.spare import restore

from .harness import Harness, Program


@contextmanager
def checking(harness: Harness, readers: Readers, *, keys: bool = True) -> Iterator[Check]:
    """A check of the harness' vault as the command makes it."""
    vault = read_vault_file(harness.vault)
    backing, worker = Backing(harness.vault, read_only=False), TokenWorker()
    token = TokenClient(ThreadTransport(worker, harness.token.elsewhere), 5.0) if keys else None
    before = open_below(harness.vault)
    check = Check(Access(backing, vault, token, "no token"), readers)
    try:
        yield check
    finally:
        check.close()
        worker.close(wait=1.0)
        left = open_below(harness.vault) - before
        backing.close()
    assert not left, f"descriptors left open: {left}"


def open_below(top: Path) -> Counter[str]:
    """What this process has open in `top`."""
    found: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that lists them
            found[os.readlink(f"/proc/self/fd/{fd}")] += 1
    return Counter({path: count for path, count in found.items() if path.startswith(str(top))})


def check(harness: Harness, readers: Readers, *, keys: bool = True) -> Report:
    """`cmkfs check`."""
    with checking(harness, readers, keys=keys) as one:
        return trio.run(one.run)


def repair(harness: Harness, readers: Readers) -> tuple[Report, list[Action]]:
    """`cmkfs check --repair`."""
    backing, worker = Backing(harness.vault, read_only=False), TokenWorker()
    try:
        free_owner(backing)
        actions = trio.run(restore, backing, TokenClient(ThreadTransport(worker, harness.token.elsewhere), 5.0))
    finally:
        worker.close(wait=1.0)
        backing.close()
    with checking(harness, readers) as one:
        actions += trio.run(Repair(one).run)
        return one.report, actions


def session(harness: Harness, work: Callable[[Program], object] | None = None) -> None:
    """Mount, work, unmount."""

    async def run() -> None:
        await harness.mount()
        if work is not None:
            await work(harness.program)  # type: ignore[misc]
        await harness.unmount()

    trio.run(run)


def files(top: Path) -> list[Path]:
    found = (Path(at, name) for at, _, names in os.walk(top) if "cmkfs." not in at for name in names)
    return sorted(path for path in found if stat.S_ISREG(path.lstat().st_mode) and path.name[:6] != "cmkfs.")

"""How many fsyncs of the backing there are: none that nobody asked for."""

import os
from pathlib import Path

from real_mount import OWN_CMK, NewMount

REPOSITORY = Path(__file__).parents[2]
SYNCS = {"fsync", "fdatasync", "syncfs"}


def test_backing_is_synced_only_when_a_program_or_a_batch_asks(new_mount: NewMount) -> None:
    mounted = new_mount(cmk=OWN_CMK)

    def syncs() -> int:
        count = mounted.ask("status")["backing_syncs"]
        assert isinstance(count, int)
        return count

    begun = syncs()
    for number in range(20):
        path = mounted.path / f"file{number}"
        path.write_bytes(os.urandom(10_000))
        path.rename(mounted.path / f"renamed{number}")
        with open(mounted.path / f"renamed{number}", "r+b") as file:
            file.truncate(5_000)
            file.seek(20_000)
            file.write(b"after a hole")
        (mounted.path / f"renamed{number}").write_bytes(b"emptied and written again")
    # A shrink below what is known durable is the one change that must be durable first; nothing here is durable.
    assert syncs() == begun
    with open(mounted.path / "renamed0", "r+b") as file:
        for number in range(10):
            file.write(bytes(100))
            file.flush()
            os.fsync(file.fileno())
            assert syncs() == begun + number + 1


def test_only_the_backing_module_syncs() -> None:
    """What the counter above counts is all there is: nobody calls fsync past it."""
    callers = set()
    for path in (REPOSITORY / "cmkfs" / "fs").glob("*.py"):
        text = path.read_text()
        if any(f"os.{call}" in text or f"_libc.{call}" in text for call in SYNCS):
            callers.add(path.name)
    assert callers == {"backing.py"}

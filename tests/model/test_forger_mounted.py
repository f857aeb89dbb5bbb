"""P2 in the small, while the vault is mounted and files are open. `scripts/forge --mounted` does it at length."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .forger_mounted import MountedForger
from .harness import ROOT, Harness, scratch


@pytest.fixture(scope="module")
def forger() -> Iterator[MountedForger]:
    with scratch() as directory:
        yield MountedForger(directory)


def test_no_change_below_a_mount_gives_a_reader_what_was_not_stored(forger: MountedForger) -> None:
    for seed in range(60):
        forger.attempt(seed)
    assert forger.outcomes["served"] > 40
    assert forger.outcomes["writes"] > 60


@pytest.mark.parametrize("instead", [os.mkfifo, lambda path: path.symlink_to("cmkfs.vault")])
async def test_a_session_record_that_is_something_else_is_told_when_the_mount_ends(
    instead: Callable[[Path], None],
) -> None:
    with scratch() as directory:
        harness = Harness(directory)
        await harness.mount()
        await harness.program.save(ROOT, b"file", b"content")
        record = harness.vault / "cmkfs.session"
        record.unlink()
        instead(record)
        result = await harness.mounted.close()
        harness._let_go()
        assert result["unsaved"] == []
        assert result["error"]

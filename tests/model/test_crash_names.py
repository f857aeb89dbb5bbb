"""P3 in the small, with names: whole vaults that a power cut may leave. `scripts/crash-names` does it at length."""

import random

import pytest

from .crash_names import NamesCampaign
from .harness import scratch
from .recorded_tree import RULES, Recorder, put, tree_after_cut


@pytest.mark.parametrize("rule", RULES)
def test_no_cut_loses_what_was_synced(rule: str) -> None:
    for seed in range(5):
        with scratch() as directory:
            campaign = NamesCampaign(directory, rule)
            campaign.run(seed)
            assert campaign.counts["states"] == 16


@pytest.mark.parametrize(
    ("rule", "seed"),
    [("btrfs", 101), ("btrfs", 134), ("btrfs", 2600014), ("none", 102), ("none", 114), ("none", 5051)],
)
def test_cuts_that_once_broke_the_promise(rule: str, seed: int) -> None:
    """Long names without sidecars, directories without ids, a link whose other directory was not synced.

    Directories of which the log had the way to an inner one and not their own id.
    """
    with scratch() as directory:
        NamesCampaign(directory, rule).run(seed)


@pytest.mark.parametrize("rule", RULES)
def test_without_a_change_a_cut_leaves_what_was_there(rule: str) -> None:
    with scratch() as directory:
        vault = NamesCampaign(directory, rule).harness.vault
        recorder = Recorder(vault)
        again = directory / "again"
        again.mkdir()
        put(tree_after_cut(recorder, rule, random.Random(1)), again)
        assert Recorder(again).base.keys() != {0}
        assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in vault.iterdir())
        assert (again / "cmkfs.session").read_bytes() == (vault / "cmkfs.session").read_bytes()

"""`scripts/bench-lock` and `scripts/lock-races` in their short forms, and nothing is left behind."""

import json
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SMALL = ["--repetitions", "3", "--files", "60", "--mappings", "10", "--inodes", "500", "--busy", "2"]
LOCK_MS = 1000.0
DISABLE_MS = 2000.0
"""Four times what is promised of a machine that does nothing else."""


def run(script: str, *arguments: str) -> str:
    result = subprocess.run(
        [str(REPOSITORY / "scripts" / script), *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_lock_and_a_disable_are_soon_in_force(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    lines = run("bench-lock", *SMALL, "--json", str(figures)).splitlines()
    assert [line[:44].rstrip() for line in lines[1:-1]] == [
        f"{way}: {what}" for way in ("lock", "disable") for what in ("last read", "last stat", "command returned")
    ]
    assert lines[-1].startswith("60 open files, 10 mappings, 500 known inodes, 2 busy readers and writers")
    samples = json.loads(figures.read_text())["ms"]
    assert len(samples["lock"]) == len(samples["disable"]) == 3
    for read, stat, returned in samples["lock"]:
        assert max(read, stat) <= returned < LOCK_MS
    for read, stat, _ in samples["disable"]:
        assert max(read, stat) < DISABLE_MS
    assert "cmkfs-bench-lock-" not in Path("/proc/self/mountinfo").read_text()


def test_no_read_succeeds_after_a_lock_and_no_fsync_is_lost() -> None:
    said = run("lock-races", "--rounds", "9")
    assert said.startswith("9 rounds with 8 processes: ")
    assert int(said.split()[5]) > 0
    assert "cmkfs-races-" not in Path("/proc/self/mountinfo").read_text()

"""`scripts/bench` in its smallest form: the table is full, and nothing is left behind."""

import json
import math
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

WORKLOADS = [
    "write, 1 MiB calls, fsync",
    "read, cold",
    "read again",
    "write, 4 KiB calls, fsync",
    "create + write 4 KiB",
    "ls + stat each, cold",
    "stat each again",
    "open + read 4 KiB, cold",
    "open + read 4 KiB again",
    "rename",
    "unlink",
    "untar",
]
SUBJECTS = ["bare", "gocryptfs", "cmkfs"]


def test_small_run_gives_a_full_table(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    places = ["--dir", str(scratch), "--json", str(figures)]
    result = subprocess.run(
        [str(REPOSITORY / "scripts" / "bench"), *["--size", "2", "--files", "25", "--rounds", "2"], *places],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["median", "of", "2", *SUBJECTS, "cmkfs/gocryptfs", "cmkfs/bare"]
    assert [line[:28].rstrip() for line in lines[1:-1]] == WORKLOADS
    assert all(len(line[28:].split()) == 1 + len(SUBJECTS) + 2 for line in lines[1:-1])
    assert lines[-1].startswith("2 MiB in 1 MiB calls, 1 MiB in 4 KiB calls, 25 files; Linux ")

    document = json.loads(figures.read_text())
    assert document["settings"] == {"size": 2, "small_size": 1, "files": 25, "rounds": 2}
    assert [row["workload"] for row in document["rows"]] == WORKLOADS
    for row in document["rows"]:
        assert list(row["samples"]) == SUBJECTS
        assert all(len(samples) == 2 and min(samples) > 0 for samples in row["samples"].values())
        assert math.isclose(row["cmkfs/bare"], row["median"]["cmkfs"] / row["median"]["bare"])
        assert math.isclose(row["cmkfs/gocryptfs"], row["median"]["cmkfs"] / row["median"]["gocryptfs"])

    assert list(scratch.iterdir()) == []
    assert str(scratch) not in Path("/proc/self/mountinfo").read_text()

"""`scripts/bench` in its smallest form: the table is full, and nothing is left behind."""

import json
import math
import subprocess
from html import escape
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

WORKLOADS = [
    "write, 1 MiB calls, fsync",
    "read, cold",
    "read again",
    "GiB streamed per processor second",
    "write, 4 KiB calls, fsync",
    "random 4 KiB reads, cached",
    "random 4 KiB reads, cold",
    "random 4 KiB writes, fsync each 32",
    "create + write 4 KiB",
    "ls -lR, cold",
    "stat each again",
    "open + read 4 KiB, cold",
    "open + read 4 KiB again",
    "files made, listed, read per processor second",
    "rename",
    "unlink",
    "mkdir",
    "rmdir",
    "untar",
    "grep -r, cold",
    "git status",
    "git clone",
    "rm -rf",
    "SQLite transactions, wal",
    "SQLite transactions, delete",
    "4 processes: create + write 4 KiB",
    "4 processes: open + read 4 KiB, cold",
    "4 processes: write, 1 MiB calls, fsync",
    "mount until the first read",
]
SUBJECTS = ["bare", "gocryptfs", "cmkfs"]


def test_small_run_gives_a_full_table(tmp_path: Path) -> None:
    figures, plot = tmp_path / "figures.json", tmp_path / "plot.svg"
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def bench(*more: str) -> list[str]:
        result = subprocess.run(
            [str(REPOSITORY / "scripts" / "bench"), *["--size", "2", "--files", "25", "--dir", str(scratch)], *more],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    lines = bench("--rounds", "1", "--json", str(figures), "--plot", str(plot))
    assert lines[0].split() == ["median", "of", "1", *SUBJECTS, *["cmkfs/peer", "cmkfs/bare", "spread", "best", "peer"]]
    assert [line[:46].rstrip() for line in lines[1:-1]] == WORKLOADS
    assert all(len(line[46:].split()) == 1 + len(SUBJECTS) + 4 for line in lines[1:-1])
    assert lines[-1].startswith("2 MiB in 1 MiB calls, 1 MiB in 4 KiB calls, 25 files; Linux ")

    document = json.loads(figures.read_text())
    assert document["settings"] == {"size": 2, "small_size": 1, "files": 25, "rounds": 1}
    assert [row["workload"] for row in document["rows"]] == WORKLOADS
    for row in document["rows"]:
        assert list(row["samples"]) == SUBJECTS
        assert all(len(samples) == 1 and min(samples) > 0 for samples in row["samples"].values())
        assert row["best peer"] == "gocryptfs"
        assert math.isclose(row["cmkfs/bare"], row["median"]["cmkfs"] / row["median"]["bare"])
        assert math.isclose(row["cmkfs/peer"], row["median"]["cmkfs"] / row["median"]["gocryptfs"])
    assert all(escape(workload) in plot.read_text() for workload in WORKLOADS)

    lines = bench("--rounds", "2", "--only", "stream", "--since", str(figures))
    changes = lines[lines.index("") + 2 :]
    assert [line[:46].rstrip() for line in changes] == WORKLOADS[:4]
    assert all(line.endswith("%") for line in changes)

    assert list(scratch.iterdir()) == []
    assert str(scratch) not in Path("/proc/self/mountinfo").read_text()

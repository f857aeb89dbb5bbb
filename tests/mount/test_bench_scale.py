"""`scripts/bench-scale` in its short form: a vault grows, and each operation is timed; nothing is left behind."""

import subprocess
from pathlib import Path

from real_mount import REPOSITORY

SHORT = ["--first", "20", "--most", "200", "--wide", "100", "--open", "50", "--sample", "20", "--nodes", "500"]


def test_the_cost_of_size_is_measured() -> None:
    before = set(Path("/var/tmp").glob("cmkfs-bench-scale-*"))
    script = [str(REPOSITORY / "scripts" / "bench-scale"), *SHORT]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line and "µs" not in line and "MiB" not in line]
    assert len(rows) == 1 + 7 + 4 + 2 + 2
    assert all(float(row.split()[-1]) > 0 for row in rows)
    assert set(Path("/var/tmp").glob("cmkfs-bench-scale-*")) == before

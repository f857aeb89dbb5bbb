"""`scripts/bench-token` in its short form: a real mount whose token is slow is measured; nothing is left behind."""

import subprocess
import tempfile
from pathlib import Path

from real_mount import REPOSITORY

SHORT = ["--files", "100", "--ahead", "0", "--rounds", "1", "--seconds", "0.1", "--delays", "4"]


def test_a_slow_token_is_measured() -> None:
    before = set(Path(tempfile.gettempdir()).glob("cmkfs-bench-token-*"))
    script = [str(REPOSITORY / "scripts" / "bench-token"), *SHORT]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split()[:3] == ["a", "call", "created/s"]
    assert [row.split()[0] for row in rows] == ["0", "4"]
    assert all(float(figure.replace(",", "")) > 0 for row in rows for figure in row.split()[2:5])
    assert set(Path(tempfile.gettempdir()).glob("cmkfs-bench-token-*")) == before

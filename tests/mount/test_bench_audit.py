"""`scripts/bench-audit` in its short form: both parts measure, one on a real mount; nothing is left behind."""

import re
import subprocess
import tempfile
from pathlib import Path

from real_mount import REPOSITORY

SHORT = ["--records", "2000", "--files", "100", "--rounds", "1"]


def test_the_cost_of_the_log_is_measured() -> None:
    before = set(Path(tempfile.gettempdir()).glob("cmkfs-bench-audit-*"))
    script = [str(REPOSITORY / "scripts" / "bench-audit"), *SHORT]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = dict(re.findall(r"(.+): +([\d.,]+)", done.stdout))
    assert set(told) == {
        *("a record", "a repeat", "verify"),
        *("opens that are records", "opens that are repeats", "left of the speed"),
    }
    assert all(float(figure.replace(",", "")) > 0 for figure in told.values())
    assert set(Path(tempfile.gettempdir()).glob("cmkfs-bench-audit-*")) == before

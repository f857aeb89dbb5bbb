"""`scripts/programs` in its short form: SQLite in all journal modes, make -j, pip; nothing is left behind."""

import subprocess
import tempfile
from pathlib import Path

from real_mount import REPOSITORY

SECONDS = 300


def test_programs_on_a_mount() -> None:
    before = set(Path(tempfile.gettempdir()).glob("cmkfs-programs.*"))
    done = subprocess.run(
        [str(REPOSITORY / "scripts" / "programs"), "--short"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split(",")[0] for line in done.stdout.splitlines()] == ["sqlite: ok", "make: ok", "pip: ok"]
    assert set(Path(tempfile.gettempdir()).glob("cmkfs-programs.*")) == before

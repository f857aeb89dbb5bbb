"""`scripts/bench-profile` in its short form: each operation's time is told apart; nothing is left behind."""

import subprocess
from pathlib import Path

from real_mount import REPOSITORY


def test_where_the_time_goes_is_measured() -> None:
    before = set(Path("/var/tmp").glob("cmkfs-bench-profile-*"))
    script = [str(REPOSITORY / "scripts" / "bench-profile"), "--files", "20", "--idle", "0"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    assert len(rows) == 7
    for name, whole, held, waited, rest, requests in rows:
        assert 0 < int(held) < int(whole), name
        assert abs(int(held) + int(waited) + int(rest) - int(whole)) <= 2, name
        assert requests, name
    by_name = {row[0]: row[5] for row in rows}
    assert "create" in by_name["create, write 4 KiB, close"]
    assert " + " in by_name["open, read, close; first since the mount"], "nothing waited for the token"
    assert set(Path("/var/tmp").glob("cmkfs-bench-profile-*")) == before

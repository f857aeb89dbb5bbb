"""Who holds a mount open: every process that can be seen but the one that asks."""

import subprocess
import sys
from pathlib import Path

from cmkfs.cli.holders import Holder, holders


def test_the_one_who_asks_is_none_of_them(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as mine:
        assert holders(str(tmp_path)) == []
        held = [sys.executable, "-c", "print(flush=True); input()"]
        with subprocess.Popen(
            held, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[mine.fileno()]
        ) as other:
            assert other.stdout is not None
            other.stdout.readline()
            (found,) = holders(str(tmp_path))
            assert found == Holder(other.pid, found.program, str(tmp_path))
            assert other.stdin is not None
            other.stdin.write(b"\n")

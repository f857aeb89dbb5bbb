"""Going before others, as far as the caller is allowed to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cmkfs.priority import FIRST, before_others, put_first

AUTOGROUP = Path("/proc/self/autogroup")
REPOSITORY = Path(__file__).parents[2]


def niceness() -> tuple[int, str]:
    """Of this thread, and of its session where the kernel weighs sessions."""
    session = AUTOGROUP.read_text().split() if AUTOGROUP.exists() else []
    return os.getpriority(os.PRIO_PROCESS, 0), session[-1] if session else ""  # empty: switched off


def test_first_in_the_block_and_as_before_after_it() -> None:
    before = niceness()
    with before_others():
        assert niceness()[0] == FIRST
        assert niceness()[1] in ("", str(FIRST))
        with before_others():
            assert niceness()[0] == FIRST
        assert niceness()[0] == FIRST
    assert niceness() == before
    with pytest.raises(RuntimeError), before_others():
        raise RuntimeError
    assert niceness() == before


def test_a_process_is_put_first() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, start_new_session=True) as process:
        put_first(process.pid)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == FIRST


def test_who_may_not_goes_on_as_before() -> None:
    program = (
        "import os; from cmkfs.priority import before_others, put_first\n"
        "put_first(os.getpid())\n"
        "with before_others(): print(os.getpriority(os.PRIO_PROCESS, 0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env={"PYTHONPATH": str(REPOSITORY)},
        user=65534,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout == f"{os.getpriority(os.PRIO_PROCESS, 0)}\n"

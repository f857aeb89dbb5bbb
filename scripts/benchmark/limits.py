"""What no filesystem in Python, and none on FUSE, can be faster than: measured with `scripts/bench --limits`.

`pyfuse3` and `session` keep their files in memory and do nothing else, on pyfuse3 and on the session of cmkfs;
`passthrough` is libfuse's own example (passthrough_ll), which hands every request on to the directory below, in C.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from benchmark.subjects import ROOT, Command, Subject, mounted, run

_EXAMPLE = Path("/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c")
_PACKAGES = ("libfuse3-dev", "pkg-config", "gcc", "python3-dev", "fuse3")
_LOCK = Path(__file__).with_name("limits.lock")
_HERE = Path(__file__).parent


def _python(scratch: Path) -> Path:
    """An interpreter that has pyfuse3, in an environment of its own."""
    environment = scratch / "pyfuse3-venv"
    if not environment.exists():
        run(ROOT / ".venv" / "bin" / "python", "-m", "venv", environment)
        locked: Command = ["-r", ROOT / "requirements.lock", "-r", _LOCK]
        run(environment / "bin" / "python", "-m", "pip", "install", "-q", "--require-hashes", *locked)
    return environment / "bin" / "python"


@contextmanager
def pyfuse3(scratch: Path) -> Iterator[Subject]:
    """Files in memory, on pyfuse3."""
    place = scratch / "pyfuse3-plain"
    command: Command = [_python(scratch), _HERE / "memory_on_pyfuse3.py", place]
    with mounted("pyfuse3", place, command, ["umount", place], {"PYTHONPATH": str(_HERE.parent)}) as subject:
        yield subject


@contextmanager
def session(scratch: Path) -> Iterator[Subject]:
    """Files in memory, on the session of cmkfs."""
    place = scratch / "session-plain"
    command: Command = [ROOT / ".venv" / "bin" / "python", _HERE / "memory_on_session.py", place]
    path = f"{_HERE.parent}:{ROOT}"
    with mounted("session", place, command, ["umount", place], {"PYTHONPATH": path}) as subject:
        yield subject


@contextmanager
def passthrough(scratch: Path) -> Iterator[Subject]:
    """libfuse's example over a directory, with its cache for as long as cmkfs has its own."""
    program, below, place = scratch / "passthrough_ll", scratch / "passthrough", scratch / "passthrough-plain"
    below.mkdir()
    flags = subprocess.check_output(["pkg-config", "--cflags", "--libs", "fuse3"], text=True).split()
    run("gcc", "-O2", "-o", program, _EXAMPLE, *flags)
    options = f"source={below},writeback,cache=always,timeout=300,allow_other"
    with mounted("passthrough", place, [program, "-o", options, place], ["umount", place], {}) as subject:
        yield subject


LIMITS: dict[str, Callable[[Path], AbstractContextManager[Subject]]] = {
    "pyfuse3": pyfuse3,
    "session": session,
    "passthrough": passthrough,
}


def install_limits() -> None:
    """Have Debian's packages there that they are built with."""
    if not _EXAMPLE.exists() or shutil.which("pkg-config") is None:
        environment = {"DEBIAN_FRONTEND": "noninteractive"}
        run("apt-get", "update", **environment)
        run("apt-get", "install", "--yes", "--no-install-recommends", *_PACKAGES, **environment)

"""Which processes hold something open on a mount, as /proc shows without asking the mount itself."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Holder:
    """A process with a descriptor, working directory, root or program on the mount."""

    pid: int
    program: str
    path: str


def holders(mountpoint: str) -> list[Holder]:
    """The other processes that hold `mountpoint`, one line each; other users' only as root can see them."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            path = next((path for path in _links(process) if _is_below(path, mountpoint)), None)
            if path is not None:
                found.append(Holder(int(process.name), _program(process), path))
    return sorted(found, key=lambda holder: holder.pid)


def _links(process: Path) -> Iterator[str]:
    """What the process's links say; readlink(2) asks the kernel's names, never the filesystem."""
    for name in ("cwd", "root", "exe"):
        yield from _target(process / name)
    try:
        descriptors = os.listdir(process / "fd")
    except OSError:  # another user's, or gone
        return
    for name in descriptors:
        yield from _target(process / "fd" / name)


def _target(link: Path) -> Iterator[str]:
    try:
        yield os.readlink(link)
    except OSError:  # another user's, or gone
        return


def _program(process: Path) -> str:
    try:
        return (process / "comm").read_text(errors="surrogateescape").strip()
    except OSError:
        return "?"


def _is_below(path: str, mountpoint: str) -> bool:
    return path == mountpoint or path.startswith(mountpoint.rstrip("/") + "/")

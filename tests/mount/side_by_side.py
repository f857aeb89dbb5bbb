"""The same operations on the mount and on the plain filesystem below it: the outcomes must be the same."""

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from children import Who, in_child


class SideBySide:
    """Two empty directories: one on a mount, one on the backing filesystem."""

    def __init__(self, mounted: Path, plain: Path) -> None:
        self.mounted = mounted
        self.plain = plain

    def same(self, operation: Callable[[Path], object], who: Who | None = None) -> Any:
        """What `operation` returns in both, or the name of the errno it raises in both."""
        outcomes = []
        for place in (self.plain, self.mounted):
            outcomes.append(_outcome(operation, place, who))
        assert outcomes[1] == outcomes[0], f"mount {outcomes[1]!r}, plain {outcomes[0]!r}"
        return outcomes[1]

    def same_trees(self, *, times: bool = False) -> None:
        """Both hold the same names, attributes and content; the same mtimes too if `times`."""
        self._same_trees(self.plain, self.mounted, times)

    def same_trees_below(self, name: str, *, times: bool = False) -> None:
        """The same for the directory `name` in both."""
        self._same_trees(self.plain / name, self.mounted / name, times)

    def _same_trees(self, plain_top: Path, mounted_top: Path, times: bool) -> None:
        plain, mounted = (tree(top, times=times) for top in (plain_top, mounted_top))
        assert sorted(mounted) == sorted(plain)
        for name, known in plain.items():
            assert mounted[name] == known, name


def _outcome(operation: Callable[[Path], object], place: Path, who: Who | None) -> object:
    try:
        return operation(place) if who is None else in_child(lambda: operation(place), who)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def errno_name(operation: Callable[[], object]) -> str:
    """The name of the errno that an operation raises, or `done`."""
    try:
        operation()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def facts(path: bytes, *, times: bool) -> dict[str, object]:
    """What a program can see of a node, without what may differ: numbers, times and blocks."""
    found = os.lstat(path)
    told: dict[str, object] = {
        "mode": oct(found.st_mode),
        "owner": (found.st_uid, found.st_gid),
        "links": found.st_nlink,
    }
    if stat.S_ISLNK(found.st_mode):
        told["target"] = os.readlink(path)
    if stat.S_ISREG(found.st_mode):
        told["content"] = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
    if stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode):
        told["size"] = found.st_size
    if not stat.S_ISLNK(found.st_mode):
        told["xattrs"] = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    if times:
        told["mtime"] = found.st_mtime_ns
    if stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
        told["device"] = found.st_rdev
    return told


def tree(top: Path, *, times: bool) -> dict[bytes, dict[str, object]]:
    """The facts of everything below `top`, by path; hard links show by the name that comes first."""
    found: dict[bytes, dict[str, object]] = {}
    first: dict[int, bytes] = {}
    start = os.fsencode(top)
    for place, directories, files in os.walk(start):
        for name in sorted(directories + files):
            path = os.path.join(place, name)
            relative = os.path.relpath(path, start)
            found[relative] = facts(path, times=times)
    for relative in sorted(found):
        same_as = first.setdefault(os.lstat(os.path.join(start, relative)).st_ino, relative)
        found[relative]["same as"] = same_as
    return found

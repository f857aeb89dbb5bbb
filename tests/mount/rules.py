"""Rules of POSIX and Linux, kept by the mount as by ext4: one small function, run by each kind of user in both places.

A rule is what root prepares in an empty directory, its cell, and what a person then does there. What the person was
told, and what became of every node of the cell (attributes, content, and which of its times moved), must be the same
in both. All cells of a group are prepared first, then one child is the person for all of them: a cell costs
milliseconds.
"""

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from children import Who, in_child

Act = Callable[[Path], object]

TEAM = 12399
"""The group of the files in the cells; their owner is `OWNER`."""
OWNER = Who(12345, 12345)
OWNER_IN_TEAM = Who(12345, 12345, (TEAM,))
MEMBER = Who(12346, TEAM)
SUPPLEMENTARY = Who(12347, 12347, (4, TEAM, 24))
OTHER = Who(12348, 12348, (4, 24))
PEOPLE: Mapping[str, Who | None] = {
    "root": None,
    "owner": OWNER,
    "owner in the group": OWNER_IN_TEAM,
    "member": MEMBER,
    "supplementary": SUPPLEMENTARY,
    "other": OTHER,
}

LONG_AGO = 1_000_000_000 * 10**9
"""What atime and mtime of everything are before a person comes; a time before 2001 is one that somebody set."""
_SET = 31_536_000 * 10**9 * 31
CLOCK_REALTIME_COARSE = 5  # linux/time.h


@dataclass(frozen=True, slots=True)
class Rule:
    """`prepare` is run by root in an empty directory, then `act` by each kind of user.

    `atime_may_stay`: it reads through a descriptor that may also write, from the kernel's cache (docs/limits.md).
    """

    act: Act
    prepare: Act = lambda cell: None
    atime_may_stay: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    """A cell in which the mount is not like ext4."""

    rule: str
    what: str
    mounted: object
    plain: object

    def __str__(self) -> str:
        return f"{self.rule} [{self.what}]: mount {self.mounted}, ext4 {self.plain}"


def differences(rules: Mapping[str, Rule], who: Who | None, mounted: Path, plain: Path) -> list[Difference]:
    """The cells in which the two places differ; both must be empty directories.

    Settling, ten seconds after a file was made, moves the ctime that the kernel is told of a file that it has
    forgotten meanwhile, and has the file open (docs/limits.md): so what differs is done once more in new cells, and
    what is the same then is the same.
    """
    first = _differences(rules, who, mounted, plain, "1")
    if not first:
        return first
    again = {one.rule: rules[one.rule] for one in first}
    return _differences(again, who, mounted, plain, "2")


def _differences(
    rules: Mapping[str, Rule], who: Who | None, mounted: Path, plain: Path, attempt: str
) -> list[Difference]:
    there, here = (_run(rules, who, place / attempt) for place in (mounted, plain))
    found = []
    for name in rules:
        for key in sorted(there[name].keys() | here[name].keys()):
            mounted_is, plain_is = _what_differs(rules[name], there[name].get(key), here[name].get(key))
            if mounted_is != plain_is:
                found.append(Difference(name, key, mounted_is, plain_is))
    return found


def _what_differs(rule: Rule, mounted: object, plain: object) -> tuple[object, object]:
    """Of two nodes only the facts that are not the same."""
    if not isinstance(mounted, dict) or not isinstance(plain, dict):
        return mounted, plain
    differing = [fact for fact in mounted if mounted[fact] != plain[fact]]
    if rule.atime_may_stay and "moved" in differing and plain["moved"] == f"a {mounted['moved']}".strip():
        differing.remove("moved")
    return {fact: mounted[fact] for fact in differing}, {fact: plain[fact] for fact in differing}


def _run(rules: Mapping[str, Rule], who: Who | None, place: Path) -> dict[str, dict[str, object]]:
    """By rule: what the person was told, and what each node of the cell is afterwards."""
    place.mkdir()
    cells = {name: place / str(number) for number, name in enumerate(rules)}
    for name, cell in cells.items():
        cell.mkdir()
        rules[name].prepare(cell)
        _age(cell)
    before = {name: _stats(cell) for name, cell in cells.items()}
    wait_for_the_clock(max(stat.st_ctime_ns for cell in before.values() for stat in cell.values()))
    told = in_child(lambda: {name: _attempt(rules[name].act, cell) for name, cell in cells.items()}, who)
    return {name: {"told": told[name], **_look(cell, before[name])} for name, cell in cells.items()}


def _attempt(act: Act, cell: Path) -> object:
    os.umask(0o022)
    try:
        return act(cell)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _walk(cell: Path) -> list[str]:
    """The cell and everything in it, the deepest first. Not os.walk: it follows symlinks, which moves their atime."""
    found, left = [], [str(cell)]
    while left:
        place = left.pop()
        found.append(place)
        with os.scandir(place) as entries:
            for entry in entries:
                (left if entry.is_dir(follow_symlinks=False) else found).append(entry.path)
    return sorted(found, reverse=True)


def _age(cell: Path) -> None:
    for path in _walk(cell):
        os.utime(path, ns=(LONG_AGO, LONG_AGO), follow_symlinks=False)


def _stats(cell: Path) -> dict[int, os.stat_result]:
    return {found.st_ino: found for found in map(os.lstat, _walk(cell))}


def wait_for_the_clock(stamp: int) -> None:
    """Until the coarse clock that stamps files has passed `stamp`, in ns (some ms).

    One tick is not enough: a stamp of a filesystem with fine ones can lie ahead of a clock whose tick comes late,
    and the kernel gives no earlier stamp after it (Documentation/filesystems/multigrain-ts.rst).
    """
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= stamp:
        time.sleep(0.0005)


def _look(cell: Path, before: Mapping[int, os.stat_result]) -> dict[str, object]:
    """What can be seen of each node by its path. Times first: reading moves them."""
    paths = _walk(cell)
    stats = {path: os.lstat(path) for path in paths}
    first: dict[int, str] = {}
    seen: dict[str, object] = {}
    for path, found in stats.items():
        known = before.get(found.st_ino)
        name = os.path.relpath(path, cell)
        seen[name] = {
            "mode": oct(found.st_mode),
            "owner": (found.st_uid, found.st_gid),
            "links": found.st_nlink,
            "device": found.st_rdev,
            "same as": first.setdefault(found.st_ino, name),
            "moved": _times(found, known),
            "xattrs": {name: os.getxattr(path, name, follow_symlinks=False) for name in _xattr_names(path)},
            "content": _content(path, found),
        }
    return seen


def _xattr_names(path: str) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


def _times(found: os.stat_result, known: os.stat_result | None) -> str:
    """Which times moved, and to what if somebody set them."""
    if known is None:
        return "new"
    told = []
    for letter, now, old in (
        ("a", found.st_atime_ns, known.st_atime_ns),
        ("m", found.st_mtime_ns, known.st_mtime_ns),
    ):
        if now != old:
            told.append(f"{letter}={now}" if now < _SET else letter)
    if found.st_ctime_ns != known.st_ctime_ns:
        told.append("c")
    return " ".join(told)


def _content(path: str, found: os.stat_result) -> object:
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(path)
    if stat.S_ISREG(found.st_mode):
        data = Path(path).read_bytes()
        return found.st_size, len(data), data[:40], hashlib.sha256(data).hexdigest()[:8]
    return None

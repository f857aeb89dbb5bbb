"""Rules about paths: trailing slashes, what a path leads through, how long it may be, how often it may be led on."""

import errno
import os
import stat
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from calls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from rules import Rule

KINDS = ("file", "dir", "full", "fifo", "to file", "to dir", "dangling", "loop", "missing")
SUFFIXES = ("", "/", "/.", "/..", "/x")
LONGEST = 255


def _make(top: Path, kind: str) -> None:
    """A file that calls take as the other one, and a node of this kind."""
    (top / "file").write_bytes(b"file")
    leads = {"to file": "file", "to dir": "dir", "dangling": "nothing", "loop": "loop"}
    if kind in leads:
        (top / kind).symlink_to(leads[kind])
    if kind == "fifo":
        os.mkfifo(top / kind)
    if kind in ("dir", "to dir"):
        (top / "dir").mkdir()
    if kind == "full":
        (top / kind / "inner").mkdir(parents=True)


def _open(path: str, flags: int) -> None:
    os.close(os.open(path, flags | os.O_NONBLOCK, 0o666))


CALLS: Mapping[str, Callable[[str, str], object]] = {
    "stat": lambda path, cell: stat.S_IFMT(os.stat(path).st_mode),
    "lstat": lambda path, cell: stat.S_IFMT(os.lstat(path).st_mode),
    "access": lambda path, cell: os.access(path, os.W_OK),
    "read": lambda path, cell: _open(path, os.O_RDONLY),
    "no follow": lambda path, cell: _open(path, os.O_RDONLY | os.O_NOFOLLOW),
    "a directory": lambda path, cell: _open(path, os.O_RDONLY | os.O_DIRECTORY),
    "as a path": lambda path, cell: _open(path, os.O_PATH | os.O_NOFOLLOW),
    "write": lambda path, cell: _open(path, os.O_WRONLY),
    "truncating": lambda path, cell: _open(path, os.O_WRONLY | os.O_TRUNC),
    "create": lambda path, cell: _open(path, os.O_WRONLY | os.O_CREAT),
    "create exclusively": lambda path, cell: _open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "create no follow": lambda path, cell: _open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW),
    "create a directory": lambda path, cell: _open(path, os.O_RDONLY | os.O_CREAT | os.O_DIRECTORY),
    "mkdir": lambda path, cell: os.mkdir(path),
    "mkfifo": lambda path, cell: os.mkfifo(path),
    "symlink": lambda path, cell: os.symlink("target", path),
    "readlink": lambda path, cell: os.readlink(path),
    "unlink": lambda path, cell: os.unlink(path),
    "rmdir": lambda path, cell: os.rmdir(path),
    "list": lambda path, cell: sorted(os.listdir(path)),
    "chdir": lambda path, cell: os.chdir(path),
    "chmod": lambda path, cell: os.chmod(path, 0o700),
    "chown": lambda path, cell: os.chown(path, 5, 6),
    "lchown": lambda path, cell: os.lchown(path, 5, 6),
    "truncate": lambda path, cell: os.truncate(path, 2),
    "utime": lambda path, cell: os.utime(path, ns=(5, 6)),
    "utime of the link": lambda path, cell: os.utime(path, ns=(5, 6), follow_symlinks=False),
    "statvfs": lambda path, cell: os.statvfs(path).f_namemax,
    "listxattr": lambda path, cell: os.listxattr(path),
    "setxattr": lambda path, cell: os.setxattr(path, "user.x", b"1"),
    "link from": lambda path, cell: os.link(path, f"{cell}/new"),
    "link following": lambda path, cell: os.link(path, f"{cell}/new", follow_symlinks=True),
    "link to": lambda path, cell: os.link(f"{cell}/file", path),
    "rename from": lambda path, cell: os.rename(path, f"{cell}/new"),
    "rename from to a directory": lambda path, cell: os.rename(path, f"{cell}/new/"),
    "rename a file to": lambda path, cell: os.rename(f"{cell}/file", path),
    "rename a directory to": lambda path, cell: os.rename(f"{cell}/full", path),
    "rename a link to": lambda path, cell: os.rename(f"{cell}/to dir", path),
    "exchange": lambda path, cell: renameat2(path, f"{cell}/full", RENAME_EXCHANGE),
    "not replace": lambda path, cell: renameat2(f"{cell}/file", path, RENAME_NOREPLACE),
    "no call": lambda path, cell: renameat2(f"{cell}/file", path, RENAME_NOREPLACE | RENAME_EXCHANGE),
}


def _in_turn(cell: Path, name: str) -> dict[str, object]:
    """The call on each kind of node with each ending, what it answered, and what is there afterwards."""
    told: dict[str, object] = {}
    needs_directory = name in ("rename a directory to", "exchange")
    for kind in KINDS:
        for suffix in SUFFIXES:
            top = cell / f"{len(told)}"
            top.mkdir()
            _make(top, kind)
            if needs_directory and kind != "full":
                _make(top, "full")
            os.chdir(cell)
            told[kind + suffix] = _answer(name, f"{top}/{kind}{suffix}", top), sorted(os.listdir(top))
    return told


def _answer(name: str, path: str, top: Path) -> object:
    try:
        return CALLS[name](path, str(top))
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _open_to_all(cell: Path) -> None:
    cell.chmod(0o777)


def _a_file(cell: Path) -> None:
    (cell / "file").write_bytes(b"file")


def _chain(cell: Path, length: int) -> object:
    """A symlink that leads through `length` others to a file."""
    (cell / "0").write_bytes(b"end")
    for number in range(length):
        os.symlink(str(number), cell / str(number + 1))
    return (cell / str(length)).read_bytes()


def _path_of(cell: Path, length: int) -> str:
    """A path of `length` bytes to the file in the cell, through many `./`."""
    path = f"{cell}/"
    while len(path) + 6 <= length:
        path += "./"
    return path + "/" * (length - len(path) - 4) + "file"


def _stat_at(cell: Path, length: int) -> int:
    return os.stat(_path_of(cell, length)).st_size


def _with_names(cell: Path, name: str) -> list[object]:
    """The call with a name as long as names may be, and longer, that is not there and, the first one, that is."""
    _make(cell, "file")
    _make(cell, "full")
    told = [_answer(name, f"{cell}/{'n' * length}", cell) for length in (LONGEST, LONGEST + 1)]
    (cell / ("l" * LONGEST)).touch()
    return [*told, _answer(name, f"{cell}/{'l' * LONGEST}", cell), sorted(os.listdir(cell))]


def _target_of(cell: Path, length: int) -> int:
    os.symlink("t" * length, cell / "link")
    return len(os.readlink(cell / "link"))


def _on_all(act: Callable[..., object]) -> dict[str, Rule]:
    return {name: Rule(partial(act, name=name), _open_to_all) for name in CALLS}


GROUPS: Mapping[str, Mapping[str, Rule]] = {
    "ends of paths": _on_all(_in_turn),
    "lengths of names": _on_all(_with_names),
    "lengths of paths and chains of links": {
        **{f"a path of {n}": Rule(partial(_stat_at, length=n), _a_file) for n in (4094, 4095, 4096, 4097)},
        **{f"{n} links": Rule(partial(_chain, length=n), _open_to_all) for n in (1, 39, 40, 41)},
        **{f"a target of {n}": Rule(partial(_target_of, length=n), _open_to_all) for n in (1, 1023, 1024, 4094, 4095)},
        **{f"a target of {n}": Rule(partial(_target_of, length=n), _open_to_all) for n in (0, 4096, 5000)},
    },
}

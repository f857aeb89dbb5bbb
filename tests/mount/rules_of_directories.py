"""Rules about names in a directory: who may make, link, rename and remove them, and what new nodes are like."""

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from calls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from rules import MEMBER, OTHER, OWNER, TEAM, Act, Rule

_NOT_MADE = ("/new", "/nothing", "/moved")
OWNERS = {"owners": OWNER.uid, "members": MEMBER.uid, "others": OTHER.uid, "roots": 0}


@dataclass(frozen=True, slots=True)
class Case:
    """What somebody does, and the nodes that must be there for it."""

    act: Act
    needs: tuple[str, ...] = ()

    def at(self, mode: int) -> Rule:
        """With a directory of this mode."""
        return Rule(self.act, partial(_prepare, mode=mode, needs=self.needs))


def _prepare(cell: Path, mode: int, needs: tuple[str, ...]) -> None:
    """`cell/d` of OWNER and TEAM with this mode, `cell/open` for everyone, and in them what is needed."""
    for top in ("d", "open"):
        (cell / top).mkdir()
    for need in needs:
        _make(cell / need)
    for top, rights in (("d", mode), ("open", 0o777)):
        os.chown(cell / top, OWNER.uid, TEAM)
        (cell / top).chmod(rights)


def _make(path: Path) -> None:
    """`owners`, `dir of others`, …: of that user; `link` leads to `owners`."""
    if path.name == "link":
        path.symlink_to("owners")
        return
    path.mkdir() if path.name.startswith("dir of") else path.write_bytes(os.fsencode(path.name))
    path.chmod(0o777 if path.parent.name == "open" else path.stat().st_mode & 0o777)
    os.chown(path, OWNERS[path.name.removeprefix("dir of ")], TEAM)


def _open(path: Path, flags: int, mode: int = 0o666) -> str:
    os.close(os.open(path, flags, mode))
    return "opened"


def _with_umask(umask: int, act: Act, cell: Path) -> object:
    os.umask(umask)
    return act(cell)


def _make_all(cell: Path, mode: int) -> list[object]:
    """Every kind of new node with these bits, and the mode that came of it."""
    makers: Mapping[str, Callable[[Path], object]] = {
        "a": lambda path: _open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode),
        "b": lambda path: os.mkdir(path, mode),
        "c": lambda path: os.mkfifo(path, mode),
        "e": lambda path: os.mknod(path, stat.S_IFREG | mode),
        "f": lambda path: os.mknod(path, stat.S_IFSOCK | mode),
        "g": lambda path: os.symlink("target", path),
    }
    told: list[object] = []
    for name, make in makers.items():
        try:
            make(cell / "d" / f"new {name}")
            told.append(oct(os.lstat(cell / "d" / f"new {name}").st_mode))
        except OSError as error:
            told.append(error.errno)
    return told


def _read_and_mark_the_link(cell: Path) -> str:
    """Its target is read too, since its attributes are bound to it: that moves its atime."""
    link = cell / "d" / "link"
    target = os.readlink(link)
    os.setxattr(link, "trusted.x", b"1", follow_symlinks=False)
    return target


def _in(name: str, act: Callable[[Path], object]) -> Case:
    """`act` on something in the directory."""
    needs = {"new": (), "nothing": (), "link": ("d/owners", "d/link")}.get(name, (f"d/{name}",))
    return Case(lambda cell: act(cell / "d" / name), needs)


def _rename(cell: Path, source: str, target: str, flags: int) -> None:
    renameat2(cell / source, cell / target, flags)


def _linked(source: str, target: str) -> Case:
    """A hard link, of a symlink itself."""
    needs = tuple(name for name in (source, target) if not name.endswith("/new"))
    return Case(lambda cell: os.link(cell / source, cell / target, follow_symlinks=False), needs)


def _moved(source: str, target: str, flags: int = 0) -> Case:
    """A rename, exchange, …; what is called `new` or `nothing`, or is the directory itself, need not be made."""
    needs = dict.fromkeys(name for name in (source, target) if name.count("/") == 1 and not name.endswith(_NOT_MADE))
    return Case(partial(_rename, source=source, target=target, flags=flags), tuple(needs))


LOOKS: Mapping[str, Case] = {
    "list": Case(lambda cell: sorted(os.listdir(cell / "d")), ("d/owners", "d/link")),
    "stat": _in("owners", lambda path: path.stat().st_size),
    "stat of nothing": _in("nothing", lambda path: path.stat().st_size),
    "read": _in("owners", lambda path: path.read_bytes()),
    "read a link": _in("link", lambda path: os.readlink(path)),
    "read through a link": _in("link", lambda path: path.read_bytes()),
    "change to it": Case(lambda cell: os.chdir(cell / "d")),
    "change through it": Case(lambda cell: os.chdir(cell / "d" / "..")),
    "as a path": Case(lambda cell: _open(cell / "d", os.O_PATH | os.O_DIRECTORY)),
    "open to write": Case(lambda cell: _open(cell / "d", os.O_WRONLY)),
    "open and truncate": Case(lambda cell: _open(cell / "d", os.O_RDONLY | os.O_TRUNC)),
    "open and create": Case(lambda cell: _open(cell / "d", os.O_RDONLY | os.O_CREAT)),
    "access": Case(lambda cell: [os.access(cell / "d", how) for how in (os.F_OK, os.R_OK, os.W_OK, os.X_OK)]),
    "access in it": _in("owners", lambda path: [os.access(path, how) for how in (os.F_OK, os.R_OK, os.W_OK)]),
}
MAKES: Mapping[str, Case] = {
    "create": _in("new", lambda path: _open(path, os.O_CREAT | os.O_WRONLY)),
    "create to read only": _in("new", lambda path: _open(path, os.O_CREAT | os.O_RDONLY)),
    "create without rights": _in("new", lambda path: _open(path, os.O_CREAT | os.O_RDWR, 0)),
    "create what is there": _in("owners", lambda path: _open(path, os.O_CREAT | os.O_WRONLY)),
    "create exclusively": _in("owners", lambda path: _open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
    "create through a link": _in("link", lambda path: _open(path, os.O_CREAT | os.O_WRONLY)),
    "open nothing": _in("new", lambda path: _open(path, os.O_RDONLY)),
    "mkdir": _in("new", lambda path: path.mkdir()),
    "mkdir what is there": _in("owners", lambda path: path.mkdir()),
    "symlink": _in("new", lambda path: path.symlink_to("t")),
    "fifo": _in("new", lambda path: os.mkfifo(path)),
    "device": _in("new", lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))),
    "block device": _in("new", lambda path: os.mknod(path, stat.S_IFBLK | 0o666, os.makedev(7, 99))),
    "directory by mknod": _in("new", lambda path: os.mknod(path, stat.S_IFDIR | 0o777)),
    "link from outside": _linked("open/owners", "d/new"),
    "link within": _linked("d/owners", "d/new"),
    "link of another's": _linked("d/others", "d/new"),
    "link out": _linked("d/owners", "open/new"),
    "link to the link": _linked("d/link", "d/new"),
    "link of a directory": _linked("open/dir of owners", "d/new"),
    "link over": _linked("open/owners", "d/owners"),
}
REMOVES: Mapping[str, Case] = {
    **{f"unlink {name}": _in(name, lambda path: path.unlink()) for name in OWNERS},
    **{f"rmdir {name}": _in(f"dir of {name}", lambda path: path.rmdir()) for name in OWNERS},
    "unlink nothing": _in("nothing", lambda path: path.unlink()),
    "unlink a directory": _in("dir of owners", lambda path: path.unlink()),
    "unlink the link": _in("link", lambda path: path.unlink()),
    "rmdir a file": _in("owners", lambda path: path.rmdir()),
    "rmdir what is full": Case(lambda cell: (cell / "d").rmdir(), ("d/owners",)),
}


RENAMES: Mapping[str, Case] = {
    **{f"{name} within": _moved(f"d/{name}", "d/new") for name in OWNERS},
    **{f"{name} out": _moved(f"d/{name}", "open/new") for name in OWNERS},
    **{f"over {name}": _moved("open/owners", f"d/{name}") for name in OWNERS},
    **{f"dir of {name} out": _moved(f"d/dir of {name}", "open/new") for name in OWNERS},
    **{f"over dir of {name}": _moved("open/dir of owners", f"d/dir of {name}") for name in OWNERS},
    **{f"exchange {n}": _moved("open/owners", f"d/{n}", RENAME_EXCHANGE) for n in OWNERS},
    "not over": _moved("open/owners", "d/owners", RENAME_NOREPLACE),
    "not over nothing": _moved("open/owners", "d/new", RENAME_NOREPLACE),
    "exchange with a directory": _moved("d/owners", "open/dir of owners", RENAME_EXCHANGE),
    "exchange with nothing": _moved("d/owners", "d/new", RENAME_EXCHANGE),
    "a file over a directory": _moved("open/owners", "d/dir of owners"),
    "a directory over a file": _moved("open/dir of owners", "d/owners"),
    "nothing": _moved("d/nothing", "d/new"),
    "itself": _moved("d/owners", "d/owners"),
    "into itself": _moved("d/dir of owners", "d/dir of owners/new"),
    "into itself, deeper": Case(
        partial(_rename, source="d", target="d/dir of owners/new", flags=0), ("d/dir of owners",)
    ),
    "over what it is in": _moved("d/dir of owners", "d"),
    "the directory itself": _moved("d", "open/moved"),
    "the link": _moved("d/link", "open/moved"),
}
ITSELF: Mapping[str, Case] = {
    **{
        f"chmod {mode:o}": Case(partial(lambda cell, mode: os.chmod(cell / "d", mode), mode=mode))
        for mode in (0o755, 0o2755, 0o1777, 0o6755)
    },
    "chown nothing": Case(lambda cell: os.chown(cell / "d", -1, -1)),
    "chown to the owner's group": Case(lambda cell: os.chown(cell / "d", -1, OWNER.gid)),
    "chown to a supplementary group": Case(lambda cell: os.chown(cell / "d", -1, 24)),
    "chown to another": Case(lambda cell: os.chown(cell / "d", OTHER.uid, -1)),
    "times": Case(lambda cell: os.utime(cell / "d", ns=(77, 78))),
    "now": Case(lambda cell: os.utime(cell / "d")),
    "truncate": Case(lambda cell: os.truncate(cell / "d", 0)),
    "setxattr": Case(lambda cell: os.setxattr(cell / "d", "user.x", b"value")),
    "trusted": Case(lambda cell: os.setxattr(cell / "d", "trusted.x", b"value")),
    "security": Case(lambda cell: os.setxattr(cell / "d", "security.x", b"value")),
    "capability": Case(lambda cell: os.setxattr(cell / "d", "security.capability", b"value")),
    "chown the link": Case(lambda cell: os.lchown(cell / "d" / "link", OTHER.uid, OTHER.gid), ("d/link",)),
    "times of the link": Case(
        lambda cell: os.utime(cell / "d" / "link", ns=(77, 78), follow_symlinks=False), ("d/link",)
    ),
    "setxattr of the link": Case(
        lambda cell: os.setxattr(cell / "d" / "link", "user.x", b"1", follow_symlinks=False), ("d/link",)
    ),
    "trusted of the link": Case(_read_and_mark_the_link, ("d/link",)),
}
NEW: Mapping[str, Case] = {
    f"{mode:o} with umask {umask:o}": Case(partial(_with_umask, umask, partial(_make_all, mode=mode)))
    for mode in (0o777, 0o666, 0o4755, 0o2775, 0o6777, 0o1777, 0o000)
    for umask in (0o000, 0o022, 0o077, 0o777)
}


def _on(cases: Mapping[str, Case], modes: tuple[int, ...]) -> dict[str, Rule]:
    return {f"{name} at {mode:o}": case.at(mode) for mode in modes for name, case in cases.items()}


GROUPS: Mapping[str, Mapping[str, Rule]] = {
    "look into a directory": _on(LOOKS, (0o755, 0o700, 0o711, 0o444, 0o666, 0o333, 0o000)),
    "make": _on(MAKES, (0o755, 0o775, 0o1777, 0o2777, 0o333, 0o666)),
    "remove": _on(REMOVES, (0o755, 0o775, 0o777, 0o1777, 0o1775, 0o666)),
    "rename": _on(RENAMES, (0o755, 0o777, 0o1777, 0o3775, 0o666)),
    "attributes of a directory": _on(ITSELF, (0o755, 0o2775, 0o1777)),
    "modes of new nodes": _on(NEW, (0o777, 0o2777)),
}

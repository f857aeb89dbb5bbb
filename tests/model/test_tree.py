"""A tree of names against nested dicts: both look the same whatever is done to them, also after a remount or a kill."""

import errno
import os
import stat
from dataclasses import dataclass, field
from typing import Any

import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cmkfs.fs.backing import RENAME_EXCHANGE, RENAME_NOREPLACE

from .harness import ROOT, Harness, Program, scratch


@dataclass(eq=False)
class File:
    """`kind` is the file type of stat; content is a file's bytes or a symlink's target."""

    kind: int
    content: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    links: int = 0


@dataclass(eq=False)
class Dir:
    """A directory."""

    entries: dict[bytes, "File | Dir"] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


Node = File | Dir
Path = tuple[bytes, ...]

FEW = [b"a", b"b", b"c", b"A", "ä".encode(), b"long." + b"x" * 43, b"cmkfs.dir", b"x" * 160, b"y" * 161, b"z" * 255]
NAMES = st.sampled_from(FEW) | st.binary(min_size=1, max_size=255).filter(
    lambda name: not set(name) & {0, ord("/")} and name not in (b".", b"..")
)
DEEP = st.lists(st.sampled_from([b"a", b"b", b"y" * 161]), min_size=1, max_size=3).map(tuple)
PATHS = DEEP | st.tuples(st.sampled_from(FEW))
NEW_PATHS = PATHS | st.tuples(NAMES)
TARGETS = st.sampled_from([b"a", b"../b", b"t" * 718, b"t" * 719, b"u" * 4095]) | st.binary(
    min_size=1, max_size=4095
).filter(lambda target: 0 not in target)
XATTRS = st.sampled_from([b"user.a", b"user.b", b"user." + b"n" * 200])


class Model:
    """Nested dicts with the errors of POSIX."""

    def __init__(self) -> None:
        self.root = Dir()

    def node(self, path: Path) -> Node:
        found: Node = self.root
        for name in path:
            if not isinstance(found, Dir):
                raise NotADirectoryError
            if name not in found.entries:
                raise FileNotFoundError
            found = found.entries[name]
        return found

    def parent(self, path: Path) -> Dir:
        found = self.node(path[:-1])
        if not isinstance(found, Dir):
            raise NotADirectoryError
        return found

    def add(self, path: Path, node: Node) -> None:
        parent = self.parent(path)
        if path[-1] in parent.entries:
            raise FileExistsError
        parent.entries[path[-1]] = node
        if isinstance(node, File):
            node.links += 1

    def unlink(self, path: Path) -> None:
        node = self.node(path)
        if isinstance(node, Dir):
            raise IsADirectoryError
        del self.parent(path).entries[path[-1]]
        node.links -= 1

    def rmdir(self, path: Path) -> None:
        node = self.node(path)
        if not isinstance(node, Dir):
            raise NotADirectoryError
        if node.entries:
            raise OSError(errno.ENOTEMPTY, "")
        del self.parent(path).entries[path[-1]]

    def rename(self, old: Path, new: Path, flags: int) -> None:
        node, before, after = self.node(old), self.parent(old), self.parent(new)
        target = after.entries.get(new[-1])
        if flags == RENAME_EXCHANGE:
            if target is None:
                raise FileNotFoundError
            before.entries[old[-1]], after.entries[new[-1]] = target, node
            return
        if target is not None and flags == RENAME_NOREPLACE:
            raise FileExistsError
        if target is node:
            return
        if isinstance(target, Dir):
            if not isinstance(node, Dir):
                raise IsADirectoryError
            if target.entries:
                raise OSError(errno.ENOTEMPTY, "")
        elif target is not None:
            if isinstance(node, Dir):
                raise NotADirectoryError
            target.links -= 1
        del before.entries[old[-1]]
        after.entries[new[-1]] = node


def _number(error: OSError) -> int:
    """The errno, also of a bare `FileNotFoundError()`."""
    bare = {
        FileNotFoundError: errno.ENOENT,
        FileExistsError: errno.EEXIST,
        NotADirectoryError: errno.ENOTDIR,
        IsADirectoryError: errno.EISDIR,
    }
    return error.errno or bare[type(error)]


def _into_itself(old: Path, new: Path) -> bool:
    """The kernel refuses these before a filesystem sees them."""
    return old[: len(new)] == new[: len(old)] and old != new


class TreeMachine(RuleBasedStateMachine):
    """Each rule does one call to the mount and to the model; both succeed or fail alike."""

    def __init__(self) -> None:
        super().__init__()
        self._scratch = scratch()
        self.harness = Harness(self._scratch.__enter__())
        self.model = Model()

    @initialize()
    def begin(self) -> None:
        trio.run(self.harness.mount)

    def both(self, in_model: Any, in_mount: Any) -> None:
        """Run both; the same errno, or none."""
        expected = found = 0
        try:
            in_model()
        except OSError as error:
            expected = _number(error)
        try:
            trio.run(in_mount, self.harness.program)
        except OSError as error:
            found = _number(error)
        assert found == expected, (errno.errorcode.get(found, "success"), errno.errorcode.get(expected, "success"))

    # -- make -------------------------------------------------------------------------------------

    @rule(path=NEW_PATHS, data=st.binary(max_size=10) | st.just(b"s" * 9000))
    def create(self, path: Path, data: bytes) -> None:
        async def make(program: Program) -> None:
            await program.save(await program.walk(*path[:-1]), path[-1], data)

        self.both(lambda: self.model.add(path, File(stat.S_IFREG, data)), make)

    @rule(path=NEW_PATHS)
    def mkdir(self, path: Path) -> None:
        async def make(program: Program) -> None:
            await program.mkdir(await program.walk(*path[:-1]), path[-1])

        self.both(lambda: self.model.add(path, Dir()), make)

    @rule(path=NEW_PATHS, points_to=TARGETS)
    def symlink(self, path: Path, points_to: bytes) -> None:
        async def make(program: Program) -> None:
            await program.symlink(await program.walk(*path[:-1]), path[-1], points_to)

        self.both(lambda: self.model.add(path, File(stat.S_IFLNK, points_to)), make)

    @rule(path=NEW_PATHS, kind=st.sampled_from([stat.S_IFIFO, stat.S_IFSOCK]))
    def mknod(self, path: Path, kind: int) -> None:
        async def make(program: Program) -> None:
            await program.mknod(await program.walk(*path[:-1]), path[-1], kind | 0o644)

        self.both(lambda: self.model.add(path, File(kind)), make)

    @rule(source=PATHS, path=NEW_PATHS)
    def link(self, source: Path, path: Path) -> None:
        def in_model() -> None:
            node = self.model.node(source)
            self.model.parent(path)
            if isinstance(node, Dir):
                raise PermissionError(errno.EPERM, "")
            self.model.add(path, node)

        async def make(program: Program) -> None:
            ino = await program.walk(*source)
            parent = await program.walk(*path[:-1])
            if stat.S_ISDIR((await program.stat(ino)).st_mode) and stat.S_ISDIR((await program.stat(parent)).st_mode):
                raise PermissionError(errno.EPERM, "")  # as the kernel does (vfs_link)
            await program.link(ino, parent, path[-1])

        self.both(in_model, make)

    # -- remove and move --------------------------------------------------------------------------

    @rule(path=PATHS)
    def unlink(self, path: Path) -> None:
        async def remove(program: Program) -> None:
            await program.unlink(await program.walk(*path[:-1]), path[-1])

        self.both(lambda: self.model.unlink(path), remove)

    @rule(path=PATHS)
    def rmdir(self, path: Path) -> None:
        async def remove(program: Program) -> None:
            await program.rmdir(await program.walk(*path[:-1]), path[-1])

        self.both(lambda: self.model.rmdir(path), remove)

    @rule(old=PATHS, new=NEW_PATHS, flags=st.sampled_from([0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]))
    def rename(self, old: Path, new: Path, flags: int) -> None:
        if _into_itself(old, new):
            return

        async def move(program: Program) -> None:
            parent = await program.walk(*old[:-1])
            await program.lookup(parent, old[-1])
            await program.rename(parent, old[-1], await program.walk(*new[:-1]), new[-1], flags)

        self.both(lambda: self.model.rename(old, new, flags), move)

    # -- attributes -------------------------------------------------------------------------------

    @rule(path=PATHS, name=XATTRS, value=st.binary(max_size=300))
    def set_xattr(self, path: Path, name: bytes, value: bytes) -> None:
        def in_model() -> None:
            node = self.model.node(path)
            if isinstance(node, File) and node.kind != stat.S_IFREG:
                raise PermissionError(errno.EPERM, "")  # xattr(7): only files and directories
            node.xattrs[name] = value

        async def mark(program: Program) -> None:
            ino = await program.walk(*path)
            mode = (await program.stat(ino)).st_mode
            if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                raise PermissionError(errno.EPERM, "")  # as the kernel does (xattr_permission)
            await program.set_xattr(ino, name, value)

        self.both(in_model, mark)

    @rule(path=PATHS, name=XATTRS)
    def remove_xattr(self, path: Path, name: bytes) -> None:
        def in_model() -> None:
            if self.model.node(path).xattrs.pop(name, None) is None:
                raise OSError(errno.ENODATA, "")

        async def unmark(program: Program) -> None:
            ino = await program.walk(*path)
            if stat.S_IFMT((await program.stat(ino)).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
                raise OSError(errno.ENODATA, "")
            await program.remove_xattr(ino, name)

        self.both(in_model, unmark)

    @rule(path=PATHS, data=st.binary(max_size=20))
    def rewrite(self, path: Path, data: bytes) -> None:
        """Empty a file and write it anew: its attributes stay, whatever happens to its identity."""

        def in_model() -> None:
            node = self.model.node(path)
            if isinstance(node, Dir) or node.kind != stat.S_IFREG:
                raise OSError(errno.EINVAL, "")
            node.content = data

        async def write(program: Program) -> None:
            ino = await program.walk(*path)
            if not stat.S_ISREG((await program.stat(ino)).st_mode):
                raise OSError(errno.EINVAL, "")
            fh = await program.open(ino, os.O_RDWR | os.O_TRUNC)
            if data:
                await program.write(fh, 0, data)
            await program.close(fh)

        self.both(in_model, write)

    # -- what happens beside ----------------------------------------------------------------------

    @rule()
    def forget(self) -> None:
        trio.run(self.harness.program.forget_all)

    @rule()
    def remount(self) -> None:
        async def again() -> None:
            await self.harness.unmount()
            await self.harness.mount()
            assert self.harness.mounted.recovered is None

        trio.run(again)

    @rule()
    def kill(self) -> None:
        self.harness.kill()
        trio.run(self.harness.mount)
        assert self.harness.mounted.recovered is not None
        assert self.harness.mounted.recovered.unreadable == []

    @invariant()
    def the_same(self) -> None:
        if hasattr(self.harness, "program"):
            trio.run(self._compare, ROOT, self.model.root)
            self._nothing_left_over()

    async def _compare(self, ino: int, directory: Dir) -> None:
        program = self.harness.program
        listed = await program.entries(ino)
        assert set(listed) == {b".", b"..", *directory.entries}
        assert await program.xattrs(ino) == directory.xattrs
        below = sum(isinstance(node, Dir) for node in directory.entries.values())
        assert listed[b"."].st_nlink in (1, 2 + below)
        for name, node in directory.entries.items():
            entry = listed[name]
            if isinstance(node, Dir):
                assert stat.S_ISDIR(entry.st_mode)
                await self._compare(entry.st_ino, node)
                continue
            assert stat.S_IFMT(entry.st_mode) == node.kind
            assert entry.st_nlink == node.links
            assert entry.st_size == len(node.content)
            if node.kind == stat.S_IFLNK:
                assert await program.readlink(entry.st_ino) == node.content
            if node.kind == stat.S_IFREG:
                assert await program.content(entry.st_ino) == node.content
                assert await program.xattrs(entry.st_ino) == node.xattrs

    def _nothing_left_over(self) -> None:
        """No half-made or half-removed thing, no sidecar without an entry, no part without a symlink."""
        parts = 0
        for top, directories, files in os.walk(os.fsencode(self.harness.vault)):
            names = {*directories, *files}
            assert not [name for name in names if name.startswith((b"cmkfs.tmp.", b"cmkfs.gone."))]
            sidecars = {name.removeprefix(b"cmkfs.") for name in names if name.startswith(b"cmkfs.long.")}
            assert sidecars == {name for name in names if name.startswith(b"long.")}
            if top.endswith(b"/cmkfs.links"):
                parts = len(names)
        assert bool(parts) == any(len(target) > 718 for target in self._targets(self.model.root))

    def _targets(self, directory: Dir) -> list[bytes]:
        found: list[bytes] = []
        for node in directory.entries.values():
            if isinstance(node, Dir):
                found += self._targets(node)
            elif node.kind == stat.S_IFLNK:
                found.append(node.content)
        return found

    def teardown(self) -> None:
        try:
            trio.run(self.harness.unmount)
        finally:
            self._scratch.__exit__(None, None, None)


TestTree = TreeMachine.TestCase
TestTree.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)

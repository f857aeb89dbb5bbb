"""Somebody who can write the vault but has no key (P2): one random change at rest, and what a reader sees then.

`Forger` makes a vault with some of everything, keeps it and an older state of it, and changes copies. What a
reader finds in a changed copy is compared with what was stored: the same, missing, an error, or, where the change
only puts one whole object in another's place or brings back an older state, that. Never anything else.
"""

import errno
import os
import random
import shutil
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from cmkfs.errors import CmkfsError
from cmkfs.format.header import SLOT_OFFSETS, SLOT_SIZE
from cmkfs.format.layout import BLOCK, PAGE
from cmkfs.maintenance.findings import Report
from cmkfs.maintenance.readers import Readers

from .checking import check, repair
from .harness import ROOT, Harness, Program

Names = tuple[bytes, ...]
LONG_NAME = b"n" * 200
XATTR = "user.cmkfs."


class Forgery(AssertionError):
    """A reader was given something that was never stored there."""


@dataclass(frozen=True, slots=True)
class Error:
    """The reader was refused."""

    why: str


@dataclass(slots=True)
class Seen:
    """One object as a reader sees it; a file by blocks, each as it reads by itself."""

    kind: str
    size: int = 0
    blocks: list[bytes | Error] = field(default_factory=list)
    target: bytes | Error = b""
    xattrs: dict[bytes, bytes | Error] = field(default_factory=dict)


Tree = dict[Names, Seen | Error]


# -- What a reader sees ----------------------------------------------------------------------------


async def look(program: Program, attributes: tuple[bytes, ...] = (b"user.one", b"user.two")) -> Tree:
    """All that can be reached by listing, and of each the extended attributes of these names."""
    seen: Tree = {}
    await _look_into(program, ROOT, (), seen, attributes)
    return seen


async def _look_into(program: Program, ino: int, path: Names, seen: Tree, attributes: tuple[bytes, ...]) -> None:
    seen[path] = Seen("directory", xattrs=await _xattrs(program, ino, attributes))
    try:
        listed = await program.entries(ino)
    except OSError as error:
        seen[path] = Error(str(error))
        return
    for name, entry in listed.items():
        if name in (b".", b".."):
            continue
        below = (*path, name)
        if stat.S_ISDIR(entry.st_mode):
            await _look_into(program, entry.st_ino, below, seen, attributes)
        else:
            seen[below] = await _look_at(program, ino, name, stat.S_IFMT(entry.st_mode), attributes)


async def _look_at(
    program: Program, parent: int, name: bytes, kind: int, attributes: tuple[bytes, ...]
) -> Seen | Error:
    if kind not in (stat.S_IFREG, stat.S_IFLNK):
        return Seen("special")
    try:
        ino = (await program.lookup(parent, name)).st_ino
        if kind == stat.S_IFLNK:
            return Seen("symlink", target=await program.readlink(ino))
        fh = await _open(program, parent, name)
    except OSError as error:
        return Error(str(error))
    seen = await see_open_file(program, fh)
    await program.close(fh)
    seen.xattrs = await _xattrs(program, ino, attributes)
    return seen


async def see_open_file(program: Program, fh: int) -> Seen:
    """What reads through a handle give; without attributes."""
    size = program.file(fh).size
    return Seen("file", size, [await _block(program, fh, at) for at in range(0, size, BLOCK)])


async def _open(program: Program, parent: int, name: bytes) -> int:
    """As the kernel does it: a size that was told and is not the one that reads honour is looked up again."""
    try:
        return await program.open((await program.lookup(parent, name)).st_ino, os.O_RDONLY)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
    return await program.open((await program.lookup(parent, name)).st_ino, os.O_RDONLY)


async def _block(program: Program, fh: int, at: int) -> bytes | Error:
    try:
        return await program.read(fh, at, BLOCK)
    except OSError as error:
        return Error(str(error))


LISTING = b""
"""Stands among attributes for their names, which cannot be listed."""


async def _xattrs(program: Program, ino: int, names: tuple[bytes, ...]) -> dict[bytes, bytes | Error]:
    found: dict[bytes, bytes | Error] = {}
    for name in names:
        try:
            found[name] = await program.get_xattr(ino, name)
        except OSError as error:
            found[name] = Error(str(error))
    try:
        listed = set(await program.list_xattrs(ino))
    except OSError as error:
        return {**found, LISTING: Error(str(error))}
    if not listed <= set(found):
        raise Forgery(f"attributes that were never set: {listed}")
    return found


# -- What may be seen ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Licence:
    """What a kind of change may do beyond hiding and damaging."""

    whole: bool = False
    """One whole object of the zone in the place of another."""
    older: bool = False
    """An older state of a file, a block, a size or an attribute."""


def compare(
    stored: Tree, older: Tree, seen: Tree, licence: Licence, written: dict[Names, list[Seen]] | None = None
) -> None:
    """Raise Forgery for anything that is neither stored, missing, refused, nor within the licence.

    `written`: what files were written to since then, each from any of its states.
    """
    written = written or {}
    for path, found in seen.items():
        if isinstance(found, Error) or found.kind == "special":
            continue  # a fifo holds nothing: whoever can write the vault can make one, as the mode of any file
        originals = [tree[path] for tree in ([stored, older] if licence.older else [stored]) if path in tree]
        originals += written.get(path, [])
        mixed = licence.older or path in written
        if licence.whole:
            originals += [other for other in stored.values() if isinstance(other, Seen)]
            originals += [other for states in written.values() for other in states]
            mixed = mixed or bool(written)
        known = [original for original in originals if isinstance(original, Seen) and original.kind == found.kind]
        if not known and path not in stored and not licence.whole:
            raise Forgery(f"{path} was never there")
        if not any(_may_be(original, found, known if mixed else [original]) for original in known):
            raise Forgery(f"{path} is not what was stored: {_short(found)}")


def _may_be(original: Seen, found: Seen, others: list[Seen]) -> bool:
    if found.kind == "file":
        if found.size not in {other.size for other in others}:
            return False
        for number, block in enumerate(found.blocks):
            stored = [other.blocks[number] for other in others if number < len(other.blocks)]
            cut = [one[: len(block)] for one in stored if isinstance(one, bytes) and isinstance(block, bytes)]
            if not isinstance(block, Error) and block not in cut:
                return False
    if found.kind == "symlink" and found.target != original.target:
        return False
    return all(
        isinstance(value, Error) or value in [other.xattrs.get(name) for other in others]
        for name, value in found.xattrs.items()
    )


def _short(found: Seen) -> str:
    blocks = [one if isinstance(one, Error) else one[:8] for one in found.blocks]
    return f"{found.kind} {found.size} {blocks} {found.target!r:.60} {found.xattrs!r:.200}"


# -- The forger ------------------------------------------------------------------------------------


async def _fill(program: Program) -> None:
    """Some of everything."""
    first = await program.mkdir(ROOT, b"first")
    second = await program.mkdir(ROOT, b"second")
    empty = await program.mkdir(first, b"empty")
    one = await program.save(ROOT, b"one", b"1" * (2 * BLOCK + 100))
    two = await program.save(ROOT, b"two", b"2" * (2 * BLOCK + 100))
    await program.save(ROOT, b"nothing", b"")
    await program.save(first, b"one", b"3" * 3 * BLOCK)
    await program.save(first, LONG_NAME, b"4" * 10)
    await program.save(second, b"one", b"5" * BLOCK)
    fh = await program.create(second, b"sparse")
    await program.write(fh, 4 * BLOCK, b"6" * 50)
    await program.close(fh)
    await program.symlink(first, b"short", b"somewhere")
    await program.symlink(first, b"other", b"elsewhere")
    await program.symlink(second, b"long", b"l" * 3000)
    for number, ino in enumerate((one, two, first, empty)):
        await program.set_xattr(ino, b"user.one", b"value of %d" % number)
        await program.set_xattr(ino, b"user.two", b"another of %d" % number)


async def _change(program: Program) -> None:
    """From the older state to the one that counts."""
    fh = await program.open(await program.walk(b"one"))
    await program.write(fh, 10, b"new" * 2000)
    await program.close(fh)
    fh = await program.open(await program.walk(b"first", b"one"))
    await program.truncate(fh, BLOCK + 5)
    await program.close(fh)
    await program.set_xattr(await program.walk(b"two"), b"user.one", b"newer")


class Forger:
    """`attempt(seed)` makes one change and checks what comes of it."""

    def __init__(self, directory: Path) -> None:
        self.harness = Harness(directory)
        self._work = self.harness.vault
        self._old, self._new = directory / "old", directory / "new"
        self.older = trio.run(self._session, _fill)
        shutil.copytree(self._work, self._old, symlinks=True)
        self.stored = trio.run(self._session, _change)
        self._order = {path.relative_to(self._work): path.lstat().st_ino for path in _all(self._work)}
        shutil.copytree(self._work, self._new, symlinks=True)
        self.outcomes: Counter[str] = Counter()

    async def _session(self, work: Callable[[Program], object]) -> Tree:
        await self.harness.mount()
        await work(self.harness.program)  # type: ignore[misc]
        seen = await look(self.harness.program)
        await self.harness.unmount()
        return seen

    def attempt(self, seed: int) -> None:
        """Raises Forgery."""
        name, licence = self.change(seed)
        try:
            seen = trio.run(self.read)
            compare(self.stored, self.older, seen, licence)
        except BaseException as error:
            error.add_note(f"seed {seed}: {name}")
            raise

    def change(self, seed: int) -> tuple[str, "Licence"]:
        """Put the vault back, and make the change of this seed, the same one each time; gives its name."""
        rng = random.Random(seed)
        self.put_back()
        change = rng.choice(CHANGES)
        return change.__name__, change(self, rng)

    def put_back(self) -> None:
        """The vault as it was stored."""
        shutil.rmtree(self._work)
        shutil.copytree(self._new, self._work, symlinks=True)

    async def read(self) -> Tree:
        """All that a mount of the vault as it is now gives; nothing, if it does not mount."""
        try:
            await self.harness.mount()
        except (CmkfsError, OSError):
            self.outcomes["refused"] += 1
            return {}
        self.outcomes["served"] += 1
        seen = await look(self.harness.program)
        await self.harness.unmount()
        return seen

    # -- what there is to change ------------------------------------------------------------------

    def all(self, kind: Callable[[Path], bool]) -> list[Path]:
        """In the order in which they were made: their names are others in each vault, and a seed is to be repeated."""
        found = [path for path in _all(self._work) if kind(path)]
        return sorted(found, key=lambda path: (self._order.get(path.relative_to(self._work), 1 << 64), path))

    def file(self, rng: random.Random) -> Path:
        """A regular file, one of the vault's own now and then."""
        return rng.choice(self.all(_is_file))

    def content(self, rng: random.Random) -> Path:
        """A user's file."""
        return rng.choice(self.all(lambda path: _is_file(path) and not path.name.startswith("cmkfs.")))

    def link(self, rng: random.Random) -> Path:
        return rng.choice(self.all(Path.is_symlink))

    def entry(self, rng: random.Random) -> Path:
        """A user's object of any kind."""
        return rng.choice(self.all(lambda path: not any(part.startswith("cmkfs.") for part in path.parts[-2:])))

    def before(self, path: Path) -> Path:
        """The same in the older state."""
        return self._old / path.relative_to(self._work)


def _all(top: Path) -> list[Path]:
    return [Path(at, name) for at, directories, files in os.walk(top) for name in [*directories, *files]]


def _is_file(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def _is_dir(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def _page(rng: random.Random, data: bytes) -> int:
    return rng.randrange(max(1, len(data) // PAGE)) * PAGE


def _put(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


def _replace(link: Path, target: str) -> None:
    link.unlink()
    link.symlink_to(target)


# -- Changes: each does one and says what it may do ------------------------------------------------


def flip_a_bit(forger: Forger, rng: random.Random) -> Licence:
    path = forger.file(rng)
    data = bytearray(path.read_bytes() or b"\0")
    region = rng.choice([len(data), min(len(data), 120), min(len(data), PAGE)])
    data[rng.randrange(region)] ^= 1 << rng.randrange(8)
    _put(path, bytes(data))
    return Licence()


def flip_a_bit_of_a_slot(forger: Forger, rng: random.Random) -> Licence:
    path = forger.content(rng)
    data = bytearray(path.read_bytes())
    data[rng.choice(SLOT_OFFSETS) + rng.choice([rng.randrange(80), rng.randrange(SLOT_SIZE)])] ^= 1 << rng.randrange(8)
    _put(path, bytes(data))
    return Licence()


def overwrite_a_page(forger: Forger, rng: random.Random) -> Licence:
    path = forger.file(rng)
    data = bytearray(path.read_bytes())
    at = _page(rng, data)
    data[at : at + PAGE] = rng.choice([bytes(PAGE), rng.randbytes(PAGE)])[: len(data) - at]
    _put(path, bytes(data))
    return Licence()


def punch_all_blocks(forger: Forger, rng: random.Random) -> Licence:
    path = forger.content(rng)
    data = path.read_bytes()
    _put(path, data[:PAGE] + bytes(len(data) - PAGE))
    return Licence()


def move_a_page(forger: Forger, rng: random.Random) -> Licence:
    source, target = forger.content(rng), forger.content(rng)
    taken, data = source.read_bytes(), bytearray(target.read_bytes())
    at, to = _page(rng, taken), _page(rng, data)
    data[to : to + PAGE] = taken[at : at + PAGE]
    _put(target, bytes(data))
    return Licence(whole=at == to == 0 and len(data) == PAGE)


def move_a_slot(forger: Forger, rng: random.Random) -> Licence:
    source, target = forger.content(rng), forger.content(rng)
    taken, data = source.read_bytes(), bytearray(target.read_bytes())
    at, to = rng.choice(SLOT_OFFSETS), rng.choice(SLOT_OFFSETS)
    data[to : to + SLOT_SIZE] = taken[at : at + SLOT_SIZE]
    _put(target, bytes(data))
    return Licence()


def change_the_length(forger: Forger, rng: random.Random) -> Licence:
    path = forger.file(rng)
    size = path.stat().st_size
    path.chmod(0o600)
    pages = size // PAGE * PAGE
    os.truncate(path, rng.choice([0, pages, PAGE, size + 1, size + PAGE, pages + 7, rng.randint(0, 2 * size)]))
    return Licence()


def append_blocks(forger: Forger, rng: random.Random) -> Licence:
    path = forger.content(rng)
    data = path.read_bytes()
    at = _page(rng, data)
    whole = data[: len(data) // PAGE * PAGE]
    _put(path, whole + data[at : at + PAGE] + bytes(rng.choice([0, 5])))
    return Licence()


def bring_back_a_page(forger: Forger, rng: random.Random) -> Licence:
    path = forger.content(rng)
    old, data = forger.before(path).read_bytes(), bytearray(path.read_bytes())
    at = _page(rng, old)
    data[at : at + PAGE] = old[at : at + PAGE]
    _put(path, bytes(data))
    return Licence(older=True)


def bring_back_a_file(forger: Forger, rng: random.Random) -> Licence:
    path = forger.content(rng)
    _put(path, forger.before(path).read_bytes())
    return Licence(older=True)


def replace_a_file(forger: Forger, rng: random.Random) -> Licence:
    source, target = forger.content(rng), forger.content(rng)
    how = rng.choice(["copy", "link", "attributes too"])
    if how != "link":
        _put(target, source.read_bytes())
        if how == "attributes too":
            shutil.copystat(source, target)
    elif source != target:
        target.unlink()
        target.hardlink_to(source)
    return Licence(whole=True)


def exchange_two(forger: Forger, rng: random.Random) -> Licence:
    one, two = forger.entry(rng), forger.entry(rng)
    if one in two.parents or two in one.parents or one == two:
        return Licence()
    beside = one.with_name("cmkfs.beside")
    one.rename(beside)
    two.rename(one)
    beside.rename(two)
    return Licence(whole=True)


def clone(forger: Forger, rng: random.Random) -> Licence:
    """A second directory or file under a name that the directory has for something else."""
    one, two = forger.entry(rng), forger.entry(rng)
    if one in two.parents or two in one.parents or one == two or not _is_dir(one):
        return Licence()
    shutil.rmtree(two) if _is_dir(two) else two.unlink()
    shutil.copytree(one, two, symlinks=True)
    return Licence(whole=True)


def move_away(forger: Forger, rng: random.Random) -> Licence:
    path = forger.entry(rng)
    homes = [forger.harness.vault, *forger.all(_is_dir)]
    home = rng.choice([one for one in homes if path != one and path not in one.parents])
    if not os.path.lexists(home / path.name):
        path.rename(home / path.name)
    return Licence()


def remove(forger: Forger, rng: random.Random) -> Licence:
    path = rng.choice(forger.all(lambda one: not _is_dir(one)))
    path.unlink()
    return Licence()


def edit_a_link(forger: Forger, rng: random.Random) -> Licence:
    link = forger.link(rng)
    target = str(link.readlink())
    at = rng.randrange(len(target))
    edited = rng.choice(
        [
            target[:at] + rng.choice("AZaz09-_.=") + target[at + 1 :],
            target[:at] or "A",
            target + "A",
            "." + target,
            "x",
        ]
    )
    _replace(link, edited)
    return Licence()


def exchange_links(forger: Forger, rng: random.Random) -> Licence:
    """Ids of directories, sidecars, parts and users' symlinks among each other."""
    one, two = forger.link(rng), forger.link(rng)
    first, second = str(one.readlink()), str(two.readlink())
    _replace(one, second)
    _replace(two, first)
    return Licence(whole=not (one.name.startswith("cmkfs.") or two.name.startswith("cmkfs.")))


def exchange_directory_ids(forger: Forger, rng: random.Random) -> Licence:
    ids = forger.all(lambda path: path.name == "cmkfs.dir")
    one, two = rng.sample(ids, 2)
    first, second = str(one.readlink()), str(two.readlink())
    _replace(one, second)
    if rng.random() < 0.5:
        _replace(two, first)
    return Licence()


def change_an_attribute(forger: Forger, rng: random.Random) -> Licence:
    owners = forger.all(lambda path: not path.is_symlink() and any(_ours(path)))
    one, two = rng.choice(owners), rng.choice(owners)
    name, other = rng.choice(_ours(one)), rng.choice(_ours(two))
    how = rng.choice(["flip", "cut", "move", "old", "gone"])
    value = bytearray(os.getxattr(one, name))
    if how == "flip":
        value[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
    elif how == "cut":
        value = value[: rng.randrange(len(value))]
    elif how == "old":
        value = bytearray(os.getxattr(forger.before(one), name))
    if how == "gone":
        os.removexattr(one, name)
    else:
        os.setxattr(two if how == "move" else one, other if how == "move" else name, bytes(value))
    return Licence(older=how == "old")


def _ours(path: Path) -> list[str]:
    """By the lengths of their values, since their names are others in each vault."""
    found = [name for name in os.listxattr(path) if name.startswith(XATTR)]
    return sorted(found, key=lambda name: len(os.getxattr(path, name)))


def change_the_kind(forger: Forger, rng: random.Random) -> Licence:
    path = rng.choice([forger.file(rng), forger.link(rng)])
    path.unlink()
    how = rng.choice(["fifo", "directory", "link", "file"])
    if how == "fifo":
        os.mkfifo(path)
    elif how == "directory":
        path.mkdir()
    elif how == "link":
        path.symlink_to(rng.choice(["/etc/passwd", ".", "cmkfs.vault"]))
    else:
        path.write_bytes(rng.randbytes(rng.choice([0, 100, PAGE, 3 * PAGE])))
    return Licence()


def add_something(forger: Forger, rng: random.Random) -> Licence:
    home = rng.choice([forger.harness.vault, *forger.all(_is_dir)])
    name = rng.choice(["cmkfs.tmp.x", "cmkfs.gone.x", "cmkfs.long.x", "long.x", "lost+found", "A" * 43])
    path = home / name
    if rng.random() < 0.5:
        path.mkdir()
        (path / "file").write_bytes(b"plain")
    else:
        path.write_bytes(b"plain")
    return Licence()


CHANGES: list[Callable[[Forger, random.Random], Licence]] = [
    flip_a_bit,
    flip_a_bit,
    flip_a_bit_of_a_slot,
    overwrite_a_page,
    punch_all_blocks,
    move_a_page,
    move_a_slot,
    change_the_length,
    append_blocks,
    bring_back_a_page,
    bring_back_a_file,
    replace_a_file,
    exchange_two,
    clone,
    move_away,
    remove,
    edit_a_link,
    exchange_links,
    exchange_directory_ids,
    change_an_attribute,
    change_the_kind,
    add_something,
]


# -- What check and repair make of it --------------------------------------------------------------


def refusals(tree: Tree) -> list[Names]:
    """Where a reader met an error; an attribute that is not there is none."""
    return [path for path, seen in tree.items() if isinstance(seen, Error) or _refused(seen)]


def _refused(seen: Seen) -> bool:
    values = [*seen.blocks, seen.target, *seen.xattrs.values()]
    gone = os.strerror(errno.ENODATA)
    return any(isinstance(value, Error) and gone not in value.why for value in values)


def check_and_repair(forger: Forger, readers: Readers, seed: int) -> str:
    """One change: `check` sees what a reader sees, `--repair` ends clean and keeps all that was read.

    Gives what came of it: `hidden` (nothing to see) or `mended`. Raises Forgery.
    """
    name, _ = forger.change(seed)
    try:
        before = trio.run(forger.read)
        forger.change(seed)
        found: Report | None = None
        try:
            found = check(forger.harness, readers)
        except CmkfsError as error:
            if before:
                raise Forgery(f"mounts, but is not checked: {error}") from error
        mended, actions = repair(forger.harness, readers)
        _compare_repaired(forger, before, found, mended)
        if found is not None and not found.damage:
            return "hidden"
        if not actions:
            raise Forgery("mended without a word")
        return "mended"
    except BaseException as error:
        error.add_note(f"seed {seed}: {name}")
        raise


def _compare_repaired(forger: Forger, before: Tree, found: Report | None, mended: Report) -> None:
    if (refusals(before) or not before) and found is not None and not found.damage:
        raise Forgery(f"check did not find why {refusals(before)} cannot be read")
    if mended.damage or mended.notes:
        raise Forgery(f"not clean after the repair: {[finding.line for finding in mended.damage + mended.notes]}")
    after = trio.run(forger.read)
    if not after or refusals(after):
        raise Forgery(f"cannot be read after the repair: {refusals(after)}")
    known = {block for tree in (forger.stored, forger.older) for seen in tree.values() for block in _pieces(seen)}
    for path, seen in after.items():
        for block in _pieces(seen):
            if block.strip(b"\0") and not any(one.startswith(block) for one in known):
                raise Forgery(f"{path} holds what was never stored after the repair")
    kept = {block for seen in after.values() for block in _pieces(seen)}
    for path, seen in before.items():
        lost = [block[:8] for block in _pieces(seen) if block.strip(b"\0") and block not in kept]
        if lost:
            raise Forgery(f"{path} could be read before the repair, and now cannot: {lost}")


def _pieces(seen: Seen | Error) -> list[bytes]:
    """What a reader got of one object."""
    if isinstance(seen, Error):
        return []
    return [value for value in [*seen.blocks, seen.target, *seen.xattrs.values()] if isinstance(value, bytes)]

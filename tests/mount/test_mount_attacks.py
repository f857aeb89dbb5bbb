"""What somebody who can write to the vault may try while, before and after it is mounted (docs/threat-model.md).

Nothing foreign is touched through a name that was exchanged, nothing is read that was never written, and
whatever does not authenticate is an error. Sizes and offsets are those of docs/format.md, 8.1 to 8.3.
"""

import errno
import mmap
import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from children import ALICE, Child, in_child
from real_mount import OWN_CMK, SHARED_CMK, NewMount, RealMount, Site

from cmkfs.format.header import IDENTITY_SIZE, SLOT_BODY, SLOT_OFFSETS
from cmkfs.format.layout import BLOCK, PAGE, cipher_off, cipher_size
from cmkfs.fs.backing import RENAME_EXCHANGE, rename

BLOCKS = 20
CONTENT = b"".join(b"%08d" % block * (BLOCK // 8) for block in range(BLOCKS)) + b"the end"
"""No block of it is like another, and none holds a zero."""
RECIPIENT_VERSION = 83
"""Where a header has the CMK version of its first recipient: 4 bytes."""
TRIES = 300

_T = TypeVar("_T")


# -- settled files, damaged while nobody had the vault mounted -------------------------------------


def _flip(path: Path, at: int) -> None:
    with open(path, "r+b", buffering=0) as file:
        (old,) = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([old ^ 1]), at)


def _flip_newest_mac(path: Path) -> None:
    page = path.read_bytes()[:PAGE]
    newest = max(SLOT_OFFSETS, key=lambda at: page[at : at + 8])
    _flip(path, newest + SLOT_BODY)


def _flip_middle_block(path: Path) -> None:
    _flip(path, cipher_off(BLOCKS // 2) + 100)


def _zero_blocks(path: Path) -> None:
    with open(path, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), bytes(3 * PAGE), cipher_off(BLOCKS // 2))


def _punch_last_blocks(path: Path) -> None:
    length = path.stat().st_size
    os.truncate(path, cipher_off(BLOCKS // 2))
    os.truncate(path, length)


def _cut(path: Path) -> None:
    os.truncate(path, cipher_size(BLOCKS // 2 * BLOCK))


def _set_version(version: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with open(path, "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), version.to_bytes(4, "big"), RECIPIENT_VERSION)

    return change


DAMAGE: dict[str, tuple[Callable[[Path], None], ...]] = {
    "slot-and-block": (_flip_newest_mac, _flip_middle_block),
    "slot-and-cut": (_flip_newest_mac, _cut),
    "slot-and-zeros": (_flip_newest_mac, _zero_blocks),
    "slot-and-lost-end": (_flip_newest_mac, _punch_last_blocks),
    "presized-zeros": (_zero_blocks,),
    "presized-slot-and-zeros": (_flip_newest_mac, _zero_blocks),
    "presized-slot-and-lost-end": (_flip_newest_mac, _punch_last_blocks),
}
VERSIONS = {
    "version-2": _set_version(2),
    "version-0": _set_version(0),
    "version-last": _set_version(2**32 - 1),
}
PAIRS = [
    f"{kind}-{first}-{state}"
    for kind in ("original", "clone")
    for first in ("original", "clone")
    for state in ("open", "closed")
]
INTACT = ("lengthened", "rounded-up", "cut", "fifo-renamed", "fifo-made", *PAIRS)


@dataclass(frozen=True, slots=True)
class Scene:
    """A mount of settled files, none of which was looked up or opened since it began."""

    mounted: RealMount
    backing: dict[str, Path]

    def path(self, name: str) -> Path:
        return self.mounted.path / name


@pytest.fixture(scope="module")
def settled_scene(site: Site) -> Iterator[Scene]:
    mounted = site.mount(site.new_vault(SHARED_CMK), "allow_other")
    try:
        scene = Scene(mounted, {})
        for name in (*DAMAGE, *VERSIONS, *INTACT):
            _write(scene.path(name), presized=name.startswith("presized"))
            scene.backing[name] = backing_of(mounted, scene.path(name))
        mounted.down()
        for name, steps in (*DAMAGE.items(), *((name, (step,)) for name, step in VERSIONS.items())):
            for step in steps:
                step(scene.backing[name])
        mounted.up()
        mounted.expected_log = [
            r"guard: (open|lookup|getattr|setattr|read|symlink|mkdir|mknod|unlink|rmdir): ",
            "a file has another size than was told",
        ]
        yield scene
    finally:
        mounted.clear()


@pytest.fixture
def scene(settled_scene: Scene) -> Iterator[Scene]:
    """The scene that all tests share, each with files of its own; the test fails if the daemon met a bug."""
    yield settled_scene
    settled_scene.mounted.check()


def _write(path: Path, *, presized: bool) -> None:
    with open(path, "xb") as file:
        if presized:
            file.truncate(len(CONTENT))
            os.fsync(file.fileno())  # the whole file is a hole now, and a slot says so
        file.write(CONTENT)


def backing_of(mounted: RealMount, path: Path) -> Path:
    """What a path on the mount is in the vault: numbers of inodes are the backing's."""
    number = path.lstat().st_ino
    (found,) = (node for node in mounted.vault.rglob("*") if node.lstat().st_ino == number)
    return found


def is_whole_or_refused(path: Path, *allowed: int) -> None:
    """Nothing is told but the original: each block of it, all of them, or an error."""
    refusals = {errno.EIO, *allowed}
    fd, refusal = _try(lambda: os.open(path, os.O_RDONLY))
    if fd is None:
        assert refusal in refusals
        return
    try:
        assert os.fstat(fd).st_size == len(CONTENT)
        at = 0
        while at < len(CONTENT):
            read, refusal = _try(lambda at=at: os.pread(fd, BLOCK, at))  # type: ignore[misc]
            if read is None:
                assert refusal in refusals
                at += BLOCK
                continue
            # Fewer bytes than asked for if an error comes next, but never none.
            assert read, f"ends at {at}"
            assert CONTENT.startswith(read, at), f"other bytes than were written at {at}"
            at += len(read)
    finally:
        os.close(fd)


def _try(step: Callable[[], _T]) -> tuple[_T | None, int]:
    """What a step gives and 0, or nothing and the errno that it raised."""
    try:
        return step(), 0
    except OSError as error:
        return None, error.errno or errno.EIO


@pytest.mark.parametrize("name", DAMAGE)
def test_settled_file_is_whole_or_refused(scene: Scene, name: str) -> None:
    """Its older slot has a smaller floor and lists holes: it must not be what counts when the newest is spoilt."""
    is_whole_or_refused(scene.path(name))


@pytest.mark.parametrize("name", VERSIONS)
def test_recipient_of_a_version_that_never_was_is_damage_and_no_missing_key(scene: Scene, name: str) -> None:
    assert RECIPIENT_VERSION + 4 < IDENTITY_SIZE
    with pytest.raises(OSError) as caught:
        scene.path(name).read_bytes()
    assert caught.value.errno == errno.EIO


# -- the backing changes between stat and open -----------------------------------------------------


@pytest.mark.parametrize(("name", "blocks"), [("lengthened", 7), ("rounded-up", 1)])
def test_size_that_stat_was_told_is_not_filled_with_zeros(scene: Scene, name: str, blocks: int) -> None:
    backing, before = scene.backing[name], scene.backing[name].stat().st_size
    os.truncate(backing, cipher_size((BLOCKS + blocks) * BLOCK))
    assert scene.path(name).stat().st_size == (BLOCKS + blocks) * BLOCK
    os.truncate(backing, before)
    is_whole_or_refused(scene.path(name), errno.ESTALE)


def test_size_that_stat_was_told_does_not_cut_what_is_read(scene: Scene) -> None:
    backing, content = scene.backing["cut"], scene.backing["cut"].read_bytes()
    _cut(backing)
    assert scene.path("cut").stat().st_size == BLOCKS // 2 * BLOCK
    with open(backing, "r+b") as file:
        file.write(content)
        file.truncate(len(content))
    is_whole_or_refused(scene.path("cut"), errno.ESTALE)


# -- one file in the place of another --------------------------------------------------------------


@pytest.mark.parametrize("first_stays_open", [False, True], ids=["closed", "open"])
@pytest.mark.parametrize("first_used", ["original", "clone"])
def test_second_of_two_files_with_one_id_is_refused(scene: Scene, first_used: str, first_stays_open: bool) -> None:
    """Both names are known to the kernel when one gets what the other has; whichever is used first is served."""
    pair = f"{first_used}-{'open' if first_stays_open else 'closed'}"
    names = {kind: f"{kind}-{pair}" for kind in ("original", "clone")}
    second_used = "clone" if first_used == "original" else "original"
    with _held(scene.path(names["original"])), _held(scene.path(names["clone"])):
        scene.backing[names["clone"]].write_bytes(scene.backing[names["original"]].read_bytes())
        with open(scene.path(names[first_used]), "rb") as file:
            assert file.read() == CONTENT
            if not first_stays_open:
                file.close()
            with pytest.raises(OSError) as caught:
                scene.path(names[second_used]).read_bytes()
            assert caught.value.errno == errno.EIO


@contextmanager
def _held(path: Path) -> Iterator[int]:
    """The kernel keeps an inode that a program holds, without the daemon having to open it."""
    fd = os.open(path, os.O_PATH)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", ["fifo-renamed", "fifo-made"])
def test_fifo_in_the_place_of_a_known_file_is_never_opened_as_the_file(scene: Scene, name: str) -> None:
    """One that is made when the file is gone may get its inode number, one that is renamed has another."""
    path, backing = scene.path(name), scene.backing[name]
    with _held(path) as held:
        if name == "fifo-made":
            backing.unlink()
            os.mkfifo(backing, 0o666)
        else:
            fifo = backing.with_name("cmkfs.tmp.fifo")
            os.mkfifo(fifo, 0o666)
            fifo.rename(backing)
        for way_in in (path, Path(f"/proc/self/fd/{held}")):
            for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
                outcome = in_child(partial(_outcome_of_open, way_in, flags))
                # By its name it is a fifo from now on, and who opens one waits: the node's type is not sealed.
                fifo_like = {"fifo", "blocked"} if way_in == path else set()
                assert outcome in {"EIO", "ESTALE"} | fifo_like, f"{way_in} with flags {flags:o}: {outcome}"
    scene.mounted.ask("status")  # the daemon itself never waits


def _outcome_of_open(path: Path, flags: int) -> str:
    """`fifo` or `opened` for something else, the name of an errno, or `blocked`."""

    def late(_number: int, _frame: object) -> None:
        raise InterruptedError

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        fd = os.open(path, flags)
    except InterruptedError:
        return "blocked"
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "fifo" if stat.S_ISFIFO(os.fstat(fd).st_mode) else "opened"


# -- names that are exchanged under the daemon's hands ---------------------------------------------


@dataclass(frozen=True, slots=True)
class Foreign:
    """What the daemon must not touch: a file and a directory of root, out of the vault."""

    file: Path
    directory: Path

    def state(self) -> list[object]:
        found: list[object] = [sorted(os.listdir(self.directory)), self.file.read_bytes()]
        for path in (self.file, self.directory):
            status = path.lstat()
            found.append((oct(status.st_mode), status.st_uid, status.st_gid))
        return found


@pytest.fixture
def foreign(plain: Path) -> Foreign:
    made = Foreign(plain / "file", plain / "directory")
    made.file.write_bytes(b"precious")
    made.file.chmod(0o600)
    made.directory.mkdir(mode=0o700)
    return made


def _make_fifo(path: Path) -> None:
    os.mknod(path, stat.S_IFIFO | 0o4755)  # setuid: chown takes it away, so the daemon sets the mode again


def _make_directory(path: Path) -> None:
    os.mkdir(path, 0o055)  # without its owner's rights: the daemon takes them away last


@pytest.mark.parametrize(
    ("make", "target"),
    [(_make_fifo, "file"), (_make_directory, "file"), (_make_directory, "directory")],
    ids=["mknod", "mkdir", "mkdir-directory"],
)
def test_new_node_that_is_exchanged_with_a_symlink_leads_nowhere(
    scene: Scene, foreign: Foreign, make: Callable[[Path], None], target: str
) -> None:
    top, aim = scene.path(f"race-{make.__name__}-{target}"), getattr(foreign, target)
    top.mkdir()
    top.chmod(0o777)
    backing = backing_of(scene.mounted, top)
    in_child(lambda: make(top / "node"), ALICE)
    (entry,) = set(os.listdir(os.fsencode(backing))) - {b"cmkfs.dir"}
    (os.rmdir if make is _make_directory else os.unlink)(top / "node")
    before, stop = foreign.state(), mmap.mmap(-1, 1)
    racer = Child(lambda: _exchange_new_nodes(backing, aim, None if make is _make_directory else entry, stop))
    user = Child(lambda: _make_often(top / "node", make, aim), ALICE)
    racer.go()
    user.go()
    try:
        user.result()
    finally:
        stop[0] = 1
        exchanged = racer.result()
    assert exchanged, "no node was exchanged: nothing was tried"
    assert foreign.state() == before


def _make_often(path: Path, make: Callable[[Path], None], target: Path) -> None:
    """As a user, until enough was tried or the target is not what it was. What went wrong is made again."""
    before = _owner_and_mode(target)
    for _ in range(TRIES):
        for step in (make, os.unlink, os.rmdir):
            _, refusal = _try(partial(step, path))
            assert refusal not in (errno.EPERM, errno.EACCES, errno.ENOKEY)
        if _owner_and_mode(target) != before:
            return


def _owner_and_mode(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mode, found.st_uid, found.st_gid


def _exchange_new_nodes(directory: Path, target: Path, awaited: bytes | None, stop: mmap.mmap) -> int:
    """Put a symlink in the place of each new node, at once; how many times that was done.

    `awaited` is the backing name that it will have; None where that cannot be known before.
    """
    fd = os.open(directory, os.O_RDONLY)
    trap = b"cmkfs.dir.trap"
    known = {b"cmkfs.dir", trap}
    exchanged = 0
    os.symlink(target, trap, dir_fd=fd)
    while not stop[0]:
        for entry in [awaited] if awaited else set(os.listdir(os.fsencode(directory))) - known:
            try:
                rename(fd, trap, fd, entry, RENAME_EXCHANGE)
            except FileNotFoundError:
                continue
            exchanged += 1
            _await_turn_of_daemon(directory, entry)
            _remove(fd, trap)
            _remove(fd, entry)
            os.symlink(target, trap, dir_fd=fd)
    return exchanged


def _await_turn_of_daemon(directory: Path, entry: bytes) -> None:
    """Until the daemon has renamed what it works on, or a while."""
    path = os.path.join(os.fsencode(directory), entry)
    for _ in range(200):
        if not os.path.lexists(path):
            return


def _remove(dir_fd: int, name: bytes) -> None:
    """Remove a node, or a directory with what is in it, while the daemon may be removing or filling it too."""
    itself = f"/proc/self/fd/{dir_fd}/".encode() + name
    while os.path.lexists(itself):
        _, refusal = _try(partial(os.unlink, itself))
        if refusal == errno.EISDIR:
            left: list[bytes] = _try(lambda: os.listdir(itself))[0] or []
            for entry in left:
                _try(partial(os.unlink, os.path.join(itself, entry)))
            _try(partial(os.rmdir, itself))


def test_parts_of_a_long_symlink_do_not_go_to_another_directory(scene: Scene, foreign: Foreign) -> None:
    links, aside = scene.mounted.vault / "cmkfs.links", scene.mounted.vault / "cmkfs.links.aside"
    before = foreign.state()
    links.rename(aside)
    links.symlink_to(foreign.directory)
    try:
        _make_long_symlink(scene.path("long link"))
        assert foreign.state() == before
    finally:
        links.unlink()
        aside.rename(links)


def test_links_directory_that_leads_away_before_the_mount_begins(own_mount: RealMount, foreign: Foreign) -> None:
    own_mount.down()
    own_mount.expected_log = ["guard: symlink: ", "cmkfs.links"]
    links = own_mount.vault / "cmkfs.links"
    before = foreign.state()
    links.rmdir()
    links.symlink_to(foreign.directory)
    if not _refusal_to_mount(own_mount):
        _make_long_symlink(own_mount.path / "long link")
    assert foreign.state() == before


def _make_long_symlink(path: Path) -> None:
    """Either it is made, or it is refused as damage and is not there."""
    target = "t" * 2000
    _, refusal = _try(lambda: path.symlink_to(target))
    if refusal:
        assert refusal == errno.EIO
        assert not os.path.lexists(path)
    else:
        assert os.readlink(path) == target


def _refusal_to_mount(mounted: RealMount) -> str:
    """Try to mount: empty if it is mounted, else what the command says."""
    said = mounted.site.cmkfs("mount", str(mounted.vault), str(mounted.path), codes=range(8))
    if mounted.mounted:
        mounted.site.cmkfs("umount", str(mounted.path))
        mounted.up()
        return ""
    assert said
    assert "Traceback" not in said
    return said


# -- the vault's own files -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hard link", "fifo"])
def test_owner_file_that_is_something_else_is_not_written_to(own_mount: RealMount, foreign: Foreign, kind: str) -> None:
    own_mount.down()
    own_mount.expected_log = ["cmkfs.owner"]
    owner = own_mount.vault / "cmkfs.owner"
    owner.unlink()
    if kind == "fifo":
        os.mkfifo(owner)
    else:
        os.link(foreign.file, owner)
    before = foreign.state()
    refusal = _refusal_to_mount(own_mount)
    if refusal:
        assert "cmkfs.owner" in refusal
    else:
        own_mount.down()
        assert stat.S_ISREG(owner.lstat().st_mode)
    assert foreign.state() == before


# -- an operator's lock ----------------------------------------------------------------------------


def test_unlock_that_was_refused_does_not_undo_an_operators_lock(new_mount: NewMount) -> None:
    mounted = new_mount(cmk=OWN_CMK)
    mounted.expected_log = ["lockdown: (un)?locked"]
    (mounted.path / "file").write_bytes(CONTENT)
    mounted.ask("lock")
    mounted.site.cmkfs("cmk", "disable", OWN_CMK)
    try:
        mounted.site.cmkfs("unlock", str(mounted.path), codes=[4])
    finally:
        mounted.site.cmkfs("cmk", "enable", OWN_CMK)
    with pytest.raises(OSError) as caught:
        (mounted.path / "file").read_bytes()
    assert caught.value.errno == errno.ENOKEY
    mounted.ask("unlock")
    assert (mounted.path / "file").read_bytes() == CONTENT

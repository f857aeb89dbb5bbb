"""Names and directories: every byte, every length, listings while they change, owners, setgid."""

import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from children import ALICE, BOB, all_at_once, in_child
from real_mount import RealMount
from side_by_side import SideBySide

EVERY_BYTE = [bytes([byte]) for byte in range(1, 256) if byte not in b"/."]
SPECIAL = [
    b"cmkfs.dir",
    b"cmkfs.zone",
    b"cmkfs.vault",
    b"cmkfs.links",
    b"cmkfs.long.x",
    b"cmkfs.tmp.x",
    b"cmkfs.gone.x",
    b"long.x",
    b"...",
    b"..x",
    b" ",
    b"-",
    b"\n",
    b"\xff\xfe",
    "ä".encode(),
    "a\u0308".encode(),
    b"CON",
    b"A",
    b"a",
]
LENGTHS = [1, 15, 16, 17, 127, 128, 143, 144, 159, 160, 161, 174, 175, 176, 177, 239, 240, 254, 255]


def _name(length: int, seed: int = 0) -> bytes:
    pick = random.Random(length * 31 + seed)
    return bytes(pick.choice(EVERY_BYTE)[0] for _ in range(length))


def _listing(place: Path) -> list[bytes]:
    return sorted(os.listdir(os.fsencode(place)))


def _in(place: Path, name: bytes) -> bytes:
    return os.fsencode(place) + b"/" + name


def _write(path: bytes, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def test_names_of_any_byte_and_any_length(own_mount: RealMount) -> None:
    names = {*EVERY_BYTE, *SPECIAL, *(_name(length) for length in LENGTHS), b"n" * 255, b"\xff" * 255}
    for name in names:
        _write(_in(own_mount.path, name), name)
    for _ in range(2):
        assert _listing(own_mount.path) == sorted(names)
        for name in names:
            assert Path(os.fsdecode(_in(own_mount.path, name))).read_bytes() == name
        own_mount.again()
    for name in names:
        os.unlink(_in(own_mount.path, name))
    assert _listing(own_mount.path) == []
    left = {entry for entry in os.listdir(own_mount.vault) if not entry.startswith("cmkfs.")}
    assert left == set()
    assert not list(own_mount.vault.glob("cmkfs.long.*"))


@pytest.mark.parametrize("length", [160, 175, 255])
@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "fifo"])
def test_long_names_for_every_kind_of_node(both: SideBySide, kind: str, length: int) -> None:
    first, second, short = _name(length, 1), _name(length, 2), b"short"

    def make(place: Path, name: bytes) -> None:
        path = _in(place, name)
        makers: dict[str, Callable[[], object]] = {
            "file": lambda: _write(path, b"content"),
            "directory": lambda: os.mkdir(path),
            "symlink": lambda: os.symlink(b"target", path),
            "fifo": lambda: os.mkfifo(path),
        }
        makers[kind]()

    both.same(lambda place: make(place, first))
    both.same(lambda place: make(place, first))  # it is there already
    both.same_trees()
    for old, new in ((first, second), (second, short), (short, first)):
        both.same(lambda place: os.rename(_in(place, old), _in(place, new)))  # noqa: B023 - called at once
        both.same_trees()
    remove = os.rmdir if kind == "directory" else os.unlink
    both.same(lambda place: remove(_in(place, first)))
    both.same(_listing)


def test_a_name_too_long_is_refused_everywhere(both: SideBySide) -> None:
    long = "n" * 256
    (both.mounted / "f").touch()
    (both.plain / "f").touch()
    operations: list[Callable[[Path], object]] = [
        lambda place: os.stat(place / long),
        lambda place: os.open(place / long, os.O_CREAT),
        lambda place: os.mkdir(place / long),
        lambda place: os.symlink("x", place / long),
        lambda place: os.mkfifo(place / long),
        lambda place: os.link(place / "f", place / long),
        lambda place: os.rename(place / "f", place / long),
        lambda place: os.unlink(place / long),
        lambda place: os.rmdir(place / long),
    ]
    for operation in operations:
        assert both.same(operation) == "ENAMETOOLONG"


def test_what_a_wrong_kind_answers(both: SideBySide) -> None:
    for place in (both.mounted, both.plain):
        (place / "file").touch()
        (place / "full" / "inner").mkdir(parents=True)
        (place / "loop").symlink_to("loop")
    operations: list[Callable[[Path], object]] = [
        lambda place: os.mkdir(place / "file"),
        lambda place: os.mkdir(place / "full"),
        lambda place: os.rmdir(place / "full"),
        lambda place: os.rmdir(place / "file"),
        lambda place: os.rmdir(place / "missing"),
        lambda place: os.unlink(place / "full"),
        lambda place: os.unlink(place / "missing"),
        lambda place: os.listdir(place / "file"),
        lambda place: os.stat(place / "file" / "x"),
        lambda place: os.stat(place / "loop"),
        lambda place: os.rmdir(place / "full" / "."),
        lambda place: os.rmdir(place / "full" / "inner" / ".."),
        lambda place: os.open(place / "full", os.O_WRONLY),
        lambda place: os.truncate(place / "full", 0),
        lambda place: os.symlink("", place / "empty"),
        lambda place: os.link(place / "full", place / "hard"),
        lambda place: os.mkdir(place / "missing" / "x"),
    ]
    for operation in operations:
        both.same(operation)
    both.same_trees()


def _getdents(path: Path) -> dict[bytes, tuple[int, int]]:
    """What getdents64(2) gives, `.` and `..` too: name to (inode number, type)."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    found, buffer = {}, ctypes.create_string_buffer(32768)
    try:
        while (got := libc.syscall(217, fd, buffer, len(buffer))) > 0:
            at = 0
            while at < got:
                ino = int.from_bytes(buffer.raw[at : at + 8], "little")
                length = int.from_bytes(buffer.raw[at + 16 : at + 18], "little")
                name = buffer.raw[at + 19 : at + length].split(b"\0", 1)[0]
                assert name not in found, f"{name!r} is listed twice"
                found[name] = (ino, buffer.raw[at + 18])
                at += length
        assert got == 0, os.strerror(ctypes.get_errno())
    finally:
        os.close(fd)
    return found


def test_dot_and_dotdot_are_listed_and_numbers_and_kinds_are_those_of_stat(work: Path) -> None:
    inner = work / "inner"
    inner.mkdir()
    (inner / "file").touch()
    (inner / "sub").mkdir()
    (inner / "link").symlink_to("x")
    os.mkfifo(inner / "fifo")
    listed = _getdents(inner)
    assert set(listed) == {b".", b"..", b"file", b"sub", b"link", b"fifo"}
    for name, (ino, kind) in listed.items():
        found = os.lstat(_in(inner, name))
        assert (found.st_ino, stat.S_IFMT(found.st_mode) >> 12) == (ino, kind), name


def test_link_counts_of_directories(both: SideBySide) -> None:
    def story(place: Path) -> list[int]:
        counts = [place.stat().st_nlink]
        (place / "a" / "b").mkdir(parents=True)
        (place / "a" / "c").mkdir()
        counts += [place.stat().st_nlink, (place / "a").stat().st_nlink]
        os.rename(place / "a" / "c", place / "c")
        counts += [place.stat().st_nlink, (place / "a").stat().st_nlink]
        (place / "c").rmdir()
        fd = os.open(place / "a" / "b", os.O_RDONLY)
        try:
            (place / "a" / "b").rmdir()
            counts += [os.fstat(fd).st_nlink]
        finally:
            os.close(fd)
        return [*counts, place.stat().st_nlink, (place / "a").stat().st_nlink]

    both.same(story)


def test_a_listing_shows_what_is_there_all_the_time_exactly_once(work: Path) -> None:
    """Entries come and go while the directory is read; large enough for several requests."""
    stable = {f"stable {number}" for number in range(1500)}
    for name in stable:
        (work / name).touch()
    with os.scandir(work) as entries:
        seen = [next(entries).name]
        for number in range(300):
            (work / f"new {number}").touch()
        for name in sorted(stable)[:300]:
            (work / name).unlink()
        seen += [entry.name for entry in entries]
    assert len(seen) == len(set(seen))
    assert set(seen) >= set(sorted(stable)[300:])
    assert len(os.listdir(work)) == 1500


def test_a_directory_is_removed_while_it_is_read(work: Path) -> None:
    (work / "d").mkdir()
    for number in range(400):
        (work / "d" / str(number)).touch()
    with os.scandir(work / "d") as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(work / "d") == []
    (work / "d").rmdir()


def test_a_directory_without_a_name_goes_on_answering(both: SideBySide) -> None:
    def in_it(operation: Callable[[int], object]) -> Callable[[Path], object]:
        def story(place: Path) -> object:
            (place / "d").mkdir()
            fd = os.open(place / "d", os.O_RDONLY)
            try:
                (place / "d").rmdir()
                return operation(fd)
            finally:
                os.close(fd)

        return story

    operations: list[Callable[[int], object]] = [
        lambda fd: os.fstat(fd).st_nlink,
        lambda fd: oct(os.fstat(fd).st_mode),
        os.listdir,
        lambda fd: os.mkdir("x", dir_fd=fd),
        lambda fd: os.open("x", os.O_CREAT, dir_fd=fd),
        lambda fd: os.stat("x", dir_fd=fd).st_size,
        lambda fd: os.fchmod(fd, 0o700),
        lambda fd: os.fsync(fd),
        lambda fd: os.setxattr(fd, "user.x", b"1"),
        lambda fd: os.utime(fd, ns=(5, 6)),
    ]
    for operation in operations:
        both.same(in_it(operation))


def test_a_working_directory_that_was_moved_stays_where_it_is(both: SideBySide) -> None:
    def story(place: Path) -> list[str]:
        (place / "a" / "b").mkdir(parents=True)
        (place / "new").mkdir()
        os.chdir(place / "a" / "b")
        os.rename(place / "a", place / "new" / "a2")
        Path("file").write_text("here")
        seen = [os.path.relpath(os.getcwd(), place), *sorted(os.listdir("../.."))]
        os.chdir("../..")
        return [*seen, os.path.relpath(os.getcwd(), place), Path("a2/b/file").read_text()]

    both.same(lambda place: in_child(lambda: story(place)))


def test_files_and_directories_belong_to_who_makes_them(both: SideBySide) -> None:
    def make(place: Path) -> None:
        os.umask(0o027)
        (place / "file").write_bytes(b"x")
        (place / "directory").mkdir()
        (place / "link").symlink_to("x")
        os.mkfifo(place / "fifo")
        os.mknod(place / "regular", stat.S_IFREG | 0o666)
        os.close(os.open(place / "mode", os.O_CREAT | os.O_WRONLY, 0o777))

    both.same(make, ALICE)
    both.same_trees()
    assert (both.mounted / "file").stat().st_uid == ALICE.uid


@pytest.mark.parametrize("who", [None, ALICE, BOB])
def test_a_setgid_directory_gives_its_group(both: SideBySide, who: object) -> None:
    def prepare(place: Path) -> None:
        (place / "team").mkdir()
        os.chown(place / "team", 0, ALICE.gid)
        (place / "team").chmod(0o2777)

    def make(place: Path) -> None:
        team = place / "team"
        (team / "file").write_bytes(b"x")
        (team / "sub" / "sub").mkdir(parents=True)
        (team / "sub" / "file").touch()
        (team / "link").symlink_to("x")
        os.mkfifo(team / "fifo")
        os.close(os.open(team / "setgid", os.O_CREAT | os.O_WRONLY, 0o2775))
        os.mkdir(team / "sticky", 0o1777)

    both.same(prepare)
    both.same(make, who)  # type: ignore[arg-type]
    both.same_trees()


def test_modes_as_asked_for(both: SideBySide) -> None:
    def make(place: Path) -> None:
        before = os.umask(0)
        try:
            for mode in (0o000, 0o400, 0o644, 0o777, 0o1777, 0o2755, 0o4755, 0o6777):
                os.close(os.open(place / f"f{mode:o}", os.O_CREAT | os.O_WRONLY, mode))
                os.mkdir(place / f"d{mode:o}", mode)
                os.mkfifo(place / f"p{mode:o}", mode)
        finally:
            os.umask(before)

    both.same(make)
    both.same_trees()


def test_a_sticky_directory_protects_from_others(both: SideBySide) -> None:
    def prepare(place: Path) -> None:
        (place / "tmp").mkdir()
        (place / "tmp").chmod(0o1777)

    both.same(prepare)
    both.same(lambda place: (place / "tmp" / "alice").write_bytes(b"x"), ALICE)
    assert both.same(lambda place: os.unlink(place / "tmp" / "alice"), BOB) == "EPERM"
    assert both.same(lambda place: os.rename(place / "tmp" / "alice", place / "b"), BOB) == "EPERM"
    both.same(lambda place: os.unlink(place / "tmp" / "alice"), ALICE)


def test_many_processes_make_and_remove_the_same_names(work: Path) -> None:
    """Exactly one wins each name, and nothing is left of the losers."""

    def claim() -> list[int]:
        won = []
        for number in range(60):
            try:
                os.close(os.open(work / f"name {number} {'x' * 200}", os.O_CREAT | os.O_EXCL))
                won.append(number)
            except FileExistsError:
                continue
        return won

    winners = sorted(number for won in all_at_once([claim] * 4) for number in won)
    assert winners == list(range(60))

    def make_and_remove() -> None:
        for _ in range(60):
            for make, remove in ((os.mkdir, os.rmdir), (os.mkfifo, os.unlink)):
                try:
                    make(work / "contended")
                    remove(work / "contended")
                except (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError):
                    continue

    all_at_once([make_and_remove] * 4)
    assert len(os.listdir(work)) == 60


def test_a_tree_deeper_than_any_path_and_many_directories_beside(own_mount: RealMount) -> None:
    """The daemon keeps only some directories open: what it closed it finds again, however deep."""
    deep = 1300

    def story() -> tuple[int, int, bytes]:
        os.chdir(own_mount.path)
        for _ in range(deep):
            os.mkdir("d")
            os.chdir("d")
        number = os.stat(".").st_ino
        for count in range(1100):
            path = own_mount.path / f"beside {count}"
            path.mkdir()
            (path / "inner").mkdir()
        Path("file").write_bytes(b"deep")
        same = os.stat(".").st_ino
        read = Path("file").read_bytes()
        os.unlink("file")
        for _ in range(deep):
            os.chdir("..")
            os.rmdir("d")
        return number, same, read

    number, same, read = in_child(story)
    assert (number, read) == (same, b"deep")
    assert len(os.listdir(own_mount.path)) == 1100

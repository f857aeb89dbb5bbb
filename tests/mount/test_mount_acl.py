"""POSIX ACLs (`-o acl`), the same on the mount and on ext4: who may, mode and ACL in step, inheritance, errors."""

import os
import shutil
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from children import ALICE, BOB, Who, in_child
from real_mount import SHARED_CMK, RealMount, Site
from side_by_side import SideBySide

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
NOBODY = 0xFFFFFFFF
TEAM = 12399
TAGS = {"u:": 0x01, "u": 0x02, "g:": 0x04, "g": 0x08, "m": 0x10, "o": 0x20}
CAROL = Who(12347, 12347)
MEMBER = Who(12348, 12348, (TEAM,))
EVERYONE = {"root": None, "owner": ALICE, "named": BOB, "member": MEMBER, "other": CAROL}


def acl(*lines: str) -> bytes:
    """`u::rwx`, `u:5:r--`, `m::rw-`, … as the extended attribute, in the order that the kernel wants."""
    packed = struct.pack("<I", 2)
    for line in lines:
        tag, who, rights = line.split(":")
        number = TAGS[tag + ":"] if tag in "ug" and not who else TAGS[tag]
        bits = sum(bit for bit, letter in ((4, "r"), (2, "w"), (1, "x")) if letter in rights)
        packed += struct.pack("<HHI", number, bits, int(who) if who else NOBODY)
    return packed


NAMED = acl("u::rw-", f"u:{BOB.uid}:rwx", "g::r--", f"g:{TEAM}:-w-", "m::rw-", "o::---")
INHERITED = acl("u::rwx", f"u:{BOB.uid}:rwx", "g::r-x", f"g:{TEAM}:r-x", "m::rwx", "o::---")
NO_MASK = acl("u::rwx", "g::r-x", "o::--x")


@pytest.fixture(scope="module")
def acl_mount(site: Site) -> Iterator[RealMount]:
    mounted = site.mount(site.new_vault(SHARED_CMK), "allow_other", "suid", "dev", "acl")
    try:
        yield mounted
    finally:
        mounted.clear()


@pytest.fixture
def both(acl_mount: RealMount, plain: Path) -> Iterator[SideBySide]:
    made = Path(tempfile.mkdtemp(prefix="t", dir=acl_mount.path))
    made.chmod(0o777)
    yield SideBySide(made, plain)
    shutil.rmtree(made)
    acl_mount.check()


def rights(path: Path) -> tuple[str, bytes | None, bytes | None]:
    """Mode and both ACLs of a node."""

    def get(name: str) -> bytes | None:
        return os.getxattr(path, name, follow_symlinks=False) if name in names else None

    names = os.listxattr(path, follow_symlinks=False)
    return oct(os.lstat(path).st_mode), get(ACCESS), get(DEFAULT)


def _file(place: Path) -> Path:
    file = place / "file"
    if not file.exists():
        file.write_bytes(b"content")
        os.chown(file, ALICE.uid, ALICE.gid)
        file.chmod(0o640)
        os.setxattr(file, ACCESS, NAMED)
    return file


@pytest.mark.parametrize("who", EVERYONE.values(), ids=EVERYONE)
def test_who_may(both: SideBySide, who: Who | None) -> None:
    both.same(lambda place: rights(_file(place)))
    uses: list[Callable[[Path], object]] = [
        lambda place: (place / "file").read_bytes(),
        lambda place: os.close(os.open(place / "file", os.O_WRONLY)),
        lambda place: os.truncate(place / "file", 3),
        lambda place: [os.access(place / "file", how) for how in (os.R_OK, os.W_OK, os.X_OK)],
        lambda place: os.getxattr(place / "file", ACCESS),
        lambda place: os.setxattr(place / "file", ACCESS, NO_MASK),
        lambda place: os.removexattr(place / "file", ACCESS),
        lambda place: os.chmod(place / "file", 0o600),
    ]
    for use in uses:
        both.same(use, who)
        both.same(lambda place: rights(place / "file"))


@pytest.mark.parametrize("mode", [0o000, 0o640, 0o777, 0o2755, 0o4711, 0o607, 0o070])
def test_chmod_and_acl_stay_in_step(both: SideBySide, mode: int) -> None:
    def story(place: Path) -> list[object]:
        seen: list[object] = []
        for node in (_file(place), place / "d"):
            if node.name == "d":
                node.mkdir()
                os.setxattr(node, DEFAULT, INHERITED)
                os.setxattr(node, ACCESS, INHERITED)
            os.chmod(node, mode)
            seen.append(rights(node))
            os.setxattr(node, ACCESS, NO_MASK)  # says what a mode can say: no ACL is kept
            seen.append(rights(node))
            os.setxattr(node, ACCESS, NAMED)
            os.removexattr(node, ACCESS)
            seen.append(rights(node))
        return seen

    both.same(story)


@pytest.mark.parametrize("default", [INHERITED, NO_MASK, NAMED], ids=["inherited", "no mask", "named"])
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("who", [None, ALICE], ids=["root", "alice"])
def test_inherited_by_everything_that_is_made(both: SideBySide, default: bytes, umask: int, who: Who | None) -> None:
    def story(place: Path) -> dict[str, object]:
        os.umask(umask)
        top = place / "top"
        for mode in (0o777, 0o666, 0o600, 0o2750):
            os.close(os.open(top / f"file {mode:o}", os.O_CREAT | os.O_RDWR, mode))
            os.mkdir(top / f"directory {mode:o}", mode)
            os.mknod(top / f"fifo {mode:o}", stat.S_IFIFO | mode)
            os.mknod(top / f"node {mode:o}", stat.S_IFREG | mode)
        os.mkdir(top / "directory 777" / "below")
        os.symlink("x", top / "link")
        return {node.name: rights(node) for node in sorted(top.rglob("*"))}

    def prepare(place: Path) -> None:
        (place / "top").mkdir()
        (place / "top").chmod(0o777)
        os.chown(place / "top", ALICE.uid, ALICE.gid)
        os.setxattr(place / "top", DEFAULT, default)

    both.same(prepare)
    both.same(lambda place: in_child(lambda: story(place), who))


def test_without_a_default_acl_the_umask_counts(both: SideBySide) -> None:
    def story(place: Path) -> list[object]:
        os.umask(0o027)
        os.close(os.open(place / "file", os.O_CREAT | os.O_RDWR, 0o666))
        os.mkdir(place / "d")
        os.mkfifo(place / "p")
        return [rights(place / name) for name in ("file", "d", "p")]

    both.same(lambda place: in_child(lambda: story(place), ALICE))


def test_errors_are_those_of_ext4(both: SideBySide) -> None:
    def prepare(place: Path) -> None:
        _file(place)
        (place / "d").mkdir()
        (place / "link").symlink_to("file")
        os.mkfifo(place / "fifo")

    both.same(prepare)
    operations: dict[str, Callable[[Path], object]] = {
        "default on a file": lambda place: os.setxattr(place / "file", DEFAULT, INHERITED),
        "none": lambda place: os.getxattr(place / "d", DEFAULT),
        "remove none": lambda place: os.removexattr(place / "d", ACCESS),
        "remove no default": lambda place: os.removexattr(place / "d", DEFAULT),
        "nonsense": lambda place: os.setxattr(place / "file", ACCESS, b"nonsense"),
        "cut off": lambda place: os.setxattr(place / "file", ACCESS, NAMED[:-3]),
        "no mask": lambda place: os.setxattr(place / "file", ACCESS, acl("u::r--", "u:5:r--", "g::r--", "o::r--")),
        "old version": lambda place: os.setxattr(place / "file", ACCESS, b"\1" + NAMED[1:]),
        "symlink": lambda place: os.setxattr(place / "link", ACCESS, NAMED, follow_symlinks=False),
        "fifo": lambda place: os.setxattr(place / "fifo", ACCESS, NAMED),
        "of the fifo": lambda place: rights(place / "fifo"),
        "other system": lambda place: os.setxattr(place / "file", "system.other", b"1"),
    }
    for operation in operations.values():
        both.same(operation)


def test_setgid_goes_when_one_who_is_no_member_sets_an_acl(both: SideBySide) -> None:
    for number, who in enumerate([None, ALICE, Who(ALICE.uid, ALICE.gid, (TEAM,))]):

        def story(place: Path) -> object:
            os.setxattr(place / f"{number}", ACCESS, INHERITED)  # noqa: B023 - called at once
            return rights(place / f"{number}")  # noqa: B023

        def prepare(place: Path) -> None:
            (place / f"{number}").touch()  # noqa: B023 - called at once
            os.chown(place / f"{number}", ALICE.uid, TEAM)  # noqa: B023
            os.chmod(place / f"{number}", 0o2755)  # noqa: B023

        both.same(prepare)
        both.same(story, who)


def test_kept_over_a_remount(acl_mount: RealMount, both: SideBySide) -> None:
    def prepare(place: Path) -> None:
        _file(place)
        (place / "d").mkdir()
        os.setxattr(place / "d", DEFAULT, INHERITED)
        os.mkfifo(place / "d" / "fifo")
        (place / "d" / "inner").touch()

    both.same(prepare)
    acl_mount.again()
    for name in ("file", "d", "d/fifo", "d/inner"):
        both.same(lambda place: rights(place / name))  # noqa: B023 - called at once
    both.same(lambda place: (place / "file").write_bytes(b"x"), BOB)
    both.same(lambda place: (place / "file").read_bytes(), CAROL)

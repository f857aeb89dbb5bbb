"""Extended attributes: every size, every error, bound to their file, gone with it."""

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from children import ALICE, in_child
from loop_disk import BACKING
from real_mount import RealMount
from side_by_side import SideBySide

CREATE, REPLACE = os.XATTR_CREATE, os.XATTR_REPLACE


def _nodes(place: Path) -> None:
    (place / "file").write_bytes(b"x")
    (place / "directory").mkdir()
    (place / "link").symlink_to("file")
    os.mkfifo(place / "fifo")


@pytest.mark.parametrize("name", ["file", "directory"])
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 255, 1000, 2500])
def test_values_of_every_size(both: SideBySide, name: str, size: int) -> None:
    value = random.Random(size).randbytes(size)

    def story(place: Path) -> list[object]:
        _nodes(place)
        os.setxattr(place / name, "user.test", value)
        seen: list[object] = [os.getxattr(place / name, "user.test"), os.listxattr(place / name)]
        os.setxattr(place / name, "user.test", value[::-1], REPLACE)
        os.setxattr(place / name, "user.second", b"2", CREATE)
        seen += [os.getxattr(place / name, "user.test"), sorted(os.listxattr(place / name))]
        os.removexattr(place / name, "user.test")
        return [*seen, os.listxattr(place / name)]

    both.same(story)


def _short_buffer(path: Path) -> bytes:
    """getxattr(2) into a buffer that is too small."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(3)
    if libc.getxattr(os.fsencode(path), b"user.here", buffer, 3) < 0:
        raise OSError(ctypes.get_errno(), "getxattr")
    return buffer.raw


def _short_list(path: Path) -> bytes:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(3)
    if libc.listxattr(os.fsencode(path), buffer, 3) < 0:
        raise OSError(ctypes.get_errno(), "listxattr")
    return buffer.raw


def test_errors_are_those_of_the_plain_filesystem(both: SideBySide) -> None:
    both.same(_nodes)
    both.same(lambda place: os.setxattr(place / "file", "user.here", b"value"))
    operations: dict[str, Callable[[Path], object]] = {
        "get missing": lambda place: os.getxattr(place / "file", "user.missing"),
        "remove missing": lambda place: os.removexattr(place / "file", "user.missing"),
        "create existing": lambda place: os.setxattr(place / "file", "user.here", b"", CREATE),
        "replace missing": lambda place: os.setxattr(place / "file", "user.missing", b"", REPLACE),
        "short buffer": lambda place: _short_buffer(place / "file"),
        "short list": lambda place: _short_list(place / "file"),
        "no namespace": lambda place: os.setxattr(place / "file", "nonsense", b""),
        "unknown namespace": lambda place: os.setxattr(place / "file", "strange.x", b""),
        "too large": lambda place: os.setxattr(place / "file", "user.x", bytes(65537)),
        "on a symlink": lambda place: os.setxattr(place / "link", "user.x", b"1", follow_symlinks=False),
        "of a symlink": lambda place: os.listxattr(place / "link", follow_symlinks=False),
        "on a fifo": lambda place: os.setxattr(place / "fifo", "user.x", b"1"),
        "through a symlink": lambda place: os.setxattr(place / "link", "user.through", b"1"),
        "name too long": lambda place: os.setxattr(place / "file", "user." + "x" * 251, b""),
        "longest name": lambda place: os.setxattr(place / "file", "user." + "x" * 250, b"1"),
        "no name": lambda place: os.setxattr(place / "file", "", b"1"),
        "missing file": lambda place: os.listxattr(place / "missing"),
    }
    outcomes = {what: both.same(operation) for what, operation in operations.items()}
    assert outcomes["get missing"] == outcomes["remove missing"] == outcomes["replace missing"] == "ENODATA"
    assert (outcomes["create existing"], outcomes["short buffer"]) == ("EEXIST", "ERANGE")
    assert outcomes["unknown namespace"] == "ENOTSUP"  # the same number as EOPNOTSUPP
    both.same_trees()


@pytest.mark.parametrize("name", ["system.posix_acl_access", "system.posix_acl_default", "system.x", "strange.x"])
def test_namespaces_that_are_not_kept_are_refused(work: Path, name: str) -> None:
    (work / "file").touch()
    with pytest.raises(OSError) as refused:
        os.setxattr(work / "file", name, b"value")
    assert refused.value.errno in (errno.EOPNOTSUPP, errno.EINVAL)


def test_who_may(both: SideBySide) -> None:
    both.same(_nodes)
    both.same(lambda place: os.setxattr(place / "file", "user.here", b"value"))
    assert both.same(lambda place: os.getxattr(place / "file", "user.here"), ALICE) == b"value"
    assert both.same(lambda place: os.setxattr(place / "file", "user.x", b"value"), ALICE) == "EACCES"
    assert both.same(lambda place: os.removexattr(place / "file", "user.here"), ALICE) == "EACCES"
    both.same(lambda place: (place / "file").chmod(0o600))
    assert both.same(lambda place: os.getxattr(place / "file", "user.here"), ALICE) == "EACCES"


def test_they_belong_to_the_file_not_to_the_name(both: SideBySide) -> None:
    def story(place: Path) -> list[object]:
        (place / "a").write_bytes(b"a")
        (place / "d").mkdir()
        os.setxattr(place / "a", "user.who", b"a")
        os.setxattr(place / "d", "user.who", b"d")
        os.link(place / "a", place / "d" / "hard")
        os.rename(place / "a", place / "b")
        os.rename(place / "d", place / "e")
        (place / "a").write_bytes(b"new")
        return [
            os.listxattr(place / "a"),
            os.getxattr(place / "e" / "hard", "user.who"),
            os.getxattr(place / "e", "user.who"),
        ]

    both.same(story)
    both.same_trees()


def test_they_survive_every_way_to_empty_a_file(own_mount: RealMount) -> None:
    """Truncation to zero gives a file without attributes a new id; one with attributes must keep its own."""
    file = own_mount.path / "file"
    empties: list[Callable[[], object]] = [
        lambda: os.truncate(file, 0),
        lambda: os.close(os.open(file, os.O_WRONLY | os.O_TRUNC)),
        lambda: file.write_bytes(b""),
    ]
    for number, empty in enumerate(empties):
        file.write_bytes(b"content" * 1000)
        os.setxattr(file, f"user.{number}", b"kept")
        empty()
        assert file.stat().st_size == 0
        file.write_bytes(b"new content")
    own_mount.again()
    assert sorted(os.listxattr(file)) == ["user.0", "user.1", "user.2"]
    assert all(os.getxattr(file, f"user.{number}") == b"kept" for number in range(3))
    assert file.read_bytes() == b"new content"


def test_many_attributes_and_then_no_space(work: Path) -> None:
    """What the backing cannot hold is refused and harms nothing that is there."""

    file, failure, kept = work / "file", 0, 0
    file.touch()
    os.setxattr(file, "user.first", b"kept")
    try:
        for kept in range(2000):
            os.setxattr(file, f"user.{kept}", bytes(100))
    except OSError as error:
        failure = error.errno or -1
    assert os.getxattr(file, "user.first") == b"kept"
    if BACKING in ("", "ext4"):
        assert (failure, len(os.listxattr(file))) == (errno.ENOSPC, kept + 1)
    else:  # has room for all of them, though no list of them fits in the 64 KiB of listxattr(2)
        assert failure == 0
        assert os.getxattr(file, f"user.{kept}") == bytes(100)


def test_attributes_of_an_open_file_that_others_change(work: Path) -> None:
    fd = os.open(work / "file", os.O_RDWR | os.O_CREAT)
    try:
        in_child(lambda: os.setxattr(work / "file", "user.a", b"1"))
        assert os.getxattr(fd, "user.a") == b"1"
        os.unlink(work / "file")
        os.setxattr(fd, "user.a", b"2")
        assert in_child(lambda: os.getxattr(fd, "user.a")) == b"2"
    finally:
        os.close(fd)


def test_without_attributes_where_asked_for(new_mount: Callable[..., RealMount]) -> None:
    mounted = new_mount("noxattr")
    (mounted.path / "file").touch()
    for _ in range(2):
        with pytest.raises(OSError) as refused:
            os.setxattr(mounted.path / "file", "user.x", b"1")
        assert refused.value.errno == errno.EOPNOTSUPP
        with pytest.raises(OSError) as refused:
            os.listxattr(mounted.path / "file")
        assert refused.value.errno == errno.EOPNOTSUPP

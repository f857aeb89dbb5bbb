"""What the kernel keeps of names and attributes, and tells without asking: what of it is shut, and what is not."""

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from doors import outcome
from person import Person
from real_mount import NewMount, RealMount, Site

ANNA, BERT = 13201, 13202
OUTER, INNER = "outer", "inner"
SIZE_ALONE, EVERYTHING = 0x200, 0x7FF  # STATX_SIZE, STATX_BASIC_STATS
AT_FDCWD, AT_EMPTY_PATH, AT_STATX_DONT_SYNC = -100, 0x1000, 0x4000

_libc = ctypes.CDLL(None, use_errno=True)


def statx(where: Path | int, mask: int, flags: int = 0) -> int:
    """The size that statx(2) tells of a path or a descriptor."""
    found = ctypes.create_string_buffer(256)
    fd, path = (where, b"") if isinstance(where, int) else (AT_FDCWD, os.fsencode(where))
    if _libc.statx(fd, path, flags | (AT_EMPTY_PATH if isinstance(where, int) else 0), mask, found):
        raise OSError(ctypes.get_errno(), "statx")
    return int(struct.unpack_from("<Q", found, 40)[0])


def rule(name: str, who: str, *actions: str) -> str:
    listed = ", ".join(f'"{action}"' for action in actions)
    return f'[[rule]]\nid = "{name}"\neffect = "allow"\nwho = ["{who}"]\nactions = [{listed}]\n'


SetPolicy = Callable[..., None]


@pytest.fixture(scope="module")
def set_policy(site: Site) -> SetPolicy:
    for name in (OUTER, INNER):
        site.cmkfs("cmk", "create", name)

    def set_policy(cmk: str, *rules: str) -> None:
        file = site.top / "kept.toml"
        file.write_text("".join(rules))
        site.cmkfs("policy", "set", cmk, str(file))

    set_policy(OUTER, rule("all", "*", "*"))
    set_policy(INNER, rule("all", "*", "*"))
    return set_policy


@pytest.fixture
def nested(set_policy: SetPolicy, new_mount: NewMount) -> Iterator[RealMount]:
    """A mount of OUTER with a zone of INNER, and a file right in the root of each."""
    mounted = new_mount("allow_other", cmk=OUTER)
    mounted.expected_log = ["lockdown: "]
    mounted.site.cmkfs("zone", "create", str(mounted.path / "zone"), "--cmk", INNER)
    (mounted.path / "zone").chmod(0o777)
    mounted.path.chmod(0o777)
    for path in (mounted.path / "file", mounted.path / "zone" / "file"):
        path.write_bytes(b"seven b")
    (mounted.path / "link").symlink_to("file")
    yield mounted
    mounted.check()


@pytest.mark.parametrize("how", ["lock", "lock --now"])
def test_a_name_in_the_root_of_a_locked_zone_leads_nowhere(nested: RealMount, how: str) -> None:
    names = [nested.path / "file", nested.path / "zone" / "file", nested.path / "link"]
    for path in names:
        assert os.lstat(path).st_size  # the kernel has them now
    nested.ask("lock", now=how.endswith("now"))
    for path in names:
        for attempt in (
            lambda path=path: statx(path, SIZE_ALONE),
            lambda path=path: statx(path, EVERYTHING, AT_STATX_DONT_SYNC),
            lambda path=path: os.open(path, os.O_PATH | os.O_NOFOLLOW),
        ):
            assert outcome(attempt) == "ENOKEY", path
    nested.ask("unlock")
    assert [path.read_bytes() for path in names] == [b"seven b"] * 3


def test_a_name_in_the_root_of_a_zone_that_is_locked_alone(nested: RealMount) -> None:
    other = statx(nested.path / "file", SIZE_ALONE)
    assert statx(nested.path / "zone" / "file", SIZE_ALONE) == 7
    nested.ask("lock", cmk=INNER)
    before = nested.ask("status")["requests_by_kind"]["lookup"]
    assert statx(nested.path / "file", SIZE_ALONE) == other
    assert nested.ask("status")["requests_by_kind"]["lookup"] == before  # the other zone's names are kept
    assert outcome(lambda: statx(nested.path / "zone" / "file", SIZE_ALONE)) == "ENOKEY"
    assert outcome(lambda: os.open(nested.path / "zone" / "file", os.O_PATH)) == "ENOKEY"
    nested.ask("unlock")
    assert (nested.path / "zone" / "file").read_bytes() == b"seven b"


def test_the_size_of_an_open_file_is_out_of_reach(nested: RealMount) -> None:
    """Documented in docs/operations.md: Linux asks nobody for it, and nothing of the content comes with it."""
    fd = os.open(nested.path / "file", os.O_RDONLY)
    top = os.open(nested.path, os.O_RDONLY)
    (nested.path / "directory").mkdir()
    directory = os.open(nested.path / "directory", os.O_RDONLY)
    try:
        nested.ask("lock")
        assert os.lseek(fd, 0, os.SEEK_END) == 7
        assert statx(fd, SIZE_ALONE) == statx(fd, EVERYTHING, AT_STATX_DONT_SYNC) == 7
        os.close(os.open(nested.path / "directory", os.O_PATH))
        assert outcome(lambda: os.fstat(fd)) == outcome(lambda: statx(directory, SIZE_ALONE)) == "ENOKEY"
        assert outcome(lambda: os.pread(fd, 1, 0)) == outcome(lambda: os.listdir(directory)) == "ENOKEY"
        nested.ask("unlock")
        assert os.pread(fd, 7, 0) == b"seven b"
    finally:
        for number in (fd, top, directory):
            os.close(number)


def test_a_name_in_a_zone_is_kept_from_who_has_no_right_there(set_policy: SetPolicy, nested: RealMount) -> None:
    """Who may walk through the zone around it gets as far as its root, and no further."""
    file = nested.path / "zone" / "file"
    with Person(ANNA) as anna, Person(BERT) as bert:
        for who in (anna, bert):
            assert who.outcome("stat", file) == "ok"
        set_policy(INNER, rule("root", "uid:0", "*"), rule("anna", f"uid:{ANNA}", "list", "read"))
        for _ in range(2):
            assert anna.outcome("stat", file) == "ok"
            assert anna.outcome("stat", file.with_name("none")) == "ENOENT"
            for operation in ("stat", "lstat", "read"):
                assert bert.outcome(operation, file) == "EACCES", operation
            assert bert.outcome("stat", file.with_name("none")) == "EACCES"
            assert bert.outcome("stat", nested.path / "file") == "ok"
            assert bert.outcome("stat", file.parent) == "ok"
        set_policy(INNER, rule("all", "*", "*"))
        assert bert.outcome("stat", file) == "ok"


def test_who_may_rename_need_not_be_allowed_to_write(set_policy: SetPolicy, nested: RealMount) -> None:
    """The kernel hands over the times of a file whose name has changed, in the name of who changed it."""
    file, moved, linked = (nested.path / name for name in ("file", "moved", "linked"))
    os.chown(file, ANNA, ANNA)
    mtime = os.stat(file).st_mtime_ns
    set_policy(OUTER, rule("root", "uid:0", "*"), rule("anna", f"uid:{ANNA}", "list", "read", "create", "delete"))
    try:
        with Person(ANNA) as anna:
            anna.do("rename", file, moved)
            anna.do("link", moved, linked)
            anna.do("unlink", moved)
            anna.do("fsync", anna.do("open", linked, os.O_RDONLY))
            assert os.stat(linked).st_mtime_ns == mtime
            assert anna.outcome("utime", linked) == anna.outcome("chmod", linked, 0o600) == "EACCES"
        refused = nested.site.cmkfs("audit", "show", "--user", str(ANNA), "--outcome", "refused")
        assert [line.split()[2] for line in refused.splitlines()] == ["setattr", "setattr"]  # utime and chmod
    finally:
        set_policy(OUTER, rule("all", "*", "*"))

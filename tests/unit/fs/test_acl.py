"""ACLs against the rules of acl(5) and fs/posix_acl.c."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmkfs.fs.acl import Acl, Entry

NOBODY = 0xFFFFFFFF
RIGHTS = st.integers(0, 7)


@st.composite
def acls(draw: st.DrawFn) -> Acl:
    named = draw(st.lists(st.tuples(st.sampled_from([0x02, 0x08]), RIGHTS, st.integers(0, 70_000)), max_size=4))
    entries = [Entry(0x01, draw(RIGHTS), NOBODY), *(Entry(*fields) for fields in named)]
    entries.append(Entry(0x04, draw(RIGHTS), NOBODY))
    if named or draw(st.booleans()):
        entries.append(Entry(0x10, draw(RIGHTS), NOBODY))
    return Acl((*entries, Entry(0x20, draw(RIGHTS), NOBODY)))


@given(acls())
def test_bytes_come_back(acl: Acl) -> None:
    assert Acl.from_bytes(acl.to_bytes()) == acl


@given(acls(), st.integers(0, 0o777))
def test_chmod_makes_the_mode(acl: Acl, mode: int) -> None:
    changed = acl.with_mode(mode)
    assert changed.mode == mode
    kept = [entry for entry in acl.entries if entry.tag in (0x02, 0x08)]
    assert [entry for entry in changed.entries if entry.tag in (0x02, 0x08)] == kept


@given(acls(), st.integers(0, 0o777))
def test_what_is_inherited_is_never_more_than_both_allow(acl: Acl, mode: int) -> None:
    assert acl.masked(mode).mode == acl.mode & mode
    assert acl.masked(0o777) == acl


@given(acls())
def test_the_narrow_mode_gives_the_group_no_more_than_its_entry(acl: Acl) -> None:
    group = next(entry.rights for entry in acl.entries if entry.tag == 0x04)
    assert acl.narrow_mode >> 3 & 7 == acl.mode >> 3 & 7 & group
    assert acl.narrow_mode & 0o707 == acl.mode & 0o707


def _value(*entries: tuple[int, int, int], version: int = 2) -> bytes:
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


BASE = ((0x01, 6, NOBODY), (0x04, 4, NOBODY), (0x20, 0, NOBODY))


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (b"", errno.EINVAL),
        (_value(*BASE)[:-1], errno.EINVAL),
        (_value(*BASE, version=1), errno.EOPNOTSUPP),
        (_value(*BASE[:2]), errno.EINVAL),
        (_value(*BASE, BASE[0]), errno.EINVAL),
        (_value(*BASE, (0x02, 4, 5)), errno.EINVAL),
        (_value(*BASE[:2], (0x20, 8, NOBODY)), errno.EINVAL),
        (_value(*BASE, (0x40, 0, NOBODY)), errno.EINVAL),
    ],
)
def test_what_is_no_acl_is_refused(value: bytes, number: int) -> None:
    with pytest.raises(OSError) as refused:
        Acl.from_bytes(value)
    assert refused.value.errno == number


def test_a_worked_example() -> None:
    """u::rw- u:5:rwx g::r-- m::rw- o::---"""
    acl = Acl.from_bytes(_value(BASE[0], (0x02, 7, 5), BASE[1], (0x10, 6, NOBODY), BASE[2]))
    assert (acl.mode, acl.narrow_mode, acl.minimal) == (0o660, 0o640, False)
    assert Acl.from_bytes(_value(*BASE)).minimal

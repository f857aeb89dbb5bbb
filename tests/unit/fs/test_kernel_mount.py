"""The pure parts of mounting: mountinfo, and the words for fusermount3."""

from dataclasses import replace

import pytest

from cmkfs.fs.kernel_mount import MountEntry, MountRequest, _fusermount_options, parse_mountinfo, top_mount

MOUNTINFO = rb"""21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:39 / /mnt/a\040b\134c rw,nosuid,nodev - fuse.cmkfs /srv/x\040y,z rw,user_id=0
31 21 0:40 /sub /tmp rw master:1 propagate_from:2 - tmpfs tmpfs rw
32 31 0:41 / /tmp rw - fuse.cmkfs v rw
33 32 0:42 / /tmp rw - fuse v rw
"""


def test_mountinfo_is_unescaped() -> None:
    assert parse_mountinfo(MOUNTINFO)[1] == MountEntry(
        mount_id=30,
        parent_id=21,
        minor=39,
        mountpoint=rb"/mnt/a b\c",
        fstype=b"fuse.cmkfs",
        source=b"/srv/x y,z",
    )


def test_optional_fields_may_be_missing_or_many() -> None:
    assert [entry.fstype for entry in parse_mountinfo(MOUNTINFO)] == [
        b"ext4",
        b"fuse.cmkfs",
        b"tmpfs",
        b"fuse.cmkfs",
        b"fuse",
    ]


@pytest.mark.parametrize("backwards", [False, True])
def test_the_top_of_a_stack_is_what_nothing_covers(backwards: bool) -> None:
    entries = parse_mountinfo(MOUNTINFO)
    top = top_mount(entries[::-1] if backwards else entries, b"/tmp")
    assert top is not None
    assert top.mount_id == 33


def test_nothing_mounted_there_is_none() -> None:
    assert top_mount(parse_mountinfo(MOUNTINFO), b"/mnt") is None


def test_a_mount_that_was_moved_is_the_same() -> None:
    entry = parse_mountinfo(MOUNTINFO)[1]
    assert entry.is_mount(replace(entry, mountpoint=b"/elsewhere", parent_id=1))


@pytest.mark.parametrize("change", [{"mount_id": 99}, {"minor": 99}, {"source": b"/another/vault"}])
def test_a_mount_that_has_only_some_of_the_same_numbers_is_another(change: dict[str, int | bytes]) -> None:
    """The kernel gives the numbers of what was unmounted to whatever is mounted next."""
    entry = parse_mountinfo(MOUNTINFO)[1]
    assert not entry.is_mount(replace(entry, **change))  # type: ignore[arg-type]


def test_the_source_keeps_its_commas_and_backslashes() -> None:
    request = MountRequest("/srv/ä,b\\c d".encode(), default_permissions=False)
    assert _fusermount_options(request) == "subtype=cmkfs,fsname=/srv/ä\\,b\\\\c d".encode()


def test_all_options_are_passed() -> None:
    request = MountRequest(b"v", read_only=True, allow_other=True, noexec=True, max_read=8192)
    assert _fusermount_options(request) == (
        b"default_permissions,allow_other,max_read=8192,ro,noexec,subtype=cmkfs,fsname=v"
    )


@pytest.mark.parametrize("source", [b"", b"a\0b"])
def test_a_source_is_not_empty_and_has_no_nul(source: bytes) -> None:
    with pytest.raises(ValueError, match="not a source"):
        MountRequest(source)


def test_max_read_is_not_negative() -> None:
    with pytest.raises(ValueError, match="max_read"):
        MountRequest(b"v", max_read=-1)

"""Symlink targets: docs/format.md, section 7."""

import os
from pathlib import Path

import pytest
from model.harness import ROOT, Harness

from cmkfs.errors import Damaged
from cmkfs.fs.symlinks import Symlinks


def links(harness: Harness) -> Symlinks:
    return Symlinks(harness.backing.root_fd)


def parts(harness: Harness) -> list[Path]:
    return sorted((harness.vault / "cmkfs.links").iterdir())


@pytest.mark.parametrize(("length", "count"), [(1, 0), (718, 0), (719, 2), (1468, 2), (1469, 3), (4095, 6)])
async def test_every_length_comes_back(mounted: Harness, length: int, count: int) -> None:
    target = b"t" * length
    ino = await mounted.program.symlink(ROOT, b"link", target)
    assert len(parts(mounted)) == count
    assert await mounted.program.readlink(ino) == target
    assert (await mounted.program.stat(ino)).st_size == length
    await mounted.unmount()
    await mounted.mount()
    entry = await mounted.program.lookup(ROOT, b"link")
    assert entry.st_size == length
    assert await mounted.program.readlink(entry.st_ino) == target


async def test_what_lies_in_the_vault_is_as_specified(mounted: Harness) -> None:
    sealed = links(mounted).seal(mounted.zone, b"t" * 719)
    empty, link_id, count, length = sealed.split(b".")
    assert (empty, count, length) == (b"", b"2", b"719")
    assert len(link_id) == 22
    assert len(sealed) < 44
    names = [path.name for path in parts(mounted)]
    assert names == [f"{link_id.decode()}.0", f"{link_id.decode()}.1"]
    assert [len(os.readlink(path)) for path in parts(mounted)] == [1000, 2]
    assert 44 <= len(links(mounted).seal(mounted.zone, b"t")) <= 1000


async def test_parts_go_with_the_last_link(mounted: Harness) -> None:
    ino = await mounted.program.symlink(ROOT, b"one", b"t" * 3000)
    await mounted.program.link(ino, ROOT, b"two")
    await mounted.program.unlink(ROOT, b"one")
    assert parts(mounted)
    await mounted.program.save(ROOT, b"three", b"")
    await mounted.program.rename(ROOT, b"three", ROOT, b"two")
    await mounted.program.forget_all()
    assert parts(mounted) == []


async def test_a_refused_name_leaves_no_parts(mounted: Harness) -> None:
    await mounted.program.save(ROOT, b"taken", b"")
    with pytest.raises(FileExistsError):
        await mounted.program.symlink(ROOT, b"taken", b"t" * 3000)
    assert parts(mounted) == []


@pytest.mark.parametrize("change", ["missing", "exchanged", "edited", "cut", "moved bytes"])
async def test_parts_that_are_not_as_they_were_are_damage(mounted: Harness, change: str) -> None:
    ino = await mounted.program.symlink(ROOT, b"link", b"t" * 3000)
    first, second = parts(mounted)[:2]
    one, two = os.readlink(first), os.readlink(second)
    first.unlink()
    second.unlink()
    if change == "exchanged":
        one, two = two, one
    elif change == "edited":
        two = two[:-1] + ("A" if two[-1] != "A" else "B")
    elif change == "cut":
        two = two[:-4]
    elif change == "moved bytes":
        one, two = one[:-4], one[-4:] + two
    if change != "missing":
        first.symlink_to(one)
        second.symlink_to(two)
    with pytest.raises(OSError, match="Input/output"):
        await mounted.program.readlink(ino)


@pytest.mark.parametrize(
    "edit",
    [
        lambda fields: [*fields[:2], b"0", fields[3]],
        lambda fields: [*fields[:2], b"9", fields[3]],
        lambda fields: [*fields[:3], b"2999"],
        lambda fields: [*fields[:3], b"0"],
        lambda fields: [*fields[:3], b"4096"],
        lambda fields: [*fields[:3], b"-1"],
        lambda fields: [*fields[:3], "٣".encode()],
        lambda fields: [fields[0], fields[1][:-1], *fields[2:]],
        lambda fields: [fields[0], b"../../../etc/pass", *fields[2:]],
        lambda fields: fields[:3],
        lambda fields: [*fields, b""],
    ],
)
async def test_a_reference_that_is_edited_is_damage(mounted: Harness, edit: object) -> None:
    sealed = links(mounted).seal(mounted.zone, b"t" * 3000)
    assert callable(edit)
    edited = b".".join(edit(sealed.split(b".")))
    with pytest.raises(Damaged):
        links(mounted).open(mounted.zone, edited)


async def test_a_short_target_that_is_edited_is_damage(mounted: Harness) -> None:
    sealed = links(mounted).seal(mounted.zone, b"target")
    another = (b"B" if sealed.startswith(b"A") else b"A") + sealed[1:]
    for edited in (sealed[:-1], sealed + b"A", another, b"", b"target"):
        with pytest.raises(Damaged):
            links(mounted).open(mounted.zone, edited)

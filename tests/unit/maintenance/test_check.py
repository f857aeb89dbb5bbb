"""`check` on vaults that are whole, crashed, locked and damaged: what it calls damage, and what it does not."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import trio
from model.checking import check, files, repair, session
from model.harness import ROOT, Harness, Program

from cmkfs.format.layout import BLOCK, PAGE
from cmkfs.maintenance import content
from cmkfs.maintenance.readers import Readers


async def some(program: Program) -> None:
    await program.save(ROOT, b"one", b"1" * 3 * BLOCK)
    below = await program.mkdir(ROOT, b"below")
    await program.save(below, b"n" * 200, b"2")
    await program.symlink(below, b"link", b"t" * 3000)
    await program.mknod(below, b"fifo", 0o10644)


def changes(top: Path) -> dict[str, int]:
    """When each entry was changed last (ctime, ns)."""
    return {
        os.path.join(at, name): os.lstat(os.path.join(at, name)).st_ctime_ns
        for at, below, names in os.walk(top)
        for name in (*below, *names)
    }


def test_a_new_vault_is_clean(harness: Harness, readers: Readers) -> None:
    report = check(harness, readers)
    assert (report.directories, report.files, report.damage, report.notes) == (1, 0, [], [])


def test_it_counts_what_it_saw(harness: Harness, readers: Readers) -> None:
    session(harness, some)
    report = check(harness, readers)
    assert (report.directories, report.files, report.symlinks, report.others, report.blocks) == (2, 2, 1, 1, 4)
    assert (report.damage, report.notes, report.unsettled, report.recovery_pending) == ([], [], 0, False)


def test_attributes_that_no_list_holds_are_told_of(
    harness: Harness, readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On xfs and btrfs a file can have more than listxattr(2) gives: nobody can say that they are whole."""
    session(harness, some)

    def too_many(*_: object) -> list[str]:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))

    monkeypatch.setattr(os, "listxattr", too_many)
    report = check(harness, readers)
    assert report.damage == []
    assert {"not looked at" in note.what for note in report.notes} == {True}


def test_it_changes_nothing(harness: Harness, readers: Readers) -> None:
    session(harness, some)
    before = changes(harness.vault)
    check(harness, readers)
    assert changes(harness.vault) == before


def test_a_killed_mount_is_no_damage_before_and_after_recovery(harness: Harness, readers: Readers) -> None:
    async def killed() -> None:
        await harness.mount()
        await some(harness.program)
        fh = await harness.program.create(ROOT, b"open")
        await harness.program.write(fh, 7 * BLOCK, b"x" * 5000)
        harness.kill()

    trio.run(killed)
    newest = max(files(harness.vault), key=lambda path: path.stat().st_mtime_ns)
    os.truncate(newest, 0)  # as after a power cut: its header never reached the disk
    (harness.vault / "cmkfs.tmp.x").mkdir()
    report = check(harness, readers)
    assert (report.recovery_pending, report.damage, report.notes) == (True, [], [])
    assert report.unsettled == 3
    session(harness)
    report = check(harness, readers)
    assert (report.recovery_pending, report.damage, report.notes, report.unsettled) == (False, [], [], 0)


def test_repair_of_a_killed_mount_recovers_it(harness: Harness, readers: Readers) -> None:
    async def killed() -> None:
        await harness.mount()
        await some(harness.program)
        harness.kill()

    trio.run(killed)
    report, actions = repair(harness, readers)
    assert (report.recovery_pending, report.damage, report.notes, report.unsettled) == (False, [], [], 0)
    assert [action.done for action in actions] == [
        "recovered the last session: 2 files settled, 0 leftovers of it removed"
    ]


def test_truncated_while_a_session_is_open_is_damage_all_the_same(harness: Harness, readers: Readers) -> None:
    async def killed() -> None:
        await harness.mount()
        await some(harness.program)
        await harness.mounted.settler.settle_all()
        harness.kill()

    trio.run(killed)
    os.truncate(max(files(harness.vault), key=lambda path: path.stat().st_size), 2 * PAGE)
    assert [finding.line for finding in check(harness, readers).damage] == ["/one: the file was truncated"]


def test_without_keys_the_structure_is_checked(harness: Harness, readers: Readers) -> None:
    session(harness, some)
    report = check(harness, readers, keys=False)
    assert (report.locked, report.damage, report.directories, report.files) == (["no token"], [], 2, 2)
    damaged = files(harness.vault)[0]
    os.truncate(damaged, PAGE)
    (harness.vault / "foreign").write_text("x")
    assert sorted(finding.what for finding in check(harness, readers, keys=False).damage) == [
        "not canonical base64url",
        "the file was truncated",
    ]


def test_a_file_with_several_parts(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "CHUNK", 2)
    monkeypatch.setattr("cmkfs.maintenance.survey.CHUNK", 2)

    async def save(program: Program) -> None:
        await program.save(ROOT, b"file", b"x" * 9 * BLOCK)

    session(harness, save)
    (path,) = files(harness.vault)
    with path.open("r+b") as file:
        for block in (3, 4, 8):
            file.seek(PAGE * (1 + block) + 100)
            file.write(b"?")
    with Readers() as parts:
        report = check(harness, parts)
    assert report.blocks == 9
    assert sorted(finding.what for finding in report.damage) == [
        "block 3 does not authenticate",
        "block 4 does not authenticate",
        "block 8 does not authenticate",
    ]


def test_a_hole_of_a_tebibyte_costs_nothing(harness: Harness, readers: Readers) -> None:
    async def save(program: Program) -> None:
        fh = await program.create(ROOT, b"file")
        await program.write(fh, 2**40, b"end")
        await program.close(fh)

    session(harness, save)
    report = check(harness, readers)
    assert (report.damage, report.blocks) == ([], 1)


def test_headers_that_a_copy_caught_open_are_adopted(harness: Harness, readers: Readers) -> None:
    """rsync sees equal size and time, and keeps the header from before the file was settled."""

    async def copied() -> None:
        await harness.mount()
        await harness.program.save(ROOT, b"one", b"1" * 3 * BLOCK)
        await harness.program.save(ROOT, b"two", b"2")
        shutil.copytree(harness.vault, harness.vault.parent / "copy", symlinks=True)
        await harness.mounted.settler.settle_all()
        await harness.unmount()

    trio.run(copied)
    for path in files(harness.vault):
        path.write_bytes((harness.vault.parent / "copy" / path.relative_to(harness.vault)).read_bytes())
    report = check(harness, readers)
    assert (report.damage, report.unsettled, len(report.notes)) == ([], 2, 2)
    report, actions = repair(harness, readers)
    assert (report.damage, report.unsettled, report.notes, len(actions)) == ([], 0, [], 2)


def test_leftovers_are_notes_and_are_put_away(harness: Harness, readers: Readers) -> None:
    session(harness, some)
    (harness.vault / "cmkfs.gone.x").mkdir()
    (harness.vault / "cmkfs.long.x").symlink_to("y")
    (harness.vault / "cmkfs.links/part").symlink_to("z")
    (harness.vault / "cmkfs.future").write_text("?")
    report = check(harness, readers)
    assert (report.damage, len(report.notes)) == ([], 4)
    report, _ = repair(harness, readers)
    assert (report.damage, report.notes, report.put_away) == ([], [], 4)

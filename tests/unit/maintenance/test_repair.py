"""`--repair`: what is saved, under which name, and where the rest lies then."""

import json
import os
import shutil
from pathlib import Path

import trio
from model.checking import check, files, repair, session
from model.harness import ROOT, Harness, Program

from cmkfs.format.layout import BLOCK, PAGE
from cmkfs.maintenance.readers import Readers

CONTENT = b"".join(bytes([65 + block]) * BLOCK for block in range(4)) + b"end"


async def one_file(program: Program) -> None:
    ino = await program.save(ROOT, b"file", CONTENT)
    await program.set_xattr(ino, b"user.kept", b"value")


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def listing(harness: Harness) -> dict[bytes, bytes]:
    """The regular files of the root as a mount serves them."""
    found: dict[bytes, bytes] = {}

    async def read() -> None:
        await harness.mount()
        for name, entry in (await harness.program.entries(ROOT)).items():
            if entry.st_mode & 0o170000 == 0o100000:
                found[name] = await harness.program.content(entry.st_ino)
        await harness.unmount()

    trio.run(read)
    return found


def test_readable_blocks_are_saved_beside_and_the_damaged_file_is_kept(harness: Harness, readers: Readers) -> None:
    session(harness, one_file)
    (path,) = files(harness.vault)
    path.chmod(0o640)
    overwrite(path, 2 * PAGE + 50, b"??")
    damaged = path.read_bytes()
    (finding,) = check(harness, readers).damage
    assert finding.line == "/file: block 1 does not authenticate"
    report, (action,) = repair(harness, readers)
    assert report.damage == []
    assert action.line == (
        "/file: block 1 does not authenticate: all but 1 of 5 blocks saved in file.rescued, the old one is cmkfs.lost/1"
    )
    assert listing(harness) == {b"file.rescued": CONTENT[:BLOCK] + bytes(BLOCK) + CONTENT[2 * BLOCK :]}
    (rescued,) = files(harness.vault)
    assert rescued.stat().st_mode & 0o7777 == 0o640
    assert (harness.vault / "cmkfs.lost/1").read_bytes() == damaged
    (line,) = (harness.vault / "cmkfs.lost/log").read_text().splitlines()
    assert json.loads(line).items() >= {"number": 1, "was": path.name, "why": "block 1 does not authenticate"}.items()


def test_attributes_go_with_what_is_saved(harness: Harness, readers: Readers) -> None:
    session(harness, one_file)
    (path,) = files(harness.vault)
    overwrite(path, PAGE, bytes(PAGE))
    repair(harness, readers)

    async def read() -> None:
        await harness.mount()
        ino = await harness.program.walk(b"file.rescued")
        assert await harness.program.get_xattr(ino, b"user.kept") == b"value"
        await harness.unmount()

    trio.run(read)


def test_a_whole_file_keeps_its_name(harness: Harness, readers: Readers) -> None:
    """Its length in the vault was changed; header and blocks prove all that it was."""
    session(harness, one_file)
    (path,) = files(harness.vault)
    os.truncate(path, path.stat().st_size + 3 * PAGE)
    report, (action,) = repair(harness, readers)
    assert report.damage == []
    assert "whole saved in file, the old one is cmkfs.lost/1" in action.line
    assert listing(harness) == {b"file": CONTENT}


def test_without_any_slot_the_blocks_are_saved(harness: Harness, readers: Readers) -> None:
    session(harness, one_file)
    (path,) = files(harness.vault)
    overwrite(path, 3072, bytes(1024))
    report, _ = repair(harness, readers)
    assert report.damage == []
    assert listing(harness) == {b"file.rescued": CONTENT}


def test_one_damaged_slot_is_written_anew(harness: Harness, readers: Readers) -> None:
    session(harness, one_file)
    (path,) = files(harness.vault)
    overwrite(path, 3584, b"?")
    assert len(check(harness, readers).damage) == 1
    report, (action,) = repair(harness, readers)
    assert (report.damage, action.line.endswith(f"settled at {len(CONTENT)} bytes")) == ([], True)
    assert listing(harness) == {b"file": CONTENT}


def test_a_file_without_identity_is_put_away(harness: Harness, readers: Readers) -> None:
    session(harness, one_file)
    (path,) = files(harness.vault)
    overwrite(path, 20, b"??")
    report, _ = repair(harness, readers)
    assert (report.damage, report.put_away) == ([], 1)
    assert listing(harness) == {}


def test_both_copies_of_a_file_are_kept(harness: Harness, readers: Readers) -> None:
    async def two(program: Program) -> None:
        await one_file(program)
        await program.save(ROOT, b"other", b"x")

    session(harness, two)
    large, small = sorted(files(harness.vault), key=lambda path: -path.stat().st_size)
    shutil.copyfile(large, small)
    report, _ = repair(harness, readers)
    assert report.damage == []
    assert listing(harness) == {b"file": CONTENT, b"other": CONTENT}


def test_all_links_of_a_damaged_file_lead_to_what_was_saved(harness: Harness, readers: Readers) -> None:
    async def linked(program: Program) -> None:
        await one_file(program)
        await program.link(await program.walk(b"file"), ROOT, b"again")

    session(harness, linked)
    overwrite(files(harness.vault)[0], PAGE, bytes(PAGE))
    report, (action,) = repair(harness, readers)
    assert (report.damage, report.put_away) == ([], 2)
    assert set(listing(harness)) == {b"file.rescued", b"again.rescued"}
    assert len({path.stat().st_ino for path in files(harness.vault)}) == 1
    assert "again.rescued" in action.line


def test_names_that_cannot_be_read_are_called_lost_found(harness: Harness, readers: Readers) -> None:
    async def long(program: Program) -> None:
        await one_file(program)
        await program.save(ROOT, b"n" * 200, b"long")

    session(harness, long)
    next(harness.vault.glob("cmkfs.long.*")).unlink()
    report, _ = repair(harness, readers)
    assert report.damage == []
    assert listing(harness) == {b"file": CONTENT, b"lost+found.1": b"long"}


async def a_tree(program: Program) -> None:
    top = await program.mkdir(ROOT, b"top")
    below = await program.mkdir(top, b"below")
    await program.save(below, b"file", b"deep")
    await program.save(top, b"l" * 200, b"long")
    await program.set_xattr(top, b"user.kept", b"value")


def walked(harness: Harness, *names: bytes) -> bytes:
    async def read() -> bytes:
        await harness.mount()
        content = await harness.program.content(await harness.program.walk(*names))
        await harness.unmount()
        return content

    return trio.run(read)


def test_the_vaults_root_gets_its_own_id_again(harness: Harness, readers: Readers) -> None:
    session(harness, a_tree)
    (harness.vault / "cmkfs.dir").unlink()
    report, _ = repair(harness, readers)
    assert report.damage == []
    assert walked(harness, b"top", b"below", b"file") == b"deep"


def test_a_directory_without_its_id_loses_names_only(harness: Harness, readers: Readers) -> None:
    session(harness, a_tree)
    (top,) = (path for path in harness.vault.iterdir() if path.is_dir() and path.name != "cmkfs.links")
    (top / "cmkfs.dir").unlink()
    report, _ = repair(harness, readers)
    assert (report.damage, report.notes) == ([], [])
    contents = set()
    for name in (b"lost+found.1", b"lost+found.2"):
        try:
            contents.add(walked(harness, b"top", name))
        except OSError:
            harness._let_go()
            contents.add(walked(harness, b"top", name, b"file"))
    assert contents == {b"deep", b"long"}


def test_a_copied_directory_keeps_its_names(harness: Harness, readers: Readers) -> None:
    async def tree(program: Program) -> None:
        await a_tree(program)
        await program.mkdir(ROOT, b"copy")

    session(harness, tree)
    tops = sorted(
        (path for path in harness.vault.iterdir() if path.is_dir() and path.name != "cmkfs.links"),
        key=lambda path: -len(list(path.iterdir())),
    )
    shutil.rmtree(tops[1])
    shutil.copytree(tops[0], tops[1], symlinks=True)
    report, _ = repair(harness, readers)
    assert (report.damage, report.notes) == ([], [])
    for top in (b"top", b"copy"):
        assert walked(harness, top, b"below", b"file") == b"deep"
        assert walked(harness, top, b"l" * 200) == b"long"


def test_the_vaults_records_are_written_anew(harness: Harness, readers: Readers) -> None:
    session(harness, one_file)
    for name in ("cmkfs.session", "cmkfs.zones"):
        (harness.vault / name).write_bytes(b"?" * 1024)
    (harness.vault / "cmkfs.links").rmdir()
    (harness.vault / "cmkfs.owner").unlink(missing_ok=True)
    (harness.vault / "cmkfs.owner").mkdir()
    report, _ = repair(harness, readers)
    assert (report.damage, report.put_away) == ([], 3)
    assert listing(harness) == {b"file": CONTENT}


def test_the_vault_file_and_the_zone_record_have_a_spare(harness: Harness, readers: Readers) -> None:
    session(harness, one_file)
    for lost in (("cmkfs.vault",), ("cmkfs.zone",), ("cmkfs.vault", "cmkfs.zone")):
        for name in lost:
            (harness.vault / name).unlink()
        report, actions = repair(harness, readers)
        assert (report.damage, report.notes, len(actions)) == ([], [], len(lost))
    (harness.vault / "cmkfs.vault").chmod(0o600)
    os.truncate(harness.vault / "cmkfs.vault", 20)
    report, actions = repair(harness, readers)
    assert (report.damage, report.put_away, len(actions)) == ([], 1, 1)
    assert listing(harness) == {b"file": CONTENT}


def test_a_spare_that_is_lost_or_of_another_vault_is_written_anew(harness: Harness, readers: Readers) -> None:
    session(harness, one_file)
    spare = harness.vault / "cmkfs.spare"
    good = spare.read_bytes()
    for bad in (b"", b"{}", b"[1]", good.replace(b"vault_id", b"vault_ix"), b"[" * 60_000):
        spare.write_bytes(bad)
        (note,) = check(harness, readers).notes
        assert note.line == "/cmkfs.spare: no copy of what the vault cannot be opened without"
        report, _ = repair(harness, readers)
        assert (report.damage, report.notes) == ([], [])
        assert spare.read_bytes() == good

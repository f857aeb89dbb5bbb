"""The vault's own records on disk: docs/format.md, sections 2, 3, 5 and 9."""

import os
from pathlib import Path

import pytest
from model.harness import Harness

from cmkfs.errors import Damaged, NotAVault, UnknownFormat
from cmkfs.format.vault import Session, SessionState
from cmkfs.fs.vaultdir import VaultDir, read_vault_file, read_zone_record

SLOT = 512


async def vaultdir(harness: Harness) -> VaultDir:
    """Of a vault that was mounted once: both slots were written."""
    await harness.mount()
    return VaultDir(harness.backing, harness.keyring.vault, harness.zone.keys.session)


def record(harness: Harness) -> Path:
    return harness.vault / "cmkfs.session"


def damage(harness: Harness, number: int) -> None:
    data = bytearray(record(harness).read_bytes())
    data[number * SLOT + 20] ^= 1
    record(harness).write_bytes(data)


async def test_a_new_vault_is_closed_and_a_mount_opens_it(harness: Harness) -> None:
    found = await vaultdir(harness)
    session = found.session()
    assert session.state is SessionState.OPEN
    assert session.sequence == 3
    await harness.unmount()
    await harness.mount()
    assert harness.mounted.recovered is None


async def test_sessions_are_written_alternately_and_durably(harness: Harness) -> None:
    found = await vaultdir(harness)
    found.session()
    before = record(harness).read_bytes()
    for number in range(4, 8):
        syncs = harness.backing.fsyncs
        await found.write_session(Session(number, SessionState.CLOSED, b"i" * 16, 5))
        assert harness.backing.fsyncs == syncs + 1
        now = record(harness).read_bytes()
        changed = [at for at in (0, 1) if now[at * SLOT : (at + 1) * SLOT] != before[at * SLOT : (at + 1) * SLOT]]
        assert changed == [(number + 1) % 2]
        before = now
        assert found.session() == Session(number, SessionState.CLOSED, b"i" * 16, 5)


async def test_a_damaged_newer_slot_counts_as_open_with_the_older_ones_time(harness: Harness) -> None:
    found = await vaultdir(harness)
    found.session()
    await found.write_session(Session(4, SessionState.CLOSED, b"i" * 16, 44))
    await found.write_session(Session(5, SessionState.OPEN, b"j" * 16, 55))
    damage(harness, 0)
    assert found.session() == Session(4, SessionState.OPEN, b"i" * 16, 44)
    await found.write_session(Session(6, SessionState.CLOSED, b"k" * 16, 66))
    assert found.session().sequence == 6  # over the damaged one


async def test_a_damaged_older_slot_counts_as_open_too(harness: Harness) -> None:
    found = await vaultdir(harness)
    found.session()
    await found.write_session(Session(4, SessionState.CLOSED, b"i" * 16, 44))
    damage(harness, 0)
    assert found.session() == Session(4, SessionState.OPEN, b"i" * 16, 44)


async def test_both_damaged_is_damage(harness: Harness) -> None:
    found = await vaultdir(harness)
    damage(harness, 0)
    damage(harness, 1)
    with pytest.raises(Damaged):
        found.session()


async def test_two_of_one_sequence_are_damage(harness: Harness) -> None:
    found = await vaultdir(harness)
    seal, vault_hash = harness.zone.keys.session, harness.keyring.vault.vault_hash
    slots = [seal.seal(vault_hash, number, Session(9, SessionState.CLOSED, b"i" * 16, 0)) for number in (0, 1)]
    record(harness).write_bytes(b"".join(slots))
    with pytest.raises(Damaged):
        found.session()


@pytest.mark.parametrize("length", [0, SLOT, 2 * SLOT - 1, 2 * SLOT + 1])
async def test_another_length_is_damage(harness: Harness, length: int) -> None:
    found = await vaultdir(harness)
    record(harness).write_bytes(record(harness).read_bytes().ljust(length, b"\0")[:length])
    with pytest.raises(Damaged):
        found.session()


@pytest.mark.parametrize("name", ["cmkfs.session", "cmkfs.zones"])
@pytest.mark.parametrize("kind", ["missing", "fifo", "directory", "link"])
async def test_a_record_that_is_no_file_is_damage_and_holds_up_nobody(harness: Harness, name: str, kind: str) -> None:
    path = harness.vault / name
    data = path.read_bytes()
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        (harness.vault.parent / "elsewhere").write_bytes(data)
        path.symlink_to(harness.vault.parent / "elsewhere")
    with pytest.raises(Damaged):
        await harness.mount()


async def test_an_edited_list_of_zones_is_damage(harness: Harness) -> None:
    path = harness.vault / "cmkfs.zones"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Damaged):
        await harness.mount()
    path.write_bytes(b"")
    with pytest.raises(Damaged):
        await harness.mount()


def test_a_directory_without_a_vault_file_is_no_vault(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(NotAVault, match=str(path)):
            read_vault_file(path)
    (tmp_path / "cmkfs.vault").write_text("something else")
    with pytest.raises(NotAVault):
        read_vault_file(tmp_path)
    (tmp_path / "cmkfs.vault").write_text('{"cmkfs":"vault","format":2,"features":[]}')
    with pytest.raises(UnknownFormat):
        read_vault_file(tmp_path)


def test_a_vault_file_that_is_a_fifo_holds_up_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cmkfs.vault")
    with pytest.raises(Damaged):
        read_vault_file(tmp_path)


def test_a_zone_record_that_is_missing_or_garbage_is_damage(harness: Harness) -> None:
    fd = os.open(harness.vault, os.O_RDONLY)
    assert read_zone_record(fd).recipient.version.cmk_id == harness.cmk.cmk_id
    (harness.vault / "cmkfs.zone").unlink()
    with pytest.raises(Damaged):
        read_zone_record(fd)
    (harness.vault / "cmkfs.zone").symlink_to("not base64!")
    with pytest.raises(Damaged):
        read_zone_record(fd)
    os.close(fd)


async def test_backing_now_is_the_ctime_that_a_change_gets(harness: Harness) -> None:
    found = await vaultdir(harness)
    before = found.backing_now_ns()
    (harness.vault / "later").touch()
    assert before <= (harness.vault / "later").stat().st_ctime_ns <= found.backing_now_ns()

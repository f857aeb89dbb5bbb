"""`check` and `--repair` on a vault of two zones, each under a CMK of its own."""

import os
from pathlib import Path

import pytest
import trio
from model.checking import check, repair, session
from model.harness import ROOT, Harness, Program

from cmkfs.crypto.kdf import commitment
from cmkfs.crypto.zonekeys import ZoneKeys
from cmkfs.format import b64
from cmkfs.format.layout import BLOCK
from cmkfs.format.recipient import Recipient, WrapContext, WrapKind
from cmkfs.format.vault import ZoneRecord, ZoneRoot
from cmkfs.fs.vaultdir import read_vault_file
from cmkfs.maintenance.readers import Readers


async def some(program: Program) -> None:
    await program.save(ROOT, b"file", b"f" * BLOCK)
    await program.mkdir(ROOT, b"secret")


@pytest.fixture
def zone(harness: Harness) -> Path:
    """The directory `secret` of a vault that also has `file`, made a zone by hand; gives its place."""
    session(harness, some)
    (top,) = (path for path in harness.vault.iterdir() if path.is_dir() and path.name != "cmkfs.links")
    vault, zone_id, dir_id, secret = read_vault_file(harness.vault), os.urandom(16), os.urandom(16), os.urandom(32)
    with harness.token.open() as admin:
        cmk = admin.create("secret", "aes-256")
        version = admin.newest(cmk.cmk_id)
        context = WrapContext(WrapKind.ZONE, vault.vault_hash, zone_id, zone_id, commitment(secret))
        recipient = Recipient(version, admin.wrap(version, secret, context=context.to_bytes(version)))
    keys = ZoneKeys(zone_id, secret, commitment(secret))

    async def describe() -> bytes:
        await harness.mount()
        directories = harness.mounted._directories
        parent_id = directories.of(harness.mounted.inodes.root).dir_id
        root = ZoneRoot(zone_id, parent_id, dir_id, b"secret")
        record = ZoneRecord(zone_id, commitment(secret), recipient, keys.seal_zone_root(vault.vault_hash, root))
        (top / "cmkfs.dir").unlink()
        (top / "cmkfs.dir").symlink_to(os.fsdecode(keys.seal_dir_id(dir_id)))
        (top / "cmkfs.zone").symlink_to(os.fsdecode(b64.encode(record.to_bytes())))
        root_keys = next(iter(harness.keyring.zones.values())).keys
        await harness.unmount()
        return root_keys.seal_zone_list(vault.vault_hash, (root,))

    (harness.vault / "cmkfs.zones").write_bytes(trio.run(describe))
    below = top / os.fsdecode(keys.seal_name(dir_id, b"below"))
    below.mkdir()
    (below / "cmkfs.dir").symlink_to(os.fsdecode(keys.seal_dir_id(os.urandom(16))))
    return top


def test_both_zones_are_read(harness: Harness, zone: Path, readers: Readers) -> None:
    report = check(harness, readers)
    assert (report.damage, report.notes, report.locked, report.directories) == ([], [], [], 3)


def test_a_zone_whose_cmk_is_disabled_is_looked_at_without_keys(harness: Harness, zone: Path, readers: Readers) -> None:
    with harness.token.open() as admin:
        admin.set_enabled(admin.find("secret").cmk_id, False)
    report = check(harness, readers)
    assert (report.damage, report.locked, report.directories) == ([], ["CMK secret is disabled"], 3)


def test_a_file_of_another_zone_goes_home(harness: Harness, zone: Path, readers: Readers) -> None:
    (file,) = (path for path in harness.vault.iterdir() if path.is_file() and path.name[:6] != "cmkfs.")
    file.rename(zone / file.name)
    assert "/secret/" in check(harness, readers).damage[0].line
    report, actions = repair(harness, readers)
    assert (report.damage, report.notes) == ([], [])
    assert [action.done for action in actions] == [
        "a file whose header belongs to another zone: moved to the root of its zone as lost+found.1"
    ]


def test_a_lost_list_is_made_from_the_zones_records(harness: Harness, zone: Path, readers: Readers) -> None:
    (harness.vault / "cmkfs.zones").unlink()
    report, _ = repair(harness, readers)
    assert (report.damage, report.notes, report.directories) == ([], [], 3)


def test_the_root_of_a_zone_gets_its_own_id_again(harness: Harness, zone: Path, readers: Readers) -> None:
    (zone / "cmkfs.dir").unlink()
    report, actions = repair(harness, readers)
    assert (report.damage, report.notes, report.directories) == ([], [], 3)
    assert "its own id restored" in actions[0].line


def test_a_directory_in_the_place_of_a_zone_is_moved_aside(harness: Harness, zone: Path, readers: Readers) -> None:
    """A directory of the root zone, called as the zone is."""
    other = zone.with_name("cmkfs.other")
    zone.rename(other)
    zone.mkdir()
    root_id = (harness.vault / "cmkfs.dir").readlink()
    (zone / "cmkfs.dir").symlink_to(root_id)
    report, actions = repair(harness, readers)
    assert report.damage == []
    assert actions[0].path == b"/secret"
    assert "is called lost+found.1 now" in actions[0].done


def test_a_zone_without_its_record_is_put_away_whole(harness: Harness, zone: Path, readers: Readers) -> None:
    (zone / "cmkfs.zone").unlink()
    report, (action,) = repair(harness, readers)
    assert (report.damage, report.notes, report.put_away) == ([], [], 1)
    assert action.line == "/secret: the root of a zone has no zone record: put away as cmkfs.lost/1"


def test_a_zone_that_was_moved_is_put_away_whole_and_opens_in_its_place(
    harness: Harness, zone: Path, readers: Readers
) -> None:
    zone.rename(zone.with_name("elsewhere"))
    report, (action,) = repair(harness, readers)
    assert (report.damage, report.directories) == ([], 1)
    assert action.line.endswith("the root of a zone in another place than its own: put away as cmkfs.lost/1")
    (harness.vault / "cmkfs.lost/1").rename(zone)
    report = check(harness, readers)
    assert (report.damage, report.directories) == ([], 3)

"""Directories and names: docs/format.md, sections 5 and 6. What is not where it belongs is damage or not shown."""

import os
from pathlib import Path

import pytest
import trio
from model.harness import ROOT, Harness

from cmkfs.crypto.kdf import commitment
from cmkfs.crypto.zonekeys import ZoneKeys, name_hash
from cmkfs.errors import Damaged, Locked
from cmkfs.format.recipient import CmkId, CmkVersion, Recipient, Scheme
from cmkfs.format.vault import ZoneRecord, ZoneRoot
from cmkfs.fs.backing import Backing
from cmkfs.fs.directory import Directories, Directory, backing_name, plain_name
from cmkfs.fs.inode import Inode
from cmkfs.fs.inodes import InodeTable
from cmkfs.keys.zone import Zone

LONG = b"n" * 161


def directory(harness: Harness) -> Directory:
    return harness.mounted.operations.directory_of(harness.mounted.inodes.root)


def path_of(harness: Harness, name: bytes) -> Path:
    return harness.vault / os.fsdecode(backing_name(directory(harness), name).entry)


# -- names -----------------------------------------------------------------------------------------


async def test_a_name_up_to_160_bytes_is_its_own_entry(mounted: Harness) -> None:
    names = backing_name(directory(mounted), b"n" * 160)
    assert names.entry == names.sealed
    assert names.sidecar is None
    assert len(names.entry) == 235


async def test_a_longer_name_has_a_sidecar(mounted: Harness) -> None:
    names = backing_name(directory(mounted), LONG)
    assert names.entry == b"long." + name_hash(names.sealed)
    assert names.sidecar == b"cmkfs.long." + name_hash(names.sealed)
    await mounted.program.save(ROOT, LONG, b"")
    assert os.readlink(os.fsencode(mounted.vault) + b"/" + names.sidecar) == names.sealed


async def test_a_name_of_256_bytes_is_too_long(mounted: Harness) -> None:
    backing_name(directory(mounted), b"n" * 255)
    with pytest.raises(OSError, match="too long"):
        backing_name(directory(mounted), b"n" * 256)


async def test_a_sidecar_must_hash_to_its_entry(mounted: Harness) -> None:
    await mounted.program.save(ROOT, LONG, b"")
    names, other = backing_name(directory(mounted), LONG), backing_name(directory(mounted), b"o" * 161)
    assert names.sidecar is not None
    sidecar = os.fsencode(mounted.vault) + b"/" + names.sidecar
    os.unlink(sidecar)
    os.symlink(other.sealed, sidecar)
    with pytest.raises(Damaged):
        plain_name(directory(mounted), mounted.backing.root_fd, names.entry)
    assert set(await mounted.program.entries(ROOT)) == {b".", b".."}


async def test_what_does_not_authenticate_is_not_shown(mounted: Harness) -> None:
    await mounted.program.save(ROOT, b"kept", b"")
    sub = await mounted.program.mkdir(ROOT, b"sub")
    await mounted.program.save(sub, b"other", b"")
    foreign = next(path for path in path_of(mounted, b"sub").iterdir() if path.name != "cmkfs.dir")
    foreign.rename(mounted.vault / foreign.name)
    (mounted.vault / "stray").touch()
    (mounted.vault / ("A" * 43)).touch()
    (mounted.vault / "long.x").touch()
    assert set(await mounted.program.entries(ROOT)) == {b".", b"..", b"kept", b"sub"}
    with pytest.raises(FileNotFoundError):
        await mounted.program.lookup(ROOT, b"other")


async def test_the_vaults_own_names_are_never_users_names(mounted: Harness) -> None:
    for name in (b"cmkfs.vault", b"cmkfs.dir", b"cmkfs.tmp.x", b"long.x", b"cmkfs.long.x"):
        await mounted.program.save(ROOT, name, name)
    await mounted.unmount()
    await mounted.mount()
    assert set(await mounted.program.entries(ROOT)) == {
        b".",
        b"..",
        b"cmkfs.vault",
        b"cmkfs.dir",
        b"cmkfs.tmp.x",
        b"long.x",
        b"cmkfs.long.x",
    }


# -- ids -------------------------------------------------------------------------------------------


async def test_a_cloned_directory_is_damage_as_soon_as_both_are_used(mounted: Harness) -> None:
    await mounted.program.mkdir(ROOT, b"one")
    await mounted.program.mkdir(ROOT, b"two")
    await mounted.program.forget_all()
    ids = [path_of(mounted, name) / "cmkfs.dir" for name in (b"one", b"two")]
    ids[1].unlink()
    ids[1].symlink_to(ids[0].readlink())
    one = await mounted.program.walk(b"one")
    await mounted.program.entries(one)
    two = await mounted.program.walk(b"two")
    with pytest.raises(OSError, match="Input/output") as caught:
        await mounted.program.entries(two)
    assert "two directories with one id" in caught.value.__notes__[0]


async def test_the_id_of_a_removed_directory_is_free(mounted: Harness) -> None:
    """What an old backup brings back under the same id is used as if it had never gone."""
    one = await mounted.program.mkdir(ROOT, b"one")
    await mounted.program.entries(one)
    sealed = (path_of(mounted, b"one") / "cmkfs.dir").readlink()
    await mounted.program.rmdir(ROOT, b"one")
    path_of(mounted, b"one").mkdir()
    (path_of(mounted, b"one") / "cmkfs.dir").symlink_to(sealed)
    assert set(await mounted.program.entries(await mounted.program.walk(b"one"))) == {b".", b".."}


@pytest.mark.parametrize("how", ["missing", "a file", "garbage", "of an unknown zone", "cut"])
async def test_a_directory_without_a_sound_id_is_damage(mounted: Harness, how: str) -> None:
    await mounted.program.mkdir(ROOT, b"one")
    await mounted.program.forget_all()
    link = path_of(mounted, b"one") / "cmkfs.dir"
    sealed = str(link.readlink())
    link.unlink()
    if how == "a file":
        link.write_text(sealed)
    elif how == "garbage":
        link.symlink_to("garbage")
    elif how == "of an unknown zone":
        link.symlink_to("A" * 16 + sealed[16:])
    elif how == "cut":
        link.symlink_to(sealed[:40])
    one = await mounted.program.walk(b"one")
    with pytest.raises(OSError, match="Input/output"):
        await mounted.program.entries(one)


async def test_exchanged_ids_hide_what_is_below_and_show_nothing_wrong(mounted: Harness) -> None:
    for name in (b"one", b"two"):
        await mounted.program.save(await mounted.program.mkdir(ROOT, name), b"in " + name, b"")
    await mounted.program.forget_all()
    ids = [path_of(mounted, name) / "cmkfs.dir" for name in (b"one", b"two")]
    first, second = (str(link.readlink()) for link in ids)
    for link, target in zip(ids, (second, first), strict=True):
        link.unlink()
        link.symlink_to(target)
    for name in (b"one", b"two"):
        ino = await mounted.program.walk(name)
        assert set(await mounted.program.entries(ino)) == {b".", b".."}
        with pytest.raises(FileNotFoundError):
            await mounted.program.lookup(ino, b"in " + name)


async def test_the_root_with_the_id_of_another_directory_is_not_mounted(mounted: Harness) -> None:
    """A subdirectory's content must not pass for the whole vault."""
    await mounted.program.mkdir(ROOT, b"one")
    target = (path_of(mounted, b"one") / "cmkfs.dir").readlink()
    await mounted.unmount()
    (mounted.vault / "cmkfs.dir").unlink()
    (mounted.vault / "cmkfs.dir").symlink_to(target)
    with pytest.raises(Damaged):
        await mounted.mount()


async def test_a_locked_zone_gives_no_directory(mounted: Harness) -> None:
    one = await mounted.program.mkdir(ROOT, b"one")
    await mounted.lock()
    with pytest.raises(Locked):
        mounted.mounted.operations.directory_of(mounted.mounted.inodes[one])
    with pytest.raises(OSError, match="Required key"):
        await mounted.program.entries(one)


# -- zones -----------------------------------------------------------------------------------------


def zone_of(number: int) -> Zone:
    """A zone that serves."""
    secret, zone_id = bytes([number]) * 32, bytes([number]) * 16
    recipient = Recipient(CmkVersion(CmkId(b"c" * 16), 1, Scheme.GCM), b"")
    zone = Zone(zone_id, ZoneRecord(zone_id, commitment(secret), recipient, b""), "data")
    zone.begin_serving(ZoneKeys(zone_id, secret, commitment(secret)))
    return zone


class Tree:
    """A root directory and one below it, in zones that the test chooses."""

    OUTER, INNER = zone_of(1), zone_of(2)
    ROOT_ID, BELOW_ID = b"r" * 16, b"b" * 16

    def __init__(self, top: Path, below: Zone, name: bytes = b"below") -> None:
        self.backing = Backing(top, read_only=False)
        self.inodes = InodeTable(self.backing)
        sealed = os.fsdecode(self.OUTER.keys.seal_name(self.ROOT_ID, name))
        (top / "cmkfs.dir").symlink_to(os.fsdecode(self.OUTER.keys.seal_dir_id(self.ROOT_ID)))
        (top / sealed).mkdir()
        (top / sealed / "cmkfs.dir").symlink_to(os.fsdecode(below.keys.seal_dir_id(self.BELOW_ID)))
        self.below: Inode = self.inodes.learn(os.stat(top / sealed), self.inodes.root, os.fsencode(sealed))

    def directories(self, *roots: ZoneRoot) -> Directories:
        zones = {zone.zone_id: zone for zone in (self.OUTER, self.INNER)}
        return Directories(self.inodes, zones, roots)


LISTED = ZoneRoot(Tree.INNER.zone_id, Tree.ROOT_ID, Tree.BELOW_ID, b"below")


def test_a_listed_zone_root_is_in_its_zone(tmp_path: Path) -> None:
    tree = Tree(tmp_path, Tree.INNER)
    directories = tree.directories(LISTED)
    found = directories.of(tree.below)
    assert found == Directory(Tree.BELOW_ID, Tree.INNER)
    root = directories.of(tree.inodes.root)
    assert directories.is_zone_place(root, b"below")
    assert not directories.is_zone_place(root, b"other")
    assert directories.shown_by(tree.below) is tree.inodes.root
    assert directories.shown_by(tree.inodes.root) is None


def test_a_directory_of_its_parents_zone_needs_no_listing(tmp_path: Path) -> None:
    tree = Tree(tmp_path, Tree.OUTER)
    assert tree.directories().of(tree.below).zone is Tree.OUTER
    other = ZoneRoot(Tree.INNER.zone_id, Tree.ROOT_ID, b"x" * 16, b"elsewhere")
    assert tree.directories(other).of(tree.below).zone is Tree.OUTER


@pytest.mark.parametrize(
    ("below", "listed"),
    [
        (Tree.INNER, None),
        (Tree.OUTER, LISTED),
        (Tree.INNER, ZoneRoot(Tree.INNER.zone_id, Tree.ROOT_ID, Tree.BELOW_ID, b"other name")),
        (Tree.INNER, ZoneRoot(Tree.INNER.zone_id, b"p" * 16, Tree.BELOW_ID, b"below")),
        (Tree.INNER, ZoneRoot(Tree.INNER.zone_id, Tree.ROOT_ID, b"x" * 16, b"below")),
        (Tree.INNER, ZoneRoot(Tree.OUTER.zone_id, Tree.ROOT_ID, Tree.BELOW_ID, b"below")),
    ],
)
def test_a_directory_of_one_zone_in_the_place_of_another_is_damage(
    tmp_path: Path, below: Zone, listed: ZoneRoot | None
) -> None:
    tree = Tree(tmp_path, below)
    with pytest.raises(Damaged):
        tree.directories(*([listed] if listed else [])).of(tree.below)


async def test_a_listing_that_passes_over_much_lets_others_in_between(mounted: Harness) -> None:
    """Whoever may write to the vault can put any number of entries into a directory that are no names of it."""
    one = await mounted.program.mkdir(ROOT, b"one")
    await mounted.program.save(one, b"file", b"")
    for number in range(4_200):
        (path_of(mounted, b"one") / f"strange{number}").touch()
    turns = 0

    async def another() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(another)
        assert set(await mounted.program.entries(one)) == {b".", b"..", b"file"}
        nursery.cancel_scope.cancel()
    assert turns >= 3

"""Recovery of a vault whose last session was not closed: what is settled, swept, reported and left alone."""

import os
from pathlib import Path

import pytest
import trio
from model.harness import ROOT, Harness

from cmkfs.errors import Locked, TokenUnavailable
from cmkfs.format.layout import BLOCK
from cmkfs.fs.recovery import Report
from cmkfs.keys.zone import Zone, ZoneState


def report(harness: Harness) -> Report:
    found = harness.mounted.recovered
    assert found is not None
    return found


def files(top: Path) -> list[Path]:
    return [path for path in top.iterdir() if path.is_file() and not path.name.startswith("cmkfs.")]


def directories(top: Path) -> list[Path]:
    return [path for path in top.iterdir() if path.name[:6] != "cmkfs." and path.is_dir()]


async def test_a_closed_vault_is_not_recovered(harness: Harness) -> None:
    await harness.mount()
    await harness.program.save(ROOT, b"file", b"x")
    await harness.unmount()
    await harness.mount()
    assert harness.mounted.recovered is None


async def test_it_says_what_it_did(mounted: Harness) -> None:
    await mounted.program.save(ROOT, b"settled", b"x")
    await mounted.mounted.settler.settle_all()
    fh = await mounted.program.create(ROOT, b"dirty")
    await mounted.program.write(fh, 0, b"x" * 5000)
    await mounted.program.save(ROOT, b"lost", b"")
    await mounted.program.symlink(ROOT, b"link", b"target")
    mounted.kill()
    lost = min(files(mounted.vault), key=lambda path: path.stat().st_size)
    os.truncate(lost, 0)
    await mounted.mount()
    assert report(mounted).facts() == {
        "files_seen": 3,
        "files_settled": 2,
        "files_emptied": 1,
        "leftovers_removed": 0,
        "unreadable": [],
    }
    assert mounted.mounted.settler.dirty == []


async def test_only_files_of_the_lost_session_are_looked_at(mounted: Harness) -> None:
    """A crash of a vault of a million files must not cost a million unwraps."""
    for number in range(20):
        await mounted.program.save(ROOT, b"%d" % number, b"x")
    await mounted.unmount()
    await mounted.mount()
    fh = await mounted.program.open(await mounted.program.walk(b"7"))
    await mounted.program.write(fh, 0, b"y")
    mounted.kill()
    before = mounted.token.calls["unwrap"]
    await mounted.mount()
    assert report(mounted).files_seen == 1
    assert mounted.token.calls["unwrap"] - before == 2  # the zone's and that one


async def test_what_looks_settled_costs_no_unwrap(mounted: Harness) -> None:
    for number in range(5):
        await mounted.program.save(ROOT, b"%d" % number, b"x" * (number * 1000))
    await mounted.mounted.settler.settle_all()
    mounted.kill()
    before = mounted.token.calls["unwrap"]
    await mounted.mount()
    assert (report(mounted).files_seen, report(mounted).files_settled) == (5, 0)
    assert mounted.token.calls["unwrap"] - before == 1


async def test_every_depth_is_reached(mounted: Harness) -> None:
    ino = ROOT
    for _ in range(30):
        ino = await mounted.program.mkdir(ino, b"d")
        fh = await mounted.program.create(ino, b"file")
        await mounted.program.write(fh, 0, b"x")
    mounted.kill()
    await mounted.mount()
    assert report(mounted).files_settled == 30


async def test_links_of_one_file_are_one_file(mounted: Harness) -> None:
    ino = await mounted.program.save(ROOT, b"one", b"x")
    await mounted.program.link(ino, ROOT, b"two")
    mounted.kill()
    await mounted.mount()
    assert report(mounted).files_settled == 1
    assert await mounted.program.content(await mounted.program.walk(b"two")) == b"x"


async def test_leftovers_are_swept(mounted: Harness) -> None:
    sub = await mounted.program.mkdir(ROOT, b"sub")
    await mounted.program.save(sub, b"n" * 200, b"x")
    mounted.kill()
    (inside,) = directories(mounted.vault)
    kept = next(path for path in inside.iterdir() if path.name.startswith("cmkfs.long."))
    for top in (mounted.vault, inside):
        for name in ("cmkfs.tmp.AAAA", "cmkfs.gone.BBBB"):
            (top / name).mkdir()
            (top / name / "cmkfs.dir").symlink_to("x")
        (top / "cmkfs.tmp.CCCC").write_bytes(b"")
        (top / "cmkfs.long.ORPHAN").symlink_to("x")
    await mounted.mount()
    assert report(mounted).leftovers_removed == 8
    assert report(mounted).unreadable == []
    left = [path.name for top in (mounted.vault, inside) for path in top.iterdir()]
    assert not [name for name in left if name.startswith(("cmkfs.tmp.", "cmkfs.gone."))]
    assert kept.is_symlink()
    assert set(await mounted.program.entries(await mounted.program.walk(b"sub"))) == {b".", b"..", b"n" * 200}


@pytest.mark.parametrize("stray", ["directory", "leftover with content", "file", "foreign directory", "no sidecar"])
async def test_what_does_not_belong_there_does_not_keep_the_rest_from_recovery(mounted: Harness, stray: str) -> None:
    """One bad entry, and everything beside and below it is settled all the same."""
    sub = await mounted.program.mkdir(ROOT, b"sub")
    if stray == "no sidecar":
        await mounted.program.mkdir(ROOT, b"n" * 200)
    for parent in (ROOT, sub):
        for number in range(3):
            fh = await mounted.program.create(parent, b"%d" % number)
            await mounted.program.write(fh, 0, b"x" * 5000)
    mounted.kill()
    if stray == "directory":
        (mounted.vault / "lost+found").mkdir()
    elif stray == "leftover with content":
        (mounted.vault / "cmkfs.gone.X").mkdir()
        (mounted.vault / "cmkfs.gone.X" / "file").touch()
    elif stray == "file":
        (mounted.vault / "AAAA").write_text("plain")
    elif stray == "foreign directory":
        (inside,) = directories(mounted.vault)
        (inside / "x").mkdir()
        (mounted.vault / ("A" * 43)).mkdir()
    else:
        next(path for path in mounted.vault.iterdir() if path.name.startswith("cmkfs.long.")).unlink()
    await mounted.mount()
    assert report(mounted).files_settled == 6
    assert len(report(mounted).unreadable) == (2 if stray == "foreign directory" else 1)
    assert len(await mounted.program.content(await mounted.program.walk(b"sub", b"1"))) == 5000


async def test_a_token_that_goes_away_ends_the_mount_and_changes_nothing(mounted: Harness) -> None:
    """A file that was passed over now would look like tampering for ever."""
    fh = await mounted.program.create(ROOT, b"file")
    await mounted.program.write(fh, 0, b"x" * BLOCK)
    mounted.kill()
    session = (mounted.vault / "cmkfs.session").read_bytes()
    unwrap = mounted.token.calls["unwrap"]
    enter = mounted.token.enter

    def gone(call: str, seen: int) -> None:
        enter(call, seen)
        if call == "unwrap" and mounted.token.calls["unwrap"] > unwrap + 1:
            raise TokenUnavailable("gone")

    mounted.token.enter = gone  # type: ignore[method-assign]
    with pytest.raises(TokenUnavailable):
        await mounted.mount()
    assert (mounted.vault / "cmkfs.session").read_bytes() == session
    mounted.token.enter = enter  # type: ignore[method-assign]
    await mounted.mount()
    assert report(mounted).files_settled == 1


async def test_a_crash_in_the_midst_of_recovery_is_recovered(mounted: Harness) -> None:
    for number in range(4):
        fh = await mounted.program.create(ROOT, b"%d" % number)
        await mounted.program.write(fh, 0, b"x" * 5000)
    mounted.kill()

    async def dies() -> None:
        raise KeyboardInterrupt

    real = mounted._backing_class.sync_whole
    mounted._backing_class.sync_whole = lambda self: dies()  # type: ignore[method-assign]
    try:
        with pytest.raises(KeyboardInterrupt):
            await mounted.mount()
    finally:
        mounted._backing_class.sync_whole = real  # type: ignore[method-assign]
    await mounted.mount()
    for number in range(4):
        assert await mounted.program.content(await mounted.program.walk(b"%d" % number)) == b"x" * 5000
    await mounted.unmount()


async def test_what_is_told_was_synced_before(mounted: Harness) -> None:
    fh = await mounted.program.create(ROOT, b"file")
    await mounted.program.write(fh, 0, b"x" * 5000)
    mounted.kill()
    await mounted.mount()
    # The file, then everything with its clean slot, then the record of the new session.
    assert mounted.backing.fsyncs == 3


# -- a zone whose CMK was away when the mount began ------------------------------------------------


@pytest.fixture
async def zone_away(mounted: Harness) -> Harness:
    """Killed with five dirty files and two lost ones in a zone, and mounted again while its CMK is disabled."""
    with mounted.token.open() as admin:
        cmk = admin.create("hr", "aes-256")
    mounted.mounted.start_soon = lambda task: None
    directory = await mounted.program.mkdir(ROOT, b"hr")
    await mounted.mounted.create_zone(mounted.mounted.inodes[directory], "hr")
    mounted.policies.set_policy(cmk.cmk_id, None)
    for number in range(5):
        fh = await mounted.program.create(directory, b"%d" % number)
        await mounted.program.write(fh, 0, b"x" * (BLOCK + 1000 * number))
    for name in (b"lost", b"lost too"):
        await mounted.program.create(directory, name)
    mounted.kill()
    (inside,) = directories(mounted.vault)
    for path in sorted(files(inside), key=lambda path: path.stat().st_size)[:2]:
        os.truncate(path, 0)  # an empty file only while it is recovered
    mounted.token.elsewhere.set_enabled(cmk.cmk_id, False)
    await mounted.mount()
    mounted.mounted.start_soon = lambda task: None
    return mounted


def hr(harness: Harness) -> Zone:
    (zone,) = (zone for zone in harness.keyring.zones.values() if zone is not harness.zone)
    return zone


async def check_files(harness: Harness) -> None:
    for number in range(5):
        ino = await harness.program.walk(b"hr", b"%d" % number)
        assert await harness.program.content(ino) == b"x" * (BLOCK + 1000 * number)
    for name in (b"lost", b"lost too"):
        assert await harness.program.content(await harness.program.walk(b"hr", name)) == b""


async def test_it_is_recovered_before_it_is_served(zone_away: Harness) -> None:
    zone = hr(zone_away)
    assert zone.state is ZoneState.LOCKED
    assert report(zone_away).files_seen == 0
    zone_away.token.elsewhere.set_enabled(zone.cmk_id, True)
    await zone_away.mounted.unlock([zone])
    assert report(zone_away).facts()["files_settled"] == 7
    assert zone_away.mounted.settler.dirty == []
    await check_files(zone_away)
    await zone_away.unmount()
    await zone_away.mount()
    assert zone_away.mounted.recovered is None


async def test_it_is_left_to_the_next_mount_if_it_stays_locked(zone_away: Harness) -> None:
    zone_away.token.elsewhere.set_enabled(hr(zone_away).cmk_id, True)
    await zone_away.unmount()
    await zone_away.mount()
    assert report(zone_away).facts()["files_settled"] == 7
    await check_files(zone_away)


async def test_a_lock_in_the_middle_of_it_leaves_it_to_the_next_unlock(zone_away: Harness) -> None:
    zone, token = hr(zone_away), zone_away.token
    token.elsewhere.set_enabled(zone.cmk_id, True)
    refusals: list[str] = []

    async def unlock() -> None:
        try:
            await zone_away.mounted.unlock([zone])
        except Locked as error:
            refusals.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(unlock)
        while zone.state is not ZoneState.RECOVERING:
            await trio.lowlevel.checkpoint()
        token.hang()
        while not token.entered.is_set():
            await trio.lowlevel.checkpoint()
        await zone_away.mounted.locks.lock([zone], Locked("an operator locked the zone"))
        token.answer()
    assert refusals == ["an operator locked the zone"]
    assert zone.state is ZoneState.LOCKED
    await zone_away.mounted.unlock([zone])
    await check_files(zone_away)
    assert [line for line in report(zone_away).unreadable if "Damaged" in line] == []
    await zone_away.unmount()
    await zone_away.mount()
    assert zone_away.mounted.recovered is None


async def test_a_directory_that_was_never_made_goes(mounted: Harness) -> None:
    """Its name reached the disk, and not the id in it: on a backing that does not order names."""
    for name in (b"made", b"unmade", b"u" * 200):
        await mounted.program.mkdir(ROOT, name)
    mounted.kill()
    unmade = sorted(directories(mounted.vault), key=lambda path: path.stat().st_ino)[1:]
    for path in unmade:
        (path / "cmkfs.dir").unlink()
    await mounted.mount()
    assert set(await mounted.program.entries(ROOT)) == {b".", b"..", b"made"}
    assert (report(mounted).leftovers_removed, report(mounted).unreadable) == (2, [])
    assert not list(mounted.vault.glob("cmkfs.long.*"))


async def test_a_directory_without_its_id_that_is_not_empty_stays(mounted: Harness) -> None:
    await mounted.program.save(await mounted.program.mkdir(ROOT, b"dir"), b"file", b"x")
    mounted.kill()
    (directory,) = directories(mounted.vault)
    (directory / "cmkfs.dir").unlink()
    await mounted.mount()
    assert report(mounted).leftovers_removed == 0
    assert len(report(mounted).unreadable) == 1
    assert len(os.listdir(directory)) == 1


async def test_a_symlink_without_all_parts_of_its_target_goes(mounted: Harness) -> None:
    await mounted.program.symlink(ROOT, b"whole", b"w" * 3000)
    await mounted.program.symlink(ROOT, b"half", b"h" * 3000)
    mounted.kill()
    parts = sorted((mounted.vault / "cmkfs.links").iterdir(), key=lambda path: path.lstat().st_ino)
    parts[-1].unlink()
    await mounted.mount()
    assert set(await mounted.program.entries(ROOT)) == {b".", b"..", b"whole"}
    assert report(mounted).leftovers_removed == 1


@pytest.mark.parametrize("prefix", ["cmkfs.tmp.", "cmkfs.gone."])
async def test_a_leftover_with_something_in_it_is_shown(mounted: Harness, prefix: str) -> None:
    directory = await mounted.program.mkdir(ROOT, b"dir")
    await mounted.program.save(directory, b"file", b"x")
    mounted.kill()
    (made,) = directories(mounted.vault)
    made.rename(mounted.vault / f"{prefix}AAAA")
    await mounted.mount()
    assert set(await mounted.program.entries(ROOT)) == {b".", b"..", b"recovered-AAAA"}
    assert await mounted.program.content(await mounted.program.walk(b"recovered-AAAA", b"file")) == b"x"
    assert report(mounted).unreadable == []

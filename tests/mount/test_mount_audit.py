"""The audit log of real mounts: who, what, which file; through a kill, a full disk, and what is done to it."""

import errno
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from children import ALICE, in_child
from real_mount import EVERYONE, OWN_CMK, SHARED_CMK, RealMount, Site

from cmkfs.control import registry
from cmkfs.errors import CmkfsError

ROOM = 512 * 1024
PAGE = 4096


@pytest.fixture(scope="module")
def audited() -> Iterator[Site]:
    """A home whose audit log lies on a small filesystem of its own."""
    top = Path(tempfile.mkdtemp(prefix="cmkfs-test-"))
    top.chmod(0o755)
    log = top / "h/audit"
    try:
        (top / "h").mkdir(mode=0o700)
        log.mkdir(mode=0o700)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM},mode=700", "tmpfs", str(log)], check=True)
        made = Site(top)
        made.prepare()
        yield made
    finally:
        subprocess.run(["umount", str(log)], check=True)
        shutil.rmtree(top)


@pytest.fixture(scope="module")
def served(audited: Site) -> Iterator[RealMount]:
    """A mount for everyone; what the tests do to it is expected in its log."""
    mounted = audited.mount(audited.new_vault(SHARED_CMK), "allow_other")
    mounted.expected_log = ["locked", "unlocked", "audit log", "does not authenticate", "the token", "stay locked"]
    mounted.path.chmod(0o777)
    try:
        yield mounted
    finally:
        mounted.clear()


@pytest.fixture(autouse=True)
def log_is_genuine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test did, the log is what was written; those that change it put it back."""
    site = request.getfixturevalue("audited")
    yield
    site.cmkfs("audit", "verify")


def show(site: Site, *filters: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(site.cmkfs("audit", "show", "--json", *filters))["records"]
    return found


def of_file(served: RealMount, path: Path) -> list[dict[str, Any]]:
    """The records of one file."""
    return show(served.site, "--file", str(path))


def verified(site: Site, *options: str) -> dict[str, str]:
    """What `audit verify` finds wrong, by name of the chain."""
    said = json.loads(site.cmkfs("audit", "verify", "--json", *options, codes=(0, 5)).splitlines()[-1])
    return {chain["name"]: chain["fault"] for chain in said["chains"] if chain["fault"]}


def backing_of(served: RealMount, path: Path) -> Path:
    return Path(json.loads(served.site.cmkfs("info", str(path), "--json"))["backing_path"])


def drop_cached(served: RealMount) -> None:
    """Lock and unlock: whatever is read next comes from the vault."""
    served.site.cmkfs("lock", str(served.path))
    served.site.cmkfs("unlock", str(served.path))


def log_of(served: RealMount) -> Path:
    return Path(served.ask("status")["audit"]["log"])


# -- Who did what ----------------------------------------------------------------------------------


def test_each_use_names_user_program_file_and_key(served: RealMount) -> None:
    path = served.path / "used"
    in_child(lambda: path.write_text("hello"), ALICE)
    in_child(lambda: path.read_text(), ALICE)
    path.read_text()
    os.truncate(path, 1)
    os.setxattr(path, "user.x", b"1")
    found = [(record["event"], record["outcome"], record["uid"], record["cmk"]) for record in of_file(served, path)]
    assert found == [
        ("create", "allowed", ALICE.uid, SHARED_CMK),
        ("open.read", "allowed", ALICE.uid, SHARED_CMK),
        ("open.read", "allowed", 0, SHARED_CMK),
        ("truncate", "allowed", 0, SHARED_CMK),
        ("xattr.write", "allowed", 0, SHARED_CMK),
    ]
    record = of_file(served, path)[2]
    assert record["exe"] == os.path.realpath("/proc/self/exe")
    assert (record["pid"], record["cmk_version"], record["mount"]) == (os.getpid(), 1, str(served.path))
    assert record["latency_us"] >= 0
    assert record["rule"] == "all"


def test_filters(served: RealMount) -> None:
    path = served.path / "filtered"
    in_child(lambda: path.write_text("hello"), ALICE)
    site = served.site
    assert {record["uid"] for record in show(site, "--user", str(ALICE.uid))} == {ALICE.uid}
    assert {record["event"] for record in show(site, "--event", "cmk")} == {"cmk.create"}
    assert show(site, "--since", "2999-01-01") == []
    assert show(site, "--until", "2000-01-01T00:00:00Z") == []
    assert {record["cmk"] for record in show(site, "--cmk", OWN_CMK)} == {OWN_CMK}
    assert all(record["outcome"] == "done" for record in show(site, "--outcome", "done", "--since", "1h"))
    assert show(site, "--mount", "/nowhere") == []
    assert "no time" in site.cmkfs("audit", "show", "--since", "yesterday", codes=(2,))
    assert "no user" in site.cmkfs("audit", "show", "--user", "nobody-of-this-name", codes=(2,))


def test_follow_shows_records_as_they_come(served: RealMount) -> None:
    path = served.path / "followed"
    path.write_text("x")
    file_id = json.loads(served.site.cmkfs("info", str(path), "--json"))["file_id"]
    with served.site.started("audit", "show", "--follow", "--json", "--file", str(path)) as following:
        assert following.stdout is not None
        assert json.loads(following.stdout.readline())["event"] == "create"
        path.read_text()
        record = json.loads(following.stdout.readline())
        assert (record["event"], record["file_id"]) == ("open.read", file_id)
        following.terminate()


def test_locks_and_refusals_name_who(served: RealMount) -> None:
    path = served.path / "locked"
    path.write_text("x")
    served.site.cmkfs("lock", str(served.path))
    with pytest.raises(OSError, match="Required key") as refused:
        in_child(lambda: path.read_text(), ALICE)
    assert refused.value.errno == errno.ENOKEY
    served.site.cmkfs("unlock", str(served.path))
    events = show(served.site, "--since", "1m")
    lock = next(record for record in reversed(events) if record["event"] == "lock")
    assert (lock["outcome"], lock["uid"]) == ("done", 0)
    assert lock["exe"] == os.path.realpath("/proc/self/exe")
    after = events[events.index(lock) + 1 :]
    assert any(record["outcome"] == "refused" and record["uid"] == ALICE.uid for record in after)


def test_a_disabled_key_raises_an_alert_and_the_log_works_on(served: RealMount) -> None:
    path = served.path / "disabled"
    path.write_text("x")
    served.site.cmkfs("cmk", "disable", SHARED_CMK)
    with pytest.raises(OSError, match="Required key"):
        in_child(lambda: path.read_text(), ALICE)
    assert "is disabled" in served.site.cmkfs("unlock", str(served.path), codes=(4,))
    served.site.cmkfs("audit", "verify")  # no CMK is needed for it
    served.site.cmkfs("cmk", "enable", SHARED_CMK)
    events = show(served.site, "--since", "1m")
    found = [(record["event"], record["outcome"]) for record in events]
    for expected in (("cmk.disable", "done"), ("lock", "done"), ("unlock", "refused"), ("cmk.enable", "done")):
        assert expected in found
    alerts = [record for record in events if record["event"] == "alert"]
    assert ("disabled-key-used", ALICE.uid) in [(alert["rule"], alert["uid"]) for alert in alerts]


def test_damage_names_the_file_in_the_vault(served: RealMount) -> None:
    path = served.path / "damaged"
    path.write_bytes(bytes(3 * PAGE))
    drop_cached(served)
    backing = backing_of(served, path)
    with backing.open("r+b") as file:
        file.seek(2 * PAGE + 100)
        file.write(b"!")
    with pytest.raises(OSError, match="Input/output error"):
        path.read_bytes()
    damage = show(served.site, "--outcome", "damaged")
    assert {record["path"] for record in damage} == {str(backing.relative_to(served.vault))}
    assert "tampering" in {record["rule"] for record in show(served.site, "--event", "alert")}
    path.unlink()


def test_a_name_from_elsewhere_is_named_when_it_is_not_listed(served: RealMount) -> None:
    there = served.path / "there"
    there.mkdir()
    (served.path / "moved").write_text("x")
    name, place = backing_of(served, served.path / "moved"), backing_of(served, there)
    name.rename(place / name.name)
    try:
        assert os.listdir(there) == []
        found = [record for record in show(served.site, "--event", "readdir") if record["outcome"] == "damaged"]
        assert found[-1]["path"] == f"{place.name}/{name.name}"
    finally:
        (place / name.name).rename(name)


def test_a_changed_policy_is_a_change_of_the_mount_too(served: RealMount) -> None:
    policy = served.site.top / "policy.toml"
    policy.write_text(f"{EVERYONE}\n# changed\n")
    served.site.cmkfs("policy", "set", SHARED_CMK, str(policy))
    found = {(record["event"], record["rule"]) for record in show(served.site, "--since", "1m")}
    assert {("policy.set", None), ("policy.taken", None), ("alert", "policy-changed")} <= found


def test_a_refusal_names_the_rule(served: RealMount) -> None:
    path = served.path / "denied"
    path.write_text("x")
    policy = served.site.top / "deny.toml"
    policy.write_text(
        f'{EVERYONE}\n[[rule]]\nid = "leavers"\neffect = "deny"\nwho = ["uid:{ALICE.uid}"]\nactions = ["read"]\n'
    )
    served.site.cmkfs("policy", "set", SHARED_CMK, str(policy))
    try:
        with pytest.raises(PermissionError):
            in_child(lambda: path.read_text(), ALICE)
        refused = show(served.site, "--outcome", "refused", "--user", str(ALICE.uid))[-1]
        assert (refused["event"], refused["rule"], refused["cmk"]) == ("open", "leavers", SHARED_CMK)
    finally:
        served.site.cmkfs("policy", "set", SHARED_CMK, str(served.site.top / "everyone.toml"))


def test_a_mount_that_fails_is_no_mount(audited: Site) -> None:
    """Neither is one that fails late: the control socket cannot be made."""
    mounted = audited.mount(audited.new_vault(OWN_CMK))
    where = str(mounted.path)
    socket = registry.socket_path(audited.home, where)
    try:
        mounted.down()
        socket.mkdir()
        audited.cmkfs("mount", str(mounted.vault), where, codes=(1,))
        found = [record for record in show(audited, "--mount", where) if record["event"] in ("mount", "umount")]
        assert [(record["event"], record["outcome"]) for record in found] == [
            ("mount", "done"),
            ("umount", "done"),
            ("mount", "failed"),
        ]
        assert str(socket) in found[-1]["reason"]
    finally:
        socket.rmdir()
        mounted.clear()


def test_zones_that_come_and_go_and_those_that_may_not(served: RealMount) -> None:
    zone, site = str(served.path / "zone"), served.site
    site.cmkfs("zone", "create", zone, "--cmk", SHARED_CMK)
    (served.path / "zone" / "file").write_text("x")
    site.cmkfs("zone", "remove", zone, codes=(1,))
    (served.path / "zone" / "file").unlink()
    site.cmkfs("cmk", "disable", OWN_CMK)
    site.cmkfs("zone", "create", str(served.path / "other"), "--cmk", OWN_CMK, codes=(4,))
    site.cmkfs("cmk", "enable", OWN_CMK)
    site.cmkfs("zone", "remove", zone)
    (served.path / "zone").rmdir()
    found = show(site, "--event", "zone")
    assert [(record["event"], record["outcome"], record["uid"]) for record in found] == [
        ("zone.create", "done", 0),
        ("zone.remove", "failed", 0),
        ("zone.create", "refused", 0),
        ("zone.remove", "done", 0),
    ]
    assert [record["cmk"] for record in found] == [SHARED_CMK, None, None, SHARED_CMK]
    assert f"under CMK {OWN_CMK}" in found[2]["reason"]


# -- Killed, full, moved ---------------------------------------------------------------------------


def test_a_killed_daemon_loses_no_use(audited: Site) -> None:
    mounted = audited.mount(audited.new_vault(OWN_CMK))
    mounted.expected_log = ["recovered", "audit", "guardian"]
    try:
        names = [f"f{number}" for number in range(30)]
        for name in names:
            (mounted.path / name).write_text("x")
        mounted.kill()
        created = [record for record in show(audited, "--event", "create") if record["mount"] == str(mounted.path)]
        assert len(created) == len(names)
        audited.cmkfs("audit", "verify")
        subprocess.run(["umount", "--lazy", str(mounted.path)], check=True)
        mounted.up()
        assert "recovery" in {record["event"] for record in show(audited, "--mount", str(mounted.path))}
    finally:
        mounted.clear()


def test_a_full_audit_disk_stops_the_use_of_keys_and_nothing_else(served: RealMount) -> None:
    path, site = served.path / "full", served.site
    path.write_text("before")
    filler = site.home.audit_dir / "filler"
    with path.open() as held:
        _fill(filler)
        try:
            with pytest.raises(OSError, match="Required key"):  # no record, no key
                _make_and_remove(served.path / "other", 50)
            assert served.ask("status")["audit"]["failure"] == "No space left on device"
            assert held.read() == "before"  # its lease was given before
            # What takes away works, and says that it is not recorded; what gives does not.
            said = ""
            for _ in range(10):  # the last page of the commands' log has room for a few records
                said += site.cmkfs("cmk", "disable", OWN_CMK, codes=(0, 1))
            assert "cmk.disable is done, but not recorded" in said
            assert "No space left on device" in site.cmkfs("cmk", "enable", OWN_CMK, codes=(4,))
            assert "disabled" in site.cmkfs("cmk", "list")
            said = site.cmkfs("lock", str(served.path), codes=(1,))
            assert "in force, but not recorded yet: No space left on device" in said
            with pytest.raises(OSError, match="Required key"):
                path.read_text()
            assert "cannot be recorded" in site.cmkfs("unlock", str(served.path), codes=(4,))
            with pytest.raises(CmkfsError, match="cannot be recorded"):
                served.ask("zone_create", ino=1, cmk=SHARED_CMK)
            assert "the audit log cannot be written" in site.cmkfs("status", str(served.path), codes=(4,))
        finally:
            filler.unlink()
        site.cmkfs("unlock", str(served.path))
        site.cmkfs("cmk", "enable", OWN_CMK)
        assert path.read_text() == "before"  # by itself, once there is room
    events = [(record["event"], record["outcome"]) for record in show(site, "--since", "1m")]
    assert ("create", "refused") in events  # they waited in memory
    assert ("lock", "done") in events
    facts = served.ask("status")["audit"]
    assert (facts["failure"], facts["waiting"], facts["lost"]) == (None, 0, 0)


def _make_and_remove(path: Path, times: int) -> None:
    for _ in range(times):
        path.write_text("x")
        path.unlink()


def _fill(path: Path) -> None:
    """Leave no byte of room."""
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        _write_for_ever(file)


def _write_for_ever(file: IO[bytes]) -> None:
    while True:
        file.write(bytes(PAGE))


def test_logrotate_under_a_live_mount(served: RealMount) -> None:
    log = log_of(served)
    (served.path / "rotated").write_text("x")
    moved = log.with_name("moved.jsonl.1")
    log.rename(moved)
    _until(lambda: log.exists() and log.stat().st_size > 0)
    (served.path / "rotated").read_text()
    assert "audit.rotate" in {record["event"] for record in show(served.site, "--since", "1m")}
    served.site.cmkfs("audit", "verify")
    moved.rename(log.with_name(f"{log.stem}.old.jsonl"))


def test_changed_settings_are_recorded_and_the_alert_command_hears_of_it(audited: Site) -> None:
    told, config = audited.top / "told", audited.home.config_file
    mounted = audited.mount(audited.new_vault(OWN_CMK))
    try:
        mounted.down()
        config.write_text(f'[audit]\nalert_uses = 5\nalert_command = ["sh", "-c", "cat >> {told}"]\n')
        mounted.up()
        for number in range(5):
            (mounted.path / f"f{number}").write_text("x")
        mounted.down()
        kinds = [json.loads(line)["alert"] for line in told.read_text().splitlines()]
        assert kinds == ["audit-settings-changed", "mass-use"]
        changed = show(audited, "--event", "audit.settings")[-1]
        assert "alert_uses=1000" in changed["reason"]
        assert changed["reason"].endswith("alert_uses=5")
    finally:
        config.unlink(missing_ok=True)
        mounted.clear()


# -- Changed behind its back -----------------------------------------------------------------------


def test_a_cut_under_a_live_mount_is_found_to_the_last_record(served: RealMount) -> None:
    """The mount knows what it wrote, long before the next checkpoint."""
    path = served.path / "cut"
    path.write_text("x")
    log = log_of(served)
    whole = log.read_bytes()
    short = whole[: whole.rfind(b"\n", 0, -1) + 1]
    with log.open("r+b", buffering=0) as file:  # the mount moves it aside when it sees what was done
        file.truncate(len(short))
        (fault,) = verified(served.site).values()
        _until(lambda: "audit-log-cut" in {record["rule"] for record in show(served.site, "--event", "alert")})
        file.write(whole)
    # The mount may have gone on in another file before `verify` read this one: then the record is missing in between.
    assert "cut off: the mount remembers it" in fault or "was removed" in fault, fault


def test_what_is_done_to_the_log_of_an_ended_mount(audited: Site) -> None:
    mounted = audited.mount(audited.new_vault(OWN_CMK))
    (mounted.path / "file").write_text("x")
    log = log_of(mounted)
    mounted.down()
    first = log.read_bytes()
    mounted.up()
    (mounted.path / "file").write_text("y")
    mounted.down()
    whole = log.read_bytes()
    lines = whole.splitlines(keepends=True)
    name = log.stem
    assert b'"uid":0' in whole
    changed = {
        "edited": whole.replace(b'"uid":0', b'"uid":7', 1),
        "removed": b"".join([*lines[:2], *lines[3:]]),
        "out of order|removed": b"".join([*lines[:2], lines[3], lines[2], *lines[4:]]),
        "cut off: the token remembers": first,  # back to a checkpoint, whole by itself
    }
    try:
        for expected, data in changed.items():
            log.write_bytes(data)
            fault = verified(audited)[name]
            assert any(word in fault for word in expected.split("|")), (expected, fault)
        log.unlink()
        assert "removed: there is no file" in verified(audited)[name]
    finally:
        log.write_bytes(whole)
        log.chmod(0o600)


def _until(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)

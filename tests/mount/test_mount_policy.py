"""Policies on a mount that several users share: every action, and rights that are lost while files are open."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from children import in_child
from person import Person
from real_mount import RealMount, Site

CMK = "several"
ANNA, BERT, CARLA = 13001, 13002, 13003
STAFF = 13100
ALL = ("list", "read", "write", "create", "delete")

SetPolicy = Callable[..., None]


def rule(name: str, who: str, *actions: str, effect: str = "allow", more: str = "") -> str:
    listed = ", ".join(f'"{action}"' for action in actions)
    return f'[[rule]]\nid = "{name}"\neffect = "{effect}"\nwho = ["{who}"]\nactions = [{listed}]\n{more}\n'


ROOT = rule("root", "uid:0", *ALL)


@pytest.fixture(scope="module")
def several(site: Site) -> Iterator[RealMount]:
    """One mount for all of them; each test sets its policy."""
    site.cmkfs("cmk", "create", CMK)
    mounted = site.mount(site.new_vault(CMK), "allow_other")
    try:
        yield mounted
    finally:
        mounted.clear()


@pytest.fixture
def allow(site: Site, several: RealMount) -> SetPolicy:
    """Set a policy of these rules, and root's."""

    def allow(*rules: str) -> None:
        file = site.top / "several.toml"
        file.write_text(ROOT + "".join(rules))
        site.cmkfs("policy", "set", CMK, str(file))

    return allow


@pytest.fixture
def place(several: RealMount, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory in a directory, open to everyone, with a file; the daemon must have met no bug."""
    made = several.path / f"t{abs(hash(request.node.name))}" / "in"
    made.mkdir(parents=True)
    for path in (several.path, made.parent, made):
        path.chmod(0o777)
    file = made / "file"
    file.write_text("content" * 2000)
    file.chmod(0o666)
    os.setxattr(file, "user.x", b"1")
    (made / "link").symlink_to("file")
    yield made
    several.check()


@pytest.fixture
def anna() -> Iterator[Person]:
    with Person(ANNA) as person:
        yield person


@pytest.fixture
def bert() -> Iterator[Person]:
    with Person(BERT) as person:
        yield person


def test_who_loses_read_loses_what_is_open_while_another_goes_on(
    allow: SetPolicy, place: Path, anna: Person, bert: Person
) -> None:
    file = place / "file"
    allow(rule("a", f"uid:{ANNA}", *ALL), rule("b", f"uid:{BERT}", *ALL))
    fds = {who: who.do("open", file, os.O_RDWR) for who in (anna, bert)}
    mappings = {who: who.do("map", fds[who], True) for who in (anna, bert)}
    for who in (anna, bert):
        assert who.do("pread", fds[who]) == who.do("peek", mappings[who]) == "content"
    bert.do("pwrite", fds[bert], "CONTENT")  # dirty when the right goes
    allow(rule("b", f"uid:{BERT}", *ALL))
    assert anna.outcome("pread", fds[anna]) in ("EACCES", "EIO")
    assert anna.outcome("peek", mappings[anna]) == "EFAULT"
    assert bert.do("read", file)[:7] == "CONTENT"  # opens anew
    again = bert.do("open", file, os.O_RDWR)
    mapping = bert.do("map", again, True)
    for _ in range(3):
        assert bert.do("pread", again) == bert.do("peek", mapping) == "CONTENT"
        bert.do("pwrite", again, "secret!" * 2000)
        assert anna.outcome("pread", fds[anna]) == "EIO"
        assert anna.outcome("peek", mappings[anna]) == "EFAULT"
        assert anna.outcome("pwrite", fds[anna], "x" * 8192) == "EIO"
        assert anna.outcome("fstat", fds[anna]) == "EIO"
        assert anna.outcome("open", file, os.O_RDONLY) == "EACCES"
        bert.do("pwrite", again, "CONTENT")
        bert.do("fsync", again)
    assert bert.outcome("pread", fds[bert]) == "EIO"  # his old descriptor is of the same inode: he reopens
    assert file.read_text()[:14] == "CONTENTsecret!"


@pytest.mark.alone
def test_a_right_that_another_host_takes_is_lost_within_the_bound(
    site: Site, allow: SetPolicy, place: Path, anna: Person, bert: Person
) -> None:
    """Nobody tells the mount; another user keeps the same file open, mapped and cached meanwhile."""
    file = place / "file"
    allow(rule("a", f"uid:{ANNA}", *ALL), rule("b", f"uid:{BERT}", *ALL))
    fd, kept = anna.do("open", file, os.O_RDWR), bert.do("open", file, os.O_RDONLY)
    mappings = {who: who.do("map", opened, False) for who, opened in ((anna, fd), (bert, kept))}
    assert [who.do("peek", mapping) for who, mapping in mappings.items()] == ["content"] * 2
    with site.nobody_is_told():
        allow(rule("a", f"uid:{ANNA}", "write"), rule("b", f"uid:{BERT}", *ALL))
        set_at = time.monotonic()
        while anna.outcome("pread", fd) == "ok":
            assert time.monotonic() - set_at < 1.5, "still readable after the revocation bound"
    assert anna.outcome("peek", mappings[anna]) == "EFAULT"
    assert bert.do("read", file)[:7] == "content"
    assert anna.outcome("pread", fd) == "EIO"


def test_an_old_descriptor_never_sees_what_is_written_before_the_file_is_opened_anew(
    allow: SetPolicy, place: Path, anna: Person, bert: Person
) -> None:
    file = place / "file"
    allow(rule("a", f"uid:{ANNA}", *ALL), rule("b", f"uid:{BERT}", *ALL))
    reader = anna.do("open", file, os.O_RDONLY)
    writer = bert.do("open", file, os.O_RDWR)
    assert anna.do("pread", reader) == "content"
    allow(rule("b", f"uid:{BERT}", *ALL))
    assert bert.outcome("pwrite", writer, "secret!" * 4096) in ("ESTALE", "EIO")
    assert anna.outcome("pread", reader) in ("EACCES", "EIO")
    assert bert.outcome("pread", writer) in ("ESTALE", "EIO")


def test_a_right_that_comes_back_is_had_by_opening(allow: SetPolicy, place: Path, anna: Person) -> None:
    file = place / "file"
    allow(rule("a", f"uid:{ANNA}", *ALL))
    fd = anna.do("open", file, os.O_RDONLY)
    allow()
    assert anna.outcome("pread", fd) in ("EACCES", "EIO")
    allow(rule("a", f"uid:{ANNA}", "read", "list"))
    assert anna.do("read", file)[:7] == "content"
    assert anna.outcome("open", file, os.O_RDWR) == "EACCES"


def test_an_unrelated_change_leaves_open_files_alone(allow: SetPolicy, place: Path, anna: Person) -> None:
    allow(rule("a", f"uid:{ANNA}", *ALL))
    fd = anna.do("open", place / "file", os.O_RDWR)
    mapping = anna.do("map", fd, True)
    allow(rule("a", f"uid:{ANNA}", *ALL), rule("b", f"uid:{BERT}", "read"))
    assert anna.do("pread", fd) == anna.do("peek", mapping) == "content"
    anna.do("pwrite", fd, "CONTENT")
    anna.do("fsync", fd)


def test_names_and_attributes_are_kept_from_who_has_no_right(
    several: RealMount, allow: SetPolicy, place: Path, anna: Person, bert: Person
) -> None:
    allow(rule("all", "*", *ALL))
    top = several.path / "top"
    top.write_text("x")
    for who in (anna, bert):  # the kernel keeps everything now
        who.do("stat", place / "file")
        who.do("stat", top)
        who.do("chdir", place)
    directory = anna.do("open", place, os.O_RDONLY)
    file = anna.do("open", place / "file", os.O_RDONLY)
    allow(rule("b", f"uid:{BERT}", *ALL))
    for _ in range(2):
        bert.do("stat", place / "file")
        bert.do("stat", top)
        bert.do("list", place)
        for operation, target in (
            ("stat", place / "file"),
            ("stat", "file"),
            ("lstat", place / "link"),
            ("readlink", place / "link"),
            ("read", place / "link"),
            ("stat", place),
            ("stat", "."),
            ("fstat", directory),
            ("list", place),
            ("list", directory),
            ("list", several.path),
            ("stat", top),
            ("getxattr", place / "file"),
            ("listxattr", place / "file"),
        ):
            more = ("user.x",) if operation == "getxattr" else ()
            assert anna.outcome(operation, target, *more) == "EACCES", (operation, target)
        assert anna.outcome("fstat", file) in ("ESTALE", "EIO")
        assert anna.outcome("stat", several.path) == "ok"  # as promised
        assert anna.outcome("statvfs", several.path) == "ok"
    top.unlink()


def test_every_operation_needs_its_action(allow: SetPolicy, place: Path, anna: Person) -> None:
    file, second, moved, new = (place / name for name in ("file", "second", "moved", "new"))
    program = place / "program"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o777)
    second.write_text("second")
    os.link(second, place / "old hard")
    (place / "d").mkdir()
    os.chown(file, ANNA, ANNA)
    os.chown(place / "d", ANNA, ANNA)
    needs: list[tuple[str, tuple[object, ...]]] = [
        ("list a directory", ("list", place)),
        ("open for reading", ("read", file)),
        ("run a program", ("run", str(program))),
        ("getxattr", ("getxattr", file, "user.x")),
        ("listxattr", ("listxattr", file)),
        ("open for writing", ("open", file, os.O_WRONLY)),
        ("truncate", ("truncate", file, 7000)),
        ("chmod", ("chmod", file, 0o666)),
        ("chown", ("chown", file, ANNA, ANNA)),
        ("utimes", ("utime", file)),
        ("setxattr", ("setxattr", file, "user.x", "2")),
        ("removexattr", ("removexattr", file, "user.x")),
        ("open for both", ("open", file, os.O_RDWR)),
        ("open for reading with O_TRUNC", ("open", file, os.O_RDONLY | os.O_TRUNC)),
        ("mkdir", ("mkdir", new)),
        ("symlink", ("symlink", "x", place / "new symlink")),
        ("mknod", ("mknod", place / "new fifo")),
        ("link", ("link", file, place / "hard")),
        ("create a file for writing", ("write", place / "new file", "x")),
        ("rename", ("rename", file, moved)),
        ("rename", ("rename", second, file)),
        ("unlink", ("unlink", place / "old hard")),
        ("rmdir", ("rmdir", place / "d")),
    ]
    table = documented_actions()
    assert {operation for operation, _ in needs} == set(table), "docs/policy.md and this test name other operations"
    for without in ALL:
        granted = [action for action in ALL if action != without]
        allow(rule("some", f"uid:{ANNA}", *granted))
        assert anna.outcome("stat", file) == "ok"
        for name, operation in needs:
            if without in table[name]:
                found = anna.outcome(*operation)  # type: ignore[arg-type]
                assert found in ("EACCES", "ECHILD"), (without, operation, found)
    given = ""
    for name, operation in needs:
        if table[name] != given:
            given = table[name]
            allow(rule("just-these", f"uid:{ANNA}", *given))
        assert anna.outcome(*operation) == "ok", (name, operation)  # type: ignore[arg-type]


def documented_actions() -> dict[str, tuple[str, ...]]:
    """The table of docs/policy.md: what each operation needs; of those that need certain actions."""
    page = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()
    _, _, rest = page.partition("| operation | needs |\n|---|---|\n")
    table = {}
    for line in rest.partition("\n\n")[0].splitlines():
        operations, needed = line.strip("| ").split(" | ")
        actions = tuple(action for action in ALL if f"`{action}`" in needed)
        if actions:
            table |= {operation.replace("`", "").strip(): actions for operation in re.split("[,;]", operations)}
    return table


def test_a_drop_box(allow: SetPolicy, place: Path, anna: Person, bert: Person) -> None:
    allow(rule("drop", f"uid:{ANNA}", "create", "write"), rule("b", f"uid:{BERT}", *ALL))
    dropped = place / "dropped"
    fd = anna.do("open", dropped, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    anna.do("pwrite", fd, "a letter")
    anna.do("close", fd)
    fd = anna.do("open", dropped, os.O_WRONLY)
    anna.do("pwrite", fd, "A")  # a piece of a page: the kernel reads the rest of it
    anna.do("fsync", fd)
    assert anna.outcome("pread", fd) == "EBADF"
    assert anna.outcome("read", dropped) == "EACCES"
    assert anna.outcome("list", place) == "EACCES"
    assert anna.outcome("unlink", dropped) == "EACCES"
    assert bert.do("read", dropped) == "A letter"
    allow(rule("drop", f"uid:{ANNA}", "create", "write"))
    anna.do("pwrite", fd, "B")  # still his to write


def test_who_loses_write_loses_it_on_what_is_open(allow: SetPolicy, place: Path, anna: Person, bert: Person) -> None:
    file = place / "file"
    allow(rule("a", f"uid:{ANNA}", *ALL), rule("b", f"uid:{BERT}", *ALL))
    fd = anna.do("open", file, os.O_RDWR)
    anna.do("pwrite", fd, "stored!")
    allow(rule("a", f"uid:{ANNA}", "read", "list"), rule("b", f"uid:{BERT}", *ALL))
    for text in ("x", "x" * 8192):
        assert anna.outcome("pwrite", fd, text) in ("ESTALE", "EIO", "EACCES")
    assert anna.outcome("ftruncate", fd, 0) in ("ESTALE", "EIO", "EACCES")
    assert bert.do("read", file)[:7] == "stored!"  # what was written before is not lost
    assert anna.do("read", file)[:7] == "stored!"


def test_a_group_of_the_process(allow: SetPolicy, place: Path) -> None:
    allow(rule("staff", f"gid:{STAFF}", *ALL), rule("not-carla", f"uid:{CARLA}", "read", effect="deny"))
    with Person(BERT, STAFF) as member, Person(BERT) as other, Person(CARLA, STAFF) as denied:
        assert member.do("read", place / "file")[:7] == "content"
        assert other.outcome("read", place / "file") == "EACCES"
        assert denied.outcome("read", place / "file") == "EACCES"
        assert denied.outcome("list", place) == "ok"


def test_an_executable_is_denied(allow: SetPolicy, place: Path, anna: Person) -> None:
    cat = os.path.realpath("/bin/cat")
    allow(
        rule("all", "*", *ALL),
        rule("no-cat", f"uid:{ANNA}", "read", effect="deny", more=f'exe = ["{cat}"]'),
    )
    assert anna.do("read", place / "file")[:7] == "content"
    assert anna.outcome("run", "cat", str(place / "file")) == "ECHILD"
    assert anna.do("run", "head", "-c7", str(place / "file")) == "content"


def test_an_expiry_takes_what_is_open(several: RealMount, allow: SetPolicy, place: Path, anna: Person) -> None:
    soon = int(anna.do("run", "date", "+%s")) + 3
    expires = anna.do("run", "date", "-u", f"-d@{soon}", "+%Y-%m-%dT%H:%M:%SZ").strip()
    allow(rule("a", f"uid:{ANNA}", *ALL, more=f"expires = {expires}"))
    fd = anna.do("open", place / "file", os.O_RDONLY)
    found, until = "ok", soon + 3
    while found == "ok" and float(anna.do("run", "date", "+%s")) < until:
        found = anna.outcome("pread", fd)
    assert found in ("EACCES", "EIO")
    assert anna.outcome("open", place / "file", os.O_RDONLY) == "EACCES"


def test_root_obeys_in_its_own_name(site: Site, several: RealMount, allow: SetPolicy, place: Path) -> None:
    allow(rule("root-not", "uid:0", "read", effect="deny"), rule("b", f"uid:{BERT}", *ALL))
    with pytest.raises(PermissionError):
        (place / "file").read_bytes()
    with Person(BERT) as bert:  # which root can become
        assert bert.do("read", place / "file")[:7] == "content"


# -- who may change what ---------------------------------------------------------------------------


def logged_in(uid: int, site: Site, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
    """The command as root, by somebody who logged in as another user and became root, as with sudo."""

    def command() -> str:
        Path("/proc/self/loginuid").write_text(str(uid))
        return site.cmkfs(*arguments, codes=codes)

    found: str = in_child(command)
    return found


def audited(site: Site, event: str) -> dict[str, Any]:
    """The last record of an event."""
    records: list[dict[str, Any]] = json.loads(site.cmkfs("audit", "show", "--json", "--event", event))["records"]
    return max(records, key=lambda record: str(record["ts"]))


def test_lock_and_unlock_are_given_to_different_people(site: Site, several: RealMount, allow: SetPolicy) -> None:
    several.expected_log = ["lockdown: (un)?locked"]
    where = str(several.path)
    allow(rule("security", f"uid:{ANNA}", "lock"), rule("operations", f"uid:{BERT}", "unlock"))
    said = site.cmkfs("lock", where, codes=(3,))  # given to somebody: not root's any more
    assert "may not lock what is under CMK several" in said
    refused = audited(site, "lock")
    assert (refused["outcome"], refused["uid"], refused["rule"]) == ("refused", 0, "(no rule)")
    assert several.ask("status")["state"] == "serving"
    logged_in(ANNA, site, "lock", where)
    assert several.ask("status")["zones"][0]["reason"] == f"uid {ANNA} locked the zone"
    done = audited(site, "lock")
    assert (done["outcome"], done["uid"], done["login_uid"]) == ("done", 0, ANNA)
    assert f"uid {ANNA} may not unlock" in logged_in(ANNA, site, "unlock", where, codes=(3,))
    logged_in(BERT, site, "unlock", where)
    allow(rule("root-too", "uid:0", "admin"), rule("not-carla", f"uid:{CARLA}", "admin", effect="deny"))
    logged_in(CARLA, site, "lock", where, codes=(3,))  # as root, who may: it is she
    assert audited(site, "lock")["rule"] == "not-carla"
    site.cmkfs("lock", where)
    site.cmkfs("unlock", where)


def test_disable_enable_and_policy_are_given_to_different_people(
    site: Site, several: RealMount, allow: SetPolicy
) -> None:
    several.expected_log = ["lockdown: (un)?locked"]
    allow(
        rule("security", f"uid:{ANNA}", "disable"),
        rule("operations", f"uid:{BERT}", "enable"),
        rule("owners", "uid:0", "policy"),
    )
    assert f"may not disable CMK {CMK}" in site.cmkfs("cmk", "disable", CMK, codes=(3,))
    refused = audited(site, "cmk.disable")
    assert (refused["outcome"], refused["rule"], refused["cmk"]) == ("refused", "(no rule)", CMK)
    logged_in(ANNA, site, "cmk", "disable", CMK)
    assert audited(site, "cmk.disable")["login_uid"] == ANNA
    logged_in(ANNA, site, "cmk", "enable", CMK, codes=(3,))
    refused = audited(site, "cmk.enable")
    assert (refused["outcome"], refused["login_uid"]) == ("refused", ANNA)
    logged_in(BERT, site, "cmk", "enable", CMK)
    site.cmkfs("policy", "explain", CMK, "--user", str(ANNA), "--action", "disable")
    site.cmkfs("policy", "explain", CMK, "--user", "0", "--action", "disable", codes=(3,))
    site.cmkfs("policy", "explain", CMK, "--user", "0", "--action", "rotate")  # given to nobody: root's


def test_who_sets_a_policy_must_be_able_to_change_it_again(site: Site, several: RealMount, allow: SetPolicy) -> None:
    allow()
    file = site.top / "handed-over.toml"
    file.write_text(rule("owner", f"uid:{CARLA}", "*"))
    assert "could not change this policy again" in site.cmkfs("policy", "set", CMK, str(file), codes=(2,))
    logged_in(CARLA, site, "policy", "set", CMK, str(file))
    assert audited(site, "policy.set")["login_uid"] == CARLA
    assert f"root may not change the policy of CMK {CMK}" in site.cmkfs("policy", "unset", CMK, codes=(3,))
    refused = audited(site, "policy.unset")
    assert (refused["outcome"], refused["rule"], refused["cmk"]) == ("refused", "(no rule)", CMK)
    logged_in(CARLA, site, "policy", "unset", CMK)


def test_a_zone_is_made_and_given_up_by_who_may_create_and_delete(
    site: Site, several: RealMount, allow: SetPolicy
) -> None:
    allow()
    site.cmkfs("cmk", "create", "zoned")
    file, zone = site.top / "zoned.toml", str(several.path / "zoned")

    def zoned(*actions: str) -> None:
        file.write_text(rule("some", "uid:0", *actions))
        site.cmkfs("policy", "set", "zoned", str(file))

    zoned("list", "delete")
    assert "root may not create" in site.cmkfs("zone", "create", zone, "--cmk", "zoned", codes=(3,))
    assert audited(site, "zone.create")["rule"] == "(no rule)"
    assert not Path(zone).exists()
    zoned("list", "create")
    site.cmkfs("zone", "create", zone, "--cmk", "zoned")
    assert "root may not delete" in site.cmkfs("zone", "remove", zone, codes=(3,))
    refused = audited(site, "zone.remove")
    assert (refused["outcome"], refused["uid"], refused["rule"]) == ("refused", 0, "(no rule)")
    zoned("list", "delete")
    site.cmkfs("zone", "remove", zone)
    Path(zone).rmdir()

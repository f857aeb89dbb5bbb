"""Who may use a mount: with and without a policy, by mode bits, by group, and a mount of an ordinary user."""

import concurrent.futures
import json
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from children import ALICE, BOB, Who, in_child
from real_mount import OWN_CMK, RealMount, Site
from side_by_side import SideBySide

TEAM = 12400
TEAM_CMK = "team"
TEAM_POLICY = f"""
[[rule]]
id = "team"
effect = "allow"
who = ["gid:{TEAM}", "uid:0"]
actions = ["list", "read", "write", "create", "delete"]
"""


def _uses(place: Path) -> dict[str, Callable[[], object]]:
    return {
        "open": lambda: (place / "file").read_bytes(),
        "open to write": lambda: os.close(os.open(place / "file", os.O_WRONLY)),
        "truncate": lambda: os.truncate(place / "file", 1),
        "list": lambda: os.listdir(place),
        "create": lambda: (place / "new").touch(),
        "mkdir": lambda: (place / "d2").mkdir(),
        "symlink": lambda: (place / "s").symlink_to("x"),
        "fifo": lambda: os.mkfifo(place / "p"),
        "link": lambda: os.link(place / "file", place / "hard"),
        "rename": lambda: os.rename(place / "file", place / "moved"),
        "unlink": lambda: (place / "file").unlink(),
        "rmdir": lambda: (place / "d").rmdir(),
        "chmod": lambda: (place / "file").chmod(0o600),
        "times": lambda: os.utime(place / "file"),
        "getxattr": lambda: os.getxattr(place / "file", "user.x"),
        "listxattr": lambda: os.listxattr(place / "file"),
        "setxattr": lambda: os.setxattr(place / "file", "user.y", b"1"),
        "removexattr": lambda: os.removexattr(place / "file", "user.x"),
        "lookup": lambda: os.stat(place / "not looked up"),
    }


def _prepare(place: Path, owner: int) -> None:
    """Everything that mode bits can allow."""
    (place / "file").write_bytes(b"content")
    (place / "d").mkdir()
    os.setxattr(place / "file", "user.x", b"1")
    for path in (place / "file", place / "d", place):
        path.chmod(0o777)
        os.chown(path, owner, owner)


def _is_refused(use: Callable[[], object], who: Who) -> bool:
    try:
        in_child(use, who)
    except PermissionError:
        return True
    return False


def test_without_a_policy_only_root_and_whoever_mounted(new_mount: Callable[..., RealMount]) -> None:
    mounted = new_mount("allow_other", cmk=OWN_CMK)
    _prepare(mounted.path, BOB.uid)
    for name, use in _uses(mounted.path).items():
        assert _is_refused(use, BOB), name
    for use in _uses(mounted.path).values():
        try:
            use()
        except FileNotFoundError:
            continue  # by "rename" and "unlink" before


def test_without_allow_other_nobody_else_gets_in(new_mount: Callable[..., RealMount]) -> None:
    mounted = new_mount()
    _prepare(mounted.path, BOB.uid)
    for use in (*_uses(mounted.path).values(), lambda: os.stat(mounted.path)):
        with pytest.raises(PermissionError):
            in_child(use, BOB)


def test_a_policy_for_a_group(site: Site, new_mount: Callable[..., RealMount]) -> None:
    policy = site.top / "team.toml"
    policy.write_text(TEAM_POLICY)
    site.cmkfs("cmk", "create", TEAM_CMK)
    site.cmkfs("policy", "set", TEAM_CMK, str(policy))
    mounted = new_mount("allow_other", cmk=TEAM_CMK)
    _prepare(mounted.path, ALICE.uid)
    member = Who(BOB.uid, BOB.gid, (1, TEAM, 7))
    first = Who(BOB.uid, TEAM)
    for who in (BOB, ALICE):  # the owner of the files is not in the group: mode bits do not help
        for name, use in _uses(mounted.path).items():
            assert _is_refused(use, who), name
    for who in (member, first):
        assert in_child(lambda: (mounted.path / "file").read_bytes(), who) == b"content"
        assert in_child(lambda: sorted(os.listdir(mounted.path)), who) == ["d", "file"]
        in_child(lambda: (mounted.path / "file").write_bytes(b"content"), who)
    with pytest.raises(PermissionError):
        in_child(lambda: (mounted.path / "file").read_bytes(), BOB)


def test_mode_bits_hold_for_those_whom_the_policy_allows(both: SideBySide) -> None:
    def prepare(place: Path) -> None:
        for mode in range(8):
            for node in ("file", "directory"):
                path = place / f"{node} {mode}"
                if node == "file":
                    path.write_bytes(b"content")
                else:
                    path.mkdir()
                    (path / "inner").write_bytes(b"inner")
                path.chmod(mode)

    def use(place: Path, mode: int) -> list[str]:
        file, directory = place / f"file {mode}", place / f"directory {mode}"
        uses: list[Callable[[], object]] = [
            file.read_bytes,
            lambda: os.close(os.open(file, os.O_WRONLY)),
            lambda: os.close(os.open(file, os.O_RDWR)),
            lambda: os.truncate(file, 2),
            lambda: os.access(file, os.X_OK) or os.stat(place / "missing"),
            lambda: os.listdir(directory),
            lambda: (directory / "inner").read_bytes(),
            lambda: (directory / "new").touch(),
            lambda: os.rename(directory / "inner", directory / "moved"),
            lambda: os.unlink(directory / "moved"),
        ]
        outcomes = []
        for what in uses:
            try:
                what()
                outcomes.append("done")
            except OSError as error:
                outcomes.append(type(error).__name__)
        return outcomes

    both.same(prepare)
    for mode in range(8):
        both.same(lambda place, mode=mode: use(place, mode), ALICE)  # type: ignore[misc]
    for place in (both.mounted, both.plain):
        for path in place.iterdir():
            path.chmod(0o700)
    both.same_trees()


# -- A mount of an ordinary user -------------------------------------------------------------------


@pytest.fixture
def user(user_mount: RealMount) -> Who:
    who = user_mount.site.who
    assert who is not None
    return who


def test_root_does_not_get_into_a_mount_of_a_user(user_mount: RealMount) -> None:
    with pytest.raises(PermissionError):
        os.listdir(user_mount.path)


def test_a_user_works_on_his_own_mount_as_on_his_own_directory(user_mount: RealMount, user: Who, site: Site) -> None:
    plain = site.top / "user"
    plain.mkdir()
    os.chown(plain, user.uid, user.gid)

    def story(place: Path) -> list[object]:
        os.umask(0o022)
        (place / "d").mkdir()
        (place / "d" / ("l" * 255)).write_bytes(b"x" * 10_000)
        (place / "link").symlink_to("t" * 2000)
        os.mkfifo(place / "fifo")
        os.link(place / "d" / ("l" * 255), place / "hard")
        os.setxattr(place / "hard", "user.x", b"1")
        os.rename(place / "d", place / "e")
        os.truncate(place / "hard", 4049)
        os.utime(place / "hard", ns=(3, 4))
        os.chown(place / "hard", -1, user.gid)
        found = os.stat(place / "hard")
        seen: list[object] = [found.st_uid, found.st_gid, found.st_nlink, found.st_size, found.st_mtime_ns]
        seen += [(place / "e" / ("l" * 255)).read_bytes(), os.getxattr(place / "hard", "user.x")]
        try:
            os.chown(place / "hard", 0, 0)
        except PermissionError:
            seen.append("refused")
        return [*seen, sorted(os.listdir(place))]

    expected = in_child(lambda: story(plain), user)
    assert in_child(lambda: story(user_mount.path), user) == expected
    user_mount.again()
    assert in_child(lambda: sorted(os.listdir(user_mount.path)), user) == expected[-1]
    assert in_child(lambda: (user_mount.path / "hard").read_bytes(), user) == b"x" * 4049


@pytest.mark.parametrize("between", ["nothing", "remount", "death"])
def test_nodes_whose_mode_keeps_even_the_user_out(user_mount: RealMount, user: Who, between: str) -> None:
    """The daemon is the same user: what the mode forbids him, it still must do, as a filesystem does."""
    top = user_mount.path
    modes = (0o000, 0o100, 0o200, 0o300, 0o400, 0o500, 0o600, 0o700)

    def make() -> None:
        for mode in modes:
            (top / f"f{mode:o}").write_bytes(b"content")
            (top / f"f{mode:o}").chmod(mode)
            os.mkdir(top / f"d{mode:o}", mode)
            os.mkdir(top / f"full{mode:o}")
            (top / f"full{mode:o}" / "inner").touch()
            (top / f"full{mode:o}").chmod(mode)

    def outcome(task: Callable[[], object]) -> str:
        try:
            task()
        except OSError as error:
            return type(error).__name__
        return "done"

    def look() -> dict[str, str]:
        return {name: oct(os.stat(top / name).st_mode & 0o777) for name in sorted(os.listdir(top))}

    def use(mode: int) -> list[str]:
        file, directory, full = top / f"f{mode:o}", top / f"d{mode:o}", top / f"full{mode:o}"
        seen = [
            outcome(file.read_bytes),
            outcome(lambda: os.close(os.open(file, os.O_RDWR))),
            outcome(lambda: _overwrite(file)),
            outcome(lambda: os.listdir(full)),
            outcome(lambda: (full / "new").touch()),
            outcome(lambda: (full / "inner").stat()),
        ]
        file.chmod(0o600)
        seen += [outcome(lambda: _overwrite(file)), outcome(file.read_bytes)]
        file.chmod(mode)
        os.utime(file, ns=(1, 2))
        os.rename(file, file.with_name("moved"))
        file.with_name("moved").unlink()
        os.rename(directory, directory.with_name("moved d"))
        directory.with_name("moved d").rmdir()
        seen.append(outcome(full.rmdir))
        full.chmod(0o700)
        (full / "inner").unlink()
        return seen

    def expected(mode: int) -> list[str]:
        def needs(bits: int) -> str:
            return "done" if mode & bits == bits else "PermissionError"

        removal = "OSError"  # not empty
        return [
            *(needs(0o400), needs(0o600), needs(0o200), needs(0o400), needs(0o300), needs(0o100)),
            *("done", "done", removal),
        ]

    in_child(make, user)
    if between == "remount":
        user_mount.again()
    elif between == "death":
        user_mount.kill()
        user_mount.up()
        assert not user_mount.ask("status")["recovered"]["unreadable"]
    shown = in_child(look, user)
    for mode in modes:
        assert shown[f"f{mode:o}"] == shown[f"d{mode:o}"] == shown[f"full{mode:o}"] == oct(mode)
    for mode in modes:
        assert in_child(lambda: use(mode), user) == expected(mode), oct(mode)  # noqa: B023 - called at once


def _overwrite(file: Path) -> None:
    fd = os.open(file, os.O_WRONLY)
    try:
        os.write(fd, b"CONTENT")
        os.fsync(fd)
    finally:
        os.close(fd)


def test_a_file_that_was_open_for_reading_only_is_written_after_a_chmod(user_mount: RealMount, user: Who) -> None:
    file = user_mount.path / "file"

    def make() -> None:
        file.write_bytes(b"content")
        file.chmod(0o400)

    def write_while_it_is_open() -> bytes:
        reader = os.open(file, os.O_RDONLY)
        try:
            os.read(reader, 3)
            file.chmod(0o600)
            _overwrite(file)
            return os.pread(reader, 100, 0)
        finally:
            os.close(reader)

    in_child(make, user)
    user_mount.again()
    assert in_child(write_while_it_is_open, user) == b"CONTENT"
    user_mount.again()
    assert in_child(file.read_bytes, user) == b"CONTENT"


# -- users of the host, by name --------------------------------------------------------------------

MARY, NICK, OSCAR = "cmkfs-mary", "cmkfs-nick", "cmkfs-oscar"
OFFICE = "cmkfs-office"


@pytest.fixture(scope="module")
def accounts() -> Iterator[None]:
    """Three users as useradd(8) makes them; Mary and Nick are in a group."""
    subprocess.run(["groupadd", OFFICE], check=True)
    try:
        for name, groups in ((MARY, OFFICE), (NICK, OFFICE), (OSCAR, "")):
            more = ["--groups", groups] if groups else []
            subprocess.run(["useradd", "--no-create-home", "--shell", "/bin/sh", *more, name], check=True)
        yield
    finally:
        for name in (MARY, NICK, OSCAR):
            subprocess.run(["userdel", name], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["groupdel", OFFICE], check=False)


def as_user(name: str, script: str) -> tuple[int, str]:
    """What a shell of the user says, with the groups that the host gives him."""
    user = ["setpriv", f"--reuid={name}", f"--regid={name}", "--init-groups"]
    done = subprocess.run([*user, "sh", "-c", script], capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_users_of_the_host_on_one_mount(site: Site, new_mount: Callable[..., RealMount], accounts: None) -> None:
    policy = site.top / "office.toml"
    rules = {
        "operators": ("allow", "uid:0", "list, read, write, create, delete"),
        "office": ("allow", f"group:{OFFICE}", "list, read, write, create, delete"),
        "nick-reads-only": ("deny", f"user:{NICK}", "write, create, delete"),
        "drop-box": ("allow", f"user:{OSCAR}", "create, write"),
    }
    policy.write_text(
        "".join(
            f'[[rule]]\nid = "{name}"\neffect = "{effect}"\nwho = ["{who}"]\nactions = {actions.split(", ")}\n'
            for name, (effect, who, actions) in rules.items()
        )
    )
    site.cmkfs("cmk", "create", "office")
    site.cmkfs("policy", "set", "office", str(policy))
    mounted = new_mount("allow_other", cmk="office")
    mounted.path.chmod(0o777)
    denied = "Permission denied"
    with concurrent.futures.ThreadPoolExecutor() as together:  # all at once, on one mount
        first = together.submit(as_user, MARY, f"cd {mounted.path} && umask 0 && echo from mary > note && cat note")
        assert first.result() == (0, "from mary\n")
        scripts = {
            MARY: ("cat note; ls", 0, ("from mary", "note")),
            NICK: ("cat note && ls && ! echo x >> note && ! touch new && ! rm -f note", 0, ("from mary", denied)),
            OSCAR: ("umask 0; echo letter > letter && ! cat note && ! ls && ! cat letter", 0, (denied,)),
        }
        running = {
            name: together.submit(as_user, name, f"cd {mounted.path} && {script}")
            for name, (script, _, _) in scripts.items()
        }
        for name, (_, code, words) in scripts.items():
            found = running[name].result()
            assert found[0] == code, (name, found)
            assert all(word in found[1] for word in words), (name, found)
    assert as_user(MARY, f"cat {mounted.path}/letter") == (0, "letter\n")
    subprocess.run(["gpasswd", "--delete", MARY, OFFICE], check=True, stdout=subprocess.DEVNULL)
    assert denied in as_user(MARY, f"cat {mounted.path}/letter")[1]  # a process counts with the groups that it has
    (record,) = [
        record
        for record in json.loads(site.cmkfs("audit", "show", "--json", "--user", OSCAR, "--event", "create"))["records"]
        if record["mount"] == str(mounted.path)
    ]
    assert (record["outcome"], record["rule"], record["cmk"]) == ("allowed", "drop-box", "office")


def test_no_mode_keeps_the_owner_from_checking_the_vault(user_mount: RealMount) -> None:
    """A directory through which nobody may go, and one that may only be listed; both as they were afterwards."""
    who = user_mount.site.who
    assert who is not None

    def make() -> None:
        for name, mode in (("closed", 0), ("listed", 0o644)):
            (user_mount.path / name).mkdir()
            (user_mount.path / name / "file").write_bytes(b"x" * 5_000)
            (user_mount.path / name).chmod(mode)

    in_child(make, who)
    user_mount.down()
    assert "3 directories, 2 files" in user_mount.site.cmkfs("check", str(user_mount.vault))
    user_mount.up()
    modes = in_child(
        lambda: [stat.S_IMODE((user_mount.path / name).stat().st_mode) for name in ("closed", "listed")], who
    )
    assert modes == [0, 0o644]
    in_child(lambda: [(user_mount.path / name).chmod(0o700) for name in ("closed", "listed")], who)

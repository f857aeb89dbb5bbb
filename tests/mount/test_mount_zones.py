"""Several zones on one mount: made, told apart, locked each by itself, and what carrying things between them gives."""

import errno
import json
import mmap
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from real_mount import OWN_CMK, RealMount, Site

from cmkfs.format.header import Identity
from cmkfs.fs.backing import RENAME_EXCHANGE, RENAME_NOREPLACE, rename

HR, LEGAL, BOARD = "hr", "legal", "board"
PLAN = b"what hr plans\n" * 500


@pytest.fixture(scope="module")
def cmks(site: Site) -> None:
    for name in (HR, LEGAL, BOARD):
        site.cmkfs("cmk", "create", name)


@dataclass(frozen=True, slots=True)
class Company:
    """A mount with the zones `hr`, `legal`, and `board` inside of `hr`."""

    mounted: RealMount

    @property
    def path(self) -> Path:
        return self.mounted.path

    def cmkfs(self, *arguments: str, codes: Any = (0,)) -> Any:
        return json.loads(self.mounted.site.cmkfs(*arguments, "--json", codes=codes).splitlines()[0])

    def zone(self, name: str) -> dict[str, Any]:
        """What status says of the zone under a CMK."""
        zones = self.mounted.ask("status")["zones"]
        return next(zone for zone in zones if zone["cmk"] == name)


@pytest.fixture(scope="module")
def shared_company(site: Site, cmks: None) -> Iterator[Company]:
    mounted = site.mount(site.new_vault(OWN_CMK))
    try:
        yield new_company(mounted)
    finally:
        mounted.clear()


def new_company(mounted: RealMount) -> Company:
    for path, cmk in (("hr", HR), ("legal", LEGAL), ("hr/board", BOARD)):
        mounted.site.cmkfs("zone", "create", str(mounted.path / path), "--cmk", cmk)
    mounted.expected_log = ["lockdown: (un)?locked", "guard: ", r"open files wait"]
    (mounted.path / "common").write_bytes(b"common")
    for place in ("hr", "legal", "hr/board"):
        (mounted.path / place / "plan").write_bytes(PLAN)
        (mounted.path / place / "sub").mkdir()
        (mounted.path / place / "sub" / "deep").write_bytes(PLAN)
    return Company(mounted)


@pytest.fixture
def company(shared_company: Company) -> Iterator[Company]:
    yield shared_company
    shared_company.mounted.check()


def refusal(step: Callable[[], object]) -> str:
    """The name of the errno that a step ends with; empty if it does not fail."""
    try:
        step()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def backing_of(mounted: RealMount, path: Path) -> Path:
    """What a path on the mount is in the vault: numbers of inodes are the backing's."""
    number = path.lstat().st_ino
    (found,) = (node for node in walked(mounted.vault) if node.lstat().st_ino == number)
    return found


def walked(top: Path) -> Iterator[Path]:
    """Not rglob: it follows the symlinks of the vault, whose targets can be too long for a path."""
    return (Path(at, name) for at, below, files in os.walk(top) for name in (*below, *files))


def zone_in_header(company: Company, path: Path) -> str:
    return Identity.from_bytes(backing_of(company.mounted, path).read_bytes()[:4096]).zone_id.hex()


# -- made and shown --------------------------------------------------------------------------------


def test_files_are_under_the_cmk_of_their_zone(company: Company) -> None:
    os.sync()
    for place, cmk in (("common", OWN_CMK), ("hr/plan", HR), ("hr/board/sub/deep", BOARD), ("legal/plan", LEGAL)):
        told = company.cmkfs("info", str(company.path / place))
        assert told["cmk"] == cmk
        assert told["zone"] == company.zone(cmk)["zone"] == zone_in_header(company, company.path / place)
    assert company.cmkfs("info", str(company.path / "hr"))["cmk"] == HR


def test_list_and_status_show_them(company: Company) -> None:
    listed = company.cmkfs("zone", "list", str(company.path))["zones"]
    top = str(company.path)
    assert {(zone["path"], zone["cmk"], zone["state"]) for zone in listed} == {
        (top + "/", OWN_CMK, "serving"),
        (f"{top}/hr", HR, "serving"),
        (f"{top}/legal", LEGAL, "serving"),
        (f"{top}/hr/board", BOARD, "serving"),
    }
    text = company.mounted.site.cmkfs("zone", "list", top)
    assert f"{top}/hr/board" in text
    for cmk in (HR, BOARD):
        assert top in company.cmkfs("cmk", "show", cmk)["mounts"]


def test_what_cannot_be_a_zone(company: Company, tmp_path: Path) -> None:
    top = company.path
    for place, cmk, code in (
        (top / "hr" / "sub", LEGAL, 1),  # not empty
        (top / "hr", LEGAL, 1),  # a zone already
        (top / "common", LEGAL, 1),  # no directory
        (top, LEGAL, 2),
        (top / "new", "nobody", 7),
        (top / "no" / "new", LEGAL, 7),
        (tmp_path, LEGAL, 7),
    ):
        said = company.mounted.site.cmkfs("zone", "create", str(place), "--cmk", cmk, codes=[code])
        assert "Traceback" not in said
        assert "bug" not in said
    assert not (top / "new").exists()
    company.mounted.site.cmkfs("zone", "remove", str(top / "hr" / "sub"), codes=[7])
    assert (top / "hr" / "plan").read_bytes() == PLAN


def test_an_empty_zone_can_be_given_up(company: Company) -> None:
    site, new = company.mounted.site, company.path / "passing"
    new.mkdir()
    new.chmod(0o2750)
    os.chown(new, 1, 2)
    number = new.stat().st_ino
    site.cmkfs("zone", "create", str(new), "--cmk", HR)
    assert (new.stat().st_ino, new.stat().st_mode & 0o7777, new.stat().st_gid) == (number, 0o2750, 2)
    (new / "x").write_bytes(b"x")
    assert company.cmkfs("info", str(new / "x"))["cmk"] == HR
    site.cmkfs("zone", "remove", str(new), codes=[1])
    assert refusal(new.rmdir) in ("EBUSY", "ENOTEMPTY")
    (new / "x").unlink()
    assert refusal(new.rmdir) == "EBUSY"
    site.cmkfs("zone", "remove", str(new))
    (new / "x").write_bytes(b"x")
    assert company.cmkfs("info", str(new / "x"))["cmk"] == OWN_CMK
    (new / "x").unlink()
    new.rmdir()
    assert len(company.cmkfs("zone", "list", str(company.path))["zones"]) == 4


# -- from one zone into another --------------------------------------------------------------------


def test_rename_and_link_across_zones(company: Company) -> None:
    top = company.path
    for source, target in (("hr/plan", "plan"), ("common", "hr/common"), ("hr/plan", "legal/p"), ("hr/sub", "sub")):
        assert refusal(lambda a=source, b=target: (top / a).rename(top / b)) == "EXDEV"  # type: ignore[misc]
        assert refusal(lambda a=source, b=target: os.link(top / a, top / b)) in ("EXDEV", "EPERM")  # type: ignore[misc]
    top_fd = os.open(top, os.O_RDONLY)
    try:
        for pair in ((b"hr/plan", b"legal/plan"), (b"common", b"hr/board/plan")):
            assert refusal(lambda p=pair: rename(top_fd, p[0], top_fd, p[1], RENAME_EXCHANGE)) == "EXDEV"  # type: ignore[misc]
        for flags in (0, RENAME_EXCHANGE, RENAME_NOREPLACE):
            assert refusal(lambda f=flags: rename(top_fd, b"hr", top_fd, b"legal", f)) in ("EBUSY", "EEXIST")  # type: ignore[misc]
    finally:
        os.close(top_fd)
    assert refusal(lambda: (top / "hr").rename(top / "hr2")) == "EBUSY"
    assert refusal(lambda: (top / "hr" / "board").rename(top / "board")) in ("EXDEV", "EBUSY")
    (top / "empty").mkdir()
    assert refusal(lambda: (top / "empty").rename(top / "legal")) == "EBUSY"
    (top / "empty").rmdir()
    assert refusal((top / "legal").rmdir) == "EBUSY"


@pytest.mark.parametrize("program", ["mv", "cp -a"])
def test_mv_and_cp_encrypt_again(company: Company, program: str) -> None:
    source = company.path / "tree"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "file").write_bytes(PLAN)
    (source / "link").symlink_to("inner/file")
    os.setxattr(source / "inner" / "file", "user.note", b"kept")
    target = company.path / "hr" / f"tree-{program[:2]}"
    subprocess.run([*program.split(), str(source), str(target)], check=True)
    assert (target / "inner" / "file").read_bytes() == PLAN
    assert os.readlink(target / "link") == "inner/file"
    assert os.getxattr(target / "inner" / "file", "user.note") == b"kept"
    os.sync()
    assert zone_in_header(company, target / "inner" / "file") == company.zone(HR)["zone"]
    assert source.exists() == (program != "mv")
    shutil.rmtree(target)
    shutil.rmtree(source, ignore_errors=True)


def test_mv_of_a_zone_fails_and_changes_nothing(company: Company) -> None:
    done = subprocess.run(["mv", str(company.path / "legal"), str(company.path / "law")], check=False)
    assert done.returncode != 0
    assert not (company.path / "law").exists()
    assert (company.path / "legal" / "plan").read_bytes() == PLAN


def test_the_directories_around_a_zone_may_move(company: Company) -> None:
    top = company.path
    (top / "a").mkdir()
    company.mounted.site.cmkfs("zone", "create", str(top / "a" / "z"), "--cmk", LEGAL)
    (top / "a" / "z" / "file").write_bytes(PLAN)
    (top / "a").rename(top / "b")
    company.mounted.again()
    assert (top / "b" / "z" / "file").read_bytes() == PLAN
    assert company.cmkfs("info", str(top / "b" / "z" / "file"))["cmk"] == LEGAL
    assert refusal(lambda: shutil.rmtree(top / "b" / "z")) == "EBUSY"
    company.mounted.site.cmkfs("zone", "remove", str(top / "b" / "z"))
    shutil.rmtree(top / "b")


# -- independent states ----------------------------------------------------------------------------


@dataclass(slots=True)
class Held:
    """What a program has of a zone: a descriptor, a mapping, a directory."""

    fd: int
    mapped: mmap.mmap
    directory: int

    @classmethod
    def of(cls, zone: Path) -> "Held":
        fd = os.open(zone / "plan", os.O_RDWR)
        return cls(fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ), os.open(zone / "sub", os.O_RDONLY))

    def close(self) -> None:
        self.mapped.close()
        os.close(self.fd)
        os.close(self.directory)


@pytest.mark.parametrize("how", ["disable", "lock"])
def test_one_zone_locks_and_the_others_keep_their_caches(company: Company, how: str) -> None:
    site, top = company.mounted.site, company.path
    hr, legal = Held.of(top / "hr"), Held.of(top / "legal")
    try:
        for held in (hr, legal):
            assert os.pread(held.fd, 100, 0) == held.mapped[:100] == PLAN[:100]
        os.pwrite(hr.fd, b"dirty", 0)
        (top / "common").read_bytes()
        if how == "disable":
            site.cmkfs("cmk", "disable", HR)
        else:
            site.cmkfs("lock", "--cmk", HR)
        before = company.mounted.ask("status")["requests"]
        assert os.pread(legal.fd, 100, 0) == legal.mapped[:100] == PLAN[:100]
        assert company.mounted.ask("status")["requests"] == before, "what was cached is asked for again"
        assert os.stat(legal.fd).st_size == len(PLAN)
        assert (top / "common").read_bytes() == b"common"
        assert (top / "legal" / "plan").read_bytes() == PLAN
        (top / "legal" / "new").write_bytes(b"new")
        (top / "legal" / "new").unlink()

        assert company.zone(HR)["state"] == ("disabled" if how == "disable" else "locked")
        assert {company.zone(cmk)["state"] for cmk in (OWN_CMK, LEGAL, BOARD)} == {"serving"}
        site.cmkfs("status", str(top), codes=[0])
        ways: list[Callable[[], object]] = [
            lambda: os.pread(hr.fd, 10, 0),
            lambda: os.stat(hr.fd),
            lambda: os.listdir(hr.directory),
            lambda: os.stat("deep", dir_fd=hr.directory),
            lambda: os.listdir(top / "hr"),
            lambda: (top / "hr" / "plan").stat(),
            lambda: (top / "hr" / "plan").read_bytes(),
            lambda: (top / "hr" / "new").write_bytes(b""),
            lambda: (top / "hr" / "sub").rename(top / "hr" / "bus"),
            lambda: (top / "hr" / "plan").unlink(),
            lambda: os.getxattr(top / "hr", "user.x"),
        ]
        assert [refusal(way) for way in ways] == ["ENOKEY"] * len(ways)
        assert (top / "hr").is_dir()
        assert "hr" in os.listdir(top)
        assert refusal(lambda: (top / "hr").rename(top / "x")) == "EBUSY"
    finally:
        site.cmkfs("cmk", "enable", HR)
        site.cmkfs("unlock", str(top))
        assert os.pread(hr.fd, 10, 0) == b"dirty" + PLAN[5:10]
        os.pwrite(hr.fd, PLAN[:5], 0)
        hr.close()
        legal.close()
    assert {zone["state"] for zone in company.mounted.ask("status")["zones"]} == {"serving"}


def test_a_zone_inside_a_locked_one_goes_on_for_who_is_in_it(company: Company) -> None:
    site, top = company.mounted.site, company.path
    board, plan = (
        os.open(top / "hr" / "board" / "sub", os.O_RDONLY),
        os.open(top / "hr" / "board" / "plan", os.O_RDONLY),
    )
    try:
        site.cmkfs("cmk", "disable", HR)
        assert os.pread(plan, len(PLAN), 0) == PLAN
        fd = os.open("deep", os.O_RDONLY, dir_fd=board)
        assert os.pread(fd, 10, 0) == PLAN[:10]
        os.close(fd)
        assert os.listdir(board) == ["deep"]
        assert refusal(lambda: os.listdir(top / "hr" / "board")) == "ENOKEY"
        listed = {zone["cmk"]: zone["path"] for zone in company.cmkfs("zone", "list", str(top))["zones"]}
        assert listed[BOARD] is None
        assert "inside a zone that is locked" in site.cmkfs("zone", "list", str(top))
    finally:
        site.cmkfs("cmk", "enable", HR)
        os.close(board)
        os.close(plan)


def test_locking_the_root_zone_hides_the_others(company: Company) -> None:
    site, top = company.mounted.site, company.path
    (top / "hr" / "plan").stat()
    site.cmkfs("lock", "--cmk", OWN_CMK)
    try:
        site.cmkfs("status", str(top), codes=[4])
        assert refusal((top / "hr").stat) == "ENOKEY"
        assert refusal(lambda: os.listdir(top)) == "ENOKEY"
        assert refusal((top / "hr" / "plan").read_bytes) == "ENOKEY"
    finally:
        site.cmkfs("unlock", str(top))


def test_unlock_does_what_it_can(company: Company) -> None:
    site, top = company.mounted.site, company.path
    site.cmkfs("lock", str(top))
    site.cmkfs("cmk", "disable", LEGAL)
    try:
        assert "legal" in site.cmkfs("unlock", str(top), codes=[4])
        assert (top / "hr" / "plan").read_bytes() == PLAN
        assert refusal((top / "legal" / "plan").read_bytes) == "ENOKEY"
    finally:
        site.cmkfs("cmk", "enable", LEGAL)
        site.cmkfs("unlock", str(top))
    assert (top / "legal" / "plan").read_bytes() == PLAN


def test_mount_with_a_cmk_that_is_disabled(company: Company) -> None:
    """The rest is served, and the zone comes by itself, with the zones in it and its policy."""
    mounted, site, top = company.mounted, company.mounted.site, company.path
    mounted.expected_log += ["zones: the zone under CMK hr is locked"]
    mounted.down()
    site.cmkfs("cmk", "disable", HR)
    try:
        told = mounted.site.cmkfs("mount", str(mounted.vault), str(top))
        assert "\n  not served: zones under CMK hr (" in told
        mounted.adopt(mounted.ask("status")["pid"])
        assert (top / "legal" / "plan").read_bytes() == PLAN
        assert refusal(lambda: os.listdir(top / "hr")) == "ENOKEY"
        assert (top / "hr").stat().st_mode
        assert company.zone(HR)["state"] == "disabled"
        assert company.zone(BOARD)["state"] == "serving"
        site.cmkfs("unlock", str(top), codes=[4])
    finally:
        said = site.cmkfs("cmk", "enable", HR)
    assert f"in force on {top}\n" in said
    assert (top / "hr" / "plan").read_bytes() == PLAN
    assert (top / "hr" / "board" / "plan").read_bytes() == PLAN


def test_records_are_found_without_their_copies(company: Company) -> None:
    """As in a vault whose copies somebody removed: the mount walks, and puts them back."""
    mounted = company.mounted
    mounted.down()
    copies = list(mounted.vault.glob("cmkfs.zone.*"))
    assert len(copies) == 3
    for copy in copies:
        copy.unlink()
    mounted.up()
    assert (company.path / "hr" / "board" / "plan").read_bytes() == PLAN
    assert sorted(mounted.vault.glob("cmkfs.zone.*")) == sorted(copies)


# -- carried by hand, in the vault -----------------------------------------------------------------

SECRET = b"for hr alone\n" * 700
OTHER = b"for legal's eyes\n" * 700
TARGETS = {"hr": "target of hr", "legal": "target of legal"}
WHOLE = {"dir/inner", "file", "link", "note"}


@dataclass(frozen=True, slots=True)
class Carrier:
    """Where the file, the directory with a file, and the symlink of `hr` and of `legal` are stored."""

    vault: dict[str, Path]

    def exchange(self, one: str, other: str) -> None:
        a, b = self.vault[one], self.vault[other]
        aside = a.with_name("aside")
        a.rename(aside)
        b.rename(a)
        aside.rename(b)

    def copy_content(self, first: int = 0, length: int | None = None) -> None:
        data = self.vault["hr/file"].read_bytes()[first : None if length is None else first + length]
        with self.vault["legal/file"].open("r+b") as file:
            file.seek(first)
            file.write(data)

    def copy_link(self, name: str, below: str = "") -> None:
        where = self.vault[f"legal{name}"] / below
        where.unlink()
        where.symlink_to((self.vault[f"hr{name}"] / below).readlink())

    def copy_xattr(self) -> None:
        source, target = self.vault["hr/file"], self.vault["legal/file"]
        for name in os.listxattr(target):
            os.removexattr(target, name)
        for name in os.listxattr(source):
            os.setxattr(target, name, os.getxattr(source, name))

    def move(self, source: str, directory: str) -> None:
        """Under the encrypted name that it has."""
        self.vault[source].rename(self.vault[directory] / self.vault[source].name)


ATTACKS: dict[str, Callable[[Carrier], None]] = {
    "a file in the place of another": lambda carrier: carrier.exchange("hr/file", "legal/file"),
    "all that is in a file": lambda carrier: carrier.copy_content(),
    "a header": lambda carrier: carrier.copy_content(length=4096),
    "blocks": lambda carrier: carrier.copy_content(first=4096),
    "a directory in the place of another": lambda carrier: carrier.exchange("hr/dir", "legal/dir"),
    "the id of a directory": lambda carrier: carrier.copy_link("/dir", "cmkfs.dir"),
    "the target of a symlink": lambda carrier: carrier.copy_link("/link"),
    "an extended attribute": lambda carrier: carrier.copy_xattr(),
    "a file under its own name": lambda carrier: carrier.move("hr/file", "legal"),
    "a directory under its own name": lambda carrier: carrier.move("hr/dir", "legal"),
    "a file into a directory of the other zone": lambda carrier: carrier.move("hr/dir/inner", "legal/dir"),
}
"""Each in a directory of its own in both zones."""
AT_THE_ROOTS: dict[str, Callable[[Carrier], None]] = {
    "one zone's root in the place of another's": lambda carrier: carrier.exchange("hr", "legal"),
    "the record of a zone": lambda carrier: carrier.copy_link("", "cmkfs.zone"),
    "the id of a zone's root": lambda carrier: carrier.copy_link("", "cmkfs.dir"),
}


@pytest.fixture(scope="module")
def two_zones(site: Site, cmks: None) -> Iterator[RealMount]:
    """Zones with the same names in both, on a mount of its own, since what is done to it is damage."""
    mounted = site.mount(site.new_vault(OWN_CMK))
    mounted.expected_log = [".*"]  # every attack is told there; test_mount_audit looks at what is recorded
    for zone, cmk, data in (("hr", HR, SECRET), ("legal", LEGAL, OTHER)):
        mounted.site.cmkfs("zone", "create", str(mounted.path / zone), "--cmk", cmk)
        for place in (mounted.path / zone, *(mounted.path / zone / attack for attack in ATTACKS)):
            (place / "dir").mkdir(parents=True)
            for name in ("file", "dir/inner"):
                (place / name).write_bytes(data)
            (place / "link").symlink_to(TARGETS[zone])
            os.setxattr(place / "file", "user.note", data[:100])
    try:
        yield mounted
    finally:
        mounted.clear()


def carrier_in(mounted: RealMount, below: str = "") -> Carrier:
    """For the things in a directory of both zones."""
    stored = {path.lstat().st_ino: path for path in walked(mounted.vault)}
    names = [f"{zone}{name}" for zone in ("hr", "legal") for name in ("", "/file", "/dir", "/dir/inner", "/link")]
    places = {name: mounted.path.joinpath(*name.split("/")[:1], below, *name.split("/")[1:]) for name in names}
    return Carrier({name: stored[place.lstat().st_ino] for name, place in places.items()})


def test_nothing_of_a_zone_is_readable_under_anothers_policy(two_zones: RealMount) -> None:
    """Done while both are served, and seen at once and after the next mount."""
    mounted, legal = two_zones, two_zones.path / "legal"
    carriers = {attack: carrier_in(mounted, attack) for attack in ATTACKS}
    for attack in ATTACKS:
        assert seen(legal / attack) == WHOLE
    mounted.ask("lock")  # for an empty cache
    mounted.ask("unlock")
    for attack, do in ATTACKS.items():
        do(carriers[attack])
        seen(legal / attack)
    mounted.again()
    for attack in ATTACKS:
        beside = "own name" in attack or "into" in attack
        assert (seen(legal / attack) == WHOLE) == beside, attack
    assert seen(legal) >= WHOLE


@pytest.mark.parametrize("attack", AT_THE_ROOTS)
def test_nothing_of_a_zone_is_readable_at_the_root_of_another(two_zones: RealMount, attack: str) -> None:
    mounted, legal = two_zones, two_zones.path / "legal"
    assert seen(legal) >= WHOLE
    carrier = carrier_in(mounted)
    before = {path: path.readlink() for path in carrier.vault["legal"].iterdir() if path.is_symlink()}
    AT_THE_ROOTS[attack](carrier)
    try:
        seen(legal)
        mounted.again()
        seen(legal)
    finally:
        if attack.startswith("one zone's"):
            AT_THE_ROOTS[attack](carrier)
        for path, target in before.items():
            path.unlink()
            path.symlink_to(target)
        mounted.again()
    assert seen(legal) >= WHOLE


def seen(place: Path) -> set[str]:
    """Everything there that can be read, by name; fails if any of it is of `hr`."""
    ways: dict[str, Callable[[], bytes]] = {
        "file": (place / "file").read_bytes,
        "note": lambda: os.getxattr(place / "file", "user.note"),
        "dir/inner": (place / "dir" / "inner").read_bytes,
        "link": lambda: os.fsencode(os.readlink(place / "link")),
    }
    for directory in (place, place / "dir"):
        if not refusal(lambda at=directory: os.listdir(at)):  # type: ignore[misc]
            for path in map(directory.joinpath, os.listdir(directory)):
                ways.setdefault(str(path.relative_to(place)), path.read_bytes)
    found = set()
    for name, way in ways.items():
        read: list[bytes] = []
        refused = refusal(lambda way=way, read=read: read.append(way()))  # type: ignore[misc]
        assert refused in ("", "EIO", "ENOENT", "ENODATA", "ESTALE", "EISDIR"), (name, refused)
        assert not any(b"hr" in data for data in read), name
        found |= {name} if read else set()
    return found

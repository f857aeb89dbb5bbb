"""Every rule of the tables in rules_of_*.py, by every kind of user, on a mount and on ext4 (docs/limits.md)."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import rules_of_directories
import rules_of_files
import rules_of_paths
from loop_disk import BACKING, disk_for_vaults, loop_disk
from real_mount import REPOSITORY, SHARED_CMK, RealMount, Site
from rules import PEOPLE, Rule, differences

MODES_COUNT = {**rules_of_files.GROUPS, **rules_of_directories.GROUPS}
IN_ITS_OWN_GROUP = ("chown", "chmod", "privileges go with a change of content", "privileges go with a change of owner")
"""Where it counts whether the owner of a file is in its group."""
WITH_ACL = ("chmod", "make", "modes of new nodes", "privileges go with a change of content")
"""For which a mount with ACLs goes other ways."""


_TWICE = ("ends of paths", "other")
"""Takes 4 s, and nothing in it asks who it is."""


def cells(groups: Iterable[str]) -> list[Any]:
    """Each group with each kind of user for whom it differs."""
    return [
        pytest.param(group, who, id=f"{group}, {who}")
        for group in groups
        for who in PEOPLE
        if who != "owner in the group" or group in IN_ITS_OWN_GROUP
    ]


@dataclass(frozen=True)
class Places:
    """A mount for everyone, an ext4, and what is below the vault if that is another filesystem."""

    mounted: RealMount
    plain: Path
    native: Path | None


@contextmanager
def places(site: Site, *options: str) -> Iterator[Places]:
    """With these mount options, both on one ext4, which goes away faster than 40,000 files one by one.

    With `scripts/backings` the vault is on another filesystem.
    """
    top = Path(tempfile.mkdtemp(prefix="rules", dir=site.top))
    top.chmod(0o755)
    try:
        with loop_disk(top, "ext4", 3 << 30) as disk, disk_for_vaults(top if BACKING else disk) as vaults:
            vault, mountpoint, plain = vaults / "vault", top / "mnt", disk / "plain"
            native = vaults / "native" if BACKING not in ("", "ext4") else None
            for made in filter(None, (mountpoint, plain, native)):
                made.mkdir()
            site.cmkfs("init", str(vault), "--cmk", SHARED_CMK)
            vault.chmod(0o755)
            mounted = RealMount(site, vault, mountpoint, ["allow_other", "suid", "dev", *options])
            try:
                yield Places(mounted, plain, native)
                mounted.check()
                mounted.kill()  # to settle them all would take longer than all tests
            finally:
                mounted.clear()
    finally:
        shutil.rmtree(top)


@pytest.fixture(scope="module")
def without_acl(site: Site) -> Iterator[Places]:
    with places(site) as made:
        yield made


@pytest.fixture(scope="module")
def with_acl(site: Site) -> Iterator[Places]:
    with places(site, "acl") as made:
        yield made


def _new(place: Path) -> Path:
    top = Path(tempfile.mkdtemp(prefix="r", dir=place))
    top.chmod(0o755)
    return top


def check(places: Places, rules: Mapping[str, Rule], who: str) -> None:
    """Fail, with all that differs, unless every rule of the group holds."""
    found = differences(rules, PEOPLE[who], _new(places.mounted.path), _new(places.plain))
    if found and places.native is not None:
        # What the backing does itself is no fault of ours: xfs moves the mtime of a directory that changes its parent.
        again = {one.rule: rules[one.rule] for one in found}
        there = differences(again, PEOPLE[who], _new(places.mounted.path), _new(places.native))
        found = [one for one in found if (one.rule, one.what) in {(other.rule, other.what) for other in there}]
    if found:
        pytest.fail(f"{len(found)} differ:\n" + "\n".join(map(str, found)), pytrace=False)
    places.mounted.check()


@pytest.mark.parametrize(("group", "who"), cells(MODES_COUNT))
def test_rules(without_acl: Places, group: str, who: str) -> None:
    check(without_acl, MODES_COUNT[group], who)


@pytest.mark.parametrize(
    ("group", "who"),
    [(group, who) for group in rules_of_paths.GROUPS for who in ("root", "other") if (group, who) != _TWICE],
)
def test_rules_of_paths(without_acl: Places, group: str, who: str) -> None:
    check(without_acl, rules_of_paths.GROUPS[group], who)


@pytest.mark.parametrize(("group", "who"), cells(WITH_ACL))
def test_rules_with_acls(with_acl: Places, group: str, who: str) -> None:
    check(with_acl, MODES_COUNT[group], who)


def test_the_table_of_rules_names_them_all() -> None:
    text = (REPOSITORY / "docs" / "limits.md").read_text()
    table = text[text.index("## Rules") : text.index("## Not in this version")]
    told = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ") and "---" not in line]
    assert {*MODES_COUNT, *rules_of_paths.GROUPS} <= set(told)

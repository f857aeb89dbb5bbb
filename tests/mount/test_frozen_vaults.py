"""P8: a vault written by any released version opens in every later one, and can be written and checked there.

`tests/vaults/vN` is never changed; a new version of the format adds a directory.
"""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from frozen import VAULTS, describe, expected, frozen_site, unpack
from real_mount import EVERYONE, SHARED_CMK, RealMount, Site

VERSIONS = sorted(path for path in VAULTS.iterdir() if path.name.startswith("v"))
DISABLED_CMK = "disabled"


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def version(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture
def site(version: Path) -> Iterator[Site]:
    top = Path(tempfile.mkdtemp(prefix="cmkfs-test-"))
    try:
        yield frozen_site(version, top)
    finally:
        shutil.rmtree(top)


def test_there_are_frozen_vaults() -> None:
    assert [path.name for path in VERSIONS] == ["v1"]


def test_it_opens_as_it_was_and_can_be_checked_and_written(version: Path, site: Site) -> None:
    mounted = mount(version, site, "vault", "acl", "suid", "dev")
    mounted.expected_log = [f"CMK {DISABLED_CMK}", "unlocked: zone"]
    stored = expected(version, "vault")
    try:
        with pytest.raises(OSError, match=os.strerror(errno.ENOKEY)):
            os.listdir(mounted.path / "shut")
        site.cmkfs("cmk", "enable", DISABLED_CMK)
        assert describe(mounted.path) == stored
        assert site.cmkfs("policy", "show", SHARED_CMK) == EVERYONE
        (mounted.path / "size-4048").write_bytes(b"written anew")
        (mounted.path / "zone/new").write_text("new\n")
        os.rename(mounted.path / ("d" * 200), mounted.path / ("e" * 200))
        changed = describe(mounted.path)
        mounted.again()
        assert describe(mounted.path) == changed
        assert len(changed) == len(stored) + 1
    finally:
        mounted.clear()
    assert check(site, mounted.vault) == []


def test_what_was_killed_is_recovered(version: Path, site: Site) -> None:
    mounted = mount(version, site, "unclosed")
    try:
        stored, found = expected(version, "unclosed"), describe(mounted.path)
        assert found == stored
        assert mounted.ask("status")["recovered"]["files_settled"] == len(found) == 2
    finally:
        mounted.clear()
    assert check(site, mounted.vault) == []


def mount(version: Path, site: Site, archive: str, *options: str) -> RealMount:
    """A copy of a frozen vault, mounted."""
    mountpoint = site.top / "mount"
    mountpoint.mkdir()
    return RealMount(site, unpack(version / f"{archive}.tar.gz", site.top), mountpoint, options)


def check(site: Site, vault: Path) -> list[str]:
    """What `cmkfs check` calls damage."""
    found: list[str] = json.loads(site.cmkfs("check", str(vault), "--json"))["damage"]
    return found

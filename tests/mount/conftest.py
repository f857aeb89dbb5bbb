"""Real mounts for tests: made by the real command, taken down whatever happens, and checked for bugs.

A mount costs a second, so most tests share one and have a directory each; those that remount, kill or need
other options have their own.
"""

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import Who
from loop_disk import disk_for_vaults
from real_mount import OWN_CMK, SHARED_CMK, NewMount, RealMount, Site
from side_by_side import SideBySide


@pytest.fixture(scope="session", autouse=True)
def umask() -> Iterator[None]:
    """What tests make is seen by other users unless a test says otherwise."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """Token and CMKs of root, in a directory that others may pass through."""
    top = Path(tempfile.mkdtemp(prefix="cmkfs-test-"))
    top.chmod(0o755)
    try:
        with disk_for_vaults(top) as vaults:
            made = Site(top, vaults=vaults)
            made.prepare()
            yield made
    finally:
        shutil.rmtree(top)


@pytest.fixture(scope="session")
def shared_mount(site: Site) -> Iterator[RealMount]:
    """One mount of root for everyone, with a policy that allows everyone everything."""
    mounted = site.mount(site.new_vault(SHARED_CMK), "allow_other", "suid", "dev")
    try:
        yield mounted
    finally:
        mounted.clear()


@pytest.fixture
def work(shared_mount: RealMount, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty directory on the shared mount, open to everyone; the test fails if the daemon met a bug."""
    made = Path(tempfile.mkdtemp(prefix="t", dir=shared_mount.path))
    made.chmod(0o777)
    yield made
    shutil.rmtree(made)
    shared_mount.check()


@pytest.fixture
def plain(site: Site) -> Iterator[Path]:
    """An empty directory on no mount, open to everyone."""
    made = Path(tempfile.mkdtemp(prefix="plain", dir=site.top))
    made.chmod(0o777)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def both(work: Path, plain: Path) -> SideBySide:
    """A directory on the shared mount and a plain one."""
    return SideBySide(work, plain)


@pytest.fixture
def new_mount(site: Site) -> Iterator[NewMount]:
    """Make mounts of new vaults; all are taken down at the end, and must go down well."""
    made: list[RealMount] = []

    def start(*options: str, cmk: str = SHARED_CMK) -> RealMount:
        made.append(site.mount(site.new_vault(cmk), *options))
        return made[-1]

    yield start
    _clear(made)


@pytest.fixture
def own_mount(new_mount: NewMount) -> RealMount:
    """A mount for this test alone."""
    return new_mount("allow_other")


@pytest.fixture(scope="session")
def user_site() -> Iterator[Site]:
    """Token and CMKs of an ordinary user, who mounts through fusermount3."""
    os.chmod("/dev/fuse", 0o666)  # as udev makes it
    account = pwd.getpwnam("nobody")
    top = Path(tempfile.mkdtemp(prefix="cmkfs-test-"))
    try:
        os.chown(top, account.pw_uid, account.pw_gid)
        with disk_for_vaults(top) as vaults:
            made = Site(top, Who(account.pw_uid, account.pw_gid), vaults)
            made.prepare()
            yield made
    finally:
        shutil.rmtree(top)


@pytest.fixture
def user_mount(user_site: Site) -> Iterator[RealMount]:
    """A mount of an ordinary user, without allow_other and without a policy."""
    mounted = user_site.mount(user_site.new_vault(OWN_CMK))
    yield mounted
    _clear([mounted])


def _clear(mounts: list[RealMount]) -> None:
    errors = []
    for mounted in mounts:
        try:
            mounted.clear()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]

"""The idle lock on a real mount, and the order in which it, a disable and a lock by hand are undone."""

import os
import time

import pytest
from doors import Doors, everything_works, opened, outcome
from real_mount import OWN_CMK, NewMount, RealMount
from test_mount_lock import everything_is_refused

MINUTES = 0.02
SECONDS = 60 * MINUTES


@pytest.fixture
def served(new_mount: NewMount) -> RealMount:
    mounted = new_mount(f"idle={MINUTES}", cmk=OWN_CMK)
    mounted.expected_log = ["lockdown: (un)?locked"]
    return mounted


def until_idle(doors: Doors) -> float:
    """Read what is cached, which is no use of the mount, until that is refused; how long it took."""
    began = time.monotonic()
    while outcome(lambda: os.pread(doors.file, 10, 0)) == "ok":
        assert time.monotonic() - began < 10 * SECONDS
        time.sleep(0.01)
    return time.monotonic() - began


def disable_in_use(mounted: RealMount) -> None:
    """Disable the CMK of a mount that is not idle meanwhile, however long the command takes to begin."""
    with mounted.site.started("cmk", "disable", OWN_CMK) as command:
        while command.poll() is None:
            outcome(lambda: os.listdir(mounted.path / "dir"))
            time.sleep(SECONDS / 20)
    assert command.returncode == 0


def test_idle_locks_and_stores_and_only_an_unlock_ends_it(served: RealMount) -> None:
    with opened(served.path) as doors:
        os.pwrite(doors.written, b"kept" * 1000, 0)
        os.stat(served.path / "dir" / "file")
        began = time.monotonic()
        while time.monotonic() - began < 1.5 * SECONDS:  # use puts it off
            os.listdir(served.path / "dir")
            time.sleep(SECONDS / 10)
        assert outcome(lambda: os.pread(doors.file, 10, 0)) == "ok"
        assert SECONDS / 2 < until_idle(doors) < 2 * SECONDS
        assert served.ask("lock")["was_locked"] is True  # by an operator, as it were; and it is complete
        everything_is_refused(doors)
        assert f"nothing used the mount for {MINUTES} min" in served.ask("status")["zones"][0]["reason"]
        served.site.cmkfs("cmk", "disable", OWN_CMK)
        try:
            served.site.cmkfs("unlock", str(served.path), codes=[4])
        finally:
            served.site.cmkfs("cmk", "enable", OWN_CMK)
        everything_is_refused(doors)  # enabling does not end it
        served.site.cmkfs("unlock", str(served.path))
        everything_works(doors)
        assert os.pread(doors.written, 4000, 0) == b"kept" * 1000


def test_a_disabled_zone_does_not_become_idle(served: RealMount) -> None:
    """Else it would stay locked when it is enabled again."""
    with opened(served.path) as doors:
        disable_in_use(served)
        try:
            time.sleep(1.5 * SECONDS)  # that nothing happens cannot be awaited
            assert served.ask("status")["state"] == "disabled"
        finally:
            served.site.cmkfs("cmk", "enable", OWN_CMK)
        everything_works(doors)
        assert until_idle(doors) > SECONDS / 2  # and from now on it does

"""The table of refusals: state of the zone by operation by the path it is tried on, every cell with its errno.

One mount with a token of its own, so that the token can be taken away and be made to hang. To add a state: a context
manager that brings it about, a column in `COLUMNS`, and its exceptions in `EXPECTED`.
"""

import contextlib
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from doors import SIZE, Attempt, cached_pages, everything_works, opened, outcome
from real_mount import OWN_CMK, RealMount, Site

OUTAGE_GRACE = 1.0
KEYLESS = "ENOKEY"
"""`Required key not available`: what every operation gets while the zone does not serve, whatever the reason."""
DENIED = "EACCES"
"""What every operation gets that the policy does not allow."""


@pytest.fixture(scope="module")
def mounted() -> Iterator[RealMount]:
    top = Path(tempfile.mkdtemp(prefix="cmkfs-test-"))
    try:
        site = Site(top)
        site.prepare()
        made = site.mount(site.new_vault(OWN_CMK), f"outage_grace={OUTAGE_GRACE:g}", "allow_other")
        made.expected_log = ["the token does not answer", "the token's process does not answer", "lockdown: "]
        try:
            yield made
        finally:
            made.clear()
    finally:
        shutil.rmtree(top)


def await_state(mounted: RealMount, state: str, seconds: float) -> None:
    """Fails if the mount is not in that state by then."""
    give_up = time.monotonic() + seconds
    while mounted.ask("status")["state"] != state:
        assert time.monotonic() < give_up, f"not {state} after {seconds} s"
    (zone,) = mounted.ask("status")["zones"]
    mounted.ask("confirm", cmk_id=zone["cmk_id"])  # comes back when a lock that is under way is complete


@contextlib.contextmanager
def locked(mounted: RealMount) -> Iterator[None]:
    mounted.ask("lock")
    try:
        yield
    finally:
        mounted.ask("unlock")


@contextlib.contextmanager
def disabled(mounted: RealMount) -> Iterator[None]:
    mounted.site.cmkfs("cmk", "disable", OWN_CMK)
    try:
        yield
    finally:
        mounted.site.cmkfs("cmk", "enable", OWN_CMK)


@contextlib.contextmanager
def token_moved_away(mounted: RealMount) -> Iterator[None]:
    """The directory of the token is not there any more, as when a smart card is pulled."""
    tokens = mounted.site.home.token_dir / "tokens"
    away = tokens.with_name("away")
    tokens.rename(away)
    try:
        yield
    finally:
        away.rename(tokens)


@contextlib.contextmanager
def token_away(mounted: RealMount) -> Iterator[None]:
    with token_moved_away(mounted):
        await_state(mounted, "locked", OUTAGE_GRACE + 5)
        yield
    await_state(mounted, "serving", 10)


@contextlib.contextmanager
def denied(mounted: RealMount) -> Iterator[None]:
    """By the policy, which allows others everything: nothing is locked, and whoever may goes on."""
    policy = mounted.site.top / "denied.toml"
    policy.write_text(ALL_BUT_ROOT)
    mounted.site.cmkfs("policy", "set", OWN_CMK, str(policy))
    try:
        yield
    finally:
        mounted.site.cmkfs("policy", "unset", OWN_CMK)


ALL_BUT_ROOT = """
[[rule]]
id = "the-others"
effect = "allow"
who = ["*"]
actions = ["*"]

[[rule]]
id = "not-root"
effect = "deny"
who = ["uid:0"]
actions = ["list", "read", "write", "create", "delete"]
"""

State = Callable[[RealMount], contextlib.AbstractContextManager[None]]
COLUMNS: dict[str, State] = {"locked": locked, "disabled": disabled, "token away": token_away, "denied": denied}
EXPECTED: dict[str, dict[Attempt, str]] = {
    **{state: {("read", "mapping"): "SIGBUS"} for state in ("locked", "disabled", "token away")},
    "denied": {
        ("read", "mapping"): "SIGBUS",
        # Who had it open must open it again: the kernel would take the new attributes for those of the old pages.
        ("truncate", "descriptor"): "ESTALE",
        ("chmod", "descriptor"): "ESTALE",
        ("fsync", "descriptor"): "ok",  # what was written while it was allowed is made durable
    },
}
"""What is not KEYLESS, or in the column `denied` not DENIED."""


@pytest.mark.parametrize("state", COLUMNS)
def test_every_cell(mounted: RealMount, state: str) -> None:
    with opened(mounted.path) as doors:
        assert set(doors.outcomes_of_reading().values()) == {"ok"}
        with COLUMNS[state](mounted):
            found = doors.outcomes()
            usual = DENIED if state == "denied" else KEYLESS
            assert found == {attempt: EXPECTED[state].get(attempt, usual) for attempt in found}
            assert cached_pages(doors.mapping) == 0
            os.stat(doors.top)
            os.statvfs(doors.top)
        if state != "denied":
            everything_works(doors)
        else:
            assert outcome(lambda: os.pread(doors.file, 10, 0)) in ("ESTALE", "EIO", "EACCES")
    with opened(mounted.path) as doors:
        everything_works(doors)
    mounted.check()


# -- what a lock cannot take back ------------------------------------------------------------------


def test_out_of_reach_is_just_that(mounted: RealMount) -> None:
    """Pages that a program wrote in a private mapping, bytes in a pipe, what it has read: and nothing beside them."""
    with opened(mounted.path) as doors:
        reader, writer = os.pipe()
        try:
            os.splice(doors.file, writer, 4096, offset_src=0)  # the page itself, not a copy
            doors.mapping[0:1] = b"P"  # its own page from now on
            read_before = os.pread(doors.file, 100, 0)
            mounted.ask("lock")
            assert os.read(reader, 4096) == b"s" * 4096
            assert doors.mapping[: mmap.PAGESIZE] == b"P" + b"s" * (mmap.PAGESIZE - 1)
            assert read_before == b"s" * 100
            assert outcome(doors.read_mapping) == "SIGBUS"  # the page beside the one that was written
            assert outcome(lambda: os.pread(doors.file, 1, 0)) == KEYLESS
            mounted.ask("unlock")
        finally:
            os.close(reader)
            os.close(writer)
        assert os.pread(doors.file, 1, 0) == b"s"  # a private page reaches no file
    mounted.check()


# -- outage ----------------------------------------------------------------------------------------


@pytest.fixture
def closed_file(mounted: RealMount) -> Path:
    """A file whose key no longer is in the mount's memory: since the last unlock nobody has opened it."""
    path = mounted.path / "closed"
    path.write_bytes(b"c" * 100)
    mounted.ask("lock")
    mounted.ask("unlock")
    return path


@pytest.mark.alone
def test_outage_leased_keys_work_new_ones_fail_at_once_and_disable_wins(mounted: RealMount, closed_file: Path) -> None:
    with opened(mounted.path) as doors:
        with token_moved_away(mounted):
            while mounted.ask("status")["token"]["healthy"]:
                assert os.pread(doors.file, 4, 0) == b"ssss"
            began = time.monotonic()
            for _ in range(20):
                assert outcome(closed_file.read_bytes) == KEYLESS
            assert time.monotonic() - began < 0.5  # not one deadline each, which is 5 s
            assert os.pread(doors.file, 4, 0) == b"ssss"
            assert (mounted.path / "dir" / "file").read_bytes() == b"s" * SIZE
            os.pwrite(doors.written, b"kept", 0)
            os.fsync(doors.written)
            await_state(mounted, "locked", OUTAGE_GRACE + 5)
            assert outcome(lambda: os.pread(doors.file, 4, 0)) == KEYLESS
            _disable_in(mounted)
        await_state(mounted, "disabled", 10)
        assert outcome(closed_file.read_bytes) == KEYLESS
        mounted.site.cmkfs("cmk", "enable", OWN_CMK)
        assert closed_file.read_bytes() == b"c" * 100
        assert os.pread(doors.written, 4, 0) == b"kept"
        everything_works(doors)
    mounted.check()


def _disable_in(mounted: RealMount) -> None:
    """Somebody disables the CMK while this mount cannot see the token: by a configuration of its own."""
    home = mounted.site.home
    conf = home.token_dir / "softhsm2.conf"
    elsewhere = mounted.site.top / "elsewhere"
    shutil.copytree(home.root, elsewhere, ignore=shutil.ignore_patterns("run", "log", "away"), symlinks=True)
    tokens = elsewhere / "token" / "tokens"
    tokens.symlink_to(home.token_dir / "away")
    (elsewhere / "token" / "softhsm2.conf").write_text(conf.read_text().replace(str(home.root), str(elsewhere)))
    try:
        other = Site(mounted.site.top)
        other.home = type(home)(root=elsewhere, config=elsewhere, state=elsewhere, runtime=elsewhere / "run")
        other.cmkfs("cmk", "disable", OWN_CMK)
    finally:
        tokens.unlink()
        shutil.rmtree(elsewhere)


@contextlib.contextmanager
def token_hangs(mounted: RealMount) -> Iterator[None]:
    """A call into the real module that does not return: a fifo in the place of a file that SoftHSM opens."""
    (generation,) = (mounted.site.home.token_dir / "tokens").glob("*/generation")
    aside = generation.with_name("generation.aside")
    generation.rename(aside)
    os.mkfifo(generation)
    try:
        yield
    finally:
        fifo = os.open(generation, os.O_RDWR | os.O_NONBLOCK)
        aside.rename(generation)
        os.close(fifo)


@pytest.fixture
def patient(mounted: RealMount) -> Iterator[RealMount]:
    """The same mount with the usual grace."""
    mounted.again("outage_grace=30")
    yield mounted
    mounted.again()


@pytest.mark.alone
def test_opens_that_wait_for_a_hanging_token_stop_nothing_else(patient: RealMount, closed_file: Path) -> None:
    """120 of them; files whose keys are here are read and written meanwhile, and a lock is not held up either."""
    mounted = patient
    others = [mounted.path / f"closed{number}" for number in range(8)]
    for path in others:
        path.write_bytes(b"c" * 100)
    mounted.ask("lock")
    mounted.ask("unlock")
    with opened(mounted.path) as doors, ThreadPoolExecutor(120) as pool:
        with token_hangs(mounted):
            opens = mounted.ask("status")["requests_by_kind"]["open"]
            waiting = [pool.submit(outcome, others[number % 8].read_bytes) for number in range(120)]
            while mounted.ask("status")["requests_by_kind"]["open"] < opens + 120:
                assert not any(task.done() for task in waiting)
            slowest = 0.0
            for number in range(200):
                began = time.monotonic()
                assert (mounted.path / "dir" / "file").read_bytes() == b"s" * SIZE
                os.pwrite(doors.written, b"w" * 4096, 4096 * number)
                os.stat(doors.top / "link")
                slowest = max(slowest, time.monotonic() - began)
            assert slowest < 1.0
            began = time.monotonic()
            mounted.ask("lock")
            assert time.monotonic() - began < 2.0
            assert {task.result() for task in waiting} == {KEYLESS}
        await_healthy(mounted)
        mounted.ask("unlock")
        everything_works(doors)
    assert closed_file.read_bytes() == b"c" * 100
    mounted.check()


def await_healthy(mounted: RealMount) -> None:
    give_up = time.monotonic() + 10
    while not mounted.ask("status")["token"]["healthy"]:
        assert time.monotonic() < give_up

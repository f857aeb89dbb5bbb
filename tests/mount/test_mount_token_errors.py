"""Each call of a token fails once, with each kind of error, while a mount needs it: the mount lives on.

The token is SoftHSM behind a module that hands calls on and lets one fail (`campaign.token_faults`). Whoever needs
the token just then is told that the key is not available, or nothing at all; once the token answers again everything
works as before, without a remount, and nothing is lost.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from campaign.token_faults import TokenFaults
from real_mount import OWN_CMK, RealMount, Site, processes_of

from cmkfs.errors import CmkfsError
from cmkfs.keys import embedded

ERRORS = (0x30, 0x05, 0x06, 0x32, 0xB3)
"""CKR_DEVICE_ERROR, GENERAL_ERROR, FUNCTION_FAILED, DEVICE_REMOVED, SESSION_HANDLE_INVALID."""
STEP = int(os.environ.get("CMKFS_TEST_TOKEN_STEP", "15"))
"""Of the calls each fifteenth is made to fail; with 1 all are, which takes some minutes."""
SECONDS = 30.0


@pytest.fixture
def faulty() -> Iterator[tuple[RealMount, TokenFaults]]:
    """A mount whose token is behind the module."""
    top = Path(tempfile.mkdtemp(prefix="cmkfs-test-"))
    try:
        site = Site(top)
        site.prepare()
        assert site.home.root is not None
        faults = TokenFaults(top, embedded.find_module())
        token = site.home.token_dir
        (site.home.root / "cmkfs.toml").write_text(
            f'[token]\nmodule = "{faults.library}"\nsofthsm2_conf = "{token}/softhsm2.conf"\n'
            f'deadline = 2.0\n[token.pin_source]\nfile = "{token}/pin"\n[mount]\noutage_grace = 0\n'
        )
        os.environ |= faults.environment
        mounted = site.mount(site.new_vault(OWN_CMK))
        of_the_library = [
            "^ ",
            "^$",
            "Traceback",
            r"pkcs11\.exceptions",
            "Exception ignored",
            "[Tt]he above exception",
            "another exception",
        ]
        mounted.expected_log = ["token", "lockdown: ", "wrapped ahead", "open files? wait", *of_the_library]
        try:
            yield mounted, faults
        finally:
            faults.stop()
            mounted.clear()
    finally:
        for name in ("CMKFS_TOKEN_MODULE", "CMKFS_TOKEN_FAULTS"):
            os.environ.pop(name, None)
        shutil.rmtree(top)


def tried(call: Callable[[], object]) -> bool:
    """False if it says that the key is not available; every other error is one."""
    try:
        call()
    except CmkfsError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOKEY, errno.EKEYREVOKED):
            raise
        return False
    return True


def use_all(mounted: RealMount, written: dict[str, bytes], name: str) -> None:
    """A lock and an unlock, a file whose key must be unwrapped, a new one, and what asks the token for a policy."""
    tried(lambda: mounted.ask("lock"))
    tried(lambda: mounted.ask("unlock"))
    content = os.urandom(5_000)
    if tried(lambda: (mounted.path / name).write_bytes(content)):
        written[name] = content
    for old in list(written):
        tried(lambda old=old: (mounted.path / old).read_bytes())  # type: ignore[misc]
    (zone,) = mounted.ask("status")["zones"]
    tried(lambda: mounted.ask("confirm", cmk_id=zone["cmk_id"]))


def await_all(mounted: RealMount, written: dict[str, bytes]) -> None:
    """The token answers: soon all is there."""
    give_up = time.monotonic() + SECONDS
    while not mounted.ask("status")["token"]["healthy"] or not tried(lambda: mounted.ask("unlock")):
        assert time.monotonic() < give_up
    assert {name: (mounted.path / name).read_bytes() for name in written} == written


def test_any_call_may_fail(faulty: tuple[RealMount, TokenFaults]) -> None:
    mounted, faults = faulty
    written: dict[str, bytes] = {}
    faults.fail(0, since=1 << 40)
    use_all(mounted, written, "first")
    calls = faults.stop().calls
    assert calls > 20
    for turn, number in enumerate(range(turn_of_the_day(), calls, STEP)):
        faults.fail(ERRORS[turn % len(ERRORS)], since=number)
        use_all(mounted, written, f"file {turn % 4}")
        struck = faults.stop()
        assert struck.failed == 1 or struck.calls <= number
        await_all(mounted, written)
    mounted.again()
    assert {name: (mounted.path / name).read_bytes() for name in written} == written


def change_pin(site: Site, new: str) -> None:
    """By another process, as an administrator does it with the tools of the token."""
    program = (
        "import pkcs11, sys\n"
        "with next(pkcs11.lib(sys.argv[1]).get_tokens()).open(rw=True, user_pin=sys.argv[2]) as session:\n"
        "    session.set_pin(sys.argv[2], sys.argv[3])\n"
    )
    old = (site.home.token_dir / "pin").read_text().strip()
    environment = {**os.environ, "SOFTHSM2_CONF": str(site.home.token_dir / "softhsm2.conf")}
    words = [sys.executable, "-c", program, embedded.find_module(), old, new]
    subprocess.run(words, env=environment, check=True, timeout=SECONDS)


def test_the_pin_is_changed_under_a_mount(faulty: tuple[RealMount, TokenFaults]) -> None:
    """It is noticed when the mount must log in again: a PIN that was refused is not tried a second time."""
    mounted, _ = faulty
    (mounted.path / "file").write_bytes(b"x" * 5_000)
    change_pin(mounted.site, "another-pin")
    assert (mounted.path / "file").read_bytes() == b"x" * 5_000
    mounted.ask("lock")
    mounted.ask("unlock")  # whoever is logged in stays so
    os.kill(processes_of(mounted.pid)["token"], signal.SIGKILL)
    give_up = time.monotonic() + SECONDS
    while "PIN" not in str(mounted.ask("status")):
        tried(lambda: (mounted.path / "file").read_bytes())
        assert time.monotonic() < give_up
    assert not tried(lambda: (mounted.path / "file").read_bytes())
    mounted.check()
    mounted.down()
    (mounted.site.home.token_dir / "pin").write_text("another-pin\n")
    mounted.up()
    assert (mounted.path / "file").read_bytes() == b"x" * 5_000


@pytest.mark.alone
def test_a_disable_overtakes_those_who_wait_for_a_slow_token(faulty: tuple[RealMount, TokenFaults]) -> None:
    """8 threads read files whose keys are not here; the news of a disable does not wait behind them."""
    mounted, faults = faulty
    names = [mounted.path / f"file {number}" for number in range(1_600)]
    for name in names:
        name.write_bytes(b"x" * 100)
    mounted.again("outage_grace=30")  # a token that is slow on a busy host is no outage
    faults.delay(0.02)  # 8 s for all of them: a disable takes 2 s where the tests have little of the machine
    ended, refused = threading.Event(), threading.Event()

    def read(some: list[Path]) -> None:
        for name in some:
            if not tried(name.read_bytes):
                refused.set()
                return
            if ended.is_set():
                return

    readers = [threading.Thread(target=read, args=(names[number::8],)) for number in range(8)]
    for reader in readers:
        reader.start()
    try:
        with mounted.site.nobody_is_told():
            mounted.site.cmkfs("cmk", "disable", OWN_CMK)
        disabled = time.monotonic()
        for reader in readers:
            reader.join()
        assert refused.is_set(), "all was read before the disable: the test shows nothing"
        assert time.monotonic() - disabled < 1.5
        assert mounted.ask("status")["state"] == "disabled"
    finally:
        ended.set()
        faults.delay(0)
        mounted.site.cmkfs("cmk", "enable", OWN_CMK)
    await_all(mounted, {names[0].name: b"x" * 100, names[-1].name: b"x" * 100})


def turn_of_the_day() -> int:
    """Other calls each day, the same ones under CI."""
    return 0 if os.environ.get("CI") else time.localtime().tm_yday % STEP

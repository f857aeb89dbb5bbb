"""A vault mounted by the real daemon, through the command line; and how a test knows that all went well."""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from children import Who

from cmkfs.control import client, registry
from cmkfs.fs.kernel_mount import mounted_at
from cmkfs.home import Home

REPOSITORY = Path(__file__).parents[2]
SECONDS = 60.0
SHARED_CMK = "shared"
OWN_CMK = "own"
EVERYONE = """
[[rule]]
id = "all"
effect = "allow"
who = ["*"]
actions = ["list", "read", "write", "create", "delete"]
"""
_OFTEN = 0.02


class Site:
    """A CMKFS_HOME with an embedded token: CMK `shared`, whose policy allows everyone everything, and `own` without."""

    def __init__(self, top: Path, who: Who | None = None, vaults: Path | None = None) -> None:
        """`vaults`: where they are made, if not in `top`."""
        self.top = top
        self.who = who
        self.below = vaults or top
        self.home = Home(root=top / "h", config=top / "h", state=top / "h", runtime=top / "h" / "run")
        self._vaults = 0

    def prepare(self) -> None:
        """Token, CMKs and policy."""
        policy = self.top / "everyone.toml"
        policy.write_text(EVERYONE)
        self.cmkfs("token", "init")
        for name in (SHARED_CMK, OWN_CMK):
            self.cmkfs("cmk", "create", name)
        self.cmkfs("policy", "set", SHARED_CMK, str(policy))

    def cmkfs(self, *arguments: str, codes: Sequence[int] = (0,)) -> str:
        """Run a command; its output. It must end with one of `codes`."""
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [sys.executable, "-P", "-m", "cmkfs", *arguments],
            env={**os.environ, "CMKFS_HOME": str(self.home.root), "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
            **self._user(),
        )
        assert done.returncode in codes, f"cmkfs {' '.join(arguments)}: {done.returncode}: {done.stdout}"
        return done.stdout

    @contextlib.contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A command that goes on, with its standard output; it is ended after the block."""
        with subprocess.Popen(
            [sys.executable, "-P", "-m", "cmkfs", *arguments],
            env={**os.environ, "CMKFS_HOME": str(self.home.root), "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            **self._user(),
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def _user(self) -> dict[str, Any]:
        if self.who is None:
            return {}
        return {"user": self.who.uid, "group": self.who.gid, "extra_groups": self.who.groups}

    def directory(self, name: str, where: Path | None = None) -> Path:
        """A new directory of the user, in `top` or elsewhere."""
        made = (where or self.top) / name
        made.mkdir()
        if self.who is not None:
            os.chown(made, self.who.uid, self.who.gid)
        return made

    @contextlib.contextmanager
    def nobody_is_told(self) -> Iterator[None]:
        """Commands find no mount to tell of what they change in the token, as if they came from another host."""
        registry = self.home.mounts_dir
        aside = registry.with_name("aside")
        registry.rename(aside)
        try:
            yield
        finally:
            if registry.exists():
                shutil.rmtree(registry)
            aside.rename(registry)

    def new_vault(self, cmk: str) -> Path:
        """An empty vault, its root open to everyone."""
        self._vaults += 1
        vault = self.directory(f"v{self._vaults}", self.below)
        self.cmkfs("init", str(vault), "--cmk", cmk)
        vault.chmod(0o755)
        return vault

    def mount(self, vault: Path, *options: str) -> "RealMount":
        """Mount a vault at a directory in `top`."""
        mountpoint = self.top / vault.name.replace("v", "m")
        if not mountpoint.exists():
            self.directory(mountpoint.name)
        return RealMount(self, vault, mountpoint, options)


def processes_of(pid: int) -> dict[str, int]:
    """The daemon itself, the process that has its token, and its guardian."""
    token = [child for child in _children_of(pid) if b"token_server" in Path(f"/proc/{child}/cmdline").read_bytes()]
    (guardian,) = _guardians_of(pid)
    return {"daemon": pid, "token": token[0], "guardian": guardian}


def _guardians_of(pid: int) -> list[int]:
    """The guardians that a daemon has begun."""
    return [child for child in _children_of(pid) if b"guardian_process" in Path(f"/proc/{child}/cmdline").read_bytes()]


def _children_of(pid: int) -> list[int]:
    children = (Path(f"/proc/{task}/children").read_text() for task in _tasks(pid))
    return [int(child) for text in children for child in text.split()]


def _tasks(pid: int) -> list[str]:
    return [f"{pid}/task/{task}" for task in os.listdir(f"/proc/{pid}/task")]


class RealMount:
    """A served mount. `expected_log` is what its log may say; every other line is an error of the test."""

    def __init__(self, site: Site, vault: Path, path: Path, options: Sequence[str]) -> None:
        self.site = site
        self.vault = vault
        self.path = path
        self.options = tuple(options)
        self.log = site.home.log_dir / f"{registry.socket_path(site.home, str(path)).stem}.log"
        self.expected_log: list[str] = []
        self._log_seen = 0
        self._bugs_seen = 0
        self.pid = 0
        self._process = -1
        self.up()

    def up(self, *options: str) -> None:
        """Mount (again), with other options if any are given."""
        words = options or self.options
        arguments = ["-o", ",".join(words)] if words else []
        said = self.site.cmkfs("mount", str(self.vault), str(self.path), *arguments, "--json")
        self.adopt(json.loads(said.splitlines()[0])["pid"])

    def adopt(self, pid: int) -> None:
        """The daemon that serves it now."""
        self.pid = pid
        self._process = os.pidfd_open(self.pid)
        self._bugs_seen = 0

    @property
    def mounted(self) -> bool:
        """Is it served, or at least in the way?"""
        return mounted_at(os.fsencode(self.path)) is not None

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """A request to the control socket."""
        entry = registry.find(self.site.home, str(self.path))
        assert entry is not None, "the mount has no control socket"
        return client.ask(entry, op, **arguments)

    def check(self) -> None:
        """Fail if a handler met a bug, or the daemon logged what nobody expected, since the last check."""
        bugs = self.ask("status")["bugs"] if self.pid else 0
        with self.log.open(errors="replace") as log:
            log.seek(self._log_seen)
            lines = log.read().splitlines()
            self._log_seen = log.tell()
        strange = [line for line in lines if not any(re.search(known, line) for known in self.expected_log)]
        new_bugs, self._bugs_seen = bugs - self._bugs_seen, bugs
        assert not strange, "the daemon logged:\n" + "\n".join(strange)
        assert not new_bugs, f"{new_bugs} handlers ended in an exception nobody expected"

    def down(self) -> None:
        """Unmount and wait until the daemon is gone; everything must be stored."""
        self.check()
        self.site.cmkfs("umount", str(self.path))
        self._await_end()
        self.check()

    def again(self, *options: str) -> None:
        """Unmount, and mount with nothing cached."""
        self.down()
        self.up(*options)

    def kill(self) -> None:
        """The daemon dies as by the OOM killer, and its guardian cuts the connection; the dead mount stays."""
        self.expected_log = [*self.expected_log, "^guardian: the daemon died"]
        guardians = [os.pidfd_open(pid) for pid in _guardians_of(self.pid)]
        signal.pidfd_send_signal(self._process, signal.SIGKILL)
        self._await_end()
        for guardian in guardians:
            ready, _, _ = select.select([guardian], [], [], SECONDS)
            os.close(guardian)
            assert ready, f"the guardian did not end within {SECONDS} s"

    def await_end(self) -> None:
        """Wait for the daemon to end, which somebody else has caused."""
        self._await_end()

    def _await_end(self) -> None:
        ready, _, _ = select.select([self._process], [], [], SECONDS)
        assert ready, f"the daemon did not end within {SECONDS} s"
        os.close(self._process)
        self._process, self.pid = -1, 0

    def clear(self) -> None:
        """Leave nothing behind, whatever the test did; fails if the mount did not end well by itself."""
        try:
            if self.pid:
                self.down()
        finally:
            if self._process >= 0:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._process, signal.SIGKILL)
                self._await_end()
            if self.mounted:
                subprocess.run(["umount", "--lazy", str(self.path)], check=True)


NewMount = Callable[..., RealMount]
"""Makes a mount of a new vault, with these options; the fixture `new_mount`."""

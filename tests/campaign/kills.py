"""P4: the daemon is killed at random moments while programs work; the next mount has everything that was closed."""

import errno
import json
import os
import random
import shutil
import time
from pathlib import Path

from children import Child
from real_mount import OWN_CMK, Site

from .files import Cut, Files, Lost
from .load import Database, Log, Work, at_work

LONGEST_SECONDS = 0.9


class Kills:
    """One vault through many kills."""

    def __init__(self, top: Path) -> None:
        top.chmod(0o755)
        self.site = Site(top)
        self.site.prepare()
        self.mount = self.site.mount(self.site.new_vault(OWN_CMK))
        self.mount.expected_log = [" not settled: ", "is mounted by pid", "fs.recovery", "^20.* token"]
        self.steps = 0
        self._begin()

    def _begin(self) -> None:
        self.work: dict[str, Work] = {
            "files1": Files(Cut.KILL),
            "files2": Files(Cut.KILL),
            "log": Log(),
            "delete": Database("DELETE", self.site.top / "acks.delete"),
            "wal": Database("WAL", self.site.top / "acks.wal"),
        }
        for name in self.work:
            (self.mount.path / name).mkdir()

    def run(self, seed: int) -> str:
        """One kill, and what came of it. Raises Lost."""
        rng = random.Random(seed)

        def cut(children: list[Child]) -> None:
            time.sleep(rng.uniform(0.02, LONGEST_SECONDS))
            self.mount.kill()
            self._is_dead()

        self.work = at_work(self.work, self.mount.path, seed, cut)
        outcome = "killed"
        if rng.random() < 0.2:
            self._kill_recovery(rng)
            outcome = "killed, and again in recovery"
        self._recovers()
        for name, work in self.work.items():
            try:
                work.verify(self.mount.path / name)
            except AssertionError as error:
                error.add_note(name)
                raise
        self.mount.check()
        if rng.random() < 0.1:
            self._renew()
        return outcome

    def _is_dead(self) -> None:
        """A program that fills the mount point now would lose what it writes: it cannot."""
        for call in (
            lambda: os.listdir(self.mount.path),
            lambda: os.stat(self.mount.path),
            lambda: os.mkdir(self.mount.path / "filled"),
            lambda: os.open(self.mount.path / "filled", os.O_WRONLY | os.O_CREAT),
        ):
            try:
                call()
            except OSError as error:
                if error.errno != errno.ENOTCONN:
                    raise Lost(f"a dead mount answers {error}") from error
            else:
                raise Lost("a dead mount answers")

    def _recovers(self) -> None:
        """The next mount clears the dead one, recovers, and says so."""
        said = self.site.cmkfs("mount", str(self.mount.vault), str(self.mount.path), "--json")
        facts = json.loads(said.splitlines()[0])
        self.mount.adopt(facts["pid"])
        if facts["recovered"] is None or facts["recovered"]["unreadable"]:
            raise Lost(f"the mount after a kill says {facts['recovered']}")

    def _kill_recovery(self, rng: random.Random) -> None:
        """A daemon that is killed while it starts, recovers or has just begun to serve."""
        with self.site.started("mount", "-f", str(self.mount.vault), str(self.mount.path)) as daemon:
            time.sleep(rng.uniform(0.2, 1.0))
            daemon.kill()

    def _renew(self) -> None:
        """Begin anew, so that what was looked at a hundred times does not take all the time."""
        for name in self.work:
            shutil.rmtree(self.mount.path / name)
        self._begin()

    def end(self) -> None:
        """Unmount; the vault checks clean, and the audit log holds."""
        self.mount.down()
        self.site.cmkfs("check", str(self.mount.vault))
        self.site.cmkfs("audit", "verify")

"""What is measured: the backing filesystem itself, cmkfs, and its peers, each mounted anew with its defaults."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CMKFS = ROOT / ".venv" / "bin" / "cmkfs"
PASSWORD = "bench"
OWN, BARE = "cmkfs", "bare"

Command = Sequence[str | Path]


def run(*command: str | Path, **extra: str) -> None:
    """Run a command quietly, with more environment; if it fails, exit with what it said."""
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **extra}, stdin=subprocess.DEVNULL
    )
    if result.returncode:
        sys.exit(f"bench: {' '.join(map(str, command))}: {result.stderr.strip() or result.stdout.strip()}")


@dataclass(frozen=True, slots=True)
class Subject:
    """A filesystem that is there: where its files are, and how it is mounted again (None: it is not mounted)."""

    name: str
    place: Path
    mount: Command | None = None
    umount: Command = ()
    environment: dict[str, str] = field(default_factory=dict)

    def remount(self) -> Callable[[], None]:
        """Unmount it; gives what mounts it again."""
        if self.mount is None:
            return lambda: None
        mount = self.mount
        run(*self.umount)
        return lambda: run(*mount, **self.environment)


@contextmanager
def mounted(name: str, place: Path, mount: Command, umount: Command, environment: dict[str, str]) -> Iterator[Subject]:
    """A filesystem that `mount` mounts at `place`, for a block."""
    place.mkdir()
    try:
        run(*mount, **environment)
        yield Subject(name, place, mount, umount, environment)
    finally:
        if place.is_mount():
            try:
                run(*umount)
            finally:
                if place.is_mount():
                    run("umount", "--lazy", place)


@contextmanager
def bare(scratch: Path) -> Iterator[Subject]:
    """The backing filesystem itself."""
    place = scratch / BARE
    place.mkdir()
    yield Subject(BARE, place)


@contextmanager
def cmkfs(scratch: Path) -> Iterator[Subject]:
    """A new vault with a token of its own."""
    vault, plain = scratch / "vault", scratch / "cmkfs-plain"
    with tempfile.TemporaryDirectory(prefix="cmkfs-") as home:  # a short path: it holds a Unix socket
        environment = {"CMKFS_HOME": home}
        os.environ.update(environment)
        run(CMKFS, "token", "init")
        run(CMKFS, "cmk", "create", "bench")
        run(CMKFS, "init", vault, "--cmk", "bench")
        with mounted(OWN, plain, [CMKFS, "mount", vault, plain], [CMKFS, "umount", plain], environment) as subject:
            yield subject


@contextmanager
def gocryptfs(scratch: Path) -> Iterator[Subject]:
    """A new gocryptfs."""
    vault, plain, password = scratch / "gocryptfs", scratch / "gocryptfs-plain", scratch / "password"
    vault.mkdir()
    password.write_text(f"{PASSWORD}\n")
    run("gocryptfs", "-init", "-q", "-passfile", password, vault)
    command: Command = ["gocryptfs", "-q", "-passfile", password, vault, plain]
    with mounted("gocryptfs", plain, command, ["fusermount3", "-u", plain], {}) as subject:
        yield subject


@contextmanager
def securefs(scratch: Path) -> Iterator[Subject]:
    """A new securefs."""
    vault, plain = scratch / "securefs", scratch / "securefs-plain"
    vault.mkdir()
    run("securefs", "create", "--pass", PASSWORD, vault)
    command: Command = ["securefs", "mount", "--background", "--pass", PASSWORD, vault, plain]
    with mounted("securefs", plain, command, ["fusermount", "-u", plain], {}) as subject:
        yield subject


@contextmanager
def encfs(scratch: Path) -> Iterator[Subject]:
    """A new encfs."""
    vault, plain = scratch / "encfs", scratch / "encfs-plain"
    vault.mkdir()
    command: Command = ["encfs", "--standard", f"--extpass=echo {PASSWORD}", vault, plain]
    with mounted("encfs", plain, command, ["fusermount", "-u", plain], {}) as subject:
        yield subject


@contextmanager
def cryfs(scratch: Path) -> Iterator[Subject]:
    """A new CryFS."""
    vault, plain, password = scratch / "cryfs", scratch / "cryfs-plain", scratch / "cryfs-password"
    vault.mkdir()
    password.write_text(f"{PASSWORD}\n")
    asks_nothing = {"CRYFS_FRONTEND": "noninteractive", "CRYFS_NO_UPDATE_CHECK": "true"}
    command: Command = ["sh", "-c", 'cryfs "$1" "$2" <"$3"', "cryfs", vault, plain, password]
    with mounted("cryfs", plain, command, ["cryfs-unmount", plain], asks_nothing) as subject:
        yield subject


SUBJECTS: dict[str, Callable[[Path], AbstractContextManager[Subject]]] = {
    BARE: bare,
    "gocryptfs": gocryptfs,
    "securefs": securefs,
    "encfs": encfs,
    "cryfs": cryfs,
    OWN: cmkfs,
}
PEERS = [name for name in SUBJECTS if name not in (OWN, BARE)]


def install(peers: Sequence[str]) -> None:
    """Have Debian's packages of the peers there, beside what cmkfs itself needs."""
    subprocess.run([ROOT / "scripts" / "install", "test"], stdout=sys.stderr, check=True)
    missing = [name for name in [*peers, "git"] if shutil.which(name) is None]
    if missing:
        environment = {"DEBIAN_FRONTEND": "noninteractive"}
        run("apt-get", "update", **environment)
        run("apt-get", "install", "--yes", "--no-install-recommends", *missing, **environment)

"""P3: the power goes while programs work; then every fsynced byte and name is there (docs/reliability.md).

The vault lies on an image of ext4, xfs or btrfs. A cut is either the filesystem shut down by ioctl, with its
journal flushed or not (data pages are not: a state that a real cut can leave), or a clone of the image of that
instant, which then takes its place (FICLONE on an xfs with reflinks below; a clone is of one moment).
"""

import contextlib
import fcntl
import os
import random
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from children import Child
from real_mount import OWN_CMK, RealMount, Site

from cmkfs.errors import Damaged
from cmkfs.format.header import SLOT_BODY, SLOT_OFFSETS, Slot

from .files import Cut, Files
from .load import Database, Log, Work, at_work

KINDS = ("ext4", "xfs", "btrfs")
_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN: _IOR('X', 125, __u32)
_FICLONE = 0x40049409  # _IOW(0x94, 9, int)
_ALL_WAYS = ("journal flushed", "nothing flushed", "image")
_WAYS = {"ext4": _ALL_WAYS, "xfs": _ALL_WAYS}
_FLAGS = {"journal flushed": 1, "nothing flushed": 2}
_IMAGE_BYTES = 400 << 20
_LONGEST_SECONDS = 1.0


class Disk:
    """A filesystem on an image, which lies on an xfs that can clone it. `where` is where it is mounted."""

    def __init__(self, top: Path, kind: str) -> None:
        self.kind = kind
        self.where = top / "disk"
        self._image = top / "below" / "image"

    @property
    def ways(self) -> tuple[str, ...]:
        """How this filesystem can be cut."""
        return _WAYS.get(self.kind, ("image",))

    def up(self) -> None:
        """Mount it; it replays its journal."""
        _run("mount", "-o", "loop", self._image, self.where)

    def down(self) -> None:
        """Unmount it, once nobody holds it any more. Raises TimeoutError."""
        command = ["umount", str(self.where)]
        _until(lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0, "a daemon that ends")
        # A mount namespace that was copied meanwhile keeps it: it would come back as it is, and shut down.
        _until(lambda: not _output("losetup", "-j", self._image), "another mount namespace that has the disk")

    def shut_down(self, way: str) -> None:
        """The power is gone for the mounted filesystem."""
        fd = os.open(self.where, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _FLAGS[way]))
        finally:
            os.close(fd)

    def remember(self) -> None:
        """What is on the disk at this instant."""
        with open(self._image, "rb") as image, open(self._image.with_name("then"), "wb") as then:
            fcntl.ioctl(then, _FICLONE, image.fileno())

    def go_back(self) -> None:
        """The remembered instant takes the place of all that came after it. Not while it is mounted."""
        self._image.with_name("then").replace(self._image)


@contextmanager
def disk(top: Path, kind: str) -> Iterator[Disk]:
    """A fresh one, mounted; whatever happens all is unmounted at the end."""
    made, below, medium = Disk(top, kind), top / "below", top / "medium"
    for directory in (made.where, below):
        directory.mkdir()
    _empty(medium, 3 * _IMAGE_BYTES)
    _run("mkfs.xfs", "-q", "-m", "reflink=1", medium)
    _run("mount", "-o", "loop", medium, below)
    try:
        _empty(below / "image", _IMAGE_BYTES)
        _run(f"mkfs.{kind}", "-q", *(["-b", "4096"] if kind == "ext4" else []), below / "image")
        made.up()
        try:
            yield made
        finally:
            if os.path.ismount(made.where):
                made.down()
    finally:
        _run("umount", below)


def _empty(path: Path, size: int) -> None:
    path.touch()
    os.truncate(path, size)


def _until(done: Callable[[], bool], what: str) -> None:
    """Nothing tells of it: ask until it is so. Raises TimeoutError."""
    for _ in range(200):
        if done():
            return
        time.sleep(0.1)
    raise TimeoutError(what)


def _output(*words: str | Path) -> str:
    return subprocess.run([str(word) for word in words], check=True, stdout=subprocess.PIPE, text=True).stdout


def _run(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)


class Above(Protocol):
    """What is mounted above the disk at `path`, and is to keep the promise."""

    path: Path

    def up(self) -> None: ...

    def down(self) -> None: ...

    def said(self) -> str: ...

    def empty(self) -> None: ...


class Cmkfs:
    """cmkfs itself."""

    def __init__(self, top: Path, where: Path) -> None:
        top.chmod(0o755)
        self._site = Site(top)
        self._site.prepare()
        self._vault = where / "vault"
        self._site.cmkfs("init", str(self._vault), "--cmk", OWN_CMK)
        self.path = self._site.directory("plain")
        self._mount = RealMount(self._site, self._vault, self.path, ())
        self._mount.expected_log = ["."]  # a disk that is gone is told of in many words

    def up(self) -> None:
        """The next mount, which recovers by itself; now and then `check` looks first."""
        self._mount.up()

    def down(self) -> None:
        """Unmount, also from a disk that is gone; no handler had a bug."""
        self._mount.check()
        for _ in range(50):
            if "is busy" not in self._site.cmkfs("umount", str(self.path), codes=(0, 1, 6)):
                break
            time.sleep(0.1)  # who looks at all processes of the machine holds it for a moment
        self._mount.await_end()

    def said(self) -> str:
        """What it says of its recovery, and last in its log."""
        recovered = self._mount.ask("status")["recovered"]
        return f"{recovered} {[_header(self._vault, line) for line in (recovered or {}).get('unreadable', ())]}"

    def empty(self) -> None:
        """Remove everything, after something was lost."""
        _remove_all(self.path)

    def check(self) -> None:
        """A crash is no damage: `cmkfs check` says so before the next mount recovers."""
        self._site.cmkfs("check", str(self._vault))


def _header(vault: Path, line: str) -> str:
    """What lies in the vault of a file that recovery calls unreadable."""
    told = []
    for place, _, names in os.walk(vault):
        for name in names:
            if line.startswith(name + ": ") and not Path(place, name).is_symlink():
                data = Path(place, name).read_bytes()
                for at in SLOT_OFFSETS:
                    with contextlib.suppress(Damaged):
                        told.append(str(Slot.from_body(data[at : at + SLOT_BODY])))
                told.append(f"{len(data)} bytes, links {Path(place, name).stat().st_nlink}")
    return "; ".join(told)


class Gocryptfs:
    """gocryptfs, for comparison."""

    def __init__(self, top: Path, where: Path) -> None:
        self._vault, self.path = where / "vault", top / "plain"
        self.path.mkdir()
        self._begin()

    def _begin(self) -> None:
        self._vault.mkdir()
        self._gocryptfs("-init", str(self._vault))
        self.up()

    def up(self) -> None:
        """Mount."""
        self._gocryptfs(str(self._vault), str(self.path))

    def down(self) -> None:
        """Unmount."""
        _run("umount", self.path)

    def said(self) -> str:
        """Nothing."""
        return ""

    def empty(self) -> None:
        """A new vault: a directory whose IV was lost in the cut can be neither opened (ENOSYS, EIO) nor removed."""
        self.down()
        shutil.rmtree(self._vault)
        self._begin()

    def _gocryptfs(self, *words: str) -> None:
        _run("gocryptfs", "-q", "-nosyslog", "-scryptn", "10", "-extpass", "echo secret", *words)


class Directly:
    """The filesystem itself: what it keeps is what can be kept."""

    def __init__(self, top: Path, where: Path) -> None:
        self.path = where / "plain"
        self.path.mkdir()

    def up(self) -> None:
        """It is there."""

    def down(self) -> None:
        """It stays there."""

    def said(self) -> str:
        """Nothing."""
        return ""

    def empty(self) -> None:
        """Remove everything."""
        _remove_all(self.path)


def _remove_all(top: Path) -> None:
    for path in top.iterdir():
        shutil.rmtree(path)


ABOVE: dict[str, Callable[[Path, Path], Above]] = {"cmkfs": Cmkfs, "gocryptfs": Gocryptfs, "none": Directly}


class Cuts:
    """One disk through many cuts."""

    def __init__(self, top: Path, below: Disk, above: Above) -> None:
        self._top, self.disk, self.above = top, below, above
        self._begin()

    def _begin(self) -> None:
        self.work: dict[str, Work] = {
            "files1": Files(Cut.POWER),
            "files2": Files(Cut.POWER),
            "log": Log(),
            "delete": Database("DELETE", self._top / "acks.delete"),
            "wal": Database("WAL", self._top / "acks.wal"),
        }
        for name in self.work:
            (self.above.path / name).mkdir()
            _sync_directory(self.above.path / name)
        _sync_directory(self.above.path)

    def run(self, seed: int) -> str:
        """One cut; gives how it was made. Raises Lost."""
        rng = random.Random(seed)
        way = rng.choice(self.disk.ways)

        def cut(children: list[Child]) -> None:
            time.sleep(rng.uniform(0.05, _LONGEST_SECONDS))
            if way == "image":
                self._remember(children)
            else:
                # An fsync that is under way while ext4 or xfs is shut down so may return success, and have done
                # nothing: each tenth cut of the filesystem itself loses something then. So none is under way.
                self._all_stopped(children, lambda: self.disk.shut_down(way))

        self.work = at_work(self.work, self.above.path, seed, cut)
        self.above.down()
        self.disk.down()
        if way == "image":
            self.disk.go_back()
        self.disk.up()
        if rng.random() < 0.5 and isinstance(self.above, Cmkfs):
            self.above.check()
        self.above.up()
        for name, work in self.work.items():
            try:
                work.verify(self.above.path / name)
            except (AssertionError, OSError) as error:
                error.add_note(f"{name} {self.disk.kind} {way}: {self.above.said()}")
                raise
        if rng.random() < 0.1:
            self.renew()
        return f"{self.disk.kind}, {way}"

    def _remember(self, children: list[Child]) -> None:
        """What the disk has at this instant; then the programs end."""
        for child in children:
            os.kill(child.pid, signal.SIGSTOP)  # whatever they are at: it may still be done, and is not acknowledged
        self.disk.remember()
        _end(children)

    def _all_stopped(self, children: list[Child], deed: Callable[[], None]) -> None:
        for child in children:
            os.kill(child.pid, signal.SIGSTOP)
        while any(_state(child) not in "TZ" for child in children):
            time.sleep(0.002)
        deed()
        _end(children)

    def renew(self) -> None:
        """Begin anew: with new files, and after something was lost."""
        self.above.empty()
        self._begin()


def _end(children: list[Child]) -> None:
    for child in children:
        os.kill(child.pid, signal.SIGTERM)
        os.kill(child.pid, signal.SIGCONT)


def _state(child: Child) -> str:
    """As proc(5) tells it: T is stopped, Z dead."""
    return Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0]


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

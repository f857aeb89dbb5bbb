"""A vault and the objects of its mount, with a token in memory and no kernel.

`Harness` makes the vault with `create_vault` and mounts it as `cmkfs.mount` does, but for FUSE. `Program`
plays what is above: the kernel, with inode numbers, lookup counts and handles, and a program's calls. Both
are asynchronous; a Hypothesis rule runs each call with `trio.run`, since nothing in a mount is bound to one run.
"""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from contract.fake_token import FakeToken
from contract.token_thread import ThreadTransport, TokenWorker

from cmkfs.answers import ControlAnswers
from cmkfs.caller import Request
from cmkfs.config import MountOptions
from cmkfs.errors import CmkfsError
from cmkfs.fs.backing import Backing
from cmkfs.fs.fusedev import FuseDevice
from cmkfs.fs.guard import Bugs
from cmkfs.fs.openfile import OpenFile
from cmkfs.fs.operations import Operations
from cmkfs.fs.vaultdir import read_vault_file, read_zone_record
from cmkfs.fuse.messages import Changes, Entry, Listing
from cmkfs.keys.keyring import Keyring
from cmkfs.keys.policies import Policies
from cmkfs.keys.token_client import TokenClient
from cmkfs.keys.zone import Zone
from cmkfs.maintenance.create import create_vault
from cmkfs.mounted import Mounted

ROOT = 1


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory in memory where there is one: the models sync thousands of times and cut no power."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="cmkfs-model-", dir=place) as made:
        yield Path(made)


class NoPages:
    """The page cache of a kernel that has cached nothing."""

    negotiated = None

    def invalidate_inode(self, inode: int, *, attr_only: bool = False, length: int = 0) -> bool:
        return False

    def expire_entry(self, parent: int, name: bytes) -> bool:
        return False


class Harness:
    """One vault in `directory`. `mount`, then `program`, then `unmount` or `kill`."""

    def __init__(self, directory: Path, backing: type[Backing] = Backing) -> None:
        self.vault = directory / "vault"
        self._backing_class = backing
        self.token = FakeToken()
        with self.token.open() as admin:
            self.cmk = admin.create("data", "aes-256")
            create_vault(self.vault, admin, self.cmk)
        self.kernel = NoPages()

    async def mount(self, *, read_only: bool = False) -> Mounted:
        """As `cmkfs.mount` does it, up to the service of requests."""
        self.backing = self._backing_class(self.vault, read_only=read_only)
        self.worker = TokenWorker()
        try:
            return await self._mount()
        except BaseException:
            self.worker.close(wait=1.0)
            self.backing.close()
            raise

    async def _mount(self) -> Mounted:
        provider = self.token.elsewhere
        record = read_zone_record(self.backing.root_fd)
        self.zone = Zone(record.zone_id, record, self.cmk.name)
        self.policies = Policies(os.geteuid())
        self.policies.set_policy(self.cmk.cmk_id, None)
        vault = read_vault_file(self.vault)
        self.keyring = Keyring(vault, TokenClient(ThreadTransport(self.worker, provider), 5.0), self.policies)
        self.pool = self.keyring.add_zone(self.zone)
        await self.keyring.unlock(self.zone)
        self.mounted = Mounted(
            self.vault,
            self.vault.parent / "mountpoint",
            self.backing,
            self.keyring,
            self.zone,
            MountOptions(),
        )
        await self.mounted.recover_and_open()
        for zone in self.keyring.zones.values():
            self.policies.set_policy(zone.cmk_id, None)
        self.mounted.use(cast(FuseDevice, self.kernel))
        self.program = Program(self.mounted.operations)
        return self.mounted

    async def unmount(self) -> None:
        """As `cmkfs.mount` does it after the last request. Fails if anything stays unsaved or a handler had a bug."""
        result = await self.mounted.close()
        self._let_go()
        assert result == {"unsaved": [], "error": None}, result
        assert Bugs.count == 0

    def kill(self) -> None:
        """SIGKILL: nothing is written any more, every descriptor goes."""
        for inode in self.mounted.inodes:
            if inode.file is not None:
                os.close(inode.file.fd)
                inode.file = None
        self.mounted.inodes.close()
        self._let_go()
        assert Bugs.count == 0

    def _let_go(self) -> None:
        self.worker.close(wait=1.0)
        self.backing.close()

    async def lock(self) -> dict[str, object]:
        """`cmkfs lock`."""
        return await ControlAnswers(self.mounted).handlers()["lock"]({})

    async def unlock(self) -> dict[str, object]:
        """`cmkfs unlock`."""
        return await ControlAnswers(self.mounted).handlers()["unlock"]({})


class Program:
    """Calls by inode number and name. Errors are OSErrors, as a program sees them."""

    def __init__(self, operations: Operations, caller: Request | None = None) -> None:
        self.operations = operations
        self.request = caller or Request(0, 0, 0)
        self._lookups: dict[int, int] = {}

    # -- names ------------------------------------------------------------------------------------

    def _learn(self, entry: Entry) -> Entry:
        self._lookups[entry.st_ino] = self._lookups.get(entry.st_ino, 0) + 1
        return entry

    async def lookup(self, parent: int, name: bytes) -> Entry:
        with errnos():
            entry = await self.operations.lookup(parent, name, self.request)
        if entry.st_ino == 0:
            raise FileNotFoundError(name)
        return self._learn(entry)

    async def walk(self, *names: bytes) -> int:
        """The inode number at the end of a path."""
        ino = ROOT
        for name in names:
            ino = (await self.lookup(ino, name)).st_ino
        return ino

    async def stat(self, ino: int) -> Entry:
        with errnos():
            return await self.operations.getattr(ino, self.request)

    async def entries(self, ino: int) -> dict[bytes, Entry]:
        """What `readdir` gives, `.` and `..` too."""
        found: dict[bytes, Entry] = {}
        with errnos():
            opened = await self.operations.opendir(ino, self.request)
            given: list[tuple[bytes, Entry]] = []
            try:
                listing = Entries()
                await self.operations.readdir(opened.fh, 0, listing)
                while listing.found:  # the kernel, too, asks until nothing comes
                    given += listing.found
                    position, listing = listing.next_offset, Entries()
                    await self.operations.readdir(opened.fh, position, listing)
            finally:
                await self.operations.releasedir(opened.fh)
        for name, entry in given:
            assert name not in found
            found[name] = entry
            if name not in (b".", b".."):
                self._learn(entry)
        return found

    async def mkdir(self, parent: int, name: bytes) -> int:
        with errnos():
            return self._learn(await self.operations.mkdir(parent, name, 0o755, 0, self.request)).st_ino

    async def mknod(self, parent: int, name: bytes, mode: int) -> int:
        with errnos():
            return self._learn(await self.operations.mknod(parent, name, mode, 0, 0, self.request)).st_ino

    async def symlink(self, parent: int, name: bytes, target: bytes) -> int:
        with errnos():
            return self._learn(await self.operations.symlink(parent, name, target, self.request)).st_ino

    async def readlink(self, ino: int) -> bytes:
        with errnos():
            return await self.operations.readlink(ino, self.request)

    async def link(self, ino: int, parent: int, name: bytes) -> None:
        with errnos():
            self._learn(await self.operations.link(ino, parent, name, self.request))

    async def unlink(self, parent: int, name: bytes) -> None:
        with errnos():
            await self.operations.unlink(parent, name, self.request)

    async def rmdir(self, parent: int, name: bytes) -> None:
        with errnos():
            await self.operations.rmdir(parent, name, self.request)

    async def rename(self, old: int, name: bytes, new: int, new_name: bytes, flags: int = 0) -> None:
        with errnos():
            await self.operations.rename(old, name, new, new_name, flags, self.request)

    async def forget_all(self) -> None:
        """The kernel forgets every inode but the root: what it knows, it must look up again."""
        forgotten = [(ino, count) for ino, count in self._lookups.items() if ino != ROOT]
        self._lookups.clear()
        self.operations.forget(forgotten)

    # -- attributes -------------------------------------------------------------------------------

    async def set_xattr(self, ino: int, name: bytes, value: bytes) -> None:
        with errnos():
            await self.operations.setxattr(ino, name, value, 0, self.request)

    async def get_xattr(self, ino: int, name: bytes) -> bytes:
        with errnos():
            return await self.operations.getxattr(ino, name, self.request)

    async def remove_xattr(self, ino: int, name: bytes) -> None:
        with errnos():
            await self.operations.removexattr(ino, name, self.request)

    async def xattrs(self, ino: int) -> dict[bytes, bytes]:
        return {name: await self.get_xattr(ino, name) for name in await self.list_xattrs(ino)}

    async def list_xattrs(self, ino: int) -> list[bytes]:
        with errnos():
            return list(await self.operations.listxattr(ino, self.request))

    # -- files ------------------------------------------------------------------------------------

    async def create(self, parent: int, name: bytes) -> int:
        """Create and open for reading and writing; gives the handle."""
        with errnos():
            info, entry = await self.operations.create(parent, name, 0o644, os.O_RDWR, 0, self.request)
        self._learn(entry)
        return int(info.fh)

    async def open(self, ino: int, flags: int = os.O_RDWR) -> int:
        with errnos():
            info = await self.operations.open(ino, flags, False, self.request)
        return int(info.fh)

    async def close(self, fh: int) -> None:
        with errnos():
            await self.operations.release(fh)

    async def read(self, fh: int, plain_off: int, length: int) -> bytes:
        with errnos():
            return bytes(await self.operations.read(fh, plain_off, length))

    async def write(self, fh: int, plain_off: int, data: bytes) -> None:
        with errnos():
            assert await self.operations.write(fh, plain_off, data, False) == len(data)

    async def fsync(self, fh: int) -> None:
        with errnos():
            await self.operations.fsync(fh, False)

    async def fsync_directory(self, ino: int) -> None:
        with errnos():
            opened = await self.operations.opendir(ino, self.request)
            await self.operations.fsyncdir(opened.fh, False)
            await self.operations.releasedir(opened.fh)

    async def truncate(self, fh: int, size: int) -> None:
        ino = self.file(fh).inode.ino
        with errnos():
            told = await self.operations.setattr(ino, Changes(size=size), fh, self.request)
        assert told.st_size == size

    def file(self, fh: int) -> OpenFile:
        """The object behind a handle."""
        return self.operations.handles.files[fh].file

    async def content(self, ino: int) -> bytes:
        """All of a file, through a handle of its own; its told size is the readable one."""
        fh = await self.open(ino, os.O_RDONLY)
        try:
            size = (await self.stat(ino)).st_size
            data = await self.read(fh, 0, size)
            assert len(data) == size
            assert await self.read(fh, size, 1) == b""
            return data
        finally:
            await self.close(fh)

    async def save(self, parent: int, name: bytes, data: bytes) -> int:
        """A new file with content; gives its inode number."""
        fh = await self.create(parent, name)
        if data:
            await self.write(fh, 0, data)
        ino = int(self.file(fh).inode.ino)
        await self.close(fh)
        return ino


class Entries(Listing):
    """A listing that takes all there is, and keeps the values."""

    def __init__(self) -> None:
        super().__init__(1 << 30, plus=True)
        self.found: list[tuple[bytes, Entry]] = []
        self.next_offset = 0

    def add(self, name: bytes, entry: Entry, next_offset: int) -> bool:
        self.found.append((name, entry))
        self.next_offset = next_offset
        return super().add(name, entry, next_offset)


@contextmanager
def errnos() -> Iterator[None]:
    """What the kernel would tell the program."""
    try:
        yield
    except CmkfsError as error:
        failure = OSError(error.errno, os.strerror(error.errno))
        failure.add_note(f"{type(error).__name__}: {error}")
        raise failure from error


def is_dir(entry: Entry) -> bool:
    """Is it a directory's entry?"""
    return stat.S_ISDIR(entry.st_mode)

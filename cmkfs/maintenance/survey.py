"""The walk of `check` through a vault: every directory, name, file, target and attribute, judged as a mount would.

Directories and zones are authenticated by `fs.directory`, names and targets by the zone's keys, file keys come
from `keys.keyring`, content is opened by `maintenance.readers`. Nothing is changed.
"""

import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from cmkfs.errors import CmkfsError, CmkNotFound, Damaged, KeyUnavailable, UnknownFormat
from cmkfs.format.header import Identity, is_unwritten
from cmkfs.format.layout import PAGE
from cmkfs.format.vault import ZoneRoot
from cmkfs.fs.backing import Backing
from cmkfs.fs.directory import OWN_PREFIX, Directories, Directory, plain_name
from cmkfs.fs.inode import Inode
from cmkfs.fs.inodes import InodeTable
from cmkfs.fs.symlinks import Symlinks
from cmkfs.fs.vaultdir import read_zone_record
from cmkfs.fs.xattrs import PREFIX, own_xattrs
from cmkfs.keys.keyring import Keyring
from cmkfs.keys.zone import Zone
from cmkfs.maintenance.content import CHUNK, Outcome, Task
from cmkfs.maintenance.findings import Finding, Place, Remedy, Report, joined
from cmkfs.maintenance.ownnames import OwnNames
from cmkfs.maintenance.readers import Readers
from cmkfs.maintenance.structure import check_tree, is_empty

_BATCH = 64  # files whose keys are unwrapped in one turn of the token's thread


@dataclass(frozen=True, slots=True)
class Opened:
    """A file whose header parsed, waiting for its key."""

    place: Place
    fd: int
    page: bytes
    identity: Identity
    recovering: bool
    length: int


@dataclass(frozen=True, slots=True)
class Vault:
    """The objects of an open vault that a survey needs."""

    backing: Backing
    inodes: InodeTable
    directories: Directories
    keyring: Keyring
    symlinks: Symlinks
    unsettled_since: int | None
    """None: the last session was closed. Else a ctime in ns: in files changed since, what a crash leaves is none."""

    roots: tuple[ZoneRoot, ...]
    """The zones below the root, as the list of them says."""

    @property
    def recovering(self) -> bool:
        """True if the next mount will recover."""
        return self.unsettled_since is not None


class Survey:
    """One walk. `enter_zone` is asked of each directory before it is authenticated: does a zone begin there?"""

    def __init__(
        self,
        vault: Vault,
        readers: Readers,
        report: Report,
        enter_zone: Callable[[Place, Inode], Awaitable[bool]],
        known_good: set[tuple[int, int, int]],
    ) -> None:
        self._vault = vault
        self._readers = readers
        self._report = report
        self._enter_zone = enter_zone
        self._known_good = known_good
        self._own = OwnNames(vault.backing, report, recovering=vault.recovering)
        self._file_ids: dict[bytes, int] = {}
        self._seen: set[int] = set()
        self._good, self._bad = set[tuple[int, int, int]](), set[tuple[int, int, int]]()
        self._zone_places: set[Inode] = set()
        self._given_up: set[Inode] = set()
        self._batch: list[Opened] = []
        self._waiting: list[tuple[Inode, bytes]] = []

    async def run(self) -> None:
        """Walk everything. Raises OSError, TokenUnavailable and its kind; damage goes to the report."""
        self._waiting = [(self._vault.inodes.root, b"/")]
        while self._waiting:
            inode, path = self._waiting.pop()
            await self._directory(inode, path)
        await self._flush()
        self._readers.finish()
        self._known_good |= self._good - self._bad
        self._own.parts_without_link()

    # -- directories -----------------------------------------------------------------------------

    async def _directory(self, inode: Inode, path: bytes) -> None:
        vault, self._report.directories = self._vault, self._report.directories + 1
        place = Place(*inode.places.newest, path, True) if inode.places else Place(inode, b"", path, True)
        directory = self._authenticated(inode, place)
        if inode in self._given_up or (directory is None and inode.places and self._is_locked(inode)):
            return
        try:
            fd = vault.inodes.open(inode, os.O_RDONLY)
        except OSError as error:
            self._damage(Remedy.NONE, place, f"the directory cannot be read: {error.strerror}")
            return
        try:
            entries = sorted(os.fsencode(name) for name in os.listdir(fd))
            if directory is not None:
                self._attributes(fd, directory.zone, directory.dir_id, place)
            self._own.look(inode, fd, set(entries), path, is_zone_root=self._is_zone_root(inode, directory))
            with vault.inodes.permitted(inode):
                for entry in entries:
                    if not entry.startswith(OWN_PREFIX):
                        await self._entry(inode, fd, entry, directory, path)
        finally:
            os.close(fd)

    def _authenticated(self, inode: Inode, place: Place) -> Directory | None:
        directories = self._vault.directories
        try:
            if inode.places and place.parent.directory is None:
                # Where it hangs cannot be judged before its parent has its id again; its own names can be read.
                return directories.claim(inode)
            return directories.of(inode)
        except KeyUnavailable as error:
            self._lock(error)
        except Damaged as error:
            return self._misplaced(inode, place, error)
        return None

    def _misplaced(self, inode: Inode, place: Place, error: Damaged) -> Directory | None:
        """Why it is not what should be there decides what can be done. What its id opens is read all the same."""
        try:
            claim = self._vault.directories.claim(inode)
        except (Damaged, KeyUnavailable):
            if self._is_lost_zone(inode):
                self._given_up.add(inode)
                self._damage(Remedy.PUT_AWAY, place, "the root of a zone in another place than its own")
            else:
                self._damage(Remedy.NEW_ID, place, str(error))
            return None
        parent = place.parent.directory
        if str(error).startswith("two directories"):
            self._damage(Remedy.NEW_ID, place, str(error))
        elif parent is not None and claim.zone is not parent.zone:
            self._damage(Remedy.OTHER_ZONE, place, str(error))
        else:
            self._damage(Remedy.NEW_NAME, place, str(error))
        return claim

    def _is_lost_zone(self, inode: Inode) -> bool:
        """A zone that was moved is kept whole: in its own place it opens again."""
        try:
            record = read_zone_record(self._vault.inodes.dir_fd(inode))
        except CmkfsError:
            return False
        return record.zone_id in {root.zone_id for root in self._vault.roots} and inode not in self._zone_places

    def _is_zone_root(self, inode: Inode, directory: Directory | None) -> bool:
        if inode is not self._vault.inodes.root and inode not in self._zone_places:
            return False
        if directory is not None:
            self._report.zone_roots[directory.zone.zone_id] = inode
        return True

    def _is_locked(self, inode: Inode) -> bool:
        try:
            self._vault.directories.claim(inode)
        except KeyUnavailable:
            return True
        except Damaged:
            return False
        return False

    async def _entry(self, parent: Inode, fd: int, entry: bytes, directory: Directory | None, path: bytes) -> None:
        try:
            found = os.stat(entry, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        place = self._named(parent, fd, entry, directory, path)
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFDIR:
            await self._subdirectory(place, found)
        elif kind == stat.S_IFREG:
            await self._file(place, fd, found, directory)
        elif kind == stat.S_IFLNK:
            self._symlink(place, fd, directory)
        else:
            self._report.others += 1

    def _named(self, parent: Inode, fd: int, entry: bytes, directory: Directory | None, path: bytes) -> Place:
        """The plain name; an entry without one is damage, what it is called for is looked at all the same."""
        why = ""
        if directory is not None:
            try:
                return Place(parent, entry, joined(path, plain_name(directory, fd, entry)), True)
            except Damaged as error:
                why = str(error)
            except OSError:
                why = "a long name without its sidecar"
        place = Place(parent, entry, joined(path, b"?" + entry), False)
        if why or directory is None:
            self._damage(Remedy.NEW_NAME, place, why or "a name in a directory without its id")
        return place

    def _misses_zone(self, inode: Inode) -> bool:
        try:
            self._vault.directories.claim(inode)
        except CmkfsError:
            return True
        return False

    async def _subdirectory(self, place: Place, found: os.stat_result) -> None:
        try:
            inode = self._vault.inodes.learn(found, place.parent, place.entry)
        except Damaged as error:
            self._damage(Remedy.NONE, place, str(error))
            return
        try:
            if await self._enter_zone(place, inode):
                self._zone_places.add(inode)
        except (KeyUnavailable, CmkNotFound) as error:
            self._lock(error)
            check_tree(self._vault.inodes, inode, place.path, self._report)
            return
        except (Damaged, UnknownFormat) as error:
            # A directory of a zone that is open only hangs here; one that cannot be opened is kept as it is.
            remedy = Remedy.PUT_AWAY if self._misses_zone(inode) else Remedy.NEW_NAME
            self._damage(remedy, place, str(error))
            return
        if self._vault.recovering and is_empty(self._vault.inodes, inode):
            self._report.unsettled += 1  # the next mount removes it
        else:
            self._waiting.append((inode, place.path))

    def _symlink(self, place: Place, fd: int, directory: Directory | None) -> None:
        self._report.symlinks += 1
        target = os.readlink(place.entry, dir_fd=fd)
        if self._vault.symlinks.has_parts(target):
            self._own.used_parts(target)
        zones = [directory.zone] if directory is not None else list(self._vault.keyring.zones.values())
        for number, zone in enumerate(zones, 1):
            try:
                self._vault.symlinks.open(zone, target)
                return
            except Damaged as error:
                if self._vault.recovering and self._vault.symlinks.lacks_parts(target):
                    return  # the next mount removes it
                if number == len(zones):
                    self._damage(Remedy.PUT_AWAY, place, str(error))

    # -- files -----------------------------------------------------------------------------------

    async def _file(self, place: Place, fd: int, found: os.stat_result, directory: Directory | None) -> None:
        if found.st_nlink > 1:
            self._report.links.setdefault(found.st_ino, []).append(place)
        if found.st_ino in self._seen:
            return  # another link of a file that was looked at
        self._seen.add(found.st_ino)
        self._report.files += 1
        since = self._vault.unsettled_since
        recovering = since is not None and found.st_ctime_ns >= since
        try:
            opened = self._open(place, fd, found, recovering)
            if opened is None:
                return
            zone = self._zone_of(opened, directory)
        except (Damaged, UnknownFormat, OSError) as error:
            # A format that the vault does not announce is nothing that a newer version wrote.
            self._damage(Remedy.PUT_AWAY, place, str(error))
            return
        if zone is None:
            os.close(opened.fd)
            return
        self._batch.append(opened)
        if len(self._batch) >= _BATCH:
            await self._flush()

    def _open(self, place: Place, dir_fd: int, found: os.stat_result, recovering: bool) -> Opened | None:
        try:
            fd = os.open(place.entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
        except PermissionError:  # no mode keeps a file's owner from checking it
            inode = self._vault.inodes.learn(found, place.parent, place.entry)
            fd = self._vault.inodes.open(inode, os.O_RDONLY)
            self._vault.inodes.drop_if_unused(inode)
        try:
            page = os.pread(fd, PAGE, 0)
            if is_unwritten(page) and recovering:
                self._report.unsettled += 1
                os.close(fd)
                return None
            return Opened(place, fd, page, Identity.from_bytes(page), recovering, found.st_size)
        except BaseException:
            os.close(fd)
            raise

    def _zone_of(self, opened: Opened, directory: Directory | None) -> Zone | None:
        """The zone of the file's header, which must be its directory's. Raises Damaged."""
        zone = self._vault.keyring.zones.get(opened.identity.zone_id)
        if zone is None:
            os.close(opened.fd)
            raise Damaged("a file whose header belongs to another zone")
        if directory is not None and zone is not directory.zone:
            self._damage(Remedy.OTHER_ZONE, opened.place, "a file whose header belongs to another zone")
        return zone

    async def _flush(self) -> None:
        """Have the keys of the files that wait, and hand them to the readers."""
        batch, self._batch = self._batch, []
        by_zone: dict[bytes, list[Opened]] = {}
        for opened in batch:
            by_zone.setdefault(opened.identity.zone_id, []).append(opened)
        try:
            for zone_id, files in by_zone.items():
                zone = self._vault.keyring.zones[zone_id]
                deks = await self._vault.keyring.deks(zone, [opened.identity for opened in files])
                for opened, dek in zip(files, deks, strict=True):
                    self._hand_over(opened, zone, dek)
        finally:
            for opened in batch:
                os.close(opened.fd)

    def _hand_over(self, opened: Opened, zone: Zone, dek: bytearray | Damaged) -> None:
        place, identity = opened.place, opened.identity
        if isinstance(dek, Damaged):
            self._damage(Remedy.PUT_AWAY, place, str(dek))
            return
        inode = os.fstat(opened.fd)
        twin = self._file_ids.setdefault(identity.file_id, inode.st_ino)
        if twin != inode.st_ino:
            self._damage(Remedy.RESCUE, place, "two files with one id")
        else:
            self._attributes(opened.fd, zone, identity.file_id, place)
        state = (inode.st_ino, inode.st_ctime_ns, inode.st_size)
        if state not in self._known_good:
            secret = zone.keys.header_secret
            for first in range(0, max(1, -(-opened.length // PAGE)), CHUNK):
                task = Task(opened.page, bytes(dek), secret, opened.recovering, first)
                self._readers.submit(opened.fd, task, partial(self._read, opened, state, first))
        dek[:] = bytes(len(dek))

    def _read(self, opened: Opened, state: tuple[int, int, int], part: int, outcome: Outcome) -> None:
        """What a reader says of one part."""
        self._report.blocks += outcome.blocks
        bad = outcome.header or outcome.bad_count or outcome.beyond or outcome.half or outcome.unsettled
        (self._bad if bad else self._good).add(state)
        place = opened.place
        if outcome.bad_count:
            more = f", and {outcome.bad_count - len(outcome.bad)} more" * (outcome.bad_count > len(outcome.bad))
            self._damage(Remedy.RESCUE, place, "; ".join(outcome.bad) + more)
        if part:
            return
        if outcome.header:
            self._damage(Remedy.RESCUE, place, outcome.header)
        elif outcome.beyond:
            self._damage(Remedy.RESCUE, place, "blocks behind its end, which no crash explains")
        elif outcome.half and not opened.recovering:
            self._damage(Remedy.SETTLE, place, "one of the two state slots of the header is damaged")
        elif outcome.unsettled:
            self._report.unsettled += 1
            if not self._vault.recovering:
                self._note(Remedy.SETTLE, place, "not settled: it was copied while it was open, or put back from then")

    def _attributes(self, fd: int, zone: Zone, owner: bytes, place: Place) -> None:
        try:
            names = own_xattrs(fd)
        except Damaged as error:
            self._note(Remedy.NONE, place, f"{error}: they are not looked at")
            return
        except OSError:
            return  # a backing without extended attributes
        for name in names:
            try:
                zone.keys.open_xattr(owner, os.fsencode(name)[len(PREFIX) :], os.getxattr(fd, name))
            except Damaged as error:
                self._damage(Remedy.TAKE_OUT, place, str(error), name)

    # -- what is found ---------------------------------------------------------------------------

    def _damage(self, remedy: Remedy, place: Place, what: str, attribute: str = "") -> None:
        self._report.damage.append(Finding(remedy, place.path, what, place.parent, place.entry, attribute))

    def _note(self, remedy: Remedy, place: Place, what: str) -> None:
        self._report.notes.append(Finding(remedy, place.path, what, place.parent, place.entry))

    def _lock(self, error: CmkfsError) -> None:
        self._report.locked += {str(error)} - {*self._report.locked}

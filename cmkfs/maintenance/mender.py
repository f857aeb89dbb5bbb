"""One finding of `check` at a time: names, ids, places, attributes and files brought in order."""

import os
import stat

from cmkfs.crypto.zonekeys import MAX_NAME
from cmkfs.errors import CmkfsError, Damaged
from cmkfs.format.vault import NO_DIRECTORY
from cmkfs.fs.backing import RENAME_NOREPLACE, rename
from cmkfs.fs.directory import DIR_ID, OWN_PREFIX, TEMPORARY_PREFIX, Directory, backing_name, plain_name
from cmkfs.fs.inode import Inode
from cmkfs.fs.opening import FileOpener
from cmkfs.fs.symlinks import LINKS_DIR
from cmkfs.fs.xattrs import PREFIX, own_xattrs
from cmkfs.keys.pool import random_id
from cmkfs.maintenance.check import Check
from cmkfs.maintenance.findings import Finding, Place, Remedy
from cmkfs.maintenance.lost import Action, Lost, path_of
from cmkfs.maintenance.rescue import Rescued, Source, copy, open_source
from cmkfs.maintenance.survey import Vault


class Mender:
    """Works on the objects of the survey that made the findings."""

    def __init__(self, vault: Vault, check: Check, opener: FileOpener, lost: Lost, actions: list[Action]) -> None:
        self._vault = vault
        self._check = check
        self._opener = opener
        self._lost = lost
        self._actions = actions
        self._done: set[tuple[int, bytes]] = set()

    async def mend(self, finding: Finding) -> None:
        """Do what the finding's remedy says. What was moved by an earlier one waits for the next round."""
        parent = finding.parent
        if parent is None or not (finding.entry or finding.remedy is Remedy.TAKE_OUT):
            if finding.remedy is Remedy.NEW_ID:
                self._new_id(finding, self._vault.inodes.root)
            elif finding.entry.startswith(LINKS_DIR + b"/"):
                self._put_away_part(finding)
            return
        key = (parent.ino, finding.entry)
        try:
            found = self._stat(finding)
        except OSError:
            return  # moved by an earlier one
        if key in self._done and finding.remedy is not Remedy.TAKE_OUT:
            return
        match finding.remedy:
            case Remedy.SETTLE:
                await self._settle(finding, found)
            case Remedy.RESCUE:
                await self._rescue(finding, found)
            case Remedy.PUT_AWAY:
                self._put_away(finding)
            case Remedy.NEW_NAME:
                self._new_name(finding, found)
            case Remedy.NEW_ID:
                self._new_id(finding, self._vault.inodes.learn(found, parent, finding.entry))
            case Remedy.OTHER_ZONE:
                self._to_its_zone(finding, found)
            case Remedy.TAKE_OUT:
                self._take_out(finding)
        if finding.remedy not in (Remedy.TAKE_OUT, Remedy.NEW_ID):
            self._done.add(key)

    def _dir(self, inode: Inode) -> int:
        return self._vault.inodes.dir_fd(inode)

    def _stat(self, finding: Finding) -> os.stat_result:
        assert finding.parent is not None
        return os.stat(finding.entry or b".", dir_fd=self._dir(finding.parent), follow_symlinks=False)

    def _tell(self, finding: Finding, done: str) -> None:
        self._actions.append(Action(finding.path, f"{finding.what}: {done}"))

    # -- moving ----------------------------------------------------------------------------------

    def _put_away(self, finding: Finding) -> None:
        assert finding.parent is not None
        where = path_of(finding.parent)
        put = self._lost.put(self._dir(finding.parent), finding.entry, where, finding.what)
        self._tell(finding, f"put away as {put}")

    def _put_away_part(self, finding: Finding) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(LINKS_DIR, flags, dir_fd=self._vault.backing.root_fd)
        try:
            put = self._lost.put(fd, finding.entry.partition(b"/")[2], [LINKS_DIR], finding.what)
        finally:
            os.close(fd)
        self._tell(finding, f"put away as {put}")

    def _new_name(self, finding: Finding, found: os.stat_result) -> None:
        """Whole, but under a name that nobody can read."""
        assert finding.parent is not None
        if finding.path.endswith(b"/?" + finding.entry) and self._readable(finding.parent, finding.entry):
            return  # its directory has its own id again
        name = self._move(finding, found, finding.parent)
        self._tell(finding, f"is called {os.fsdecode(name)} now")

    def _readable(self, parent: Inode, entry: bytes) -> bool:
        try:
            plain_name(self._vault.directories.of(parent), self._dir(parent), entry)
        except (Damaged, OSError):
            return False
        return True

    def _to_its_zone(self, finding: Finding, found: os.stat_result) -> None:
        """To the root of the zone that its id or header names, if that is one of this vault."""
        root = self._check.report.zone_roots.get(self._zone_of(finding, found))
        if root is None:
            self._put_away(finding)
            return
        name = self._move(finding, found, root)
        self._tell(finding, f"moved to the root of its zone as {os.fsdecode(name)}")

    def _zone_of(self, finding: Finding, found: os.stat_result) -> bytes:
        assert finding.parent is not None
        inode = self._vault.inodes.learn(found, finding.parent, finding.entry)
        if inode.is_dir:
            return self._vault.directories.claim(inode).zone.zone_id
        fd = self._vault.inodes.open(inode, os.O_RDONLY)
        try:
            return os.pread(fd, 48, 0)[32:48]
        finally:
            os.close(fd)

    def _move(self, finding: Finding, found: os.stat_result, target: Inode) -> bytes:
        """Give it a `lost+found.N` that is free in `target`."""
        assert finding.parent is not None
        directory = self._vault.directories.of(target)
        name, entry = self._free(target, directory, b"lost+found.")
        rename(self._dir(finding.parent), finding.entry, self._dir(target), entry, RENAME_NOREPLACE)
        if stat.S_ISDIR(found.st_mode):
            self._vault.inodes.learn(found, target, entry)
        return name

    def _free(self, target: Inode, directory: Directory, stem: bytes) -> tuple[bytes, bytes]:
        """A plain name that begins with `stem` and is free, and its backing name; never a long one."""
        for number in range(1, 2**32):
            name = stem + b"%d" % number
            entry = backing_name(directory, name).entry
            if not _there(entry, self._dir(target)):
                return name, entry
        raise CmkfsError("no free name")  # pragma: no cover

    # -- directories -----------------------------------------------------------------------------

    def _new_id(self, finding: Finding, inode: Inode) -> None:
        """A zone's root gets the id that its record proves, any other a new one. A copy keeps its names."""
        directories, is_root = self._vault.directories, inode is self._vault.inodes.root
        zone = self._vault.keyring.zones[self._root_zone_id()]
        proven = zone.keys.open_zone_root(self._check.access.vault.vault_hash, zone.record).dir_id if is_root else None
        if not is_root:
            assert finding.parent is not None
            zone = directories.of(finding.parent).zone
            name = finding.path.rpartition(b"/")[2]
            parent_id = directories.of(finding.parent).dir_id
            for root in self._check.roots:
                listed = self._vault.keyring.zones.get(root.zone_id)
                if (root.parent_dir_id, root.name) == (parent_id, name) and listed is not None:
                    zone, proven = listed, root.dir_id
        try:
            old: Directory | None = directories.claim(inode)
        except Damaged:
            old = None
        fd = self._dir(inode)
        new = Directory(proven or random_id(), zone)
        if old is not None and old.zone is zone and proven is None:
            self._seal_anew(inode, old, new)
        put = ""
        if _there(DIR_ID, fd):
            put = f"; the old one is {self._lost.put(fd, DIR_ID, path_of(inode), finding.what)}"
        os.symlink(zone.keys.seal_dir_id(new.dir_id), DIR_ID, dir_fd=fd)
        inode.directory = None
        self._tell(finding, ("its own id restored" if proven else "has a new id") + put)

    def _root_zone_id(self) -> bytes:
        zones = self._vault.keyring.zones
        listed = {root.zone_id for root in self._check.roots if root.parent_dir_id != NO_DIRECTORY}
        return next(zone_id for zone_id in zones if zone_id not in listed)

    def _seal_anew(self, inode: Inode, old: Directory, new: Directory) -> None:
        """The names and attributes of a copied directory, under its new id."""
        fd = self._dir(inode)
        reader = self._vault.inodes.open(inode, os.O_RDONLY)
        try:
            for entry in [os.fsencode(name) for name in os.listdir(reader)]:
                if entry.startswith(OWN_PREFIX):
                    continue
                try:
                    name = backing_name(new, plain_name(old, fd, entry))
                except (Damaged, OSError):
                    continue  # the next survey finds it
                if name.sidecar is not None and not _there(name.sidecar, fd):
                    os.symlink(name.sealed, name.sidecar, dir_fd=fd)
                rename(fd, entry, fd, name.entry, RENAME_NOREPLACE)
            keys = new.zone.keys
            for attribute in own_xattrs(reader):
                handle, value = os.fsencode(attribute)[len(PREFIX) :], os.getxattr(reader, attribute)
                try:
                    plain, value = keys.open_xattr(old.dir_id, handle, value)
                except Damaged:
                    continue
                sealed = keys.seal_xattr(new.dir_id, plain, value)
                os.setxattr(reader, PREFIX.encode() + keys.xattr_handle(new.dir_id, plain), sealed)
                os.removexattr(reader, attribute)
        finally:
            os.close(reader)

    def _take_out(self, finding: Finding) -> None:
        assert finding.parent is not None
        fd = os.open(
            finding.entry or b".", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._dir(finding.parent)
        )
        try:
            value = os.getxattr(fd, finding.attribute)
            where = [*path_of(finding.parent), finding.entry]
            put = self._lost.keep_attribute(where, finding.attribute, value, finding.what)
            os.removexattr(fd, finding.attribute)
        except OSError as error:
            self._tell(finding, f"left as it is: {error.strerror}")
            return
        finally:
            os.close(fd)
        self._tell(finding, f"put away as {put}")

    # -- files -----------------------------------------------------------------------------------

    async def _settle(self, finding: Finding, found: os.stat_result) -> None:
        assert finding.parent is not None
        inode = self._vault.inodes.learn(found, finding.parent, finding.entry)
        file = await self._opener.open(inode, self._vault.directories.of(finding.parent).zone)
        self._opener.release(file)
        self._tell(finding, f"settled at {file.size} bytes")

    async def _rescue(self, finding: Finding, found: os.stat_result) -> None:
        """The readable blocks into a new file, in every place that the old one had."""
        assert finding.parent is not None
        inode = self._vault.inodes.learn(found, finding.parent, finding.entry)
        old = self._vault.inodes.open(inode, os.O_RDONLY)
        self._vault.inodes.drop_if_unused(inode)
        try:
            try:
                source = await open_source(old, self._vault.keyring)
            except Damaged:
                self._put_away(finding)
                return
            if not source.size and not source.proven:
                self._put_away(finding)
                return
            await self._replace(finding, source, found)
        finally:
            os.close(old)

    async def _replace(self, finding: Finding, source: Source, found: os.stat_result) -> None:
        assert finding.parent is not None
        parent = finding.parent
        places = self._check.report.links.get(found.st_ino) or [
            Place(parent, finding.entry, finding.path, named=not finding.path.endswith(b"/?" + finding.entry))
        ]
        for place in places:
            self._vault.directories.of(place.parent)  # before anything is done: one that has no id now gets it first
        temporary = TEMPORARY_PREFIX + random_id().hex().encode()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600, dir_fd=self._dir(parent))
        inode = self._vault.inodes.learn(os.fstat(fd), parent, temporary)
        try:
            rescued = await copy(source, inode, fd, self._opener, self._vault.keyring)
        except BaseException:
            os.unlink(temporary, dir_fd=self._dir(parent))
            raise
        done = []
        for place in places:
            put = self._lost.put(self._dir(place.parent), place.entry, path_of(place.parent), finding.what)
            done.append(f"{os.fsdecode(self._link(place, parent, temporary, rescued))}, the old one is {put}")
            self._done.add((place.parent.ino, place.entry))
        os.unlink(temporary, dir_fd=self._dir(parent))
        _same_owner(fd, found)
        inode.drop_place(parent, temporary)
        what = "whole" if rescued.whole else f"all but {rescued.lost} of {rescued.blocks} blocks"
        self._tell(finding, f"{what} saved in {'; '.join(done)}")

    def _link(self, place: Place, parent: Inode, temporary: bytes, rescued: Rescued) -> bytes:
        """Give the new file its name at one place: the old one's only if nothing is missing."""
        directory = self._vault.directories.of(place.parent)
        target = self._dir(place.parent)
        name = place.path.rpartition(b"/")[2]
        if not place.named:
            name, _ = self._free(place.parent, directory, b"lost+found.")
            backing = backing_name(directory, name)
        elif rescued.whole:
            backing = backing_name(directory, name)
        else:
            stem = name[: MAX_NAME - 20] + b".rescued"
            if _there(backing_name(directory, stem).entry, target):
                stem, _ = self._free(place.parent, directory, stem + b".")
            name, backing = stem, backing_name(directory, stem)
        if backing.sidecar is not None and not _there(backing.sidecar, target):
            os.symlink(backing.sealed, backing.sidecar, dir_fd=target)
        os.link(temporary, backing.entry, src_dir_fd=self._dir(parent), dst_dir_fd=target)
        return name


def _same_owner(fd: int, found: os.stat_result) -> None:
    """Owner, rights and times of the old file."""
    if (os.geteuid(), os.getegid()) != (found.st_uid, found.st_gid):
        os.fchown(fd, found.st_uid, found.st_gid)
    os.fchmod(fd, stat.S_IMODE(found.st_mode))
    os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))


def _there(entry: bytes, dir_fd: int) -> bool:
    try:
        os.stat(entry, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True

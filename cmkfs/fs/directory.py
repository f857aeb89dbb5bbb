"""What a directory of the vault is: its sealed id, its zone, and the backing names of its entries.

docs/format.md, sections 5 and 6. A directory's id and zone are authenticated when it is first used, against
its parent and the list of zones; nothing here trusts a path.
"""

import errno
import os
from dataclasses import dataclass
from weakref import WeakValueDictionary

from cmkfs.crypto.zonekeys import MAX_NAME, ZoneKeys, name_hash
from cmkfs.errors import Damaged
from cmkfs.format import b64
from cmkfs.format.vault import ID_SIZE, ZoneRoot
from cmkfs.fs.inode import Inode
from cmkfs.fs.inodes import InodeTable
from cmkfs.fs.subdirectories import Subdirectories
from cmkfs.fs.vaultdir import read_zone_record
from cmkfs.keys.zone import Zone

OWN_PREFIX = b"cmkfs."
LONG_PREFIX = b"long."
DIR_ID = b"cmkfs.dir"
SIDECAR_PREFIX = b"cmkfs.long."
TEMPORARY_PREFIX = b"cmkfs.tmp."
GONE_PREFIX = b"cmkfs.gone."


@dataclass(frozen=True, slots=True)
class Directory:
    """An authenticated directory."""

    dir_id: bytes
    zone: Zone


@dataclass(frozen=True, slots=True)
class BackingName:
    """What an entry is called in the vault; `sidecar` names the symlink to `sealed` if the name is long."""

    entry: bytes
    sidecar: bytes | None
    sealed: bytes


def backing_name(directory: Directory, name: bytes) -> BackingName:
    """The backing name of `name` in `directory`. Raises OSError ENAMETOOLONG, and Locked, Disabled, …"""
    if len(name) > MAX_NAME:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    sealed = directory.zone.keys.seal_name(directory.dir_id, name)
    if len(sealed) <= MAX_NAME:
        return BackingName(sealed, None, sealed)
    digest = name_hash(sealed)
    return BackingName(LONG_PREFIX + digest, SIDECAR_PREFIX + digest, sealed)


def plain_name(directory: Directory, dir_fd: int, entry: bytes, keys: ZoneKeys | None = None) -> bytes:
    """The plain name of a backing entry. Raises Damaged, and OSError ENOENT if a sidecar is missing.

    `keys` are the zone's, if not those that it gives while it serves.
    """
    keys = directory.zone.keys if keys is None else keys
    if entry.startswith(LONG_PREFIX):
        sealed = os.readlink(SIDECAR_PREFIX + entry[len(LONG_PREFIX) :], dir_fd=dir_fd)
        if len(sealed) <= MAX_NAME or name_hash(sealed) != entry[len(LONG_PREFIX) :]:
            raise Damaged("a long name whose sidecar belongs to another")
        return keys.open_name(directory.dir_id, sealed)
    return keys.open_name(directory.dir_id, entry)


class Directories:
    """Authenticates directories, once each while the kernel knows them.

    `zones` are those whose keys may be had, `zone_roots` the list of all zones below the root. The records in
    the roots of zones are checked if `vault_hash` is given.
    """

    def __init__(
        self,
        inodes: InodeTable,
        zones: dict[bytes, Zone],
        zone_roots: tuple[ZoneRoot, ...],
        vault_hash: bytes | None = None,
    ) -> None:
        self._inodes = inodes
        self._zones = zones
        self._vault_hash = vault_hash
        self.subdirectories = Subdirectories(inodes.open_unnoticed, OWN_PREFIX)
        self._living: WeakValueDictionary[bytes, Inode] = WeakValueDictionary()
        self.list_zones(zone_roots)

    def list_zones(self, zone_roots: tuple[ZoneRoot, ...]) -> None:
        """From now on these are the zones below the root."""
        self.zone_roots = zone_roots
        self._places = {(root.parent_dir_id, root.name): root for root in zone_roots}
        self._parents = {root.parent_dir_id for root in zone_roots}

    def of(self, inode: Inode) -> Directory:
        """The authenticated directory. Raises Damaged, NotADirectoryError, and Locked, Disabled, …"""
        if inode.directory is not None:
            inode.directory.zone.check()
            return inode.directory
        if not inode.is_dir:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        directory = self.claim(inode)
        if inode is not self._inodes.root:
            self._check_zone(inode, directory)
        twin = self._living.get(directory.dir_id)
        if twin is not None and twin is not inode and self._still_has(twin, directory.dir_id):
            raise Damaged("two directories with one id")
        self._living[directory.dir_id] = inode
        inode.directory = directory
        return directory

    def _still_has(self, twin: Inode, dir_id: bytes) -> bool:
        """Is an inode that had this id still known, and did it not prove to have another one since?"""
        if twin.removed or self._inodes.get(twin.ino) is not twin:
            return False
        return twin.directory is None or twin.directory.dir_id == dir_id

    def claim(self, inode: Inode) -> Directory:
        """What a directory says it is: its sealed id authenticates, its place is not looked at. Raises Damaged, …"""
        with self._inodes.permitted(inode):
            return self._read(self._inodes.dir_fd(inode))

    def _read(self, dir_fd: int) -> Directory:
        try:
            data = b64.decode(os.readlink(DIR_ID, dir_fd=dir_fd))
        except PermissionError:
            raise  # somebody else's directory, in the mount of an ordinary user
        except OSError as error:
            raise Damaged("a directory without its id") from error
        zone = self._zones.get(data[:ID_SIZE])
        if zone is None:
            raise Damaged("a directory of a zone that the vault does not have")
        return Directory(zone.keys.open_dir_id(data), zone)

    def _check_zone(self, inode: Inode, directory: Directory) -> None:
        """A zone begins exactly where the list of zones says (docs/format.md, section 5)."""
        parent_inode, entry = inode.places.newest
        parent = self.of(parent_inode)
        if directory.zone is parent.zone and parent.dir_id not in self._parents:
            return
        name = plain_name(parent, self._inodes.dir_fd(parent_inode), entry)
        listed = self._places.get((parent.dir_id, name))
        if listed is None and directory.zone is parent.zone:
            return
        if listed != ZoneRoot(directory.zone.zone_id, parent.dir_id, directory.dir_id, name):
            raise Damaged("a directory of one zone in the place of another")
        if self._vault_hash is not None:
            self._check_record(inode, directory.zone, listed, self._vault_hash)

    def _check_record(self, inode: Inode, zone: Zone, listed: ZoneRoot, vault_hash: bytes) -> None:
        """The record in a zone's root is this zone's, and says that it hangs here."""
        record = read_zone_record(self._inodes.dir_fd(inode))
        if (record.zone_id, record.commitment) != (zone.zone_id, zone.record.commitment):
            raise Damaged("the root of a zone has the record of another")
        if zone.keys.open_zone_root(vault_hash, record) != listed:
            raise Damaged("the record of a zone belongs to another place")

    def claimed_zone(self, inode: Inode) -> Zone | None:
        """The zone that a directory claims to be in, which nobody has proven; None if there is no such zone."""
        try:
            return self._zones.get(b64.decode(os.readlink(DIR_ID, dir_fd=self._inodes.dir_fd(inode)))[:ID_SIZE])
        except (OSError, Damaged):
            return None

    def zone_id_at(self, parent: Inode, entry: bytes) -> bytes:
        """The zone that a directory at this place must be in. Raises Damaged, and Locked, Disabled, …"""
        directory = self.of(parent)
        listed = self._places.get((directory.dir_id, plain_name(directory, self._inodes.dir_fd(parent), entry)))
        return listed.zone_id if listed is not None else directory.zone.zone_id

    def is_zone_place(self, directory: Directory, name: bytes) -> bool:
        """True for the name of a zone's root, whatever is there: it is moved and removed only as a zone."""
        return directory.dir_id in self._parents and (directory.dir_id, name) in self._places

    def shown_by(self, inode: Inode) -> Inode | None:
        """The directory that a zone's root lies in, None for all else: who may list that one may see the root."""
        if not self._parents or not inode.places:
            return None
        parent, entry = inode.places.newest
        if parent.directory is None or parent.directory.dir_id not in self._parents:
            return None
        name = plain_name(parent.directory, self._inodes.dir_fd(parent), entry)
        return parent if (parent.directory.dir_id, name) in self._places else None

    def forget_removed(self, inode: Inode) -> None:
        """A directory was removed, or has another id now: the one that it had is free."""
        if inode.directory is not None and self._living.get(inode.directory.dir_id) is inode:
            del self._living[inode.directory.dir_id]

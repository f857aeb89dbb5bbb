"""A second reader of a vault, written from docs/format.md alone; it shares no code with cmkfs.

`read_vault(directory, unwrap)` gives the plain tree of a vault that is not mounted, changing nothing.
`primitives` has section 1, `read_metadata` sections 3 to 7 and 9, `read_file` section 8; this file walks.
A damaged thing stands in the tree as what a program would get (`EIO`: kind "damaged"); only what makes
the whole vault unreadable is raised.
"""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from primitives import sha256
from read_file import read_file
from read_metadata import (
    DamagedError,
    NoKeyError,
    Place,
    ReadError,
    Recipient,
    Unwrap,
    Zone,
    dir_zone_id,
    read_dir,
    read_link,
    read_name,
    read_session,
    read_vault_file,
    read_xattr,
    read_zone_list,
    read_zone_record,
)

NO_PARENT = bytes(16)  # the parent id in the record of the root zone


@dataclass(frozen=True, slots=True)
class Node:
    """One plain object. `kind` is dir, file, symlink, special, or the kind of a ReadError."""

    kind: str
    size: int = 0
    sha256: str = ""
    unreadable: tuple[int, ...] = ()
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    damaged_xattrs: tuple[str, ...] = ()
    layer: str = ""


Tree = dict[bytes, Node]
"""Plain path without a leading slash -> what is there; the root itself is b""."""


def software_token(cmks: dict[tuple[bytes, int], bytes]) -> Unwrap:
    """A token of scheme `gcm` in software: (CMK id, version) -> AES-256 key."""

    def unwrap(recipient: Recipient, context: bytes) -> bytes:
        cmk = cmks.get((recipient.cmk_id, recipient.version))
        if recipient.scheme != 1 or cmk is None:
            raise NoKeyError("wrap", "no such CMK")
        if len(recipient.wrapped) != 60:  # iv 12, secret 32, tag 16
            raise DamagedError("wrap", "wrong length")
        try:
            return AESGCM(cmk).decrypt(recipient.wrapped[:12], recipient.wrapped[12:], context)
        except InvalidTag as error:
            raise DamagedError("wrap", "does not authenticate") from error

    return unwrap


def _readlink(path: Path, layer: str) -> str:
    try:
        return os.readlink(path)
    except OSError as error:
        raise DamagedError(layer, f"no symlink {path.name}") from error


def _read(path: Path, layer: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DamagedError(layer, f"no {path.name}") from error


class _Walk:
    """One pass over a vault; the constructor opens the vault itself."""

    def __init__(self, root: Path, unwrap: Unwrap) -> None:
        self.root, self.unwrap, self.tree = root, unwrap, Tree()
        _, self.vault_hash = read_vault_file(_read(root / "cmkfs.vault", "vaultfile"))
        self.zone, place = read_zone_record(_readlink(root / "cmkfs.zone", "zone"), self.vault_hash, unwrap)
        root_id = read_dir(_readlink(root / "cmkfs.dir", "dir"), self.zone)
        if place != Place(self.zone.zone_id, NO_PARENT, root_id, b""):
            raise DamagedError("zone", "the root is not where its record says")
        listed = read_zone_list(_read(root / "cmkfs.zones", "zones"), self.vault_hash, self.zone)
        self.places = {(one.parent_id, one.name): one for one in listed}
        session = read_session(_read(root / "cmkfs.session", "session"), self.vault_hash, self.zone)
        self.recovering = session.unclosed
        self.seen: dict[bytes, tuple[int, int]] = {}  # file and directory ids -> device and inode
        self._once(root_id, root, "dir")
        self._directory(root, b"", self.zone, root_id)

    def _once(self, object_id: bytes, path: Path, layer: str) -> None:
        status = path.lstat()
        inode = status.st_dev, status.st_ino
        if self.seen.setdefault(object_id, inode) != inode:
            raise DamagedError(layer, "one id at two objects: a clone")

    def _directory(self, path: Path, plain: bytes, zone: Zone, dir_id: bytes) -> None:
        good, bad = self._xattrs(path, zone, dir_id)
        self.tree[plain] = Node("dir", xattrs=good, damaged_xattrs=bad)
        for entry in sorted(os.listdir(path)):
            if entry.startswith("cmkfs."):
                continue
            sidecar = path / f"cmkfs.{entry}"
            try:
                long_name = _readlink(sidecar, "name") if entry.startswith("long.") else None
                name = read_name(entry, long_name, zone, dir_id)
            except DamagedError:
                continue  # section 6: an entry that does not authenticate is not shown
            where = plain + b"/" + name if plain else name
            try:
                self._object(path / entry, where, zone, (dir_id, name))
            except ReadError as error:
                self.tree[where] = Node(error.kind, layer=error.layer)

    def _object(self, path: Path, plain: bytes, zone: Zone, place: tuple[bytes, bytes]) -> None:
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            zone, dir_id = self._enter(path, zone, place)
            self._directory(path, plain, zone, dir_id)
        elif stat.S_ISREG(mode):
            self.tree[plain] = self._file(path, zone)
        elif stat.S_ISLNK(mode):
            target = read_link(_readlink(path, "link"), self._part, zone)
            self.tree[plain] = Node("symlink", size=len(target), target=target)
        else:
            self.tree[plain] = Node("special")

    def _enter(self, path: Path, parent: Zone, place: tuple[bytes, bytes]) -> tuple[Zone, bytes]:
        """The zone and id of the directory at `place` (parent directory id, name); the rules of section 5."""
        target = _readlink(path / "cmkfs.dir", "dir")
        listed = self.places.get(place)
        if dir_zone_id(target) != (listed.zone_id if listed else parent.zone_id):
            raise DamagedError("zones", "a directory of another zone than the list says")
        zone = parent
        if listed:
            record = _readlink(path / "cmkfs.zone", "zone")
            zone, recorded = read_zone_record(record, self.vault_hash, self.unwrap)
            if recorded != listed:
                raise DamagedError("zone", "the record is that of another place")
        dir_id = read_dir(target, zone)
        if listed and dir_id != listed.root_id:
            raise DamagedError("zones", "not the root of this zone")
        self._once(dir_id, path, "dir")
        return zone, dir_id

    def _file(self, path: Path, zone: Zone) -> Node:
        with path.open("rb") as backing:
            view = read_file(backing, zone, self.vault_hash, self.unwrap, self.recovering)
            if view.file_id is None:
                return Node("file", sha256=sha256(b"").hex())
            self._once(view.file_id, path, "header")
            digest, unreadable = view.digest()
            good, bad = self._xattrs(path, zone, view.file_id)
            return Node("file", view.size, digest, tuple(unreadable), xattrs=good, damaged_xattrs=bad)

    def _part(self, name: str) -> str:
        try:
            return os.readlink(self.root / "cmkfs.links" / name)
        except OSError as error:
            raise KeyError(name) from error

    def _xattrs(self, path: Path, zone: Zone, object_id: bytes) -> tuple[dict[bytes, bytes], tuple[str, ...]]:
        good: dict[bytes, bytes] = {}
        bad = []
        for attribute in sorted(os.listxattr(path, follow_symlinks=False)):
            if not attribute.startswith("user.cmkfs."):
                continue
            raw = os.getxattr(path, attribute, follow_symlinks=False)
            try:
                name, value = read_xattr(attribute, raw, zone, object_id)
                good[name] = value
            except DamagedError:
                bad.append(attribute)
        return good, tuple(bad)


def read_vault(directory: Path, unwrap: Unwrap) -> Tree:
    """The plain tree of a vault; raises ReadError when the vault itself cannot be opened."""
    return _Walk(directory, unwrap).tree

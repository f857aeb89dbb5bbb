"""The mini vault under `mini_vault/`."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from make_files import ROOT_ZONE, TAIL
from primitives import b64, sha256
from sealing import (
    ALPHA,
    BETA,
    DIRTY,
    PLAIN,
    FileSpec,
    SlotSpec,
    ZoneSpec,
    link_parts,
    long_entry,
    rnd,
    text,
    vault_file,
)

SECRET_ZONE, INNER_ZONE = ZoneSpec("secret", BETA), ZoneSpec("inner", ALPHA)
NO_PARENT = bytes(16)
EMPTY = {"kind": "file", "size": 0, "sha256": sha256(b"").hex()}
ODD = bytes(range(1, 47)) + bytes(range(48, 256))  # every byte that a name may hold, 254 of them


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory of the vault: where it is on both sides, and what seals in it."""

    plain: bytes
    cipher: str
    zone: ZoneSpec

    @property
    def dir_id(self) -> bytes:
        """16 bytes."""
        return rnd(f"dir id {self.plain.hex()}", 16)

    def path(self, name: bytes) -> bytes:
        """The plain path of an entry."""
        return self.plain + b"/" + name if self.plain else name

    def entry(self, name: bytes) -> str:
        """The backing path of an entry."""
        cipher = self.zone.name(self.dir_id, name)
        return self.cipher + (cipher if len(cipher) <= 255 else long_entry(cipher))


@dataclass(slots=True)
class MiniVault:
    """A vault being made. `objects`: backing path -> bytes, or a symlink's target, or None: a directory."""

    objects: dict[str, bytes | str | None] = field(default_factory=dict)
    xattrs: dict[str, dict[str, str]] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)
    zones: list[tuple[bytes, bytes, bytes, bytes]] = field(default_factory=list)

    def name(self, parent: Directory, name: bytes) -> str:
        """Makes the sidecar that a long name needs; gives the backing path."""
        cipher = parent.zone.name(parent.dir_id, name)
        if len(cipher) > 255:
            self.objects[f"{parent.cipher}cmkfs.{long_entry(cipher)}"] = cipher
        return parent.entry(name)

    def directory(self, parent: Directory | None, name: bytes, zone: ZoneSpec) -> Directory:
        """A directory; the root of a zone if it differs from the parent's."""
        made = Directory(parent.path(name) if parent else b"", self.name(parent, name) + "/" if parent else "", zone)
        if parent:
            self.objects[made.cipher[:-1]] = None
        self.objects[made.cipher + "cmkfs.dir"] = b64(zone.directory(made.dir_id))
        if not parent or parent.zone != zone:
            parent_id = parent.dir_id if parent else NO_PARENT
            self.objects[made.cipher + "cmkfs.zone"] = b64(zone.record(parent_id, made.dir_id, name))
            if parent:
                self.zones.append((zone.zone_id, parent_id, made.dir_id, name))
        self.plain[made.plain.hex()] = {"kind": "dir"}
        return made

    def file(self, parent: Directory, name: bytes, content: bytes, cipher: bytes | None = None) -> None:
        """A file, clean unless its cipher bytes are given."""
        path = parent.path(name)
        spec = FileSpec(f"vault {path.hex()}", parent.zone, (parent.zone.cmk,))
        self.objects[self.name(parent, name)] = spec.settled(content) if cipher is None else cipher
        self.plain[path.hex()] = {"kind": "file", "size": len(content), "sha256": sha256(content).hex()}

    def symlink(self, parent: Directory, name: bytes, target: bytes) -> None:
        """A symlink, in parts if need be."""
        sealed = parent.zone.link(target)
        if len(sealed) > 1000:
            sealed, parts = link_parts(name.decode(), sealed, len(target))
            self.objects.update({f"cmkfs.links/{part}": piece for part, piece in parts.items()})
        self.objects[self.name(parent, name)] = sealed
        self.plain[parent.path(name).hex()] = {"kind": "symlink", "size": len(target), "target": target.hex()}

    def xattr(self, parent: Directory, name: bytes, attribute: bytes, value: bytes, object_id: bytes) -> None:
        """An extended attribute of an entry."""
        backing, path = parent.zone.attribute(object_id, attribute), parent.path(name).hex()
        sealed = parent.zone.value(object_id, backing, bytes([len(attribute)]) + attribute + value)
        self.xattrs.setdefault(parent.entry(name), {})[backing] = sealed.hex()
        self.plain[path].setdefault("xattrs", {})[attribute.hex()] = value.hex()


def session(*states: int) -> bytes:
    """`cmkfs.session` with these states, the later one counts."""
    return b"".join(ROOT_ZONE.session_slot(at, at + 1, state) for at, state in enumerate(states))


@dataclass(frozen=True, slots=True)
class Made:
    """The mini vault with the directories that the vectors change."""

    vault: MiniVault
    root: Directory
    docs: Directory
    more: Directory
    secret: Directory
    inner: Directory


def mini_vault() -> Made:
    """Two zones below the root, one within the other, and each kind of object."""
    vault = MiniVault()
    root = vault.directory(None, b"", ROOT_ZONE)
    docs, more = vault.directory(root, b"docs", ROOT_ZONE), vault.directory(root, b"more", ROOT_ZONE)
    secret = vault.directory(root, b"secret", SECRET_ZONE)
    inner = vault.directory(secret, b"inner", INNER_ZONE)
    vault.objects["cmkfs.links"] = None
    vault.file(root, b"empty", b"")
    vault.file(root, b"hello.txt", b"hello\n")
    dirty = FileSpec(f"vault {b'dirty'.hex()}", ROOT_ZONE)
    content = text("dirty", PLAIN + 3)
    backing = dirty.identity() + dirty.slots(SlotSpec(2, DIRTY, 5)) + b"".join(dirty.blocks(content))
    vault.file(root, b"dirty", content, backing)
    for length in (16, 17, 160, 161, 255):
        vault.file(docs, text(f"name {length}", length).replace(b"/", b"_"), b"%d\n" % length)
    vault.file(docs, ODD, text("odd", TAIL))
    long_dir = vault.directory(docs, b"d" * 200, ROOT_ZONE)
    vault.file(long_dir, b"in a long directory", b"deep\n")
    for length in (1, 718, 719, 4095):
        vault.symlink(more, b"to-%d" % length, text(f"target {length}", length))
    vault.file(secret, b"plan", text("plan", 5000))
    vault.symlink(secret, b"out", b"../hello.txt")
    vault.symlink(secret, b"far", text("far", 900))
    vault.file(inner, b"plan", b"another zone, the same name\n")
    vault.directory(inner, b"sub", INNER_ZONE)
    hello = FileSpec(f"vault {b'hello.txt'.hex()}", ROOT_ZONE).file_id
    vault.xattr(root, b"hello.txt", b"user.mime", b"text/plain", hello)
    vault.xattr(root, b"hello.txt", b"user.empty", b"", hello)
    vault.xattr(root, b"hello.txt", b"user." + b"\xfe" * 250, text("value", 3000), hello)
    vault.xattr(root, b"docs", b"user.colour", b"red", docs.dir_id)
    vault.objects["cmkfs.vault"] = vault_file()
    vault.objects["cmkfs.session"] = session(2, 1)
    vault.objects["cmkfs.zones"] = ROOT_ZONE.zone_list(vault.zones)
    return Made(vault, root, docs, more, secret, inner)


def write_mini_vault(made: Made, directory: Path) -> None:
    """Writes the vault, its extended attributes (version control has none) and the plain tree."""
    shutil.rmtree(directory, ignore_errors=True)
    for path, content in sorted(made.vault.objects.items()):
        where = directory / "vault" / path
        where.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            where.mkdir(exist_ok=True)
        elif isinstance(content, str):
            where.symlink_to(content)
        else:
            where.write_bytes(content)
    for name, document in (("xattrs", made.vault.xattrs), ("plain", made.vault.plain)):
        (directory / f"{name}.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")

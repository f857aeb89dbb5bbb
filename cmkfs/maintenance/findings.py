"""What `check` found: damage, and what is no damage but worth a word; as values and as JSON."""

from dataclasses import dataclass, field
from enum import StrEnum

from cmkfs.fs.inode import Inode


class Remedy(StrEnum):
    """What `--repair` does about a finding (docs/operations.md, "Damage found")."""

    NONE = "none"
    """Nothing can be done without a backup."""
    SETTLE = "settle"
    """A header that is not clean: the file is opened as a mount does, and settled."""
    RESCUE = "rescue"
    """What can be read goes into a new file; the old one is put away."""
    PUT_AWAY = "put away"
    """Moved to `cmkfs.lost` in the vault, which no mount shows."""
    NEW_NAME = "new name"
    """Whole, but its name is not: called `lost+found.N` in its directory."""
    NEW_ID = "new id"
    """A directory without its id gets one; a zone's root gets its own again."""
    OTHER_ZONE = "to its zone"
    """Whole, but in another zone's directory: moved to the root of its own zone as `lost+found.N`."""
    TAKE_OUT = "take out"
    """An extended attribute that does not authenticate: kept in `cmkfs.lost`."""
    REWRITE = "rewrite"
    """One of the vault's own records that can be made anew."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something lies. `path` is the plain path as far as it can be read, `named` tells whether it can."""

    parent: Inode
    entry: bytes
    path: bytes
    named: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing. `path` is the plain path as far as it can be read; `entry` in `parent` is where it lies."""

    remedy: Remedy
    path: bytes
    what: str
    parent: Inode | None = None
    entry: bytes = b""
    attribute: str = ""

    def facts(self) -> dict[str, object]:
        """As JSON tells it."""
        return {
            "path": _text(self.path),
            "backing_entry": _text(self.entry) or None,
            "what": self.what,
            "remedy": self.remedy.value,
        }

    @property
    def line(self) -> str:
        """As people are told."""
        return f"{_text(self.path)}: {self.what}"


@dataclass(slots=True)
class Report:
    """What one check saw. `damage` is what P2 calls damage or tampering; `notes` is what a mount lives with."""

    directories: int = 0
    files: int = 0
    symlinks: int = 0
    others: int = 0
    blocks: int = 0
    put_away: int = 0
    recovery_pending: bool = False
    unsettled: int = 0
    damage: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    locked: list[str] = field(default_factory=list)
    """Why keys were missing, zone by zone: only the structure was looked at there."""
    links: dict[int, list[Place]] = field(default_factory=dict)
    """All places of each file with several links, by backing inode number."""
    zone_roots: dict[bytes, Inode] = field(default_factory=dict)

    def facts(self) -> dict[str, object]:
        """As JSON tells it."""
        return {
            "directories": self.directories,
            "files": self.files,
            "symlinks": self.symlinks,
            "others": self.others,
            "blocks": self.blocks,
            "put_away": self.put_away,
            "recovery_pending": self.recovery_pending,
            "unsettled": self.unsettled,
            "structure_only": self.locked,
            "damage": [finding.facts() for finding in self.damage],
            "notes": [finding.facts() for finding in self.notes],
        }


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def joined(path: bytes, name: bytes) -> bytes:
    """The path of `name` in the directory `path`."""
    return path.rstrip(b"/") + b"/" + name

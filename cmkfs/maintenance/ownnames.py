"""The vault's own entries (`cmkfs.…`) in each directory: which belong there, and which something left behind."""

import os
from pathlib import PurePath

from cmkfs.fs.backing import Backing
from cmkfs.fs.directory import DIR_ID, GONE_PREFIX, LONG_PREFIX, OWN_PREFIX, SIDECAR_PREFIX, TEMPORARY_PREFIX
from cmkfs.fs.inode import Inode
from cmkfs.fs.symlinks import LINKS_DIR
from cmkfs.fs.vaultdir import (
    OWNER_FILE,
    SESSION_FILE,
    SPARE_FILE,
    VAULT_FILE,
    ZONE_COPY_PREFIX,
    ZONE_RECORD,
    ZONES_FILE,
)
from cmkfs.maintenance.findings import Finding, Remedy, Report

LOST_DIR = b"cmkfs.lost"
"""Where `--repair` puts away what it cannot mend; in the vault's root (docs/format.md, section 2)."""
_IN_ROOT = {
    LINKS_DIR,
    LOST_DIR,
    *(name.encode() for name in (VAULT_FILE, SESSION_FILE, ZONES_FILE, OWNER_FILE, SPARE_FILE)),
}


class OwnNames:
    """Collects them over one walk; leftovers of a crash are notes, and none at all while recovery is pending."""

    def __init__(self, backing: Backing, report: Report, *, recovering: bool) -> None:
        self._backing = backing
        self._report = report
        self._recovering = recovering
        self._used_links: set[bytes] = set()

    def look(self, inode: Inode, fd: int, entries: set[bytes], path: bytes, *, is_zone_root: bool) -> None:
        """The own entries among `entries` of one directory."""
        is_root = not inode.places
        for entry in sorted(entries):
            if not entry.startswith(OWN_PREFIX) or entry == DIR_ID:
                continue
            if (is_zone_root and entry == ZONE_RECORD.encode()) or (is_root and entry in _IN_ROOT):
                continue
            if is_root and entry.startswith(ZONE_COPY_PREFIX):
                continue  # a copy of a zone's record: a mount that finds none makes it, and recovery sweeps a stray one
            what = self._what(entry, entries)
            if what:
                self._leftover(inode, entry, path, what)
        if is_root and LOST_DIR in entries:
            self._count_lost(fd)

    def _what(self, entry: bytes, entries: set[bytes]) -> str:
        if entry.startswith(SIDECAR_PREFIX):
            known = LONG_PREFIX + entry[len(SIDECAR_PREFIX) :] in entries
            return "" if known else "the long name of an entry that is gone"
        if entry.startswith((TEMPORARY_PREFIX, GONE_PREFIX)):
            return "left half-made or half-removed"
        return "not an entry that this version of cmkfs makes"

    def used_parts(self, target: bytes) -> None:
        """A symlink says that it has parts: `.ID.COUNT.LENGTH`."""
        fields = target.split(b".")
        if len(fields) == 4 and fields[2].isdigit():
            self._used_links |= {b"%b.%d" % (fields[1], number) for number in range(min(int(fields[2][:4]), 8))}

    def parts_without_link(self) -> None:
        """After the walk: parts of symlinks that no symlink names."""
        try:
            fd = os.open(LINKS_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._backing.root_fd)
        except OSError:
            return  # found by `maintenance.records`
        try:
            parts = {os.fsencode(name) for name in os.listdir(fd)}
        finally:
            os.close(fd)
        for part in sorted(parts - self._used_links):
            self._note(None, LINKS_DIR + b"/" + part, b"/", "a part of a symlink that is gone")

    def _leftover(self, inode: Inode, entry: bytes, path: bytes, what: str) -> None:
        if not self._recovering:
            self._note(inode, entry, path, what)

    def _note(self, inode: Inode | None, entry: bytes, path: bytes, what: str) -> None:
        shown = os.fsencode(PurePath(os.fsdecode(path)) / os.fsdecode(entry))
        self._report.notes.append(Finding(Remedy.PUT_AWAY, shown, what, inode, entry))

    def _count_lost(self, root_fd: int) -> None:
        try:
            fd = os.open(LOST_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root_fd)
        except OSError:
            return
        try:
            self._report.put_away = sum(name != "log" for name in os.listdir(fd))
        finally:
            os.close(fd)

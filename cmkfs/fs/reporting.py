"""What the audit log is told of requests: who got a key, who was refused, where something did not authenticate."""

import os

from cmkfs.caller import Request
from cmkfs.errors import CmkfsError, Damaged, KeyUnavailable, PolicyDenied
from cmkfs.fs.directory import Directories, backing_name
from cmkfs.fs.handles import DirHandle, Handles
from cmkfs.fs.inode import Inode
from cmkfs.fs.inodes import InodeTable
from cmkfs.fs.openfile import OpenFile
from cmkfs.keys.keyring import Keyring
from cmkfs.keys.zone import Zone

_BY_HANDLE = frozenset({"read", "write", "fsync"})
_BY_DIRECTORY_HANDLE = frozenset({"readdir", "fsyncdir"})

_STRANGE_TOLD = 100
"""Records of one listing about entries that are no names of the directory; then one says that there are more."""


class Reporting:
    """Finds the facts of a request that failed. `used` is on the way of each open, the rest is not."""

    def __init__(self, inodes: InodeTable, directories: Directories, handles: Handles, keyring: Keyring) -> None:
        self._inodes = inodes
        self._directories = directories
        self._handles = handles
        self._keyring = keyring

    def used(self, event: str, file: OpenFile, request: Request, rule: str, began_ns: int = 0) -> None:
        """A caller gets the use of a file's key, as `rule` allows. Raises AuditFailed."""
        identity = file.identity
        version = identity.recipients[0].version.version
        self._keyring.audit.used(file.zone, request, event, identity.file_id, version, rule=rule, began_ns=began_ns)

    def failed(self, event: str, args: tuple[object, ...], error: CmkfsError) -> None:
        """A request ended in an error: recorded if it is a refusal or damage."""
        if not isinstance(error, KeyUnavailable | PolicyDenied | Damaged):
            return
        inode, request = self.met(event, args)
        file = inode.file if inode is not None else None
        self._keyring.audit.refused(
            event,
            error,
            caller=request,
            zone=self._zone(inode),
            file_id=file.identity.file_id if file is not None else None,
            rule=error.rule or None if isinstance(error, PolicyDenied) else None,
            path=self._path(inode, args) if file is None or isinstance(error, Damaged) else None,
        )

    def damaged_entry(self, handle: DirHandle, entry: bytes, error: Damaged) -> None:
        """A listing met an entry that is no name of its directory."""
        parts = [*backing_parts(handle.inode), os.fsdecode(entry)]
        if handle.strange > _STRANGE_TOLD:
            if handle.strange > _STRANGE_TOLD + 1:
                return
            error, parts = Damaged("more entries that are no names of this directory"), parts[:-1]
        zone = self._zone(handle.inode)
        self._keyring.audit.refused("readdir", error, caller=handle.request, zone=zone, path="/".join(parts))

    def met(self, event: str, args: tuple[object, ...]) -> tuple[Inode | None, Request | None]:
        """The inode that a request is about, and who asks: for what goes by handle, who opened it."""
        number = args[0] if args and isinstance(args[0], int) else 0
        if event in _BY_HANDLE:
            handle = self._handles.files.get(number)
            return (handle.file.inode, handle.request) if handle is not None else (None, None)
        if event in _BY_DIRECTORY_HANDLE:
            directory = self._handles.directories.get(number)
            return (directory.inode, directory.request) if directory is not None else (None, None)
        request = next((arg for arg in args if isinstance(arg, Request)), None)
        return self._inodes.get(number), request

    def _zone(self, inode: Inode | None) -> Zone | None:
        """The zone of an inode as far as it is known: it may be what does not authenticate."""
        while inode is not None:
            if inode.file is not None:
                return inode.file.zone
            if inode.directory is not None:
                return inode.directory.zone
            inode = inode.parent
        return None

    def _path(self, inode: Inode | None, args: tuple[object, ...]) -> str | None:
        """Where it lies in the vault; for a request by name that of the name."""
        if inode is None:
            return None
        parts = backing_parts(inode)
        name = args[1] if len(args) > 1 else None
        if isinstance(name, bytes) and inode.directory is not None:
            try:
                parts.append(os.fsdecode(backing_name(inode.directory, name).entry))
            except (CmkfsError, OSError):
                parts.append("?")
        return "/".join(parts) or "."


def backing_parts(inode: Inode) -> list[str]:
    """The names on the way from the vault to an inode."""
    parts: list[str] = []
    while inode.places:
        inode, entry = inode.places.newest
        parts.append(os.fsdecode(entry))
    return parts[::-1]

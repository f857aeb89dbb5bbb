"""A change of policy reaches what is open and cached already.

Pages, names and attributes in the kernel's cache belong to an inode and not to a user, and the kernel hands them
out without asking. So:

* An inode that somebody has open who lost the right is *retired*: reads through every handle of it are refused,
  its pages are dropped (dirty ones stored first), and the next lookup of its name gives the kernel a new
  generation, which makes it throw the old inode away with all its descriptors and mappings. Those who still may
  must open the file again. Until then GETATTR answers ESTALE: with fresh attributes the kernel would take whole
  pages that are written into the cache, where the other could read them.
* Where principals differ in whether they have any right, the kernel keeps no attributes of directories: it asks
  for each that it walks, with the caller's uid. The roots of zones answer those who have no right there too, so
  names in them are not kept either.
"""

import errno
import logging
import os
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Protocol

import trio

from cmkfs.errors import CmkfsError
from cmkfs.fs.attributes import Attributes
from cmkfs.fs.directory import plain_name
from cmkfs.fs.handles import FileHandle, actions_of
from cmkfs.fs.inode import Inode
from cmkfs.fs.inodes import InodeTable
from cmkfs.fs.keptnames import is_zone_root
from cmkfs.fs.operations import Operations
from cmkfs.keys.keyring import Keyring
from cmkfs.keys.zone import Zone, ZoneState

log = logging.getLogger(__name__)

SECONDS = 10.0
"""How long the kernel may take to forget; reads are refused from the beginning."""


class Forgetful(Protocol):
    """The kernel's memory of inodes (`fs.forgetting.KernelCache`)."""

    async def forget(self, numbers: Sequence[int]) -> None:
        """Drop pages and attributes; dirty pages arrive as WRITE requests meanwhile."""
        ...


class Entries(Protocol):
    """The kernel's memory of names."""

    def invalidate_entry(self, parent: int, name: bytes) -> bool:
        """Blocks."""
        ...


class Revocation:
    """Carries changes of policy out on one mount. `shared`: can others than its owner get in at all?"""

    def __init__(
        self,
        keyring: Keyring,
        inodes: InodeTable,
        operations: Operations,
        attributes: Attributes,
        kernel: Forgetful,
        entries: Entries,
        *,
        shared: bool,
    ) -> None:
        self._keyring = keyring
        self._inodes = inodes
        self._operations = operations
        self._attributes = attributes
        self._kernel = kernel
        self._entries = entries
        self._shared = shared
        self._thread = trio.CapacityLimiter(1)

    def begin(self, zones: Iterable[Zone]) -> None:
        """Before anything is served: whose attributes the kernel may keep."""
        for zone in zones:
            if self._shared and not self._keyring.policies.same_for_all(zone.cmk_id):
                self._attributes.divided.add(zone)
            else:
                self._attributes.divided.discard(zone)

    async def apply(self, zones: Iterable[Zone]) -> bool:
        """The policy of these zones, or what counts of it now, has changed; returns when it is in force.

        False if something could not be told to the kernel now, because a zone is locked: call again.
        """
        zones = list(zones)
        retired = self._retire(zones)
        newly = [zone for zone in zones if zone not in self._attributes.divided]
        self.begin(zones)
        newly = [zone for zone in newly if zone in self._attributes.divided]
        changed = [inode for inode in self._inodes if inode.is_dir and newly]
        names, complete = self._names([*retired, *self._in_roots(newly)], zones)
        if retired:
            log.info("%d open files must be opened again: who had them open may not use them any more", len(retired))
        # Twice: a write that was under way may have put a page in after its turn.
        with trio.move_on_after(SECONDS) as scope:  # the watch, which waits for this, has disables to see
            await self._kernel.forget([int(inode.ino) for inode in (*retired, *changed, *retired)])
            if names:
                await trio.to_thread.run_sync(
                    partial(self._drop_names, names), limiter=self._thread, abandon_on_cancel=True
                )
        if scope.cancelled_caught:
            log.error("a change of policy has not reached all that the kernel keeps within %s s", SECONDS)
        return complete and not scope.cancelled_caught

    def _retire(self, zones: list[Zone]) -> list[Inode]:
        """No await: from here on no handle of these inodes reads."""
        handles = [handle for handle in self._operations.handles.files.values() if handle.file.zone in zones]
        inodes = {handle.file.inode for handle in handles if not handle.retired and self._lost(handle)}
        for handle in handles:
            handle.retired = handle.retired or handle.file.inode in inodes
        for inode in inodes:
            inode.retired = True
            inode.generation += 1
            inode.told_size = None
        return list(inodes)

    def _lost(self, handle: FileHandle) -> bool:
        zone = handle.file.zone
        return not all(
            self._keyring.policies.allows(zone.cmk_id, handle.request, action) for action in actions_of(handle.flags)
        )

    def _in_roots(self, zones: list[Zone]) -> list[Inode]:
        """What the kernel may know right in the roots of these zones."""
        roots = [x for x in self._inodes if x.directory is not None and x.directory.zone in zones and is_zone_root(x)]
        return [inode for inode in self._inodes if roots and any(parent in roots for parent, _ in inode.places)]

    def _names(self, inodes: list[Inode], zones: list[Zone]) -> tuple[list[tuple[int, bytes]], bool]:
        """Directory and plain name of every name that the kernel may know, and whether these are all."""
        names: list[tuple[int, bytes]] = []
        for inode in inodes:
            for parent, entry in inode.places:
                try:
                    directory = self._operations.directory_of(parent)
                    names.append((int(parent.ino), plain_name(directory, self._inodes.dir_fd(parent), entry)))
                except (CmkfsError, OSError) as error:
                    log.debug("a name is not told to the kernel: %s", error)
        return names, all(zone.state is ZoneState.SERVING for zone in zones)

    def _drop_names(self, names: list[tuple[int, bytes]]) -> None:
        for parent, name in names:
            try:
                self._entries.invalidate_entry(parent, name)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EBUSY):
                    log.warning("a name stays in the kernel's cache: %s", os.strerror(error.errno or 0))

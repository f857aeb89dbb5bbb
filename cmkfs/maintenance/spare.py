"""`cmkfs.spare`: a copy of the two things without which nothing in a vault opens, and putting it in their place.

Both are in the clear where they lie, so the copy tells nothing more. It is never trusted: what it says counts only
if the token opens the zone's secret with it (docs/format.md, section 2).
"""

import json
import os

from cmkfs.errors import CmkNotFound, Damaged, NotAVault, UnknownFormat
from cmkfs.format import b64
from cmkfs.format.vault import VaultFile, ZoneRecord
from cmkfs.fs.backing import Backing
from cmkfs.fs.vaultdir import SPARE_FILE, VAULT_FILE, ZONE_RECORD, read_own_file
from cmkfs.keys.keyring import Keyring
from cmkfs.keys.policies import Policies
from cmkfs.keys.token_client import TokenClient
from cmkfs.keys.zone import Zone
from cmkfs.maintenance.lost import Action, Lost

Pair = tuple[bytes, bytes]
"""The raw `cmkfs.vault`, and the target of `cmkfs.zone`."""


def spare_of(vault: VaultFile, record: ZoneRecord) -> bytes:
    """The content of `cmkfs.spare`."""
    fields = {"vault": vault.raw.decode(), "zone": b64.encode(record.to_bytes()).decode()}
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def read_spare(backing: Backing) -> Pair | None:
    """The copy, if there is one that can be read."""
    try:
        fields = json.loads(read_own_file(backing, SPARE_FILE))
        return fields["vault"].encode(), fields["zone"].encode()
    except (OSError, Damaged, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None


async def restore(backing: Backing, token: TokenClient) -> list[Action]:
    """If the vault does not open, and does with its spare: put that in place. Raises KeyUnavailable, OSError."""
    present = _present(backing)
    spare = read_spare(backing)
    if spare is None or await _opens(present, token):
        return []
    for pair in ((spare[0], present[1]), (present[0], spare[1]), spare):
        if await _opens(pair, token):
            return _put_in_place(backing, present, pair)
    return []


def _present(backing: Backing) -> Pair:
    try:
        raw = read_own_file(backing, VAULT_FILE)
    except (OSError, Damaged):
        raw = b""
    try:
        target = os.readlink(ZONE_RECORD.encode(), dir_fd=backing.root_fd)
    except OSError:
        target = b""
    return raw, target


async def _opens(pair: Pair, token: TokenClient) -> bool:
    try:
        vault, record = VaultFile.from_bytes(pair[0]), ZoneRecord.from_bytes(b64.decode(pair[1]))
        keyring = Keyring(vault, token, Policies(os.geteuid()))
        zone = Zone(record.zone_id, record, "")
        keyring.add_zone(zone)
        await keyring.unlock(zone)
        zone.keys.open_zone_root(vault.vault_hash, record)
    except (Damaged, NotAVault, UnknownFormat, CmkNotFound):
        return False
    return True


def _put_in_place(backing: Backing, present: Pair, pair: Pair) -> list[Action]:
    lost, actions, root = Lost(backing), [], backing.root_fd
    try:
        for name, old, new in ((VAULT_FILE, present[0], pair[0]), (ZONE_RECORD, present[1], pair[1])):
            if old == new:
                continue
            put = ""
            if os.path.lexists(f"/proc/self/fd/{root}/{name}"):
                put = f"; the old one is {lost.put(root, name.encode(), [], 'nothing opened with it')}"
            if name == ZONE_RECORD:
                os.symlink(new, name.encode(), dir_fd=root)
            else:
                write_own_file(backing, name, new, mode=0o400)
            actions.append(Action(b"/" + name.encode(), f"nothing opened with it: its spare is in its place{put}"))
        os.fsync(root)
    finally:
        lost.close()
    return actions


def write_own_file(backing: Backing, name: str, data: bytes, mode: int = 0o600) -> None:
    """A new file of the vault's own, durable. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(name, flags, mode, dir_fd=backing.root_fd), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

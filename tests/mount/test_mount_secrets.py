"""What is secret is nowhere but in memory: not in logs, not in answers, not in what /proc tells of a mount's processes.

The daemon logs at DEBUG here, and meets a refused PIN, damage, and a token's process that dies.
"""

import base64
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_mount import OWN_CMK, REPOSITORY, RealMount, Site, processes_of

from cmkfs.config import TokenConfig
from cmkfs.format.header import Identity
from cmkfs.format.layout import PAGE, cipher_off
from cmkfs.format.recipient import WrapContext, WrapKind
from cmkfs.fs.vaultdir import read_vault_file, read_zone_record
from cmkfs.keys.access import TokenAccess

CONTENT = "plaintext that nobody may log " * 400
NAME = "name-that-is-secret"
VALUE = "value-of-an-attribute-that-is-secret"


class Talkative(Site):
    """Every command and daemon logs at DEBUG, and shows tracebacks; what they said is kept."""

    said = ""

    def cmkfs(self, *arguments: str, codes: object = (0, 1, 2, 3, 4, 5, 6, 7)) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "cmkfs", *arguments, *(["--verbose"] * (arguments[0] != "mount"))],
            env={**os.environ, "CMKFS_HOME": str(self.home.root), "PYTHONPATH": f"{self.top / 'site'}:{REPOSITORY}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        self.said += done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def site() -> Iterator[Talkative]:
    top = Path(tempfile.mkdtemp(prefix="cmkfs-test-"))
    (top / "site").mkdir()
    (top / "site" / "sitecustomize.py").write_text("import logging\nlogging.basicConfig(level=logging.DEBUG)\n")
    try:
        made = Talkative(top)
        made.prepare()
        yield made
    finally:
        shutil.rmtree(top)


def keys_of(site: Site, vault: Path) -> list[bytes]:
    """The zone's secret and the data keys of all files, as the token unwraps them."""
    access = TokenAccess.of(TokenConfig(), site.home)
    vault_hash, fd = read_vault_file(vault).vault_hash, os.open(vault, os.O_RDONLY)
    provider = access.open(access.read_pin(), read_write=False)
    try:
        zone = read_zone_record(fd)
        root = WrapContext(WrapKind.ZONE, vault_hash, zone.zone_id, zone.zone_id, zone.commitment)
        wraps = [(zone.recipient, root)]
        for path in files_of(vault):
            one = Identity.from_bytes(path.read_bytes()[:PAGE])
            context = WrapContext(WrapKind.FILE, vault_hash, one.zone_id, one.file_id, one.commitment)
            wraps.append((one.recipients[0], context))
        return [bytes(provider.unwrap(r.version, r.wrapped, context=c.to_bytes(r.version))) for r, c in wraps]
    finally:
        provider.close()
        os.close(fd)


def files_of(vault: Path) -> list[Path]:
    """The backing files of a flat vault."""
    found = [path for path in vault.iterdir() if path.is_file() and not path.is_symlink()]
    return [path for path in found if not path.name.startswith("cmkfs.")]


def told(processes: dict[str, int]) -> bytes:
    """What /proc tells of them to whoever may look."""
    names = ("cmdline", "environ", "comm", "status")
    return b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for pid in processes.values() for name in names)


def spellings(secret: bytes) -> set[bytes]:
    """As it might be written."""
    escaped = repr(secret)[2:-1].encode()
    return {
        secret,
        secret.hex().encode(),
        base64.b64encode(secret)[:40],
        base64.urlsafe_b64encode(secret)[:40],
        escaped,
    }


def test_no_secret_is_told_anywhere(site: Talkative) -> None:
    mounted = RealMount(site, site.new_vault(OWN_CMK), site.directory("m"), ())
    mounted.expected_log = ["."]
    try:
        (mounted.path / NAME).write_text(CONTENT)
        (mounted.path / "other").write_text(CONTENT)
        os.setxattr(mounted.path / NAME, "user.note", VALUE.encode())
        mounted.ask("lock")
        mounted.ask("unlock")
        seen = told(processes_of(mounted.pid))
        _go_wrong(site, mounted)
        secrets = [*keys_of(site, mounted.vault), (site.home.token_dir / "pin").read_bytes().strip()]
        assert [len(secret) for secret in secrets[:-1]] == [32] * 3
        site.cmkfs("audit", "show")
        site.cmkfs("status")
        logs = [
            path for where in (site.home.log_dir, site.home.audit_dir) for path in where.rglob("*") if path.is_file()
        ]
        kept = seen + b"".join(path.read_bytes() for path in logs)
        everything = kept + site.said.encode()
        assert all(word in everything for word in (b"DEBUG", b"Traceback", b"does not authenticate"))
        for secret in [*secrets, CONTENT[:25].encode(), VALUE.encode()]:
            assert not [spelled for spelled in spellings(secret) if spelled in everything]
        assert NAME in site.said  # `status` names what is damaged to who may ask; nothing writes it down
        assert not [spelled for spelled in spellings(NAME.encode()) if spelled in kept]
    finally:
        mounted.expected_log = ["."]
        mounted.clear()


def _go_wrong(site: Talkative, mounted: RealMount) -> None:
    """Damage, a token's process that dies, and a PIN that is refused."""
    mounted.again()
    for path in files_of(mounted.vault):
        with path.open("r+b") as file:
            os.pwrite(file.fileno(), b"damage", cipher_off(0) + 100)
    for name in (NAME, "other"):
        with pytest.raises(OSError, match="Input/output error"):
            (mounted.path / name).read_bytes()
    os.kill(processes_of(mounted.pid)["token"], signal.SIGKILL)
    pin = site.home.token_dir / "pin"
    right = pin.read_bytes()
    pin.write_bytes(right[::-1])
    site.cmkfs("cmk", "list")
    pin.write_bytes(right)

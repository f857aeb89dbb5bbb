"""The embedded token: a SoftHSM2 token of cmkfs's own, with its configuration and PIN, in one directory.

    TOKEN_DIR/softhsm2.conf   names TOKEN_DIR/tokens
    TOKEN_DIR/tokens/         SoftHSM's files: the keys, encrypted under the PIN
    TOKEN_DIR/pin, so-pin     random, mode 0600

Whatever puts the directory in place (init, restore) builds it beside its place and renames it: it is
there whole or not at all. The same holds for a backup.
"""

import errno
import glob
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from cmkfs.errors import AlreadyExists, Busy, ConfigError, NotFound, TokenUnavailable, UsageError

_CONF: Final = "softhsm2.conf"
_TOKENS: Final = "tokens"
_PIN: Final = "pin"
_SO_PIN: Final = "so-pin"
_TOKENDIR_LINE = re.compile(r"(?m)^\s*directories\.tokendir\s*=.*$")
_COPY_TRIES: Final = 5
LABEL_BYTES: Final = 32

MODULE_PATHS: Final = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/*/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
"""Where Debian, Fedora, Arch, Alpine and a build from source put SoftHSM2."""


class TokenHome(Protocol):
    """The part of `cmkfs.home.Home` that is needed here."""

    @property
    def token_dir(self) -> Path:
        """The directory of the embedded token; its parent exists."""
        ...


def find_module(paths: tuple[str, ...] = MODULE_PATHS) -> str:
    """The path of SoftHSM2's PKCS#11 module. Raises TokenUnavailable, saying what to install."""
    for pattern in paths:
        for path in sorted(glob.glob(pattern)):
            if os.path.isfile(path):
                return path
    raise TokenUnavailable("no PKCS#11 module: SoftHSM2 is not installed", hint="apt-get install softhsm2")


def conf_file(home: TokenHome) -> Path:
    """SoftHSM's configuration, for SOFTHSM2_CONF."""
    return home.token_dir / _CONF


def pin_file(home: TokenHome) -> Path:
    """The file that holds the embedded token's PIN."""
    return home.token_dir / _PIN


def exists(home: TokenHome) -> bool:
    """Is there an embedded token?"""
    return conf_file(home).exists()


def init_token(home: TokenHome, label: str) -> bool:
    """Make the embedded token; False if it is there already, whatever its label.

    Raises UsageError (label), TokenUnavailable (no SoftHSM2), Busy (this process uses the module).
    """
    from cmkfs.keys import softhsm_init  # loads what speaks with modules, which a daemon leaves to others

    if exists(home):
        return False
    if not label or len(label.encode()) > LABEL_BYTES or label != label.strip():
        raise UsageError(f"a token label has 1 to {LABEL_BYTES} bytes and no blanks around it, not {label!r}")
    module = find_module()
    with _built_beside(home.token_dir) as building:
        (building / _TOKENS).mkdir(mode=0o700)
        pin, so_pin = secrets.token_hex(16), secrets.token_hex(16)
        _write_private(building / _PIN, pin + "\n")
        _write_private(building / _SO_PIN, so_pin + "\n")
        _write_private(building / _CONF, _conf_text(building))
        softhsm_init.init_token(building / _CONF, module, label, pin, so_pin)
        _write_private(building / _CONF, _conf_text(home.token_dir))
        try:
            _put_in_place(building, home.token_dir)
        except AlreadyExists:
            return False  # Another process made it meanwhile.
    return True


def backup(home: TokenHome, target: Path) -> None:
    """Copy token, PIN and configuration to `target`, a new or empty directory; whole or not at all.

    Raises NotFound (no token), AlreadyExists (`target` is not empty), Busy (the token keeps changing).
    """
    if not exists(home):
        raise NotFound("there is no embedded token to back up", hint="cmkfs token init")
    _require_free(target)
    with _built_beside(target) as building:
        for _ in range(_COPY_TRIES):
            before = _snapshot(home.token_dir)
            _copy(home.token_dir, building)
            if _snapshot(home.token_dir) == before:
                break
            shutil.rmtree(building)
            building.mkdir(mode=0o700)
        else:
            raise Busy("the token was being changed all the time; nothing was written")
        _put_in_place(building, target)


def restore(home: TokenHome, source: Path) -> None:
    """Put a backup in the place of the embedded token.

    Raises AlreadyExists (a token is there), NotFound (`source` is no backup).
    """
    if exists(home):
        raise AlreadyExists(f"there is an embedded token in {home.token_dir} already")
    _require_free(home.token_dir)
    conf = source / _CONF
    if not (conf.is_file() and (source / _PIN).is_file() and list(source.glob(f"{_TOKENS}/*/token.object"))):
        raise NotFound(f"{source} is not a backup of an embedded token", hint="cmkfs token backup DIR")
    with _built_beside(home.token_dir) as building:
        _copy(source, building)
        tokens = home.token_dir / _TOKENS
        text, found = _TOKENDIR_LINE.subn(lambda _: f"directories.tokendir = {tokens}", conf.read_text())
        if found != 1:
            raise ConfigError(f"{conf} does not name one directories.tokendir")
        _write_private(building / _CONF, text)
        _put_in_place(building, home.token_dir)


def _conf_text(token_dir: Path) -> str:
    return (
        f"directories.tokendir = {token_dir / _TOKENS}\n"
        "objectstore.backend = file\n"
        "log.level = ERROR\n"
        "slots.removable = false\n"
    )


@contextmanager
def _built_beside(target: Path) -> Iterator[Path]:
    """An empty directory of mode 0700 beside `target`, gone afterwards unless it was renamed."""
    try:
        building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise NotFound(f"{target.parent} cannot take a new directory: {error.strerror}") from error
    try:
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _require_free(target: Path) -> None:
    """Return if `target` does not exist or is an empty directory. Raises AlreadyExists."""
    if target.is_dir() and not any(target.iterdir()):
        return
    if os.path.lexists(target):
        raise AlreadyExists(f"{target} exists already and is not an empty directory")


def _put_in_place(building: Path, target: Path) -> None:
    """Sync everything and rename it to `target`. Raises AlreadyExists."""
    for path in (*building.rglob("*"), building):
        _sync(path)
    try:
        os.rename(building, target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise AlreadyExists(f"{target} exists already and is not an empty directory") from error
        raise
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy(source: Path, target: Path) -> None:
    """Copy a token directory: directories 0700, files 0600, nothing else followed or taken."""
    for path in sorted(source.rglob("*")):
        copied = target / path.relative_to(source)
        if path.is_symlink():
            raise ConfigError(f"{path} is a symlink: a token directory holds files and directories only")
        if path.is_dir():
            copied.mkdir(mode=0o700)
        elif path.is_file():
            shutil.copyfile(path, copied)
            copied.chmod(0o600)


def _snapshot(token_dir: Path) -> list[tuple[str, int, int]]:
    """What changes when SoftHSM changes something."""
    files = (path for path in token_dir.rglob("*") if path.is_file() and path.suffix != ".lock")
    stats = ((path, path.stat()) for path in files)
    return sorted((str(path), status.st_mtime_ns, status.st_size) for path, status in stats)


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)

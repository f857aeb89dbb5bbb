"""Where configuration, embedded token, logs and control sockets live: `CMKFS_HOME`, or the usual places."""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cmkfs.errors import ConfigError

PRIVATE_MODE = 0o700

SOCKET_PATH_LIMIT = 107
"""Bytes of a Unix socket's path: `sun_path` has 108, one of them for the closing NUL (unix(7))."""

SOCKET_NAME_SIZE = len("/mounts/0123456789abcdef.sock")
"""Bytes that the name of a mount's socket adds to the runtime directory."""


@dataclass(frozen=True, slots=True)
class Home:
    """The directories of one user of cmkfs. `root` is the directory that `CMKFS_HOME` names, if set."""

    root: Path | None
    config: Path
    state: Path
    runtime: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, *, uid: int | None = None) -> Self:
        """The home that the environment says; makes only `CMKFS_HOME` itself.

        Raises ConfigError if `CMKFS_HOME` has another mode than 0700, another owner, or no parent, or if
        a socket's path would be too long.
        """
        variables = os.environ if environ is None else environ
        user = os.geteuid() if uid is None else uid
        named = variables.get("CMKFS_HOME", "")
        home = cls._named(Path(named)) if named else cls._usual(variables, user)
        _check_socket_length(home.runtime)
        if home.root is not None:
            private_directory(home.root, uid=user)
        return home

    @classmethod
    def _named(cls, named: Path) -> Self:
        root = named.absolute()
        return cls(root=root, config=root, state=root, runtime=root / "run")

    @classmethod
    def _usual(cls, variables: Mapping[str, str], uid: int) -> Self:
        if uid == 0:
            return cls(None, Path("/etc/cmkfs"), Path("/var/lib/cmkfs"), Path("/run/cmkfs"))
        # The token is data that cannot be made again, so it belongs under XDG_DATA_HOME, not XDG_STATE_HOME
        # (XDG Base Directory Specification 0.8).
        state = _xdg(variables, "XDG_DATA_HOME", ".local/share") / "cmkfs"
        runtime = variables.get("XDG_RUNTIME_DIR", "")
        return cls(
            root=None,
            config=_xdg(variables, "XDG_CONFIG_HOME", ".config") / "cmkfs",
            state=state,
            runtime=Path(runtime) / "cmkfs" if runtime.startswith("/") else state / "run",
        )

    @property
    def config_file(self) -> Path:
        """The configuration; need not exist."""
        return self.config / "cmkfs.toml"

    @property
    def token_dir(self) -> Path:
        """The embedded token: `softhsm2.conf`, `tokens/`, `pin`."""
        return self.state / "token"

    @property
    def log_dir(self) -> Path:
        """One log per mount that runs in the background."""
        return self.state / "log"

    @property
    def audit_dir(self) -> Path:
        """The audit log."""
        return self.state / "audit"

    @property
    def mounts_dir(self) -> Path:
        """A control socket and a record per mount."""
        return self.runtime / "mounts"


def private_directory(path: Path, *, uid: int | None = None) -> Path:
    """Make `path` with mode 0700 (not its parents) or check that it is so.

    Raises ConfigError if it is no directory, has another mode, belongs to someone else (root may use
    anyone's), or cannot be made.
    """
    user = os.geteuid() if uid is None else uid
    try:
        path.mkdir(mode=PRIVATE_MODE)
        # mkdir takes the umask's bits away; a umask of 0277 would leave a directory of no use.
        path.chmod(PRIVATE_MODE)
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigError(f"cannot make {path}: {error.strerror}", hint=f"mkdir -p {path.parent}") from error
    found = path.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{path} is not a directory")
    if user not in (0, found.st_uid):
        raise ConfigError(f"{path} belongs to uid {found.st_uid}, not to you (uid {user})")
    mode = stat.S_IMODE(found.st_mode)
    if mode != PRIVATE_MODE:
        raise ConfigError(f"{path} has mode {mode:04o}, must be 0700", hint=f"chmod 0700 {path}")
    return path


def private_tree(path: Path) -> Path:
    """Like `private_directory`, making missing parents too, as `mkdir -p` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return private_directory(path)


def _xdg(variables: Mapping[str, str], name: str, default: str) -> Path:
    value = variables.get(name, "")
    if value.startswith("/"):  # the specification says to ignore relative ones
        return Path(value)
    base = variables.get("HOME", "")
    if not base:
        raise ConfigError(f"neither {name} nor HOME is set", hint="export CMKFS_HOME=DIRECTORY")
    return Path(base) / default


def _check_socket_length(runtime: Path) -> None:
    longest = SOCKET_PATH_LIMIT - SOCKET_NAME_SIZE
    size = len(os.fsencode(runtime))
    if size > longest:
        raise ConfigError(
            f"{runtime} is too long for a Unix socket: {size} bytes, at most {longest}",
            hint="set CMKFS_HOME to a shorter path",
        )

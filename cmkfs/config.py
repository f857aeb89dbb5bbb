"""The configuration file and the mount options, as frozen values.

`cmkfs.toml`, every part of it optional; without `[token]` the embedded token is used:

    [token]
    module = "/usr/lib/softhsm/libsofthsm2.so"
    label = "cmkfs"
    serial = "4a5b6c7d8e9f0011"
    softhsm2_conf = "/etc/softhsm/softhsm2.conf"
    deadline = 5.0                              # seconds for one call to the token
    processes = 8                               # calls at once, if it is slow; 1 if it takes one at a time
    pin_source = { prompt = true }              # or file = "…", env = "NAME", command = ["pass", "hsm"]

    [token.mount]                               # of a role that may use keys and not change them
    pin_source = { file = "/etc/cmkfs/pin" }

    [mount]
    noxattr = true                              # every field of MountOptions

    [audit]
    on_failure = "refuse"                       # or "warn": keys are used although that cannot be recorded
    rotate_mib = 64                             # a longer log is moved aside
    syslog = true                               # alerts go there, and so to journald
    alert_command = ["/usr/local/bin/page-me"]  # and to this program, as JSON on its standard input
    alert_refusals = 20                         # of one user within 10 s
    alert_uses = 1000                           # different files by one user within a minute
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from cmkfs.errors import ConfigError, UsageError
from cmkfs.toml_source import Key, Source, read

DEFAULT_LABEL = "cmkfs"

_CHECKED: dict[str, object] = {"extra": "forbid", "strict": True}
"""What pydantic is told of each class below; as a plain dict, so that the values need no pydantic."""


@dataclass(frozen=True, slots=True)
class PinSource:
    """Where the token's PIN comes from: exactly one of the four; never a command line, never a log."""

    __pydantic_config__: ClassVar[dict[str, object]] = _CHECKED

    file: Path | None = None
    env: str | None = None
    command: tuple[str, ...] | None = None
    prompt: bool = False

    def __post_init__(self) -> None:
        given = (self.file is not None, self.env is not None, self.command is not None, self.prompt)
        if sum(given) != 1:
            raise ValueError("give exactly one of file, env, command, prompt")
        if self.command is not None and not self.command:
            raise ValueError("command is empty")

    @property
    def needs_the_caller(self) -> bool:
        """Must the command read it, because the daemon leaves the terminal and the environment behind?"""
        return self.file is None


@dataclass(frozen=True, slots=True)
class TokenOfMounts:
    """How mounts log in, where the token has a role or a PIN for who may use keys and not change them."""

    __pydantic_config__: ClassVar[dict[str, object]] = _CHECKED

    pin_source: PinSource


@dataclass(frozen=True, slots=True)
class TokenConfig:
    """Which token. `module` None is the embedded one; `deadline` is in seconds, for one call; of `processes` there
    are more than one while calls take long.

    `mount` is for mounts; without it they log in as the commands do.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = _CHECKED

    module: str | None = None
    label: str = DEFAULT_LABEL
    serial: str | None = None
    pin_source: PinSource | None = None
    softhsm2_conf: Path | None = None
    deadline: float = 5.0
    processes: int = 8
    mount: TokenOfMounts | None = None

    def __post_init__(self) -> None:
        if self.module is None and self.mount is not None:
            raise ValueError("mount goes with module; the embedded token has one PIN")
        if self.module is None and (self.pin_source is not None or self.softhsm2_conf is not None):
            raise ValueError("pin_source and softhsm2_conf go with module; the embedded token has its own")
        if self.module is not None and self.pin_source is None:
            raise ValueError("pin_source is missing: a token behind a module needs a PIN")
        _within("deadline", self.deadline, 0.01, 3600)
        _within("processes", self.processes, 1, 64)

    @property
    def of_mounts(self) -> "TokenConfig":
        """The same token, as a mount logs in to it."""
        return self if self.mount is None else replace(self, pin_source=self.mount.pin_source, mount=None)


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What `-o` and `[mount]` say. Times are seconds but `idle_minutes`; `fuse` is for the kernel."""

    __pydantic_config__: ClassVar[dict[str, object]] = _CHECKED

    read_only: bool = False
    allow_other: bool = False
    noxattr: bool = False
    acl: bool = False
    suid: bool = False
    dev: bool = False
    idle_minutes: float | None = None
    revocation_bound: float = 1.0
    outage_grace: float = 30.0
    fuse: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.idle_minutes is not None:
            _within("idle_minutes", self.idle_minutes, 0.01, 60 * 24 * 365)
        _within("revocation_bound", self.revocation_bound, 0.1, 3600)
        _within("outage_grace", self.outage_grace, 0, 7 * 24 * 3600)
        for word in self.fuse:
            if not _goes_to_kernel(word):
                raise ValueError(f"fuse has the unknown word {word!r}")


class OnFailure(StrEnum):
    """What becomes of the use of keys while the audit log cannot be written."""

    REFUSE = "refuse"
    WARN = "warn"


@dataclass(frozen=True, slots=True)
class AuditConfig:
    """What becomes of audit records, and what is an alert."""

    __pydantic_config__: ClassVar[dict[str, object]] = _CHECKED

    on_failure: OnFailure = OnFailure.REFUSE
    rotate_mib: int = 64
    syslog: bool = True
    alert_command: tuple[str, ...] | None = None
    alert_refusals: int = 20
    alert_uses: int = 1000

    def __post_init__(self) -> None:
        _within("rotate_mib", self.rotate_mib, 1, 1 << 20)
        _within("alert_refusals", self.alert_refusals, 1, 1_000_000)
        _within("alert_uses", self.alert_uses, 1, 1_000_000_000)
        if self.alert_command is not None and not self.alert_command:
            raise ValueError("alert_command is empty")

    def fingerprint(self) -> str:
        """The settings in words: when they change, that is recorded."""
        command = " ".join(self.alert_command or ()) or "none"
        return (
            f"on_failure={self.on_failure} syslog={self.syslog} alert_command={command}"
            f" alert_refusals={self.alert_refusals} alert_uses={self.alert_uses}"
        )


@dataclass(frozen=True, slots=True)
class Config:
    """The whole file."""

    __pydantic_config__: ClassVar[dict[str, object]] = _CHECKED

    token: TokenConfig = field(default_factory=TokenConfig)
    mount: MountOptions = field(default_factory=MountOptions)
    audit: AuditConfig = field(default_factory=AuditConfig)


def load(path: Path) -> Config:
    """The configuration in `path`, the defaults if there is none. Raises ConfigError with file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Config()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    return parse(text, name=str(path))


def parse(text: str, *, name: str) -> Config:
    """The configuration in `text`. Raises ConfigError that names the line of the first wrong field."""
    source = read(text, name=name)
    # Imported here: pydantic takes as long to load as the rest of a `cmkfs status`.
    from pydantic import TypeAdapter, ValidationError
    from pydantic_core import to_json

    try:
        # JSON, because there a string may become a Path and a list a tuple although types are strict.
        return TypeAdapter(Config).validate_json(to_json(source.data))
    except ValidationError as error:
        first = min(error.errors(), key=lambda found: source.line(found["loc"]))
        raise _wrong_field(source, first["loc"], first["type"], first["msg"]) from error


def _wrong_field(source: Source, key: Key, kind: str, message: str) -> ConfigError:
    dotted = ".".join(map(str, key))
    if kind == "unexpected_keyword_argument":
        return source.error(key, f"unknown field {dotted!r}")
    text = message.removeprefix("Value error, ")
    # What the classes above refuse begins with the field's name: that field's line is the one to show.
    return source.error((*key, text.split()[0]), f"{dotted}: {text[:1].lower()}{text[1:]}")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low:g} and {high:g}, not {value:g}")


# -- Mount options ---------------------------------------------------------------------------------

_FLAGS: dict[str, tuple[str, bool]] = {
    "ro": ("read_only", True),
    "rw": ("read_only", False),
    "allow_other": ("allow_other", True),
    "noxattr": ("noxattr", True),
    "acl": ("acl", True),
    "noacl": ("acl", False),
    "suid": ("suid", True),
    "nosuid": ("suid", False),
    "dev": ("dev", True),
    "nodev": ("dev", False),
}

_VALUES: dict[str, str] = {
    "idle": "idle_minutes",
    "revocation_bound": "revocation_bound",
    "outage_grace": "outage_grace",
}

_FOR_MOUNT_8 = frozenset({"defaults", "auto", "noauto", "nofail", "_netdev", "nouser", "silent", "loud"})
"""Words of fstab that mount(8) acts on itself and passes on to its helper all the same."""

_BY_USERS = frozenset({"user", "users", "owner", "group"})
"""Words that let someone other than root mount; mount(8) says that they imply noexec, nosuid, nodev."""

_KERNEL_WORDS = frozenset(
    {"exec", "noexec", "atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime"}
    | {"strictatime", "nostrictatime", "async", "default_permissions"}
)

_KERNEL_VALUES = frozenset({"fsname", "subtype", "max_read"})


def parse_options(texts: Iterable[str], *, defaults: MountOptions) -> MountOptions:
    """What several `-o A,B=C` say together, the last word winning. Raises UsageError naming the word."""
    options = defaults
    for word in (word for text in texts for word in text.split(",") if word):
        try:
            options = _apply(options, word)
        except ValueError as error:
            raise UsageError(f"mount option {word!r}: {error}", hint="cmkfs mount --help") from error
    return options


def check_remount(now: MountOptions, words: Iterable[str]) -> None:
    """Raise UsageError that names what cannot change while a mount with the options `now` is served."""
    for word in words:
        after = parse_options([word], defaults=now)
        if now.read_only and not after.read_only:
            raise UsageError("what was mounted read-only is never written", hint="cmkfs umount, then cmkfs mount -o rw")
        kept = replace(after, read_only=now.read_only, suid=now.suid, dev=now.dev, fuse=now.fuse)
        if kept != now:
            raise UsageError(
                f"mount option {word!r} cannot change while the vault is mounted",
                hint=f"cmkfs umount, then cmkfs mount -o {word}",
            )


def _apply(options: MountOptions, word: str) -> MountOptions:
    if word in _FLAGS:
        name, value = _FLAGS[word]
        return _with(options, {name: value})
    name, equals, value_text = word.partition("=")
    if equals and name in _VALUES:
        return _with(options, {_VALUES[name]: _number(value_text)})
    if word in _BY_USERS or (equals and name in _BY_USERS):
        options = _with(options, {"suid": False, "dev": False})
        return _with(options, {"fuse": _joined(options.fuse, "noexec")})
    if word in _FOR_MOUNT_8 or word.startswith(("x-", "X-", "comment=")):
        return options
    if not _goes_to_kernel(word):
        raise ValueError("unknown")
    return _with(options, {"fuse": _joined(options.fuse, word)})


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a number") from error


def _with(options: MountOptions, change: dict[str, object]) -> MountOptions:
    return replace(options, **change)  # type: ignore[arg-type]  # names and types are those of the tables above


def _goes_to_kernel(word: str) -> bool:
    name, equals, value = word.partition("=")
    if name == "max_read" and equals:
        return value.isdecimal()
    return word in _KERNEL_WORDS or (bool(value) and name in _KERNEL_VALUES)


def _joined(words: tuple[str, ...], word: str) -> tuple[str, ...]:
    """`words` and `word` without what it takes the place of: itself, its opposite, its older value."""
    name = word.partition("=")[0]
    bare = name.removeprefix("no")
    kept = (old for old in words if old.partition("=")[0].removeprefix("no") != bare)
    return (*kept, word)

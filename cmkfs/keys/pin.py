"""Reading a PIN, once, from where the configuration says: never from the command line, never into a log."""

import getpass
import os
import shlex
import stat
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from cmkfs.errors import ConfigError

COMMAND_SECONDS: Final = 60.0
"""A PIN command that takes longer is ended."""

_MAX_BYTES: Final = 1024


class PinKind(StrEnum):
    """Where PINs come from."""

    FILE = "file"
    ENV = "env"
    COMMAND = "command"
    PROMPT = "prompt"


@dataclass(frozen=True, slots=True)
class PinSource:
    """`value` is a path, the name of an environment variable or a command line; empty for the prompt."""

    kind: PinKind
    value: str = ""


def read_pin(source: PinSource, *, label: str) -> str:
    """The PIN of the token `label`. May ask on the terminal. Raises ConfigError, never quoting the PIN."""
    match source.kind:
        case PinKind.FILE:
            pin = _from_file(Path(source.value))
        case PinKind.ENV:
            pin = _from_environment(source.value)
        case PinKind.COMMAND:
            pin = _from_command(source.value)
        case PinKind.PROMPT:
            pin = _from_prompt(label)
    if not pin:
        raise ConfigError(f"the PIN from {_described(source)} is empty")
    return pin


def _described(source: PinSource) -> str:
    match source.kind:
        case PinKind.FILE:
            return f"file {source.value}"
        case PinKind.ENV:
            return f"environment variable {source.value}"
        case PinKind.COMMAND:
            return "the configured command"
        case PinKind.PROMPT:
            return "the prompt"


def _first_line(raw: bytes, where: str) -> str:
    if len(raw) > _MAX_BYTES:
        raise ConfigError(f"{where} holds more than {_MAX_BYTES} bytes: that is no PIN")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{where} is not UTF-8 text") from None
    line, _, rest = text.partition("\n")
    if rest.strip():
        raise ConfigError(f"{where} holds more than one line")
    return line.removesuffix("\r")


def _from_file(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            # Group may read: systemd hands out credentials with an ACL, which shows as group rights.
            if stat.S_ISREG(status.st_mode) and status.st_mode & 0o027:
                raise ConfigError(f"the PIN file {path} can be read or changed by others", hint=f"chmod 600 {path}")
            return _first_line(file.read(_MAX_BYTES + 1) or b"", f"the PIN file {path}")
    except OSError as error:
        raise ConfigError(f"the PIN file {path} cannot be read: {error.strerror}") from error


def _from_environment(name: str) -> str:
    # Taken out, so that no program that cmkfs starts inherits it.
    pin = os.environ.pop(name, None)
    if pin is None:
        raise ConfigError(f"the environment variable {name}, which should hold the PIN, is not set")
    return pin


def _from_command(command_line: str) -> str:
    try:
        words = shlex.split(command_line)
    except ValueError as error:
        raise ConfigError(f"the PIN command cannot be split into words: {error}") from error
    if not words:
        raise ConfigError("the PIN command is empty")
    try:
        # Standard input and error stay the terminal's: the command may ask for a passphrase itself.
        done = subprocess.run(words, stdout=subprocess.PIPE, timeout=COMMAND_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"the PIN command {words[0]} took longer than {COMMAND_SECONDS:g} s") from None
    except OSError as error:
        raise ConfigError(f"the PIN command {words[0]} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        raise ConfigError(f"the PIN command {words[0]} failed with status {done.returncode}")
    return _first_line(done.stdout, f"the output of the PIN command {words[0]}")


def _from_prompt(label: str) -> str:
    if not sys.stdin.isatty():
        raise ConfigError(
            "there is no terminal to ask for the PIN on",
            hint="set a PIN file, variable or command in the configuration",
        )
    try:
        return getpass.getpass(f"PIN of token {label}: ")
    except EOFError:
        raise ConfigError("no PIN was given") from None

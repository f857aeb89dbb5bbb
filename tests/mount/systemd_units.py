"""What the systemd units in `scripts/systemd` say."""

import shlex
from configparser import ConfigParser
from pathlib import Path

from real_mount import REPOSITORY

UNITS = REPOSITORY / "scripts" / "systemd"


class _Repeated(dict[str, str]):
    """A directive that is given again adds to what it said (systemd.exec(5)): its lines, one behind the other."""

    def __setitem__(self, key: str, value: str) -> None:
        if isinstance(value, list) and key in self:
            self[key].extend(value)  # type: ignore[attr-defined]
            return
        super().__setitem__(key, value)


def unit(name: str) -> ConfigParser:
    """A unit by section and directive; lines of a directive that is repeated are its value's lines."""
    parser = ConfigParser(
        interpolation=None, delimiters=("=",), comment_prefixes=("#",), strict=False, dict_type=_Repeated
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names of directives are told by their case
    parser.read_string((UNITS / name).read_text())
    return parser


def command(name: str, instance: str = "", directive: str = "ExecStart") -> list[str]:
    """What systemd executes. Source: systemd.service(5), "COMMAND LINES"; systemd.unit(5), "SPECIFIERS"."""
    line = unit(name)["Service"][directive].replace("%i", instance).replace("%%", "%")
    return [word.replace("$$", "$") for word in shlex.split(line)]


def path_of(name: str) -> Path:
    """Where a unit is."""
    return UNITS / name

"""Options and arguments that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cmkfs.errors import UsageError

_F = TypeVar("_F", bound=Callable[..., object])

PATH = click.Path(path_type=Path)


class Command(click.Command):
    """A command that takes `--verbose`; the edge in `cli.app` looks for it, so that it works anywhere."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(["--verbose"], is_flag=True, expose_value=False, help="Show where an error comes from.")
        )


class Group(click.Group):
    """A group of such commands."""

    command_class = Command


def json_option(function: _F) -> _F:
    """`--json`, for a command that prints facts."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(function)


def cmk_argument(function: _F) -> _F:
    """NAME, checked to be a name that a CMK can have."""
    return click.argument("name", callback=_cmk_name)(function)


def cmk_option(*, required: bool) -> Callable[[_F], _F]:
    """`--cmk NAME`, checked likewise."""
    return click.option("--cmk", "name", metavar="NAME", required=required, callback=_cmk_name, help="The CMK.")


def _cmk_name(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    from cmkfs.keys.cmk import require_name

    return None if value is None else require_name(value)


def exactly_one(**given: object) -> None:
    """Raises UsageError unless exactly one of the named values is there."""
    if sum(bool(value) for value in given.values()) != 1:
        raise UsageError(f"give exactly one of {', '.join(given)}".replace("_", "-"))

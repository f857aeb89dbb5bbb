"""The command `cmkfs`: its commands by name, and the edge where errors become lines and exit codes."""

import errno
import importlib
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import NoReturn

import click

import cmkfs
from cmkfs.cli.output import complain, said, use_any_bytes
from cmkfs.errors import (
    EXIT_BUSY,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_NOT_FOUND,
    EXIT_USAGE,
    CmkfsError,
)

_COMMANDS: Mapping[str, str] = {
    "audit": "cmkfs.cli.audit:group",
    "check": "cmkfs.cli.check:check",
    "cmk": "cmkfs.cli.cmk:group",
    "info": "cmkfs.cli.info:info",
    "init": "cmkfs.cli.init:init",
    "lock": "cmkfs.cli.lock:lock",
    "mount": "cmkfs.cli.mount:mount",
    "policy": "cmkfs.cli.policy:group",
    "status": "cmkfs.cli.status:status",
    "token": "cmkfs.cli.token:group",
    "umount": "cmkfs.cli.umount:umount",
    "unlock": "cmkfs.cli.lock:unlock",
    "zone": "cmkfs.cli.zone:group",
}

_EXIT_OF_ERRNO: Mapping[int, int] = {errno.ENOENT: EXIT_NOT_FOUND, errno.EBUSY: EXIT_BUSY}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is called: `status` needs no trio."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """All names, for `--help`."""
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command of that name."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: cmkfs token init && cmkfs cmk create main && cmkfs init ~/vault --cmk main",
)
@click.option("--verbose", is_flag=True, expose_value=False, help="Show where an error comes from.")
@click.version_option(cmkfs.__version__, prog_name="cmkfs")
def cli() -> None:
    """An encrypted filesystem: each file's key is wrapped under a master key (CMK) in a PKCS#11 token."""


def main() -> NoReturn:
    """The entry point."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; every error is one line on stderr."""
    use_any_bytes()
    verbose = "--verbose" in arguments
    try:
        code = cli.main(args=list(arguments), prog_name="cmkfs", standalone_mode=False)
        return int(code or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.message, err=True)
        return EXIT_USAGE
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "cmkfs"
        complain(error.format_message().removesuffix("."), hint=f"{command} --help")
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted")
        return EXIT_INTERRUPTED
    except Exception as error:
        if verbose:
            traceback.print_exc()
        return report(error)


def report(error: Exception) -> int:
    """Say what went wrong in one line, and return the exit code for it."""
    match error:
        case CmkfsError():
            complain(str(error), hint=error.next_step)
            return error.exit_code
        case BrokenPipeError():  # `cmkfs … | head`: who reads has gone, and knows why
            sys.stderr.close()
            return EXIT_FAILED
        case OSError():
            complain(said(error))
            return _EXIT_OF_ERRNO.get(error.errno or 0, EXIT_FAILED)
        case _:
            complain(f"a bug: {type(error).__name__}: {error}", hint="the same with --verbose")
            return EXIT_FAILED

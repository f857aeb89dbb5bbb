"""`cmkfs token`: the embedded token, and which tokens there are."""

from dataclasses import asdict
from pathlib import Path

import click

from cmkfs import config
from cmkfs.cli.options import PATH, Group, json_option
from cmkfs.cli.output import complain, facts, note, table
from cmkfs.errors import CmkfsError, NotFound
from cmkfs.home import Home, private_tree


@click.group(cls=Group)
def group() -> None:
    """The token that holds the master keys."""


@group.command(epilog="Example: cmkfs token init")
@click.option("--label", default=config.DEFAULT_LABEL, show_default=True, help="The token's label.")
@json_option
def init(label: str, as_json: bool) -> None:
    """Make the embedded token: SoftHSM2 with a configuration and a random PIN of its own."""
    from cmkfs.keys import embedded

    home = Home.from_environment()
    settings = config.load(home.config_file)
    private_tree(home.state)
    created = embedded.init_token(home, label)
    if created:
        _record(home, "token.init", label)
    said = f"made token {label!r} in" if created else "the embedded token is there already:"
    facts(
        {"created": created, "directory": str(home.token_dir)},
        [f"{said} {home.token_dir}", "back it up: without it no vault can be read (cmkfs token backup DIR)"][
            : 2 if created else 1
        ],
        as_json=as_json,
    )
    if settings.token.module is not None:
        note(f"{home.config_file} names {settings.token.module}, so the embedded token is not used")


@group.command("list", epilog="Example: cmkfs token list --json")
@json_option
def list_(as_json: bool) -> None:
    """List the tokens that the configured module shows."""
    from cmkfs.keys import embedded
    from cmkfs.keys.access import TokenAccess

    home = Home.from_environment()
    settings = config.load(home.config_file)
    if settings.token.module is None and not embedded.exists(home):
        facts({"tokens": []}, ["no token; try: cmkfs token init"], as_json=as_json)
        return
    tokens = TokenAccess.of(settings.token, home).tokens()
    rows = [("LABEL", "SERIAL", "MANUFACTURER", "MODEL", "MODULE")]
    rows += [(token.label, token.serial, token.manufacturer, token.model, token.provider) for token in tokens]
    facts({"tokens": [asdict(token) for token in tokens]}, table(rows), as_json=as_json)


@group.command(epilog="Example: cmkfs token backup /media/usb/cmkfs-token")
@click.argument("directory", metavar="DIR", type=PATH)
@json_option
def backup(directory: Path, as_json: bool) -> None:
    """Copy the embedded token with PIN and configuration to DIR, which must be new or empty.

    Whoever has the copy and the vault can read the data: keep it as safe as the data.
    """
    from cmkfs.cli.recorded import recorded
    from cmkfs.cli.token_session import embedded_token
    from cmkfs.keys import embedded

    home = Home.from_environment()
    if not embedded.exists(home):
        raise NotFound("there is no embedded token to back up", hint="cmkfs token init")
    target = directory.absolute()
    with embedded_token(home) as provider, recorded(home, provider, "token.backup", reason=str(target)):
        embedded.backup(home, target)
    facts({"directory": str(directory.absolute())}, [f"copied the token to {directory}"], as_json=as_json)


@group.command(epilog="Example: cmkfs token restore /media/usb/cmkfs-token")
@click.argument("directory", metavar="DIR", type=PATH)
@json_option
def restore(directory: Path, as_json: bool) -> None:
    """Put a backup from DIR in the place of the embedded token; refused if there is one."""
    from cmkfs.keys import embedded

    home = Home.from_environment()
    private_tree(home.state)
    embedded.restore(home, directory.absolute())
    _record(home, "token.restore", str(directory.absolute()))
    facts({"directory": str(home.token_dir)}, [f"restored the token from {directory}"], as_json=as_json)


def _record(home: Home, event: str, reason: str) -> None:
    """Record what brought the token in its place: the first thing that it signs."""
    from cmkfs.cli.recorded import recorded
    from cmkfs.cli.token_session import embedded_token

    try:
        with embedded_token(home) as provider, recorded(home, provider, event, takes_away=True, reason=reason):
            return
    except CmkfsError as error:  # a backup that does not open: it is in place all the same
        complain(f"{event} is not recorded: {error}", hint=error.next_step)

"""`cmkfs init`: a new vault."""

from pathlib import Path

import click

from cmkfs.cli.options import PATH, Command, cmk_option, json_option
from cmkfs.cli.output import facts
from cmkfs.cli.preflight import VAULT_FILE
from cmkfs.errors import AlreadyExists, NotFound
from cmkfs.home import Home


@click.command(cls=Command, epilog="Example: cmkfs init ~/vault --cmk finance")
@click.argument("vault", type=PATH)
@cmk_option(required=True)
@json_option
def init(vault: Path, name: str, as_json: bool) -> int:
    """Make a vault in VAULT, a new or empty directory; its files will be under the CMK."""
    from cmkfs.cli.recorded import recorded
    from cmkfs.cli.token_session import token
    from cmkfs.maintenance.create import create_vault

    path = vault.absolute()
    _require_free(path)
    home = Home.from_environment()
    with (
        token(home, read_write=False) as provider,
        recorded(home, provider, "vault.init", reason=str(path)) as change,
    ):
        cmk = change.cmk = provider.find(name)
        create_vault(path, provider, cmk)
    facts(
        {"vault": str(path), "cmk": cmk.name, "cmk_id": cmk.cmk_id.hex()},
        [f"made vault {path} under CMK {cmk.name}"],
        as_json=as_json,
    )
    return change.exit_code


def _require_free(path: Path) -> None:
    """Before the token is asked for anything: return if a vault can be made at `path`."""
    if (path / VAULT_FILE).exists():
        raise AlreadyExists(f"{path} is a vault already", hint=f"cmkfs mount {path} MOUNTPOINT")
    if path.is_dir():
        if any(path.iterdir()):
            raise AlreadyExists(f"{path} is not empty", hint="choose a new or empty directory")
    elif path.exists() or path.is_symlink():
        raise AlreadyExists(f"{path} is not a directory", hint="choose a new or empty directory")
    elif not path.parent.is_dir():
        raise NotFound(f"{path.parent} does not exist", hint=f"mkdir -p {path.parent}")

"""`cmkfs cmk`: master keys and their states."""

from collections.abc import Sequence
from dataclasses import asdict

import click

from cmkfs.cli.cutoff import record_cut_offs
from cmkfs.cli.mounts import Confirmations, confirm, known
from cmkfs.cli.options import Group, cmk_argument, json_option
from cmkfs.cli.output import complain, facts, table
from cmkfs.control.protocol import Fields
from cmkfs.errors import EXIT_FAILED
from cmkfs.home import Home
from cmkfs.keys.provider import Cmk, CmkState


@click.group(cls=Group)
def group() -> None:
    """Customer master keys (CMKs)."""


@group.command(epilog="Example: cmkfs cmk create finance")
@cmk_argument
@click.option(
    "--type",
    "key_type",
    type=click.Choice(["aes-256", "rsa-4096"]),
    default="aes-256",
    show_default=True,
    help="The kind of key.",
)
@json_option
def create(name: str, key_type: str, as_json: bool) -> int:
    """Generate a CMK in the token; it never leaves it."""
    from cmkfs.cli.recorded import recorded
    from cmkfs.cli.token_session import token
    from cmkfs.keys.cmk import require_key_type

    require_key_type(key_type)
    home = Home.from_environment()
    with token(home, read_write=True) as provider, recorded(home, provider, "cmk.create", reason=name) as change:
        cmk = change.cmk = provider.create(name, key_type)
    facts(_document(cmk), [f"created CMK {cmk.name} ({cmk.key_type}, id {cmk.cmk_id.hex()})"], as_json=as_json)
    return change.exit_code


@group.command("list", epilog="Example: cmkfs cmk list")
@json_option
def list_(as_json: bool) -> None:
    """List the CMKs in the token."""
    from cmkfs.cli.token_session import token

    with token(Home.from_environment(), read_write=False) as provider:
        cmks = provider.cmks()
    rows = [("NAME", "STATE", "TYPE", "VERSIONS", "ORIGIN", "CREATED")]
    rows += [(cmk.name, cmk.state, cmk.key_type, _versions(cmk.versions), cmk.origin, cmk.created) for cmk in cmks]
    facts({"cmks": [_document(cmk) for cmk in cmks]}, table(rows), as_json=as_json)


@group.command(epilog="Example: cmkfs cmk show finance")
@cmk_argument
@json_option
def show(name: str, as_json: bool) -> None:
    """Show a CMK: state, versions, origin, dates, what enforces its state, which mounts use it."""
    from cmkfs.cli.token_session import token
    from cmkfs.policy import fingerprint

    home = Home.from_environment()
    with token(home, read_write=False) as provider:
        cmk = provider.find(name)
        policy = fingerprint(provider.policy(cmk.cmk_id))
    live, _ = known(home)
    mounts = [entry.label for entry in live if entry.record and cmk.cmk_id.hex() in entry.record.cmks]
    document = {**_document(cmk), "policy": policy, "mounts": mounts}
    enforced = "the token" if cmk.enforced_by == "token" else "a sealed record"
    lines = [
        f"name:         {cmk.name}",
        f"id:           {cmk.cmk_id.hex()}",
        f"state:        {cmk.state} (enforced by {enforced})",
        f"type:         {cmk.key_type}",
        f"versions:     {_versions(cmk.versions)}",
        f"origin:       {cmk.origin}",
        f"created:      {cmk.created}",
        f"policy:       {policy or 'none'}",
        f"mounts here:  {', '.join(mounts) or 'none'}",
    ]
    facts(document, lines, as_json=as_json)


@group.command(epilog="Example: cmkfs cmk disable finance")
@cmk_argument
@json_option
def disable(name: str, as_json: bool) -> int:
    """Stop every use of a CMK now: the token refuses it, and every mount of this host locks its files.

    Returns once every mount has confirmed; exit 1 names those that have not.
    """
    return _set_enabled(name, False, as_json)


@group.command(epilog="Example: cmkfs cmk enable finance")
@cmk_argument
@json_option
def enable(name: str, as_json: bool) -> int:
    """Let a disabled CMK be used again."""
    return _set_enabled(name, True, as_json)


def _set_enabled(name: str, enabled: bool, as_json: bool) -> int:
    from cmkfs.audit.process import own_process, person_name
    from cmkfs.cli.permission import require
    from cmkfs.cli.recorded import recorded
    from cmkfs.cli.token_session import token
    from cmkfs.policy import Action

    home = Home.from_environment()
    event = "cmk.enable" if enabled else "cmk.disable"
    with (
        token(home, read_write=True) as provider,
        recorded(home, provider, event, takes_away=not enabled, reason=name) as change,
    ):
        cmk = change.cmk = provider.find(name)
        require(provider, cmk, Action.ENABLE if enabled else Action.DISABLE)
        changed = provider.set_enabled(cmk.cmk_id, enabled)
        change.reason = None if changed else "it was so already"
    outcome = confirm(home, cmk, _still_disabled if enabled else _still_serving, shut=not enabled)
    state = CmkState.ENABLED if enabled else CmkState.DISABLED
    by = person_name(own_process())
    document = {"name": name, "cmk_id": cmk.cmk_id.hex(), "state": state, "changed": changed, "by": by}
    said = f"CMK {name} is {state}" if changed else f"CMK {name} is {state} already"
    locked = ", which stays locked until cmkfs unlock {where}" if enabled else ""
    facts({**document, **outcome.to_json()}, [said, *outcome.lines(still_locked=locked)], as_json=as_json)
    recorded_cuts = record_cut_offs(home, outcome.cut_off) if outcome.cut_off else 0
    return complain_of_unconfirmed(outcome) or recorded_cuts or change.exit_code


def complain_of_unconfirmed(outcome: Confirmations) -> int:
    """Name every mount that has not confirmed, and return the exit code."""
    for where, why in outcome.unconfirmed:
        complain(f"{where} has not confirmed: {why}", hint=f"cmkfs status {where}")
    return EXIT_FAILED if outcome.unconfirmed else 0


def _still_serving(answer: Fields) -> str:
    return "it still serves" if answer.get("state") == "serving" else ""


def _still_disabled(answer: Fields) -> str:
    # A mount that someone locked stays locked: `enable` does not undo that.
    state = answer.get("state")
    return "" if state in ("serving", "locked") else f"it is {state}"


def _document(cmk: Cmk) -> Fields:
    return {**asdict(cmk), "cmk_id": cmk.cmk_id.hex()}


def _versions(versions: Sequence[int]) -> str:
    return ", ".join(map(str, versions))

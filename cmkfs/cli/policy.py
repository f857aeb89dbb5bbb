"""`cmkfs policy`: who may do what with the data under a CMK."""

import os
import sys
import time
from pathlib import Path

import click

from cmkfs.accounts import NO_GROUP, SystemAccounts, groups_of, uid_of
from cmkfs.cli.cmk import complain_of_unconfirmed
from cmkfs.cli.mounts import confirm
from cmkfs.cli.options import PATH, Group, cmk_argument, json_option
from cmkfs.cli.output import facts, note
from cmkfs.cli.times import point_in_time
from cmkfs.control.protocol import Fields
from cmkfs.errors import EXIT_DENIED, ConfigError, Tampered, UsageError
from cmkfs.home import Home
from cmkfs.policy import ADMIN_ACTIONS, Action, Policy, Principal, decide, decide_admin, fingerprint
from cmkfs.policyfile import parse

NO_POLICY = "without a policy only root and whoever mounted can use what is under a CMK"


@click.group(cls=Group)
def group() -> None:
    """Policies: who may do what with the data under a CMK."""


@group.command("set", epilog="Example: cmkfs policy set finance finance.toml")
@cmk_argument
@click.argument("file", type=PATH)
@json_option
def set_(name: str, file: Path, as_json: bool) -> int:
    """Keep FILE (TOML) as the policy of CMK NAME; returns once every mount has confirmed it."""
    text, policy = _read(file)
    return _change(name, text, policy, as_json)


@group.command(epilog="Example: cmkfs policy unset finance")
@cmk_argument
@json_option
def unset(name: str, as_json: bool) -> int:
    """Remove the policy of CMK NAME: only root and whoever mounted can use the data then."""
    return _change(name, None, None, as_json)


@group.command(epilog="Example: cmkfs policy show finance > finance.toml")
@cmk_argument
@json_option
def show(name: str, as_json: bool) -> None:
    """Print the policy of CMK NAME as it was set."""
    from cmkfs.cli.token_session import token

    with token(Home.from_environment(), read_write=False) as provider:
        text = provider.policy(provider.find(name).cmk_id)
    if as_json:
        facts({"name": name, "policy": text, "fingerprint": fingerprint(text)}, [], as_json=True)
    elif text is not None:
        sys.stdout.write(text)  # byte for byte, so that what is printed can be set again
    else:
        note(f"CMK {name} has no policy; {NO_POLICY}")


@group.command(epilog="Example: cmkfs policy check finance.toml")
@click.argument("file", type=PATH)
@json_option
def check(file: Path, as_json: bool) -> None:
    """Read a policy without setting it; an error names the line."""
    text, policy = _read(file)
    count = len(policy.rules)
    facts(
        {"file": str(file), "rules": [rule.id for rule in policy.rules], "fingerprint": fingerprint(text)},
        [f"{file}: {count} rule{'s' * (count != 1)}, no errors"],
        as_json=as_json,
    )


@group.command(epilog="Example: cmkfs policy explain finance --user alice --action read")
@cmk_argument
@click.option("--user", metavar="U", required=True, help="Who asks: a name or a uid.")
@click.option("--action", metavar="A", type=click.Choice([str(action) for action in Action]), required=True)
@click.option("--zone", metavar="DIR", type=PATH, help="A directory on a mount; its zone must be under the CMK.")
@click.option("--at", metavar="T", help="When: ISO 8601 or an age (10m, 2h); else now.")
@json_option
def explain(name: str, user: str, action: str, zone: Path | None, at: str | None, as_json: bool) -> int:
    """Would the policy of CMK NAME allow it, and by which rule? Exit 0 for allow, 3 for deny.

    The user's groups are those of the accounts database; a rule about an executable is taken to be met.
    """
    from cmkfs.cli.token_session import token

    uid = uid_of(user)
    if uid is None:
        raise UsageError(f"there is no user {user!r}", hint="give the uid")
    if zone is not None:
        _check_zone(zone, name)
    moment = time.time()
    moment = point_in_time(at, moment) if at else moment
    with token(Home.from_environment(), read_write=False) as provider:
        text = provider.policy(provider.find(name).cmk_id)
    policy = None if text is None else parse(text, name=f"policy of {name}", accounts=SystemAccounts())
    gid, groups = groups_of(uid) or (NO_GROUP, None)
    who, asked = Principal(uid, gid, groups), Action(action)
    decider = decide_admin if asked in ADMIN_ACTIONS else decide
    decision = decider(policy, who, asked, os.geteuid(), moment)
    said = f"{user} {'may' if decision.allowed else 'may not'} {action} under CMK {name}: {decision.rule}"
    document = {"name": name, "uid": uid, "action": action, "allowed": decision.allowed, "rule": decision.rule}
    facts(document, [said], as_json=as_json)
    return 0 if decision.allowed else EXIT_DENIED


def _check_zone(directory: Path, name: str) -> None:
    from cmkfs.cli.info import document_of

    cmk = document_of(directory).get("cmk")
    if cmk != name:
        raise UsageError(f"the zone of {directory} is under CMK {cmk}, not {name}", hint=f"cmkfs policy explain {cmk}")


def _read(file: Path) -> tuple[str, Policy]:
    try:
        # Not read_text, which turns CRLF into LF: a policy is kept byte for byte.
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{file}:{line}: not UTF-8") from error
    return text, parse(text, name=str(file), accounts=SystemAccounts())


def _change(name: str, text: str | None, policy: Policy | None, as_json: bool) -> int:
    from cmkfs.audit.process import own_process, person_name
    from cmkfs.cli.permission import require, require_way_back
    from cmkfs.cli.recorded import recorded
    from cmkfs.cli.token_session import token

    home = Home.from_environment()
    event = "policy.unset" if text is None else "policy.set"
    with token(home, read_write=True) as provider, recorded(home, provider, event, reason=name) as change:
        cmk = change.cmk = provider.find(name)
        require(provider, cmk, Action.POLICY)
        if policy is not None:
            require_way_back(policy)
        change.reason = fingerprint(text) or None
        try:
            changed = provider.policy(cmk.cmk_id) != text
        except Tampered:
            changed = True  # what the token keeps cannot be read: this is how it is mended
        if changed:
            provider.set_policy(cmk.cmk_id, text)
    wanted = fingerprint(text)

    def another_policy(answer: Fields) -> str:
        return "" if answer.get("policy") == wanted else "it still decides by another policy"

    outcome = confirm(home, cmk, another_policy)
    what = "has no policy" if text is None else f"has policy {wanted[:12]}"
    said = f"CMK {name} {what}" + ("" if changed else " already")
    by = person_name(own_process())
    document = {"name": name, "fingerprint": wanted, "changed": changed, "by": by, **outcome.to_json()}
    facts(document, [said, *outcome.lines()], as_json=as_json)
    return complain_of_unconfirmed(outcome) or change.exit_code

"""Does the policy of a CMK let this person change the CMK? Asked by the commands, before they change anything.

No boundary against who has the token's PIN and another program; it keeps people apart who use cmkfs, and the audit
log names them (docs/policy.md).
"""

import logging
import os
import time

from cmkfs.accounts import SystemAccounts
from cmkfs.audit.process import own_process, person_name
from cmkfs.errors import ConfigError, PolicyDenied, Tampered, UsageError
from cmkfs.keys.policies import askers
from cmkfs.keys.provider import Cmk, KeyProvider
from cmkfs.policy import Action, Decision, Policy, decide_admin
from cmkfs.policyfile import parse

_DOING = {Action.POLICY: "change the policy of"}

log = logging.getLogger(__name__)


def require(provider: KeyProvider, cmk: Cmk, action: Action) -> None:
    """Return if the CMK's policy allows it. Raises PolicyDenied, TokenUnavailable.

    Of a policy that cannot be read any more root and the owner are asked as if there were none: a disable must not
    wait for it to be mended, and somebody must be able to mend it.
    """
    try:
        text = provider.policy(cmk.cmk_id)
        policy = None if text is None else parse(text, name=f"policy of {cmk.name}", accounts=SystemAccounts())
    except (Tampered, ConfigError) as error:
        log.debug("decided without a policy: %s", error)
        policy = None
    decision = _decide(policy, action)
    if not decision.allowed:
        raise PolicyDenied(
            f"{person_name(own_process())} may not {_DOING.get(action, action)} CMK {cmk.name}",
            hint=f"cmkfs policy show {cmk.name}",
            rule=decision.rule,
            action=action,
        )


def require_way_back(policy: Policy) -> None:
    """Return if who sets this policy may change it again: else nobody might. Raises UsageError."""
    decision = _decide(policy, Action.POLICY)
    if not decision.allowed:
        who = person_name(own_process())
        raise UsageError(
            f"{who} could not change this policy again: {decision.rule}",
            hint=f'add a rule that allows {who} the action "policy", or have it set by somebody who keeps it',
        )


def _decide(policy: Policy | None, action: Action) -> Decision:
    who, person = askers(own_process())
    return decide_admin(policy, who, action, os.geteuid(), time.time(), person)

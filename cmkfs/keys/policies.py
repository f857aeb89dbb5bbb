"""The policies of a mount's CMKs, as last read from the token, and the principals that ask.

The decision itself is `cmkfs.policy.decide`; here is what it needs from the system: groups of a process,
the owner of the mount, and a memory of decisions that ends with each change of policy.
"""

from dataclasses import dataclass
from pathlib import Path

from cmkfs.format.recipient import CmkId
from cmkfs.policy import NO_RULE, Action, Decision, Policy, Principal, decide

_REMEMBERED = 4096
_UNREAD = Decision(False, NO_RULE)


@dataclass(frozen=True, slots=True)
class Request:
    """Who asks, as the kernel tells: effective uid and gid, and the process (0: in another pid namespace)."""

    uid: int
    gid: int
    pid: int


class Policies:
    """Decides for the keyring. `set_policy` forgets every decision made before."""

    def __init__(self, owner_uid: int) -> None:
        self._owner_uid = owner_uid
        self._policies: dict[CmkId, Policy | None] = {}
        self._decided: dict[tuple[CmkId, int, int, Action], Decision] = {}

    def set_policy(self, cmk_id: CmkId, policy: Policy | None) -> None:
        """From now on decide by `policy`; None is the rule without a policy (owner and root only)."""
        self._policies[cmk_id] = policy
        self._decided.clear()

    def refuse_all(self, cmk_id: CmkId) -> None:
        """The policy cannot be understood: nobody is allowed anything, not even the owner."""
        self.set_policy(cmk_id, Policy(()))

    def knows(self, cmk_id: CmkId) -> bool:
        """True once a policy, or that there is none, was read."""
        return cmk_id in self._policies

    def get(self, cmk_id: CmkId) -> Policy | None:
        """The policy in force."""
        return self._policies.get(cmk_id)

    def decide(self, cmk_id: CmkId, request: Request, action: Action) -> Decision:
        """Does the policy of the CMK allow `request` this action, and by which rule? Before one was read: no."""
        if not self.knows(cmk_id):
            return _UNREAD
        # Supplementary groups belong to the process: what depends on them is not remembered by user.
        policy = self._policies[cmk_id]
        if policy is not None and policy.needs_groups(action, request.uid, request.gid):
            return self._decide(policy, request, action, supplementary_groups(request.pid))
        known = (cmk_id, request.uid, request.gid, action)
        decision = self._decided.get(known)
        if decision is None:
            if len(self._decided) >= _REMEMBERED:
                self._decided.clear()
            decision = self._decided[known] = self._decide(policy, request, action, frozenset())
        return decision

    def allows(self, cmk_id: CmkId, request: Request, action: Action) -> bool:
        """As `decide`, without the rule."""
        return self.decide(cmk_id, request, action).allowed

    def _decide(
        self, policy: Policy | None, request: Request, action: Action, groups: frozenset[int] | None
    ) -> Decision:
        who = Principal(request.uid, request.gid, groups)
        return decide(policy, who, action, self._owner_uid)


def supplementary_groups(pid: int) -> frozenset[int] | None:
    """The groups of a process (proc_pid_status(5)); None if it is gone or in another pid namespace."""
    if pid == 0:
        return None
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("Groups:"):
            return frozenset(int(gid) for gid in line.split()[1:])
    return None

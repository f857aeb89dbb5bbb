"""The policies of a mount's CMKs, as last read from the token, and the principals that ask.

The decision itself is `cmkfs.policy.decide`; here is what it needs from the system: groups of a process,
the owner of the mount, and a memory of decisions that ends with each change of policy.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from cmkfs.accounts import NO_GROUP, groups_of
from cmkfs.audit.auditor import Caller
from cmkfs.audit.process import login_uid
from cmkfs.caller import Request
from cmkfs.format.recipient import CmkId
from cmkfs.policy import NO_RULE, Action, Decision, Needs, Policy, Principal, Rules, decide, decide_admin

_REMEMBERED = 4096
_NEVER = float("inf")
_NOTHING = Needs(groups=False, exe=False)
_CAP_SYS_ADMIN = 21
_UNREAD = Decision(False, NO_RULE)


class _InForce:
    """A policy, the rules of it that count now, and the decisions by them, good until `until`."""

    __slots__ = ("decided", "needs", "policy", "rules", "since", "until")

    def __init__(self, policy: Policy | None, now: float) -> None:
        self.policy = policy
        self.rules = None if policy is None else policy.at(now)
        self.since = now
        self.until = float("inf") if policy is None else policy.next_change(now)
        self.decided: dict[tuple[int, int, Action] | tuple[Principal, Action], Decision] = {}
        self.needs: dict[tuple[int, int, Action], Needs] = {}


class Policies:
    """Decides for the keyring. A change of policy, or of what the clock says of it, forgets what was decided."""

    def __init__(self, owner_uid: int, clock: Callable[[], float] = time.time) -> None:
        self._owner_uid = owner_uid
        self._clock = clock
        self._in_force: dict[CmkId, _InForce] = {}
        self.changes = 0
        """Counts changes: what was decided before an await and a change is decided again."""

    def set_policy(self, cmk_id: CmkId, policy: Policy | None) -> None:
        """From now on decide by `policy`; None is the rule without a policy (owner and root only)."""
        self._in_force[cmk_id] = _InForce(policy, self._clock())
        self.changes += 1

    def refuse_all(self, cmk_id: CmkId) -> None:
        """The policy cannot be understood: nobody is allowed anything, not even the owner."""
        self.set_policy(cmk_id, Policy(()))

    def forget(self, cmk_id: CmkId) -> None:
        """Nothing is under the CMK any more; what is put under it later is decided by what is read then."""
        self._in_force.pop(cmk_id, None)
        self.changes += 1

    def knows(self, cmk_id: CmkId) -> bool:
        """True once a policy, or that there is none, was read."""
        return cmk_id in self._in_force

    def get(self, cmk_id: CmkId) -> Policy | None:
        """The policy in force."""
        found = self._in_force.get(cmk_id)
        return None if found is None else found.policy

    def rules_in_force(self, cmk_id: CmkId) -> Rules | None:
        """The rules that count now, the same object until that changes; None without a policy."""
        found = self._in_force.get(cmk_id)
        return None if found is None else self._current(cmk_id, found).rules

    def in_force(self, cmk_id: CmkId) -> object:
        """Something that is the same object as long as every decision about the CMK is the same."""
        found = self._in_force.get(cmk_id)
        return None if found is None else self._current(cmk_id, found)

    def same_for_all(self, cmk_id: CmkId) -> bool:
        """May everybody who reaches the mount have names and attributes out of the kernel's cache?"""
        rules = self.rules_in_force(cmk_id)
        return rules is not None and rules.same_for_all

    def decide(self, cmk_id: CmkId, request: Request, action: Action) -> Decision:
        """Does the policy of the CMK allow `request` this action, and by which rule? Before one was read: no."""
        found = self._in_force.get(cmk_id)
        if found is None:
            return _UNREAD
        if found.until != _NEVER:
            found = self._current(cmk_id, found)
        decision = found.decided.get((request.uid, request.gid, action))
        return self._decide(found, request, action) if decision is None else decision

    def allows(self, cmk_id: CmkId, request: Request, action: Action) -> bool:
        """As `decide`, without the rule."""
        return self.decide(cmk_id, request, action).allowed

    def decide_admin(self, cmk_id: CmkId, request: Caller, action: Action) -> Decision:
        """May `request` lock or unlock what is under the CMK? Not remembered."""
        who, person = askers(request)
        return decide_admin(self.get(cmk_id), who, action, self._owner_uid, self._clock(), person)

    def _current(self, cmk_id: CmkId, found: _InForce) -> _InForce:
        """Also a clock that was put back makes the rules be looked at anew."""
        now = self._clock()
        if found.since <= now < found.until:
            return found
        again = _InForce(found.policy, now)
        if again.rules is not None and found.rules is not None and again.rules.ids == found.rules.ids:
            found.since, found.until = again.since, again.until  # nothing has changed: decisions stay
            return found
        self._in_force[cmk_id] = again
        self.changes += 1
        return again

    def _decide(self, found: _InForce, request: Request, action: Action) -> Decision:
        if len(found.decided) >= _REMEMBERED:
            found.decided.clear()
            found.needs.clear()
        asked = (request.uid, request.gid, action)
        needs = found.needs.get(asked)
        if needs is None:
            needs = _NOTHING if found.rules is None else found.rules.needs(action, request.uid, request.gid)
            found.needs[asked] = needs
        # What belongs to the process is not remembered by user.
        groups = supplementary_groups(request.pid) if needs.groups else frozenset[int]()
        exe = executable(request.pid) if needs.exe else ""
        who = Principal(request.uid, request.gid, groups, exe)
        key = (who, action) if needs.groups or needs.exe else asked
        decision = found.decided.get(key)
        if decision is None:
            if found.rules is None:
                decision = decide(None, who, action, self._owner_uid)
            else:
                decision = found.rules.decide(who, action)
            found.decided[key] = decision
        return decision


def askers(asker: Caller) -> tuple[Principal, Principal | None]:
    """A process that wants to change something, and the person who logged in and became its user, if another."""
    who = Principal(asker.uid, asker.gid, supplementary_groups(asker.pid), executable(asker.pid))
    login = login_uid(asker.pid)
    if login is None or login == asker.uid:
        return who, None
    gid, groups = groups_of(login) or (NO_GROUP, None)
    return who, Principal(login, gid, groups, who.exe)


def is_admin(pid: int, uid: int) -> bool:
    """Has the process CAP_SYS_ADMIN (capabilities(7)) here? By its uid if it is in another pid namespace or gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text() if pid else ""
        if status and os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user"):
            return False  # in a user namespace of its own, where everybody can have it (user_namespaces(7))
    except OSError:
        status = ""
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return uid == 0


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


def executable(pid: int) -> str | None:
    """The path of a process's executable (proc_pid_exe(5)); None if it cannot be told."""
    if pid == 0:
        return None
    try:
        # A program that was replaced while it runs is still the one that a rule names.
        return os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
    except OSError:
        return None

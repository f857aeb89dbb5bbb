"""Policies of CMKs: rules in, decisions out. Pure: no os, no accounts database, no clock.

Nothing matches: denied. Any matching deny wins. The order of rules does not matter (the semantics of
Cedar, https://docs.cedarpolicy.com/auth/authorization.html). docs/policy.md shows the file's form, which
`cmkfs.policyfile` reads.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from functools import cached_property

from cmkfs.schedule import Schedule

NO_RULE = "(no rule)"
"""Decision.rule when a policy has no rule that matches."""

NO_POLICY = "(no policy)"
"""Decision.rule when the CMK has no policy."""


class Action(StrEnum):
    """What a principal wants to do: first with data under the CMK, then with the CMK and its mounts."""

    LIST = "list"
    READ = "read"
    WRITE = "write"
    CREATE = "create"
    DELETE = "delete"
    DISABLE = "disable"
    ENABLE = "enable"
    ROTATE = "rotate"
    DELETE_KEY = "delete-key"
    POLICY = "policy"
    LOCK = "lock"
    UNLOCK = "unlock"


DATA_ACTIONS = (Action.LIST, Action.READ, Action.WRITE, Action.CREATE, Action.DELETE)
ADMIN_ACTIONS = tuple(action for action in Action if action not in DATA_ACTIONS)
"""What `admin` in a policy stands for."""


ALWAYS = Schedule()


class Effect(StrEnum):
    """What a matching rule says."""

    ALLOW = "allow"
    DENY = "deny"


class Subject(Enum):
    """What the number of a `Who` numbers."""

    USER = "user"
    GROUP = "group"
    EVERYONE = "*"


@dataclass(frozen=True, slots=True)
class Who:
    """One entry of `who`, as numbers; `number` is 0 for everyone."""

    subject: Subject
    number: int = 0


@dataclass(frozen=True, slots=True)
class Principal:
    """The calling process. `groups` are the supplementary ones, `exe` its executable's path; None: not known."""

    uid: int
    gid: int
    groups: frozenset[int] | None
    exe: str | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a policy, names resolved to numbers. `exe`, in deny rules only: of which executables; empty: all."""

    id: str
    effect: Effect
    who: frozenset[Who]
    actions: frozenset[Action]
    when: Schedule = ALWAYS
    exe: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Decision:
    """`rule` is the id of the rule that decided, or NO_RULE or NO_POLICY."""

    allowed: bool
    rule: str


@dataclass(frozen=True, slots=True)
class Needs:
    """What of a process must be looked up before an action of it can be decided."""

    groups: bool
    exe: bool


@dataclass(frozen=True)
class Policy:
    """The rules of one CMK, in no particular order."""

    rules: tuple[Rule, ...]

    def at(self, now: float) -> "Rules":
        """The rules that count at `now`, seconds since 1970."""
        return Rules([rule for rule in self.rules if rule.when.active(now)])

    def next_change(self, now: float) -> float:
        """Until when `at(now)` stays as it is; infinity: for good."""
        return min((rule.when.next_change(now) for rule in self._timed), default=float("inf"))

    @cached_property
    def _timed(self) -> tuple[Rule, ...]:
        return tuple(rule for rule in self.rules if rule.when != ALWAYS)

    def grants(self, action: Action) -> bool:
        """Is there a rule, at any time, that allows this to anybody?"""
        return any(rule.effect is Effect.ALLOW and action in rule.actions for rule in self.rules)


@dataclass(slots=True)
class _Index:
    """Of the rules of one effect for one action: for each principal the smallest id that matches."""

    everyone: str | None = None
    users: dict[int, str] = field(default_factory=dict)
    groups: dict[int, str] = field(default_factory=dict)
    any_group: str | None = None

    def add(self, rule: Rule) -> None:
        for entry in rule.who:
            if entry.subject is Subject.EVERYONE:
                self.everyone = _smaller(self.everyone, rule.id)
            elif entry.subject is Subject.USER:
                self.users[entry.number] = _smaller(self.users.get(entry.number), rule.id)
            else:
                self.groups[entry.number] = _smaller(self.groups.get(entry.number), rule.id)
                self.any_group = _smaller(self.any_group, rule.id)

    def match(self, who: Principal, *, unknown_groups: bool) -> str | None:
        """The smallest id that matches; `unknown_groups`: does a group match whose membership is not known?"""
        found = [self.everyone, self.users.get(who.uid), self.groups.get(who.gid)]
        if who.groups is not None:
            found += [self.groups.get(gid) for gid in who.groups] if self.groups else []
        elif unknown_groups:
            found.append(self.any_group)
        return min((rule for rule in found if rule is not None), default=None)


def _smaller(old: str | None, new: str) -> str:
    return new if old is None else min(old, new)


_NOBODY = _Index()


class Rules:
    """Rules that count now, sorted so that a decision costs what the caller's groups are, and not the rules."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.ids = frozenset[str]()
        self._allow = {action: _Index() for action in Action}
        self._deny = {action: _Index() for action in Action}
        self._deny_exe: dict[Action, dict[str, _Index]] = {action: {} for action in Action}
        self._deny_any_exe = {action: _Index() for action in Action}
        """Of the same rules: what an executable that cannot be told is denied by."""
        for rule in rules:
            self.ids |= {rule.id}
            for action in rule.actions:
                if not rule.exe:
                    (self._allow if rule.effect is Effect.ALLOW else self._deny)[action].add(rule)
                    continue
                self._deny_any_exe[action].add(rule)
                for exe in rule.exe:
                    self._deny_exe[action].setdefault(exe, _Index()).add(rule)

    def decide(self, who: Principal, action: Action) -> Decision:
        """May `who` do `action`? What is not known of a process never allows it anything, and denies it.

        Of several rules the smallest id is named, so that their order does not even show in the audit log.
        """
        by_exe = self._deny_any_exe[action] if who.exe is None else self._deny_exe[action].get(who.exe, _NOBODY)
        denying = [index.match(who, unknown_groups=True) for index in (self._deny[action], by_exe)]
        if any(denying):
            return Decision(False, min(filter(None, denying)))
        allowing = self._allow[action].match(who, unknown_groups=False)
        return Decision(False, NO_RULE) if allowing is None else Decision(True, allowing)

    def needs(self, action: Action, uid: int, gid: int) -> Needs:
        """What can change whether this is allowed; what is not needed may be given as unknown."""
        unknown = Principal(uid, gid, None, "")
        by_exe = self._deny_any_exe[action]
        exe_counts = by_exe.match(unknown, unknown_groups=True) is not None
        no_groups = Principal(uid, gid, frozenset(), "")
        may_allow = self._allow[action].match(no_groups, unknown_groups=False) or self._allow[action].any_group
        if self._deny[action].match(no_groups, unknown_groups=True) or not may_allow:
            return Needs(groups=False, exe=False)  # denied whatever else is found
        group_counts = self._deny[action].any_group or by_exe.any_group
        allowed_alone = self._allow[action].match(no_groups, unknown_groups=False) is not None
        return Needs(groups=bool(group_counts) or not allowed_alone, exe=exe_counts)

    @property
    def same_for_all(self) -> bool:
        """True if nobody has no right at all to the data, or everybody: then names and attributes are no secret."""
        free = [
            action
            for action in DATA_ACTIONS
            if self._allow[action].everyone is not None
            and self._deny[action] == _Index()
            and not self._deny_exe[action]
        ]
        return bool(free) or all(self._allow[action] == _Index() for action in DATA_ACTIONS)


# -- Deciding --------------------------------------------------------------------------------------


def decide(policy: Policy | None, who: Principal, action: Action, owner_uid: int, now: float = 0.0) -> Decision:
    """May `who` do `action`? `owner_uid` is who mounted, which counts only where there is no policy.

    With unknown supplementary groups, rules that allow them do not apply, and rules that deny them do.
    """
    if policy is None:
        return Decision(who.uid in (0, owner_uid), NO_POLICY)
    return policy.at(now).decide(who, action)


def decide_admin(
    policy: Policy | None,
    who: Principal,
    action: Action,
    owner_uid: int,
    now: float,
    person: Principal | None = None,
) -> Decision:
    """May `who` change the CMK or lock its mounts? `owner_uid` owns the token or the mount.

    `person` is who logged in and became `who`, by sudo: a rule that denies either denies, one that allows either
    allows. An action that no rule ever allows to anybody is root's and the owner's, unless a rule denies it to them:
    so a policy about data alone locks nobody out.
    """
    if policy is None:
        return decide(None, who, action, owner_uid)
    rules = policy.at(now)
    decisions = [rules.decide(principal, action) for principal in (who, person) if principal is not None]
    for decision in decisions:
        if not decision.allowed and decision.rule != NO_RULE:
            return decision
    for decision in decisions:
        if decision.allowed:
            return decision
    return Decision(not policy.grants(action) and who.uid in (0, owner_uid), NO_RULE)


def fingerprint(text: str | None) -> str:
    """64 hex digits that tell policies apart (SHA-256 of the TOML text); empty without a policy."""
    return "" if text is None else hashlib.sha256(text.encode()).hexdigest()

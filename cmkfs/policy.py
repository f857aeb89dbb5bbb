"""Policies of CMKs: rules in, decisions out. Pure: no os, no accounts database, no clock.

Nothing matches: denied. Any matching deny wins. The order of rules does not matter (the semantics of
Cedar, https://docs.cedarpolicy.com/auth/authorization.html). docs/operations.md shows the file's form.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Protocol, TypeVar, cast

from cmkfs.errors import ConfigError
from cmkfs.toml_source import Key, Source, read

NO_RULE = "(no rule)"
"""Decision.rule when a policy has no rule that matches."""

NO_POLICY = "(no policy)"
"""Decision.rule when the CMK has no policy."""

_T = TypeVar("_T")
_RULE_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_ID_LIMIT = 2**32 - 1  # (uid_t) -1 means "no user" (chown(2))


class Action(StrEnum):
    """What a principal wants to do with data under the CMK."""

    LIST = "list"
    READ = "read"
    WRITE = "write"
    CREATE = "create"
    DELETE = "delete"
    ADMIN = "admin"


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
    """The calling process. `groups` are the supplementary ones; None: not known."""

    uid: int
    gid: int
    groups: frozenset[int] | None


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a policy, names resolved to numbers."""

    id: str
    effect: Effect
    who: frozenset[Who]
    actions: frozenset[Action]


@dataclass(frozen=True, slots=True)
class Decision:
    """`rule` is the id of the rule that decided, or NO_RULE or NO_POLICY."""

    allowed: bool
    rule: str


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one CMK, in no particular order."""

    rules: tuple[Rule, ...]

    def needs_groups(self, action: Action, uid: int, gid: int) -> bool:
        """Can supplementary groups change whether this is allowed? If not, `groups=None` decides the same."""
        rules = [rule for rule in self.rules if action in rule.actions]
        worst = _decide(rules, Principal(uid, gid, None))
        best = _decide(rules, Principal(uid, gid, frozenset()), groups_may_allow=True)
        return worst.allowed != best.allowed


class Accounts(Protocol):
    """Names of users and groups to numbers; None: there is no such name."""

    def uid(self, name: str) -> int | None:
        """The number of a user."""
        ...

    def gid(self, name: str) -> int | None:
        """The number of a group."""
        ...


# -- Deciding --------------------------------------------------------------------------------------


def decide(policy: Policy | None, who: Principal, action: Action, owner_uid: int) -> Decision:
    """May `who` do `action`? `owner_uid` is who mounted, which counts only where there is no policy.

    With unknown supplementary groups, rules that allow them do not apply, and rules that deny them do.
    """
    if policy is None:
        return Decision(who.uid in (0, owner_uid), NO_POLICY)
    return _decide([rule for rule in policy.rules if action in rule.actions], who)


def _decide(rules: Iterable[Rule], who: Principal, *, groups_may_allow: bool = False) -> Decision:
    """`groups_may_allow` takes every group that a rule allows for one of the principal's."""
    denying, allowing = [], []
    for rule in rules:
        if rule.effect is Effect.DENY:
            if _matches(rule, who, unknown_groups=True):
                denying.append(rule.id)
        elif _matches(rule, who, unknown_groups=False) or (groups_may_allow and _names_a_group(rule)):
            allowing.append(rule.id)
    # The smallest id, so that the order of the rules does not even show in the audit log.
    if denying:
        return Decision(False, min(denying))
    if allowing:
        return Decision(True, min(allowing))
    return Decision(False, NO_RULE)


def _matches(rule: Rule, who: Principal, *, unknown_groups: bool) -> bool:
    """`unknown_groups`: does a group match whose membership is not known?"""
    for entry in rule.who:
        if entry.subject is Subject.EVERYONE:
            return True
        if entry.subject is Subject.USER:
            if entry.number == who.uid:
                return True
        elif entry.number == who.gid or (unknown_groups if who.groups is None else entry.number in who.groups):
            return True
    return False


def _names_a_group(rule: Rule) -> bool:
    return any(entry.subject is Subject.GROUP for entry in rule.who)


def fingerprint(text: str | None) -> str:
    """64 hex digits that tell policies apart (SHA-256 of the TOML text); empty without a policy."""
    return "" if text is None else hashlib.sha256(text.encode()).hexdigest()


# -- Reading ---------------------------------------------------------------------------------------


def parse(text: str, *, name: str, accounts: Accounts) -> Policy:
    """The policy in TOML. Raises ConfigError with `name` and the line of what is wrong or unknown.

    A policy without a rule is refused: it would deny everything, which a rule that says so does too.
    """
    source = read(text, name=name)
    for field in source.data:
        if field != "rule":
            raise source.error((field,), f"unknown field {field!r}; a policy has [[rule]] only")
    tables = source.data.get("rule")
    if not isinstance(tables, list) or not tables:
        raise ConfigError(f"{name}:1: no [[rule]]", hint='to deny all: effect = "deny", who = ["*"]')
    rules = tuple(_rule(source, index, accounts) for index in range(len(tables)))
    lines: dict[str, Key] = {}
    for index, rule in enumerate(rules):
        key = ("rule", index, "id")
        if rule.id in lines:
            raise source.error(key, f"id {rule.id!r} is taken by line {source.line(lines[rule.id])}")
        lines[rule.id] = key
    return Policy(rules)


def _rule(source: Source, index: int, accounts: Accounts) -> Rule:
    table = cast(list[object], source.data["rule"])[index]
    if not isinstance(table, dict):
        raise source.error(("rule",), "rule must be a table: [[rule]]")
    for field in table:
        if field not in ("id", "effect", "who", "actions"):
            raise source.error(("rule", index, field), f"unknown field {field!r}")
    for field in ("id", "effect", "who", "actions"):
        if field not in table:
            raise source.error(("rule", index), f"{field!r} is missing")
    return Rule(
        id=_id(source, ("rule", index, "id"), table["id"]),
        effect=_effect(source, ("rule", index, "effect"), table["effect"]),
        who=_entries(source, ("rule", index, "who"), table["who"], lambda text: _who(text, accounts)),
        actions=frozenset[Action]().union(*_entries(source, ("rule", index, "actions"), table["actions"], _actions)),
    )


def _id(source: Source, key: Key, value: object) -> str:
    if not isinstance(value, str) or not _RULE_ID.fullmatch(value):
        raise source.error(key, f"id must match [a-z0-9][a-z0-9._-]{{0,63}}, not {value!r}")
    return value


def _effect(source: Source, key: Key, value: object) -> Effect:
    if not isinstance(value, str) or value not in tuple(Effect):
        raise source.error(key, f"effect must be 'allow' or 'deny', not {value!r}")
    return Effect(value)


def _entries(source: Source, key: Key, value: object, convert: Callable[[str], _T]) -> frozenset[_T]:
    """The converted strings of an array that is not empty; a ValueError of `convert` gets its line."""
    if not isinstance(value, list) or not value:
        raise source.error(key, f"{key[-1]} must be an array that is not empty")
    found: set[_T] = set()
    for entry in value:
        if not isinstance(entry, str):
            raise source.error(key, f"{key[-1]} must hold strings, not {entry!r}")
        try:
            found.add(convert(entry))
        except ValueError as error:
            raise source.error(key, str(error), containing=entry) from error
    return frozenset(found)


def _actions(text: str) -> frozenset[Action]:
    if text == "*":
        return frozenset(Action)
    if text not in tuple(Action):
        raise ValueError(f"unknown action {text!r}; there are {', '.join(Action)} and *")
    return frozenset({Action(text)})


def _who(text: str, accounts: Accounts) -> Who:
    if text == "*":
        return Who(Subject.EVERYONE)
    kind, colon, name = text.partition(":")
    if not colon or not name:
        raise ValueError(f"who must be user:NAME, group:NAME, uid:N, gid:N or *, not {text!r}")
    match kind:
        case "user":
            return Who(Subject.USER, _resolved(accounts.uid(name), text))
        case "group":
            return Who(Subject.GROUP, _resolved(accounts.gid(name), text))
        case "uid":
            return Who(Subject.USER, _number(name, text))
        case "gid":
            return Who(Subject.GROUP, _number(name, text))
    raise ValueError(f"who must be user:NAME, group:NAME, uid:N, gid:N or *, not {text!r}")


def _resolved(number: int | None, text: str) -> int:
    if number is None:
        raise ValueError(f"this host knows no {text.replace(':', ' ', 1)!r}")
    return number


def _number(digits: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", digits) or int(digits) >= _ID_LIMIT:
        raise ValueError(f"{text!r} is not a number of a user or group")
    return int(digits)

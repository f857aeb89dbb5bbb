"""The policy file: TOML text to `cmkfs.policy.Policy`. Pure: accounts and time zones are asked of the caller.

Everything unknown is an error that names its line. docs/policy.md shows the form.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from typing import Protocol, TypeVar, cast

from cmkfs import schedule
from cmkfs.errors import ConfigError
from cmkfs.policy import ADMIN_ACTIONS, ALWAYS, Action, Effect, Policy, Rule, Subject, Who
from cmkfs.schedule import Schedule
from cmkfs.toml_source import Key, Source, read

_T = TypeVar("_T")
_RULE_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_ID_LIMIT = 2**32 - 1  # (uid_t) -1 means "no user" (chown(2))
_REQUIRED = ("id", "effect", "who", "actions")
_CONDITIONS = ("hours", "days", "timezone", "expires", "exe")


class Accounts(Protocol):
    """What names in a policy mean on this host; None: there is no such name."""

    def uid(self, name: str) -> int | None:
        """The number of a user."""
        ...

    def gid(self, name: str) -> int | None:
        """The number of a group."""
        ...

    def timezone(self, name: str) -> tzinfo | None:
        """A time zone by its IANA name."""
        ...


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
        if field not in _REQUIRED + _CONDITIONS:
            raise source.error(("rule", index, field), f"unknown field {field!r}")
    for field in _REQUIRED:
        if field not in table:
            raise source.error(("rule", index), f"{field!r} is missing")
    effect = _effect(source, ("rule", index, "effect"), table["effect"])
    return Rule(
        id=_id(source, ("rule", index, "id"), table["id"]),
        effect=effect,
        who=_entries(source, ("rule", index, "who"), table["who"], lambda text: _who(text, accounts)),
        actions=frozenset[Action]().union(*_entries(source, ("rule", index, "actions"), table["actions"], _actions)),
        when=_schedule(source, index, table, accounts),
        exe=_exe(source, ("rule", index, "exe"), table.get("exe"), effect),
    )


def _schedule(source: Source, index: int, table: dict[str, object], accounts: Accounts) -> Schedule:
    def error(name: str, message: str) -> ConfigError:
        return source.error(("rule", index, name), message)

    if "timezone" in table and not any(name in table for name in ("hours", "days", "expires")):
        raise error("timezone", "timezone says nothing without hours, days or expires")
    zone = _timezone(table.get("timezone", "UTC"), accounts, lambda message: error("timezone", message))
    start, stop, days, expires = ALWAYS.start, ALWAYS.stop, ALWAYS.days, None
    if "hours" in table:
        try:
            start, stop = schedule.hours(str(table["hours"]))
        except ValueError as wrong:
            raise error("hours", str(wrong)) from wrong
    if "days" in table:
        listed = _entries(source, ("rule", index, "days"), table["days"], schedule.days)
        days = frozenset[int]().union(*listed)
    if "expires" in table:
        value = table["expires"]
        if not isinstance(value, datetime):
            raise error("expires", f"expires must be a date with a time, like 2026-12-31T18:00:00Z, not {value}")
        expires = schedule.moment(value, zone)
    return Schedule(days, start, stop, zone, expires)


def _timezone(name: object, accounts: Accounts, error: Callable[[str], ConfigError]) -> tzinfo:
    if name == "UTC":
        return UTC
    zone = accounts.timezone(name) if isinstance(name, str) else None
    if zone is None:
        raise error(f"this host knows no time zone {name!r}")
    return zone


def _exe(source: Source, key: Key, value: object, effect: Effect) -> frozenset[str]:
    if value is None:
        return frozenset()
    if effect is not Effect.DENY:
        # Looking a process up is racy: it may have become another program meanwhile (execve(2)).
        raise source.error(key, "exe is for deny rules only")
    return _entries(source, key, value, _path)


def _path(text: str) -> str:
    if not text.startswith("/") or "\0" in text:
        raise ValueError(f"exe must hold absolute paths, not {text!r}")
    return text


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
    if text == "admin":
        return frozenset(ADMIN_ACTIONS)
    if text not in tuple(Action):
        raise ValueError(f"unknown action {text!r}; there are {', '.join(Action)}, admin (the last seven) and *")
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

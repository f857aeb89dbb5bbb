"""Policies: reading them, and what they decide."""

from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmkfs.errors import ConfigError
from cmkfs.policy import (
    ADMIN_ACTIONS,
    DATA_ACTIONS,
    NO_POLICY,
    NO_RULE,
    Action,
    Decision,
    Effect,
    Policy,
    Principal,
    Rule,
    Subject,
    Who,
    decide,
    decide_admin,
    fingerprint,
)
from cmkfs.policyfile import parse
from cmkfs.schedule import Schedule


class Accounts:
    """Two users and two groups."""

    def uid(self, name: str) -> int | None:
        return {"alice": 1000, "bob": 1001}.get(name)

    def gid(self, name: str) -> int | None:
        return {"finance": 50, "contractors": 60}.get(name)

    def timezone(self, name: str) -> tzinfo | None:
        return ZoneInfo(name) if name == "Europe/Berlin" else None


def read(text: str) -> Policy:
    return parse(text, name="p.toml", accounts=Accounts())


EXAMPLE = """
[[rule]]
id = "finance-staff"
effect = "allow"
who = ["group:finance", "user:alice"]
actions = ["read", "write", "create", "delete", "list"]

[[rule]]
id = "no-contractors"
effect = "deny"
who = ["group:contractors"]
actions = ["*"]
"""


def test_a_policy_is_read_into_numbers() -> None:
    data = frozenset(DATA_ACTIONS)
    assert read(EXAMPLE) == Policy(
        (
            Rule(
                "finance-staff",
                Effect.ALLOW,
                frozenset({Who(Subject.GROUP, 50), Who(Subject.USER, 1000)}),
                data,
            ),
            Rule("no-contractors", Effect.DENY, frozenset({Who(Subject.GROUP, 60)}), frozenset(Action)),
        )
    )


@pytest.mark.parametrize(
    ("who", "action", "allowed", "rule"),
    [
        (Principal(1000, 1000, frozenset()), Action.READ, True, "finance-staff"),
        (Principal(1000, 1000, frozenset()), Action.POLICY, False, NO_RULE),
        (Principal(1001, 1001, frozenset()), Action.READ, False, NO_RULE),
        (Principal(1001, 1001, frozenset({50})), Action.READ, True, "finance-staff"),
        (Principal(1001, 50, frozenset()), Action.READ, True, "finance-staff"),
        (Principal(1001, 1001, frozenset({50, 60})), Action.READ, False, "no-contractors"),
        (Principal(1000, 60, frozenset()), Action.READ, False, "no-contractors"),
        (Principal(0, 0, frozenset()), Action.READ, False, NO_RULE),
        (Principal(1000, 1000, None), Action.READ, False, "no-contractors"),
        (Principal(1001, 1001, None), Action.READ, False, "no-contractors"),
    ],
)
def test_the_example_decides(who: Principal, action: Action, allowed: bool, rule: str) -> None:
    assert decide(read(EXAMPLE), who, action, owner_uid=0) == Decision(allowed, rule)


@pytest.mark.parametrize(("uid", "allowed"), [(0, True), (1000, True), (1001, False)])
@pytest.mark.parametrize("action", Action)
def test_without_a_policy_root_and_the_owner_may_everything(uid: int, allowed: bool, action: Action) -> None:
    assert decide(None, Principal(uid, 5, None), action, owner_uid=1000) == Decision(allowed, NO_POLICY)


def test_unknown_groups_are_not_allowed_and_are_denied() -> None:
    allow = read('[[rule]]\nid="a"\neffect="allow"\nwho=["group:finance"]\nactions=["read"]\n')
    assert not decide(allow, Principal(1, 1, None), Action.READ, 0).allowed
    assert decide(allow, Principal(1, 50, None), Action.READ, 0).allowed


RULE = 'id="a"\neffect="allow"\nwho=["*"]\nactions=["*"]\n'

WRONG = {
    "empty": ("", "1: no [[rule]]"),
    "no array": ("rule = 3", "1: no [[rule]]"),
    "empty array": ("rule = []", "1: no [[rule]]"),
    "not tables": ("rule = [3]", "1: rule must be a table"),
    "unknown table": ("[[rules]]\n", "1: unknown field 'rules'"),
    "unknown field": (f'[[rule]]\n{RULE}when="always"\n', "6: unknown field 'when'"),
    "unknown subtable": (f"[[rule]]\n{RULE}\n[rule.when]\nfrom=1\n", "7: unknown field 'when'"),
    "second rule": (f'[[rule]]\n{RULE}\n[[rule]]\nid="b"\nexpired=1\n', "9: unknown field 'expired'"),
    "missing": (f'[[rule]]\n{RULE}[[rule]]\nid="b"\neffect="deny"\nwho=["*"]\n', "6: 'actions' is missing"),
    "same id": (f"[[rule]]\n{RULE}\n[[rule]]\n{RULE}", "8: id 'a' is taken by line 2"),
    "id": ('[[rule]]\nid="A b"\neffect="allow"\nwho=["*"]\nactions=["*"]', "2: id must match"),
    "id type": ('[[rule]]\nid=3\neffect="allow"\nwho=["*"]\nactions=["*"]', "2: id must match"),
    "effect": ('[[rule]]\nid="a"\neffect="maybe"\nwho=["*"]\nactions=["*"]', "3: effect must be"),
    "effect case": ('[[rule]]\nid="a"\neffect="Deny"\nwho=["*"]\nactions=["*"]', "3: effect must be"),
    "who is a string": ('[[rule]]\nid="a"\neffect="deny"\nwho="*"\nactions=["*"]', "4: who must be an array"),
    "who is empty": ('[[rule]]\nid="a"\neffect="deny"\nwho=[]\nactions=["*"]', "4: who must be an array"),
    "who holds a number": (
        '[[rule]]\nid="a"\neffect="deny"\nwho=[3]\nactions=["*"]',
        "4: who must hold strings",
    ),
    "unknown user": (
        '[[rule]]\nid="a"\neffect="deny"\nwho=["user:eve"]\nactions=["*"]',
        "4: this host knows no 'user eve'",
    ),
    "unknown group, own line": (
        '[[rule]]\nid="a"\neffect="deny"\nwho=[\n "user:bob",\n "group:x",\n]\nactions=["*"]',
        "6: this host knows no 'group x'",
    ),
    "bare name": (
        '[[rule]]\nid="a"\neffect="deny"\nwho=["alice"]\nactions=["*"]',
        "4: who must be user:NAME",
    ),
    "other kind": (
        '[[rule]]\nid="a"\neffect="deny"\nwho=["role:x"]\nactions=["*"]',
        "4: who must be user:NAME",
    ),
    "no name": ('[[rule]]\nid="a"\neffect="deny"\nwho=["user:"]\nactions=["*"]', "4: who must be user:NAME"),
    "uid text": (
        '[[rule]]\nid="a"\neffect="deny"\nwho=["uid:x"]\nactions=["*"]',
        "4: 'uid:x' is not a number",
    ),
    "uid sign": (
        '[[rule]]\nid="a"\neffect="deny"\nwho=["uid:-1"]\nactions=["*"]',
        "4: 'uid:-1' is not a number",
    ),
    "uid none": (
        '[[rule]]\nid="a"\neffect="deny"\nwho=["gid:4294967295"]\nactions=["*"]',
        "4: 'gid:4294967295' is not",
    ),
    "action": (
        '[[rule]]\nid="a"\neffect="deny"\nwho=["*"]\nactions=[\n"read",\n"exec"]',
        "7: unknown action 'exec'",
    ),
    "no actions": ('[[rule]]\nid="a"\neffect="deny"\nwho=["*"]\nactions=[]', "5: actions must be an array"),
    "no such hour": (f'[[rule]]\n{RULE}hours="08:00-25:00"', "6: hours must be like"),
    "hours after the end": (f'[[rule]]\n{RULE}hours="08:00-24:30"', "6: '08:00-24:30' ends after 24:00"),
    "no time at all": (f'[[rule]]\n{RULE}hours="08:00-08:00"', "6: '08:00-08:00' is no time"),
    "hours are a number": (f"[[rule]]\n{RULE}hours=8", "6: hours must be like"),
    "unknown day": (f'[[rule]]\n{RULE}days=[\n"mon",\n"mo-fri"]', "8: 'mo-fri' is no day"),
    "days are a string": (f'[[rule]]\n{RULE}days="mon"', "6: days must be an array"),
    "unknown time zone": (f'[[rule]]\n{RULE}days=["mon"]\ntimezone="Mars/Base"', "7: this host knows no time zone"),
    "time zone is a number": (f'[[rule]]\n{RULE}days=["mon"]\ntimezone=1', "7: this host knows no time zone 1"),
    "time zone alone": (f'[[rule]]\n{RULE}timezone="UTC"', "6: timezone says nothing"),
    "a date without a time": (f"[[rule]]\n{RULE}expires=2026-12-31", "6: expires must be a date with a time"),
    "expires is text": (f'[[rule]]\n{RULE}expires="2026"', "6: expires must be a date with a time"),
    "exe allows": (f'[[rule]]\n{RULE}exe=["/bin/cp"]', "6: exe is for deny rules only"),
    "exe is relative": (
        '[[rule]]\nid="a"\neffect="deny"\nwho=["*"]\nactions=["*"]\nexe=["cp"]',
        "6: exe must hold absolute paths",
    ),
    "exe is a string": (
        '[[rule]]\nid="a"\neffect="deny"\nwho=["*"]\nactions=["*"]\nexe="/bin/cp"',
        "6: exe must be an array",
    ),
    "not TOML": ("[[rule]]\nid=\n", "2: not TOML"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_with_the_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert str(caught.value).startswith(f"p.toml:{message}")


@given(st.text())
def test_any_text_is_a_policy_or_an_error_with_a_line(text: str) -> None:
    try:
        assert read(text).rules
    except ConfigError as error:
        assert str(error).startswith("p.toml:")  # noqa: PT017


def test_a_fingerprint_tells_policies_apart() -> None:
    assert fingerprint(None) == ""
    assert fingerprint("") != fingerprint("a") != fingerprint("a ")
    assert len(fingerprint("a")) == 64


# -- For all policies ------------------------------------------------------------------------------

numbers = st.integers(0, 4)
entries = st.builds(Who, st.sampled_from([Subject.USER, Subject.GROUP]), numbers) | st.just(Who(Subject.EVERYONE))
actions = st.sampled_from(Action)
rules = st.builds(
    Rule,
    id=st.text("abc", min_size=1, max_size=3),
    effect=st.sampled_from(Effect),
    who=st.frozensets(entries, min_size=1, max_size=3),
    actions=st.frozensets(actions, min_size=1),
)
exes = st.none() | st.sampled_from(["/a", "/b"])
denying_exes = st.builds(
    Rule,
    id=st.text("abc", min_size=1, max_size=3),
    effect=st.just(Effect.DENY),
    who=st.frozensets(entries, min_size=1, max_size=3),
    actions=st.frozensets(actions, min_size=1),
    exe=st.frozensets(st.sampled_from(["/a", "/b"]), min_size=1),
)
rule_lists = st.lists(rules | denying_exes, max_size=6, unique_by=lambda rule: rule.id)
groups = st.frozensets(numbers, max_size=3)
principals = st.builds(Principal, numbers, numbers, st.none() | groups, exes)


@given(rule_lists, principals, actions, st.randoms())
def test_order_does_not_matter(listed: list[Rule], who: Principal, action: Action, random: object) -> None:
    shuffled = list(listed)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert decide(Policy(tuple(listed)), who, action, 0) == decide(Policy(tuple(shuffled)), who, action, 0)


@given(rule_lists, rules, principals, actions)
def test_any_deny_wins(listed: list[Rule], rule: Rule, who: Principal, action: Action) -> None:
    deny = Rule("zzzz", Effect.DENY, rule.who, rule.actions)
    if not decide(Policy((Rule("a", Effect.ALLOW, rule.who, rule.actions),)), who, action, 0).allowed:
        return
    assert not decide(Policy((*listed, deny)), who, action, 0).allowed


@given(rule_lists, rules, principals, actions)
def test_a_further_deny_never_allows_and_a_further_allow_never_denies(
    listed: list[Rule], rule: Rule, who: Principal, action: Action
) -> None:
    more = Rule("zzzz", rule.effect, rule.who, rule.actions)
    before = decide(Policy(tuple(listed)), who, action, 0).allowed
    after = decide(Policy((*listed, more)), who, action, 0).allowed
    assert after <= before if rule.effect is Effect.DENY else after >= before


@given(principals, actions)
def test_nothing_matches_means_denied(who: Principal, action: Action) -> None:
    assert decide(Policy(()), who, action, who.uid) == Decision(False, NO_RULE)


@given(rule_lists, principals, groups, actions)
def test_unknown_groups_never_allow_what_known_ones_would_deny(
    listed: list[Rule], who: Principal, known: frozenset[int], action: Action
) -> None:
    policy = Policy(tuple(listed))
    unknown = decide(policy, Principal(who.uid, who.gid, None, who.exe), action, 0).allowed
    assert unknown <= decide(policy, Principal(who.uid, who.gid, known, who.exe), action, 0).allowed


@given(rule_lists, principals, actions)
def test_the_sorted_rules_decide_as_the_rules_one_by_one(listed: list[Rule], who: Principal, action: Action) -> None:
    def matches(rule: Rule, unknown: bool) -> bool:
        for entry in rule.who:
            if entry in (Who(Subject.EVERYONE), Who(Subject.USER, who.uid), Who(Subject.GROUP, who.gid)):
                return True
            if entry.subject is Subject.GROUP and (unknown if who.groups is None else entry.number in who.groups):
                return True
        return False

    concerned = [rule for rule in listed if action in rule.actions]
    denying = sorted(
        rule.id
        for rule in concerned
        if rule.effect is Effect.DENY
        and matches(rule, True)
        and (not rule.exe or who.exe is None or who.exe in rule.exe)
    )
    allowing = sorted(rule.id for rule in concerned if rule.effect is Effect.ALLOW and matches(rule, False))
    if denying:
        expected = Decision(False, denying[0])
    else:
        expected = Decision(True, allowing[0]) if allowing else Decision(False, NO_RULE)
    assert decide(Policy(tuple(listed)), who, action, 0) == expected


@given(rule_lists, numbers, numbers, groups, exes, actions)
def test_what_is_not_needed_does_not_change_the_answer(
    listed: list[Rule], uid: int, gid: int, known: frozenset[int], exe: str | None, action: Action
) -> None:
    found = Policy(tuple(listed)).at(0)
    needs = found.needs(action, uid, gid)
    without = Principal(uid, gid, known if needs.groups else frozenset(), exe if needs.exe else "")
    assert found.decide(Principal(uid, gid, known, exe), action).allowed == found.decide(without, action).allowed


@given(rule_lists, principals, principals)
def test_same_for_all_means_that_nobody_is_alone_without_rights(
    listed: list[Rule], one: Principal, other: Principal
) -> None:
    found = Policy(tuple(listed)).at(0)
    if found.same_for_all:
        assert any(found.decide(one, action).allowed for action in DATA_ACTIONS) == any(
            found.decide(other, action).allowed for action in DATA_ACTIONS
        )


@pytest.mark.parametrize(
    ("action", "uid", "gid", "needed"),
    [
        (Action.READ, 1001, 1001, True),  # an allow or a deny may come from a group
        (Action.READ, 1000, 1000, True),  # allowed as a user, but contractors are denied
        (Action.READ, 1000, 60, False),  # denied by the primary group already
        (Action.POLICY, 1001, 1001, False),  # no rule allows it to anybody
    ],
)
def test_when_the_example_needs_groups(action: Action, uid: int, gid: int, needed: bool) -> None:
    assert read(EXAMPLE).at(0).needs(action, uid, gid).groups is needed


# -- Conditions ------------------------------------------------------------------------------------

TIMED = """
[[rule]]
id = "work"
effect = "allow"
who = ["*"]
actions = ["read"]
hours = "08:00-18:00"
days = ["mon-fri"]
timezone = "Europe/Berlin"
expires = 2026-12-31T18:00:00

[[rule]]
id = "no-copies"
effect = "deny"
who = ["group:contractors"]
actions = ["read"]
exe = ["/usr/bin/scp"]
"""


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("time", "allowed"),
    [
        ("2026-11-26T06:59:59", False),  # Thursday, Berlin is an hour ahead
        ("2026-11-26T07:00:00", True),
        ("2026-11-26T16:59:59", True),
        ("2026-11-26T17:00:00", False),
        ("2026-11-28T12:00:00", False),  # Saturday
        ("2026-07-02T06:00:00", True),  # summer time: two hours
        ("2026-12-31T16:59:59", True),
        ("2027-01-04T12:00:00", False),  # expired
    ],
)
def test_hours_days_and_expiry(time: str, allowed: bool) -> None:
    who = Principal(1000, 1000, frozenset(), "/bin/cat")
    assert decide(read(TIMED), who, Action.READ, 0, at(time)).allowed is allowed


@pytest.mark.parametrize(
    ("exe", "groups", "allowed"),
    [
        ("/bin/cat", frozenset({60}), True),
        ("/usr/bin/scp", frozenset({60}), False),
        ("/usr/bin/scp", frozenset(), True),
        ("/usr/bin/scp", None, False),
        (None, frozenset({60}), False),
        (None, frozenset(), True),
    ],
)
def test_an_executable_is_denied(exe: str | None, groups: frozenset[int] | None, allowed: bool) -> None:
    who = Principal(1000, 1000, groups, exe)
    assert decide(read(TIMED), who, Action.READ, 0, at("2026-11-26T12:00:00")).allowed is allowed


schedules = st.builds(
    Schedule,
    days=st.frozensets(st.integers(0, 6), min_size=1),
    start=st.integers(0, 23 * 60),
    stop=st.integers(0, 23 * 60) | st.just(1440),
    zone=st.sampled_from([UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("Australia/Lord_Howe"), ZoneInfo("Asia/Kathmandu")]),
    expires=st.none() | st.floats(1.79e9, 1.82e9),
)


@given(schedules, st.floats(1.79e9, 1.82e9), st.floats(0, 1))
def test_nothing_changes_before_the_next_change(when: Schedule, now: float, part: float) -> None:
    change = when.next_change(now)
    assert change > now
    later = now + (min(change, now + 9e5) - now) * part
    assert later >= change or when.active(later) == when.active(now)


def test_the_next_change_of_a_window_is_its_end() -> None:
    rule = read(TIMED).rules[0]
    assert rule.when.next_change(at("2026-11-26T16:59:30")) == at("2026-11-26T17:00:00")
    assert read(EXAMPLE).next_change(0) == float("inf")


# -- Who may change keys ---------------------------------------------------------------------------

ADMIN = """
[[rule]]
id = "incident"
effect = "allow"
who = ["user:alice"]
actions = ["disable", "lock"]
"""


@pytest.mark.parametrize(
    ("uid", "action", "allowed", "rule"),
    [
        (1000, Action.DISABLE, True, "incident"),
        (0, Action.DISABLE, False, NO_RULE),  # given to others: not root's any more
        (0, Action.ENABLE, True, NO_RULE),  # given to nobody: root's and the owner's
        (77, Action.POLICY, True, NO_RULE),
        (1000, Action.POLICY, False, NO_RULE),
    ],
)
def test_admin_actions_are_given_one_by_one(uid: int, action: Action, allowed: bool, rule: str) -> None:
    found = decide_admin(read(ADMIN), Principal(uid, uid, frozenset()), action, 77, 0)
    assert found == Decision(allowed, rule)


def test_admin_means_all_of_them() -> None:
    policy = read('[[rule]]\nid="a"\neffect="allow"\nwho=["*"]\nactions=["admin"]')
    assert policy.rules[0].actions == frozenset(ADMIN_ACTIONS)
    assert len(ADMIN_ACTIONS) == 7


def test_a_denied_owner_may_not() -> None:
    policy = read('[[rule]]\nid="a"\neffect="deny"\nwho=["uid:77"]\nactions=["admin"]')
    assert decide_admin(policy, Principal(77, 77, frozenset()), Action.POLICY, 77, 0) == Decision(False, "a")
    assert decide_admin(None, Principal(77, 77, frozenset()), Action.POLICY, 77, 0) == Decision(True, NO_POLICY)


@pytest.mark.parametrize(
    ("action", "person", "allowed", "rule"),
    [
        (Action.DISABLE, 1000, True, "incident"),  # she became root, by sudo
        (Action.DISABLE, 1001, False, NO_RULE),
        (Action.ENABLE, 1001, True, NO_RULE),  # given to nobody: root's, whoever became it
        (Action.LOCK, 1002, False, "not-carla"),  # root's and hers not
        (Action.ENABLE, 1002, False, "not-carla"),
    ],
)
def test_the_person_behind_the_user_counts(action: Action, person: int, allowed: bool, rule: str) -> None:
    policy = read(ADMIN + '[[rule]]\nid="not-carla"\neffect="deny"\nwho=["uid:1002"]\nactions=["admin"]')
    root, behind = Principal(0, 0, frozenset()), Principal(person, person, frozenset())
    assert decide_admin(policy, root, action, 0, 0, behind) == Decision(allowed, rule)

"""Policies: reading them, and what they decide."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmkfs.errors import ConfigError
from cmkfs.policy import (
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
    fingerprint,
    parse,
)


class Accounts:
    """Two users and two groups."""

    def uid(self, name: str) -> int | None:
        return {"alice": 1000, "bob": 1001}.get(name)

    def gid(self, name: str) -> int | None:
        return {"finance": 50, "contractors": 60}.get(name)


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
    data = frozenset(Action) - {Action.ADMIN}
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
        (Principal(1000, 1000, frozenset()), Action.ADMIN, False, NO_RULE),
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
    "second rule": (f'[[rule]]\n{RULE}\n[[rule]]\nid="b"\nexpires=1\n', "9: unknown field 'expires'"),
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
rule_lists = st.lists(rules, max_size=6, unique_by=lambda rule: rule.id)
groups = st.frozensets(numbers, max_size=3)
principals = st.builds(Principal, numbers, numbers, st.none() | groups)


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
    unknown = decide(policy, Principal(who.uid, who.gid, None), action, 0).allowed
    assert unknown <= decide(policy, Principal(who.uid, who.gid, known), action, 0).allowed


@given(rule_lists, numbers, numbers, groups, actions)
def test_groups_that_are_not_needed_do_not_change_the_answer(
    listed: list[Rule], uid: int, gid: int, known: frozenset[int], action: Action
) -> None:
    policy = Policy(tuple(listed))
    if not policy.needs_groups(action, uid, gid):
        without = decide(policy, Principal(uid, gid, None), action, 0).allowed
        assert decide(policy, Principal(uid, gid, known), action, 0).allowed == without


@given(rule_lists, numbers, numbers, actions)
def test_groups_are_needed_only_where_a_rule_names_one(listed: list[Rule], uid: int, gid: int, action: Action) -> None:
    named = {entry.subject for rule in listed if action in rule.actions for entry in rule.who}
    assert Policy(tuple(listed)).needs_groups(action, uid, gid) <= (Subject.GROUP in named)


@pytest.mark.parametrize(
    ("action", "uid", "gid", "needed"),
    [
        (Action.READ, 1001, 1001, True),  # an allow or a deny may come from a group
        (Action.READ, 1000, 1000, True),  # allowed as a user, but contractors are denied
        (Action.READ, 1000, 60, False),  # denied by the primary group already
        (Action.ADMIN, 1001, 1001, False),  # no rule allows it to anybody
    ],
)
def test_when_the_example_needs_groups(action: Action, uid: int, gid: int, needed: bool) -> None:
    assert read(EXAMPLE).needs_groups(action, uid, gid) is needed

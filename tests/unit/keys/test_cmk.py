"""The lifecycle table and the rule for names."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmkfs.errors import Disabled, Revoked, UsageError
from cmkfs.keys.cmk import MOVES, CmkMove, after, require_key_type, require_name, require_usable
from cmkfs.keys.provider import CmkState


@pytest.mark.parametrize(("state", "move"), list(product(CmkState, CmkMove)))
def test_every_move_from_every_state(state: CmkState, move: CmkMove) -> None:
    if (state, move) in MOVES:
        assert after(state, move) is MOVES[state, move]
    elif state in (CmkState.PENDING_DELETION, CmkState.DESTROYED):
        with pytest.raises(Revoked):
            after(state, move)
    else:
        with pytest.raises(UsageError):
            after(state, move)


def test_what_the_table_must_say() -> None:
    assert after(CmkState.ENABLED, CmkMove.DISABLE) is CmkState.DISABLED
    assert after(CmkState.DISABLED, CmkMove.ENABLE) is CmkState.ENABLED
    assert after(CmkState.PENDING_DELETION, CmkMove.CANCEL_DELETION) is CmkState.DISABLED
    assert not any(state is CmkState.DESTROYED for state, _ in MOVES)  # nothing comes back
    reached = {new for (_, move), new in MOVES.items() if new is CmkState.DESTROYED}
    assert reached == {CmkState.DESTROYED}
    assert [state for (state, _), new in MOVES.items() if new is CmkState.DESTROYED] == [CmkState.PENDING_DELETION]
    # An enable and an import are the only ways into use.
    ways_in = {move for (state, move), new in MOVES.items() if new is CmkState.ENABLED and state is not new}
    assert ways_in == {CmkMove.ENABLE, CmkMove.IMPORT}


def test_only_an_enabled_cmk_is_usable() -> None:
    require_usable(CmkState.ENABLED, "data")
    for state, error in (
        (CmkState.DISABLED, Disabled),
        (CmkState.PENDING_IMPORT, Disabled),
        (CmkState.PENDING_DELETION, Revoked),
        (CmkState.DESTROYED, Revoked),
    ):
        with pytest.raises(error, match="'data'") as refused:
            require_usable(state, "data")
        assert refused.value.next_step.endswith(" data")


@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True))
def test_good_names(name: str) -> None:
    assert require_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "-a", "_a", "A", "aB", "a b", "a/b", "a\n", "\na", "a\0", "ä", "٣", "x" * 65]
)
def test_bad_names(name: str) -> None:
    with pytest.raises(UsageError, match="no name for a CMK"):
        require_name(name)


def test_key_types() -> None:
    assert require_key_type("aes-256") == "aes-256"
    for other in ("rsa-4096", "aes-128", "", "AES-256"):
        with pytest.raises(UsageError, match="supports CMKs of type aes-256"):
            require_key_type(other)

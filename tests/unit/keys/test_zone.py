"""A zone's states: what may be done in each, and what ends a lease."""

import pytest
from one_zone import OneZone

from cmkfs.crypto.kdf import commitment
from cmkfs.crypto.zonekeys import ZoneKeys
from cmkfs.errors import Disabled, Locked, TokenUnavailable
from cmkfs.keys.zone import ZoneState

SECRET = b"s" * 32


def keys(made: OneZone) -> ZoneKeys:
    return ZoneKeys(made.zone.zone_id, SECRET, commitment(SECRET))


def test_a_new_zone_is_locked(made: OneZone) -> None:
    zone = made.zone
    assert zone.state is ZoneState.LOCKED
    with pytest.raises(Locked):
        zone.check()
    with pytest.raises(Locked):
        _ = zone.keys
    with pytest.raises(Locked):
        zone.keys_to_settle()


def test_serving_gives_keys(made: OneZone) -> None:
    given = keys(made)
    made.zone.begin_serving(given)
    made.zone.check()
    assert made.zone.keys is given
    assert made.zone.reason == ""
    assert not made.zone.disabled


def test_settling_refuses_everyone_but_who_stores(made: OneZone) -> None:
    given = keys(made)
    made.zone.begin_serving(given)
    made.zone.begin_settling(Disabled("CMK data is disabled"))
    with pytest.raises(Disabled):
        made.zone.check()
    with pytest.raises(Disabled):
        _ = made.zone.keys
    assert made.zone.keys_to_settle() is given
    assert made.zone.reason == "CMK data is disabled"
    assert made.zone.disabled


def test_after_the_keys_are_gone_nobody_gets_them(made: OneZone) -> None:
    made.zone.begin_serving(keys(made))
    made.zone.begin_settling(TokenUnavailable("gone"))
    made.zone.drop_keys()
    assert made.zone.state is ZoneState.LOCKED
    with pytest.raises(TokenUnavailable):
        made.zone.keys_to_settle()
    assert not made.zone.disabled


def test_each_lock_and_unlock_is_an_epoch(made: OneZone) -> None:
    """A lease of before a lock stays invalid after the unlock."""
    seen = [made.zone.epoch]
    for _ in range(2):
        made.zone.begin_serving(keys(made))
        seen.append(made.zone.epoch)
        made.zone.begin_settling(Locked("operator"))
        seen.append(made.zone.epoch)
        made.zone.drop_keys()
    assert len(set(seen)) == 5


def test_each_refusal_is_an_error_of_its_own(made: OneZone) -> None:
    """One exception object raised for many requests would collect all their tracebacks."""
    made.zone.begin_settling(Locked("an operator locked the zone"))
    assert made.zone.refusal() is not made.zone.refusal()
    assert str(made.zone.refusal()) == "an operator locked the zone"

"""The gate: who gets a key, when, and with how many calls to the token."""

import os
from contextlib import ExitStack

import pytest
import trio
import trio.testing
from contract.softhsm_token import SoftHsmToken
from contract.token_thread import ThreadTransport, TokenWorker
from one_zone import DEADLINE, OWNER, STRANGER, OneZone, new_zone, until

from cmkfs.crypto.dek import FileKey
from cmkfs.errors import (
    CmkNotFound,
    Damaged,
    Disabled,
    KeyUnavailable,
    Locked,
    PolicyDenied,
    Tampered,
    TokenUnavailable,
    UnknownFormat,
)
from cmkfs.format.header import Identity
from cmkfs.format.recipient import CmkId, CmkVersion, Recipient
from cmkfs.format.vault import VaultFile, ZoneRecord
from cmkfs.keys import newest
from cmkfs.keys.keyring import Keyring
from cmkfs.keys.policies import Policies
from cmkfs.keys.token_client import TokenClient
from cmkfs.keys.zone import Zone, ZoneState
from cmkfs.policy import NO_POLICY, Action

# -- who may ---------------------------------------------------------------------------------------


async def test_policy_decides_after_the_lock(serving: OneZone) -> None:
    keyring, zone = serving.keyring, serving.zone
    keyring.authorize(zone, OWNER, Action.READ)
    with pytest.raises(PolicyDenied, match="uid 2000 may not read under CMK data") as caught:
        keyring.authorize(zone, STRANGER, Action.READ)
    assert (caught.value.rule, caught.value.action) == (NO_POLICY, Action.READ)
    keyring.end_leases(zone, Locked("operator"))
    for who in (OWNER, STRANGER):
        with pytest.raises(Locked):
            keyring.authorize(zone, who, Action.READ)
        with pytest.raises(Locked):
            keyring.authorize_any(zone, who, (Action.READ,))


async def test_any_right_is_enough_to_look_a_name_up(serving: OneZone) -> None:
    serving.keyring.authorize_any(serving.zone, OWNER, (Action.LIST, Action.READ))
    with pytest.raises(PolicyDenied):
        serving.keyring.authorize_any(serving.zone, STRANGER, tuple(Action))


# -- file keys -------------------------------------------------------------------------------------


async def test_n_cold_files_are_n_calls_to_the_token(serving: OneZone) -> None:
    """Nothing in the daemon opens more than one file."""
    identities = [await serving.file() for _ in range(25)]
    before = serving.token.calls["unwrap"]
    for identity in [*identities, *identities]:
        assert (await serving.keyring.lease(serving.zone, identity)).valid
    assert serving.token.calls["unwrap"] - before == serving.keyring.unwraps == 25


async def test_n_who_open_one_cold_file_are_one_call(serving: OneZone) -> None:
    identity = await serving.file()
    before = serving.token.calls["unwrap"]
    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(serving.keyring.lease, serving.zone, identity)
    assert serving.token.calls["unwrap"] == before + 1


async def test_a_new_file_is_warm(serving: OneZone) -> None:
    identity, lease = await serving.keyring.new_file(serving.zone)
    before = serving.token.calls["unwrap"]
    again = await serving.keyring.lease(serving.zone, identity)
    assert again.key is lease.key
    assert serving.token.calls["unwrap"] == before


async def test_a_file_of_another_zone_is_damage(serving: OneZone) -> None:
    identity = await serving.file()
    moved = Identity(identity.file_id, os.urandom(16), identity.commitment, identity.recipients)
    before = serving.token.calls["unwrap"]
    with pytest.raises(Damaged):
        await serving.keyring.lease(serving.zone, moved)
    assert serving.token.calls["unwrap"] == before


async def test_every_edit_of_an_identity_is_refused(serving: OneZone) -> None:
    """Each byte that is not zero by format: the token, the commitment or the zone refuses it."""
    raw = (await serving.file()).to_bytes()
    used = len(raw.rstrip(b"\0"))
    for at in range(used):
        serving.forget()
        edited = raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :]
        with pytest.raises((Damaged, UnknownFormat, CmkNotFound)):
            await serving.keyring.lease(serving.zone, Identity.from_bytes(edited))


async def test_a_wrap_of_another_file_is_tampering(serving: OneZone) -> None:
    one, two = await serving.file(), await serving.file()
    mixed = Identity(one.file_id, one.zone_id, one.commitment, two.recipients)
    with pytest.raises(Tampered):
        await serving.keyring.lease(serving.zone, mixed)
    cloned = Identity(two.file_id, one.zone_id, one.commitment, one.recipients)
    with pytest.raises(Tampered):
        await serving.keyring.lease(serving.zone, cloned)


async def test_a_wrap_of_another_vault_is_tampering(serving: OneZone) -> None:
    """An edited vault file opens nothing: its hash is in every wrap."""
    identity = await serving.file()
    edited = VaultFile(serving.vault.raw + b"\n", serving.vault.vault_id)
    other = Keyring(edited, serving.keyring.token, serving.policies)
    other.add_zone(serving.zone)
    with pytest.raises(Tampered):
        await other.lease(serving.zone, identity)
    serving.zone.drop_keys()
    with pytest.raises(Tampered):
        await other.unlock(serving.zone)


async def test_a_file_under_no_cmk_of_its_zone_is_damage(serving: OneZone) -> None:
    identity = await serving.file()
    (recipient,) = identity.recipients
    version = recipient.version
    for other in (
        CmkVersion(CmkId(os.urandom(16)), version.version, version.scheme),
        CmkVersion(version.cmk_id, version.version, 3),
    ):
        foreign = Recipient(other, recipient.wrapped)
        edited = Identity(identity.file_id, identity.zone_id, identity.commitment, (foreign,))
        serving.forget()
        with pytest.raises(Damaged):
            await serving.keyring.lease(serving.zone, edited)
        both = Identity(identity.file_id, identity.zone_id, identity.commitment, (foreign, recipient))
        serving.forget()
        assert (await serving.keyring.lease(serving.zone, both)).valid


async def test_the_keys_of_many_files_come_in_one_call_damage_by_itself(serving: OneZone) -> None:
    files = [await serving.file() for _ in range(40)]
    wrong = Identity(files[3].file_id, files[3].zone_id, files[3].commitment, files[4].recipients)
    (good,) = files[5].recipients
    broken = Recipient(good.version, bytes(60))
    second = Identity(files[5].file_id, files[5].zone_id, files[5].commitment, (broken, good))
    deks = await serving.keyring.deks(serving.zone, [*files, wrong, second])
    assert [len(dek) for dek in deks[:40] if isinstance(dek, bytearray)] == [32] * 40
    assert len({bytes(dek) for dek in deks[:40] if isinstance(dek, bytearray)}) == 40
    assert isinstance(deks[40], Tampered)
    assert deks[41] == deks[5]
    serving.zone.drop_keys()
    with pytest.raises(Locked):
        await serving.keyring.deks(serving.zone, files)


async def test_a_second_recipient_opens_what_the_first_does_not(serving: OneZone) -> None:
    """A rewrap adds one before it removes the old one; either of them may be of a version that is gone."""
    identity = await serving.file()
    (good,) = identity.recipients
    version = good.version
    broken = Recipient(version, bytes(60))
    gone = Recipient(CmkVersion(version.cmk_id, 77, version.scheme), good.wrapped)
    for recipients in ((broken, good), (gone, good), (good, broken)):
        serving.forget()
        edited = Identity(identity.file_id, identity.zone_id, identity.commitment, recipients)
        assert (await serving.keyring.lease(serving.zone, edited)).valid
    serving.forget()
    with pytest.raises(Tampered):
        await serving.keyring.lease(
            serving.zone, Identity(identity.file_id, identity.zone_id, identity.commitment, (broken, gone))
        )


async def test_files_of_before_a_rotation_open_and_new_ones_use_the_newest(
    serving: OneZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newest, "_KEEP_SECONDS", -1.0)
    monkeypatch.setattr(newest, "_KEEP_TIMES_ITS_COST", 0)
    old = await serving.file()
    serving.token.rotate(serving.cmk.cmk_id)
    serving.keyring.end_leases(serving.zone, Locked("operator"))
    serving.keyring.drop_keys(serving.zone)
    await serving.keyring.unlock(serving.zone)
    new = await serving.file()
    assert [one.recipients[0].version.version for one in (old, new)] == [1, 2]
    for identity in (old, new):
        assert (await serving.keyring.lease(serving.zone, identity)).valid


# -- lock and unlock -------------------------------------------------------------------------------


async def test_a_lease_ends_with_the_lock_for_ever(serving: OneZone) -> None:
    identity = await serving.file()
    lease = await serving.keyring.lease(serving.zone, identity)
    serving.keyring.end_leases(serving.zone, Locked("operator"))
    assert not lease.valid
    assert serving.keyring.leases == 0
    with pytest.raises(Locked):
        await serving.keyring.lease(serving.zone, identity)
    serving.keyring.drop_keys(serving.zone)
    await serving.keyring.unlock(serving.zone)
    assert not lease.valid
    before = serving.token.calls["unwrap"]
    assert (await serving.keyring.lease(serving.zone, identity)).valid
    assert serving.token.calls["unwrap"] == before + 1


@pytest.mark.parametrize("unlocked_again", [False, True])
async def test_an_unwrap_that_a_lock_overtook_gives_nothing(serving: OneZone, unlocked_again: bool) -> None:
    identity = await serving.file()
    refused: list[BaseException] = []

    async def ask() -> None:
        try:
            await serving.keyring.lease(serving.zone, identity)
        except KeyUnavailable as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        serving.token.hang()
        nursery.start_soon(ask)
        await until(serving.token.entered.is_set)
        serving.keyring.end_leases(serving.zone, Locked("operator"))
        keys = serving.zone.keys_to_settle()
        serving.keyring.drop_keys(serving.zone)
        if unlocked_again:
            serving.zone.begin_serving(keys)
        serving.token.answer()
    assert len(refused) == 1
    assert serving.keyring.leases == 0


async def test_a_key_of_the_next_epoch_is_none_of_the_last(serving: OneZone) -> None:
    """Somebody who asked before a lock finds the key that was unwrapped after the unlock, and does not get it."""
    identity = await serving.file()
    refused: list[BaseException] = []

    async def ask() -> None:
        try:
            await serving.keyring.lease(serving.zone, identity)
        except KeyUnavailable as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        serving.token.hang()
        nursery.start_soon(ask)
        await until(serving.token.entered.is_set)
        nursery.start_soon(ask)  # waits for the same unwrap
        await trio.testing.wait_all_tasks_blocked()
        serving.keyring.end_leases(serving.zone, Locked("operator"))
        serving.zone.begin_serving(serving.zone.keys_to_settle())
        key = FileKey.__new__(FileKey)
        serving.keyring._caches[serving.zone.zone_id].put(identity.hash(), key)
        serving.token.answer()
    assert len(refused) == 2


async def test_unlock_needs_the_token_and_an_enabled_cmk(made: OneZone) -> None:
    made.provider.set_enabled(made.cmk.cmk_id, False)
    with pytest.raises(Disabled):
        await made.keyring.unlock(made.zone)
    assert made.zone.state is ZoneState.LOCKED
    made.provider.set_enabled(made.cmk.cmk_id, True)
    await made.keyring.unlock(made.zone)
    assert made.zone.state is ZoneState.SERVING
    before = made.token.calls["unwrap"]
    await made.keyring.unlock(made.zone)
    assert made.token.calls["unwrap"] == before


async def test_an_edited_zone_record_is_refused(made: OneZone) -> None:
    record = made.zone.record
    raw = record.to_bytes()
    for at in range(len(raw) - len(record.sealed)):
        edited = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises((Damaged, UnknownFormat, CmkNotFound)):
            await _unlock(made, edited)
    await _unlock(made, raw)


async def _unlock(made: OneZone, raw: bytes) -> None:
    record = ZoneRecord.from_bytes(raw)
    zone = Zone(record.zone_id, record, "data")
    made.keyring.add_zone(zone)
    await made.keyring.unlock(zone)


async def test_a_zone_secret_is_no_file_key_and_the_reverse(serving: OneZone) -> None:
    """The kind of a wrap is in its context."""
    zone = serving.zone
    identity = Identity(zone.zone_id, zone.zone_id, zone.record.commitment, (zone.record.recipient,))
    with pytest.raises(Tampered):
        await serving.keyring.lease(zone, identity)


async def test_a_zone_of_another_vault_is_tampering(made: OneZone) -> None:
    _, foreign = new_zone(made.provider, made.cmk)
    made.keyring.add_zone(foreign)
    with pytest.raises(Tampered):
        await made.keyring.unlock(foreign)


async def test_disabled_is_what_a_cold_file_gets_before_the_watch_sees_it(serving: OneZone) -> None:
    identity = await serving.file()
    serving.provider.set_enabled(serving.cmk.cmk_id, False)
    with pytest.raises(Disabled):
        await serving.keyring.lease(serving.zone, identity)


# -- a token that hangs ----------------------------------------------------------------------------


async def test_a_hanging_token_is_an_error_at_the_deadline(
    serving: OneZone, mock_clock: trio.testing.MockClock
) -> None:
    """Cold files fail in time, files whose keys are here go on, and afterwards everything works."""
    cold, (warm, _) = await serving.file(), await serving.keyring.new_file(serving.zone)
    serving.token.hang()
    failed: list[float] = []

    async def open_cold() -> None:
        with pytest.raises(TokenUnavailable):
            await serving.keyring.lease(serving.zone, cold)
        failed.append(trio.current_time())

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_cold)
        await until(serving.token.entered.is_set)
        assert (await serving.keyring.lease(serving.zone, warm)).valid
        mock_clock.jump(DEADLINE + 0.1)
    assert failed[0] - began == pytest.approx(DEADLINE, abs=0.2)
    assert (await serving.keyring.lease(serving.zone, warm)).valid
    serving.token.answer()
    assert (await serving.keyring.lease(serving.zone, cold)).valid


# -- a real token ----------------------------------------------------------------------------------


async def test_the_same_with_softhsm(token: SoftHsmToken) -> None:
    worker = TokenWorker()
    with ExitStack() as opened:
        provider = worker.run(lambda: opened.enter_context(token.open()), deadline=10.0)
        cmk = worker.run(provider.create, "data", "aes-256", deadline=10.0)
        vault, zone = worker.run(new_zone, provider, cmk, deadline=10.0)
        keyring = Keyring(vault, TokenClient(ThreadTransport(worker, provider), 10.0), Policies(OWNER.uid))
        keyring.add_zone(zone)
        await keyring.unlock(zone)
        identities = [(await keyring.new_file(zone))[0] for _ in range(5)]
        keyring.end_leases(zone, Locked("operator"))
        keyring.drop_keys(zone)
        await keyring.unlock(zone)
        for identity in identities:
            assert (await keyring.lease(zone, identity)).valid
        assert keyring.unwraps == 5
        keyring.end_leases(zone, Locked("operator"))
        keyring.drop_keys(zone)
        worker.run(provider.set_enabled, cmk.cmk_id, False, deadline=10.0)
        with pytest.raises(Disabled):
            await keyring.unlock(zone)
        worker.run(opened.close, deadline=10.0)
    assert worker.close(wait=5.0)

"""The contract of `KeyProvider` and `KeyAdmin`, kept by the fake and by SoftHSM alike."""

import pytest

from cmkfs.audit.chain import Head
from cmkfs.errors import (
    AlreadyExists,
    CmkNotFound,
    Disabled,
    KeyDenied,
    PinRefused,
    Tampered,
    TokenUnavailable,
    UsageError,
)
from cmkfs.keys.provider import CmkId, CmkState, CmkVersion, Scheme

from .fake_token import FakeToken
from .softhsm_token import SoftHsmToken

Token = FakeToken | SoftHsmToken

SECRET = bytes(range(32))
CONTEXT = b"cmkfs wrap v1" + bytes(130)
POLICY = '# wer darf? "ä"\n[[rule]]\nid = "staff"\n'


def make(token: Token, name: str = "data") -> CmkVersion:
    """A new CMK; returns its first version."""
    with token.open() as admin:
        return admin.newest(admin.create(name, "aes-256").cmk_id)


def test_wrap_and_unwrap(token: Token) -> None:
    version = make(token)
    with token.open(read_write=False) as provider:
        wrapped = provider.wrap(version, SECRET, context=CONTEXT)
        assert len(wrapped) == 60
        assert SECRET not in wrapped
        secret = provider.unwrap(version, wrapped, context=CONTEXT)
        assert type(secret) is bytearray  # so that it can be wiped
        assert secret == SECRET
        again = provider.wrap(version, SECRET, context=CONTEXT)
        assert again[:12] != wrapped[:12]
        assert again[12:] != wrapped[12:]


def test_what_was_wrapped_opens_in_another_session(token: Token) -> None:
    version = make(token)
    with token.open() as provider:
        wrapped = provider.wrap(version, SECRET, context=CONTEXT)
    with token.open(read_write=False) as provider:
        assert provider.unwrap(version, wrapped, context=CONTEXT) == SECRET


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_only_secrets_of_32_bytes_are_wrapped(token: Token, size: int) -> None:
    version = make(token)
    with token.open() as provider, pytest.raises(ValueError, match="32 bytes"):
        provider.wrap(version, bytes(size), context=CONTEXT)


def test_a_flipped_bit_anywhere_is_tampering(token: Token) -> None:
    version = make(token)
    with token.open(read_write=False) as provider:
        wrapped = provider.wrap(version, SECRET, context=CONTEXT)
        for at in range(len(wrapped)):
            broken = bytearray(wrapped)
            broken[at] ^= 1 << (at % 8)
            with pytest.raises(Tampered):
                provider.unwrap(version, bytes(broken), context=CONTEXT)
        assert provider.unwrap(version, wrapped, context=CONTEXT) == SECRET


@pytest.mark.parametrize("context", [b"", CONTEXT[:-1], CONTEXT + b"\0", CONTEXT[:-1] + b"\1"])
def test_another_context_is_tampering(token: Token, context: bytes) -> None:
    version = make(token)
    with token.open(read_write=False) as provider:
        wrapped = provider.wrap(version, SECRET, context=CONTEXT)
        with pytest.raises(Tampered):
            provider.unwrap(version, wrapped, context=context)


@pytest.mark.parametrize("size", [0, 1, 12, 28, 59, 61, 1000])
def test_another_length_is_tampering(token: Token, size: int) -> None:
    version = make(token)
    with token.open(read_write=False) as provider:
        wrapped = provider.wrap(version, SECRET, context=CONTEXT)
        with pytest.raises(Tampered):
            provider.unwrap(version, (wrapped * 20)[:size], context=CONTEXT)


def test_what_another_cmk_wrapped_is_tampering(token: Token) -> None:
    one, other = make(token, "one"), make(token, "other")
    with token.open(read_write=False) as provider:
        wrapped = provider.wrap(one, SECRET, context=CONTEXT)
        with pytest.raises(Tampered):
            provider.unwrap(other, wrapped, context=CONTEXT)


def test_unknown_cmks_and_versions(token: Token) -> None:
    version = make(token)
    unknown = CmkId(bytes(16))
    with token.open() as admin:
        for cmk_version in (CmkVersion(unknown, 1, Scheme.GCM), CmkVersion(version.cmk_id, 2, Scheme.GCM)):
            with pytest.raises(CmkNotFound):
                admin.wrap(cmk_version, SECRET, context=CONTEXT)
            with pytest.raises(CmkNotFound):
                admin.unwrap(cmk_version, bytes(60), context=CONTEXT)
        for look in (admin.newest, admin.canary, admin.describe, admin.policy):
            with pytest.raises(CmkNotFound):
                look(unknown)
        with pytest.raises(CmkNotFound):
            admin.find("nothing")
        with pytest.raises(CmkNotFound):
            admin.set_enabled(unknown, False)
        with pytest.raises(CmkNotFound):
            admin.set_policy(unknown, POLICY)


def test_create_describes_what_it_made(token: Token) -> None:
    with token.open() as admin:
        made = admin.create("data", "aes-256")
        assert (made.name, made.state, made.key_type) == ("data", CmkState.ENABLED, "aes-256")
        assert (made.origin, made.versions, made.enforced_by) == ("generated", (1,), "token")
        assert made.created.endswith("+00:00")
        assert len(made.cmk_id) == 16
        assert admin.newest(made.cmk_id) == CmkVersion(made.cmk_id, 1, Scheme.GCM)
    with token.open(read_write=False) as provider:
        assert provider.find("data") == made
        assert provider.describe(made.cmk_id) == made


def test_cmks_are_listed_by_name(token: Token) -> None:
    with token.open() as admin:
        assert admin.cmks() == ()
        made = [admin.create(name, "aes-256") for name in ("zoo", "a", "m.1-x_y")]
        admin.set_enabled(made[1].cmk_id, False)
        assert [(found.name, found.state.value) for found in admin.cmks()] == [
            ("a", "disabled"),
            ("m.1-x_y", "enabled"),
            ("zoo", "enabled"),
        ]


def test_a_name_exists_once(token: Token) -> None:
    version = make(token)
    with token.open() as admin:
        with pytest.raises(AlreadyExists):
            admin.create("data", "aes-256")
        assert [found.cmk_id for found in admin.cmks()] == [version.cmk_id]


def test_create_refuses_bad_names_and_other_types(token: Token) -> None:
    with token.open() as admin:
        for name in ("", "A", ".x", "a/b", "x" * 65, "ä", "a\n"):
            with pytest.raises(UsageError):
                admin.create(name, "aes-256")
        with pytest.raises(UsageError, match="supports CMKs of type aes-256"):
            admin.create("data", "rsa-4096")
        assert admin.cmks() == ()


def test_disable_and_enable(token: Token) -> None:
    version = make(token)
    with token.open() as admin:
        wrapped = admin.wrap(version, SECRET, context=CONTEXT)
        admin.canary(version.cmk_id)
        assert admin.set_enabled(version.cmk_id, False) is True
        assert admin.set_enabled(version.cmk_id, False) is False
        assert admin.describe(version.cmk_id).state is CmkState.DISABLED
        with pytest.raises(Disabled):
            admin.canary(version.cmk_id)
        with pytest.raises(Disabled):
            admin.wrap(version, SECRET, context=CONTEXT)
        with pytest.raises(Disabled) as refused:
            admin.unwrap(version, wrapped, context=CONTEXT)
        assert refused.value.next_step == "cmkfs cmk enable data"
        assert admin.newest(version.cmk_id) == version
        assert admin.set_enabled(version.cmk_id, True) is True
        assert admin.set_enabled(version.cmk_id, True) is False
        admin.canary(version.cmk_id)
        assert admin.unwrap(version, wrapped, context=CONTEXT) == SECRET


def test_disabled_beats_tampered(token: Token) -> None:
    version = make(token)
    with token.open() as admin:
        admin.set_enabled(version.cmk_id, False)
        for wrapped in (bytes(60), b""):
            with pytest.raises(Disabled):
                admin.unwrap(version, wrapped, context=CONTEXT)


def test_a_disable_touches_no_other_cmk(token: Token) -> None:
    one, other = make(token, "one"), make(token, "other")
    with token.open() as admin:
        admin.set_enabled(one.cmk_id, False)
        admin.canary(other.cmk_id)
        assert admin.find("other").state is CmkState.ENABLED


def test_a_session_that_begins_while_disabled_works_after_the_enable(token: Token) -> None:
    version = make(token)
    with token.open() as admin:
        wrapped = admin.wrap(version, SECRET, context=CONTEXT)
        admin.set_enabled(version.cmk_id, False)
    with token.open(read_write=False) as provider:
        with pytest.raises(Disabled):
            provider.canary(version.cmk_id)
        with pytest.raises(Disabled):
            provider.unwrap(version, wrapped, context=CONTEXT)
        token.elsewhere.set_enabled(version.cmk_id, True)
        provider.canary(version.cmk_id)
        assert provider.unwrap(version, wrapped, context=CONTEXT) == SECRET


def test_another_process_disables_and_enables(token: Token) -> None:
    version = make(token)
    with token.open(read_write=False) as provider:
        wrapped = provider.wrap(version, SECRET, context=CONTEXT)
        provider.canary(version.cmk_id)
        for _ in range(20):
            token.elsewhere.set_enabled(version.cmk_id, False)
            with pytest.raises(Disabled):  # the very next call
                provider.unwrap(version, wrapped, context=CONTEXT)
            with pytest.raises(Disabled):
                provider.canary(version.cmk_id)
            with pytest.raises(Disabled):
                provider.wrap(version, SECRET, context=CONTEXT)
            assert provider.describe(version.cmk_id).state is CmkState.DISABLED
            token.elsewhere.set_enabled(version.cmk_id, True)
            assert provider.unwrap(version, wrapped, context=CONTEXT) == SECRET
            provider.canary(version.cmk_id)


def test_the_canary_alone_sees_the_disable(token: Token) -> None:
    version = make(token)
    with token.open(read_write=False) as provider:
        provider.canary(version.cmk_id)
        token.elsewhere.set_enabled(version.cmk_id, False)
        with pytest.raises(Disabled):
            provider.canary(version.cmk_id)


def test_what_another_process_creates_is_found(token: Token) -> None:
    make(token)
    with token.open(read_write=False) as provider:
        token.elsewhere.create("new", "aes-256")
        assert provider.find("new").name == "new"
        with pytest.raises(AlreadyExists):
            token.elsewhere.create("new", "aes-256")


def test_policy(token: Token) -> None:
    version, other = make(token), make(token, "data2")
    with token.open() as admin:
        assert admin.policy(version.cmk_id) is None
        admin.set_policy(version.cmk_id, None)
        admin.set_policy(version.cmk_id, POLICY)
        assert admin.policy(version.cmk_id) == POLICY
        for number in range(5):
            admin.set_policy(version.cmk_id, f"# {number}\n")
        admin.set_enabled(version.cmk_id, False)
        assert admin.policy(version.cmk_id) == "# 4\n"
        assert admin.policy(other.cmk_id) is None
    with token.open(read_write=False) as provider:
        assert provider.policy(version.cmk_id) == "# 4\n"
        token.elsewhere.set_policy(version.cmk_id, "# elsewhere\n" + "# long\n" * 5000)
        assert provider.policy(version.cmk_id) == "# elsewhere\n" + "# long\n" * 5000
        token.elsewhere.set_policy(version.cmk_id, None)
        assert provider.policy(version.cmk_id) is None


def test_a_read_only_session_changes_nothing(token: Token) -> None:
    version = make(token)
    with token.open(read_write=False) as provider:
        for change in (
            lambda: provider.create("new", "aes-256"),
            lambda: provider.set_enabled(version.cmk_id, False),
            lambda: provider.set_enabled(version.cmk_id, True),
            lambda: provider.set_policy(version.cmk_id, POLICY),
            lambda: provider.set_policy(version.cmk_id, None),
        ):
            with pytest.raises(KeyDenied):
                change()
        provider.canary(version.cmk_id)
        assert provider.policy(version.cmk_id) is None


def test_a_wrong_pin_is_tried_once(token: Token) -> None:
    before = token.pin_tries
    with pytest.raises(PinRefused), token.open(pin="wrong-pin"):
        pass
    assert token.pin_tries == before + 1
    with token.open() as admin:  # the refusal locked nothing and left nothing behind
        admin.create("data", "aes-256")
    assert token.pin_tries == before + 2


def test_one_login_serves_for_life(token: Token) -> None:
    version = make(token)
    before = token.pin_tries
    with token.open(read_write=False) as provider:
        for _ in range(10):
            provider.canary(version.cmk_id)
            provider.find("data")
            provider.wrap(version, SECRET, context=CONTEXT)
    assert token.pin_tries == before + 1


def test_token_removed_and_put_back(token: Token) -> None:
    version = make(token)
    with token.open(read_write=False) as provider:
        wrapped = provider.wrap(version, SECRET, context=CONTEXT)
        provider.canary(version.cmk_id)
        token.remove()
        for call in (
            lambda: provider.canary(version.cmk_id),
            lambda: provider.unwrap(version, wrapped, context=CONTEXT),
            lambda: provider.unwrap(version, bytes(60), context=CONTEXT),
            lambda: provider.wrap(version, SECRET, context=CONTEXT),
            lambda: provider.newest(version.cmk_id),
            lambda: provider.find("data"),
            lambda: provider.describe(version.cmk_id),
            lambda: provider.policy(version.cmk_id),
            provider.token_info,
            provider.recover,
            lambda: provider.canary(version.cmk_id),
            provider.recover,
        ):
            with pytest.raises(TokenUnavailable):
                call()
        token.put_back()
        provider.recover()
        provider.canary(version.cmk_id)
        assert provider.unwrap(version, wrapped, context=CONTEXT) == SECRET


def test_recover_while_all_is_well(token: Token) -> None:
    version = make(token)
    with token.open(read_write=False) as provider:
        wrapped = provider.wrap(version, SECRET, context=CONTEXT)
        before = token.pin_tries
        provider.recover()
        assert token.pin_tries == before + 1
        provider.canary(version.cmk_id)
        assert provider.unwrap(version, wrapped, context=CONTEXT) == SECRET


def test_a_token_that_is_not_there_cannot_be_opened(token: Token) -> None:
    token.remove()
    with pytest.raises(TokenUnavailable), token.open():
        pass
    token.put_back()
    make(token)


def test_token_info(token: Token) -> None:
    with token.open(read_write=False) as provider:
        info = provider.token_info()
        assert info.initialised
        assert info.label
        assert info.serial


def test_close_is_idempotent_and_final(token: Token) -> None:
    with token.open() as provider:
        provider.close()
        provider.close()
        for call in (provider.token_info, provider.recover, provider.cmks):
            with pytest.raises(TokenUnavailable):
                call()


def head(seq: int, chain: str = "ab" * 16) -> Head:
    return Head(chain, "host:/home/a b/ä", "mount-1", seq, f"{seq:064x}", "on_failure=refuse")


def test_the_audit_key_is_one_for_all_sessions_and_signs(token: Token) -> None:
    with token.open(read_write=False) as provider:  # it is made at its first use, by a mount too
        first = provider.audit_mac(b"message")
        assert provider.audit_mac(b"message") == first
        assert provider.audit_mac(b"another") != first
        assert len(first) == 32
    with token.open() as admin:
        assert admin.audit_mac(b"message") == first
        assert admin.cmks() == ()


def test_the_audit_key_signs_while_every_cmk_is_disabled(token: Token) -> None:
    version = make(token)
    with token.open() as admin:
        before = admin.audit_mac(b"message")
        admin.set_enabled(version.cmk_id, False)
        assert admin.audit_mac(b"message") == before
    with token.open(read_write=False) as provider:
        assert provider.audit_mac(b"message") == before
        with pytest.raises(Disabled):
            provider.canary(version.cmk_id)


def test_the_token_remembers_the_newest_end_of_each_log(token: Token) -> None:
    with token.open(read_write=False) as provider:
        assert provider.audit_heads() == ()
        for number in (1, 2, 7):
            provider.remember_audit_head(head(number))
        provider.remember_audit_head(head(3, "cd" * 16))
        assert set(provider.audit_heads()) == {head(7), head(3, "cd" * 16)}
        provider.remember_audit_head(head(5))
        assert set(provider.audit_heads()) == {head(7), head(3, "cd" * 16)}
    with token.open() as admin:
        assert set(admin.audit_heads()) == {head(7), head(3, "cd" * 16)}


def test_the_audit_key_is_there_again_after_an_outage(token: Token) -> None:
    with token.open(read_write=False) as provider:
        before = provider.audit_mac(b"message")
        token.remove()
        with pytest.raises(TokenUnavailable):
            provider.audit_mac(b"message")
        token.put_back()
        provider.recover()
        assert provider.audit_mac(b"message") == before


def test_a_mount_that_used_the_audit_key_still_cannot_change_keys(token: Token) -> None:
    version = make(token)
    with token.open(read_write=False) as provider:
        provider.audit_mac(b"message")
        provider.remember_audit_head(head(1))
        with pytest.raises(KeyDenied):
            provider.set_enabled(version.cmk_id, False)  # type: ignore[attr-defined]

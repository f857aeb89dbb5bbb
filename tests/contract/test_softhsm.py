"""What only a real token can show: the token itself refuses, and survives what lies in its directory."""

import os
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pkcs11
import pytest
from pkcs11 import Attribute, KeyType, ObjectClass

from cmkfs.errors import AlreadyExists, Busy, CmkNotFound, Disabled, PinRefused, Tampered, TokenUnavailable
from cmkfs.keys import embedded, pkcs11_keys
from cmkfs.keys.pkcs11 import Pkcs11Provider
from cmkfs.keys.pkcs11_errors import CKR_ACTION_PROHIBITED, return_code
from cmkfs.keys.pkcs11_session import list_tokens, loaded
from cmkfs.keys.provider import Cmk, CmkId, CmkState, CmkVersion, Scheme

from .softhsm_token import LABEL, OtherProcess, SoftHsmToken

SECRET = bytes(range(32))
CONTEXT = b"context"


def make(token: SoftHsmToken, name: str = "data") -> CmkVersion:
    with token.open() as admin:
        return admin.newest(admin.create(name, "aes-256").cmk_id)


def keys_of(session: pkcs11.Session, found: Cmk) -> list[pkcs11.Object]:
    return list(
        session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.LABEL: f"cmkfs-cmk:{found.name}"})
    )


def add_version(admin: Pkcs11Provider, found: Cmk, version: int) -> CmkVersion:
    """A rotation, made by hand."""
    admin._generate(found.name, found.cmk_id, version)
    return CmkVersion(found.cmk_id, version, Scheme.GCM)


@pytest.mark.parametrize("read_write", [True, False])
def test_a_disabled_key_cannot_be_copied_into_an_enabled_one(softhsm: SoftHsmToken, read_write: bool) -> None:
    version = make(softhsm)
    with softhsm.open() as admin:
        admin.set_enabled(version.cmk_id, False)
    with softhsm.open(read_write=read_write) as provider:
        (key,) = keys_of(provider._session.raw(), provider.find("data"))
        for wanted in ({}, {Attribute.DECRYPT: True}, {Attribute.COPYABLE: True, Attribute.DECRYPT: True}):
            with pytest.raises(pkcs11.PKCS11Error) as refused:
                key.copy({Attribute.TOKEN: False, **wanted})
            assert return_code(refused.value) == CKR_ACTION_PROHIBITED


def test_the_token_refuses_a_read_only_session(softhsm: SoftHsmToken) -> None:
    make(softhsm)
    with softhsm.open(read_write=False) as provider:
        session = provider._session.raw()
        (key,) = keys_of(session, provider.find("data"))
        with pytest.raises(pkcs11.SessionReadOnly):
            key[Attribute.DECRYPT] = False
        with pytest.raises(pkcs11.SessionReadOnly):
            key.destroy()
        with pytest.raises(pkcs11.SessionReadOnly):
            session.generate_key(KeyType.AES, 256, store=True)


def test_a_key_never_leaves_the_token(softhsm: SoftHsmToken) -> None:
    make(softhsm)
    with softhsm.open() as admin:
        (key,) = keys_of(admin._session.raw(), admin.find("data"))
        with pytest.raises(pkcs11.AttributeSensitive):
            key[Attribute.VALUE]
        for attribute, value in (
            (Attribute.SENSITIVE, False),
            (Attribute.EXTRACTABLE, True),
            (Attribute.COPYABLE, True),
        ):
            with pytest.raises(pkcs11.PKCS11Error):
                key[attribute] = value
        assert key[Attribute.NEVER_EXTRACTABLE]
        assert key[Attribute.PRIVATE]
        assert not any(key[right] for right in (Attribute.WRAP, Attribute.UNWRAP, Attribute.SIGN, Attribute.DERIVE))


def test_all_versions_unwrap_and_are_disabled(softhsm: SoftHsmToken) -> None:
    first = make(softhsm)
    with softhsm.open() as admin:
        old = admin.wrap(first, SECRET, context=CONTEXT)
        second = add_version(admin, admin.find("data"), 2)
        add_version(admin, admin.find("data"), 10)
        assert admin.newest(first.cmk_id).version == 10
        assert admin.find("data").versions == (1, 2, 10)
        new = admin.wrap(second, SECRET, context=CONTEXT)
        admin.canary(first.cmk_id)
        assert admin.unwrap(first, old, context=CONTEXT) == admin.unwrap(second, new, context=CONTEXT) == SECRET
        with pytest.raises(Tampered):
            admin.unwrap(first, new, context=CONTEXT)
        admin.set_enabled(first.cmk_id, False)
        for version, wrapped in ((first, old), (second, new)):
            with pytest.raises(Disabled):
                admin.unwrap(version, wrapped, context=CONTEXT)
        admin.set_enabled(first.cmk_id, True)
        admin.canary(first.cmk_id)
        assert admin.unwrap(first, old, context=CONTEXT) == SECRET


@pytest.mark.parametrize("right", [Attribute.ENCRYPT, Attribute.DECRYPT])
@pytest.mark.parametrize("at", [0, 1])
def test_a_half_done_switch_serves_nothing_and_is_not_called_disabled(
    softhsm: SoftHsmToken, right: Attribute, at: int
) -> None:
    first = make(softhsm)
    with softhsm.open() as admin:
        add_version(admin, admin.find("data"), 2)
        key = sorted(keys_of(admin._session.raw(), admin.find("data")), key=lambda item: item[Attribute.ID])[at]
        key[right] = False
    with softhsm.open() as admin:
        with pytest.raises(Disabled):
            admin.canary(first.cmk_id)
        assert admin.find("data").state is CmkState.ENABLED
        assert admin.set_enabled(first.cmk_id, True) is True
        admin.canary(first.cmk_id)
        key = keys_of(admin._session.raw(), admin.find("data"))[at]
        key[right] = False
        assert admin.set_enabled(first.cmk_id, False) is True
        assert admin.find("data").state is CmkState.DISABLED


def test_other_usage_rights_go_with_a_disable_and_do_not_come_back(softhsm: SoftHsmToken) -> None:
    version = make(softhsm)
    with softhsm.open() as admin:
        (key,) = keys_of(admin._session.raw(), admin.find("data"))
        for right in (Attribute.WRAP, Attribute.UNWRAP, Attribute.SIGN):
            key[right] = True
        admin.set_enabled(version.cmk_id, False)
        assert not any(key[right] for right in (Attribute.WRAP, Attribute.UNWRAP, Attribute.SIGN, Attribute.DECRYPT))
        admin.set_enabled(version.cmk_id, True)
        assert not any(key[right] for right in (Attribute.WRAP, Attribute.UNWRAP, Attribute.SIGN))


def test_half_written_objects_are_survived(softhsm: SoftHsmToken) -> None:
    version = make(softhsm)
    with softhsm.open() as admin:
        wrapped = admin.wrap(version, SECRET, context=CONTEXT)
        admin.set_policy(version.cmk_id, "# policy\n")
    (store,) = (path for path in (softhsm.home.token_dir / "tokens").iterdir() if path.is_dir())
    whole = [path.read_bytes() for path in store.glob("*.object") if path.name != "token.object"]
    assert len(whole) == 3  # the key, its description, its policy
    for raw in whole:
        for size in range(0, len(raw), 7):
            (store / f"{uuid.uuid4()}.object").write_bytes(raw[:size])
    (store / f"{uuid.uuid4()}.object").write_bytes(os.urandom(500))
    with softhsm.open() as admin:
        assert admin.find("data").cmk_id == version.cmk_id
        assert admin.unwrap(version, wrapped, context=CONTEXT) == SECRET
        admin.canary(version.cmk_id)
        assert admin.policy(version.cmk_id) == "# policy\n"
        assert [found.name for found in admin.cmks()] == ["data"]
        admin.set_policy(version.cmk_id, "# new\n")
        assert admin.policy(version.cmk_id) == "# new\n"
        admin.create("new", "aes-256")
        assert admin.set_enabled(version.cmk_id, False)
        with pytest.raises(Disabled):
            admin.unwrap(version, wrapped, context=CONTEXT)


def test_an_older_policy_is_not_taken_for_the_newest(softhsm: SoftHsmToken) -> None:
    """Neither beside the newest nor in its place, by whoever has seen that; a new one counts again."""
    version = make(softhsm)
    with softhsm.open() as admin:
        admin.set_policy(version.cmk_id, "# old\n")
        session = admin._session.raw()
        (old,) = session.get_objects({Attribute.LABEL: "cmkfs-policy:data"})
        template = {name: old[name] for name in (Attribute.CLASS, Attribute.APPLICATION, Attribute.LABEL)}
        template |= {Attribute.VALUE: old[Attribute.VALUE], Attribute.TOKEN: True, Attribute.PRIVATE: True}
        for text in ("# newer\n", "# newest\n"):
            admin.set_policy(version.cmk_id, text)
        session.create_object(template)
        assert admin.policy(version.cmk_id) == "# newest\n"
        for item in list(session.get_objects({Attribute.LABEL: "cmkfs-policy:data"})):
            item.destroy()
        session.create_object(template)
        with pytest.raises(Tampered, match="an older one"):
            admin.policy(version.cmk_id)
        softhsm.elsewhere.set_policy(version.cmk_id, "# mended\n")  # by a process that never saw the newest
        assert admin.policy(version.cmk_id) == "# mended\n"


def test_a_policy_that_cannot_be_read_is_not_no_policy(softhsm: SoftHsmToken) -> None:
    version = make(softhsm)
    with softhsm.open() as admin:
        admin.set_policy(version.cmk_id, "# policy\n")
        session = admin._session.raw()
        (item,) = session.get_objects({Attribute.LABEL: "cmkfs-policy:data"})
        item.destroy()
        broken = {
            Attribute.CLASS: ObjectClass.DATA,
            Attribute.LABEL: "cmkfs-policy:data",
            Attribute.VALUE: b"{",
        }
        session.create_object({**broken, Attribute.APPLICATION: "cmkfs", Attribute.TOKEN: True})
        with pytest.raises(Tampered):
            admin.policy(version.cmk_id)
        admin.set_policy(version.cmk_id, "# again\n")
        assert admin.policy(version.cmk_id) == "# again\n"


def test_a_description_that_is_lost_costs_only_the_history(softhsm: SoftHsmToken) -> None:
    version = make(softhsm)
    with softhsm.open() as admin:
        (item,) = admin._session.raw().get_objects({Attribute.LABEL: "cmkfs-meta:data"})
        item.destroy()
        found = admin.find("data")
        assert (found.cmk_id, found.created, found.origin) == (version.cmk_id, "unknown", "unknown")
        assert [other.name for other in admin.cmks()] == ["data"]


def test_a_refused_pin_is_not_tried_again_even_if_it_were_right_now(softhsm: SoftHsmToken) -> None:
    changed = "another-pin"
    with softhsm.open() as provider:
        set_pin(softhsm, provider, changed)
        with pytest.raises(PinRefused):
            provider.recover()
        tries = softhsm.pin_tries
        set_pin_back(softhsm, changed)
        with pytest.raises(PinRefused):
            provider.recover()
        assert softhsm.pin_tries == tries


def set_pin(token: SoftHsmToken, provider: Pkcs11Provider, pin: str) -> None:
    provider._session.raw().set_pin(token.pin, pin)


def set_pin_back(token: SoftHsmToken, pin: str) -> None:
    library = pkcs11.lib(token.module)
    (found,) = library.get_tokens(token_label=LABEL)
    session = found.open(rw=True, user_pin=pin)
    session.set_pin(pin, token.pin)
    session.close()


def test_a_policy_is_always_there_while_another_process_replaces_it(softhsm: SoftHsmToken) -> None:
    version = make(softhsm)
    softhsm.elsewhere.set_policy(version.cmk_id, "# 0\n")
    stop = threading.Event()

    def replace() -> int:
        number = 0
        while not stop.is_set():
            number += 1
            softhsm.elsewhere.set_policy(version.cmk_id, f"# {number}\n")
        return number

    with softhsm.open(read_write=False) as provider, ThreadPoolExecutor(1) as pool:
        replaced = pool.submit(replace)
        try:
            seen = [provider.policy(version.cmk_id) for _ in range(150)]
        finally:
            stop.set()
        last = replaced.result()
        assert provider.policy(version.cmk_id) == f"# {last}\n"
    numbers = [int((text or "").removeprefix("#")) for text in seen]
    assert numbers == sorted(numbers)


def test_of_several_processes_that_create_one_name_one_wins(softhsm: SoftHsmToken) -> None:
    home = softhsm.home
    command = [softhsm.module, str(embedded.conf_file(home)), LABEL, str(embedded.pin_file(home))]
    others = [OtherProcess(command) for _ in range(3)]

    def create(other: OtherProcess, name: str) -> CmkId | None:
        try:
            return other.create(name, "aes-256")
        except (AlreadyExists, Busy):
            return None

    with ThreadPoolExecutor(len(others)) as pool:
        for round_ in range(5):
            made = list(pool.map(lambda other, name=f"n{round_}": create(other, name), others))
            winners = [cmk_id for cmk_id in made if cmk_id is not None]
            with softhsm.open(read_write=False) as provider:
                assert [provider.find(f"n{round_}").cmk_id] == winners
    for other in others:
        other.close()


def test_a_program_without_the_lock_does_not_make_a_key_vanish_for_good(softhsm: SoftHsmToken) -> None:
    version = make(softhsm)
    refused: Counter[type[Exception]] = Counter()
    with softhsm.open(read_write=False) as provider, ThreadPoolExecutor(1) as pool:
        provider.canary(version.cmk_id)
        storm = pool.submit(softhsm.elsewhere.storm, version.cmk_id, 100)
        while not storm.done():
            try:
                provider.canary(version.cmk_id)
            except (Disabled, TokenUnavailable, CmkNotFound) as error:
                refused[type(error)] += 1
        storm.result()
        assert refused[Disabled]
        provider.recover()
        provider.canary(version.cmk_id)


def test_a_key_that_was_deleted_is_not_found(softhsm: SoftHsmToken, monkeypatch: pytest.MonkeyPatch) -> None:
    version = make(softhsm)
    with softhsm.open() as admin:
        admin.canary(version.cmk_id)
        (key,) = keys_of(admin._session.raw(), admin.find("data"))
        key.destroy()
        tries = softhsm.pin_tries
        for look in (admin.canary, admin.newest, admin.describe, admin.canary):
            with pytest.raises(TokenUnavailable):  # it may have vanished only from this session's view
                look(version.cmk_id)
        assert softhsm.pin_tries == tries + 1
        monkeypatch.setattr(pkcs11_keys, "MEND_SECONDS", 0.0)
        admin._keys._mend_at.clear()
        for look in (admin.canary, admin.newest, admin.describe, admin.canary):
            with pytest.raises(CmkNotFound):
                look(version.cmk_id)
        with pytest.raises(CmkNotFound):
            admin.find("data")


def test_processes_that_log_in_at_the_same_time_find_the_token(softhsm: SoftHsmToken) -> None:
    version = make(softhsm)
    home = softhsm.home
    command = [softhsm.module, str(embedded.conf_file(home)), LABEL, str(embedded.pin_file(home))]
    with softhsm.open(read_write=False) as provider:
        for _ in range(3):
            others = [OtherProcess(command) for _ in range(4)]
            for other in others:
                provider.token_info()
                provider.canary(version.cmk_id)
                other.close()
            provider.token_info()
            provider.canary(version.cmk_id)


@pytest.mark.alone
def test_the_canary_is_cheap(softhsm: SoftHsmToken) -> None:
    version = make(softhsm)
    with softhsm.open(read_write=False) as provider:
        provider.canary(version.cmk_id)
        costs = []
        for _ in range(100):
            begun = time.perf_counter()
            provider.canary(version.cmk_id)
            costs.append(time.perf_counter() - begun)
    assert min(costs) < 200e-6  # the least: others use this machine too


def test_one_provider_per_process_and_module(softhsm: SoftHsmToken) -> None:
    with softhsm.open():
        with pytest.raises(Busy), softhsm.open():
            pass
        with pytest.raises(Busy):
            list_tokens(softhsm.module)
    with softhsm.open():
        pass


def test_another_thread_is_refused(softhsm: SoftHsmToken) -> None:
    version = make(softhsm)
    with softhsm.open() as provider, ThreadPoolExecutor(1) as pool:
        for call in (
            provider.token_info,
            provider.recover,
            lambda: provider.canary(version.cmk_id),
            provider.close,
        ):
            with pytest.raises(RuntimeError, match="another thread"):
                pool.submit(call).result()
        provider.canary(version.cmk_id)


def test_the_right_token_is_found_by_serial(softhsm: SoftHsmToken) -> None:
    conf = embedded.conf_file(softhsm.home)
    (info,) = list_tokens(softhsm.module, conf)
    assert (info.label, info.provider) == (LABEL, softhsm.module)
    right = Pkcs11Provider(softhsm.module, LABEL, info.serial, softhsm.pin, read_write=False, softhsm2_conf=conf)
    assert right.token_info() == info
    right.close()
    tries = softhsm.pin_tries
    for label, serial in ((LABEL, "0" * 16), ("other", info.serial), ("other", None)):
        with pytest.raises(TokenUnavailable, match="is not there"):
            Pkcs11Provider(softhsm.module, label, serial, softhsm.pin, read_write=False, softhsm2_conf=conf)
    assert softhsm.pin_tries == tries


def test_another_token_in_its_place_is_not_taken_for_it(softhsm: SoftHsmToken) -> None:
    with softhsm.open() as provider:
        softhsm.remove()
        tokens = softhsm.home.token_dir / "tokens"
        tokens.mkdir(mode=0o700)
        provider._session._session = None
        with pytest.raises(TokenUnavailable):
            provider.recover()
        with pytest.raises(TokenUnavailable):
            provider.token_info()
        tokens.rmdir()
        softhsm.put_back()
        provider.recover()


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_a_module_that_cannot_be_loaded(tmp_path: Path, content: bytes | None) -> None:
    module = tmp_path / "module.so"
    if content is not None:
        module.write_bytes(content)
    for _ in range(2):  # the first failure leaves nothing behind
        with pytest.raises(TokenUnavailable, match=r"module\.so"), loaded(str(module), None):
            pass

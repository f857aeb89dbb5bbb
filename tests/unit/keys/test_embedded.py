"""The embedded token: made whole or not at all, idempotent, backed up and restored."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import cmkfs
from cmkfs.errors import AlreadyExists, NotFound, TokenUnavailable, UsageError
from cmkfs.keys import embedded
from cmkfs.keys.pin import PinKind, PinSource, read_pin
from cmkfs.keys.pkcs11 import Pkcs11Provider
from cmkfs.keys.pkcs11_session import list_tokens


@dataclass(frozen=True, slots=True)
class Directory:
    """As much of a home as the embedded token needs."""

    token_dir: Path


@pytest.fixture
def home(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "state" / "token")


@pytest.fixture
def token(home: Directory) -> Directory:
    home.token_dir.parent.mkdir()
    assert embedded.init_token(home, "cmkfs") is True
    return home


def open_token(home: Directory) -> Pkcs11Provider:
    pin = read_pin(PinSource(PinKind.FILE, str(embedded.pin_file(home))), label="cmkfs")
    conf = embedded.conf_file(home)
    return Pkcs11Provider(embedded.find_module(), "cmkfs", None, pin, read_write=True, softhsm2_conf=conf)


def everything(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in directory.rglob("*")
    }


def test_init_makes_a_token_that_works(token: Directory) -> None:
    provider = open_token(token)
    assert provider.token_info().label == "cmkfs"
    provider.canary(provider.create("data", "aes-256").cmk_id)
    provider.close()


def test_init_is_private(token: Directory) -> None:
    for path in (token.token_dir, *token.token_dir.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    pin, so_pin = ((token.token_dir / name).read_text().strip() for name in ("pin", "so-pin"))
    assert len(pin) == len(so_pin) == 32
    assert pin != so_pin
    assert list(token.token_dir.parent.iterdir()) == [token.token_dir]


def test_init_leaves_the_environment_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOFTHSM2_CONF", "/as/before")
    embedded.init_token(Directory(tmp_path / "token"), "cmkfs")
    assert os.environ["SOFTHSM2_CONF"] == "/as/before"


def test_init_again_changes_nothing(token: Directory) -> None:
    before = everything(token.token_dir)
    assert embedded.init_token(token, "cmkfs") is False
    assert embedded.init_token(token, "another") is False
    assert everything(token.token_dir) == before


def test_init_in_an_empty_directory_that_is_there(home: Directory) -> None:
    home.token_dir.mkdir(parents=True)
    assert embedded.init_token(home, "cmkfs") is True


@pytest.mark.parametrize("label", ["", " x", "x ", "x" * 33, "ä" * 17])
def test_bad_labels(tmp_path: Path, label: str) -> None:
    with pytest.raises(UsageError, match="token label"):
        embedded.init_token(Directory(tmp_path / "token"), label)
    assert list(tmp_path.iterdir()) == []


def test_a_label_of_32_bytes(tmp_path: Path) -> None:
    home = Directory(tmp_path / "token")
    embedded.init_token(home, "ä" * 16)
    (info,) = list_tokens(embedded.find_module(), embedded.conf_file(home))
    assert info.label == "ä" * 16


def test_a_failed_init_leaves_nothing(home: Directory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home.token_dir.parent.mkdir()
    (tmp_path / "broken.so").write_bytes(b"no library")
    monkeypatch.setattr(embedded, "find_module", lambda: str(tmp_path / "broken.so"))
    with pytest.raises(TokenUnavailable):
        embedded.init_token(home, "cmkfs")
    assert list(home.token_dir.parent.iterdir()) == []


def test_two_processes_at_once_make_one_token(tmp_path: Path) -> None:
    code = (
        "import sys, types, pathlib; from cmkfs.keys import embedded;"
        "print(embedded.init_token(types.SimpleNamespace(token_dir=pathlib.Path(sys.argv[1])), 'cmkfs'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cmkfs.__file__).parents[1])}
    command = [sys.executable, "-c", code, str(tmp_path / "token")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(4)]
    said = sorted(process.communicate()[0].strip() for process in processes)
    assert said == ["False", "False", "False", "True"]
    assert [path.name for path in tmp_path.iterdir()] == ["token"]
    open_token(Directory(tmp_path / "token")).close()


def test_no_module(tmp_path: Path) -> None:
    with pytest.raises(TokenUnavailable, match="SoftHSM2 is not installed") as refused:
        embedded.find_module((str(tmp_path / "*" / "libsofthsm2.so"),))
    assert refused.value.next_step == "apt-get install softhsm2"


def test_backup_and_restore(token: Directory, tmp_path: Path) -> None:
    provider = open_token(token)
    version = provider.newest(provider.create("data", "aes-256").cmk_id)
    wrapped = provider.wrap(version, bytes(32), context=b"context")
    provider.set_policy(version.cmk_id, "# policy\n")
    embedded.backup(token, tmp_path / "backup")  # of a token that is in use
    provider.close()
    shutil.rmtree(token.token_dir)
    new = Directory(tmp_path / "new-token")
    embedded.restore(new, tmp_path / "backup")
    for path in (new.token_dir, *new.token_dir.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    assert str(token.token_dir) not in embedded.conf_file(new).read_text()
    provider = open_token(new)
    assert provider.unwrap(version, wrapped, context=b"context") == bytes(32)
    assert provider.policy(version.cmk_id) == "# policy\n"
    provider.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup", "new-token", "state"]


def test_backup_copies_everything(token: Directory, tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    embedded.backup(token, tmp_path / "backup")
    assert everything(tmp_path / "backup") == everything(token.token_dir)
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o700


def test_backup_overwrites_nothing(token: Directory, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    before = everything(tmp_path)
    for target in ("full", "file", "link"):
        with pytest.raises(AlreadyExists):
            embedded.backup(token, tmp_path / target)
    with pytest.raises(NotFound, match="cannot take"):
        embedded.backup(token, tmp_path / "missing" / "backup")
    assert everything(tmp_path) == before


def test_backup_of_nothing(home: Directory, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no embedded token"):
        embedded.backup(home, tmp_path / "backup")
    assert list(tmp_path.iterdir()) == []


def test_restore_overwrites_nothing(token: Directory, tmp_path: Path) -> None:
    embedded.backup(token, tmp_path / "backup")
    before = everything(token.token_dir)
    with pytest.raises(AlreadyExists):
        embedded.restore(token, tmp_path / "backup")
    assert everything(token.token_dir) == before


@pytest.mark.parametrize("lost", ["pin", "softhsm2.conf", "tokens"])
def test_restore_of_what_is_no_backup(token: Directory, tmp_path: Path, lost: str) -> None:
    backup = tmp_path / "backup"
    embedded.backup(token, backup)
    target = backup / lost
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    new = Directory(tmp_path / "new")
    with pytest.raises(NotFound, match="not a backup"):
        embedded.restore(new, backup)
    with pytest.raises(NotFound, match="not a backup"):
        embedded.restore(new, tmp_path / "missing")
    assert not new.token_dir.exists()

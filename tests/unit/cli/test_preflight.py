"""What a mount needs of the host, told apart before anything is started."""

import os
import shutil
from pathlib import Path

import pytest

from cmkfs.cli import preflight
from cmkfs.config import MountOptions
from cmkfs.errors import MountFailed
from cmkfs.fs import kernel_mount


@pytest.fixture
def as_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Not root, and an /etc/fuse.conf of our own that does not exist yet."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(preflight, "FUSE_CONF", tmp_path / "fuse.conf")
    return tmp_path / "fuse.conf"


def test_no_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernel_mount, "DEVICE", tmp_path / "fuse")
    with pytest.raises(MountFailed) as caught:
        preflight.fuse(MountOptions())
    assert caught.value.next_step == "modprobe fuse"


def test_no_fusermount3_says_what_to_install(as_user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(MountFailed) as caught:
        preflight.fuse(MountOptions())
    assert caught.value.next_step == "apt-get install fuse3"


@pytest.mark.parametrize("text", [None, "", "#user_allow_other\n", "user_allow_other_not\n"])
def test_allow_other_that_users_may_not_use(as_user: Path, text: str | None) -> None:
    if text is not None:
        as_user.write_text(text)
    with pytest.raises(MountFailed, match="allow_other") as caught:
        preflight.fuse(MountOptions(allow_other=True))
    assert "user_allow_other" in caught.value.next_step
    preflight.fuse(MountOptions())


def test_allow_other_that_users_may_use(as_user: Path) -> None:
    as_user.write_text("# comment\n  user_allow_other \n")
    preflight.fuse(MountOptions(allow_other=True))

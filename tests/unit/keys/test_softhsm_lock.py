"""The lock between processes that use one SoftHSM store."""

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest

from cmkfs.keys import softhsm_lock
from cmkfs.keys.softhsm_lock import StoreLock


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    path = tmp_path / "softhsm2.conf"
    path.write_text("")
    return path


def free_for(conf: Path, kind: int) -> bool:
    with conf.open() as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_readers_share_and_changers_do_not(conf: Path) -> None:
    lock = StoreLock(conf)
    with lock.reading():
        assert free_for(conf, fcntl.LOCK_SH)
        assert not free_for(conf, fcntl.LOCK_EX)
    with lock.changing():
        assert not free_for(conf, fcntl.LOCK_SH)
    assert free_for(conf, fcntl.LOCK_EX)
    lock.close()
    lock.close()


def test_nested_uses_end_with_the_outermost(conf: Path) -> None:
    lock = StoreLock(conf)
    with lock.changing():
        with lock.reading(), lock.changing():
            pass
        assert not free_for(conf, fcntl.LOCK_SH)
    assert free_for(conf, fcntl.LOCK_EX)
    with pytest.raises(ZeroDivisionError), lock.changing():
        raise ZeroDivisionError
    assert free_for(conf, fcntl.LOCK_EX)
    lock.close()


@pytest.mark.parametrize("use", [StoreLock.reading, StoreLock.changing])
def test_nobody_is_kept_out_for_ever(conf: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[..., object]) -> None:
    monkeypatch.setattr(softhsm_lock, "MAX_WAIT_SECONDS", 0.02)
    holder, other = StoreLock(conf), StoreLock(conf)
    with holder.changing():
        with use(other):  # type: ignore[attr-defined]
            pass
        assert not free_for(conf, fcntl.LOCK_SH)  # and the holder still has it
    holder.close()
    other.close()


def test_without_a_configuration_it_does_nothing(tmp_path: Path) -> None:
    for lock in (StoreLock(None), StoreLock(tmp_path / "missing")):
        with lock.reading():
            pass
        with lock.changing():
            pass
        lock.close()

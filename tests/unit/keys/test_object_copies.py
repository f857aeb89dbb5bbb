"""A login or a change that is cut off leaves the embedded token whole; a key that is destroyed leaves no copy."""

from pathlib import Path

import pytest

from cmkfs.keys.object_copies import heal, keep
from cmkfs.keys.softhsm_lock import StoreLock


@pytest.fixture
def token(tmp_path: Path) -> Path:
    (tmp_path / "softhsm2.conf").touch()
    made = tmp_path / "tokens" / "one"
    made.mkdir(parents=True)
    (made / "token.object").write_bytes(b"00000001token")
    (made / "key.object").write_bytes(b"00000001key")
    with StoreLock(tmp_path / "softhsm2.conf").changing():
        pass
    return made


def test_an_empty_object_is_put_back(token: Path) -> None:
    for name in ("token.object", "key.object"):
        (token / name).write_bytes(b"")
    with StoreLock(token.parents[1] / "softhsm2.conf").changing():
        assert (token / "token.object").read_bytes() == b"00000001token"
        assert (token / "key.object").read_bytes() == b"00000001key"


def test_a_change_is_copied_and_a_count_alone_is_not(token: Path) -> None:
    (token / "key.object").write_bytes(b"00000002KEY")
    (token / "token.object").write_bytes(b"00000009token")
    keep(token.parents[1])
    assert (token / "key.object.whole").read_bytes() == b"00000002KEY"
    assert (token / "token.object.whole").read_bytes() == b"00000001token"


def test_what_is_destroyed_has_no_copy(token: Path) -> None:
    (token / "key.object").unlink()
    with StoreLock(token.parents[1] / "softhsm2.conf").changing():
        pass
    assert sorted(path.name for path in token.iterdir()) == ["token.object", "token.object.whole"]


def test_an_object_that_was_never_whole_stays_as_it_is(token: Path) -> None:
    (token / "new.object").write_bytes(b"")
    heal(token.parents[1])
    keep(token.parents[1])
    assert not (token / "new.object.whole").exists()

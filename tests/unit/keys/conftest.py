"""One zone for each test, or a real token."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from contract.softhsm_token import SoftHsmToken
from one_zone import OneZone, one_zone


@pytest.fixture
def made() -> Iterator[OneZone]:
    """A zone that is locked."""
    with one_zone() as found:
        yield found


@pytest.fixture
async def serving(made: OneZone) -> OneZone:
    """A zone that serves."""
    await made.keyring.unlock(made.zone)
    return made


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftHsmToken]:
    """A new SoftHSM token."""
    made = SoftHsmToken(tmp_path, monkeypatch)
    yield made
    made.close()

"""The tokens that the suite runs on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .fake_token import FakeToken
from .softhsm_token import SoftHsmToken


@pytest.fixture
def softhsm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftHsmToken]:
    """A new SoftHSM token."""
    token = SoftHsmToken(tmp_path, monkeypatch)
    yield token
    token.close()


@pytest.fixture(params=["fake", "softhsm"])
def token(request: pytest.FixtureRequest) -> FakeToken | SoftHsmToken:
    """Each token in turn: the same suite for all."""
    if request.param == "fake":
        return FakeToken()
    found: SoftHsmToken = request.getfixturevalue("softhsm")
    return found

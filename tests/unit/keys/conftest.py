"""One zone for each test."""

from collections.abc import Iterator

import pytest
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

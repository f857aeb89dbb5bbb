"""A vault for each test, with a token in memory and no kernel."""

from collections.abc import Iterator

import pytest
from model.harness import Harness, scratch


@pytest.fixture
def harness() -> Iterator[Harness]:
    """A new vault; the test mounts it."""
    with scratch() as directory:
        yield Harness(directory)


@pytest.fixture
async def mounted(harness: Harness) -> Harness:
    """A new vault, mounted; whoever ends the mount in the test mounts it again or not."""
    await harness.mount()
    return harness

"""A vault for each test, with a token in memory and no kernel, and processes that read for `check`."""

from collections.abc import Iterator

import pytest
from model.harness import Harness, scratch

from cmkfs.maintenance.readers import Readers


@pytest.fixture(scope="module")
def readers() -> Iterator[Readers]:
    with Readers() as made:
        yield made


@pytest.fixture
def harness() -> Iterator[Harness]:
    """A new vault; the test mounts it."""
    with scratch() as directory:
        yield Harness(directory)

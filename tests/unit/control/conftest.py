"""A home whose path is short enough for a socket, whatever pytest calls its directories."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmkfs.home import Home


@pytest.fixture
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="cmkfs-") as base:
        yield Home.from_environment({"CMKFS_HOME": str(Path(base) / "h")})

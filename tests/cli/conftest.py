"""Homes for commands to run in."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runner import Cmkfs


@pytest.fixture
def cmkfs() -> Iterator[Cmkfs]:
    """A home that does not exist yet, at a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="cmkfs-") as base:
        work = Path(base).resolve() / "w"
        work.mkdir()
        yield Cmkfs(work.parent / "h", work)


@pytest.fixture(scope="module")
def with_token() -> Iterator[Cmkfs]:
    """A home with a token and the CMK `main`; shared by a module's tests, which leave both as they were."""
    with tempfile.TemporaryDirectory(prefix="cmkfs-") as base:
        work = Path(base).resolve() / "w"
        work.mkdir()
        run = Cmkfs(work.parent / "h", work)
        run.ok("token", "init")
        run.ok("cmk", "create", "main")
        yield run

"""Shared by all tests. Its place makes the packages below `tests` importable by each other (pytest's `prepend`).

Under CI Hypothesis tries the same examples each time, so that a run tells about the change and not about its luck;
everywhere else it goes on searching, as the campaign scripts do.

`scripts/test` runs the files of tests side by side in several processes (pytest-xdist). A test marked `alone`
waits until no other test runs, and while it runs none begins: it measures time, or changes what the whole machine
shares.
"""

import fcntl
import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_configure(config: pytest.Config) -> None:
    """Several processes need an order and locks; one process needs neither."""
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(SideBySide())


class SideBySide:
    """What each process of a run does that is divided among several."""

    ORDER = ("mount", "cli", "model", "contract", "vectors", "unit")
    """The slow ones first, so that no process ends long after the others."""

    def __init__(self) -> None:
        # Any two files do that all processes of the run have.
        self._tests = os.open(__file__, os.O_RDONLY)
        self._gate = os.open(Path(__file__).with_name("mount") / "conftest.py", os.O_RDONLY)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Directory by directory."""
        top = Path(__file__).parent
        items.sort(key=lambda item: self.ORDER.index(item.path.relative_to(top).parts[0]))

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # outside of what measures how long a test takes
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """A readers/writer lock among the processes: any number of tests at once, or one that is alone."""
        alone = item.get_closest_marker("alone") is not None
        fcntl.flock(self._gate, fcntl.LOCK_EX)  # else those that share could keep one that is alone waiting for ever
        fcntl.flock(self._tests, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(self._gate, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:
            fcntl.flock(self._tests, fcntl.LOCK_UN)

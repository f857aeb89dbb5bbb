"""Something to see on a terminal, nothing on a pipe."""

import io
import sys
import threading

import pytest

from cmkfs.cli import progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_how_far_it_is_and_a_clean_line_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, asked = Terminal(), threading.Event()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "FIRST_AFTER", 0.0)
    monkeypatch.setattr(progress, "EVERY", 0.0)

    def describe() -> str:
        asked.set()
        return "5 bytes left"

    with progress.shown(describe):
        assert asked.wait(10)
    assert "cmkfs: 5 bytes left" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_a_pipe_sees_nothing_and_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    monkeypatch.setattr(progress, "FIRST_AFTER", 0.0)
    before = threading.active_count()
    with progress.shown(lambda: pytest.fail("asked")):
        assert threading.active_count() == before
    assert pipe.getvalue() == ""

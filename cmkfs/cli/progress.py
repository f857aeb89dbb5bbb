"""A line on the terminal while something takes long; nothing on a pipe."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FIRST_AFTER = 1.0
"""Seconds that something may take before a line appears."""

EVERY = 0.5
"""Seconds between two looks at how far it is."""

_CLEAR = "\r\x1b[K"


@contextmanager
def shown(describe: Callable[[], str]) -> Iterator[None]:
    """Show what `describe` says, from another thread, until the block ends."""
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_show, args=(describe, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _show(describe: Callable[[], str], done: threading.Event) -> None:
    wait = FIRST_AFTER
    written = False
    while not done.wait(wait):
        sys.stderr.write(f"{_CLEAR}cmkfs: {describe()}")
        sys.stderr.flush()
        written, wait = True, EVERY
    if written:
        sys.stderr.write(_CLEAR)
        sys.stderr.flush()

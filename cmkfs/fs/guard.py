"""The edge to the kernel: whatever goes wrong in a handler becomes an errno, never the end of the mount.

An exception that is neither an `OSError` nor a `CmkfsError` is a bug: it is logged with its traceback, counted
in `bugs` (a test fails if that is not 0 at its end), and the caller gets EIO.
"""

import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, Protocol, TypeVar, runtime_checkable

import pyfuse3

from cmkfs.errors import CmkfsError, Damaged

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class Bugs:
    """How many handlers ended in an exception nobody expected."""

    count = 0


class Requests:
    """How many requests came from the kernel: what it answers from its caches costs none."""

    count = 0


@runtime_checkable
class Reporter(Protocol):
    """Handlers that tell the audit log what a program was refused, and what does not authenticate."""

    def report(self, event: str, args: tuple[object, ...], error: CmkfsError) -> None:
        """`args` are those of the request. Never raises."""
        ...


def guarded(handler: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Make a handler raise `FUSEError` only."""

    @functools.wraps(handler)
    async def edge(*args: P.args, **kwargs: P.kwargs) -> R:
        Requests.count += 1
        try:
            return await handler(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except OSError as error:
            if error.errno is None:
                raise _bug(handler.__name__) from error
            raise pyfuse3.FUSEError(error.errno) from error
        except CmkfsError as error:
            if isinstance(error, Damaged):
                log.error("%s: %s", handler.__name__, error)
            if args and isinstance(args[0], Reporter):
                args[0].report(handler.__name__, args[1:], error)
            raise pyfuse3.FUSEError(error.errno) from error
        except Exception as error:
            raise _bug(handler.__name__) from error

    return edge


def _bug(name: str) -> pyfuse3.FUSEError:
    Bugs.count += 1
    log.exception("bug in handler %s", name)
    return pyfuse3.FUSEError(Damaged.errno)

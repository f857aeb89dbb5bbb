"""The edge to the kernel: whatever goes wrong in a handler becomes an errno, never the end of the mount.

An exception that is neither an `OSError` nor a `CmkfsError` is a bug: it is logged with its traceback, counted
in `bugs` (a test fails if that is not 0 at its end), and the caller gets EIO.
"""

import functools
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, ParamSpec, Protocol, TypeVar, runtime_checkable

import pyfuse3

from cmkfs.errors import CmkfsError, Damaged

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class Bugs:
    """How many handlers ended in an exception nobody expected."""

    count = 0


class Requests:
    """How many requests came from the kernel, by handler: what it answers from its caches costs none.

    `quiet` of them are no use of the data: a monitor that asks for free space keeps no mount awake.
    """

    by_kind: ClassVar[Counter[str]] = Counter()
    quiet = 0

    @classmethod
    def total(cls) -> int:
        """All of them."""
        return cls.by_kind.total()


@runtime_checkable
class Reporter(Protocol):
    """Handlers that tell the audit log what a program was refused, and what does not authenticate."""

    def report(self, event: str, args: tuple[object, ...], error: CmkfsError) -> None:
        """`args` are those of the request. Never raises."""
        ...


def guarded(handler: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Make a handler raise `FUSEError` only."""

    name, by_kind = handler.__name__, Requests.by_kind

    @functools.wraps(handler)
    async def edge(*args: P.args, **kwargs: P.kwargs) -> R:
        by_kind[name] += 1
        try:
            return await handler(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except OSError as error:
            if error.errno is None:
                raise _bug(name) from error
            raise pyfuse3.FUSEError(error.errno) from error
        except CmkfsError as error:
            if isinstance(error, Damaged):
                log.error("%s: %s", name, error)
            if args and isinstance(args[0], Reporter):
                args[0].report(name, args[1:], error)
            raise pyfuse3.FUSEError(error.errno) from error
        except Exception as error:
            raise _bug(name) from error

    return edge


def _bug(name: str) -> pyfuse3.FUSEError:
    Bugs.count += 1
    log.exception("bug in handler %s", name)
    return pyfuse3.FUSEError(Damaged.errno)

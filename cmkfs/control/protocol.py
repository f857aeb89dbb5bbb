"""The words of the control socket: JSON lines over a Unix stream socket. Pure: bytes to values and back.

A request is `{"op": str, …arguments}`, an answer `{"ok": {…}}` or
`{"error": {"class": str, "message": str, "hint": str}}`. Bytes of paths that are not UTF-8 travel as lone
surrogates (PEP 383), which JSON escapes carry.
"""

import json
from dataclasses import dataclass
from typing import cast

from cmkfs import errors
from cmkfs.errors import CmkfsError, UsageError

REQUEST_LIMIT = 64 * 1024
"""Bytes of the longest request, its newline included."""

ANSWER_LIMIT = 16 * 1024 * 1024
"""Bytes of the longest answer; the list of open files of a busy mount is long."""

AWAIT_EXIT = "await_exit"
"""The one operation that the server itself answers: when the mount has ended."""

Fields = dict[str, object]


@dataclass(frozen=True, slots=True)
class Request:
    """One request: the operation and its arguments."""

    op: str
    arguments: Fields

    def to_line(self) -> bytes:
        """The request as it is sent. Raises UsageError if it is too long."""
        line = _line({"op": self.op, **self.arguments})
        if len(line) > REQUEST_LIMIT:
            raise UsageError(f"a request of {len(line)} bytes is too long for a control socket")
        return line

    @classmethod
    def from_line(cls, line: bytes) -> "Request":
        """Raises UsageError if `line` is no request."""
        fields = _fields(line)
        op = fields.pop("op", None) if fields is not None else None
        if fields is None or not isinstance(op, str):
            raise UsageError('a request is one line of JSON: {"op": …}')
        return cls(op, fields)


@dataclass(frozen=True, slots=True)
class Peer:
    """Who sent a request, as the kernel knows it (SO_PEERCRED of unix(7))."""

    uid: int
    gid: int
    pid: int


PEER = "by"
"""The argument that the server sets, whatever the request says: the `Peer`."""


def answer_line(fields: Fields) -> bytes:
    """A good answer, as it is sent."""
    return _line({"ok": fields})


def error_line(error: CmkfsError) -> bytes:
    """A bad answer, as it is sent."""
    return _line({"error": error_fields(error)})


def result_of(line: bytes) -> Fields:
    """What an answer says. Raises the error that it carries, CmkfsError if it is no answer."""
    fields = _fields(line) or {}
    good, bad = fields.get("ok"), fields.get("error")
    if isinstance(bad, dict):
        raise error_from(bad)
    if not isinstance(good, dict):
        raise CmkfsError(f"the mount gave an answer that is none: {line[:80]!r}")
    return cast(Fields, good)


def error_fields(error: CmkfsError) -> Fields:
    """An error as JSON can carry it."""
    return {"class": type(error).__name__, "message": str(error), "hint": error.next_step}


def error_from(fields: Fields) -> CmkfsError:
    """The error that `error_fields` took apart; a class of another version of cmkfs becomes CmkfsError."""
    found = getattr(errors, str(fields.get("class")), None)
    kind = found if isinstance(found, type) and issubclass(found, CmkfsError) else CmkfsError
    return kind(str(fields.get("message", "")), hint=str(fields.get("hint", "")))


def _line(fields: Fields) -> bytes:
    return json.dumps(fields, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _fields(line: bytes) -> Fields | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return cast(Fields, value) if isinstance(value, dict) else None

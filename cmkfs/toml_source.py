"""TOML that remembers its lines, so that an error can name the line of the offending key. Pure: no I/O."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass

from cmkfs.errors import ConfigError

Key = tuple[str | int, ...]
"""A path into the document, table names and array indices: `("rule", 0, "who")`."""


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed document with its text; `name` is what errors call it."""

    name: str
    text: str
    data: dict[str, object]

    def line(self, key: Key, *, containing: str = "") -> int:
        """The line, from 1, of the statement that sets `key`, or of the nearest table around it.

        `containing` picks the line inside a statement of several lines, such as a long array.
        """
        # Reversed, so that of several statements under one table the first is the one that is named.
        statements = dict(reversed(list(_statements(self.text))))
        for length in range(len(key), 0, -1):
            found = statements.get(key[:length])
            if found is not None:
                return _line_within(self.text, found, containing)
        return 1

    def error(self, key: Key, message: str, *, containing: str = "", hint: str = "") -> ConfigError:
        """A ConfigError that begins with `name:line:`."""
        return ConfigError(f"{self.name}:{self.line(key, containing=containing)}: {message}", hint=hint)


def read(text: str, *, name: str) -> Source:
    """Parse TOML. Raises ConfigError with the line that does not parse."""
    try:
        return Source(name, text, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"^(.*) \(at line (\d+), column \d+\)$", str(error), re.DOTALL)
        message, line = (place[1], int(place[2])) if place else (str(error), text.count("\n") + 1)
        raise ConfigError(f"{name}:{line}: not TOML: {message}") from error


def _line_within(text: str, span: tuple[int, int], containing: str) -> int:
    first, end = span
    if containing:
        for number, line in enumerate(text.split("\n")[first - 1 : end - 1], start=first):
            if containing in line:
                return number
    return first


def _statements(text: str) -> Iterator[tuple[Key, tuple[int, int]]]:
    """Every key that a statement sets, with the statement's first line and the line after its last."""
    lines = text.split("\n")
    table: Key = ()
    counts: dict[Key, int] = {}
    first = 0
    while first < len(lines):
        end, parsed = _statement(lines, first)
        if lines[first].lstrip().startswith("["):
            table = _header(parsed, counts)
            yield table, (first + 1, end + 1)
        else:
            for key in _keys(parsed):
                yield table + key, (first + 1, end + 1)
        first = end


def _statement(lines: list[str], first: int) -> tuple[int, dict[str, object]]:
    """The shortest run of lines from `first` that parses: it is not complete before its last line."""
    for end in range(first + 1, len(lines) + 1):
        try:
            return end, tomllib.loads("\n".join(lines[first:end]))
        except tomllib.TOMLDecodeError:
            continue
    return len(lines), {}


def _header(parsed: dict[str, object], counts: dict[Key, int]) -> Key:
    """The path of `[a.b]` or `[[a.b]]`; in an array of tables it goes through the last element."""
    path: Key = ()
    inner: object = parsed
    while isinstance(inner, dict) and inner:
        name, inner = next(iter(inner.items()))
        path += (name,)
        if isinstance(inner, list):
            counts[path] = counts.get(path, -1) + 1
            return (*path, counts[path])
        if path in counts:
            path += (counts[path],)
    return path


def _keys(parsed: object) -> Iterator[Key]:
    if isinstance(parsed, dict):
        for name, inner in parsed.items():
            yield (name,)
            for rest in _keys(inner):
                yield (name, *rest)

"""How the commands print: facts to stdout as text or as one JSON document, everything else to stderr."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from io import TextIOWrapper

from cmkfs.errors import EXIT_DAMAGED, EXIT_DENIED, EXIT_FAILED, EXIT_KEY, EXIT_NOT_FOUND, EXIT_USAGE

_FIRST_WINS = (EXIT_USAGE, EXIT_NOT_FOUND, EXIT_KEY, EXIT_DENIED, EXIT_DAMAGED)


def use_any_bytes() -> None:
    """Let stdout and stderr carry paths that are not UTF-8, byte for byte."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")


def facts(document: Mapping[str, object], lines: Iterable[str], *, as_json: bool) -> None:
    """Print what a command found or did: the document with `--json`, else the lines."""
    if as_json:
        print(json.dumps(document))
    else:
        for line in lines:
            print(printable(line))


def complain(message: str, *, hint: str = "") -> None:
    """One line to stderr: `cmkfs: MESSAGE; try: HINT`."""
    print(f"cmkfs: {printable(message)}" + (f"; try: {printable(hint)}" if hint else ""), file=sys.stderr)


def said(error: OSError) -> str:
    """How an OSError is said: of which file, and what."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def note(message: str) -> None:
    """One line to stderr that is no error."""
    print(f"cmkfs: {printable(message)}", file=sys.stderr)


def printable(text: str) -> str:
    """`text` with control characters escaped: the name of a file must not steer the terminal."""
    return "".join(
        character if character >= " " and not "\x7f" <= character <= "\x9f" else repr(character)[1:-1]
        for character in text
    )


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, columns aligned; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def combined(codes: Iterable[int]) -> int:
    """One exit code for several things done: the first of 2, 7, 4, 3, 5 that occurs, else the worst."""
    occurred = set(codes)
    for code in _FIRST_WINS:
        if code in occurred:
            return code
    return EXIT_FAILED if EXIT_FAILED in occurred else max(occurred, default=0)

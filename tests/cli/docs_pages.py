"""The documents as data: code blocks, links, commands, and the examples that are run.

A console block is run if it stands right below `<!-- tested: NAME -->`; all blocks of one NAME in a page are one
session. `<!-- prepare: NAME` … `-->` holds commands of the same session that readers do not see.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]

_BLOCK = re.compile(r"(?P<mark><!-- tested: (?P<name>\w+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)```\n", re.DOTALL)
_PREPARE = re.compile(r"<!-- prepare: (?P<name>\w+)\n(?P<text>.*?)-->\n", re.DOTALL)
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_CODE = re.compile(r"(?<!`)`(?P<text>[^`\n]+)`(?!`)")
_HEADING = re.compile(r"^#+ +(?P<text>.*)$", re.MULTILINE)
_FILE = re.compile(r"(?:cmkfs|docs|scripts|tests)/[\w./-]*\w|\.ci/\w+")


@dataclass(frozen=True)
class Step:
    """One command of an example, what it must print (None: anything), and where it stands."""

    command: str
    expected: tuple[str, ...] | None
    where: str


@dataclass
class Scenario:
    """The commands of one NAME in a page, in the order of the page."""

    page: Path
    name: str
    steps: list[Step] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"{self.page.name}:{self.name}"


def shown(path: Path) -> str:
    """A page's path as it is written in the documents."""
    return str(path.relative_to(REPOSITORY))


def blocks(page: Path, *languages: str) -> Iterator[tuple[str, int]]:
    """The text of each fenced block in one of `languages`, and its first line's number."""
    text = page.read_text()
    for match in _BLOCK.finditer(text):
        if match["language"] in languages:
            yield match["text"], text.count("\n", 0, match.start("text")) + 1


def scenarios() -> list[Scenario]:
    """Every example that is to be run, of all pages."""
    found: dict[tuple[Path, str], Scenario] = {}
    for page in PAGES:
        text = page.read_text()
        matches = [match for match in (*_BLOCK.finditer(text), *_PREPARE.finditer(text)) if match["name"]]
        for match in sorted(matches, key=lambda match: match.start()):
            scenario = found.setdefault((page, match["name"]), Scenario(page, match["name"]))
            line = text.count("\n", 0, match.start("text")) + 1
            read = _hidden if match.re is _PREPARE else _console
            scenario.steps += read(match["text"], shown(page), line)
    return list(found.values())


def _hidden(text: str, page: str, line: int) -> list[Step]:
    return [Step(command, None, f"{page}:{line + at}") for at, command in enumerate(text.splitlines())]


def _console(text: str, page: str, line: int) -> list[Step]:
    """Commands begin with `$ `, go on with `> `; everything else is output of the one before."""
    found: list[tuple[list[str], list[str], int]] = []
    for at, row in enumerate(text.splitlines()):
        if row.startswith("$ "):
            found.append(([row[2:]], [], line + at))
        elif not found:
            raise ValueError(f"{page}:{line + at}: output before the first command")
        elif row == ">" or (row.startswith("> ") and not found[-1][1]):
            found[-1][0].append(row[2:])
        else:
            found[-1][1].append(row)
    return [Step("\n".join(lines), tuple(output), f"{page}:{at}") for lines, output, at in found]


def commands(page: Path) -> Iterator[tuple[str, int]]:
    """Every `cmkfs …` that a page mentions, in blocks and in running text, with its line."""
    text = page.read_text()
    for block, line in blocks(page, "console", "sh", "console"):
        for at, row in enumerate(block.splitlines()):
            for piece in re.split(r"&&|\|\||[;|]", row.removeprefix("$ ")):
                if re.match(r"\s*(?:python -m )?cmkfs ", piece):
                    yield piece.strip().removeprefix("python -m "), line + at
    # In tables a pipe is written \| within code, too.
    prose = _BLOCK.sub(lambda match: "\n" * match[0].count("\n"), text)
    for match in _CODE.finditer(prose):
        if match["text"].startswith("cmkfs "):
            yield match["text"].replace("\\|", "|"), text.count("\n", 0, match.start()) + 1


def words(command: str) -> list[str]:
    """The words of a command as it stands in a page: without brackets, redirections and what follows them."""
    bare = re.sub(r"[\[\]()]", " ", command)
    bare = re.split(r"\s[0-9]?[<>]|;", bare)[0]
    return shlex.split(bare)[1:]


def links(page: Path) -> Iterator[tuple[str, int]]:
    """Every target of a link, with its line."""
    text = page.read_text()
    for match in _LINK.finditer(text):
        yield match["target"], text.count("\n", 0, match.start()) + 1


def named_files(page: Path) -> Iterator[tuple[str, int]]:
    """Every file of the repository that a page names in code."""
    text = page.read_text()
    for match in _CODE.finditer(text):
        if _FILE.fullmatch(match["text"].split(" ")[0]):
            yield match["text"].split(" ")[0], text.count("\n", 0, match.start()) + 1


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = _HEADING.findall(_BLOCK.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table_rows(page: Path, heading: str) -> list[list[str]]:
    """The rows of the first table whose heading row begins with `heading`, cells without blanks around them."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.read_text().splitlines()]
    first = next(at for at, row in enumerate(rows) if row[0] == heading and len(row) > 1)
    found = []
    for row in rows[first + 2 :]:
        if len(row) < 2:
            break
        found.append(row)
    return found

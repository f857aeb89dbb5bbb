"""The documents are true: their examples run, their commands, options, files and links exist, their tables agree."""

import errno
import inspect
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import docs_pages
import pytest
from docs_pages import PAGES, REPOSITORY, Scenario, Step, shown

from cmkfs import config, errors, policyfile
from cmkfs.cli.app import cli

SECONDS = 120
ALICE = "/home/alice"
"""What the documents call the directory that an example runs in."""
HOMES = (".local/share/cmkfs", "new")
"""The values of CMKFS_HOME in the examples, below the home directory."""
SCENARIOS = docs_pages.scenarios()


# -- Examples --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """An empty home directory with `cmkfs` in its PATH."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "PATH": f"{self.home}/.bin:{os.environ['PATH']}",
            "CMKFS_HOME": f"{self.home}/{HOMES[0]}",
            "PYTHONPATH": str(REPOSITORY),
            "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
            "COLUMNS": "80",
            "LC_ALL": "C.UTF-8",
        }

    def run(self, script: str) -> str:
        """What a shell script prints, standard error included."""
        ran = subprocess.run(
            ["bash", "-c", script],
            env=self.environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
            check=False,
            text=True,
        )
        return ran.stdout.replace(str(self.home), ALICE)

    def mounts(self) -> list[str]:
        """What is mounted in the home directory."""
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return [point for point in points if point.startswith(f"{self.home}/")]

    def clear(self) -> None:
        """Unmount everything; what is mounted is not looked into, for it may be locked."""
        for point in self.mounts():
            for home in HOMES:
                self.run(f"CMKFS_HOME=~/{home} cmkfs umount {point}")
            if point in self.mounts():
                subprocess.run(["umount", "--lazy", point], check=True)


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Taken down whatever happened on it."""
    with tempfile.TemporaryDirectory(prefix="cmkfs-docs-") as base:
        made = Stage(Path(base).resolve())
        (made.home / ".local/share").mkdir(parents=True)
        program = made.home / ".bin/cmkfs"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m cmkfs "$@"\n')
        program.chmod(0o755)
        try:
            yield made
        finally:
            made.clear()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.label)
def test_an_example_prints_what_the_page_says(stage: Stage, scenario: Scenario) -> None:
    marked = [f"printf '\\036\\n'\n{step.command}" for step in scenario.steps]
    output = stage.run("\n".join(["exec 2>&1", *marked])).split("\x1e\n")
    assert output[0] == ""
    assert len(output) == len(scenario.steps) + 1, f"ended early:\n{output[-1]}"
    for step, printed in zip(scenario.steps, output[1:], strict=True):
        assert not _difference(step, printed), f"{step.where}: $ {step.command}\n{_difference(step, printed)}"


def _difference(step: Step, printed: str) -> str:
    """What is wrong with the output of a step, empty if nothing; `…` in the page stands for anything in a line."""
    if step.expected is None:
        return ""
    lines = printed.splitlines()
    patterns = [re.escape(line).replace("…", ".*") for line in step.expected]
    same = len(lines) == len(patterns) and all(map(re.fullmatch, patterns, lines))
    return "" if same else "the page says:\n" + "\n".join(step.expected) + f"\nprinted was:\n{printed}"


def test_the_first_screen_and_the_runbooks_are_run() -> None:
    labels = {scenario.label for scenario in SCENARIOS}
    assert {"README.md:demo", "README.md:first", "README.md:backup", "README.md:help"} <= labels
    assert {"operations.md:crash", "policy.md:policy"} <= labels
    runbooks = ("incident", "leak", "laptop", "leaver", "token", "audit")
    assert {f"operations.md:{name}" for name in runbooks} <= labels


# -- Commands --------------------------------------------------------------------------------------


def leaves(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    """Every command, as words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from leaves(command, *path, name)
        else:
            yield (*path, name)


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that `words` mean, and the words behind it."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-") and words[0] != "COMMAND":
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, f"no command {words[0]!r}"
        command, words = found, words[1:]
    return command, words


def options_of(command: click.Command) -> set[str]:
    named = {name for parameter in command.params if isinstance(parameter, click.Option) for name in parameter.opts}
    return named | {"-h", "--help"}


def test_every_command_and_option_in_the_documents_exists() -> None:
    count = 0
    for page in PAGES:
        for text, line in docs_pages.commands(page):
            count += 1
            try:
                command, rest = resolve(docs_pages.words(text))
                for word in rest:
                    assert not word.startswith("-") or word in options_of(command), f"no option {word}"
            except AssertionError as error:
                raise AssertionError(f"{shown(page)}:{line}: `{text}`: {error}") from error
    assert count > 50


def test_every_mount_option_in_the_documents_exists() -> None:
    for page in PAGES:
        for options in re.findall(r"-o ([a-z_]+(?:=[\w.]+)?(?:,[a-z_]+(?:=[\w.]+)?)*)", page.read_text()):
            words = re.sub(r"=(SEC|MIN)\b", "=1", options).removeprefix("remount")  # which is mount(8)'s
            assert config.parse_options([words], defaults=config.MountOptions()), options


def test_the_readme_lists_every_command() -> None:
    listed = set()
    for row in docs_pages.table_rows(REPOSITORY / "README.md", "command"):
        words = docs_pages.words(row[0].strip("`"))
        listed.add(next(path for path in leaves(cli) if tuple(words[: len(path)]) == path))
    assert listed == set(leaves(cli))


# -- Tables ----------------------------------------------------------------------------------------


def test_the_readme_lists_every_exit_code() -> None:
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    listed = {int(row[0]) for row in docs_pages.table_rows(REPOSITORY / "README.md", "exit code")}
    assert listed == codes | {0}


def test_the_table_of_errors_is_that_of_the_code() -> None:
    expected = []
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.CmkfsError) and kind is not errors.CmkfsError:
            meaning = (kind.__doc__ or "").splitlines()[0]
            hint = f"`{kind.hint}`" if kind.hint.startswith("cmkfs ") else kind.hint
            expected.append([f"`{name}`", f"`{errno.errorcode[kind.errno]}`", str(kind.exit_code), meaning, hint])
    wanted = "\n".join(f"| {' | '.join(row)} |" for row in expected)
    assert docs_pages.table_rows(REPOSITORY / "docs/errors.md", "error") == expected, f"it should be:\n{wanted}"


def test_messages_that_the_runbook_quotes_are_in_the_code() -> None:
    code = "\n".join(path.read_text() for path in sorted((REPOSITORY / "cmkfs").rglob("*.py")))
    rows = docs_pages.table_rows(REPOSITORY / "docs/operations.md", "log")
    for message in (quoted for row in rows for quoted in re.findall(r"`([^`]+)`", row[0])):
        for piece in message.split("…"):
            assert piece.strip() in code, message


# -- Files, links, values --------------------------------------------------------------------------


class AnyAccounts:
    """A host that knows every user and group."""

    def uid(self, name: str) -> int | None:
        return 1000

    def gid(self, name: str) -> int | None:
        return 1000


def test_policies_and_configurations_in_the_documents_are_valid() -> None:
    policies = configurations = 0
    for page in PAGES:
        for text, line in docs_pages.blocks(page, "toml"):
            name = f"{shown(page)}:{line}"
            if "[[rule]]" in text:
                policyfile.parse(text, name=name, accounts=AnyAccounts())
                policies += 1
            else:
                config.parse(text, name=name)
                configurations += 1
    assert policies
    assert configurations


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, line in docs_pages.links(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{shown(page)}:{line}: {target}"
        assert there.is_relative_to(REPOSITORY), f"{shown(page)}:{line}: {target}"
        assert not anchor or anchor in docs_pages.anchors(there), f"{shown(page)}:{line}: no heading for {target}"


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_file_that_is_named_exists(page: Path) -> None:
    for name, line in docs_pages.named_files(page):
        assert (REPOSITORY / name).exists(), f"{shown(page)}:{line}: {name}"

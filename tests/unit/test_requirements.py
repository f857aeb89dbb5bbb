"""What is installed is what was looked at: each package by version and hash."""

import re
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
LOCK = (REPOSITORY / "requirements.lock").read_text()
PIN = re.compile(r"^([a-z0-9._-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE)


def test_every_package_has_a_version_and_hashes() -> None:
    pins = PIN.findall(LOCK)
    assert len(pins) == LOCK.count("==") > 30
    assert len({name for name, _, _ in pins}) == len(pins)


def test_what_cmkfs_and_its_tests_need_is_pinned() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    names = {re.split(r"[^a-z0-9-]", one)[0] for one in wanted}
    assert names <= {name for name, _, _ in PIN.findall(LOCK)}


def test_installation_takes_nothing_else() -> None:
    assert "--require-hashes" in (REPOSITORY / "scripts/install").read_text()

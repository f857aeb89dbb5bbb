"""The short form of `scripts/fuzz`: every parser is fed, and takes what it should take."""

import json
import subprocess
from pathlib import Path

import pytest
from campaign.parsers import TARGETS, attempt

REPOSITORY = Path(__file__).parents[2]
REFUSED = {"block"}
"""What no input can be good for: nobody has the key."""


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_takes_its_example_and_refuses_the_rest(name: str) -> None:
    target = TARGETS[name]
    assert any(attempt(target, example) for example in target.examples) == (name not in REFUSED)
    for example in target.examples:
        for at in range(0, len(example), max(1, len(example) // 64)):
            attempt(target, example[:at])
            attempt(target, example[:at] + bytes([example[at] ^ 0x55]) + example[at + 1 :])


def test_the_fuzzer_tries_and_keeps(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    command = [str(REPOSITORY / ".venv/bin/python"), "-P", str(REPOSITORY / "scripts/fuzz"), "--keep", str(kept)]
    subprocess.run([*command, "--count", "500", "--seed", "1", "--target", "header"], check=True, capture_output=True)
    (run,) = json.loads(kept.read_text())
    assert run["tried"] == 500
    assert run["failures"] == []

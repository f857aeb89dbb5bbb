"""The short forms of the campaigns on real mounts; `docs/reliability.md` has what the long ones found."""

import json
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

REPOSITORY = Path(__file__).parents[2]


def run(tmp_path: Path, script: str, *arguments: str) -> list[dict[str, object]]:
    """Run a script; what it kept."""
    kept = tmp_path / "kept.json"
    command = [str(REPOSITORY / ".venv/bin/python"), str(REPOSITORY / "scripts" / script), "--keep", str(kept)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    runs: list[dict[str, object]] = json.loads(kept.read_text())
    assert not any(run["failures"] for run in runs)
    return runs


def test_several_processes_see_what_they_see_on_ext4(tmp_path: Path) -> None:
    (result,) = run(tmp_path, "model", "--count", "1", "--seed", "4")
    assert result["tried"] == 9_000


def test_a_mount_that_is_used_for_long_does_not_grow(tmp_path: Path) -> None:
    plot = tmp_path / "soak.svg"
    (result,) = run(tmp_path, "soak", "--count", "2", "--seed", "5", "--every", "0.3", "--plot", str(plot))
    assert result["tried"] == 18_000
    drawn = ElementTree.parse(plot).getroot()
    curves = drawn.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(curves) == 3
    assert all(len(curve.attrib["points"].split()) > 10 for curve in curves)


def test_fio_and_stress_ng_find_what_they_find_on_ext4(tmp_path: Path) -> None:
    short = ["--count", "2", "--size", "1m", "--stressor", "dentry", "--stressor", "flock", "--stress-seconds", "1"]
    stress, fio = run(tmp_path, "stress", "--seed", "3", *short)
    assert (stress["outcomes"], fio["tried"]) == ({"passed": 2}, 2)


def test_a_killed_daemon_loses_nothing(tmp_path: Path) -> None:
    (result,) = run(tmp_path, "kill", "--count", "2", "--seed", "1")
    assert result["tried"] == 2


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_power_cut_loses_nothing_that_was_synced(tmp_path: Path, kind: str) -> None:
    (result,) = run(tmp_path, "power-cut", "--fs", kind, "--count", "1", "--seed", "3")
    assert result["tried"] == 1


def test_a_disk_that_fails_harms_nothing_that_was_stored(tmp_path: Path) -> None:
    (result,) = run(tmp_path, "faults", "--count", "5", "--seed", "1")
    assert int(str(result["tried"])) > 10

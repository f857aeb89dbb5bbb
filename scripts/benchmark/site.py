"""A home, a vault and a mount for the benchmarks that need no peers."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"
PER_DIRECTORY = 1000


@dataclass(frozen=True)
class Site:
    """Everything below `top`; `environment` is for its processes."""

    top: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """CMKFS_HOME."""
        return self.top / "home"

    @property
    def point(self) -> Path:
        """Where the vault is mounted."""
        return self.top / "mnt"

    def cmkfs(self, *arguments: str | Path) -> str:
        """Run a command that must succeed; what it prints."""
        words = [str(PYTHON), "-P", "-m", "cmkfs", *map(str, arguments)]
        environment = {**os.environ, **self.environment, "CMKFS_HOME": str(self.home), "PYTHONPATH": str(ROOT)}
        return subprocess.check_output(words, env=environment, stdin=subprocess.DEVNULL, text=True)

    def prepare(self) -> None:
        """Token, CMK and vault."""
        self.point.mkdir()
        self.cmkfs("token", "init")
        self.cmkfs("cmk", "create", "bench")
        self.cmkfs("init", self.top / "vault", "--cmk", "bench")

    @contextmanager
    def mounted(self, *options: str) -> Iterator[Path]:
        """The vault, mounted for a block."""
        self.cmkfs("mount", *(word for option in options for word in ("-o", option)), self.top / "vault", self.point)
        try:
            yield self.point
        finally:
            self.cmkfs("umount", self.point)

    def status(self) -> dict[str, Any]:
        """Of the mount."""
        found: dict[str, Any] = json.loads(self.cmkfs("status", self.point, "--json"))
        return found["mounts"][0] if "mounts" in found else found


def paths(point: Path, files: int) -> list[Path]:
    """Names for so many files, and the directories that they are in."""
    for number in range(0, files, PER_DIRECTORY):
        (point / str(number // PER_DIRECTORY)).mkdir(exist_ok=True)
    return [point / str(number // PER_DIRECTORY) / str(number) for number in range(files)]

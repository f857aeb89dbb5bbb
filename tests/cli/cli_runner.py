"""Running `cmkfs` as people do: in a process of its own, with a home of its own."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 60


@dataclass(frozen=True)
class Ran:
    """How a command ended; `home` and `work` in its output are written as HOME and WORK."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Cmkfs:
    """Runs commands with one `CMKFS_HOME`, in the directory `work`."""

    home: Path
    work: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "CMKFS_HOME": str(self.home),
            "PYTHONPATH": str(REPOSITORY),
            "COLUMNS": "100",
        }

    def __call__(self, *arguments: str, **environment: str) -> Ran:
        """Run `cmkfs ARGUMENTS`."""
        ran = subprocess.run(
            [sys.executable, "-m", "cmkfs", *arguments],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=self.work,
            env={**self.environment, **environment},
        )
        return Ran(ran.returncode, self._neutral(ran.stdout), self._neutral(ran.stderr))

    def ok(self, *arguments: str) -> str:
        """Run a command that must succeed; its output."""
        ran = self(*arguments)
        assert ran.code == 0, ran
        return ran.out

    def _neutral(self, text: str) -> str:
        return text.replace(str(self.home), "HOME").replace(str(self.work), "WORK")

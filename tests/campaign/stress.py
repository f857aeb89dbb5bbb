"""Data under fio's own verification, and the stressors of stress-ng's class `filesystem`, on a mount."""

import itertools
import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from real_mount import SHARED_CMK, Site

PATTERNS = ("write", "randwrite", "randrw", "readwrite")
BLOCK_SIZES = ("512", "3000", "4k", "5k-70k", "64k", "1m")
ENGINES = ("psync", "libaio", "mmap", "io_uring")
NOT_OF_A_DIRECTORY = {"bind-mount", "binderfs", "eventfd", "ioprio", "procfs"}
"""Stressors of the class that make nothing in the directory that they are given."""
LONGEST_SECONDS = 60
"""How long a stressor may go on after its time."""
SKIPPED = (3, 4)
"""Exit codes of stress-ng: no resources, not implemented (stress-ng(1))."""


class Wrong(AssertionError):
    """Data is not what was written, or a stressor fails on the mount alone."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run of fio: four processes, each with a file of its own."""

    pattern: str
    block_size: str
    engine: str
    direct: bool
    seed: int

    def __str__(self) -> str:
        return f"{self.pattern} {self.block_size} {self.engine}{' direct' if self.direct else ''}"

    @property
    def makes_sense(self) -> bool:
        """Direct I/O is aligned to 512 bytes, and there is none of a mapping."""
        return (not self.direct or (self.aligned and self.engine != "mmap")) and (self.aligned or self.engine != "mmap")

    @property
    def aligned(self) -> bool:
        """Blocks of one size, a power of two; of others fio cannot say a second time where they were, on ext4 too."""
        return self.block_size not in ("3000", "5k-70k")

    def arguments(self, top: Path, size: str) -> list[str]:
        """Of fio(1). Every block has a checksum and its place in it, and is read again when all are written."""
        block = f"--bsrange={self.block_size}" if "-" in self.block_size else f"--bs={self.block_size}"
        return [
            *("fio", "--name=job", f"--directory={top}", "--numjobs=4", f"--size={size}", f"--rw={self.pattern}"),
            *(block, f"--ioengine={self.engine}", f"--direct={int(self.direct)}", f"--randseed={self.seed}"),
            *("--iodepth=8", "--verify=crc32c", "--verify_fatal=1", "--end_fsync=1", "--group_reporting"),
            *("--fallocate=none", "--output-format=json", "--thread=0"),
        ]


def jobs(seed: int) -> Iterator[Job]:
    """All that make sense, in an order of this seed."""
    each = itertools.product(PATTERNS, BLOCK_SIZES, ENGINES, (False, True))
    known = [job for job in (Job(*one, seed) for one in each) if job.makes_sense]
    random.Random(seed).shuffle(known)
    yield from known


class Stress:
    """A mount, and a plain directory beside it."""

    def __init__(self, top: Path, size: str) -> None:
        top.chmod(0o755)
        self.site = Site(top)
        self.site.prepare()
        self.mount = self.site.mount(self.site.new_vault(SHARED_CMK), "allow_other", "suid", "dev")
        self.plain = self.site.directory("plain")
        self.size = size
        self.mib = 0.0

    def fio(self, job: Job) -> str:
        """Write, verify, remount, verify what a job of writing only has left. Raises Wrong."""
        top = self.mount.path / "fio"
        if top.exists():  # of a job that failed
            shutil.rmtree(top)
        top.mkdir()
        arguments = job.arguments(top, self.size)
        self._fio(job, arguments)
        if job.pattern in ("write", "randwrite") and job.aligned:
            self.mount.again()
            self._fio(job, [*arguments, "--verify_only"])
        for left in top.iterdir():
            left.unlink()
        top.rmdir()
        self.mount.check()
        return "direct" if job.direct else "buffered"

    def _fio(self, job: Job, arguments: list[str]) -> None:
        done = subprocess.run(arguments, capture_output=True, text=True, cwd=self.plain, check=False)
        if done.returncode:
            raise Wrong(f"fio {job}: {(done.stderr + done.stdout)[-600:]}")
        found = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
        if found["error"]:
            raise Wrong(f"fio {job}: error {found['error']}")
        self.mib += (found["read"]["io_bytes"] + found["write"]["io_bytes"]) / (1 << 20)

    def stressor(self, name: str, seconds: int) -> str:
        """One stressor, first on the plain directory. Raises Wrong if only the mount fails it."""
        plain = self._stressor(name, self.plain, seconds)
        mounted = self._stressor(name, self.mount.path, seconds)
        self.mount.check()
        if mounted.returncode == plain.returncode:
            return "skipped" if plain.returncode in SKIPPED else "passed" if not plain.returncode else "fails on both"
        if mounted.returncode in SKIPPED:
            return "not on a mount"
        raise Wrong(f"stress-ng {name}: {plain.returncode} on ext4, {mounted.returncode}: {mounted.stderr[-900:]}")

    def _stressor(self, name: str, top: Path, seconds: int) -> "subprocess.CompletedProcess[str]":
        # stress-ng makes its files in the directory that it is started in.
        command = ["stress-ng", f"--{name}", "2", "--timeout", str(seconds), "--temp-path", str(top), "--verify"]
        most = seconds + LONGEST_SECONDS
        return subprocess.run(command, capture_output=True, text=True, cwd=self.plain, timeout=most, check=False)


def stressors() -> list[str]:
    """The class `filesystem`, as this stress-ng has it."""
    told = subprocess.run(["stress-ng", "--class", "filesystem?"], capture_output=True, text=True, check=False)
    names = (told.stdout + told.stderr).partition("stressors:")[2].split()
    return [name for name in names if name not in NOT_OF_A_DIRECTORY]

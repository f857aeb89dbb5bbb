"""A fresh filesystem of a kind, on a loop device or in memory, gone at the end whatever happens."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KINDS = ("ext4", "xfs", "btrfs", "tmpfs")
_MKFS = {
    "ext4": ("mkfs.ext4", "-q", "-b", "4096"),
    "xfs": ("mkfs.xfs", "-q"),
    "btrfs": ("mkfs.btrfs", "-q"),
}
_SIZE = 320 << 20  # xfs wants 300 MB
_SIZE_FOR_TESTS = 3 << 30
BACKING = os.environ.get("CMKFS_TEST_BACKING", "")
"""The kind of filesystem that vaults of the tests are made on, if not where all else is: `scripts/backings`."""


@contextmanager
def loop_disk(top: Path, kind: str, size: int = _SIZE) -> Iterator[Path]:
    """A new filesystem of 320 MiB, or `size` bytes, mounted at `top/disk` and open to everyone who may reach it."""
    where = top / "disk"
    where.mkdir()
    if kind == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "cmkfs-test", str(where)], check=True)
    else:
        image = top / "image"
        image.touch()
        os.truncate(image, size)
        subprocess.run([*_MKFS[kind], str(image)], check=True)
        subprocess.run(["mount", "-t", kind, "-o", "loop", str(image), str(where)], check=True)
    try:
        where.chmod(0o755)
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


@contextmanager
def disk_for_vaults(top: Path) -> Iterator[Path]:
    """A new filesystem of the kind BACKING, or `top` itself."""
    if not BACKING:
        yield top
        return
    own = top / "vaults"
    own.mkdir(mode=0o755)
    with loop_disk(own, BACKING, _SIZE_FOR_TESTS) as disk:
        disk.chmod(0o1777)
        yield disk

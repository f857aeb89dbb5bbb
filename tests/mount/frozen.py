"""Frozen vaults (`tests/vaults/vN`): kept as archives, since version control has no attributes, owners or fifos."""

import hashlib
import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

from real_mount import Site

VAULTS = Path(__file__).resolve().parents[1] / "vaults"
_ATTRIBUTES = ("--xattrs", "--xattrs-include=*", "--numeric-owner")

Described = dict[str, dict[str, Any]]


def pack(directory: Path, archive: Path) -> None:
    """Everything that lies in a directory, with attributes, owners, times and holes."""
    command = ["tar", "-C", str(directory.parent), "--sparse", "--sort=name", *_ATTRIBUTES, "-czf", str(archive)]
    subprocess.run([*command, directory.name], check=True)


def unpack(archive: Path, where: Path) -> Path:
    """The directory that was packed, in `where`."""
    subprocess.run(["tar", "-C", str(where), *_ATTRIBUTES, "-xpzf", str(archive)], check=True)
    return where / archive.name.removesuffix(".tar.gz")


def describe(top: Path) -> Described:
    """All that lies below `top` by its path: everything that a program can see but for ctime, atime and numbers."""
    found: Described = {}
    for directory, names, files in os.walk(top):
        for name in [*names, *files]:
            path = Path(directory, name)
            found[os.fsencode(path.relative_to(top)).hex()] = _describe(path)
    return found


def _describe(path: Path) -> dict[str, Any]:
    status = path.lstat()
    kind = stat.S_IFMT(status.st_mode)
    seen: dict[str, Any] = {"mode": status.st_mode, "owner": [status.st_uid, status.st_gid]}
    attributes = sorted(os.listxattr(path, follow_symlinks=False))
    if attributes:
        seen["xattrs"] = {name: os.getxattr(path, name, follow_symlinks=False).hex() for name in attributes}
    if kind == stat.S_IFREG:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        seen |= {"size": status.st_size, "sha256": digest, "links": status.st_nlink}
    elif kind == stat.S_IFLNK:
        seen["target"] = os.fsencode(os.readlink(path)).hex()
    if kind != stat.S_IFLNK:
        seen["mtime"] = status.st_mtime_ns
    return seen


def expected(version: Path, archive: str) -> Described:
    """What was described when the archive was made."""
    described: Described = json.loads((version / f"{archive}.json").read_text())
    return described


def frozen_site(version: Path, top: Path) -> Site:
    """A home whose token is the frozen one."""
    site = Site(top)
    site.cmkfs("token", "restore", str(unpack(version / "token.tar.gz", top)))
    return site

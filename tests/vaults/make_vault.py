#!/usr/bin/env python3
"""Make a frozen vault: `make_vault.py DIRECTORY`. Done once for each version of the format, when it is frozen.

`token.tar.gz` is a `cmkfs token backup`. `vault.tar.gz` has some of everything and was unmounted; `unclosed.tar.gz`
is a vault whose daemon was killed. What programs saw in them is in the .json of the same name. Needs root.
"""

import json
import os
import random
import stat
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "mount")]

from calls import CAP_NET_RAW, CAPABILITY  # noqa: E402
from frozen import describe, pack  # noqa: E402
from real_mount import OWN_CMK, SHARED_CMK, RealMount, Site  # noqa: E402

DISABLED_CMK = "disabled"
NAMES = [b"n" * length for length in (1, 16, 17, 160, 161, 255)]
ODD = bytes(range(1, 47)) + bytes(range(48, 256))  # every byte that a name may hold
SIZES = (0, 1, 4047, 4048, 4049, 4096, 8096, 100_000)
ACL = bytes.fromhex("0200000001000600ffffffff02000600e803000004000400ffffffff10000600ffffffff20000400ffffffff")
"""user::rw-, user:1000:rw-, group::r--, mask::rw-, other::r--: acl(5), linux/posix_acl_xattr.h."""


def content(length: int) -> bytes:
    """Bytes that compress to nothing and are the same each time."""
    return random.Random(length).randbytes(length)


def fill(top: Path) -> None:
    """Some of everything."""
    for size in SIZES:
        (top / f"size-{size}").write_bytes(content(size))
    names = top / "names"
    names.mkdir()
    for name in [*NAMES, ODD]:
        (names / os.fsdecode(name)).write_bytes(b"%d\n" % len(name))
    deep = top / ("d" * 200) / "below"
    deep.mkdir(parents=True)
    (deep / "file").write_text("deep\n")
    holes(top / "holes", 3)
    holes(top / "many-holes", 30)
    nodes(top / "nodes")
    attributes(top)
    (top / "removed").write_bytes(content(5000))
    (top / "removed").unlink()


def holes(path: Path, count: int) -> None:
    """A block of data behind each hole."""
    with path.open("wb") as file:
        for number in range(count):
            file.seek((number + 1) * 5 * 4048)
            file.write(b"%04048d" % number)
        file.truncate((count + 1) * 5 * 4048 + 7)


def nodes(top: Path) -> None:
    """Links and special files."""
    top.mkdir()
    (top / "one").write_bytes(content(10))
    os.link(top / "one", top / "two")
    for length in (1, 718, 719, 4095):
        os.symlink("t" * length, top / f"to-{length}")
    os.symlink("one", top / "good")
    os.mkfifo(top / "fifo")
    os.mknod(top / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))


def attributes(top: Path) -> None:
    """What inodes carry beside content."""
    path = top / "attributes"
    path.write_bytes(b"#!/bin/true\n")
    os.setxattr(path, "user.empty", b"")
    os.setxattr(path, "user." + "x" * 250, content(2000))
    os.setxattr(path, "trusted.one", b"1")
    os.setxattr(path, "system.posix_acl_access", ACL)
    os.setxattr(top / "names", "user.colour", b"red")
    os.setxattr(top / "nodes/to-1", "trusted.link", b"2", follow_symlinks=False)
    program = top / "program"
    program.write_bytes(content(100))
    os.chown(program, 1234, 4321)
    program.chmod(0o6755)
    os.setxattr(program, CAPABILITY, CAP_NET_RAW)
    os.utime(program, ns=(1, 1_234_567_890_123_456_789))


def vault(site: Site, out: Path) -> None:
    """The vault that was unmounted: three zones below the root, one in another, one under a disabled CMK."""
    mount = site.mount(site.new_vault(OWN_CMK), "acl", "suid", "dev")
    try:
        fill(mount.path)
        for zone, cmk in (("zone", SHARED_CMK), ("zone/inner", OWN_CMK), ("shut", DISABLED_CMK)):
            site.cmkfs("zone", "create", str(mount.path / zone), "--cmk", cmk)
            (mount.path / zone / "file").write_bytes(content(6000))
        mount.again()
        write_down(mount, out / "vault.json")
    finally:
        mount.clear()
    site.cmkfs("cmk", "disable", DISABLED_CMK)
    mount.vault.rename(site.top / "vault")
    pack(site.top / "vault", out / "vault.tar.gz")


def unclosed(site: Site, out: Path) -> None:
    """The vault whose daemon was killed, with a dirty file and one that was not written to its end."""
    mount = site.mount(site.new_vault(OWN_CMK))
    try:
        (mount.path / "settled").write_bytes(content(5000))
        mount.again()
        with (mount.path / "settled").open("r+b") as file:
            file.seek(4000)
            file.write(b"new" * 1000)
            os.fsync(file.fileno())
        (mount.path / "dirty").write_bytes(content(9000))
        write_down(mount, out / "unclosed.json")
        mount.kill()
    finally:
        mount.clear()
    mount.vault.rename(site.top / "unclosed")
    pack(site.top / "unclosed", out / "unclosed.tar.gz")


def write_down(mount: RealMount, where: Path) -> None:
    """What programs see now."""
    where.write_text(json.dumps(describe(mount.path), indent=1, sort_keys=True) + "\n")


def main() -> None:
    """Refuses a directory that is there: what is frozen is not made again."""
    out = Path(sys.argv[1]).resolve()
    out.mkdir()
    os.umask(0o022)
    with tempfile.TemporaryDirectory(prefix="cmkfs-frozen-") as top:
        site = Site(Path(top))
        site.prepare()
        site.cmkfs("cmk", "create", DISABLED_CMK)
        vault(site, out)
        unclosed(site, out)
        site.cmkfs("token", "backup", f"{top}/token")
        pack(Path(top) / "token", out / "token.tar.gz")


if __name__ == "__main__":
    main()

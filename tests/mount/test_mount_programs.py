"""Programs that people use: cp, rsync, tar, git, SQLite, a C build. What they make is what they make elsewhere."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from real_mount import RealMount
from side_by_side import SideBySide

SECONDS = 120.0


def run(*command: str | Path, cwd: Path | None = None, environment: Mapping[str, str] = MappingProxyType({})) -> str:
    """What the command prints; it must end with 0."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C", "HOME": "/nonexistent", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECONDS,
        check=False,
    )
    said = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}: {said}"
    return said


@pytest.fixture
def source(plain: Path) -> Path:
    """A tree with everything that a tree can have."""
    top = plain / "source"
    (top / "d" / "e" / ("l" * 255)).mkdir(parents=True)
    (top / "empty").touch()
    (top / "file").write_bytes(os.urandom(300_000))
    (top / "d" / "e" / ("l" * 255) / "deep").write_bytes(b"deep")
    (top / "d" / "small").write_bytes(b"x" * 4049)
    (top / os.fsdecode(b"bytes \xff\xfe\n")).write_bytes(b"named")
    os.link(top / "file", top / "d" / "hard")
    (top / "relative").symlink_to("d/small")
    (top / "dangling").symlink_to("tt/" * 1000)
    os.mkfifo(top / "fifo")
    os.mknod(top / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(top / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    with (top / "sparse").open("wb") as sparse:
        sparse.write(b"begin")
        sparse.truncate(50_000_000)
    for number, path in enumerate(sorted(top.rglob("*"))):
        if not path.is_symlink():
            path.chmod(0o640 + number % 8)
            os.chown(path, 1000 + number, 2000 + number)
    for path in (top / "file", top / "d", top / "empty"):
        os.setxattr(path, "user.colour", os.fsencode(path.name))
    (top / "empty").chmod(0o4755)
    (top / "d" / "e").chmod(0o2775)
    for number, path in enumerate(sorted(top.rglob("*"), reverse=True)):
        os.utime(path, ns=(10**18 + number, 10**18 + 123_456_789 * number), follow_symlinks=False)
    return top


def test_cp_archives(both: SideBySide, source: Path) -> None:
    for place in (both.mounted, both.plain):
        run("cp", "-a", source, place / "copy")
    both.same_trees_below("copy", times=True)
    run("cp", "-a", both.mounted / "copy", both.plain / "back")
    run("diff", "-r", "--no-dereference", source / "d", both.plain / "back" / "d")
    assert (both.mounted / "copy" / "sparse").stat().st_blocks * 512 < 1_000_000


def test_rsync_with_hard_links_and_attributes(both: SideBySide, source: Path) -> None:
    for place in (both.mounted, both.plain):
        run("rsync", "-aHXS", "--specials", "--devices", f"{source}/", f"{place}/copy/")
        again = run("rsync", "-aHXS", "--specials", "--devices", "--itemize-changes", f"{source}/", f"{place}/copy/")
        assert again == ""
    both.same_trees_below("copy", times=True)
    (source / "file").write_bytes(b"changed" * 10_000)
    (source / "empty").unlink()
    for place in (both.mounted, both.plain):
        run("rsync", "-aHX", "--inplace", "--delete", "--checksum", f"{source}/", f"{place}/copy/")
    both.same_trees_below("copy", times=True)


def test_tar_there_and_back(both: SideBySide, source: Path) -> None:
    words = ["--xattrs", "--xattrs-include=user.*", "--sparse", "--numeric-owner"]
    (source / "socket").unlink()  # tar leaves sockets out
    run("tar", "-C", source, *words, "-cf", both.plain / "a.tar", ".")
    run("cp", both.plain / "a.tar", both.mounted / "a.tar")
    for place in (both.mounted, both.plain):
        (place / "copy").mkdir()
        run("tar", "-C", place / "copy", *words, "-xpf", place / "a.tar")
        assert run("tar", "-C", place / "copy", *words, "--compare", "-f", place / "a.tar") == ""
    both.same_trees_below("copy", times=True)
    run("tar", "-C", both.mounted / "copy", *words, "-cf", both.mounted / "b.tar", ".")
    assert run("tar", "-C", source, *words, "--compare", "-f", both.mounted / "b.tar") == ""


GIT = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "GIT_TERMINAL_PROMPT": "0"}
ME = ("-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "safe.directory=*", "-c", "gc.auto=0")


def test_git(own_mount: RealMount) -> None:
    repository = own_mount.path / "repository"
    repository.mkdir()

    def git(*words: str | Path) -> str:
        return run("git", *ME, *words, cwd=repository, environment=GIT)

    git("init", "--initial-branch=main")
    for number in range(300):
        path = repository / f"d{number % 20}" / f"file {number}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{number}\n" * (number * 7))
    (repository / "link").symlink_to("d1")
    (repository / "d1" / "program").write_text("#!/bin/sh\n")
    (repository / "d1" / "program").chmod(0o755)
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    git("checkout", "--quiet", "-b", "other")
    for number in range(0, 300, 3):
        (repository / f"d{number % 20}" / f"file {number}").write_text("other\n")
    git("mv", "d2", "moved")
    git("commit", "--quiet", "--all", "-m", "second")
    git("checkout", "--quiet", "main")
    git("merge", "--quiet", "--no-ff", "-m", "third", "other")
    git("gc", "--quiet", "--prune=now")
    git("fsck", "--strict", "--full")
    assert git("status", "--porcelain") == ""
    own_mount.again()
    # The index knows inode numbers and times: nothing must look changed.
    assert git("-c", "core.trustctime=false", "diff-files", "--name-only") == ""
    assert git("status", "--porcelain") == ""
    git("fsck", "--strict", "--full")
    run("git", *ME, "clone", "--quiet", repository, own_mount.path / "clone", environment=GIT)
    assert len(list((own_mount.path / "clone").rglob("file *"))) == 300


WRITER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("pragma journal_mode=" + sys.argv[2])
database.execute("pragma synchronous=normal")
database.execute("pragma wal_autocheckpoint=20")
database.execute("create table if not exists t (number integer primary key, data blob)")
number = database.execute("select coalesce(max(number), -1) from t").fetchone()[0] + 1
while True:
    database.execute("begin")
    for _ in range(5):
        database.execute("insert into t values (?, ?)", (number, bytes([number % 256]) * 3000))
        number += 1
    database.execute("update t set data = data || 'x' where number % 7 = ?", (number % 7,))
    database.execute("commit")
    print(number, flush=True)
"""


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_sqlite_with_a_killed_writer(own_mount: RealMount, journal: str) -> None:
    """Whatever a transaction's end was told for is there, however the writer ends."""
    database = own_mount.path / "data base.sqlite"
    for commits in (7, 23, 40):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(database), journal], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            told = [int(writer.stdout.readline()) for _ in range(commits)][-1]
            writer.send_signal(signal.SIGKILL)
        _check_database(database, told)
    own_mount.again()
    _check_database(database, told)


def test_sqlite_while_others_read(own_mount: RealMount) -> None:
    """The shared memory of WAL is a shared mapping of a file on the mount."""
    database = own_mount.path / "db"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(database), "wal"], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        try:
            for _ in range(15):
                told = int(writer.stdout.readline())
                _check_database(database, told)
        finally:
            writer.kill()


def _check_database(path: Path, told: int) -> None:
    opened = sqlite3.connect(path)
    try:
        assert opened.execute("pragma integrity_check").fetchall() == [("ok",)]
        count, highest = opened.execute("select count(*), max(number) from t").fetchone()
        assert count == highest + 1
        assert count >= told
        assert count % 5 == 0
    finally:
        opened.close()


MAKEFILE = """
CFLAGS = -O0 -MMD
objects = $(patsubst %.c,%.o,$(wildcard *.c))
all: program library.a
program: $(objects)
\t$(CC) -o $@ $^
library.a: $(objects)
\tar rcs $@ $^
-include $(objects:.o=.d)
clean:
\trm -f *.o *.d program library.a
"""


def test_a_build_with_make(work: Path) -> None:
    (work / "Makefile").write_text(MAKEFILE)
    calls = "".join(f"int f{number}(void); " for number in range(8))
    total = " + ".join(f"f{number}()" for number in range(8))
    (work / "shared.h").write_text("#define VALUE 1\n")
    for number in range(8):
        (work / f"f{number}.c").write_text(f'#include "shared.h"\nint f{number}(void) {{ return VALUE; }}\n')
    (work / "main.c").write_text(
        f'#include <stdio.h>\n{calls}\nint main(void) {{ printf("%d\\n", {total}); return 0; }}\n'
    )
    run("make", "-j2", cwd=work)
    assert run(work / "program") == "8\n"
    assert "Nothing to be done" in run("make", cwd=work)
    (work / "shared.h").write_text("#define VALUE 2\n")
    os.utime(work / "shared.h", ns=(2**62, (work / "program").stat().st_mtime_ns + 10**9))
    assert "f3.c" in run("make", cwd=work)
    assert run(work / "program") == "16\n"


def test_python_compiles_and_runs_there(work: Path) -> None:
    (work / "package").mkdir()
    for number in range(20):
        (work / "package" / f"m{number}.py").write_text(f"VALUE = {number}\n")
    imports = "; ".join(f"from package import m{number}" for number in range(20))
    run(sys.executable, "-m", "compileall", "-q", work / "package")
    run(sys.executable, "-c", f"{imports}; assert m19.VALUE == 19", cwd=work)
    assert len(list((work / "package" / "__pycache__").glob("*.pyc"))) == 20


def test_tools_that_look_closely(work: Path) -> None:
    """Sizes, numbers and links as du, find, ls and stat want them."""
    (work / "d").mkdir()
    (work / "d" / "file").write_bytes(b"x" * 100_000)
    os.link(work / "d" / "file", work / "d" / "hard")
    assert 100 <= int(run("du", "-s", "--block-size=1000", work / "d").split()[0]) <= 120
    assert run("find", work, "-type", "f", "-links", "2", "-size", "+90k").count("\n") == 2
    number = run("stat", "--format=%i", work / "d" / "file").strip()
    assert run("find", work, "-inum", number).count("\n") == 2
    run("dd", "if=/dev/zero", f"of={work / 'direct'}", "bs=64k", "count=10", "oflag=direct", "status=none")
    run("dd", f"if={work / 'direct'}", "of=/dev/null", "bs=4k", "iflag=direct", "status=none")
    run("sync", "-f", work / "direct")
    run("mv", work / "d", work / "moved")
    run("rm", "-r", work / "moved")
    assert os.listdir(work) == ["direct"]

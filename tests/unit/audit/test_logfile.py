"""The file of a chain: one writer, whole records, goes on where it ended, whatever became of the file."""

import gzip
import hmac
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cmkfs.audit.chain import Head
from cmkfs.audit.logfile import LogFile
from cmkfs.audit.reading import Result, chains, missing, verify
from cmkfs.errors import Busy

BODY = '"event":"open.read","outcome":"allowed"'


def token_mac(message: bytes) -> bytes:
    return hmac.digest(b"the token's audit key", message, "sha256")


@contextmanager
def writing(directory: Path, head: Head | None = None, name: str = "mount-1") -> Iterator[LogFile]:
    """The writer, its first record written."""
    file = LogFile(directory, name)
    file.open(wait=False)
    try:
        file.go_on_from(head)
        file.begin_epoch(file.new_epoch(token_mac), '"event":"audit.begin","outcome":"done"')
        yield file
    finally:
        file.close()


def write(directory: Path, count: int, head: Head | None = None) -> Head:
    with writing(directory, head) as file:
        for _ in range(count):
            file.append(BODY)
        return file.head("here", "")


def results(*directories: Path, heads: tuple[Head, ...] = (), partial: bool = False) -> list[Result]:
    found = chains(directories)
    told = [(head, "the token") for head in heads]
    whole = [
        verify(chain, token_mac, [pair for pair in told if pair[0].chain == chain.chain], partial=partial)
        for chain in found
    ]
    return whole + missing(heads, found, "here")


def faults(*directories: Path, heads: tuple[Head, ...] = (), partial: bool = False) -> list[str]:
    return [result.fault for result in results(*directories, heads=heads, partial=partial) if result.fault]


def test_a_second_writer_is_refused_and_a_third_begins_where_the_first_ended(tmp_path: Path) -> None:
    with writing(tmp_path) as file:
        with pytest.raises(Busy):
            LogFile(tmp_path, "mount-1").open(wait=False)
        file.append(BODY)
        chain = file.chain
    with writing(tmp_path) as file:
        assert (file.chain, file.seq) == (chain, 3)
    (result,) = results(tmp_path)
    assert (result.records, result.fault) == (3, "")


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    write(tmp_path, 1)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_a_record_is_in_the_kernel_when_append_returns(tmp_path: Path) -> None:
    """The process ends without any goodbye right after it."""
    program = (
        "import hmac, os, sys, pathlib\n"
        "from cmkfs.audit.logfile import LogFile\n"
        "file = LogFile(pathlib.Path(sys.argv[1]), 'mount-1'); file.open(wait=False); file.go_on_from(None)\n"
        "mac = lambda m: hmac.digest(b\"the token's audit key\", m, 'sha256')\n"
        'file.begin_epoch(file.new_epoch(mac), \'"event":"audit.begin"\')\n'
        'for _ in range(100): file.append(\'"event":"x"\')\n'
        "os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert ended.returncode == -9
    (result,) = results(tmp_path)
    assert (result.records, result.fault) == (101, "")


@pytest.mark.parametrize("torn", [b"{", b'{"ts":"2026-01-31T08:00:00.000000Z","seq":5,"ev', b"\0" * 4096, b" " * 8192])
def test_an_unfinished_record_is_dropped(tmp_path: Path, torn: bytes) -> None:
    write(tmp_path, 3)
    with (tmp_path / "mount-1.jsonl").open("ab") as file:
        file.write(torn)
    assert faults(tmp_path) == []
    with writing(tmp_path) as again:
        assert again.dropped == len(torn)
    assert faults(tmp_path) == []


def test_moved_aside_when_long_and_read_as_one(tmp_path: Path) -> None:
    with writing(tmp_path) as file:
        for number in range(3):
            file.append(BODY)
            file.rotate(file.new_epoch(token_mac), f'"event":"audit.rotate","reason":"{number}"')
            assert not file.moved
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == [
        "mount-1.000000000001.jsonl",
        "mount-1.000000000003.jsonl",
        "mount-1.000000000005.jsonl",
        "mount-1.jsonl",
    ]
    (result,) = results(tmp_path)
    assert (result.records, result.fault) == (7, "")
    (tmp_path / "mount-1.000000000003.jsonl").unlink()
    assert faults(tmp_path) == ["records 3 to 4 were removed"]


def test_logrotate_moves_it_while_it_is_written(tmp_path: Path) -> None:
    with writing(tmp_path) as file:
        (tmp_path / "mount-1.jsonl").rename(tmp_path / "mount-1.jsonl.1")
        assert file.moved
        file.append(BODY)  # still into the moved one
        file.rotate(file.new_epoch(token_mac), '"event":"audit.rotate"')
        assert not file.moved
        file.append(BODY)
    old = tmp_path / "mount-1.jsonl.1"
    with gzip.open(tmp_path / "mount-1.jsonl.1.gz", "wb") as packed:
        packed.write(old.read_bytes())
    old.unlink()
    (result,) = results(tmp_path)
    assert (result.records, result.fault) == (4, "")


def test_logrotate_moves_it_while_nobody_writes(tmp_path: Path) -> None:
    write(tmp_path, 3)
    (tmp_path / "mount-1.jsonl").rename(tmp_path / "mount-1.jsonl-20260131")
    write(tmp_path, 1)
    (result,) = results(tmp_path)
    assert (result.records, result.fault) == (6, "")


def test_an_archive_elsewhere_belongs_to_it(tmp_path: Path) -> None:
    log, archive = tmp_path / "log", tmp_path / "archive"
    log.mkdir()
    archive.mkdir()
    head = write(log, 3)
    (log / "mount-1.jsonl").rename(archive / "old.jsonl")
    head = write(log, 1, head)
    assert faults(log, heads=(head,)) == ["records 1 to 4 were removed"]
    assert faults(log, heads=(head,), partial=True) == []
    assert faults(log, archive, heads=(head,)) == []


# -- The tail --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_a_cut_tail_is_found_by_what_the_token_remembers(tmp_path: Path, cut: int) -> None:
    head = write(tmp_path, 5)
    path = tmp_path / "mount-1.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-cut]))
    (fault,) = faults(tmp_path, heads=(head,))
    assert "cut off: the token remembers" in fault
    # And for ever: the next writer leaves the gap.
    head = write(tmp_path, 1, head)
    assert (head.seq, len(faults(tmp_path, heads=(head,)))) == (8, 1)


def test_cutting_back_to_a_checkpoint_is_found(tmp_path: Path) -> None:
    write(tmp_path, 2)
    before = (tmp_path / "mount-1.jsonl").read_bytes()
    head = write(tmp_path, 2)
    (tmp_path / "mount-1.jsonl").write_bytes(before)
    assert faults(tmp_path) == []  # by itself it is a whole chain
    assert faults(tmp_path, heads=(head,)) == ["records 4 to 6 were cut off: the token remembers them"]


def test_another_history_of_the_same_length_is_found(tmp_path: Path) -> None:
    write(tmp_path, 1)
    fork = (tmp_path / "mount-1.jsonl").read_bytes()
    head = write(tmp_path, 1)
    (tmp_path / "mount-1.jsonl").write_bytes(fork)
    write(tmp_path, 1)
    assert faults(tmp_path, heads=(head,)) == ["record 4 is another one than the token remembers"]


def test_a_removed_log_is_found(tmp_path: Path) -> None:
    head = write(tmp_path, 3)
    (tmp_path / "mount-1.jsonl").unlink()
    assert faults(tmp_path, heads=(head,)) == ["records 1 to 4 were removed: there is no file of it"]
    head = write(tmp_path, 1, head)
    assert faults(tmp_path, heads=(head,)) == ["records 1 to 4 were removed"]


def test_a_change_of_the_length_is_seen_by_the_writer(tmp_path: Path) -> None:
    with writing(tmp_path) as file:
        assert not file.cut
        os.truncate(tmp_path / "mount-1.jsonl", 10)
        assert file.cut


# -- A full disk -----------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(file: LogFile) -> None:
    while True:
        file.append(BODY)


def test_a_full_disk_leaves_whole_records(small: Path) -> None:
    with writing(small) as file:
        file.require_room()
        filler = small / "filler"
        filler.write_bytes(bytes(40 * 1024))
        with pytest.raises(OSError, match="No space"):
            fill(file)
        written = file.seq
        with pytest.raises(OSError, match="No space"):
            file.require_room()
        with pytest.raises(OSError, match="No space"):
            file.rotate(file.new_epoch(token_mac), BODY)
        (before,) = results(small)
        assert (before.records, before.fault) == (written, "")
        filler.unlink()
        file.require_room()
        file.append(BODY)
    (result,) = results(small)
    assert (result.records, result.fault) == (written + 1, "")

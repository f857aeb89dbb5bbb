"""Mappings: shared ones are files, private ones are not, whatever else happens to the file."""

import faulthandler
import mmap
import os
import random
from pathlib import Path

import pytest
from children import Child, in_child
from real_mount import RealMount
from side_by_side import SideBySide


def _map(fd: int, length: int, flags: int, protection: int = mmap.PROT_READ | mmap.PROT_WRITE) -> mmap.mmap:
    return mmap.mmap(fd, length, flags, protection)


@pytest.mark.parametrize("size", [1, 4095, 4048, 4096, 4097, 100_000])
def test_shared_mapping_is_the_file(both: SideBySide, size: int) -> None:
    def story(place: Path) -> list[object]:
        fd = os.open(place / "file", os.O_RDWR | os.O_CREAT)
        try:
            os.ftruncate(fd, size)
            with _map(fd, size, mmap.MAP_SHARED) as mapping:
                mapping[:] = random.Random(size).randbytes(size)
                seen: list[object] = [os.pread(fd, size + 1, 0)]
                os.pwrite(fd, b"!", size // 2)
                seen.append(mapping[:])
                mapping[size - 1 :] = b"E"
                mapping.flush()
            return [*seen, in_child((place / "file").read_bytes)]
        finally:
            os.close(fd)

    both.same(story)


def test_private_mapping_changes_nothing(both: SideBySide) -> None:
    def story(place: Path) -> list[object]:
        (place / "file").write_bytes(b"content" * 2000)
        fd = os.open(place / "file", os.O_RDONLY)
        try:
            with _map(fd, 14000, mmap.MAP_PRIVATE) as mapping:
                mapping[:5] = b"MINE!"
                return [mapping[:20], (place / "file").read_bytes()]
        finally:
            os.close(fd)

    both.same(story)


def test_two_processes_share_a_mapping(work: Path) -> None:
    fd = os.open(work / "file", os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(fd, 1 << 20)
        with _map(fd, 1 << 20, mmap.MAP_SHARED) as mapping:

            def write_every_other_page(start: int) -> None:
                again = os.open(work / "file", os.O_RDWR)
                with _map(again, 1 << 20, mmap.MAP_SHARED) as other:
                    for at in range(start * 4096, 1 << 20, 8192):
                        other[at : at + 4096] = bytes([65 + start]) * 4096

            children = [Child(lambda start=start: write_every_other_page(start)) for start in (0, 1)]  # type: ignore[misc]
            for child in children:
                child.go()
            for child in children:
                child.result()
            assert mapping[:] == (b"A" * 4096 + b"B" * 4096) * 128
    finally:
        os.close(fd)


def test_a_mapping_outlives_descriptor_and_name_and_is_stored(own_mount: RealMount) -> None:
    kept, gone = own_mount.path / "kept", own_mount.path / "gone"
    mappings = []
    for path in (kept, gone):
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 50_000)
        mappings.append(_map(fd, 50_000, mmap.MAP_SHARED))
        os.close(fd)
    os.unlink(gone)
    for mapping in mappings:
        mapping[:] = b"m" * 50_000
        mapping.close()
    own_mount.again()
    assert kept.read_bytes() == b"m" * 50_000
    assert not gone.exists()


def test_a_mapping_of_what_was_cut_off_is_a_bus_error_and_comes_back_as_zeros(both: SideBySide) -> None:
    def story(place: Path) -> list[object]:
        (place / "file").write_bytes(b"a" * 20_000)
        fd = os.open(place / "file", os.O_RDWR)
        mapping = _map(fd, 20_000, mmap.MAP_SHARED)
        os.ftruncate(fd, 5_000)
        seen: list[object] = [mapping[:5_000], mapping[5_000:8_192]]
        faulthandler.disable()
        pid = os.fork()
        if not pid:
            os._exit(mapping[12_000])
        _, status = os.waitpid(pid, 0)
        os.ftruncate(fd, 20_000)
        return [*seen, os.WTERMSIG(status), mapping[:]]

    both.same(lambda place: in_child(lambda: story(place)))


def test_a_program_runs_from_the_mount(work: Path) -> None:
    """execve maps its file."""
    program = work / "program"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)

    def run() -> int:
        pid = os.fork()
        if not pid:
            os.execv(program, [str(program)])
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert in_child(run) == 0

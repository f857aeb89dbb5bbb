"""O_DIRECT, with asynchronous I/O too (io_submit(2)): what others read through the page cache is what was written."""

import ctypes
import mmap
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

SIZE = 256 << 10
ROUNDS = 60
_SETUP, _DESTROY, _GETEVENTS, _SUBMIT = 206, 207, 208, 209
_PWRITE = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Queue:
    """A context of io_setup(2)."""

    def __init__(self) -> None:
        self._context = ctypes.c_ulong(0)
        _checked(_libc.syscall(_SETUP, 8, ctypes.byref(self._context)))

    def write(self, fd: int, data: mmap.mmap, offset: int) -> int:
        """Submit one write and wait for its end; what it gave."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(data))
        block = ctypes.create_string_buffer(
            struct.pack("<QIIHhIQQqQII", 7, 0, 0, _PWRITE, 0, fd, address, len(data), offset, 0, 0, 0), 64
        )
        blocks = (ctypes.c_void_p * 1)(ctypes.addressof(block))
        _checked(_libc.syscall(_SUBMIT, self._context, 1, blocks))
        event = ctypes.create_string_buffer(32)
        _checked(_libc.syscall(_GETEVENTS, self._context, ctypes.c_long(1), ctypes.c_long(1), event, None))
        return int(struct.unpack_from("<QQqq", event.raw)[2])

    def close(self) -> None:
        """Give it back."""
        _checked(_libc.syscall(_DESTROY, self._context))


@pytest.fixture
def queue() -> Iterator[Queue]:
    made = Queue()
    yield made
    made.close()


@pytest.fixture
def reader(work: Path) -> Iterator[Path]:
    """A file that another process reads through the page cache all the time."""
    path = work / "file"
    path.write_bytes(b"a" * SIZE)
    pid = os.fork()
    if not pid:
        fd = os.open(path, os.O_RDONLY)
        while True:
            os.pread(fd, SIZE, 0)
    yield path
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("how", ["pwrite", "io_submit"])
def test_what_was_written_past_the_cache_is_read_through_it(reader: Path, queue: Queue, how: str) -> None:
    fd = os.open(reader, os.O_RDWR | os.O_DIRECT)
    cached = os.open(reader, os.O_RDONLY)
    data = mmap.mmap(-1, SIZE)
    try:
        for turn in range(ROUNDS):
            data[:] = bytes([turn + 1]) * SIZE
            assert (os.pwrite(fd, data, 0) if how == "pwrite" else queue.write(fd, data, 0)) == SIZE
            assert os.pread(cached, SIZE, 0) == data[:]
    finally:
        os.close(fd)
        os.close(cached)

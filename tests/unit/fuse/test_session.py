"""The loop, with the kernel's end of the connection in the test: a socket that keeps the bounds of messages."""

import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from cmkfs.caller import Request
from cmkfs.fuse.messages import Opcode
from cmkfs.fuse.session import Requests, Session

IN = struct.Struct("<IIQQIIIHH")
OUT = struct.Struct("<IiQ")


class Operations:
    """Reading answers with the size that was asked for, reading handle 0 waits for `go`, unlinking fails."""

    def __init__(self) -> None:
        self.go = trio.Event()
        self.forgot: list[tuple[int, int]] = []
        self.failed: list[tuple[str, tuple[object, ...], Exception]] = []
        self.waiting = 0

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        if not fh:
            self.waiting += 1
            await self.go.wait()
            self.waiting -= 1
        if offset:
            raise OSError(errno.EIO, "after all")
        return bytes(size)

    async def write(self, fh: int, offset: int, data: memoryview, kill_suidgid: bool) -> int:
        before = bytes(data)
        if not fh:
            await self.go.wait()
            assert bytes(data) == before, "another request came into the buffer"
        return len(data)

    async def unlink(self, parent: int, name: bytes, request: Request) -> None:
        raise FileNotFoundError(errno.ENOENT, name)

    async def readlink(self, inode: int, request: Request) -> int:
        return inode  # a bug: no bytes

    def errno_of(self, name: str, args: tuple[object, ...], error: Exception) -> int:
        self.failed.append((name, args, error))
        return error.errno or 0 if isinstance(error, OSError) else errno.EIO

    def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self.forgot.extend(inode_list)


class Kernel:
    """The other end."""

    def __init__(self, end: socket.socket) -> None:
        self._end = trio.socket.from_stdlib_socket(end)
        self._unique = 0

    async def send(self, message: bytes) -> None:
        await self._end.send(message)

    async def ask(self, opcode: int, body: bytes, nodeid: int = 9) -> int:
        self._unique += 2
        head = IN.pack(IN.size + len(body), opcode, self._unique, nodeid, 1000, 1001, 4321, 0, 0)
        await self.send(head + body)
        return self._unique

    async def read(self, fh: int, size: int, offset: int = 0) -> int:
        return await self.ask(Opcode.READ, struct.pack("<QQIIQII", fh, offset, size, 0, 0, 0, 0))

    async def write(self, fh: int, data: bytes) -> int:
        return await self.ask(Opcode.WRITE, struct.pack("<QQIIQII", fh, 0, len(data), 0, 0, 0, 0) + data)

    async def answer(self) -> tuple[int, int, bytes]:
        """Which request, its error, and the rest."""
        with trio.fail_after(10):
            message = await self._end.recv(1 << 21)
        length, error, unique = OUT.unpack_from(message)
        assert length == len(message)
        return unique, error, message[OUT.size :]


@asynccontextmanager
async def served(max_tasks: int = 100, window: float = 200e-6) -> AsyncIterator[tuple[Kernel, Operations, Session]]:
    """A session that serves; it has ended when the block ends."""
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (kernel, device):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 21)
    device.setblocking(False)
    operations = Operations()
    session = Session(device.fileno(), operations, window)
    with kernel, device, trio.fail_after(20):
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                await session.serve(max_tasks=max_tasks)

            nursery.start_soon(serve)
            yield Kernel(kernel), operations, session
            operations.go.set()
            session.stop()


@pytest.mark.trio
@pytest.mark.parametrize("window", [0.0, 200e-6])
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 1 << 20])
async def test_a_request_is_answered(size: int, window: float) -> None:
    async with served(window=window) as (kernel, _, _):
        assert (await kernel.read(1, size), 0, bytes(size)) == await kernel.answer()


@pytest.mark.trio
async def test_requests_are_counted_by_handler() -> None:
    before = Requests.by_kind["read"], Requests.total()
    async with served() as (kernel, _, _):
        await kernel.read(1, 1)
        await kernel.answer()
    assert (Requests.by_kind["read"], Requests.total()) == (before[0] + 1, before[1] + 1)


@pytest.mark.trio
async def test_what_a_handler_raises_is_the_operations_to_tell() -> None:
    async with served() as (kernel, operations, _):
        assert (await kernel.ask(Opcode.UNLINK, b"x\0"), -errno.ENOENT, b"") == await kernel.answer()
        assert (await kernel.read(1, 1, offset=5), -errno.EIO, b"") == await kernel.answer()
        assert operations.failed[0][:2] == ("unlink", (9, b"x", Request(1000, 1001, 4321)))
        assert operations.failed[1][:2] == ("read", (1, 5, 1))


@pytest.mark.trio
async def test_a_result_that_is_none_is_a_bug_and_no_silence() -> None:
    async with served() as (kernel, operations, _):
        assert (await kernel.ask(Opcode.READLINK, b""), -errno.EIO, b"") == await kernel.answer()
        assert isinstance(operations.failed[0][2], TypeError)
        assert (await kernel.ask(Opcode.MKDIR, b""), -errno.ENOSYS, b"") == await kernel.answer()
        assert (await kernel.ask(Opcode.READ, b""), -errno.EIO, b"") == await kernel.answer(), "too short"
        assert (await kernel.read(1, 1), 0, b"\0") == await kernel.answer(), "it goes on"


@pytest.mark.trio
@pytest.mark.parametrize("opcode", [25, 34, 40, 46, 4096])
async def test_what_is_not_known_is_answered_enosys(opcode: int) -> None:
    async with served() as (kernel, _, _):
        assert (await kernel.ask(opcode, b""), -errno.ENOSYS, b"") == await kernel.answer()


@pytest.mark.trio
async def test_what_wants_no_answer_gets_none() -> None:
    async with served() as (kernel, operations, _):
        await kernel.ask(Opcode.FORGET, struct.pack("<Q", 3))
        await kernel.ask(Opcode.BATCH_FORGET, struct.pack("<IIQQ", 1, 0, 5, 2), nodeid=0)
        await kernel.ask(Opcode.INTERRUPT, struct.pack("<Q", 2), nodeid=0)
        assert (await kernel.read(1, 1), 0, b"\0") == await kernel.answer()
        assert operations.forgot == [(9, 3), (5, 2)]


@pytest.mark.trio
@pytest.mark.parametrize("size", [1, 2, 39, 40, 41, 48, 64, 79])
async def test_a_message_that_is_cut_off_harms_nobody(size: int) -> None:
    async with served() as (kernel, operations, _):
        for opcode in {*Opcode, 26, 4096} - {Opcode.READ, Opcode.WRITE}:
            await kernel.send((IN.pack(size, opcode, 7, 9, 1000, 1001, 4321, 0, 0) + bytes(40))[:size])
        unique = await kernel.read(1, 1)
        while (answer := await kernel.answer())[0] != unique:
            assert answer[1] < 0
        assert answer == (unique, 0, b"\0")
        assert not [number for number, count in operations.forgot if count]


@pytest.mark.trio
async def test_names_are_handed_on_as_they_are() -> None:
    """NUL bytes, slashes, and lengths that no directory has: the kernel sends none, and the operations refuse them."""
    async with served() as (kernel, operations, _):
        for name in (b"", b"\0", b"a\0b", b"../x", b"x" * 5000, bytes(range(1, 256)) * 4):
            await kernel.ask(Opcode.UNLINK, name + b"\0")
            assert (await kernel.answer())[1] == -errno.ENOENT
            assert operations.failed[-1][1][1] == name
        for body in (b"", b"a", b"a\0", b"a\0b\0c\0"):  # one name, or three, where two belong
            await kernel.ask(Opcode.RENAME, struct.pack("<Q", 1) + body)
            assert (await kernel.answer())[1] < 0


@pytest.mark.trio
async def test_one_that_waits_holds_up_nobody_and_keeps_its_message() -> None:
    async with served() as (kernel, operations, _):
        waiting = {await kernel.read(0, number) for number in range(1, 20)}
        waiting |= {await kernel.write(0, os.urandom(1000)) for _ in range(20)}
        for _ in range(100):
            assert (await kernel.write(1, os.urandom(2000)), 0, struct.pack("<II", 2000, 0)) == await kernel.answer()
        operations.go.set()
        answers = [await kernel.answer() for _ in waiting]
        assert {unique for unique, _, _ in answers} == waiting
        assert {error for _, error, _ in answers} == {0}


@pytest.mark.trio
async def test_a_late_failure_is_told_too() -> None:
    async with served() as (kernel, operations, _):
        late = await kernel.read(0, 1, offset=7)
        assert (await kernel.read(1, 1), 0, b"\0") == await kernel.answer()
        operations.go.set()
        assert (late, -errno.EIO, b"") == await kernel.answer()


@pytest.mark.trio
@pytest.mark.parametrize("most", [1, 2, 7])
async def test_at_most_max_tasks_at_a_time(most: int) -> None:
    async with served(max_tasks=most) as (kernel, operations, _):
        waiting = {await kernel.read(0, 1) for _ in range(most + 3)}
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert operations.waiting == most
        last = await kernel.read(1, 1)
        operations.go.set()
        assert {(await kernel.answer())[0] for _ in range(most + 4)} == waiting | {last}


@pytest.mark.trio
async def test_stopping_waits_for_what_is_being_handled() -> None:
    async with served() as (kernel, operations, session):
        late = await kernel.read(0, 1)
        while not operations.waiting:
            await trio.lowlevel.checkpoint()
        session.stop()
        operations.go.set()
        assert (late, 0, b"\0") == await kernel.answer()


@pytest.mark.trio
async def test_an_error_of_the_device_ends_it() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"x")
    os.close(reader)
    closed = os.open("/dev/null", os.O_WRONLY)  # readv: EBADF
    try:
        with pytest.raises(ExceptionGroup) as caught, trio.fail_after(5):
            await Session(closed, Operations(), 0.0).serve(max_tasks=3)
        assert [type(error) for error in caught.value.exceptions] == [OSError]
    finally:
        os.close(closed)
        os.close(writer)

"""Server and client of the control socket, over real sockets."""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from cmkfs.control import client, registry
from cmkfs.control import server as server_module
from cmkfs.control.protocol import PEER, REQUEST_LIMIT, Fields, Peer
from cmkfs.control.registry import MountRecord
from cmkfs.control.server import ControlServer, Handler
from cmkfs.errors import Busy, CmkfsError, Disabled, UsageError
from cmkfs.home import Home

T = TypeVar("T")


def record(mountpoint: str = "/mnt/a") -> MountRecord:
    return MountRecord(mountpoint, "/vault", os.getpid(), {"00" * 16: "main"}, 1.0)


@contextlib.asynccontextmanager
async def serving(home: Home, handlers: dict[str, Handler]) -> AsyncIterator[ControlServer]:
    server = ControlServer(home, record(), handlers)
    server.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        yield server
        await server.finish({})


async def outside(function: Callable[[], T]) -> T:
    """Run the blocking client in a thread, as the other process that it usually is."""
    with trio.fail_after(10):
        return await trio.to_thread.run_sync(function)


async def all_dropped(server: ControlServer) -> None:
    with trio.fail_after(5):
        while server._connections:
            await trio.lowlevel.checkpoint()


def entry(home: Home) -> registry.Entry:
    found = registry.find(home, "/mnt/a")
    assert found is not None
    return found


async def echo(arguments: Fields) -> Fields:
    peer = arguments.pop(PEER)
    assert isinstance(peer, Peer)
    assert peer == Peer(os.getuid(), os.getgid(), os.getpid())
    return arguments


async def test_arguments_go_and_the_answer_comes_back(home: Home) -> None:
    async with serving(home, {"echo": echo}):
        answer = await outside(lambda: client.ask(entry(home), "echo", path="a\udcffb", n=1))
    assert answer == {"path": "a\udcffb", "n": 1}


async def test_a_request_cannot_say_that_it_is_somebody_elses(home: Home) -> None:
    async with serving(home, {"echo": echo}):
        assert await outside(lambda: client.ask(entry(home), "echo", by={"uid": 0, "gid": 0, "pid": 1})) == {}


async def test_the_class_of_an_error_survives_the_socket(home: Home) -> None:
    async def refuse(_: Fields) -> Fields:
        raise Disabled("CMK 'main' is disabled", hint="cmkfs cmk enable main")

    async with serving(home, {"unlock": refuse}):
        with pytest.raises(Disabled, match="is disabled") as caught:
            await outside(lambda: client.ask(entry(home), "unlock"))
    assert caught.value.next_step == "cmkfs cmk enable main"
    assert caught.value.exit_code == 4


async def test_an_unknown_operation_is_a_usage_error(home: Home) -> None:
    async with serving(home, {}):
        with pytest.raises(UsageError, match="'fly'"):
            await outside(lambda: client.ask(entry(home), "fly"))


async def test_a_bug_in_a_handler_is_told_and_logged_and_the_server_lives(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_: Fields) -> Fields:
        raise RuntimeError("a bug")

    async with serving(home, {"broken": broken, "echo": echo}):
        with pytest.raises(CmkfsError, match="a bug"):
            await outside(lambda: client.ask(entry(home), "broken"))
        assert await outside(lambda: client.ask(entry(home), "echo")) == {}
    assert "a bug" in caplog.text


@pytest.mark.parametrize(
    "nonsense",
    [b"\n", b"[]\n", b"{\n", b'{"op":1}\n', b"\xff\xfe\n", b"[" * 60000 + b"\n", b"x" * (REQUEST_LIMIT + 1)],
    ids=["empty", "array", "half", "number", "not-utf8", "deep", "too-long"],
)
async def test_nonsense_is_answered_with_an_error_and_the_server_lives(home: Home, nonsense: bytes) -> None:
    def send_nonsense() -> bytes:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(entry(home).socket))
            raw.sendall(nonsense)
            return raw.makefile("rb").readline()

    async with serving(home, {"echo": echo}):
        answer = json.loads(await outside(send_nonsense))
        assert answer["error"]["class"] == "UsageError"
        assert await outside(lambda: client.ask(entry(home), "echo")) == {}


async def test_a_request_that_comes_in_pieces_and_two_in_one_piece(home: Home) -> None:
    def talk() -> list[bytes]:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(entry(home).socket))
            for piece in (b'{"op":"ec', b'ho","n":1}\n{"op":"echo",', b'"n":2}\n'):
                raw.sendall(piece)
            reader = raw.makefile("rb")
            return [reader.readline(), reader.readline()]

    async with serving(home, {"echo": echo}):
        assert await outside(talk) == [b'{"ok":{"n":1}}\n', b'{"ok":{"n":2}}\n']


async def test_a_client_that_says_nothing_is_dropped(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent() -> bytes:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(entry(home).socket))
            return raw.recv(1)

    monkeypatch.setattr(server_module, "IDLE_SECONDS", 0.05)
    async with serving(home, {"echo": echo}):
        assert await outside(silent) == b""
        assert await outside(lambda: client.ask(entry(home), "echo")) == {}


async def test_a_client_that_does_not_read_is_dropped(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async def long(_: Fields) -> Fields:
        return {"text": "x" * 4_000_000}

    monkeypatch.setattr(server_module, "IDLE_SECONDS", 0.05)
    async with serving(home, {"long": long, "echo": echo}) as server:
        with socket.socket(socket.AF_UNIX) as raw:
            await outside(lambda: raw.connect(str(entry(home).socket)))
            raw.sendall(b'{"op":"long"}\n')
            assert await outside(lambda: client.ask(entry(home), "echo")) == {}
            await all_dropped(server)
            got = await outside(lambda: len(raw.makefile("rb").read()))
            assert got < 4_000_000


async def test_a_long_answer_arrives_whole(home: Home) -> None:
    async def long(_: Fields) -> Fields:
        return {"text": "x" * 4_000_000}

    async with serving(home, {"long": long}):
        answer = await outside(lambda: client.ask(entry(home), "long"))
    assert answer == {"text": "x" * 4_000_000}


async def test_a_late_answer_is_an_error_of_the_client(home: Home) -> None:
    async def never(_: Fields) -> Fields:
        await trio.sleep_forever()
        raise AssertionError

    with trio.fail_after(5):
        server = ControlServer(home, record(), {"never": never})
        server.open()
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            with pytest.raises(CmkfsError, match=r"/mnt/a did not answer within 0\.05 s"):
                await outside(lambda: client.ask(entry(home), "never", seconds=0.05))
            nursery.cancel_scope.cancel()


async def test_await_exit_is_answered_when_the_mount_has_ended(home: Home) -> None:
    result: Fields = {"unsaved": ["/mnt/a/x"], "error": None}
    async with serving(home, {"echo": echo}) as server:
        waiting = await outside(lambda: client.ask_to_say_when_ended(entry(home)))
        # Nothing has read the request yet, perhaps: `finish` must still answer it.
        await server.finish(result)
        assert await outside(lambda: waiting.receive(seconds=5)) == result
        assert registry.find(home, "/mnt/a") is None
        waiting.__exit__(None, None, None)


async def test_await_exit_sent_just_before_the_end_is_never_lost(home: Home) -> None:
    for _ in range(50):
        server = ControlServer(home, record(), {})
        server.open()
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            with client.ask_to_say_when_ended(registry.Entry(registry.socket_path(home, "/mnt/a"), None, True)) as late:
                await server.finish({"unsaved": []})
                assert late.receive(seconds=1) == {"unsaved": []}


async def test_an_idle_client_does_not_delay_the_end(home: Home) -> None:
    with trio.fail_after(2):
        async with serving(home, {"echo": echo}) as server:
            with client.Connection(entry_path(home), label="x") as idle:
                await outside(lambda: idle.ask("echo"))
                await server.finish({})


def entry_path(home: Home) -> Path:
    return registry.socket_path(home, "/mnt/a")


async def test_who_leaves_while_waiting_for_the_end_is_forgotten(home: Home) -> None:
    async with serving(home, {"echo": echo}) as server:
        waiting = await outside(lambda: client.ask_to_say_when_ended(entry(home)))
        waiting.__exit__(None, None, None)
        await all_dropped(server)


async def test_a_second_daemon_for_the_same_mount_point_is_refused(home: Home) -> None:
    async with serving(home, {}):
        with pytest.raises(Busy, match="served already"):
            await outside(lambda: registry.bind(home, record()))


async def test_another_user_is_refused(home: Home) -> None:
    """The directory keeps others out; SO_PEERCRED does so even where a descriptor leads past it."""
    program = textwrap.dedent(
        """
        import os, socket, sys
        os.chdir(sys.argv[1])
        os.setuid(65534)
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(sys.argv[2])
        raw.sendall(b'{"op":"echo"}\\n')
        sys.stdout.write(raw.makefile().readline())
        """
    )
    async with serving(home, {"echo": echo}):
        path = entry(home).socket
        # What a helpful administrator might do.
        path.chmod(0o666)
        path.parent.chmod(0o711)
        ran = await outside(
            lambda: subprocess.run(
                [sys.executable, "-c", program, str(path.parent), path.name],
                capture_output=True,
                text=True,
                check=True,
            )
        )
    assert json.loads(ran.stdout)["error"]["class"] == "PolicyDenied"


async def test_socket_and_record_are_private(home: Home) -> None:
    async with serving(home, {}):
        path = entry_path(home)
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.with_suffix(".json").stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_the_size_of_ucred_is_what_the_kernel_gives() -> None:
    left, right = socket.socketpair()
    with left, right:
        credentials = left.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 64)
        assert struct.unpack("3i", credentials)[1] == os.geteuid()

"""A filesystem of a few fixed files on a FuseDevice, run as a program and steered by JSON lines on stdin.

`python tiny_fs.py '{"mountpoint": …}'`; the first line on stdout is {"ready": …} or {"error": …}, then one
line per command. Files: hello (its content is set by a command), slow (reading it waits for a command),
file (writable), direct (opened with direct I/O, writable), link (a symlink).
"""

import errno
import json
import os
import stat
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio

from cmkfs.errors import CmkfsError
from cmkfs.fs.fusedev import DeviceOptions, FuseDevice, MountRequest, open_device
from cmkfs.fs.guard import errno_of
from cmkfs.fs.kernel_mount import FUSECTL
from cmkfs.fuse import polling
from cmkfs.fuse.init import InitFlag, Wish
from cmkfs.fuse.messages import DIRECT_IO, KEEP_CACHE, Entry, Opened

ROOT, HELLO, SLOW, FILE, DIRECT, LINK = 1, 2, 3, 4, 5, 6
NAMES = {b"hello": HELLO, b"slow": SLOW, b"file": FILE, b"direct": DIRECT, b"link": LINK}


class Tiny:
    def __init__(self, timeout: float) -> None:
        self.timeout = int(timeout)
        self.content = {HELLO: bytearray(b"hello"), SLOW: bytearray(b"slow"), FILE: bytearray()}
        self.content[DIRECT] = bytearray(4096)
        self.target = b"hello"
        self.requests: Counter[str] = Counter()
        self.created: list[tuple[int, int]] = []
        self.reading_slow = 0
        self.may_read_slow = trio.Event()
        self.somebody_reads_slow = trio.Condition()

    def errno_of(self, name: str, args: tuple[object, ...], error: Exception) -> int:
        return errno_of(name, error)

    def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self.requests["forget"] += 1

    def _attributes(self, inode: int) -> Entry:
        kind = {ROOT: stat.S_IFDIR | 0o777, LINK: stat.S_IFLNK | 0o777}.get(inode, stat.S_IFREG | 0o666)
        size, timeout = len(self.content.get(inode, b"")), self.timeout
        return Entry(inode, 0, timeout, timeout, kind, 1, os.getuid(), os.getgid(), st_size=size)

    async def lookup(self, parent_inode, name, request):  # type: ignore[no-untyped-def]
        self.requests["lookup"] += 1
        if name not in NAMES:
            raise failure(errno.ENOENT)
        return self._attributes(NAMES[name])

    async def getattr(self, inode, request):  # type: ignore[no-untyped-def]
        self.requests["getattr"] += 1
        return self._attributes(inode)

    async def setattr(self, inode, changes, fh, request):  # type: ignore[no-untyped-def]
        self.requests["setattr"] += 1
        if changes.size is not None:
            content = self.content[inode]
            content[:] = content[: changes.size].ljust(changes.size, b"\0")
        return self._attributes(inode)

    async def open(self, inode, flags, kill_suidgid, request):  # type: ignore[no-untyped-def]
        self.requests["open"] += 1
        return Opened(inode, KEEP_CACHE | (DIRECT_IO if inode in (DIRECT, SLOW) else 0))

    async def read(self, fh, off, size):  # type: ignore[no-untyped-def]
        self.requests["read"] += 1
        if fh == SLOW:
            async with self.somebody_reads_slow:
                self.reading_slow += 1
                self.somebody_reads_slow.notify_all()
            await self.may_read_slow.wait()
        return bytes(self.content[fh][off : off + size])

    async def write(self, fh, off, buf, kill_suidgid):  # type: ignore[no-untyped-def]
        self.requests["write"] += 1
        self.requests["largest write"] = max(self.requests["largest write"], len(buf))
        content = self.content[fh]
        if len(content) < off:
            content.extend(bytes(off - len(content)))
        content[off : off + len(buf)] = buf
        return len(buf)

    async def getxattr(self, inode, name, request):  # type: ignore[no-untyped-def]
        self.requests["getxattr"] += 1
        raise failure(errno.ENODATA)

    async def mkdir(self, parent_inode, name, mode, umask, request):  # type: ignore[no-untyped-def]
        self.created.append((mode & 0o7777, umask))
        raise failure(int(name) if name.strip(b"-").isdigit() else errno.EROFS)

    async def readlink(self, inode, request):  # type: ignore[no-untyped-def]
        self.requests["readlink"] += 1
        return self.target

    async def opendir(self, inode, request):  # type: ignore[no-untyped-def]
        return Opened(inode, 0)

    async def readdir(self, fh, start_id, listing):  # type: ignore[no-untyped-def]
        return listing

    async def statfs(self, request):  # type: ignore[no-untyped-def]
        self.requests["statfs"] += 1
        return os.statvfs("/")


def failure(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Steering:
    """The commands. Those that talk to the kernel run in a thread, as they must."""

    def __init__(self, device: FuseDevice, tiny: Tiny) -> None:
        self.device = device
        self.tiny = tiny

    async def negotiated(self) -> dict[str, Any]:
        found = self.device.negotiated
        assert found is not None
        return {name: getattr(found, name) for name in type(found).__slots__}

    async def look(self, name: str) -> dict[str, Any]:
        """The content of a file, read through the mount by the user who mounted it."""
        return {"text": (await trio.Path(self.device.mountpoint / name).read_bytes()).decode()}

    async def fusectl(self, name: str) -> dict[str, Any]:
        return {"text": (FUSECTL / str(self.device.connection) / name).read_text()}

    async def requests(self) -> dict[str, Any]:
        return {"requests": dict(self.tiny.requests), "created": self.tiny.created}

    async def set_hello(self, text: str) -> dict[str, Any]:
        self.tiny.content[HELLO][:] = text.encode()
        return {}

    async def set_target(self, size: int) -> dict[str, Any]:
        self.tiny.target = b"t" * size
        return {}

    async def await_slow_readers(self, count: int) -> dict[str, Any]:
        async with self.tiny.somebody_reads_slow:
            while self.tiny.reading_slow < count:
                await self.tiny.somebody_reads_slow.wait()
        return {"reading": self.tiny.reading_slow}

    async def release_slow(self) -> dict[str, Any]:
        self.tiny.may_read_slow.set()
        return {}

    async def invalidate_inode(self, inode: int, attr_only: bool = False) -> dict[str, Any]:
        def call() -> bool:
            return self.device.invalidate_inode(inode, attr_only=attr_only)

        return {"known": await trio.to_thread.run_sync(call)}

    async def invalidate_entry(self, parent: int, name: str) -> dict[str, Any]:
        return {"known": await trio.to_thread.run_sync(self.device.invalidate_entry, parent, name.encode())}

    async def abort(self) -> dict[str, Any]:
        await trio.to_thread.run_sync(self.device.abort)
        return {}

    async def abort_then_invalidate(self, name: str, inode: int) -> dict[str, Any]:
        """What an open descriptor reads after the one and after the other."""

        def call() -> dict[str, Any]:
            with open(self.device.mountpoint / name, "rb", buffering=0) as file:
                file.read()
                self.device.abort()
                self.device.abort()  # idempotent
                after_abort = os.pread(file.fileno(), 100, 0).decode()
                known = self.device.invalidate_inode(inode)
                try:
                    after: object = os.pread(file.fileno(), 100, 0).decode()
                except OSError as error:
                    after = error.errno
            return {"after_abort": after_abort, "known": known, "after_invalidation": after}

        return await trio.to_thread.run_sync(call)

    async def unmount(self, lazy: bool = False) -> dict[str, Any]:
        def call() -> bool:
            return self.device.unmount(lazy=lazy)

        return {"was_mounted": await trio.to_thread.run_sync(call)}

    async def stop(self) -> dict[str, Any]:
        self.device.stop()
        return {}

    async def pretend_readable(self) -> dict[str, Any]:
        """Make the next look find what is not there, as if the request had vanished after the poll."""
        really = polling.Readiness.at_once

        def once(readiness: polling.Readiness) -> bool:
            polling.Readiness.at_once = really  # type: ignore[method-assign]
            return True

        polling.Readiness.at_once = once  # type: ignore[method-assign]
        return {}

    async def ticks(self, seconds: float) -> dict[str, Any]:
        """The longest time in seconds by which a timer of 1 ms was late, watched for `seconds`."""
        until = trio.current_time() + seconds
        worst = 0.0
        while trio.current_time() < until:
            due = trio.current_time() + 1e-3
            await trio.sleep_until(due)
            worst = max(worst, trio.current_time() - due)
        return {"late": worst}


async def obey(steering: Steering) -> None:
    stdin = trio.lowlevel.FdStream(os.dup(0))
    pending = b""
    async with trio.open_nursery() as nursery:
        async for chunk in stdin:
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                nursery.start_soon(obey_one, steering, json.loads(line))
        steering.device.stop()  # the test is gone


async def obey_one(steering: Steering, command: dict[str, Any]) -> None:
    name = command.pop("op")
    try:
        say({"ok": await getattr(steering, name)(**command)})
    except (CmkfsError, OSError) as error:
        say({"error": type(error).__name__, "message": str(error), "hint": getattr(error, "next_step", "")})


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


async def serve(device: FuseDevice, tiny: Tiny, max_tasks: int) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(obey, Steering(device, tiny))
        nursery.start_soon(announce, device)
        await device.serve(max_tasks=max_tasks)
        nursery.cancel_scope.cancel()


async def announce(device: FuseDevice) -> None:
    await device.serving.wait()
    say({"ready": {"pid": os.getpid(), "connection": device.connection}})


def main(arguments: dict[str, Any]) -> None:
    if arguments["uid"]:  # only now: the user may not be allowed to read the modules imported above
        os.setgroups([])
        os.setresgid(*[arguments["uid"]] * 3)
        os.setresuid(*[arguments["uid"]] * 3)
    request = MountRequest(source=bytes.fromhex(arguments["source"]), **arguments["request"])
    wish = Wish(InitFlag(arguments["flags"]), arguments["max_background"])
    try:
        options = DeviceOptions(wish, arguments["poll_window"])
        device = open_device(Path(arguments["mountpoint"]), request, options)
    except CmkfsError as error:
        say({"error": type(error).__name__, "message": str(error), "hint": error.next_step})
        return
    tiny = Tiny(arguments["timeout"])
    try:
        device.attach(tiny)
        trio.run(serve, device, tiny, arguments["max_tasks"])
    finally:
        device.close()
        device.close()  # idempotent
    say({"ended": True})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

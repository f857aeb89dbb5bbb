"""A user with a process of his own on a mount, made by setpriv(1): keeps descriptors, mappings and a directory.

Run as a program it obeys JSON lines: `[operation, argument, …]` to `{"ok": value}` or `{"errno": name}`.
"""

import errno
import json
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Refused(Exception):
    """The operation failed; `args[0]` is the name of the errno."""


class Person:
    """The test's end. Raises Refused with the name of the errno."""

    def __init__(self, uid: int, *groups: int) -> None:
        command = ["setpriv", f"--reuid={uid}", f"--regid={uid}"]
        command += [f"--groups={','.join(map(str, groups))}"] if groups else ["--clear-groups"]
        self._process = subprocess.Popen(
            [*command, sys.executable, "-I", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.uid = uid
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def do(self, operation: str, *arguments: Any) -> Any:
        """What it gives."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        words = [os.fspath(word) if isinstance(word, os.PathLike) else word for word in arguments]
        self._process.stdin.write(json.dumps([operation, *words]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "errno" in answer:
            raise Refused(answer["errno"])
        return answer["ok"]

    def outcome(self, operation: str, *arguments: Any) -> str:
        """`ok`, or the name of the errno."""
        try:
            self.do(operation, *arguments)
        except Refused as refused:
            return str(refused)
        return "ok"


_mappings: list[mmap.mmap] = []


def _map(fd: int, writable: bool) -> int:
    _mappings.append(mmap.mmap(fd, 0, prot=mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)))
    return len(_mappings) - 1


def _peek(number: int) -> str:
    """Read from a mapping in a child: a SIGBUS ends it, and Python cannot go on after one."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        os.write(write, _mappings[number][:7])
        os._exit(0)
    os.close(write)
    found = os.read(read, 7)
    os.close(read)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        raise OSError(errno.EFAULT, signal.Signals(os.WTERMSIG(status)).name)
    return found.decode()


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode:
        raise OSError(errno.ECHILD, done.stderr)
    return done.stdout


def _write(path: str, text: str) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        return os.write(fd, text.encode())
    finally:
        os.close(fd)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "open": os.open,
    "close": os.close,
    "pread": lambda fd, length=7: os.pread(fd, length, 0).decode(),
    "pwrite": lambda fd, text: os.pwrite(fd, text.encode(), 0),
    "fsync": os.fsync,
    "map": _map,
    "peek": _peek,
    "read": lambda path: Path(path).read_text(),
    "write": _write,
    "stat": lambda path: os.stat(path).st_size,
    "lstat": lambda path: os.lstat(path).st_size,
    "fstat": lambda fd: os.fstat(fd).st_size,
    "list": lambda path: sorted(os.listdir(path)),
    "chdir": os.chdir,
    "mkdir": os.mkdir,
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "rename": os.rename,
    "link": os.link,
    "symlink": os.symlink,
    "readlink": os.readlink,
    "chmod": os.chmod,
    "chown": os.chown,
    "utime": os.utime,
    "truncate": os.truncate,
    "ftruncate": os.ftruncate,
    "mknod": os.mkfifo,
    "getxattr": lambda path, name: os.getxattr(path, name).decode(),
    "listxattr": os.listxattr,
    "setxattr": lambda path, name, value: os.setxattr(path, name, value.encode()),
    "removexattr": os.removexattr,
    "statvfs": lambda path: os.statvfs(path).f_bsize,
    "run": _run,
}


def main() -> None:
    """Obey until the test closes the pipe."""
    for line in sys.stdin:
        operation, *arguments = json.loads(line)
        try:
            answer = {"ok": OPERATIONS[operation](*arguments)}
        except OSError as error:
            answer = {"errno": errno.errorcode.get(error.errno or 0, repr(error))}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

"""Beginning the token's process, and ending it. Light to import: a mount begins it before anything else.

It takes as long to begin as the daemon itself does; so they do it side by side.
"""

import socket
import subprocess
import sys
from typing import Final

from cmkfs.priority import put_first

LARGEST_MESSAGE: Final = 1 << 20
"""Bytes of a call, or of its answer."""


def overwrite(message: memoryview) -> None:
    """What was in it cannot be read from memory any more: keys, and the PIN."""
    message[:] = bytes(len(message))


class Started:
    """A process that waits for its first call, and the socket to it."""

    def __init__(self) -> None:
        """Raises OSError if no process can be begun."""
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            for end in (self.socket, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST_MESSAGE)
            # Nothing is imported from the directory in which somebody happens to mount.
            command = [sys.executable, "-P", "-m", "cmkfs.keys.token_server", str(theirs.fileno())]
            try:
                self.process = subprocess.Popen(
                    command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, cwd="/", start_new_session=True
                )
            except BaseException:
                self.socket.close()
                raise
        put_first(self.process.pid)  # a disable is learned through it
        self.socket.setblocking(False)

    def end(self, wait: float) -> None:
        """Close the socket, at which it ends; killed if that takes longer than `wait` seconds. Idempotent."""
        self.socket.close()
        try:
            self.process.wait(wait)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

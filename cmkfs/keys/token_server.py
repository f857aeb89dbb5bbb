"""The process that makes every PKCS#11 call of a mount: one thread, one request after the other.

It is a program of its own (`python -m cmkfs.keys.token_server FD`), begun fresh, because a PKCS#11 module survives
no fork. The first request opens the provider; it ends when the daemon closes the socket or dies.
"""

import ctypes
import errno
import pickle
import signal
import socket
import sys
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Any

from cmkfs.errors import CmkfsError, TokenUnavailable
from cmkfs.keys.memory import protect_memory
from cmkfs.keys.pkcs11 import Pkcs11Provider
from cmkfs.keys.token_client import OPEN, perform
from cmkfs.keys.token_start import LARGEST_MESSAGE, overwrite
from cmkfs.privileges import no_new_privileges

_PR_SET_PDEATHSIG = 1


def main(fd: int) -> None:
    """Answer requests until there are no more."""
    # A service manager or a terminal signals every process of the group; this one must outlive the daemon's unmount.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    protect_memory()
    no_new_privileges()  # also where the daemon cannot: of a mount that is not root's
    with socket.socket(fileno=fd) as requests:
        try:
            serve(requests)
        except ConnectionError:
            return  # the daemon ended without waiting for the last answer


def serve(requests: socket.socket) -> None:
    """One provider for one socket."""
    provider: Pkcs11Provider | None = None
    buffer = mmap(-1, LARGEST_MESSAGE, flags=MAP_PRIVATE | MAP_ANONYMOUS)
    while length := requests.recv_into(buffer):
        name, args, named = _read(memoryview(buffer)[:length])
        try:
            if name == OPEN:
                access, pin, once = args
                provider = access.open(pin, read_write=False)
                if once:
                    provider.log_in_no_more()
                # Not before: a login that is killed half-way can cost SoftHSM its token (`keys.object_copies`).
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                answer: Any = None
            elif provider is None:
                raise TokenUnavailable("the token is not open")
            else:
                answer = perform(provider, name, *args, **named)
            reply = (True, answer)
        except CmkfsError as error:
            reply = (False, error)
        except Exception as error:
            # A module can fail in ways nobody thought of; its errors need not be anything that travels.
            reply = (False, TokenUnavailable(f"the token failed: {error!r}"))
        _answer(requests, reply)


def _read(message: memoryview) -> Any:
    try:
        return pickle.loads(message)  # noqa: S301 - from the daemon that started this process
    finally:
        overwrite(message)


def _answer(requests: socket.socket, reply: tuple[bool, Any]) -> None:
    try:
        requests.send(pickle.dumps(reply, pickle.HIGHEST_PROTOCOL))
    except OSError as error:
        if error.errno != errno.EMSGSIZE:  # the limit of wmem_max, for a daemon that is not root
            raise
        late = TokenUnavailable("the token's answer is larger than a message may be here")
        requests.send(pickle.dumps((False, late), pickle.HIGHEST_PROTOCOL))


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""Who asks: the one fact about a request that the kernel vouches for."""

from typing import NamedTuple


class Request(NamedTuple):
    """Effective uid and gid, and the process (0: in another pid namespace), as the kernel tells them."""

    uid: int
    gid: int
    pid: int

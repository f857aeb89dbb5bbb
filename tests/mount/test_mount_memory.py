"""A daemon that gets no more memory: what cannot be done is refused, what was stored stays, and the mount lives on."""

import errno
import os
import re
import resource
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from real_mount import NewMount

MIB = 1 << 20
REFUSED = {errno.ENOMEM, errno.ENOKEY}
"""ENOKEY: of who needs a key from the token just then."""


@contextmanager
def no_more_memory(pid: int, more: int) -> Iterator[None]:
    """The address space of a process may grow by so many bytes (getrlimit(2))."""
    found = re.search(r"VmSize:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    resource.prlimit(pid, resource.RLIMIT_AS, ((int(found[1]) << 10) + more, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_a_daemon_without_memory_refuses_and_lives_on(new_mount: NewMount) -> None:
    mounted = new_mount()
    mounted.expected_log = [""]  # it tells of each thing that it could not do
    stored = {f"f{number}": os.urandom(20_000) for number in range(40)}
    for name, data in stored.items():
        (mounted.path / name).write_bytes(data)
    large = os.urandom(4 * MIB)
    (mounted.path / "large").write_bytes(large)
    mounted.again()
    errors: Counter[int | None] = Counter()

    def use(part: int) -> None:
        for name in list(stored)[part::8]:
            try:
                assert (mounted.path / name).read_bytes() == stored[name]
                os.listdir(mounted.path)
                (mounted.path / f"new {name}").write_bytes(stored[name])
            except OSError as error:
                errors[error.errno] += 1
        try:
            assert (mounted.path / "large").read_bytes() == large
        except OSError as error:
            errors[error.errno] += 1

    for more in (-64 * MIB, 2 * MIB):
        with no_more_memory(mounted.pid, more):
            threads = [threading.Thread(target=use, args=(part,)) for part in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert set(errors) <= REFUSED, errors
    assert errors.total() or "no further request is read" in mounted.log.read_text()
    while not mounted.ask("status")["token"]["healthy"]:
        os.stat(mounted.path)
    mounted.ask("unlock")
    assert {name: (mounted.path / name).read_bytes() for name in stored} == stored
    assert (mounted.path / "large").read_bytes() == large

"""Whoever waited for the token is asked for the right again, which may have gone meanwhile (P5)."""

import os
from collections.abc import Awaitable, Callable

import pytest
import trio
from model.harness import ROOT, Harness, Program

from cmkfs.errors import PolicyDenied
from cmkfs.fuse.messages import Changes

CONTENT, VALUE = b"content", b"value"
Operation = Callable[[Program, int], Awaitable[object]]

OPERATIONS: dict[str, Operation] = {
    "open": lambda by, ino: by.operations.open(ino, os.O_RDONLY, False, by.request),
    "truncate": lambda by, ino: by.operations.setattr(ino, Changes(size=1), None, by.request),
    "getxattr": lambda by, ino: by.operations.getxattr(ino, b"user.a", by.request),
    "getxattr, by the kernel": lambda by, ino: by.operations.getxattr(ino, b"security.capability", by.request),
    "setxattr": lambda by, ino: by.operations.setxattr(ino, b"user.a", b"another", 0, by.request),
    "removexattr": lambda by, ino: by.operations.removexattr(ino, b"user.a", by.request),
    "listxattr": lambda by, ino: by.operations.listxattr(ino, by.request),
}


@pytest.fixture
async def ino(mounted: Harness) -> int:
    """A file with an attribute; its key is in the token alone."""
    made = await mounted.program.save(ROOT, b"file", CONTENT)
    await mounted.program.set_xattr(made, b"user.a", VALUE)
    await mounted.mounted.settler.settle_all()
    await mounted.lock()
    await mounted.unlock()
    assert mounted.keyring.leases == 0
    return made


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
async def test_a_right_that_goes_during_the_wait_is_gone(mounted: Harness, ino: int, operation: Operation) -> None:
    refused: list[PolicyDenied] = []

    async def ask() -> None:
        with pytest.raises(PolicyDenied) as caught:
            await operation(mounted.program, ino)
        refused.append(caught.value)

    mounted.token.hang()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            while not mounted.token.entered.is_set():
                await trio.lowlevel.checkpoint()
            assert not refused
            mounted.policies.refuse_all(mounted.cmk.cmk_id)
            mounted.token.answer()
    finally:
        mounted.token.answer()
    assert len(refused) == 1
    mounted.policies.set_policy(mounted.cmk.cmk_id, None)
    assert await mounted.program.xattrs(ino) == {b"user.a": VALUE}
    assert await mounted.program.content(ino) == CONTENT
    await mounted.unmount()

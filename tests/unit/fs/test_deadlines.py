"""What trio keeps of deadlines that are of no use any more."""

import pytest
import trio
from trio._core._run import GLOBAL_RUN_CONTEXT

from cmkfs.fs.deadlines import give_back_deadlines


@pytest.mark.trio
async def test_deadlines_of_what_has_ended_are_let_go_of() -> None:
    kept = GLOBAL_RUN_CONTEXT.runner.deadlines._heap
    ended = trio.current_time() + 1e5
    for _ in range(500):
        with trio.CancelScope(deadline=ended):  # noqa: ASYNC100 - it is for trio to count
            pass
    assert sum(deadline == ended for deadline, *_ in kept) == 500, "trio does not keep them: nothing to do"
    give_back_deadlines()
    await trio.lowlevel.checkpoint()
    assert not any(deadline == ended for deadline, *_ in GLOBAL_RUN_CONTEXT.runner.deadlines._heap)

"""A mount's end of the control socket that answers what it is told to, without a mount behind it.

`python scripted_daemon.py SCRIPT`: SCRIPT is JSON, `{"mountpoint", "cmks", "answers": {op: answer}}`; an
answer is what goes back under `ok`, `{"error": …}` raises that class, `null` never comes. Writes a line
once it listens; each line on stdin ends the mount with that result for `await_exit`.
"""

import json
import os
import sys
from collections.abc import Mapping

import trio

from cmkfs.control.protocol import Fields, error_from
from cmkfs.control.registry import MountRecord
from cmkfs.control.server import ControlServer, Handler
from cmkfs.home import Home


def handler(answer: Fields | None) -> Handler:
    async def answering(_: Fields) -> Fields:
        if answer is None:
            await trio.sleep_forever()
            raise AssertionError
        if isinstance(answer.get("error"), dict):
            raise error_from(answer["error"])  # type: ignore[arg-type]
        return answer

    return answering


async def serve(script: Mapping[str, object]) -> None:
    record = MountRecord(str(script["mountpoint"]), "/the/vault", os.getpid(), dict(script["cmks"]), 0.1)  # type: ignore[call-overload]
    answers: dict[str, Fields | None] = dict(script["answers"])  # type: ignore[call-overload]
    server = ControlServer(Home.from_environment(), record, {op: handler(it) for op, it in answers.items()})
    server.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        print("listening", flush=True)
        line = await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
        await server.finish(json.loads(line or "{}"))


if __name__ == "__main__":
    trio.run(serve, json.loads(sys.argv[1]))

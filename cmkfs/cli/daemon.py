"""Starting a mount in the background, and hearing from it whether it serves.

The daemon is `cmkfs mount … -f` in a session of its own. It writes one line of JSON to `--ready-fd`:
`{"ready": report}` once files can be used, or `{"error": …}`. The PIN reaches it through a pipe
(`--pin-fd`), because arguments and environment are for everyone to see.
"""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import cmkfs
from cmkfs.cli.progress import shown
from cmkfs.control.protocol import Fields, error_fields, error_from
from cmkfs.errors import CmkfsError, MountFailed

LOG_LIMIT = 1 << 20
"""Bytes that a log may have before the next mount moves it aside."""


class ReadyPipe:
    """The daemon's end; only the first thing that is said counts."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def ready(self, report: Fields) -> None:
        """Files can be used."""
        self._say({"ready": report})

    def failed(self, error: CmkfsError) -> None:
        """Nothing was mounted."""
        self._say({"error": {**error_fields(error), "exit_code": error.exit_code}})

    def _say(self, message: Fields) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with open(descriptor, "wb") as pipe:
                pipe.write(json.dumps(message).encode() + b"\n")


def start(arguments: Sequence[str], *, pin: str | None, log: Path) -> Fields:
    """Start `cmkfs mount ARGUMENTS -f` and return its report once it serves.

    Raises the error that it reports, MountFailed if it ends without a word, and then nothing is mounted.
    """
    log_from = _rotate(log)
    ready_out, ready_in = os.pipe()
    pin_out, pin_in = os.pipe()
    with open(ready_out, "rb") as hears, open(log, "ab") as output:
        try:
            command = [sys.executable, "-P", "-m", "cmkfs", "mount", "-f", "--ready-fd", str(ready_in)]
            if pin is not None:
                command += ["--pin-fd", str(pin_out)]
                os.write(pin_in, pin.encode())
            daemon = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=_environment(),
                pass_fds=(ready_in, pin_out) if pin is not None else (ready_in,),
                start_new_session=True,
            )
        finally:
            for descriptor in (ready_in, pin_in, pin_out):
                os.close(descriptor)
        try:
            with shown(lambda: "mounting"):
                line = hears.readline()
        except BaseException:
            daemon.terminate()  # interrupted by hand: SIGTERM is `umount` to a daemon
            daemon.wait()
            raise
    if not line.endswith(b"\n"):
        daemon.wait()
        raise MountFailed(f"the daemon ended: {_last_line(log, log_from)}", hint=f"less {log}")
    return _report(json.loads(line), daemon)


def _report(message: Fields, daemon: "subprocess.Popen[bytes]") -> Fields:
    if "error" in message:
        daemon.wait()
        raise error_from(cast(Fields, message["error"]))
    daemon.returncode = 0  # it goes on: no warning that it is still running
    return cast(Fields, message["ready"])


def _environment() -> dict[str, str]:
    """The daemon's environment: it must find this very cmkfs, also when it is run from a checkout.

    `-P` keeps the working directory out of the search: whoever can write there could put a `cmkfs` in it.
    """
    environment = dict(os.environ)
    home = str(Path(cmkfs.__file__).resolve().parent.parent)
    if home not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), home]))
    return environment


def _rotate(log: Path) -> int:
    """Where the new lines will begin, in bytes; a log that has grown too long is moved to `.1` first."""
    if not log.exists():
        return 0
    size = log.stat().st_size
    if size <= LOG_LIMIT:
        return size
    log.replace(log.with_suffix(".log.1"))
    return 0


def _last_line(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "its log says nothing"

"""PINs: each source, each way in which it can be wrong, and the PIN never in a message."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import cmkfs
from cmkfs.errors import ConfigError
from cmkfs.keys import pin as pin_module
from cmkfs.keys.pin import PinKind, PinSource, read_pin


def read(kind: PinKind, value: object = "") -> str:
    return read_pin(PinSource(kind, str(value)), label="token")


def private(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("content", [b"s3cret", b"s3cret\n", b"s3cret\r\n", b"s3cret\n\n"])
@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440])
def test_file(tmp_path: Path, content: bytes, mode: int) -> None:
    assert read(PinKind.FILE, private(tmp_path / "pin", content, mode)) == "s3cret"


def test_blanks_belong_to_the_pin(tmp_path: Path) -> None:
    assert read(PinKind.FILE, private(tmp_path / "pin", " a pín ".encode() + b"\n")) == " a pín "


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o602])
def test_a_file_that_others_can_read_or_change(tmp_path: Path, mode: int) -> None:
    path = private(tmp_path / "pin", b"s3cret", mode)
    with pytest.raises(ConfigError, match="by others") as refused:
        read(PinKind.FILE, path)
    assert refused.value.next_step == f"chmod 600 {path}"


@pytest.mark.parametrize("content", [b"", b"\n", b"s3cret\nmore", b"s3cret\xff", b"s3cret" * 1000])
def test_bad_files(tmp_path: Path, content: bytes) -> None:
    path = private(tmp_path / "pin", content)
    with pytest.raises(ConfigError) as refused:
        read(PinKind.FILE, path)
    assert "s3cret" not in str(refused.value).replace(str(path), "")


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read(PinKind.FILE, tmp_path / "nothing")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(PinKind.FILE, tmp_path)


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pin", 0o600)
    with pytest.raises(ConfigError, match="empty"):
        read(PinKind.FILE, tmp_path / "pin")


def test_environment_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_PIN", "s3cret")
    assert read(PinKind.ENV, "TOKEN_PIN") == "s3cret"
    assert "TOKEN_PIN" not in os.environ
    with pytest.raises(ConfigError, match="TOKEN_PIN"):
        read(PinKind.ENV, "TOKEN_PIN")
    monkeypatch.setenv("TOKEN_PIN", "")
    with pytest.raises(ConfigError, match="empty"):
        read(PinKind.ENV, "TOKEN_PIN")


def test_command() -> None:
    assert read(PinKind.COMMAND, "printf '%s\\n' 's3cret pin'") == "s3cret pin"
    assert read(PinKind.COMMAND, "echo $HOME;id") == "$HOME;id"  # no shell


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "is empty"),
        ("'", "cannot be split"),
        ("/nonexistent/program", "cannot be run"),
        ("sh -c 'echo s3cret; exit 3'", "status 3"),
        ("true", "empty"),
        ("printf 's3cret\\nmore'", "more than one line"),
    ],
)
def test_bad_commands(command: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        read(PinKind.COMMAND, command)
    assert "s3cret" not in str(refused.value)


def test_a_command_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pin_module, "COMMAND_SECONDS", 0.05)
    with pytest.raises(ConfigError, match="took longer"):
        read(PinKind.COMMAND, "sleep 60")


PROMPT = "from cmkfs.keys.pin import *; print('<' + read_pin(PinSource(PinKind.PROMPT), label='hsm') + '>')"


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(cmkfs.__file__).parents[1])}


def test_prompt_on_a_terminal_does_not_echo() -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, [sys.executable, "-c", PROMPT], _environment())
    said = b""
    with os.fdopen(terminal, "r+b", buffering=0) as file:
        while b"PIN of token hsm: " not in said:
            said += file.read(1)
        file.write(b"s3cret\n")
        try:
            while piece := file.read(100):
                said += piece
        except OSError:
            pass  # EIO is how Linux says that the other side of a terminal has ended.
    assert os.waitpid(child, 0)[1] == 0
    assert said.count(b"s3cret") == 1
    assert b"<s3cret>" in said


def test_prompt_without_a_terminal() -> None:
    command = [sys.executable, "-c", PROMPT]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=_environment())
    assert "ConfigError: there is no terminal" in done.stderr

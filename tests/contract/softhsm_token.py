"""SoftHSM as the contract suite sees it: an embedded token in a directory of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pkcs11
import pytest

import cmkfs
from cmkfs import errors
from cmkfs.keys import embedded, pkcs11_session
from cmkfs.keys.access import TokenAccess
from cmkfs.keys.pin import PinKind, PinSource, read_pin
from cmkfs.keys.pkcs11 import Pkcs11Provider
from cmkfs.keys.provider import CmkId

LABEL = "cmkfs-test"


@dataclass(frozen=True, slots=True)
class TestHome:
    """As much of a home as the embedded token needs."""

    __test__ = False

    token_dir: Path


class OtherProcess:
    """The administrator's process, with the token open all the time."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("other_process.py")), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(cmkfs.__file__).parents[1])},
        )

    def create(self, name: str, key_type: str) -> CmkId:
        return CmkId(bytes.fromhex(str(self._ask("create", name, key_type))))

    def set_enabled(self, cmk_id: CmkId, enabled: bool) -> bool:
        return bool(self._ask("set_enabled", cmk_id.hex(), enabled))

    def set_policy(self, cmk_id: CmkId, text: str | None) -> None:
        self._ask("set_policy", cmk_id.hex(), text)

    def storm(self, cmk_id: CmkId, times: int) -> None:
        """Disable and enable again and again, without the lock that keeps processes of cmkfs apart."""
        self._ask("storm", cmk_id.hex(), times)

    def close(self) -> None:
        with self._process as process:  # closes its pipes, which ends it
            assert process.stdin is not None
        assert process.returncode == 0

    def _ask(self, *request: str | int | None) -> object:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        if "error" in answer:
            raise getattr(errors, answer["error"])("the other process met it")
        return answer["ok"]


class SoftHsmToken:
    """The harness of the contract suite around SoftHSM."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = TestHome(directory / "token")
        embedded.init_token(self.home, LABEL)
        self.module = embedded.find_module()
        self.pin = read_pin(PinSource(PinKind.FILE, str(embedded.pin_file(self.home))), label=LABEL)
        self.pin_tries = 0
        self._away = directory / "away"
        self._other: OtherProcess | None = None
        monkeypatch.setattr(pkcs11_session, "log_in", self._counting(pkcs11_session.log_in))

    def _counting(self, log_in: Callable[..., pkcs11.Session]) -> Callable[..., pkcs11.Session]:
        def counted(token: pkcs11.Token, pin: str, *, read_write: bool) -> pkcs11.Session:
            self.pin_tries += 1
            return log_in(token, pin, read_write=read_write)

        return counted

    @contextmanager
    def open(self, *, read_write: bool = True, pin: str | None = None) -> Iterator[Pkcs11Provider]:
        """A provider for the block; the process may have only one."""
        conf = embedded.conf_file(self.home)
        used = self.pin if pin is None else pin
        provider = Pkcs11Provider(self.module, LABEL, None, used, read_write=read_write, softhsm2_conf=conf)
        try:
            yield provider
        finally:
            provider.close()

    def access(self, module: str | None = None) -> TokenAccess:
        """As a configuration says it, for a process that is given the PIN; `module` is one in front of the real one."""
        unused = PinSource(PinKind.ENV, "UNUSED")
        return TokenAccess(module or self.module, LABEL, None, unused, embedded.conf_file(self.home))

    @property
    def elsewhere(self) -> OtherProcess:
        """What another process does to the token; it is a real one, started once."""
        if self._other is None:
            home = self.home
            self._other = OtherProcess(
                [self.module, str(embedded.conf_file(home)), LABEL, str(embedded.pin_file(home))]
            )
        return self._other

    def remove(self) -> None:
        """Move the token's files away."""
        (self.home.token_dir / "tokens").rename(self._away)

    def put_back(self) -> None:
        """Move them back."""
        self._away.rename(self.home.token_dir / "tokens")

    def close(self) -> None:
        if self._other is not None:
            self._other.close()

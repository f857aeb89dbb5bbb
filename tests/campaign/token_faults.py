"""A PKCS#11 module in front of SoftHSM, each of whose calls can be made to fail."""

import ctypes
import mmap
import subprocess
from dataclasses import dataclass
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")


class _Plan(ctypes.Structure):
    _counters = ("calls", "since", "until", "error", "struck", "delay", "under_way", "most", "login", "logins")
    _fields_ = [(name, ctypes.c_uint64) for name in _counters]


@dataclass(frozen=True, slots=True)
class Struck:
    """How many calls there were, and how many of them were made to fail."""

    calls: int
    failed: int


class TokenFaults:
    """The module, and what it is told; processes that load it need `environment`."""

    def __init__(self, top: Path, module: str) -> None:
        """`module` is the real one. Needs gcc."""
        self.library, control = top / "faults.so", top / "plan"
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-O1", "-o", str(self.library), str(_SOURCE), "-ldl"],
            check=True,
        )
        control.write_bytes(bytes(mmap.PAGESIZE))
        with control.open("r+b") as file:
            self._plan = _Plan.from_buffer(mmap.mmap(file.fileno(), mmap.PAGESIZE))
        self.environment = {"CMKFS_TOKEN_MODULE": module, "CMKFS_TOKEN_FAULTS": str(control)}

    def fail(self, error: int, *, since: int, times: int = 1) -> None:
        """Calls number `since` and on, counted from now and from 0, fail with this CK_RV."""
        plan = self._plan
        plan.until = 0
        plan.error, plan.since, plan.struck, plan.calls = error, since, 0, 0
        plan.until = since + times

    def delay(self, seconds: float) -> None:
        """Each call that the token works for takes so much longer from now on; `most_at_once` begins anew."""
        self._plan.most = 0
        self._plan.delay = int(seconds * 1e6)

    @property
    def most_at_once(self) -> int:
        """How many delayed calls were under way at the same time, of all processes."""
        return int(self._plan.most)

    def fail_login(self, error: int) -> None:
        """Each login (C_Login) fails with this CK_RV from now on, 0: none; `logins` are counted anew."""
        self._plan.logins = 0
        self._plan.login = error

    @property
    def logins(self) -> int:
        """How many there were since `fail_login`."""
        return int(self._plan.logins)

    def stop(self) -> Struck:
        """No call fails any more; what there was since `fail`."""
        self._plan.until = 0
        return Struck(self._plan.calls, self._plan.struck)

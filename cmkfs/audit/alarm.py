"""When records are more than records: bursts, use of disabled keys, changed policies, tampering. Pure.

An alert of one kind about one user is raised once in `QUIET_SECONDS`; it says how many were held back before.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cmkfs.config import AuditConfig

REFUSAL_SECONDS: Final = 10.0
USE_SECONDS: Final = 60.0
QUIET_SECONDS: Final = 60.0


class Kind(StrEnum):
    """What an alert is about."""

    DISABLED_KEY = "disabled-key-used"
    REFUSALS = "many-refusals"
    MASS_USE = "mass-use"
    POLICY = "policy-changed"
    SETTINGS = "audit-settings-changed"
    TAMPERING = "tampering"
    LOG_CUT = "audit-log-cut"


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert, in words; `uid` is whom it is about."""

    kind: Kind
    message: str
    uid: int | None


@dataclass(slots=True)
class _Window:
    since: float
    count: int


class Alarm:
    """Counts, and says when it is enough. `now` is in seconds of any one clock."""

    def __init__(self, settings: AuditConfig) -> None:
        self._settings = settings
        self._refusals: dict[int, _Window] = {}
        self._uses: dict[int, _Window] = {}
        self._last: dict[tuple[Kind, int | None], float] = {}
        self._held_back: dict[tuple[Kind, int | None], int] = {}

    def use(self, uid: int, now: float) -> Alert | None:
        """A user has opened another file."""
        if _counted(self._uses, uid, now, USE_SECONDS) != self._settings.alert_uses:
            return None
        message = f"uid {uid} used the keys of {self._settings.alert_uses} files within {USE_SECONDS:g} s"
        return self.about(Kind.MASS_USE, message, uid, now)

    def refusal(self, uid: int, now: float) -> Alert | None:
        """A user was refused."""
        if _counted(self._refusals, uid, now, REFUSAL_SECONDS) != self._settings.alert_refusals:
            return None
        message = f"uid {uid} was refused {self._settings.alert_refusals} times within {REFUSAL_SECONDS:g} s"
        return self.about(Kind.REFUSALS, message, uid, now)

    def about(self, kind: Kind, message: str, uid: int | None, now: float) -> Alert | None:
        """An alert, unless there was one of the kind about the user a moment ago."""
        known = (kind, uid)
        last = self._last.get(known)
        if last is not None and now - last < QUIET_SECONDS:
            self._held_back[known] = self._held_back.get(known, 0) + 1
            return None
        self._last[known] = now
        held_back = self._held_back.pop(known, 0)
        return Alert(kind, message + (f" ({held_back} more before)" if held_back else ""), uid)


def _counted(windows: dict[int, _Window], uid: int, now: float, seconds: float) -> int:
    window = windows.get(uid)
    if window is None or now - window.since >= seconds:
        windows[uid] = _Window(now, 1)
        return 1
    window.count += 1
    return window.count

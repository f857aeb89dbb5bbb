"""Points in time as people give them: ISO 8601, or an age."""

import re
from datetime import datetime

from cmkfs.errors import UsageError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def point_in_time(text: str, now: float) -> float:
    """Seconds since 1970. `10m` is ten minutes before `now`; a time without a zone is the host's. Raises UsageError."""
    age = re.fullmatch(r"(\d+)([smhdw])", text)
    if age:
        return now - int(age[1]) * _UNITS[age[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise UsageError(f"{text!r} is no time", hint="2026-01-31T08:00, or an age such as 10m, 2h, 7d") from None

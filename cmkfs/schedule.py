"""When a rule counts: hours, days of the week, and an expiry. Pure: the time is an argument.

Hours and days are wall-clock times in the rule's time zone; `22:00-06:00` goes over midnight and belongs to
the day on which it begins. The start counts, the end does not.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
EVERY_DAY = frozenset(range(7))
DAY = 24 * 60

_HOURS = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-4]):([0-5][0-9])")
_QUARTER = 900.0
"""Seconds. Clocks are put forward and back at full quarters of an hour (IANA time zones since 1972)."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """`start` and `stop` are minutes of the day, `expires` seconds since 1970; as made here it counts always."""

    days: frozenset[int] = EVERY_DAY
    start: int = 0
    stop: int = DAY
    zone: tzinfo = UTC
    expires: float | None = None

    @property
    def repeats(self) -> bool:
        """Does it depend on the time of the day or the day of the week?"""
        return self.days != EVERY_DAY or (self.start, self.stop) != (0, DAY)

    def active(self, now: float) -> bool:
        """Does the rule count at `now`, seconds since 1970?"""
        if self.expires is not None and now >= self.expires:
            return False
        if not self.repeats:
            return True
        local = datetime.fromtimestamp(now, self.zone)
        minute, today = local.hour * 60 + local.minute, local.weekday()
        if self.start < self.stop:
            return today in self.days and self.start <= minute < self.stop
        return (today in self.days and minute >= self.start) or ((today - 1) % 7 in self.days and minute < self.stop)

    def next_change(self, now: float) -> float:
        """The first time after `now` at which `active` may answer otherwise, at most; infinity if never."""
        times = [float("inf")]
        if self.expires is not None and self.expires > now:
            times.append(self.expires)
        expired = self.expires is not None and now >= self.expires
        if self.repeats and not expired:
            # A start or end between two quarters, else the next quarter: so that a change of the clock is seen.
            times.append((now // _QUARTER + 1) * _QUARTER)
            local = datetime.fromtimestamp(now, self.zone)
            for minute in (self.start, self.stop):
                wait = (minute - local.hour * 60 - local.minute) % DAY * 60 - local.second - local.microsecond / 1e6
                times.append(now + (wait if wait > 0 else wait + DAY * 60))
        return min(times)


def hours(text: str) -> tuple[int, int]:
    """`08:00-18:00` as minutes of the day. Raises ValueError."""
    found = _HOURS.fullmatch(text)
    if found is None:
        raise ValueError(f'hours must be like "08:00-18:00" or "22:00-06:00", not {text!r}')
    start = int(found[1]) * 60 + int(found[2])
    stop = int(found[3]) * 60 + int(found[4])
    if stop > DAY:
        raise ValueError(f"{text!r} ends after 24:00")
    if start == stop:
        raise ValueError(f"{text!r} is no time at all, or always; leave hours out for always")
    return start, stop


def days(text: str) -> frozenset[int]:
    """`fri` or `mon-fri` as days of the week, Monday 0. Raises ValueError."""
    first, dash, last = text.partition("-")
    if first not in DAYS or (dash and last not in DAYS):
        raise ValueError(f"{text!r} is no day; there are {', '.join(DAYS)} and ranges such as mon-fri")
    begin = DAYS.index(first)
    length = (DAYS.index(last) - begin) % 7 if dash else 0
    return frozenset((begin + day) % 7 for day in range(length + 1))


def moment(value: datetime, zone: tzinfo) -> float:
    """A date and time as seconds since 1970; without an offset it is one of the wall clock in `zone`."""
    return (value if value.tzinfo is not None else value.replace(tzinfo=zone)).timestamp()

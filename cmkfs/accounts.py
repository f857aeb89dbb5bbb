"""The host's users and groups, as `getent` shows them, and its time zones."""

import grp
import os
import pwd
from zoneinfo import ZoneInfo

NO_GROUP = 2**32 - 1
"""(gid_t) -1, which is no group (chown(2))."""


class SystemAccounts:
    """`policyfile.Accounts` by getpwnam(3) and getgrnam(3)."""

    def uid(self, name: str) -> int | None:
        """The number of a user, None if the host knows none of this name."""
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            return None

    def gid(self, name: str) -> int | None:
        """The number of a group, None if the host knows none of this name."""
        try:
            return grp.getgrnam(name).gr_gid
        except KeyError:
            return None

    def timezone(self, name: str) -> ZoneInfo | None:
        """The time zone of an IANA name, None if the host's /usr/share/zoneinfo does not have it."""
        try:
            return ZoneInfo(name)
        except (OSError, ValueError, KeyError):  # ZoneInfoNotFoundError is a KeyError; a directory an OSError
            return None


def groups_of(uid: int) -> tuple[int, frozenset[int]] | None:
    """The group of a user, and all that getgrouplist(3) gives; None if the host knows no such user."""
    try:
        found = pwd.getpwuid(uid)
    except KeyError:
        return None
    return found.pw_gid, frozenset(os.getgrouplist(found.pw_name, found.pw_gid))


def user_name(uid: int) -> str | None:
    """The name of a user, None if the host knows none of this number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def uid_of(user: str) -> int | None:
    """The number of a user who is named by name or number, None if the host knows none of this name."""
    return int(user) if user.isdecimal() else SystemAccounts().uid(user)

"""Every error of cmkfs: what a program on the mount sees, what the command exits with, what to try next.

`errno` is what the kernel is told, `exit_code` what the command ends with (the table of exit codes is
in README.md), `hint` the next command to try. Raise the narrowest class; catch `CmkfsError` only at
the two edges, `fs.operations` and `cli`.
"""

import errno as _errno
from typing import ClassVar

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_DENIED = 3
EXIT_KEY = 4
EXIT_DAMAGED = 5
EXIT_BUSY = 6
EXIT_NOT_FOUND = 7
EXIT_INTERRUPTED = 130


class CmkfsError(Exception):
    """The base of all. `str(error)` is one sentence that says what is wrong."""

    errno: ClassVar[int] = _errno.EIO
    exit_code: ClassVar[int] = EXIT_FAILED
    hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.next_step = type(self).hint if hint is None else hint


# -- What the caller asked for ---------------------------------------------------------------------


class UsageError(CmkfsError):
    """Wrong options or arguments."""

    errno = _errno.EINVAL
    exit_code = EXIT_USAGE
    hint = "cmkfs --help"


class ConfigError(CmkfsError):
    """The configuration, a policy file or an environment variable is wrong; names file and line."""

    errno = _errno.EINVAL
    exit_code = EXIT_USAGE


class AlreadyExists(CmkfsError):
    """Something of that name is there already."""

    errno = _errno.EEXIST


class NotFound(CmkfsError):
    """A vault, mount, CMK or token that is not there."""

    errno = _errno.ENOENT
    exit_code = EXIT_NOT_FOUND


class Busy(CmkfsError):
    """Somebody else uses it."""

    errno = _errno.EBUSY
    exit_code = EXIT_BUSY


class MountFailed(CmkfsError):
    """The kernel or fusermount3 refused the mount, or FUSE is missing."""


class GuardianGone(CmkfsError):
    """The process that guards a mount cannot be started, or was killed."""


class NoAnswer(CmkfsError):
    """The daemon of a mount lives, and does not answer in time."""


class CrossZone(CmkfsError):
    """Rename or link from one zone into another."""

    errno = _errno.EXDEV


# -- Keys ------------------------------------------------------------------------------------------


class KeyUnavailable(CmkfsError):
    """The base of all reasons why a key cannot be used now."""

    errno = _errno.ENOKEY
    exit_code = EXIT_KEY


class Disabled(KeyUnavailable):
    """The token refuses to use the CMK: it is disabled."""

    hint = "cmkfs cmk enable NAME"


class Locked(KeyUnavailable):
    """An operator locked the zone, or it locked itself."""

    hint = "cmkfs unlock MOUNTPOINT"


class Revoked(KeyUnavailable):
    """The CMK awaits its deletion or is destroyed."""

    errno = _errno.EKEYREVOKED
    hint = "cmkfs cmk show NAME"


class TokenUnavailable(KeyUnavailable):
    """The token does not answer, is gone, or answered after the deadline."""

    hint = "cmkfs token list"


class PinRefused(KeyUnavailable):
    """The token refused the PIN. It is never tried again: tokens lock after a few tries."""

    hint = "check the PIN source in the configuration; the PIN was tried once and is not tried again"


class CmkNotFound(NotFound):
    """The token has no CMK of this name or id."""

    errno = _errno.ENOKEY
    hint = "cmkfs cmk list"


class KeyDenied(KeyUnavailable):
    """The token refuses this operation to this session (read-only, or a lesser role)."""


class AuditFailed(KeyUnavailable):
    """The audit log cannot be written, so no key is used."""

    hint = "make room where the audit log is; cmkfs audit show"


class PolicyDenied(CmkfsError):
    """The CMK's policy does not allow this principal this action.

    `rule` is the id of the rule that decided (or `policy.NO_RULE`, `policy.NO_POLICY`), `action` what was
    refused; both are empty where no policy was asked, `action` also where any one right would have done.
    """

    errno = _errno.EACCES
    exit_code = EXIT_DENIED

    def __init__(self, message: str, *, hint: str | None = None, rule: str = "", action: str = "") -> None:
        super().__init__(message, hint=hint)
        self.rule = rule
        self.action = action


# -- What lies in the vault ------------------------------------------------------------------------


class NotAVault(CmkfsError):
    """The directory has no `cmkfs.vault`."""

    exit_code = EXIT_NOT_FOUND
    hint = "cmkfs init VAULT --cmk NAME"


class UnknownFormat(CmkfsError):
    """A newer format, or a feature that this version does not know."""

    hint = "use a newer version of cmkfs"


class Damaged(CmkfsError):
    """Something in the vault does not authenticate, or contradicts what does."""

    exit_code = EXIT_DAMAGED


class Tampered(Damaged):
    """A wrapped key that the token does not accept although the CMK works."""

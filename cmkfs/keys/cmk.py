"""The lifecycle of a CMK as one table, and the rule for its name. Pure: no token, no I/O.

    create ──────────────► enabled ◄──enable/disable──► disabled
    create for import ───► pending-import ──import──► enabled
    enabled, disabled, pending-import ──schedule-deletion──► pending-deletion
    pending-deletion ──cancel-deletion──► disabled
    pending-deletion ──destroy──► destroyed

Only an enabled CMK wraps and unwraps. The state itself is kept by the token (`keys.pkcs11`).
"""

import re
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from cmkfs.errors import Disabled, Revoked, UsageError
from cmkfs.keys.provider import CmkState


class CmkMove(StrEnum):
    """What an operator asks for; each is also a right in a policy."""

    ENABLE = "enable"
    DISABLE = "disable"
    IMPORT = "import"
    SCHEDULE_DELETION = "schedule-deletion"
    CANCEL_DELETION = "cancel-deletion"
    DESTROY = "destroy"


_S, _M = CmkState, CmkMove

MOVES: Final = MappingProxyType(
    {
        (_S.ENABLED, _M.ENABLE): _S.ENABLED,
        (_S.ENABLED, _M.DISABLE): _S.DISABLED,
        (_S.ENABLED, _M.SCHEDULE_DELETION): _S.PENDING_DELETION,
        (_S.DISABLED, _M.ENABLE): _S.ENABLED,
        (_S.DISABLED, _M.DISABLE): _S.DISABLED,
        (_S.DISABLED, _M.SCHEDULE_DELETION): _S.PENDING_DELETION,
        (_S.PENDING_IMPORT, _M.IMPORT): _S.ENABLED,
        (_S.PENDING_IMPORT, _M.SCHEDULE_DELETION): _S.PENDING_DELETION,
        (_S.PENDING_DELETION, _M.SCHEDULE_DELETION): _S.PENDING_DELETION,
        (_S.PENDING_DELETION, _M.CANCEL_DELETION): _S.DISABLED,
        (_S.PENDING_DELETION, _M.DESTROY): _S.DESTROYED,
    }
)
"""(state, move) -> state. What is not listed is refused. A move to the same state changes nothing."""

KEY_TYPE: Final = "aes-256"
"""The key type that this version makes."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)


def after(state: CmkState, move: CmkMove) -> CmkState:
    """The state after `move`. Raises Revoked for a CMK on its way out, UsageError for any other refusal."""
    new = MOVES.get((state, move))
    if new is not None:
        return new
    message = f"a CMK that is {state} cannot be the object of {move}"
    if state in (CmkState.PENDING_DELETION, CmkState.DESTROYED):
        raise Revoked(message)
    raise UsageError(message)


def require_usable(state: CmkState, name: str) -> None:
    """Return if a CMK in this state wraps and unwraps. Raises Disabled or Revoked, naming the CMK."""
    if state is CmkState.ENABLED:
        return
    if state in (CmkState.PENDING_DELETION, CmkState.DESTROYED):
        raise Revoked(f"CMK {name!r} is {state}", hint=f"cmkfs cmk show {name}")
    raise disabled(name, state)


def disabled(name: str, state: CmkState = CmkState.DISABLED) -> Disabled:
    """The error for a CMK that exists and may not be used, with the command that changes it."""
    step = f"cmkfs cmk enable {name}" if state is CmkState.DISABLED else f"cmkfs cmk show {name}"
    return Disabled(f"CMK {name!r} is {state}", hint=step)


def require_name(name: str) -> str:
    """`name` itself if it may be the name of a CMK. Raises UsageError."""
    if _NAME.fullmatch(name) is None:
        raise UsageError(f"{name!r} is no name for a CMK: 1 to 64 of a-z, 0-9, '.', '_', '-', a letter or digit first")
    return name


def require_key_type(key_type: str) -> str:
    """`key_type` itself if this version can make such a CMK. Raises UsageError."""
    if key_type != KEY_TYPE:
        raise UsageError(
            f"this version of cmkfs supports CMKs of type {KEY_TYPE}, not {key_type!r}",
            hint=f"cmkfs cmk create NAME --type {KEY_TYPE}",
        )
    return key_type

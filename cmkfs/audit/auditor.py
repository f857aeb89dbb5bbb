"""What the rest of a mount tells the audit log. Pure."""

from typing import Protocol


class Caller(Protocol):
    """Who asks, as the kernel tells."""

    @property
    def uid(self) -> int:
        """The effective user."""
        ...

    @property
    def gid(self) -> int:
        """The effective group."""
        ...

    @property
    def pid(self) -> int:
        """The process; 0 if it is in another pid namespace."""
        ...


class UnderCmk(Protocol):
    """A zone."""

    zone_id: bytes
    cmk_name: str

    @property
    def cmk_id(self) -> bytes:
        """The CMK that it is under."""
        ...


class Auditor:
    """Is told, and keeps nothing: for what is done with keys outside of a mount. A mount's is `audit.recorder`.

    Called on the event loop; nothing here blocks for longer than a write(2).
    """

    def used(
        self,
        zone: UnderCmk,
        caller: Caller,
        event: str,
        file_id: bytes,
        version: int,
        *,
        rule: str | None = None,
        began_ns: int = 0,
    ) -> None:
        """A caller is about to get a file's key. Raises AuditFailed if that cannot be recorded and must be.

        `began_ns` is when the request began, by time.monotonic_ns().
        """

    def refused(
        self,
        event: str,
        error: Exception,
        *,
        caller: Caller | None = None,
        zone: UnderCmk | None = None,
        file_id: bytes | None = None,
        path: str | None = None,
        rule: str | None = None,
    ) -> None:
        """A caller was refused, or met what does not authenticate; `path` is that in the vault. Never raises."""

    def changed(
        self,
        event: str,
        *,
        outcome: str = "done",
        reason: str | None = None,
        caller: Caller | None = None,
        zone: UnderCmk | None = None,
        rule: str | None = None,
    ) -> None:
        """A key, a policy, a lock or the mount changed. Never raises."""

    def require_room(self) -> None:
        """Return if a change may be made. Raises AuditFailed if it could not be recorded and must be."""

"""A zone while it is mounted: its keys, whether they may be used now, and the epoch that ends all leases at once."""

from collections.abc import Callable
from contextvars import ContextVar
from enum import Enum

from cmkfs.crypto.zonekeys import ZoneKeys
from cmkfs.errors import CmkfsError, Disabled, KeyUnavailable, Locked
from cmkfs.format.vault import ZoneRecord
from cmkfs.keys.provider import CmkId


class ZoneState(Enum):
    """SERVING: keys in use. SETTLING: nothing is given out, dirty pages are still stored. LOCKED: no keys.

    RECOVERING: unlocked, but what an earlier session left is settled first; only `in_recovery` may use the keys.
    """

    SERVING = "serving"
    SETTLING = "settling"
    LOCKED = "locked"
    RECOVERING = "recovering"


in_recovery: ContextVar[bool] = ContextVar("in_recovery", default=False)
"""True in the task that settles what an earlier session left in a zone that was just unlocked."""


class Zone:
    """One zone. Changed by `keys.keyring` only; everyone else asks `check` or compares `epoch`."""

    def __init__(self, zone_id: bytes, record: ZoneRecord, cmk_name: str) -> None:
        self.zone_id = zone_id
        self.record = record
        self.cmk_name = cmk_name
        self.cmk_id: CmkId = record.recipient.version.cmk_id
        self.state = ZoneState.LOCKED
        self.epoch = 0
        self.refusal: Callable[[], CmkfsError] = lambda: Locked("the zone is not unlocked yet")
        self.locked_by_operator = False
        self._keys: ZoneKeys | None = None

    @property
    def keys(self) -> ZoneKeys:
        """The zone's keys. Raises Locked, Disabled, … unless the zone is serving."""
        self.check()
        return self.keys_to_settle()

    def keys_to_settle(self) -> ZoneKeys:
        """The zone's keys also while dirty pages are being stored. Raises as `keys` once they are gone."""
        if self._keys is None:
            raise self.refusal()
        return self._keys

    def check(self) -> None:
        """Raise the reason unless the zone is serving. Called again right before each reply."""
        if self.state is not ZoneState.SERVING and not (self.state is ZoneState.RECOVERING and in_recovery.get()):
            raise self.refusal()

    @property
    def reason(self) -> str:
        """Why it is not serving, in words; empty if it is."""
        return "" if self.state is ZoneState.SERVING else str(self.refusal())

    @property
    def is_shut(self) -> bool:
        """True if it serves nobody, the recovery neither."""
        return self.state not in (ZoneState.SERVING, ZoneState.RECOVERING)

    def begin_serving(self, keys: ZoneKeys, *, recover_first: bool = False) -> None:
        """From now on leases are given; to the recovery only, until `end_recovering`."""
        self._keys = keys
        self.epoch += 1
        self.state = ZoneState.RECOVERING if recover_first else ZoneState.SERVING

    def end_recovering(self) -> None:
        """Everything that an earlier session left is settled."""
        if self.state is ZoneState.RECOVERING:
            self.state = ZoneState.SERVING

    def begin_settling(self, why: KeyUnavailable) -> None:
        """End all leases; what is dirty may still be sealed with `keys_to_settle`."""
        self.explain(why)
        self.epoch += 1
        self.state = ZoneState.SETTLING

    def drop_keys(self) -> None:
        """The keys are gone: nothing can be sealed or opened any more."""
        if self._keys is not None:
            self._keys.forget()
        self._keys = None
        self.state = ZoneState.LOCKED

    def explain(self, why: KeyUnavailable) -> None:
        """There is another reason now why the zone does not serve."""
        message, kind = str(why), type(why)
        self.refusal = lambda: kind(message)

    @property
    def disabled(self) -> bool:
        """True if the CMK itself is what refuses."""
        return self.state is not ZoneState.SERVING and isinstance(self.refusal(), Disabled)

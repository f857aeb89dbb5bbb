"""An audit record as values and as the body of a line of JSON. Pure.

A line is `{"ts":…,"seq":…,BODY,"prev":…,"mac":…}`; the chain (`audit.chain`) puts on what is around the body.
What a record does not have is left out of its line.
"""

import json
from dataclasses import dataclass, fields
from typing import Final


@dataclass(frozen=True, slots=True)
class Facts:
    """What happened. `outcome` is `allowed`, `refused`, `done`, `failed` or `damaged`.

    `uid`, `gid`, `pid`, `exe` are of who asked, `login_uid` is the person behind sudo or su; `rule` is the policy's
    rule that decided; `zone`, `file_id` and `cmk_id` are hex digits; `path` is a path in the vault, that is,
    ciphertext; `count` says how many repeats the record stands for; `latency_us` is the time in microseconds that
    the daemon took.
    """

    event: str
    outcome: str
    reason: str | None = None
    rule: str | None = None
    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    exe: str | None = None
    mount: str | None = None
    zone: str | None = None
    file_id: str | None = None
    cmk: str | None = None
    cmk_id: str | None = None
    cmk_version: int | None = None
    latency_us: int | None = None
    count: int | None = None
    path: str | None = None
    login_uid: int | None = None
    chain: str | None = None
    epoch: str | None = None
    settings: str | None = None

    def body(self) -> str:
        """The fields as they stand in a line."""
        given = {name: value for name in NAMES if (value := getattr(self, name)) is not None}
        return json.dumps(given, separators=(",", ":"))[1:-1]


NAMES: Final = tuple(field.name for field in fields(Facts))
COLUMNS: Final = ("ts", "seq", *NAMES[:15], "count", "path", "login_uid", "prev", "mac")
"""The keys of a record as `audit show --json` prints it, in order; what a record does not have is null."""

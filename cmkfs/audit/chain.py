"""The chain: how records authenticate each other and the past. Pure (docs/audit.md, "The chain").

An epoch's first key comes from the token: HMAC-SHA256 under the token's audit key, over chain and epoch. Each
record's MAC is made with the key of the moment, over the line up to it, the MAC before included. Then the key
is hashed and the old one forgotten, so that who takes it from memory cannot write the past anew. The first
record of an epoch is a checkpoint: its key was in the token a moment before, and nobody else can make it.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

KEY_SIZE: Final = 32
NO_MAC: Final = "0" * 64
"""`prev` of the first record of a chain."""

_RATCHET: Final = b"cmkfs audit ratchet v1\0"
_CONTEXT: Final = b"cmkfs audit key v1\0"
_MAC_START: Final = b',"mac":"'
_MAC_END: Final = b'"}\n'
_TAIL: Final = len(_MAC_START) + 64 + len(_MAC_END)

TokenMac = Callable[[bytes], bytes]
"""HMAC-SHA256 under the audit key of the token. Raises TokenUnavailable."""


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain ends, or ended when somebody looked: kept in the token, told by a mount.

    `place` is the host and directory of the log, `name` its file without suffix, `settings` those in force.
    """

    chain: str
    place: str
    name: str
    seq: int
    mac: str
    settings: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A record as read: its bytes, and its fields."""

    raw: bytes
    fields: dict[str, object]

    def number(self, name: str) -> int:
        """A field that is a number; -1 if it is none."""
        value = self.fields.get(name)
        return value if type(value) is int else -1

    def text(self, name: str) -> str:
        """A field that is a text; empty if it is none."""
        value = self.fields.get(name)
        return value if type(value) is str else ""

    @property
    def epoch(self) -> str:
        """The epoch that begins here; empty if none does."""
        return self.text("epoch")


def new_epoch_name() -> str:
    """A name that no epoch had before."""
    return secrets.token_hex(8)


def context(chain: str, epoch: str) -> bytes:
    """What the token makes an epoch's first key of: who and when, 32 and 16 hex digits."""
    return _CONTEXT + f"{chain}:{epoch}".encode()


def next_key(key: bytes) -> bytes:
    """The key after `key`; there is no way back."""
    return hashlib.sha256(_RATCHET + key).digest()


def seal(key: bytes, ts: str, seq: int, body: str, prev: str) -> tuple[bytes, str]:
    """A record's line and its MAC."""
    start = f'{{"ts":"{ts}","seq":{seq},{body},"prev":"{prev}"'.encode("ascii")
    mac = hmac.digest(key, start, "sha256").hex()
    return b'%b,"mac":"%b"}\n' % (start, mac.encode()), mac


def parse(raw: bytes) -> Line | None:
    """A line with its newline, None if it is no record."""
    if raw[-_TAIL : -_TAIL + len(_MAC_START)] != _MAC_START or not raw.endswith(_MAC_END):
        return None
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or type(found.get("seq")) is not int or type(found.get("prev")) is not str:
        return None
    line = Line(raw, found)
    return line if line.text("mac").encode("ascii", "replace") == raw[-_TAIL:][8:72] else None


def _genuine(key: bytes, line: Line) -> bool:
    mac = hmac.digest(key, line.raw[:-_TAIL], "sha256").hex()
    return hmac.compare_digest(mac, line.text("mac"))


class Verifier:
    """Follows one chain from its first record on; each line is asked about once, in order."""

    def __init__(self, chain: str, token_mac: TokenMac, *, partial: bool = False) -> None:
        """`partial`: the oldest records may be elsewhere."""
        self.chain = chain
        self._token_mac = token_mac
        self._partial = partial
        self._key: bytes | None = None
        self.first = 0
        self.seq = 0
        self.mac = NO_MAC
        self.checkpoint_seq = 0

    def fault(self, line: Line | None) -> str:
        """What is wrong with the next line, empty if nothing. None is a line that `parse` did not take."""
        if line is None:
            return f"record {self.seq + 1} was edited: it is no record any more"
        seq = line.number("seq")
        return self._out_of_order(line, seq) or self._forged(line, seq)

    def _out_of_order(self, line: Line, seq: int) -> str:
        if seq > self.seq + 1 and (self.first or not (self._partial and line.epoch)):
            if seq == self.seq + 2:
                return f"record {self.seq + 1} was removed"
            return f"records {self.seq + 1} to {seq - 1} were removed"
        if seq <= self.seq:
            return f"record {seq} is out of order: it stands behind record {self.seq}"
        if line.epoch and line.text("chain") != self.chain:
            return f"record {seq} belongs to another chain"
        return ""

    def _forged(self, line: Line, seq: int) -> str:
        key = self._token_mac(context(self.chain, line.epoch)) if line.epoch else self._key
        if key is None or not _genuine(key, line):
            return f"record {seq} was edited: its MAC is wrong"
        if line.text("prev") != self.mac and (self.first or seq == 1):
            return f"record {self.seq} was put in the place of another, before record {seq}"
        if not self.first:
            self.first = seq
        if line.epoch:
            self.checkpoint_seq = seq
        self._key, self.seq, self.mac = next_key(key), seq, line.text("mac")
        return ""

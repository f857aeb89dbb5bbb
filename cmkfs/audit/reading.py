"""Reading the audit log: its files as chains, records in the order of time, and whether all of it is genuine."""

import gzip
import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from cmkfs.audit.chain import Head, Line, TokenMac, Verifier, parse
from cmkfs.audit.record import COLUMNS

_FIRST_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of a chain; `chain` is empty and `first` 0 if its first line is no checkpoint."""

    path: Path
    chain: str
    first: int


@dataclass(frozen=True, slots=True)
class Chain:
    """The files of a chain, in order."""

    chain: str
    segments: tuple[Segment, ...]

    @property
    def name(self) -> str:
        """What its files are called: `mount-1`, `commands`."""
        return self.segments[-1].path.name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Result:
    """What `verify` says of a chain. `fault` is empty if all is well; `where` is the file and line of it."""

    name: str
    chain: str
    records: int
    first: int
    last: int
    checkpoint: int
    fault: str
    where: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Filter:
    """Which records are wanted; what is None or empty matters not. Times are in seconds since 1970."""

    since: float | None = None
    until: float | None = None
    uid: int | None = None
    event: str | None = None
    outcome: str | None = None
    cmk: str | None = None
    mount: str | None = None
    file_id: str | None = None

    def wants(self, line: Line) -> bool:
        """True if the record is wanted. An event stands for all that begin with it: `open`, `cmk`."""
        wanted = (
            (self.uid, line.fields.get("uid")),
            (self.outcome, line.fields.get("outcome")),
            (self.cmk, line.fields.get("cmk")),
            (self.mount, line.fields.get("mount")),
            (self.file_id, line.fields.get("file_id")),
        )
        if any(value is not None and value != found for value, found in wanted):
            return False
        event = line.text("event")
        if self.event is not None and event != self.event and not event.startswith(f"{self.event}."):
            return False
        return self._in_time(line)

    def _in_time(self, line: Line) -> bool:
        if self.since is None and self.until is None:
            return True
        try:
            at = datetime.fromisoformat(line.text("ts")).timestamp()
        except ValueError:
            return True  # what cannot be told is shown
        return (self.since is None or at >= self.since) and (self.until is None or at <= self.until)


def columns(line: Line) -> dict[str, object]:
    """A record with all keys that `--json` promises, and what else it has."""
    return {name: line.fields.get(name) for name in (*COLUMNS, *line.fields)}


# -- files -----------------------------------------------------------------------------------------


def chains(directories: Iterable[Path]) -> tuple[Chain, ...]:
    """All chains whose files lie in the directories, moved and compressed (.gz) ones too. Raises OSError."""
    found: dict[str, list[Segment]] = {}
    for directory in directories:
        for path in sorted(directory.glob("*.jsonl*")):
            if path.stat().st_size:
                segment = _segment(path)
                found.setdefault(segment.chain or str(path), []).append(segment)
    made = (
        Chain(segments[0].chain, tuple(sorted(segments, key=lambda segment: segment.first)))
        for segments in found.values()
    )
    return tuple(sorted(made, key=lambda chain: (chain.name, chain.segments[0].path.name)))


def _segment(path: Path) -> Segment:
    with _open(path) as file:
        line = parse(file.readline(_FIRST_BYTES))
    if line is None or not line.epoch:
        return Segment(path, "", 0)
    return Segment(path, line.text("chain"), line.number("seq"))


def _open(path: Path) -> "gzip.GzipFile":
    # A plain file is read through the same interface.
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def raw_lines(segment: Segment) -> Iterator[tuple[int, bytes]]:
    """Each line with its number, from 1; a last one without its newline is being written, or never was."""
    with _open(segment.path) as file:
        for number, raw in enumerate(file, start=1):
            if raw.endswith(b"\n"):
                yield number, raw


def records(found: Iterable[Chain]) -> Iterator[Line]:
    """The records of all chains by time; lines that are none are left to `verify`."""
    return heapq.merge(*(_lines(chain) for chain in found), key=lambda line: line.text("ts"))


def _lines(chain: Chain) -> Iterator[Line]:
    for segment in chain.segments:
        for _, raw in raw_lines(segment):
            line = parse(raw)
            if line is not None:
                yield line


# -- verify ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Known:
    """The ends of a chain that somebody remembers, by number of the record."""

    who: dict[int, list[tuple[str, str]]] = field(default_factory=dict)

    def add(self, head: Head, who: str) -> None:
        self.who.setdefault(head.seq, []).append((head.mac, who))

    def fault(self, line: Line | None) -> str:
        if line is None:
            return ""
        for mac, who in self.who.get(line.number("seq"), ()):
            if mac != line.text("mac"):
                return f"record {line.number('seq')} is another one than {who} remembers"
        return ""

    def beyond(self, last: int) -> str:
        highest = max(self.who, default=0)
        if highest <= last:
            return ""
        who = self.who[highest][0][1]
        if highest == last + 1:
            return f"record {highest} was cut off: {who} remembers it"
        return f"records {last + 1} to {highest} were cut off: {who} remembers them"


def verify(chain: Chain, token_mac: TokenMac, heads: Iterable[tuple[Head, str]], *, partial: bool = False) -> Result:
    """Read a chain from its first record to its last; stops at the first that is wrong. Raises TokenUnavailable.

    `heads` are ends of this chain that were asked for before the files are read, and who remembers each.
    """
    known = _Known()
    for head, who in heads:
        known.add(head, who)
    verifier = Verifier(chain.chain, token_mac, partial=partial)
    last = chain.segments[-1].path
    for segment in chain.segments:
        for number, raw in raw_lines(segment):
            line = parse(raw)
            fault = verifier.fault(line) or known.fault(line)
            if fault:
                return _result(chain, verifier, fault, f"{segment.path}:{number}")
    cut = known.beyond(verifier.seq)
    return _result(chain, verifier, cut, str(last) if cut else "")


def missing(heads: Iterable[Head], found: Iterable[Chain], place: str) -> list[Result]:
    """The chains of this place that the token remembers and that have no file."""
    here = {chain.chain for chain in found}
    return [
        Result(
            head.name, head.chain, 0, 0, 0, 0, f"records 1 to {head.seq} were removed: there is no file of it", place
        )
        for head in heads
        if head.place == place and head.chain not in here
    ]


def _result(chain: Chain, verifier: Verifier, fault: str, where: str) -> Result:
    count = verifier.seq - verifier.first + 1 if verifier.first else 0
    return Result(
        chain.name,
        chain.chain,
        count,
        verifier.first,
        verifier.seq,
        verifier.checkpoint_seq,
        fault,
        where,
    )

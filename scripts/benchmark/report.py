"""What a run found: a table to read, a document to keep, a picture, and what changed since another run."""

import json
import math
import os
import platform
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from benchmark.subjects import BARE, OWN, PEERS
from benchmark.workloads import UNITS, Settings

Rates = dict[str, list[float]]
"""Filesystem, then one rate per round."""


@dataclass(frozen=True, slots=True)
class Row:
    """One workload: medians, the spread of ours, and the ratios that mean something on another machine."""

    workload: str
    samples: Rates

    @property
    def median(self) -> dict[str, float]:
        """By filesystem, in the unit of the row."""
        return {name: statistics.median(rates) for name, rates in self.samples.items()}

    @property
    def best_peer(self) -> str:
        """The fastest of the peers."""
        medians = {name: rate for name, rate in self.median.items() if name in PEERS}
        return max(medians, key=lambda name: medians[name])

    def ratio_to(self, other: str) -> float:
        """How many times as fast as `other` cmkfs is; infinite if `other` failed."""
        return self.median[OWN] / self.median[other] if self.median[other] else math.inf

    @property
    def spread(self) -> float:
        """From the slowest to the fastest round of cmkfs, as a part of the median."""
        return (max(self.samples[OWN]) - min(self.samples[OWN])) / self.median[OWN]


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run."""

    settings: Settings
    backing: str
    rows: list[Row]

    @property
    def names(self) -> list[str]:
        """The filesystems, in the order in which they were mounted."""
        return list(self.rows[0].samples)

    def table(self) -> Iterator[str]:
        """Medians and ratios as lines of text."""
        figures = "".join(f"{name:>11}" for name in self.names)
        heading = f"median of {self.settings.rounds}"
        yield f"{heading:46}{'':8}{figures}{'cmkfs/peer':>12}{'cmkfs/bare':>12}{'spread':>8}  best peer"
        for row in self.rows:
            medians = row.median
            rates = "".join(_figure(medians[name]) for name in self.names)
            ratios = f"{row.ratio_to(row.best_peer):12.2f}{row.ratio_to(BARE):12.2f}{row.spread:8.0%}"
            yield f"{row.workload:46}{UNITS[row.workload]:>8}{rates}{ratios}  {row.best_peer}"
        settings = self.settings
        yield (
            f"{settings.size} MiB in 1 MiB calls, {settings.small_size} MiB in 4 KiB calls,"
            f" {settings.files} files; Linux {platform.release()}, {os.cpu_count()} CPUs, backing {self.backing}"
        )

    def document(self) -> dict[str, object]:
        """What `--json` writes; rates in the row's unit, more is better."""
        rows = [
            {
                "workload": row.workload,
                "unit": UNITS[row.workload],
                "samples": row.samples,
                "median": row.median,
                "spread": row.spread,
                "best peer": row.best_peer,
                "cmkfs/peer": row.ratio_to(row.best_peer) if row.median[row.best_peer] else None,
                "cmkfs/bare": row.ratio_to(BARE),
            }
            for row in self.rows
        ]
        machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "backing": self.backing}
        return {"settings": asdict(self.settings), "machine": machine, "rows": rows}

    def changes_since(self, earlier: Path) -> Iterator[str]:
        """For each row the ratio to the best peer in another run's document, and in this one."""
        before: dict[str, Any] = {row["workload"]: row for row in json.loads(earlier.read_text())["rows"]}
        yield f"{'ratio to the best peer':46}{'then':>8}{'now':>8}{'change':>9}"
        for row in self.rows:
            if row.workload in before and before[row.workload]["cmkfs/peer"] is not None:
                then, now = before[row.workload]["cmkfs/peer"], row.ratio_to(row.best_peer)
                yield f"{row.workload:46}{then:8.2f}{now:8.2f}{now / then - 1:+9.0%}"

    def picture(self) -> str:
        """An SVG: a bar for each row, as long as the ratio to the best peer on a scale of doublings."""
        height, left, doubling = 18, 330, 60
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + 8 * doubling}" '
            f'height="{height * (len(self.rows) + 2)}" font-family="sans-serif" font-size="12">',
            f'<text x="{left + 2 * doubling}" y="14" text-anchor="middle">as fast as the best peer</text>',
        ]
        middle = left + 2 * doubling
        for number, row in enumerate(self.rows, 1):
            ratio = row.ratio_to(row.best_peer)
            length = doubling * max(-2.0, min(5.0, math.log2(ratio)))
            start, top = middle + min(0.0, length), height * number + 4
            colour = "#2a7" if length >= 0 else "#c55"
            lines.append(f'<text x="{left - 10}" y="{top + 12}" text-anchor="end">{escape(row.workload)}</text>')
            lines.append(f'<rect x="{start:.0f}" y="{top}" width="{abs(length):.0f}" height="14" fill="{colour}"/>')
            lines.append(f'<text x="{left + 7 * doubling}" y="{top + 12}">{ratio:.2f}</text>')
        bottom = height * (len(self.rows) + 1) + 4
        lines.append(f'<line x1="{middle}" y1="18" x2="{middle}" y2="{bottom}" stroke="#333"/>')
        return "\n".join([*lines, "</svg>", ""])


def _figure(rate: float) -> str:
    return f"{rate:11,.0f}" if rate >= 10 else f"{rate:11.2f}"

"""What the campaigns found, kept: `docs/reliability.json` has every run, `docs/reliability.md` the sums.

A long campaign is done in parts: each run adds itself, also one that found something.
"""

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
RUNS = REPOSITORY / "docs/reliability.json"
PAGE = REPOSITORY / "docs/reliability.md"
BEGIN, END = "<!-- sums: begin -->\n", "<!-- sums: end -->\n"

CAMPAIGNS = {
    "model": ("scripts/model", "POSIX calls of several processes, alike on a mount and on a plain directory"),
    "soak": ("scripts/soak", "such calls, and streams and a database, on a mount that is never taken down"),
    "fio": ("scripts/stress", "jobs of fio, each verifying what it wrote, also after a remount"),
    "stress-ng": ("scripts/stress", "stressors of the class `filesystem`, on a mount and on ext4"),
    "kill": ("scripts/kill", "SIGKILL of the daemon while programs work, and the mount after it"),
    **{
        f"power cut, {kind}": ("scripts/power-cut", f"a real {kind} shut down or brought back while programs work")
        for kind in ("ext4", "xfs", "btrfs")
    },
    **{
        f"power cut, {kind}, {above}": ("scripts/power-cut --above", f"the same on {below}, for comparison")
        for above, below in (("gocryptfs", "gocryptfs"), ("none", "the filesystem itself"))
        for kind in ("ext4", "xfs", "btrfs")
    },
    "faults of the disk": ("scripts/faults", "calls of the daemon on the vault made to fail while a program works"),
    "forger": ("scripts/forge", "changes to a vault at rest, made without a key, then read"),
    "forger, mounted": ("scripts/forge --mounted", "such changes below a mount in use, read there and after a remount"),
    "check": ("scripts/forge", "such changes, then `cmkfs check`, `--repair`, and read again"),
    "fuzz": ("scripts/fuzz", "inputs to each parser of what others may have written, led by coverage (atheris)"),
    "crash model": ("scripts/crash-model", "states that a power cut may leave, recovered by the next mount"),
    **{
        f"crash model of names, {rule}": ("scripts/crash-names", f"whole vaults after a cut, {what}")
        for rule, what in (
            ("ordered", "by the rules of ext4 and xfs"),
            ("btrfs", "by the rules of btrfs"),
            ("none", "each directory by itself"),
        )
    },
    "check after a cut": ("scripts/crash-model", "such states, judged by `cmkfs check` before and after the recovery"),
}


@dataclass(slots=True)
class Run:
    """One run. `tried` counts what the campaign counts; `failures` are seeds with what was wrong."""

    campaign: str
    seed: int
    commit: str = ""
    began: str = ""
    seconds: float = 0.0
    tried: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def begin(campaign: str, seed: int) -> Run:
    """A run that begins now."""
    commit = subprocess.run(
        ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return Run(campaign, seed, commit, datetime.now(UTC).isoformat(timespec="seconds"))


def until(minutes: float, count: int, seed: int) -> Iterator[int]:
    """Seeds from `seed` on, for so many minutes if any are given, else so many."""
    end = time.monotonic() + 60 * minutes
    number = 0
    while time.monotonic() < end if minutes else number < count:
        yield seed + number
        number += 1


def attempt(run: Run, seed: int, work: Callable[[], str | None]) -> None:
    """One try; what it raises is a failure of that seed."""
    began = time.monotonic()
    try:
        run.outcomes[work() or "held"] += 1
    except Exception as error:
        notes = " ".join(getattr(error, "__notes__", ()))
        run.failures.append(f"{seed}: {type(error).__name__}: {error} {notes}"[:2000])
    run.seconds += time.monotonic() - began


def keep(runs: list[Run], where: Path = RUNS) -> None:
    """Add runs to a file; in the committed one, write the page's sums anew."""
    known = _read(where)
    for run in runs:
        if run.tried:
            _add(known, run)
    # asdict makes a Counter of pairs out of a Counter.
    fields = [{**asdict(run), "outcomes": dict(run.outcomes), "seconds": round(run.seconds, 1)} for run in known]
    where.write_text(json.dumps(fields, indent=1) + "\n")
    if where == RUNS:
        page = PAGE.read_text()
        head, _, rest = page.partition(BEGIN)
        PAGE.write_text(head + BEGIN + sums(known) + END + rest.partition(END)[2])


def _read(where: Path) -> list[Run]:
    if not where.exists():
        return []
    found = [Run(**fields) for fields in json.loads(where.read_text())]
    for run in found:
        run.outcomes = Counter(run.outcomes)
    return found


def _add(known: list[Run], run: Run) -> None:
    """A run without failures joins the one before of the same campaign and commit: a campaign is done in parts."""
    last = next((one for one in reversed(known) if one.campaign == run.campaign), None)
    if last is None or last.commit != run.commit or last.failures or run.failures:
        known.append(run)
        return
    last.tried, last.seconds = last.tried + run.tried, last.seconds + run.seconds
    last.outcomes += run.outcomes


def add(where: Path) -> None:
    """Add the runs of a file to the committed one; then that file is gone."""
    keep(_read(where))
    where.unlink()


def sums(known: list[Run]) -> str:
    """The table of the page."""
    lines = ["| campaign | what | tried | failed | outcomes | hours |", "|---|---|---|---|---|---|"]
    for campaign, (script, what) in CAMPAIGNS.items():
        runs = [run for run in known if run.campaign == campaign]
        if not runs:
            continue
        outcomes: Counter[str] = sum((run.outcomes for run in runs), Counter())
        shown = ", ".join(f"{count:,} {name}" for name, count in sorted(outcomes.items()))
        tried, failed = sum(run.tried for run in runs), sum(len(run.failures) for run in runs)
        hours = sum(run.seconds for run in runs) / 3600
        lines.append(f"| {campaign} (`{script}`) | {what} | {tried:,} | {failed} | {shown} | {hours:.2f} |")
    return "\n".join(lines) + "\n"

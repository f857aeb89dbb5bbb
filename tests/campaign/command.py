"""What all campaign scripts have alike: their options, the clock, and where results go."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from model import reliability
from model.reliability import Run


def parser(doc: str | None, count: str, default: int) -> argparse.ArgumentParser:
    """`--minutes`, `--count`, `--seed` and `--keep`; `count` says what is counted."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--minutes", type=float, default=0, help="for how long")
    made.add_argument(
        "--count", type=int, default=default, help=f"how many {count}, without --minutes (default: %(default)s)"
    )
    made.add_argument("--seed", type=int, default=int(time.time()), help="where to begin (default: the clock)")
    made.add_argument(
        "--keep",
        nargs="?",
        type=Path,
        const=reliability.RUNS,
        help="add the result to docs/reliability.json, or to this file (scripts/reliability adds that later)",
    )
    return made


def campaign(
    wanted: argparse.Namespace, runs: list[Run], attempt: Callable[[int], None], *, most_failures: int = 3
) -> int:
    """Try seed after seed; the exit status. Ends early after some failures: a broken mount fails for ever."""
    print(f"{runs[0].campaign}: from seed {wanted.seed}", flush=True)
    for seed in reliability.until(wanted.minutes, wanted.count, wanted.seed):
        attempt(seed)
        if sum(len(run.failures) for run in runs) >= most_failures:
            break
    return finish(wanted, runs)


def finish(wanted: argparse.Namespace, runs: list[Run]) -> int:
    """Tell, and keep if that is wanted; the exit status."""
    for run in runs:
        shown = ", ".join(f"{count} {name}" for name, count in sorted(run.outcomes.items()))
        print(f"{run.campaign}: {run.tried} in {run.seconds:.0f} s, {len(run.failures)} failed: {shown}")
        print(*run.failures, sep="\n", end="\n" if run.failures else "", file=sys.stderr)
    if wanted.keep is not None:
        reliability.keep(runs, wanted.keep)
    return 1 if any(run.failures for run in runs) else 0

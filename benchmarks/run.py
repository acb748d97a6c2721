"""All benchmarks in one table: `make bench`. Exit code 1 when a bound is missed.

Each ratio is of A and B in one run and in turn, with the median and the spread of the repeats. Bounds hold for the
clock; the note gives the ratio of processor time too, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import memory
import speed
from harness import Row

NOISE_FLOOR = Path(__file__).with_name("noise_floor.py")


def parts(bench: speed.Bench) -> Mapping[str, Callable[[], Iterable[Row]]]:
    """Name -> what gives its rows, in the order in which they are run."""
    return {
        "start": lambda: speed.start(bench.repeats),
        "second": lambda: speed.second_call(bench),
        "convert": lambda: speed.conversions(bench),
        "verify": lambda: speed.verification(bench),
        "memory": lambda: memory.peak(bench.folder),
    }


PARTS = ("start", "second", "convert", "verify", "memory")


def options(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="pairs of A and B per ratio")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="run only these")
    parser.add_argument("--folder", type=Path, help="keep the models here and use them again")
    parser.add_argument("--noise-floor", action="store_true", help="then run noise_floor.py: false alarms and misses")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run what was asked for; 1 when a bound is missed."""
    given = options(arguments)
    with tempfile.TemporaryDirectory(prefix="trueport-bench-") as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        with speed.bench(folder, given.repeats) as bench:
            missed = show(row for name, part in parts(bench).items() if name in given.only for row in part())
    if given.noise_floor:
        missed += subprocess.run([sys.executable, str(NOISE_FLOOR)]).returncode != 0
    return 1 if missed else 0


def show(rows: Iterable[Row]) -> int:
    """Print each row as it comes, and how busy the machine is; returns how many missed their bound."""
    busy, cores = os.getloadavg()[0], os.cpu_count() or 1
    crowded = "; others use the cores, so figures on the clock are rough" if busy > cores / 2 else ""
    print(f"{cores} cores, load {busy:.1f} at the start{crowded}", flush=True)
    missed = 0
    for row in rows:
        print(row.text(), flush=True)
        missed += row.missed
    print(f"{missed} bound{'s' if missed != 1 else ''} missed" if missed else "every bound is met", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

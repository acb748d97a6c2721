"""Write the lock of one or more toolchains: build each in a fresh folder, and keep the versions that came.

    python scripts/lock.py NAME... [--upgrade] [--with PACKAGE==VERSION]...

Versions of the present lock are kept where they still fit; `--upgrade` takes the newest of everything, and `--with` pins
a package. A lock is written only when the environment passed its health check. It holds `name==version` lines alone:
no addresses, no local versions such as +cpu, and nothing of CUDA, which comes with PyTorch's CUDA build and fits to it.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from trueport.envs import EnvStore, Toolchain, Variant, toolchains
from trueport.errors import TrueportError
from trueport.outcome import Failure

LOCKS = Path(__file__).resolve().parents[1] / "src" / "trueport" / "locks"
CUDA = re.compile(r"(nvidia-.*|cuda-.*|(pytorch-)?triton)")


def lock_lines(versions: Mapping[str, str]) -> list[str]:
    """Turn installed versions, by canonical name, into the sorted lines of a lock."""
    return [
        f"{name}=={version.partition('+')[0]}" for name, version in sorted(versions.items()) if not CUDA.fullmatch(name)
    ]


def differences(old: list[str], new: list[str]) -> list[str]:
    """Say what changed, one line for each package."""
    before, after = (dict(line.split("==") for line in lines) for lines in (old, new))
    return [
        f"  {name}: {before.get(name, '-')} -> {after.get(name, '-')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def lock(toolchain: Toolchain, *, upgrade: bool, pins: list[str], folder: Path = LOCKS) -> None:
    """Build the toolchain and write its lock by an atomic rename. Raises SystemExit with the reason where that fails."""
    row = replace(toolchain, lock=()) if upgrade else toolchain
    variant = Variant(packages=tuple(pins))
    with tempfile.TemporaryDirectory(prefix="trueport-lock-") as scratch:
        store = EnvStore(Path(scratch), progress=lambda line: print(line, file=sys.stderr), table={row.name: row})
        made = store.create(row.name, variant)
        if isinstance(made, Failure):
            raise SystemExit(f"{made.log}\n{made.message}")
        lines = lock_lines(made.value.versions)
    final = folder / f"{row.name}.txt"
    partial = final.with_suffix(f".{os.getpid()}.partial")
    partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    partial.replace(final)
    print(f"{row.name}: {len(lines)} packages in {made.value.seconds:g} s")
    print("\n".join(differences(list(toolchain.lock), lines)) or "  no change")


def main() -> None:
    """Read the arguments and lock what they name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=list(toolchains()), metavar="NAME")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions instead of the present lock's")
    parser.add_argument("--with", dest="pins", action="append", default=[], metavar="PACKAGE==VERSION")
    given = parser.parse_args()
    try:
        for name in given.names:
            lock(toolchains()[name], upgrade=given.upgrade, pins=given.pins)
    except TrueportError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()

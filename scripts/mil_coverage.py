"""Print how many MIL operators the Core ML evaluator covers, counted on coremltools' own registry.

    python scripts/mil_coverage.py [--list]

Two shares: of all operators in the registry (every version of an operator counts once, under its name), and of those that
coremltools' PyTorch and TensorFlow front ends and its optimisation passes write, found in their source as `mb.NAME(`.
Operators that hold a constant, or that only exist inside the converter, are no operators of a saved program and not counted.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

NO_OPERATORS = ("const", "_const_symbolic")
"""In the registry, but what they make is a stored value and no operation."""
SOURCES = ("frontend/torch", "frontend/tensorflow", "frontend/tensorflow2", "mil/passes/defs")


def registry() -> dict[str, list[str]]:
    """Run in the toolchain: operators with a kernel, those in the registry, and those that front ends write."""
    import coremltools
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    from trueport.frameworks import _mil_constexpr, _mil_kernels

    folder = Path(coremltools.__file__).parent / "converters" / "mil"
    written: set[str] = set()
    for part in SOURCES:
        for file in (folder / part).rglob("*.py"):
            if "test" not in file.relative_to(folder).as_posix():
                written.update(re.findall(r"\bmb\.([a-z_0-9]+)\(", file.read_text(encoding="utf-8")))
    known = sorted(set(SSAOpRegistry.core_ops) - set(NO_OPERATORS))
    return {
        "covered": sorted({*_mil_kernels.KERNELS, *_mil_constexpr.KERNELS}),
        "registered": known,
        "written": sorted(written & set(known)),
    }


def shares(found: dict[str, list[str]]) -> dict[str, Any]:
    """Covered and missing operators of the registry and of the front ends."""
    covered = set(found["covered"])
    return {
        part: {
            "covered": len(covered & set(found[part])),
            "of": len(found[part]),
            "missing": sorted(set(found[part]) - covered),
        }
        for part in ("registered", "written")
    }


def main() -> None:
    """Build the toolchain where it is missing, count in it, and print."""
    from trueport.envs import EnvStore
    from trueport.outcome import Failure, Stage
    from trueport.worker.pool import Pool

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name every operator that front ends write")
    given = parser.parse_args()
    made = EnvStore(progress=lambda line: print(line, file=sys.stderr)).get("coreml")
    if isinstance(made, Failure):
        raise SystemExit(made.message)
    with Pool(timeout=300) as pool:
        reply = pool.call(
            made.value.python, "mil_coverage", "registry", {}, stage=Stage.LOAD, paths=[str(Path(__file__).parent)]
        )
    if isinstance(reply, Failure):
        raise SystemExit(reply.message)
    names = {"registered": "operators of the registry", "written": "operators that front ends and passes write"}
    for part, share in shares(reply.value.value).items():
        percent = 100 * share["covered"] / share["of"]
        print(f"{names[part]}: {share['covered']} of {share['of']} ({percent:.1f} %)")
        print(f"  without a kernel: {', '.join(share['missing']) or 'none'}")
    if given.list:
        print("\n".join(reply.value.value["written"]))


if __name__ == "__main__":
    main()

"""What does a repair mend? Plants the faults of the power table, repairs each target, and prints the tables.

    python benchmarks/repair_power.py [--pairs TEXT,..] [--models KIND,..] [--kinds KIND,..] [--limit N] [--seed N]
                                      [--multi] [--again] [--cases FILE] [--out docs/repair-power.md] [-v]

The search sees generated inputs of one seed, its gate those of another, and here the result is verified once more on
those of a third. Every case is one line of the file of cases, and a case that is in it is not run again. Tools are
never switched: what counts is what can be mended in the target's own format. Exit code 1: a floor is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import repair_tables
from power_pairs import ROOT, Workshop

import power
from trueport import feeds
from trueport.artifact import Artifact
from trueport.errors import TrueportError
from trueport.graph import Graph
from trueport.outcome import Stage
from trueport.repairs import editing
from trueport.repairs.run import Budget, repair
from trueport.repairs.types import Edit, Repair, Status
from trueport.session import Session, Settings
from trueport.testing.planter import Planted
from trueport.verification import verify

FRESH = 104_729
"""Added to the seed for the inputs of the last verification, which neither the search nor its gate saw."""


class Bench(power.Bench):
    """Repairs instead of diagnosing."""

    def stale(self, case: Mapping[str, Any]) -> bool:
        """Whether a case is to be run again."""
        return case.get("status") == "crash" or (self.again and repair_tables.missed(case))

    def keep(self, case: dict[str, Any]) -> None:
        """Append a case to the file and say how it went."""
        self.cases[case["key"]] = case
        with self.file.open("a", encoding="utf-8") as file:
            file.write(repair_tables.stored(case) + "\n")
        print(repair_tables.line(case), flush=True)
        if self.verbose and repair_tables.missed(case):
            print(repair_tables.details(case), flush=True)

    def _diagnosed(self, ground: power.Ground, path: Path, planted: Sequence[Planted]) -> dict[str, Any]:
        where = {"pair": ground.pair.name, "model": ground.model, "names": ground.pair.names}
        changed = Artifact.open(path, format=ground.target.format, made_by=ground.target.made_by)
        where["format"] = changed.format
        started = time.perf_counter()
        try:
            made = repair(ground.source, changed, ground.feeds, out=None, budget=Budget(seconds=180), tools=False)
        except TrueportError:
            raise
        except Exception as error:  # noqa: BLE001 -- a crash of the repair is a miss, to be counted with its reason
            return {**where, "status": "crash", "note": "".join(traceback.format_exception(error)[-3:]), "edits": []}
        seconds = time.perf_counter() - started
        fresh = self._fresh(ground, made)
        truth = {name for one in planted for name in one.nodes}
        found = {
            **where,
            "status": str(made.status),
            "seconds": round(seconds, 2),
            "verify_seconds": round(made.before.timings["total"], 3),
            "attempts": len(made.attempts),
            "fresh": fresh,
            "edits": [edit.to_json() for edit in made.edits],
            "spurious": sum(not self._touches(ground, changed, edit, truth) for edit in made.edits),
            "tried": [attempt.to_json() for attempt in made.attempts],
            "refused": dict(made.refused),
            "suspects": [
                {"nodes": list(suspect.target_nodes[:3]), "cause": str(suspect.cause), "what": suspect.what}
                for suspect in made.suspects
            ],
            "note": "; ".join(made.notes)[:600],
        }
        if made.artifact is not None:
            editing.discard(self.session, made.artifact)
        return found

    def _fresh(self, ground: power.Ground, made: Repair) -> str | None:
        """The verdict on a result that calls itself repaired, on inputs that nobody saw before."""
        if made.status is not Status.REPAIRED or made.artifact is None:
            return None
        again = feeds.generate(ground.source.signature, seed=ground.feeds.seed + FRESH)
        return str(verify(ground.source, made.artifact, again).verdict)

    def _touches(self, ground: power.Ground, target: Artifact, edit: Edit, truth: set[str]) -> bool:
        """Whether an edit changes a faulty node, or one right beside it, where the same fault can be mended as well."""
        shown = self.session.ask(target, "graph", {}, stage=Stage.TRACE)
        graph = Graph.from_wire(shown.value.value)  # type: ignore[union-attr]
        near = {power._unnumbered(name) for name in truth}
        for node in graph.nodes:
            if node.name in truth:
                beside = [other for other in graph.nodes if set(other.outputs) & set(node.inputs)]
                beside += [other for other in graph.nodes if set(node.outputs) & set(other.inputs)]
                near |= {power._unnumbered(other.name) for other in beside}
        named = {str(edit.change.get("node", "")), edit.where, *edit.change.get("readers", ())}
        value = edit.change.get("value")
        if edit.kind in ("insert", "recompute", "set-dimensions") and isinstance(value, str):
            made = graph.producer(value)
            named |= {made.name} if made is not None else set()
            named |= {other.name for other in graph.nodes if value in other.inputs}
        if edit.kind == "recompute" and isinstance(value, str):
            stops = {name for node in edit.change["nodes"] for name in node["inputs"]}
            named |= {node.name for node in graph.between(value, stops)}
        return bool({power._unnumbered(name) for name in named} & near)


def main() -> int:
    """Run, print the tables, write the page; 1 when a floor is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="", help="parts of names of pairs, by commas")
    parser.add_argument("--models", default="")
    parser.add_argument("--kinds", default="")
    parser.add_argument("--limit", type=int, default=6, help="cases for each model of each pair")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model-seed", type=int, default=0, help="seed of the models' weights")
    parser.add_argument("--multi", action="store_true", help="plant two and three faults at once")
    parser.add_argument("--cases", type=Path, default=ROOT / "benchmarks" / "out" / "repair.jsonl")
    parser.add_argument("--work", type=Path, default=None, help="folder for the models; kept when given")
    parser.add_argument("--out", type=Path, default=None, help="write the page here")
    parser.add_argument("--table", action="store_true", help="only print the tables of the cases that are known")
    parser.add_argument("--again", action="store_true", help="run the cases anew that were missed")
    parser.add_argument("-v", "--verbose", action="store_true", help="show every miss with what is needed to debug it")
    args = parser.parse_args()
    args.clean = False
    with Session(Settings(timeout=600)) as session:
        folder = args.work or session.pool.fresh_folder("power")
        bench = Bench(session, Workshop(session, folder, args.model_seed), args.cases, args.verbose, args.again)
        if not args.table:
            power.run(bench, args)
        cases = list(bench.cases.values())
    print(repair_tables.text(cases))
    if args.out is not None:
        partial = args.out.with_suffix(".partial")
        partial.write_text(repair_tables.page(cases), encoding="utf-8")
        os.replace(partial, args.out)  # noqa: PTH105 -- atomic
    return 1 if repair_tables.below_floor(cases) else 0


if __name__ == "__main__":
    sys.exit(main())

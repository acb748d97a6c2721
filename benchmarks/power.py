"""What does a diagnosis find? Plants faults into converted models, diagnoses each, and prints the power table.

    python benchmarks/power.py [--pairs TEXT,..] [--models KIND,..] [--kinds KIND,..] [--limit N] [--seed N]
                               [--clean] [--multi] [--again] [--cases FILE] [--out docs/power.md] [--json FILE] [-v]

Without --clean or --multi one fault is planted at a time; all three may be given after one another, into one file of
cases. Every case is one line of that file, and a case that is in it is not run again. Exit code 1: a floor is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import power_tables
from power_pairs import PAIRS, ROOT, WRONG, Pair, Workshop

from trueport import api
from trueport.artifact import Artifact
from trueport.compare.types import Verdict
from trueport.diagnosis.run import Request, diagnose
from trueport.diagnosis.types import Diagnosis
from trueport.errors import TrueportError
from trueport.feeds import Feeds
from trueport.outcome import Failure
from trueport.session import Session, Settings
from trueport.testing.planter import Planted, Planter
from trueport.verification import Reference, reference

TOP = 3
"""Nodes of the ranking that a reader looks at."""
MULTI_TRIES = 12
"""Draws of kinds for one case of several faults, before the model counts as unable to take them."""


@dataclass(slots=True)
class Ground:
    """One model of one pair: the measured source, the clean target, the inputs, and the planter."""

    pair: Pair
    model: str
    source: Reference
    target: Artifact
    feeds: Feeds
    planter: Planter
    kinds: tuple[str, ...] = ()

    def diagnose(self, path: Path) -> Diagnosis:
        """Diagnose a changed copy of the target; what its converter declared still holds."""
        changed = Artifact.open(path, format=self.target.format, made_by=self.target.made_by)
        return diagnose(self.source, changed, self.feeds, request=Request(tools=False))


@dataclass(slots=True)
class Bench:
    """The cases that are known, and where new ones go."""

    session: Session
    workshop: Workshop
    file: Path
    verbose: bool = False
    again: bool = False
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    drawn: list[str] = field(default_factory=list)
    """Keys of all single faults of earlier runs, also of those that are run again."""

    def __post_init__(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        for line in lines:
            try:
                case = json.loads(line)
            except json.JSONDecodeError:  # an interrupted run was writing this line
                continue
            self.cases[case["key"]] = case
        self.drawn = [case["key"] for case in self.cases.values() if case["mode"] == "single"]
        self.cases = {key: case for key, case in self.cases.items() if not self.stale(case)}

    def drawn_for(self, ground: Ground, seed: int) -> list[str]:
        """The kinds that an earlier run drew for this model, so that a resumed run draws no others."""
        parts = [key.split("|") for key in self.drawn]
        return [part[3] for part in parts if part[1:3] == [ground.pair.name, ground.model] and part[4] == str(seed)]

    def stale(self, case: Mapping[str, Any]) -> bool:
        """Whether a case is to be run again: it was missed and that is wanted, or the diagnosis itself broke."""
        return case.get("verdict") == "crash" or (self.again and power_tables.missed(case))

    def keep(self, case: dict[str, Any]) -> None:
        """Append a case to the file and say how it went."""
        self.cases[case["key"]] = case
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(case, ensure_ascii=False, default=str) + "\n")
        print(power_tables.line(case), flush=True)
        if self.verbose and power_tables.missed(case):
            print(power_tables.details(case), flush=True)

    def ground(self, pair: Pair, module: str, kind: str) -> Ground | str:
        """Make the models of a pair; a text when a tool does not do it: why."""
        source = self.workshop.model(pair.zoo, module, kind, pair.source)
        target = self.workshop.target(pair, module, kind)
        for made in (source, target):
            if isinstance(made, str):
                return made
        assert isinstance(source, Artifact)
        assert isinstance(target, Artifact)
        loaded = reference(self.session, source)
        if isinstance(loaded, Failure):
            return loaded.message
        if pair.cross:  # what the converter declared is told in terms of another model than this source
            target = Artifact.open(target.path, format=target.format)
        feeds = api.open_feeds(self.session, source, None)
        planter = Planter(self.session, target)
        return Ground(
            pair=pair, model=kind + self.workshop.mark, source=loaded.value, target=target, feeds=feeds, planter=planter
        )

    # -- one case -----------------------------------------------------------------------------------------------

    def clean(self, ground: Ground) -> None:
        """A pair without a fault: whoever is suspected is suspected wrongly."""
        key = f"clean|{ground.pair.name}|{ground.model}"
        if key not in self.cases:
            self.keep({"key": key, "mode": "clean", **self._diagnosed(ground, ground.target.path, ())})

    def single(self, ground: Ground, kind: str, seed: int) -> bool:
        """One fault. False when it cannot be planted, or does not show."""
        key = f"single|{ground.pair.name}|{ground.model}|{kind}|{seed}"
        if key not in self.cases:
            planted = self._planted(ground.planter, ground.target.path, [kind], stable(kind, seed))
            if isinstance(planted, str):
                self.keep({"key": key, "mode": "skipped", **_where(ground), "kind": kind, "why": planted})
            else:
                found = {} if planted[0].effective is False else self._diagnosed(ground, planted[0].path, planted)
                self.keep({"key": key, "mode": "single", "seed": seed, **_where(ground), **_truth(planted[0]), **found})
        case = self.cases[key]
        return case["mode"] == "single" and case["effective"] is not False

    def several(self, ground: Ground, count: int, seed: int) -> bool:
        """Two or three faults in one model, in different nodes, each of which shows."""
        key = f"several|{ground.pair.name}|{ground.model}|{count}|{seed}"
        if key not in self.cases:
            planted = self._several(ground, count, seed)
            if isinstance(planted, str):
                self.keep({"key": key, "mode": "skipped", **_where(ground), "kind": f"{count} faults", "why": planted})
            else:
                case = {"key": key, "mode": "several", "seed": seed, "faults": [_truth(one) for one in planted]}
                self.keep({**case, **self._diagnosed(ground, planted[-1].path, planted)})
        return bool(self.cases[key]["mode"] == "several")

    def _several(self, ground: Ground, count: int, seed: int) -> tuple[Planted, ...] | str:
        rng = np.random.default_rng(seed)
        for _ in range(MULTI_TRIES):
            kinds = [str(kind) for kind in rng.choice(ground.kinds, count, replace=False)]
            planted = self._planted(ground.planter, ground.target.path, kinds, int(rng.integers(1 << 30)))
            if isinstance(planted, str) or not all(one.effective for one in planted):
                continue
            nodes = [name for one in planted for name in one.nodes]
            if len(set(nodes)) == len(nodes):
                return planted
        return f"no {count} faults in different nodes that all show"

    def _planted(self, planter: Planter, path: Path, kinds: Sequence[str], seed: int) -> tuple[Planted, ...] | str:
        """Plant one kind behind the other, each into the result of the one before."""
        done: list[Planted] = []
        for place, kind in enumerate(kinds):
            folder = self.session.pool.fresh_folder("power")
            current = planter if not done else Planter(self.session, Artifact.open(done[-1].path), planter.feeds)
            try:
                planted = current.plant(folder / f"planted{path.suffix}", kind, seed + place)
            except TrueportError as error:
                return str(error).splitlines()[0]
            if isinstance(planted, str):
                return planted
            done.append(planted)
        return tuple(done)

    def _diagnosed(self, ground: Ground, path: Path, planted: Sequence[Planted]) -> dict[str, Any]:
        started = time.perf_counter()
        try:
            found = ground.diagnose(path)
        except TrueportError as error:
            raise error
        except Exception as error:  # noqa: BLE001 -- a crash of the diagnosis is a miss, to be counted with its reason
            crash = "".join(traceback.format_exception(error)[-3:])
            return {**_where(ground), "verdict": "crash", "suspects": [], "note": crash, **_judged([], planted, False)}
        suspects = [suspect.to_json() for suspect in found.suspects]
        return {
            **_where(ground),
            "verdict": str(found.verification.verdict),
            "seconds": round(time.perf_counter() - started, 2),
            "alignment": dict(found.alignment),
            "suspects": suspects,
            "note": "; ".join(found.notes)[:600],
            **_judged(suspects, planted, found.verification.verdict is Verdict.DEVIATES),
        }


def _where(ground: Ground) -> dict[str, Any]:
    return {"pair": ground.pair.name, "model": ground.model, "names": ground.pair.names}


def _truth(planted: Planted) -> dict[str, Any]:
    names = ("kind", "row", "cause", "cause_also", "nodes", "what", "source_value", "target_value", "effective")
    numbers = {"error": planted.error, "floor": planted.floor}
    return {**{name: getattr(planted, name) for name in names}, **numbers}


def _judged(suspects: Sequence[Mapping[str, Any]], planted: Sequence[Planted], deviates: bool) -> dict[str, Any]:
    """Compare what is suspected with the truth.

    The ranking is that of a reader: the nodes of the first suspect in its order, then those of the second. A suspect
    none of whose nodes is in any truth is spurious. Of several faults each must be named among the first nodes of a
    suspect; neighbouring faults may be named by one suspect, and "own" counts those that have one to themselves. An
    operator that is put in later moves the numbers of TFLite's operators, so these are left out.
    """
    truth = {name for one in planted for name in one.nodes}
    ranking = [name for suspect in suspects for name in suspect["target_nodes"]]
    spurious = sum(not truth.intersection(suspect["target_nodes"]) for suspect in suspects)
    judged: dict[str, Any] = {"detected": deviates, "spurious": spurious}
    if len(planted) == 1:
        cause = suspects[0]["cause"] if suspects else None
        judged["top1"] = bool(ranking[:1]) and ranking[0] in truth
        judged["top3"] = bool(truth.intersection(ranking[:TOP]))
        judged["cause_found"] = cause
        judged["cause_right"] = cause in (planted[0].cause, *planted[0].cause_also)
        judged["cause_exact"] = cause == planted[0].cause
    elif planted:
        heads = [{_unnumbered(name) for name in suspect["target_nodes"][:TOP]} for suspect in suspects]
        truths = [{_unnumbered(name) for name in one.nodes} for one in planted]
        judged["found"] = sum(any(head & truth for head in heads) for truth in truths)
        judged["own"] = _matched(heads, truths)
    return judged


def _unnumbered(node: str) -> str:
    return re.sub(r"^\d+:", "", node)


def _matched(heads: Sequence[set[str]], free: Sequence[set[str]]) -> int:
    """How many faults have a suspect of their own: the largest matching between the two, by trying all orders."""

    def best(fault: int, used: frozenset[int]) -> int:
        if fault == len(free):
            return 0
        counts = [best(fault + 1, used)]
        counts += [
            1 + best(fault + 1, used | {place})
            for place, head in enumerate(heads)
            if place not in used and head & free[fault]
        ]
        return max(counts)

    return best(0, frozenset())


# -- the run ------------------------------------------------------------------------------------------------------------


def stable(*texts: object) -> int:
    """A seed that depends on nothing but these texts."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, texts)).encode()).digest()[:4], "big")


def order(kinds: Sequence[str], used: Counter[str], seed: int) -> list[str]:
    """Kinds that were planted least so far come first, in random order among equals."""
    shuffled = [kinds[index] for index in np.random.default_rng(seed).permutation(len(kinds))]
    return sorted(shuffled, key=lambda kind: used[kind])


def grounds(bench: Bench, args: argparse.Namespace) -> Iterator[Ground]:
    """Every model of every wanted pair that its tools can make."""
    for pair in PAIRS:
        if args.pairs and not any(text in pair.name for text in args.pairs.split(",")):
            continue
        for module, kind in bench.workshop.models(pair.zoo):
            if args.models and kind not in args.models.split(","):
                continue
            try:
                made = bench.ground(pair, module, kind)
            except TrueportError as error:
                made = str(error).splitlines()[0]
            if (pair.name, kind) in WRONG:
                made = WRONG[pair.name, kind]
            if isinstance(made, str):
                print(f"not made: {pair.name} of {kind}: {made}", flush=True)
                continue
            yield made


def run(bench: Bench, args: argparse.Namespace) -> None:
    """Run the wanted cases, the kinds spread evenly."""
    used: Counter[str] = Counter(case["kind"] for case in bench.cases.values() if case["mode"] == "single")
    for ground in grounds(bench, args):
        if args.clean:
            bench.clean(ground)
            continue
        try:
            ground.kinds = tuple(ground.planter.kinds())
        except TrueportError as error:
            print(f"not planted: {ground.pair.name} of {ground.model}: {error}", flush=True)
            continue
        seed = stable(ground.pair.name, ground.model, args.seed)
        if args.multi:
            for number in range(args.limit):
                bench.several(ground, 2 + number % 2, seed % 100_000 + number)
            continue
        wanted = [kind for kind in ground.kinds if not args.kinds or kind in args.kinds.split(",")]
        done = 0
        drawn = [kind for kind in bench.drawn_for(ground, args.seed) if kind in wanted]
        for kind in dict.fromkeys([*drawn, *order(wanted, used, seed)]):
            if done == args.limit:
                break
            if bench.single(ground, kind, args.seed):
                used[kind] += 1
                done += 1


def main() -> int:
    """Run, print the tables, write the page; 1 when a floor is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="", help="parts of names of pairs, by commas")
    parser.add_argument("--models", default="")
    parser.add_argument("--kinds", default="")
    parser.add_argument("--limit", type=int, default=6, help="cases for each model of each pair")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model-seed", type=int, default=0, help="seed of the models' weights")
    parser.add_argument("--clean", action="store_true", help="diagnose the pairs as they are")
    parser.add_argument("--multi", action="store_true", help="plant two and three faults at once")
    parser.add_argument("--cases", type=Path, default=ROOT / "benchmarks" / "out" / "power.jsonl")
    parser.add_argument("--work", type=Path, default=None, help="folder for the models; kept when given")
    parser.add_argument("--out", type=Path, default=None, help="write the page here")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--table", action="store_true", help="only print the tables of the cases that are known")
    parser.add_argument("--again", action="store_true", help="run the cases anew that were missed")
    parser.add_argument("-v", "--verbose", action="store_true", help="show every miss with what is needed to debug it")
    args = parser.parse_args()
    with Session(Settings(timeout=600)) as session:
        folder = args.work or session.pool.fresh_folder("power")
        bench = Bench(session, Workshop(session, folder, args.model_seed), args.cases, args.verbose, args.again)
        if not args.table:
            run(bench, args)
        cases = list(bench.cases.values())
    print(power_tables.text(cases))
    if args.out is not None:
        partial = args.out.with_suffix(".partial")
        partial.write_text(power_tables.page(cases), encoding="utf-8")
        os.replace(partial, args.out)  # noqa: PTH105 -- atomic
    if args.json is not None:
        args.json.write_text(json.dumps(power_tables.totals(cases), indent=1) + "\n", encoding="utf-8")
    return 1 if power_tables.below_floor(cases) else 0


if __name__ == "__main__":
    sys.exit(main())

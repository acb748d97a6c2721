"""Does what a user has today find planted faults? Other tools' checks of single values, and the diagnosis, on the same models.

    python benchmarks/peers.py [--limit N] [--seed N] [--model-seed N] [--models KIND,..] [--cases FILE] [--work FOLDER]
                               [--out docs/peers.md]

Every group of pairs names the tools that apply to it and why the others do not. Every fault is a line of the file of
cases, and one that is in it is not run again. The seeds are by default such that no benchmark of the diagnosis uses: it was not developed
on these weights and places.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import peers_page
from power_pairs import ROOT, Pair, Workshop

from power import Bench, Ground, order, stable
from trueport.artifact import Artifact
from trueport.compare.types import Verdict
from trueport.diagnosis.run import Request, diagnose
from trueport.envs import Environment
from trueport.errors import TrueportError
from trueport.graph import Graph
from trueport.outcome import Failure, Stage
from trueport.session import Session, Settings
from trueport.testing.planter import Planted
from trueport.toolchains import PLAIN, Variant

OURS = "trueport diagnose"
ZOO = "architectures_torch"
SEED, MODEL_SEED = 2027, 611
DECIBELS = 6.0
"""How far below its clean pair a ratio must fall to count as a mismatch, for a tool that has no threshold of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One tool and its reference: "source", "clean" (the target before the fault), or a route from the source.

    merged: of several rows for one value of the target the one that agrees best counts, instead of each by itself.
    threshold: whether the tool says itself when a value is wrong.
    """

    name: str
    function: str
    toolchain: str
    reference: str = "source"
    packages: tuple[str, ...] = ()
    merged: bool = False
    threshold: bool = True


POLYGRAPHY = Peer(
    name="Polygraphy", function="polygraphy", toolchain="onnx", packages=("polygraphy==0.53.6",), reference="source"
)
ACTIVATIONS = Peer(name="ONNX Runtime activations", function="activations", toolchain="onnx", threshold=False)
PAIRS_FILE = "onnx2tf-pairs.json"


def _with(peer: Peer, reference: str, words: str) -> Peer:
    return replace(peer, name=f"{peer.name}, {words}", reference=reference)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A pair of routes, the models and the number of faults in each, and the tools that can look at it."""

    pair: Pair
    models: tuple[str, ...]
    faults: int
    peers: tuple[Peer, ...]


UNFAULTY, OTHER = "reference: the file before the fault", "reference: the other exporter's file"
GROUPS = (
    Group(
        pair=Pair(name="PyTorch → ONNX", zoo="torch", source="", target="torch-dynamo", names=True),
        models=("residual", "depthwise", "transformer", "unet"),
        faults=5,
        peers=(
            Peer(name="torch.onnx.verification", function="torch_verification", toolchain="torch"),
            _with(POLYGRAPHY, "torch-torchscript", OTHER),
            _with(ACTIVATIONS, "torch-torchscript", OTHER),
            _with(POLYGRAPHY, "clean", UNFAULTY),
            _with(ACTIVATIONS, "clean", UNFAULTY),
        ),
    ),
    Group(
        pair=Pair(
            name="ONNX → ONNX (onnxslim)",
            zoo="torch",
            source="torch-torchscript",
            target="torch-torchscript,onnxslim",
            names=True,
        ),
        models=("residual", "transformer", "unet"),
        faults=4,
        peers=(POLYGRAPHY, ACTIVATIONS),
    ),
    Group(
        pair=Pair(
            name="ONNX → TFLite (onnx2tf)",
            zoo="torch",
            source="torch-torchscript",
            target="torch-torchscript,onnx2tf-tflite",
            names=True,
        ),
        models=("residual", "transformer", "unet"),
        faults=4,
        peers=(
            Peer(name="onnx2tf -cotof", function="onnx2tf_check", toolchain="onnx2tf"),
            Peer(
                name="onnx2tf -cotof, best row of each tensor",
                function="onnx2tf_check",
                toolchain="onnx2tf",
                merged=True,
            ),
        ),
    ),
)


@dataclass(slots=True)
class Contest:
    """Runs every tool on every case; what is in the file of cases is not run again."""

    session: Session
    bench: Bench
    file: Path
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    _graphs: dict[str, Graph] = field(default_factory=dict)
    _replies: dict[tuple[str, ...], dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        for line in lines:
            try:
                case = json.loads(line)
            except json.JSONDecodeError:  # an interrupted run was writing this line
                continue
            self.cases[case["key"]] = case

    def keep(self, case: dict[str, Any]) -> None:
        """Append a case to the file and say how it went."""
        self.cases[case["key"]] = case
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(case, ensure_ascii=False, default=str) + "\n")
        print(peers_page.line(case), flush=True)

    def clean(self, group: Group, ground: Ground) -> dict[str, Any]:
        """The pair without a fault: every value that a tool complains about is a false alarm."""
        key = f"clean|{group.pair.name}|{ground.model}"
        if key not in self.cases:
            tools = {peer.name: self._asked(peer, ground, ground.target) for peer in group.peers}
            mine = self._mine(ground, ground.target)
            self.keep({"key": key, "mode": "clean", **_where(group, ground), "tools": {OURS: mine, **tools}})
        return self.cases[key]

    def fault(self, group: Group, ground: Ground, kind: str, seed: int) -> bool:
        """One fault, and what each tool says of it. False where it cannot be planted or does not show."""
        key = f"fault|{group.pair.name}|{ground.model}|{kind}|{seed}"
        if key not in self.cases:
            planted = self._planted(ground, kind, seed)
            if isinstance(planted, str):
                self.keep({"key": key, "mode": "skipped", **_where(group, ground), "kind": kind, "why": planted})
                return False
            target = Artifact.open(planted.path, format=ground.target.format, made_by=ground.target.made_by)
            clean = self.clean(group, ground)["tools"]
            tools = {OURS: self._mine(ground, target, planted)}
            for peer in group.peers:
                tools[peer.name] = self._asked(peer, ground, target, planted, clean[peer.name])
            self.keep(
                {
                    "key": key,
                    "mode": "fault",
                    **_where(group, ground),
                    "kind": kind,
                    "cause": planted.cause,
                    "nodes": planted.nodes,
                    "what": planted.what,
                    "tools": tools,
                }
            )
        return bool(self.cases[key]["mode"] == "fault")

    def _planted(self, ground: Ground, kind: str, seed: int) -> Planted | str:
        folder = self.session.pool.fresh_folder("peers")
        out = folder / f"planted{ground.target.path.suffix}"
        try:
            planted = ground.planter.plant(out, kind, stable(kind, seed))
        except TrueportError as error:
            return str(error).splitlines()[0]
        if isinstance(planted, str):
            return planted
        return planted if planted.effective else "changes nothing measurable"

    # -- the tools ----------------------------------------------------------------------------------------------

    def _mine(self, ground: Ground, target: Artifact, planted: Planted | None = None) -> dict[str, Any]:
        """What the diagnosis says, with the original model as its reference."""
        started = time.perf_counter()
        found = diagnose(ground.source, target, ground.feeds, request=Request(tools=False))
        seconds = round(time.perf_counter() - started, 2)
        ranking = [name for suspect in found.suspects for name in suspect.target_nodes]
        verdict = found.verification.verdict
        made: dict[str, Any] = {
            "seconds": seconds,
            "noticed": verdict is Verdict.DEVIATES,
            "alarms": len(found.suspects),
        }
        made["verdict"] = str(verdict)
        if planted is not None:
            made.update(
                self._judged(target, ranking, planted, "first"), **self._judged(target, ranking, planted, "worst")
            )
            cause = str(found.suspects[0].cause) if found.suspects else ""
            made["cause_right"] = cause in (planted.cause, *planted.cause_also)
        return made

    def _asked(
        self,
        peer: Peer,
        ground: Ground,
        target: Artifact,
        planted: Planted | None = None,
        clean: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """What a tool says: its complaints in the order of the graph ("first") and by size ("worst")."""
        reply = self._reply(peer, ground, target)
        if "failed" in reply:
            return reply
        graph = self._graph(target)
        rows = reply["rows"]
        if peer.merged:
            best = {row["value"]: row for row in sorted(rows, key=lambda row: -row["error"])}
            rows = list(best.values())
        rows = [row for row in rows if row["value"] in graph.producers]
        rows.sort(key=lambda row: graph.producers[row["value"]])
        worst = max((row["error"] for row in rows), default=0.0)
        if clean is not None and "worst_error" in clean:
            limit = clean["worst_error"] + DECIBELS
            rows = [{**row, "bad": row["error"] > limit if row["bad"] is None else row["bad"]} for row in rows]
        bad = [row["value"] for row in rows if row["bad"]]
        sized = [row["value"] for row in sorted(rows, key=lambda row: -row["error"]) if row["bad"]]
        made = {"seconds": reply["seconds"], "versions": reply["versions"], "compared": len(rows), "alarms": len(bad)}
        made.update(noticed=bool(bad), worst_error=worst, threshold=peer.threshold)
        if planted is not None:
            for name, values in (("first", bad), ("worst", sized)):
                made.update(self._judged(target, [_producer(graph, value) for value in values], planted, name))
        return made

    def _reply(self, peer: Peer, ground: Ground, target: Artifact) -> dict[str, Any]:
        """The tool's own words; asked once for two readings of the same report."""
        reference = self._reference(peer, ground)
        if isinstance(reference, str):
            return {"failed": reference}
        key = (peer.function, str(reference.path), str(target.path))
        if key not in self._replies:
            data = ground.feeds.of_kind("data")[0]
            given = {"reference": str(reference.path), "target": str(target.path), "inputs": dict(data.inputs)}
            if peer.function == "onnx2tf_check":
                pairs = ground.target.path.with_name(PAIRS_FILE)
                if not pairs.exists():
                    self._call(peer, "onnx2tf_pairs", {"reference": str(reference.path), "out": str(pairs)})
                given["pairs"] = str(pairs)
            self._replies[key] = self._call(peer, peer.function, given)
        return self._replies[key]

    def _call(self, peer: Peer, function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        environment = self._environment(peer)
        folder = str(Path(__file__).resolve().parent)
        outcome = self.session.pool.call(
            environment.python, "peers_tools", function, arguments, stage=Stage.RUN, paths=[folder]
        )
        if isinstance(outcome, Failure):
            return {"failed": f"{outcome.kind}: {outcome.message.strip().splitlines()[0][:300]}"}
        return dict(outcome.value.value)

    def _environment(self, peer: Peer) -> Environment:
        variant = Variant(packages=peer.packages) if peer.packages else PLAIN
        found = self.session.environment(peer.toolchain, variant=variant)
        if isinstance(found, Failure):
            raise TrueportError(found.message)
        return found.value

    def _reference(self, peer: Peer, ground: Ground) -> Artifact | str:
        if peer.reference == "source":
            return ground.source.artifact
        if peer.reference == "clean":
            return ground.target
        kind = ground.model.partition("#")[0]  # behind it stands the seed of the weights
        return self.bench.workshop.model(ground.pair.zoo, ZOO, kind, peer.reference)

    # -- the judgement --------------------------------------------------------------------------------------------

    def _graph(self, artifact: Artifact) -> Graph:
        key = str(artifact.path)
        if key not in self._graphs:
            reply = self.session.ask(artifact, "graph", {}, stage=Stage.LOAD)
            if isinstance(reply, Failure):
                raise TrueportError(reply.message)
            self._graphs[key] = Graph.from_wire(reply.value.value)
        return self._graphs[key]

    def _judged(self, target: Artifact, named: Sequence[str], planted: Planted, reading: str) -> dict[str, Any]:
        """Whether the node that is named first is the faulty one, or stands right before or behind it."""
        graph, truth = self._graph(target), set(planted.nodes)
        near = {beside for name in truth & set(graph.by_name) for beside in _neighbours(graph, name)} | truth
        head = named[:1]
        return {
            f"{reading}_named": head[0] if head else "",
            f"{reading}_right": bool(truth & set(head)),
            f"{reading}_near": bool(near & set(head)),
        }


def _where(group: Group, ground: Ground) -> dict[str, Any]:
    return {"group": group.pair.name, "model": ground.model}


def _producer(graph: Graph, value: str) -> str:
    node = graph.producer(value)
    assert node is not None, value
    return node.name


def _neighbours(graph: Graph, name: str) -> Iterable[str]:
    node = graph.by_name[name]
    for value in node.inputs:
        before = graph.producer(value)
        if before is not None:
            yield before.name
    for value in node.outputs:
        for place in graph.consumers.get(value, ()):
            yield graph.nodes[place].name


def run(contest: Contest, args: argparse.Namespace) -> None:
    """Every group, model and fault that is wanted."""
    for group in GROUPS:
        for model in group.models:
            if args.models and model not in args.models.split(","):
                continue
            ground = contest.bench.ground(group.pair, ZOO, model)
            if isinstance(ground, str):
                print(f"not made: {group.pair.name} of {model}: {ground}", flush=True)
                continue
            contest.clean(group, ground)
            used = Counter(case["kind"] for case in contest.cases.values() if case["mode"] == "fault")
            wanted = order(tuple(ground.planter.kinds()), used, stable(group.pair.name, model, args.seed))
            done = 0
            for kind in wanted:
                if done == (args.limit or group.faults):
                    break
                done += contest.fault(group, ground, kind, args.seed)


def main() -> int:
    """Run, print the tables, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="")
    parser.add_argument("--limit", type=int, default=0, help="faults for each model of each group; 0: the table's own")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--model-seed", type=int, default=MODEL_SEED, help="seed of the models' weights")
    parser.add_argument("--cases", type=Path, default=ROOT / "benchmarks" / "out" / "peers.jsonl")
    parser.add_argument("--work", type=Path, default=None, help="folder for the models; kept when given")
    parser.add_argument("--out", type=Path, default=None, help="write the page here")
    parser.add_argument("--table", action="store_true", help="only print the tables of the cases that are known")
    args = parser.parse_args()
    with Session(Settings(timeout=600)) as session:
        folder = args.work or session.pool.fresh_folder("peers")
        bench = Bench(
            session, Workshop(session, folder, args.model_seed), session.pool.fresh_folder("cases") / "none.jsonl"
        )
        contest = Contest(session, bench, args.cases)
        if not args.table:
            run(contest, args)
        cases = list(contest.cases.values())
    print(peers_page.tables(cases))
    if args.out is not None:
        partial = args.out.with_suffix(".partial")
        partial.write_text(peers_page.page(cases), encoding="utf-8")
        os.replace(partial, args.out)  # noqa: PTH105 -- atomic
    return 0


if __name__ == "__main__":
    sys.exit(main())

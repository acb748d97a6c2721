"""Find out what works today, framework by framework and pair by pair, and write docs/support.md.

    python scripts/support.py [--sources keras,onnx] [--targets coreml] [--json FILE] [--out FILE]

Nothing is taken from a list: every framework file goes through the conformance kit with a small model of its formats, and
every pair of formats is converted and verified, route by route, until one is faithful. With `--json` results are kept
there, and a pair that is not asked for stays as it was: a run of hours can be done in parts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "frameworks"))

from conformance_samples import model, sample  # noqa: E402

from trueport import feeds, publish  # noqa: E402
from trueport.conversion import Workbench  # noqa: E402
from trueport.errors import TrueportError  # noqa: E402
from trueport.frameworks import FRAMEWORKS  # noqa: E402
from trueport.outcome import Failure  # noqa: E402
from trueport.routes import plan, steps  # noqa: E402
from trueport.session import Session, Settings, framework_of  # noqa: E402
from trueport.testing import check_framework  # noqa: E402
from trueport.verification import reference  # noqa: E402

COLUMNS = {
    "sniff": ("sniff", "signature", "damaged-file"),
    "run": ("run", "run-repeated", "runs-apart", "runs-differ", "variants"),
    "float64": ("float64",),
    "trace": ("names", "trace", "trace-budget", "parameters", "replay"),
    "graph": ("graph",),
    "edit": ("edit",),
}
"""Column of the page -> checks of the conformance kit that stand for it."""

ROUTES = 6
"""Routes that are tried for a pair until one is faithful."""

SYSTEMS: Mapping[str, tuple[str, ...]] = {
    "PyTorch": ("format pytorch", "format torchscript"),
    "Keras": ("format keras",),
    "TensorFlow": ("format savedmodel",),
    "TFLite": ("format tflite",),
    "ONNX": ("format onnx",),
    "Core ML": ("format coreml",),
    "TVM": ("format tvm",),
    "OpenVINO": ("format openvino",),
    "ExecuTorch": ("format executorch",),
    "JAX": ("format jax",),
    "ONNX Runtime": ("runs onnx",),
    "torch.onnx, TorchScript exporter": ("step torch-torchscript",),
    "torch.onnx, dynamo exporter": ("step torch-dynamo",),
    "tf2onnx": ("tool tf2onnx", "old tf2onnx"),
    "TFLiteConverter": ("step tflite-keras",),
    "coremltools": ("tool coremltools",),
    "onnx2torch": ("tool onnx2torch",),
    "onnx2tf": ("tool onnx2tf",),
    "ONNX optimizer": ("tool onnxoptimizer",),
    "onnx2keras": ("old onnx2keras",),
    "onnxmltools": ("old onnxmltools",),
    "tflite2onnx": ("old tflite2onnx",),
    "onnx-tf": ("old onnx-tf",),
    "MMdnn": ("old MMdnn",),
}
"""Every system that the studies name, and what stands for it here."""


def formats() -> list[str]:
    """Formats that a user has, in the order of the framework table."""
    return [name for module in FRAMEWORKS.values() for name in module.FORMATS if module.NAME != "fake"]


def conformance(session: Session, format: str, folder: Path) -> dict[str, str]:
    """Column -> "yes", or why not."""
    try:
        found = check_framework(framework_of(format), [sample(session, format, folder)])
    except (TrueportError, AssertionError) as error:
        return {"sniff": f"no model to look at: {' '.join(str(error).split())[:300]}"}
    told = {}
    for column, checks in COLUMNS.items():
        broken = [item.message for item in found.broken if item.check in checks]
        without = {check: found.left_out[check] for check in checks if check in found.left_out}
        said = broken or [f"{check}: {why}" if len(checks) > 1 else why for check, why in without.items()]
        told[column] = "; ".join(said) if said else "yes"
        if not broken and without and len(without) < len(checks):
            told[column] = f"partly ({told[column]})"
    return told


def pairs(session: Session, source: str, targets: Sequence[str], folder: Path) -> Iterator[dict[str, Any]]:
    """What comes of converting the small model of a format into each of the others."""
    artifact = model(session, source, folder)
    loaded = reference(session, artifact)
    if isinstance(loaded, Failure):
        for target in targets:
            yield {"source": source, "target": target, "outcome": str(loaded.kind), "reason": loaded.message}
        return
    given = feeds.generate(loaded.value.signature, seed=0)
    bench = Workbench(session=session, original=loaded.value, given=given, check=True, task="auto")
    for target in targets:
        yield pair(bench, source, target)


def pair(bench: Workbench, source: str, target: str) -> dict[str, Any]:
    """The first faithful route; without one, the first with a verdict, else the first failure."""
    routes = plan(source, target)
    told: dict[str, Any] = {"source": source, "target": target, "outcome": "no route", "reason": "", "tried": 0}
    for route in routes[:ROUTES]:
        started = time.monotonic()
        try:
            attempt = bench.attempt(route)
        except TrueportError as error:
            found = {"outcome": "error", "reason": str(error)}
        else:
            verification = attempt.verification
            if attempt.failure is None and verification is not None:
                found = {"outcome": str(verification.verdict), "reason": verification.reason}
            else:
                failure = attempt.failure
                assert failure is not None
                found = {"outcome": str(failure.kind), "reason": f"{attempt.hops[-1].hop.step.name}: {failure.message}"}
        found["route"], told["tried"] = route.name, told["tried"] + 1
        better = told["outcome"] == "no route" or found["outcome"] == "faithful"
        if better or (found["outcome"] in ("deviates", "incomparable") and told["outcome"] not in ("deviates",)):
            told |= found
        print(f"{source:12} {target:12} {route.name:50} {found['outcome']:14} {time.monotonic() - started:5.0f} s", flush=True)  # fmt: skip
        if found["outcome"] == "faithful":
            break
    return told


def versions(route: str) -> str:
    """The tools of a route with their locked versions."""
    from support_systems import version

    chosen = [steps()[name] for name in route.split(",")]
    return ", ".join(dict.fromkeys(version(step.toolchain, step.tool) for step in chosen))


def page(looked: Mapping[str, Mapping[str, str]], found: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """The Markdown page."""
    from support_systems import systems

    names = formats()
    lines = [
        "# What works today",
        "",
        "Generated by `scripts/support.py`: each framework file goes through the conformance kit with a small residual network",
        f"in its format, and each pair of formats is converted and verified, up to {ROUTES} routes, until one is faithful. More",
        "models, and every step for itself: [conversion-matrix.md](conversion-matrix.md).",
        "",
        "## Frameworks",
        "",
        "| format | " + " | ".join(COLUMNS) + " |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    notes = []
    for name in names:
        cells = []
        for column in COLUMNS:
            said = looked.get(name, {}).get(column, "not looked at")
            word = said.split(" ")[0] if said.split(" ")[0] in ("yes", "partly") else "no"
            word = "not looked at" if said == "not looked at" else word
            cells.append(word)
            if word in ("partly", "no"):
                notes.append(f"- `{name}`, {column}: {said.replace('](', '] (')}")
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    lines += ["", "What is not there:", "", *notes, "", "## From format to format", ""]
    lines += ["Rows are sources, columns targets. `=`: the same format. A number: hops of the faithful route.", ""]
    lines += ["| from \\\\ to | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for source in names:
        cells = ["=" if source == target else _cell(found.get((source, target))) for target in names]
        lines.append(f"| `{source}` | " + " | ".join(cells) + " |")
    lines += ["", "### Faithful routes", "", "| from | to | route | with |", "|---|---|---|---|"]
    for (source, target), one in found.items():
        if one["outcome"] == "faithful":
            lines.append(f"| {source} | {target} | `{one['route']}` | {versions(one['route'])} |")
    lines += ["", "### Not faithful today", "", "| from | to | route | outcome | reason |", "|---|---|---|---|---|"]
    for (source, target), one in found.items():
        if one["outcome"] not in ("faithful", "no route"):
            reason = " ".join(str(one["reason"]).split()).replace("|", "\\|").replace("](", "] (")[:400]
            lines.append(f"| {source} | {target} | `{one.get('route', '')}` | {one['outcome']} | {reason} |")
    return "\n".join([*lines, "", *systems(SYSTEMS, looked, found)]) + "\n"


def _cell(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return ""
    if one["outcome"] == "faithful":
        return f"{len(one['route'].split(','))}"
    return str(one["outcome"])


def main() -> int:
    """Look, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", help="only these source formats, separated by commas")
    parser.add_argument("--targets", help="only these target formats")
    parser.add_argument("--no-conformance", action="store_true", help="leave the framework files out")
    parser.add_argument("--json", type=Path, help="keep results there between runs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "support.md")
    arguments = parser.parse_args()
    names = formats()
    sources = names if arguments.sources is None else [name for name in arguments.sources.split(",") if name]
    targets = names if arguments.targets is None else arguments.targets.split(",")
    kept = json.loads(arguments.json.read_text()) if arguments.json is not None and arguments.json.exists() else {}
    looked: dict[str, dict[str, str]] = kept.get("looked", {})
    found = {(one["source"], one["target"]): one for one in kept.get("pairs", [])}

    def keep() -> None:
        if arguments.json is not None:
            publish.text(arguments.json, json.dumps({"looked": looked, "pairs": list(found.values())}, indent=1))

    with Session(Settings(timeout=600)) as session:
        folder = session.pool.fresh_folder("support")
        for name in sources:
            if not arguments.no_conformance:
                looked[name] = conformance(session, name, folder)
                print(f"{name:12} {looked[name]}", flush=True)
                keep()
            wanted = [target for target in targets if target != name and plan(name, target)]
            for other in targets:
                if other != name and not plan(name, other):
                    found[(name, other)] = {"source": name, "target": other, "outcome": "no route", "reason": ""}
            for one in pairs(session, name, wanted, folder) if wanted else ():
                found[(one["source"], one["target"])] = one
                keep()
    order = {name: place for place, name in enumerate(names)}
    ranked = dict(sorted(found.items(), key=lambda item: (order[item[0][0]], order[item[0][1]])))
    publish.text(arguments.out, page(looked, ranked))
    return 1 if any(one["outcome"] == "error" for one in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

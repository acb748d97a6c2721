"""The pairs of the power table: which models, which clean twin is the source, which one gets the fault.

A pair is written as two routes from one zoo model; "" is the model itself. So the source may be any clean twin, also one
that shares no name with the target.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trueport import api, publish
from trueport.artifact import Artifact
from trueport.errors import TrueportError
from trueport.outcome import Failure, Stage
from trueport.routes import steps
from trueport.session import Session, framework_of

ROOT = Path(__file__).resolve().parents[1]

ZOOS = {
    "keras": ("keras", "tensorflow", ("architectures_keras", "keras_models")),
    "torch": ("pytorch", "torch", ("architectures_torch", "torch_models")),
}
"""Zoo -> format, toolchain, modules with `save(kind, folder, seed)`, the wider one first."""
FOLDERS = {
    "architectures_keras": ROOT / "tests" / "power",
    "architectures_torch": ROOT / "tests" / "power",
    "siblings_keras": ROOT / "tests" / "power",
    "siblings_torch": ROOT / "tests" / "power",
    "keras_models": ROOT / "tests" / "frameworks",
    "torch_models": ROOT / "tests" / "frameworks",
}
SMALL = {
    "keras_models": ("residual", "depthwise", "lstm", "gru", "transformer", "multi"),
    "torch_models": ("residual", "depthwise", "lstm", "gru", "encoder", "mixed"),
}
"""Models of the small zoos; the wide ones list theirs as KINDS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Where source and target come from. names: whether nodes and values keep names from one to the other.

    sibling: the target's route begins at a PyTorch port of the zoo model, written by hand, that has its weights.
    """

    name: str
    zoo: str
    source: str
    target: str
    names: bool
    sibling: bool = False

    @property
    def cross(self) -> bool:
        """Whether the target was not made of the source: what its converter declared tells of another model."""
        return bool(self.source) or self.sibling


SCRIPT = "torch-torchscript"

PAIRS = (
    Pair(name="keras → onnx", zoo="keras", source="", target="tf2onnx-keras", names=True),
    Pair(name="keras → tflite", zoo="keras", source="", target="tflite-keras", names=True),
    Pair(name="savedmodel → onnx", zoo="keras", source="keras-savedmodel", target="tf2onnx-keras", names=True),
    Pair(name="savedmodel → tflite", zoo="keras", source="keras-savedmodel", target="tflite-keras", names=False),
    Pair(name="savedmodel → keras", zoo="keras", source="keras-savedmodel", target="", names=True),
    Pair(name="torch → onnx, dynamo", zoo="torch", source="", target="torch-dynamo", names=True),
    Pair(name="torch → onnx, torchscript", zoo="torch", source="", target="torch-torchscript", names=False),
    Pair(name="torch → tflite", zoo="torch", source="", target="litert-torch", names=False),
    Pair(name="onnx → torch, onnx2torch", zoo="torch", source=SCRIPT, target=f"{SCRIPT},onnx2torch", names=True),
    Pair(name="onnx → torch, original", zoo="torch", source="torch-dynamo", target="", names=True),
    Pair(name="onnx → tflite, onnx2tf", zoo="torch", source=SCRIPT, target=f"{SCRIPT},onnx2tf-tflite", names=True),
    Pair(
        name="savedmodel → onnx, made by torch",
        zoo="torch",
        source=f"{SCRIPT},onnx2tf-savedmodel",
        target=SCRIPT,
        names=False,
    ),
    Pair(name="tflite → onnx, made by torch", zoo="torch", source="litert-torch", target="torch-dynamo", names=False),
    Pair(name="keras → onnx, by tflite", zoo="keras", source="", target="tflite-keras,tf2onnx-tflite", names=False),
    Pair(name="tflite → onnx", zoo="keras", source="tflite-keras", target="tf2onnx-keras", names=False),
    Pair(name="onnx → tflite", zoo="keras", source="tf2onnx-keras", target="tflite-keras", names=False),
    Pair(name="onnx → openvino", zoo="torch", source=SCRIPT, target=f"{SCRIPT},openvino-onnx", names=True),
    Pair(name="torch → openvino", zoo="torch", source="", target="openvino-torch", names=False),
    Pair(
        name="tflite → openvino",
        zoo="keras",
        source="tflite-keras",
        target="tflite-keras,openvino-tflite",
        names=False,
    ),
    Pair(name="torch → coreml", zoo="torch", source="", target="coreml-torch", names=True),
    Pair(name="torch → coreml, trace", zoo="torch", source="", target="coreml-trace", names=False),
    Pair(name="onnx → coreml", zoo="torch", source=SCRIPT, target="coreml-torch", names=False),
    Pair(name="keras → coreml", zoo="keras", source="", target="coreml-keras", names=False),
    Pair(name="keras → coreml, by torch", zoo="keras", source="", target="coreml-keras-torch", names=False),
    Pair(
        name="savedmodel → coreml",
        zoo="keras",
        source="keras-savedmodel",
        target="keras-savedmodel,coreml-savedmodel",
        names=False,
    ),
    Pair(
        name="keras → onnx, sibling by torch",
        zoo="keras",
        source="",
        target="torch-dynamo",
        names=False,
        sibling=True,
    ),
)


WRONG = {
    ("onnx → tflite, onnx2tf", "depthwise"): "log(softmax(x)) for LogSoftmax: minus infinity for large inputs",
    ("onnx → tflite, onnx2tf", "lstm"): "the reshapes of the unrolled LSTM fix the batch at 1; at that size it is true",
    ("onnx → tflite, onnx2tf", "branches"): "alpha of Elu is dropped, 1 for 0.8",
}
"""Pairs that a tool gets wrong by itself (onnx2tf 2.6.9): they are no clean pairs, and nothing is planted into them."""


@dataclass(slots=True)
class Workshop:
    """Builds zoo models and converts them, each once; what a folder holds from an earlier run is taken as it is."""

    session: Session
    folder: Path
    seed: int = 0
    """Of the models' weights."""

    def models(self, zoo: str) -> list[tuple[str, str]]:
        """(module, kind) of every model of a zoo: the wide one, else the small one."""
        for module in ZOOS[zoo][2]:
            if not (FOLDERS[module] / f"{module}.py").exists():
                continue
            return [(module, kind) for kind in SMALL.get(module) or listed(FOLDERS[module] / f"{module}.py")]
        return []

    @property
    def mark(self) -> str:
        """What tells models of other weights from those of seed 0."""
        return f"#{self.seed}" if self.seed else ""

    def model(self, zoo: str, module: str, kind: str, route: str) -> Artifact | str:
        """The model after a route; a text when a step does not do it: why."""
        source_format, toolchain, _ = ZOOS[zoo]
        home = self.folder / f"{zoo}-{module}-{kind}{self.mark}"
        home.mkdir(parents=True, exist_ok=True)
        made = next(iter(home.glob("source.*")), None)
        if made is None:
            built = self._call(toolchain, module, "save", {"kind": kind, "folder": str(home), "seed": self.seed})
            path = Path(built if isinstance(built, str) else built[source_format])
            made = path.rename(home / f"source{path.suffix}")
        if not route:
            return Artifact.open(made)
        return self._converted(Artifact.open(made), route, home)

    def target(self, pair: Pair, module: str, kind: str) -> Artifact | str:
        """The target of a pair, not yet changed; a text when it cannot be made: why."""
        if not pair.sibling:
            return self.model(pair.zoo, module, kind, pair.target)
        siblings = listed(FOLDERS["siblings_torch"] / "siblings_torch.py") if module == "architectures_keras" else []
        if kind not in siblings:
            return "no sibling of it is written"
        keras = self.model(pair.zoo, module, kind, "")
        assert isinstance(keras, Artifact)  # without a route nothing is converted
        made = keras.path.with_name("sibling.pt2")
        if not made.exists():
            weights = str(keras.path.with_name("weights.npz"))
            self._call("tensorflow", "siblings_keras", "weights", {"model": str(keras.path), "out": weights})
            folder = str(self.session.pool.fresh_folder("sibling"))
            given = {"kind": kind, "weights": weights, "folder": folder}
            publish.model(Path(self._call("torch", "siblings_torch", "save", given)), made)
        return self._converted(Artifact.open(made), pair.target, made.parent)

    def _converted(self, source: Artifact, route: str, home: Path) -> Artifact | str:
        target_format = steps()[route.rpartition(",")[2]].target_format
        stem = route.replace(",", "+")
        out = home / f"{stem}{framework_of(target_format).SUFFIXES[target_format]}"
        failed, declared = home / f"{stem}.failed", home / f"{stem}.json"
        if failed.exists():
            return failed.read_text(encoding="utf-8")
        if not declared.exists():
            try:
                done = api.convert(source, to=target_format, out=out, route=route, check=False, session=self.session)
            except TrueportError as error:
                return _remembered(failed, str(error))
            made = done.attempts[0].output
            if made is None:
                why = done.attempts[0].failure
                return _remembered(failed, "no result" if why is None else f"{why.kind}: {why.message}")
            kept = {name: made.made_by[name] for name in ("names", "layout") if name in made.made_by}
            declared.write_text(json.dumps(kept), encoding="utf-8")
        return Artifact.open(out, format=target_format, made_by=json.loads(declared.read_text(encoding="utf-8")))

    def _call(self, toolchain: str, module: str, function: str, arguments: dict[str, Any]) -> Any:
        environment = self.session.environment(toolchain)
        if isinstance(environment, Failure):
            raise TrueportError(environment.message)
        outcome = self.session.pool.call(
            environment.value.python, module, function, arguments, stage=Stage.LOAD, paths=[str(FOLDERS[module])]
        )
        if isinstance(outcome, Failure):
            raise TrueportError(f"{module}.{function}: {outcome.message}")
        return outcome.value.value


def listed(path: Path) -> list[str]:
    """The names in KINDS (or in the table BUILDERS) of a zoo, read without running it: its framework is not here."""
    found: dict[str, ast.expr] = {}
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            found[statement.targets[0].id] = statement.value
    table = found.get("BUILDERS")
    names = table.keys if isinstance(table, ast.Dict) else getattr(found.get("KINDS"), "elts", [])
    kinds = [str(ast.literal_eval(name)) for name in names if name is not None]
    if not kinds:
        raise TrueportError(f"{path.name} lists no models in KINDS or BUILDERS")
    return kinds


def _remembered(path: Path, why: str) -> str:
    """Keep why a conversion failed, so that the next run does not try it again."""
    text = why.strip().splitlines()[0][:300] if why.strip() else "no reason given"
    path.write_text(text, encoding="utf-8")
    return text

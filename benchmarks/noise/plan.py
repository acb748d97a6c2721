"""Which trials are run: models, routes and faults, and the known faults of converters that are no clean conversions."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence

from noise.trials import Bench, Trial

Source = tuple[str, str]
"""(framework, kind)."""

ROUTES: Mapping[str, Sequence[str]] = {
    "torch": ("torch-dynamo", "torch-torchscript", "litert-torch", "torch-dynamo,onnx2tf-tflite"),
    "keras": ("tf2onnx-keras", "tflite-keras", "keras-savedmodel,tf2onnx-savedmodel"),
    "onnx/torch": ("onnxscript-optimizer", "ort-optimizer", "onnx2tf-tflite"),
    "onnx/keras": ("onnxslim", "onnx2tf-tflite", "onnx2torch"),
}
"""framework -> routes of its clean conversions. An ONNX source is judged as a source of its own, with ONNX Runtime's floor."""

DEEP: Sequence[Source] = (
    *(("torch", kind) for kind in ("resnet20", "resnet32", "resnet56")),
    *(("keras", kind) for kind in ("mobilenetv2", "efficientnetb0", "densenet121", "resnet50", "inceptionv3")),
    ("keras", "mobilenetv2-224"),
    ("keras", "resnet101"),
)
"""Networks of 20 to 347 layers: rounding grows with depth, so these decide how wide a bound must be."""

SMALL: Sequence[Source] = (
    *(("torch", kind) for kind in ("residual", "depthwise", "lstm", "gru", "encoder", "mixed")),
    *(("keras", kind) for kind in ("residual", "depthwise", "lstm", "gru", "gru_reset_before")),
    *(("keras", kind) for kind in ("transformer", "exact_gelu", "silu", "multi")),
    *(("onnx/torch", kind) for kind in ("residual", "depthwise", "lstm", "gru", "encoder", "mixed")),
    *(("onnx/keras", kind) for kind in ("residual", "depthwise", "transformer", "multi")),
)

ONE_BATCH = "onnx2tf's result runs at the example's batch size only"
RESIZE = "XNNPACK cannot resize onnx2tf's result to another batch size; with the builtin kernels it is faithful"
KNOWN_FAULTS: Mapping[tuple[str, str, str], str] = {
    ("torch", "onnx2tf-tflite", "lstm"): ONE_BATCH,
    ("onnx/torch", "onnx2tf-tflite", "lstm"): ONE_BATCH,
    ("onnx/keras", "onnx2tf-tflite", "residual"): RESIZE,
}
"""(framework, last step, kind) -> a fault of that converter, seen and explained. Not a clean conversion: it must be found,
not passed."""

PLANTED: Mapping[str, Sequence[str]] = {
    "torch": ("residual", "depthwise", "lstm", "gru", "encoder", "mixed", "resnet20"),
    "keras": ("residual", "depthwise", "lstm", "gru", "transformer", "exact_gelu", "multi", "mobilenetv2"),
}
"""Models that faults are planted in; the last of each is deep."""

PLANTED_ROUTES: Mapping[str, Sequence[str]] = {
    "torch": ("torch-dynamo", "litert-torch"),
    "keras": ("tf2onnx-keras", "tflite-keras"),
}
"""framework -> one route to ONNX, one to TFLite."""

INEXPRESSIBLE = {("tf2onnx-keras", "exact_gelu")}
"""(route, kind) whose conversion does not exist; the tanh GELU of the same model does convert."""


def clean(seed: int, *, deep: bool = True, sources: Sequence[Source] = SMALL) -> Iterator[Trial]:
    """Clean trials without end: the deep networks once, then the small ones with ever new seeds."""
    for number in itertools.count():
        for framework, kind in (*(DEEP if deep and number == 0 else ()), *sources):
            for route in ROUTES[framework]:
                if (framework, kind) not in DEEP or "," not in route:
                    yield Trial(framework=framework, kind=kind, seed=seed + number, route=route)


def known_fault(trial: Trial) -> str:
    """Return the known fault of the converter that ends the trial's route on this kind of model, or ""."""
    return KNOWN_FAULTS.get((trial.framework, trial.route.rpartition(",")[2], trial.kind), "")


def planted(bench: Bench, seed: int, places: int, models: Mapping[str, Sequence[str]] = PLANTED) -> Iterator[Trial]:
    """Every fault in every model that has a place for it, at `places` places per route, other ones for each route."""
    for framework, kinds in models.items():
        for kind in kinds:
            for fault, found in bench.places(framework, kind, seed).items():
                order = random.Random(f"{seed} {kind} {fault}").sample(list(found), len(found))
                for number, route in enumerate(PLANTED_ROUTES[framework]):
                    if (route, kind) in INEXPRESSIBLE and fault != "tanh GELU":
                        continue
                    start = (number * places) % len(order)
                    for where in dict.fromkeys((order + order)[start : start + places]):
                        yield Trial(framework=framework, kind=kind, seed=seed, route=route, fault=fault, where=where)

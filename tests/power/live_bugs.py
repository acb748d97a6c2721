"""Do generated inputs and the verdict find the silent faults of released converters? Rows, and a table of them.

    python tests/power/live_bugs.py [ID ...]

Every row is a one-operator model, the route that has the fault, and what has to come out: "deviates", "faithful"
(negative cases: nothing may be blamed on the converter) or the kind of failure with which the route must end.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trueport import api
from trueport.outcome import Failure, Ok, Stage
from trueport.routes import parse_route
from trueport.session import Session, Settings

HERE = Path(__file__).resolve().parent
MAKERS = {
    "torch": ("torch", ".pt2"),
    "tf": ("tensorflow", ""),
    "keras": ("tensorflow", ".keras"),
    "onnx": ("onnx", ".onnx"),
}
"""Maker -> toolchain in which its models are built, suffix of the file."""

SUFFIXES = {
    "onnx": ".onnx",
    "tflite": ".tflite",
    "pytorch": ".pt2",
    "tvm": ".tvm",
    "executorch": ".pte",
    "openvino": ".xml",
}


@dataclass(frozen=True, slots=True)
class Bug:
    """One row. `expected`: the verdict, or the failure's kind; several where the converter's program reads memory at random."""

    id: str
    maker: str
    model: str
    route: str
    expected: str
    options: tuple[str, ...] = ()
    words: str = ""
    """Must stand in the reason."""


BUGS = (
    Bug("T1", "torch", "shift", "torch-torchscript", "deviates"),
    Bug("T1-dynamo", "torch", "shift", "torch-dynamo", "faithful"),
    Bug("T1-divide", "torch", "floor_divide", "torch-torchscript", "deviates"),
    Bug("T3-put", "torch", "index_put", "torch-torchscript", "deviates"),
    Bug("T3-add", "torch", "index_add", "torch-torchscript", "deviates"),
    Bug("T7", "torch", "attention_mask", "torch-dynamo", "deviates", ("torch-dynamo.opset=18",)),
    Bug("T7-lengths", "torch", "attention_lengths", "torch-dynamo", "deviates", ("torch-dynamo.opset=18",)),
    Bug("T7-opset23", "torch", "attention_mask", "torch-dynamo", "faithful", ("torch-dynamo.opset=23",)),
    Bug("T15", "torch", "avg_pool_divisor", "torch-torchscript", "deviates"),
    Bug("T15-dynamo", "torch", "avg_pool_divisor", "torch-dynamo", "deviates"),
    Bug("T17", "torch", "logsigmoid", "torch-torchscript", "deviates"),
    Bug("T17-dynamo", "torch", "logsigmoid", "torch-dynamo", "deviates"),
    Bug("T17-tflite", "tf", "logsigmoid", "tflite-savedmodel", "deviates"),
    Bug("T20", "torch", "softplus", "torch-torchscript", "deviates"),
    Bug("F1", "tf", "floor_divide", "tf2onnx-savedmodel", "deviates"),
    Bug("F4", "tf", "scatter", "tf2onnx-savedmodel", "deviates"),
    Bug("F7", "keras", "gelu", "tf2onnx-keras", "invalid-output"),
    Bug("F7-log1p", "tf", "log1p", "tf2onnx-savedmodel", "invalid-output"),
    Bug("N2-softmax", "onnx", "softmax_axis2", "onnx2tf-tflite", "faithful"),
    Bug("N2-concat", "onnx", "conv_concat", "onnx2tf-tflite", "deviates"),
    Bug("N2-slice", "onnx", "slice_axis2", "onnx2tf-tflite", "faithful"),
    Bug("N2-layernorm", "onnx", "layer_norm", "onnx2tf-tflite", "deviates"),
    Bug("N6", "onnx", "three_channels", "onnx2tf-tflite", "faithful"),
    Bug("O1", "onnx", "cumsum", "onnx2torch", "unsupported"),
    Bug("O3", "onnx", "nonzero", "onnx2torch", "deviates"),
    Bug("O6", "onnx", "batch_norm", "onnx2torch", "faithful"),
    Bug("R1-torch", "torch", "pad_pool_rim", "torch-torchscript", "faithful"),
    Bug("R1-dynamo", "torch", "pad_pool_rim", "torch-dynamo", "deviates", words="default runtime is at fault"),
    Bug("R1-optimizer", "onnx", "pad_pool", "onnxoptimizer", "flaky", ("onnxoptimizer.passes=fuse_pad_into_pool",)),
    Bug("P1", "onnx", "reshapes", "onnxoptimizer", "deviates"),
    Bug("E4", "torch", "nearest", "litert-torch", "deviates"),
    Bug("M-select", "torch", "select_last", "tvm-torch", "deviates flaky"),
    Bug("M-select-onnx", "torch", "select_last", "torch-torchscript,tvm-onnx", "faithful"),
    Bug("M-index", "torch", "index_last", "tvm-torch", "deviates flaky"),
    Bug("M-alpha", "torch", "add_alpha", "tvm-torch", "deviates"),
    Bug("M-alpha-onnx", "torch", "add_alpha", "torch-torchscript,tvm-onnx", "faithful"),
    Bug("M-ratio", "torch", "arange_ratio", "tvm-torch", "deviates"),
    Bug("M-selu", "torch", "selu", "tvm-torch", "deviates"),
    Bug("M-divisor", "torch", "avg_pool_divisor", "tvm-torch", "deviates"),
    Bug("M-nearest", "torch", "nearest", "tvm-torch", "deviates"),
    Bug("M-antialias", "onnx", "antialias", "tvm-onnx", "deviates"),
    Bug("M-lrn", "onnx", "lrn", "tvm-onnx", "faithful"),
    Bug("M2", "onnx", "output_padding", "tvm-onnx", "faithful"),
    Bug("M3", "onnx", "prelu", "tvm-onnx", "faithful"),
    Bug("X-gelu", "torch", "gelu_tanh", "executorch", "deviates", ("executorch.backend=xnnpack",)),
    Bug("X-gelu-portable", "torch", "gelu_tanh", "executorch", "faithful"),
    Bug("X-alpha", "torch", "add_alpha", "executorch", "faithful", ("executorch.backend=xnnpack",)),
    Bug("L10", "tf", "reverse", "tflite-savedmodel", "deviates"),
    Bug("L11", "tf", "nms", "tflite-savedmodel", "deviates"),
    Bug("V4-antialias", "onnx", "antialias", "openvino-onnx", "deviates"),
    Bug("V4-outside", "onnx", "resize_outside", "openvino-onnx", "deviates"),
    Bug("V4-aspect", "onnx", "resize_aspect", "openvino-onnx", "deviates"),
    Bug("V8", "onnx", "top_k", "openvino-onnx", "deviates"),
    Bug("train-mode", "torch", "train_mode", "torch-dynamo", "faithful"),
    Bug("train-mode-keras", "keras", "dropout", "tf2onnx-keras", "faithful"),
    Bug("batch-mean", "torch", "batch_mean", "torch-dynamo", "faithful"),
    Bug("batchnorm-fusion", "onnx", "conv_bn", "onnxoptimizer", "faithful"),
)


def outcome_of(session: Session, bug: Bug, folder: Path) -> tuple[str, str]:
    """Build the model, convert it over the route with generated inputs, and return (outcome, reason)."""
    toolchain, suffix = MAKERS[bug.maker]
    source = folder / f"{bug.maker}-{bug.model}{suffix}"
    if not source.exists():
        environment = session.environment(toolchain)
        assert isinstance(environment, Ok), environment
        arguments = {"maker": bug.maker, "name": bug.model, "out": str(source)}
        made = session.pool.call(
            environment.value.python, "live_models", "build", arguments, stage=Stage.LOAD, paths=[str(HERE)]
        )
        assert not isinstance(made, Failure), f"{made.message}\n{made.log[-2000:]}"
    to = parse_route(bug.route).target_format
    out = folder / f"{bug.id}-out{SUFFIXES[to]}"
    done = api.convert(source, to=to, out=out, route=bug.route, options=bug.options, session=session, repair=False)
    attempt = done.attempts[0]
    if attempt.failure is not None:
        return str(attempt.failure.kind), attempt.failure.message
    assert done.verification is not None
    return str(done.verification.verdict), " | ".join((done.verification.reason, *done.verification.comparison.notes))


def rows(ids: list[str]) -> Iterator[tuple[Bug, str, str]]:
    """Run the rows with these ids (all without any)."""
    with tempfile.TemporaryDirectory() as folder, Session(Settings(timeout=300)) as session:
        for bug in BUGS:
            if not ids or bug.id in ids:
                yield bug, *outcome_of(session, bug, Path(folder))


def main() -> None:
    """Print the table."""
    missed = 0
    for bug, got, reason in rows(sys.argv[1:]):
        missed += got not in bug.expected.split()
        print(
            f"{'ok  ' if got in bug.expected.split() else 'MISS'} {bug.id:18} {bug.route:20} {bug.expected:15} {got:15} {reason[:900]}",
            flush=True,
        )
    print(f"{missed} rows are not as expected")


if __name__ == "__main__":
    main()

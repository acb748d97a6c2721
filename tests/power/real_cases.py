"""Real faults of released converters, diagnosed from two bare files with generated inputs and without hints.

    python tests/power/real_cases.py [ID ...]

Every row builds a model, converts it over the route that has the fault, copies source and target as files that tell
nothing of their making beyond what the tool wrote into them, and asks for a diagnosis. A row says what is true: the
verdict, the operator that is at fault, the cause, the step, and the known bug. Negative rows must blame nothing.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from live_bugs import MAKERS

from trueport import api, publish
from trueport.artifact import Artifact
from trueport.conversion import Conversion
from trueport.diagnosis import known
from trueport.diagnosis.types import Cause, Diagnosis
from trueport.frameworks._base import Step
from trueport.outcome import Failure, Ok, Stage
from trueport.routes import Route, parse_options, parse_route
from trueport.session import Session, Settings, framework_of
from trueport.toolchains import Variant

HERE = Path(__file__).resolve().parent
TOOLCHAINS = {**MAKERS, "keras2": ("tf-keras", ".h5")}

VALUE, FORM, WEIGHTS = Cause.HYPERPARAMETERS, Cause.STRUCTURE, Cause.PARAMETERS

OLD = {"packages": ("onnxscript==0.5.6",), "as_of": "2025-11-25"}
OLD_TORCH = {"packages": ("onnxscript==0.5.6", "torch==2.9.1"), "as_of": "2025-11-25"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case. `expected`: the verdict, or the kind of failure with which the conversion or the target's run ends.

    places: operators (ONNX vocabulary or the format's own) of which the blamed node has to be one. More than one stands
    where a single operator became several and all of them together are wrong. causes: those that are true of it.
    twin: instead of a conversion, what makes the target: a function of `live_models` or another model of the maker.
    """

    id: str
    maker: str
    model: str
    route: str = ""
    expected: str = "deviates"
    places: tuple[str, ...] = ()
    causes: tuple[Cause, ...] = ()
    issue: str | None = None
    options: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    as_of: str | None = None
    twin: str = ""
    precision: str = "float32"
    words: str = ""
    """Must stand in the explanation."""
    converted_here: bool = False
    """Diagnose what the conversion gave, not a bare file: its layout or calibration cannot be seen in the file."""

    @property
    def negative(self) -> bool:
        """Whether no converter is to be blamed."""
        return self.expected == "faithful" or (self.issue is None and bool(self.twin))


SCATTER, ATTENTION = ("ScatterND", "ScatterElements"), ("Softmax", "Where", "IsNaN", "Add", "MatMul")
LAYER_NORM = ("ReduceMean", "Sub", "Mul", "Add", "Div", "Pow", "Sqrt", "Rsqrt", "SquaredDifference", "Transpose")

ROWS = (
    Row(
        id="onnxscript-pass",
        maker="onnx",
        model="conv_bn_twice",
        route="onnxscript-optimizer",
        places=("Conv",),
        causes=(WEIGHTS,),
        issue="onnxscript-2553",
        **OLD,
    ),
    Row(
        id="onnxscript-export",
        maker="torch",
        model="branches",
        route="torch-dynamo",
        places=("Conv",),
        causes=(WEIGHTS,),
        issue="onnxscript-2553",
        **OLD_TORCH,
    ),
    Row(
        id="onnxscript-tied",
        maker="onnx",
        model="conv_bn_tied",
        route="onnxscript-optimizer",
        places=("Conv",),
        causes=(WEIGHTS,),
        issue="onnxscript-2883",
        packages=("onnxscript==0.5.7",),
        as_of="2025-12-20",
    ),
    Row(
        id="onnxscript-beta",
        maker="onnx",
        model="gemm_beta",
        route="onnxscript-optimizer",
        places=("Gemm",),
        causes=(WEIGHTS, VALUE),
        issue="onnxscript-3027",
        **OLD,
    ),
    Row(
        id="V4-antialias",
        maker="onnx",
        model="antialias",
        route="openvino-onnx",
        places=("Resize",),
        causes=(VALUE,),
        issue="openvino-35893",
    ),
    Row(
        id="V4-outside",
        maker="onnx",
        model="resize_outside",
        route="openvino-onnx",
        places=("Resize",),
        causes=(VALUE,),
        issue="openvino-resize-outside",
    ),
    Row(
        id="V4-aspect",
        maker="onnx",
        model="resize_aspect",
        route="openvino-onnx",
        places=("Resize",),
        causes=(VALUE,),
        issue="openvino-resize-aspect",
    ),
    Row(
        id="V8",
        maker="onnx",
        model="top_k",
        route="openvino-onnx",
        places=("TopK",),
        causes=(VALUE,),
        issue="openvino-topk-stable",
    ),
    Row(
        id="T1",
        maker="torch",
        model="shift",
        route="torch-torchscript",
        places=("Div",),
        causes=(FORM, VALUE),
        issue="pytorch-191014",
    ),
    Row(
        id="T1-divide",
        maker="torch",
        model="floor_divide",
        route="torch-torchscript",
        places=("Div",),
        causes=(FORM, VALUE),
        issue="pytorch-78442",
    ),
    Row(
        id="T3-put",
        maker="torch",
        model="index_put",
        route="torch-torchscript",
        places=SCATTER,
        causes=(VALUE, FORM),
        issue="pytorch-61034",
    ),
    Row(
        id="T3-add",
        maker="torch",
        model="index_add",
        route="torch-torchscript",
        places=SCATTER,
        causes=(VALUE, FORM),
        issue="pytorch-111159",
    ),
    Row(
        id="T7",
        maker="torch",
        model="attention_mask",
        route="torch-dynamo",
        options=("torch-dynamo.opset=18",),
        places=ATTENTION,
        causes=(FORM,),
        issue="onnxscript-2479",
    ),
    Row(
        id="T7-lengths",
        maker="torch",
        model="attention_lengths",
        route="torch-dynamo",
        options=("torch-dynamo.opset=18",),
        places=ATTENTION,
        causes=(FORM,),
        issue="onnxscript-2479",
    ),
    Row(
        id="T15",
        maker="torch",
        model="avg_pool_divisor",
        route="torch-torchscript",
        places=("AveragePool",),
        causes=(VALUE,),
        issue="pytorch-105349",
    ),
    Row(
        id="T15-dynamo",
        maker="torch",
        model="avg_pool_divisor",
        route="torch-dynamo",
        places=("AveragePool",),
        causes=(VALUE,),
        issue="pytorch-105349",
    ),
    Row(
        id="T17",
        maker="torch",
        model="logsigmoid",
        route="torch-torchscript",
        places=("Log", "Sigmoid"),
        causes=(FORM,),
        issue="torch-logsigmoid",
    ),
    Row(
        id="T17-dynamo",
        maker="torch",
        model="logsigmoid",
        route="torch-dynamo",
        places=("Log", "Sigmoid"),
        causes=(FORM,),
        issue="torch-logsigmoid",
    ),
    Row(
        id="T17-tflite",
        maker="tf",
        model="logsigmoid",
        route="tflite-savedmodel",
        places=("Exp", "Add", "Log"),
        causes=(FORM,),
        issue="tflite-softplus",
    ),
    Row(
        id="T20",
        maker="torch",
        model="softplus",
        route="torch-torchscript",
        places=("Softplus", "Div"),
        causes=(VALUE, FORM),
        issue="torch-softplus-threshold",
    ),
    Row(
        id="F1",
        maker="tf",
        model="floor_divide",
        route="tf2onnx-savedmodel",
        places=("Div",),
        causes=(FORM, VALUE),
        issue="tensorflow-onnx-2174",
    ),
    Row(
        id="F4",
        maker="tf",
        model="scatter",
        route="tf2onnx-savedmodel",
        places=SCATTER,
        causes=(VALUE, FORM),
        issue="tf2onnx-scatter",
    ),
    Row(
        id="F7",
        maker="keras",
        model="gelu",
        route="tf2onnx-keras",
        expected="invalid-output",
        issue="tf2onnx-foreign-operator",
    ),
    Row(
        id="F7-log1p",
        maker="tf",
        model="log1p",
        route="tf2onnx-savedmodel",
        expected="invalid-output",
        issue="tf2onnx-foreign-operator",
    ),
    Row(
        id="onnxscript-old",
        maker="torch",
        model="small",
        route="torch-dynamo",
        expected="raised",
        issue="onnxscript-older-than-torch",
        packages=("onnxscript==0.5.6",),
    ),
    Row(
        id="N2-concat",
        converted_here=True,
        maker="onnx",
        model="conv_concat",
        route="onnx2tf-tflite",
        places=("Concat", "Transpose"),
        causes=(FORM, VALUE),
        issue="onnx2tf-concat-layout",
    ),
    Row(
        id="N2-layernorm",
        converted_here=True,
        maker="onnx",
        model="layer_norm",
        route="onnx2tf-tflite",
        places=LAYER_NORM,
        causes=(Cause.INPUTS,),
        issue="onnx2tf-layernorm-layout",
    ),
    Row(
        id="O3",
        maker="onnx",
        model="nonzero",
        route="onnx2torch",
        places=("nonzero",),
        causes=(FORM, VALUE),
        issue="onnx2torch-nonzero",
    ),
    Row(
        id="P1",
        maker="onnx",
        model="reshapes",
        route="onnxoptimizer",
        places=("Reshape",),
        causes=(FORM, VALUE),
        issue="onnx-optimizer-259",
    ),
    Row(
        id="R1",
        maker="onnx",
        model="pad_pool",
        route="onnxoptimizer",
        options=("onnxoptimizer.passes=fuse_pad_into_pool",),
        expected="flaky",
        places=("MaxPool",),
        causes=(FORM, VALUE, Cause.RUNTIME),
        issue="onnx-optimizer-318",
    ),
    Row(
        id="R1-runtime",
        maker="torch",
        model="pad_pool_rim",
        route="torch-dynamo",
        places=("MaxPool",),
        causes=(Cause.RUNTIME,),
        issue="onnxruntime-pad-fusion",
    ),
    Row(
        id="E4",
        maker="torch",
        model="nearest",
        route="litert-torch",
        places=("Resize",),
        causes=(VALUE,),
        issue="litert-torch-nearest",
    ),
    Row(
        id="L10",
        maker="tf",
        model="reverse",
        route="tflite-savedmodel",
        places=("Reverse", "REVERSE_V2"),
        causes=(Cause.RUNTIME,),
        issue="tflite-reverse-axes",
    ),
    Row(
        id="L11",
        maker="tf",
        model="nms",
        route="tflite-savedmodel",
        places=("NonMaxSuppression",),
        causes=(FORM, VALUE),
        issue="tensorflow-51629",
    ),
    Row(
        id="K1",
        maker="keras2",
        model="lstm",
        twin="load_in_keras3",
        places=("LSTM",),
        causes=(VALUE, FORM),
        issue="keras-hard-sigmoid",
    ),
    Row(
        id="litert-int8",
        converted_here=True,
        maker="torch",
        model="small",
        route="litert-torch",
        precision="int8",
        places=("Conv", "Gemm", "Relu", "QuantizeLinear", "DequantizeLinear"),
        causes=(Cause.PRECISION,),
        issue="litert-torch-int8-calibration",
    ),
    Row(
        id="litert-lstm",
        maker="torch",
        model="lstm",
        route="litert-torch,tf2onnx-tflite",
        places=("MatMul",),
        causes=(FORM, WEIGHTS),
        issue="tf2onnx-fully-connected-bias",
    ),
    Row(id="T1-sound", maker="torch", model="shift", route="torch-dynamo", expected="faithful"),
    Row(
        id="T7-sound",
        maker="torch",
        model="attention_mask",
        route="torch-dynamo",
        options=("torch-dynamo.opset=23",),
        expected="faithful",
    ),
    Row(
        id="N2-conv-norm",
        maker="onnx",
        model="conv_norm",
        route="onnx2tf-tflite",
        expected="faithful",
        converted_here=True,
    ),
    Row(id="O6", maker="onnx", model="batch_norm", route="onnx2torch", expected="faithful"),
    Row(id="N6", maker="onnx", model="three_channels", route="onnx2tf-tflite", expected="faithful"),
    Row(id="train-mode", maker="torch", model="train_mode", route="torch-dynamo", expected="faithful"),
    Row(id="train-mode-keras", maker="keras", model="dropout", route="tf2onnx-keras", expected="faithful"),
    Row(id="batch-mean", maker="torch", model="batch_mean", route="torch-dynamo", expected="faithful"),
    Row(id="batchnorm-fusion", maker="onnx", model="conv_bn", route="onnxoptimizer", expected="faithful"),
    Row(
        id="other-weights",
        maker="torch",
        model="small",
        twin="small-again",
        route="torch-dynamo",
        causes=(WEIGHTS,),
        words="different weights",
    ),
)

NOT_RUNNABLE = {
    "V1, V4, V8": "OpenVINO is no format here yet",
    "C1, C2, coremltools": "Core ML is no format here yet",
    "M2, M3": "TVM is no format here yet",
    "N2-softmax, N2-slice": "right in onnx2tf 2.6.9, the version that is locked",
    "O1": "onnx2torch's module cannot be exported, so there is no target to diagnose",
    "onnxscript 0.5 with onnx-ir 1.1": "torch 2.13 refuses onnxscript 0.5 before that; the row onnxscript-old shows how",
    "L2, L3": "the TFLite converter of the locked TensorFlow 2.21 takes these models",
    "R1 through the TorchScript exporter": "the exported padding is no constant, so ONNX Runtime does not fuse it",
    "Keras 2 .h5 in Keras 3, Keras export after load_model, READ_VARIABLE operators": "our own steps avoid them",
    "onnx2torch on opset 19 and 20": "the opset is lowered first; the failure itself stands in the known bugs' tests",
    "LiteRT builtin against XNNPACK, int8": "a difference between kernel sets: it widens the noise floor, nothing deviates",
    "photographs resized by two scripts": "one set of inputs goes to both models, so it cannot arise",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came out of a row; None where the question does not arise."""

    row: Row
    detected: bool
    place: bool | None = None
    cause: bool | None = None
    issue: bool | None = None
    step: bool | None = None
    text: str = ""
    seconds: float = 0.0

    @property
    def all_right(self) -> bool:
        """Whether everything that was asked is right."""
        return self.detected and False not in (self.place, self.cause, self.issue)


def build(session: Session, row: Row, model: str, folder: Path) -> Path:
    """Build a model of the row's maker, in the row's own version of PyTorch where it names one."""
    toolchain, suffix = TOOLCHAINS[row.maker]
    path = folder / f"{row.maker}-{model}{'-old' if row.packages == OLD_TORCH['packages'] else ''}{suffix}"
    if not path.exists():
        old = row.maker == "torch" and any(item.startswith("torch==") for item in row.packages)
        variant = Variant(packages=row.packages, as_of=row.as_of) if old else None
        arguments = {"maker": row.maker, "name": model, "out": str(path)}
        in_worker(session, toolchain, "build", arguments, variant)
    return path


def in_worker(session: Session, toolchain: str, function: str, arguments: dict, variant: Variant | None = None) -> None:
    """Call a function of `live_models` in a toolchain."""
    environment = session.environment(toolchain, variant=variant)
    assert isinstance(environment, Ok), environment
    made = session.pool.call(
        environment.value.python, "live_models", function, arguments, stage=Stage.LOAD, paths=[str(HERE)]
    )
    assert not isinstance(made, Failure), f"{made.message}\n{made.log[-2000:]}"


def make_target(session: Session, row: Row, source: Path, folder: Path) -> Path | Artifact | tuple[Failure, Step]:
    """Return the target, as a bare file unless the row says otherwise, or how its conversion failed."""
    if row.twin == "load_in_keras3":
        out = folder / f"{row.id}.keras"
        in_worker(session, "tensorflow", row.twin, {"source": str(source), "out": str(out)})
        return out
    done, made = converted(session, row, source, folder)
    failure = done.attempts[0].failure
    if failure is not None:
        return failure, done.attempts[0].hops[-1].hop.step
    if row.converted_here and done.chosen is not None and done.chosen.output is not None:
        return done.chosen.output
    out = folder / f"{row.id}{made.suffix}"
    publish.model(made, out)  # with the weights that lie beside it
    return out


def converted(session: Session, row: Row, source: Path, folder: Path) -> tuple[Conversion, Path]:
    """Go the row's route with the row's tools, unchecked, and return where the result lies."""
    start = build(session, row, row.twin, folder) if row.twin else source
    route: Route = parse_route(row.route, precision=row.precision, options=parse_options(row.options))
    made = folder / f"{row.id}-made{framework_of(route.target_format).SUFFIXES[route.target_format]}"
    settings = replace(session.settings, packages=row.packages, as_of=row.as_of)
    with Session(settings, session.progress) as own:
        done = api.convert(
            start,
            to=route.target_format,
            out=made,
            route=row.route,
            options=row.options,
            precision=row.precision,
            check=False,
            session=own,
        )
    return done, made


def run(session: Session, row: Row, folder: Path) -> tuple[Result, Diagnosis | None]:
    """Build, convert, diagnose, compare with what is true."""
    started = time.monotonic()
    source = build(session, row, row.model, folder)
    target = make_target(session, row, source, folder)
    if isinstance(target, tuple):
        result, diagnosis = _failed(row, *target), None
    else:
        diagnosis = api.diagnose(source, target, session=session)
        result = judge(row, diagnosis)
    return replace(result, seconds=time.monotonic() - started), diagnosis


def _failed(row: Row, failure: Failure, step: Step) -> Result:
    found = known.match_failure(failure, step.name)
    named = found.id if found else None
    text = f"{failure.kind}: {failure.message[:160]}"
    return Result(
        row=row, detected=str(failure.kind) == row.expected, issue=named == row.issue, text=f"{text} [{named}]"
    )


def judge(row: Row, diagnosis: Diagnosis) -> Result:
    """Compare a diagnosis with what is true of the row."""
    verdict = str(diagnosis.verification.verdict)
    named = diagnosis.known_issue.id if diagnosis.known_issue else None
    first = diagnosis.suspects[0] if diagnosis.suspects else None
    stage = diagnosis.stage.step if diagnosis.stage else None
    text = (
        f"{verdict}; {first.operator if first else '-'} {first.target_nodes[:2] if first else ''}; "
        f"{first.cause if first else '-'}: {first.what[:90] if first else ''}; [{named}]; {stage}"
    )
    if row.expected == "faithful":
        quiet = verdict == "faithful" and first is None and named is None and stage is None
        return Result(row=row, detected=verdict == "faithful", place=quiet, cause=quiet, issue=quiet, text=text)
    wanted = {known.operator(name) for name in row.places}
    place = first is not None and known.operator(first.operator) in wanted if wanted else None
    cause = first is not None and first.cause in row.causes if row.causes else None
    if row.words:
        place = row.words in diagnosis.explanation
    made = {hop.step.name for hop in parse_route(row.route, precision=row.precision).hops} if row.route else set()
    at_run_time = row.causes == (Cause.RUNTIME,)  # no step made it
    return Result(
        row=row,
        detected=verdict == row.expected,
        place=place,
        cause=cause,
        issue=named == row.issue,
        step=(stage is None if row.negative else stage in made) if row.route and not at_run_time else None,
        text=text,
    )


def rows(ids: Iterable[str] = (), progress=None) -> Iterator[tuple[Result, Diagnosis | None]]:
    """Run the rows with these ids (all without any)."""
    wanted = set(ids)
    with (
        tempfile.TemporaryDirectory() as folder,
        Session(Settings(timeout=300), progress or (lambda line: None)) as session,
    ):
        for row in ROWS:
            if not wanted or row.id in wanted:
                yield run(session, row, Path(folder))


def mark(value: bool | None) -> str:
    """How an answer stands in the table."""
    return {True: "yes", False: "NO", None: "–"}[value]


def main() -> None:
    """Print the table, and of each row what was said."""
    for result, diagnosis in rows(sys.argv[1:]):
        marks = [mark(value) for value in (result.detected, result.place, result.cause, result.issue, result.step)]
        print(
            f"{result.row.id:18} {' '.join(f'{text:4}' for text in marks)} {result.seconds:5.1f} s  {result.text}",
            flush=True,
        )
        if sys.argv[1:] and diagnosis is not None:
            print(f"    {diagnosis.explanation}\n    {diagnosis.notes}\n    {diagnosis.timings}")
            for suspect in diagnosis.suspects:
                print(f"    {suspect.to_json()}")


if __name__ == "__main__":
    main()

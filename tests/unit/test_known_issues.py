"""Known bugs: the data is sound, each pattern matches the diagnosis that it describes, and nothing near it."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field, replace
from importlib import resources
from types import SimpleNamespace

import pytest

from trueport.artifact import Artifact, Signature, TensorSpec
from trueport.diagnosis import known
from trueport.diagnosis.known_data import FILE, entries, parse, within
from trueport.diagnosis.types import Cause, Finding, Suspect
from trueport.graph import FINE, Graph, Node
from trueport.outcome import Failure, Kind, Stage
from trueport.routes import steps


def node(name, op, inputs="x", outputs="y", native="", origin=None, **attributes):
    return Node(
        name=name,
        op=op,
        native_op=native or op,
        inputs=tuple(inputs.split()),
        outputs=tuple(outputs.split()),
        attributes=attributes,
        origin=origin,
    )


def graph(*nodes, constants=""):
    return Graph(
        nodes=nodes,
        inputs=("x",),
        outputs=("y",),
        constants={name: {"dtype": "float32", "shape": [4]} for name in constants.split()},
    )


def signature(shape=(1, 3, 8, 8), **meta):
    return Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=shape),), outputs=(), meta=meta)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A diagnosis that shows a bug. `blamed`: target nodes, the first at fault; the source's are all of its nodes."""

    source: Graph
    target: Graph
    formats: tuple[str, str]
    step: str
    packages: dict[str, str]
    blamed: tuple[str, ...]
    cause: Cause = Cause.HYPERPARAMETERS
    source_signature: Signature = field(default_factory=signature)
    target_signature: Signature = field(default_factory=signature)
    precision: str = "float32"

    @property
    def suspect(self):
        first = self.target.by_name[self.blamed[0]]
        return Suspect(
            rank=1,
            target_nodes=self.blamed,
            source_nodes=tuple(item.shown for item in self.source.nodes),
            accumulated=1.0,
            local=1.0,
            causal=1.0,
            cause=self.cause,
            what="",
            source_value=None,
            target_value=None,
            confidence=1.0,
            operator=first.op,
        )

    @property
    def maker(self):
        return known.Maker(steps=(self.step,), packages=self.packages)

    def match(self, *, maker=None, suspect=None, ordinary=False):
        return known.match(
            [suspect or self.suspect],
            known.Side(format=self.formats[0], graph=self.source, signature=self.source_signature),
            known.Side(
                format=self.formats[1],
                graph=self.target,
                signature=self.target_signature,
                precision=self.precision,
                ordinary=ordinary,
            ),
            maker or self.maker,
        )


def onnx_case(source, target, blamed, **more):
    """PyTorch to ONNX by the older exporter, unless said otherwise."""
    given = {"formats": ("pytorch", "onnx"), "step": "torch-torchscript", "packages": {"torch": "2.13.0+cpu"}} | more
    return Case(source=source, target=target, blamed=blamed, **given)


def tf_case(source, target, blamed, **more):
    given = {"formats": ("savedmodel", "onnx"), "step": "tf2onnx-savedmodel", "packages": {"tf2onnx": "1.17.0"}} | more
    return Case(source=source, target=target, blamed=blamed, **given)


def tvm_case(source, target, **more):
    """PyTorch to TVM by its own frontend, unless said otherwise; the only node is to blame."""
    given = {"formats": ("pytorch", "tvm"), "step": "tvm-torch", "packages": {"apache-tvm": "0.27.0.post1"}} | more
    return Case(source=graph(source), target=graph(target), blamed=(target.name,), **given)


def openvino_case(source, target):
    """ONNX to OpenVINO by its own frontend; the only node is to blame."""
    return tvm_case(
        source,
        target,
        formats=("onnx", "openvino"),
        step="openvino-onnx",
        packages={"openvino": "2026.4.1"},
        cause=Cause.HYPERPARAMETERS,
    )


def lite_case(source, target, blamed, **more):
    given = {
        "formats": ("savedmodel", "tflite"),
        "step": "tflite-savedmodel",
        "packages": {"tensorflow-cpu": "2.21.0"},
    } | more
    return Case(source=source, target=target, blamed=blamed, **given)


def branches(*, tied: bool):
    """Two Conv+BatchNorm on one input, before their fusion; with one weight if tied."""
    right = "w1" if tied else "w2"
    return graph(
        node("c1", "Conv", "x w1", "a"),
        node("b1", "BatchNormalization", "a s1 o1 m1 v1", "b"),
        node("c2", "Conv", f"x {right}", "c"),
        node("b2", "BatchNormalization", "c s2 o2 m2 v2", "d"),
        node("add", "Add", "b d", "y"),
        constants="w1 w2 s1 o1 m1 v1 s2 o2 m2 v2",
    )


def onnx_pass(source, target, blamed, version, step="onnxscript-optimizer", package="onnxscript", **more):
    given = {"formats": ("onnx", "onnx"), "cause": Cause.PARAMETERS} | more
    return Case(source=source, target=target, blamed=blamed, step=step, packages={package: version}, **given)


SHARED_BIAS = graph(
    node("c1", "Conv", "x w1 x_bias", "b"),
    node("c2", "Conv", "x w2 x_bias", "d"),
    node("add", "Add", "b d", "y"),
    constants="w1 w2 x_bias",
)
OWN_BIAS = graph(
    node("c1", "Conv", "x w1 k1", "b"),
    node("c2", "Conv", "x w2 k2", "d"),
    node("add", "Add", "b d", "y"),
    constants="w1 w2 k1 k2",
)

CASES = {
    "onnxscript-2553": onnx_pass(branches(tied=False), SHARED_BIAS, ("c2",), "0.5.6"),
    "onnxscript-2883": onnx_pass(
        branches(tied=True),
        graph(
            node("c1", "Conv", "x w1 k1", "b"),
            node("c2", "Conv", "x w1", "c"),
            node("add", "Add", "b c", "y"),
            constants="w1 k1",
        ),
        ("c2",),
        "0.6.2",
    ),
    "onnxscript-2879": onnx_pass(
        graph(
            node("c", "ConvTranspose", "x w", "c", group=2),
            node("b", "BatchNormalization", "c s o m v", "y"),
            constants="w s o m v",
        ),
        graph(node("c", "ConvTranspose", "x w k", "y", group=2), constants="w k"),
        ("c",),
        "0.6.2",
    ),
    "onnxscript-3027": onnx_pass(
        graph(
            node("g", "Gemm", "x w k", "c", beta=2.0),
            node("b", "BatchNormalization", "c s o m v", "y"),
            constants="w k s o m v",
        ),
        graph(node("g", "Gemm", "x w k", "y", beta=2.0), constants="w k"),
        ("g",),
        "0.7.1",
    ),
    "pytorch-191014": onnx_case(
        graph(node("rshift", "__rshift__", native="aten.__rshift__.Scalar", other=1)),
        graph(node("/Pow", "Pow", "two one", "p"), node("/Cast", "Cast", "p", "q"), node("/Div", "Div", "x q", "y")),
        ("/Div", "/Pow", "/Cast"),
        cause=Cause.STRUCTURE,
    ),
    "pytorch-78442": onnx_case(
        graph(node("fd", "floor_divide", native="aten.floor_divide.default", other=2)),
        graph(node("/Div", "Div", "x two", "q"), node("/Cast", "Cast", "q", "y")),
        ("/Div", "/Cast"),
        cause=Cause.STRUCTURE,
    ),
    "pytorch-61034": onnx_case(
        graph(node("ip", "index_put", native="aten.index_put.default", accumulate=True)),
        graph(node("/S", "ScatterND")),
        ("/S",),
    ),
    "pytorch-111159": onnx_case(
        graph(node("ia", "index_add", native="aten.index_add.default", dim=0)),
        graph(node("/S", "ScatterElements", axis=0)),
        ("/S",),
    ),
    "onnxscript-2479": onnx_case(
        graph(node("a", "Attention", native="aten.scaled_dot_product_attention.default")),
        graph(node("s", "Softmax", "x", "p", axis=-1), node("m", "MatMul", "p v", "y")),
        ("s", "m"),
        cause=Cause.STRUCTURE,
        step="torch-dynamo",
        target_signature=signature(opset=18),
    ),
    "pytorch-105349": onnx_case(
        graph(node("p", "AveragePool", native="aten.avg_pool2d.default", divisor_override=3)),
        graph(node("/P", "AveragePool", kernel_shape=[2, 2])),
        ("/P",),
    ),
    "torch-logsigmoid": onnx_case(
        graph(node("l", "log_sigmoid", native="aten.log_sigmoid.default")),
        graph(node("/Sigmoid", "Sigmoid", "x", "s"), node("/Log", "Log", "s", "y")),
        ("/Log", "/Sigmoid"),
        cause=Cause.STRUCTURE,
    ),
    "torch-softplus-threshold": onnx_case(
        graph(node("s", "Softplus", native="aten.softplus.default", beta=2.0, threshold=3.0)),
        graph(node("/Mul", "Mul", "x two", "m"), node("/S", "Softplus", "m", "s"), node("/Div", "Div", "s two", "y")),
        ("/S", "/Mul", "/Div"),
    ),
    "tensorflow-onnx-2174": tf_case(
        graph(node("floordiv", "Div", native="FloorDiv")), graph(node("floordiv", "Div")), ("floordiv",)
    ),
    "tf2onnx-scatter": tf_case(
        graph(node("s", "ScatterND", native="ScatterNd")), graph(node("s", "ScatterND")), ("s",)
    ),
    "tf2onnx-fully-connected-bias": Case(
        source=graph(node("64:fc", "Gemm", "x w k", "y", native="FULLY_CONNECTED"), constants="w k"),
        target=graph(node("flat", "Reshape", "x s", "f"), node("fc", "MatMul", "f w", "y"), constants="s w"),
        formats=("tflite", "onnx"),
        step="tf2onnx-tflite",
        packages={"tf2onnx": "1.17.0"},
        blamed=("fc", "flat"),
        cause=Cause.PARAMETERS,
    ),
    "onnx2tf-concat-layout": Case(
        source=graph(node("c", "Conv", "x w", "c"), node("j", "Concat", "c x", "y", axis=2), constants="w"),
        target=graph(node("2:y", "Concat", "c x", "y", native="CONCATENATION", axis=2)),
        formats=("onnx", "tflite"),
        step="onnx2tf-tflite",
        packages={"onnx2tf": "2.6.9"},
        blamed=("2:y",),
        source_signature=signature((1, 4, 4, 4)),
    ),
    "onnx2tf-layernorm-layout": Case(
        source=graph(node("n", "LayerNormalization", axis=-1)),
        target=graph(node("0:m", "ReduceMean", native="MEAN", axes=[1])),
        formats=("onnx", "tflite"),
        step="onnx2tf-tflite",
        packages={"onnx2tf": "2.6.9"},
        blamed=("0:m",),
        cause=Cause.INPUTS,
        source_signature=signature((1, 4, 4, 4)),
    ),
    "onnx2torch-nonzero": Case(
        source=graph(node("n", "NonZero")),
        target=graph(node("nonzero", "nonzero", native="aten.nonzero.default")),
        formats=("onnx", "pytorch"),
        step="onnx2torch",
        packages={"onnx2torch": "1.5.15"},
        blamed=("nonzero",),
        cause=Cause.STRUCTURE,
    ),
    "onnx2torch-cumsum": Case(
        source=graph(node("n", "CumSum")),
        target=graph(node("flip", "flip", native="aten.flip.default")),
        formats=("onnx", "pytorch"),
        step="onnx2torch",
        packages={"onnx2torch": "1.5.15"},
        blamed=("flip",),
        cause=Cause.STRUCTURE,
    ),
    "onnx-optimizer-318": onnx_pass(
        graph(node("pad", "Pad", "x pads", "p"), node("pool", "MaxPool", "p", "y"), constants="pads"),
        graph(node("pool", "MaxPool", pads=[1, 1, 1, 1])),
        ("pool",),
        "0.4.2",
        step="onnxoptimizer",
        package="onnxoptimizer",
        cause=Cause.STRUCTURE,
    ),
    "onnxruntime-pad-fusion": Case(
        source=graph(node("pad", "Pad", "x", "p"), node("pool", "MaxPool", "p", "y")),
        target=graph(node("pad", "Pad", "x", "p"), node("pool", "MaxPool", "p", "y")),
        formats=("onnx", "onnx"),
        step="",
        packages={},
        blamed=("pool",),
        cause=Cause.RUNTIME,
    ),
    "onnx-optimizer-259": onnx_pass(
        graph(node("r", "Reshape", "x first", "r"), node("y", "Reshape", "r second", "y"), constants="first second"),
        graph(node("y", "Reshape", "x second", "y"), constants="second"),
        ("y",),
        "0.4.2",
        step="onnxoptimizer",
        package="onnxoptimizer",
        cause=Cause.STRUCTURE,
    ),
    "tflite-softplus": lite_case(
        graph(node("s", "Softplus")),
        graph(
            node("1:e", "Exp", "x", "e", native="EXP"),
            node("2:a", "Add", "e one", "a", native="ADD"),
            node("3:l", "Log", "a", "y", native="LOG"),
            constants="one",
        ),
        ("3:l", "1:e", "2:a"),
        cause=Cause.STRUCTURE,
    ),
    "tvm-torch-alpha": tvm_case(
        node("a", "Add", "x b", native="aten.add.Tensor", alpha=3), node("y", "Add", "x b"), cause=Cause.STRUCTURE
    ),
    "tvm-torch-negative-index": tvm_case(
        node("s", "Gather", native="aten.select.int", axis=1), node("y", "Gather", mode="fast", axis=1)
    ),
    "tvm-torch-divisor": tvm_case(
        node("p", "AveragePool", native="aten.avg_pool2d.default", divisor_override=3), node("y", "AveragePool")
    ),
    "tvm-torch-nearest": tvm_case(
        node("u", "Resize", native="aten.upsample_nearest2d.vec"),
        node("y", "Resize", coordinate_transformation_mode="half_pixel"),
    ),
    "tvm-torch-selu": tvm_case(node("s", "Selu"), node("y", "Sub"), cause=Cause.PARAMETERS),
    "tvm-antialias": tvm_case(
        node("r", "Resize", antialias=1), node("y", "Resize"), formats=("onnx", "tvm"), step="tvm-onnx"
    ),
    "openvino-35893": openvino_case(node("r", "Resize", antialias=1), node("y", "Resize", antialias=0)),
    "openvino-resize-outside": openvino_case(node("r", "Resize", exclude_outside=1), node("y", "Resize")),
    "openvino-resize-aspect": openvino_case(
        node("r", "Resize", keep_aspect_ratio_policy="not_larger"), node("y", "Resize")
    ),
    "openvino-topk-stable": openvino_case(node("t", "TopK"), node("y", "TopK", stable=0)),
    "executorch-22851": tvm_case(
        node("g", "Gelu", approximate="tanh"),
        node("output_0", "XnnpackBackend", native="delegate.XnnpackBackend"),
        formats=("pytorch", "executorch"),
        step="executorch",
        packages={"executorch": "1.5.1"},
        cause=Cause.STRUCTURE,
    ),
    "litert-torch-nearest": Case(
        source=graph(node("u", "Resize", native="aten.upsample_nearest2d.vec", output_size=[3, 5])),
        target=graph(node("1:r", "Resize", native="RESIZE_NEAREST_NEIGHBOR", half_pixel_centers=True)),
        formats=("pytorch", "tflite"),
        step="litert-torch",
        packages={"litert-torch": "0.10.0"},
        blamed=("1:r",),
    ),
    "litert-torch-int8-calibration": Case(
        source=graph(node("c", "Conv", "x w", "y"), constants="w"),
        target=graph(node("0:c", "Conv", "x w", "y"), constants="w"),
        formats=("pytorch", "tflite"),
        step="litert-torch",
        packages={"litert-torch": "0.10.0"},
        blamed=("0:c",),
        cause=Cause.PRECISION,
        precision="int8",
    ),
    "tensorflow-51629": lite_case(
        graph(node("n", "NonMaxSuppressionV3")),
        graph(node("0:n", "NonMaxSuppression", native="NON_MAX_SUPPRESSION_V4")),
        ("0:n",),
        cause=Cause.STRUCTURE,
    ),
    "keras-hard-sigmoid": Case(
        source=graph(node("lstm", "LSTM", recurrent_activation="HardSigmoid")),
        target=graph(node("lstm", "LSTM", recurrent_activation="HardSigmoid")),
        formats=("keras", "keras"),
        step="",
        packages={},
        blamed=("lstm",),
    ),
}
"""Bug -> a diagnosis that shows it. Made from the graphs that the tools really write."""

FAILURES = {
    "onnxscript-onnx-ir-1.1": ("onnxscript-optimizer", "raised", "PassError: an error in pass VersionConverter"),
    "onnxscript-older-than-torch": (
        "torch-dynamo",
        "raised",
        "RuntimeError: No module named 'onnxscript._framework_apis.torch_2_11'",
    ),
    "tf2onnx-foreign-operator": (
        "tf2onnx-keras",
        "invalid-output",
        "the ONNX file holds operators that ONNX opset 17 does not have: Erfc (node gelu/Erfc)",
    ),
    "tf2onnx-tfl-operator": (
        "tf2onnx-tflite",
        "invalid-output",
        "the ONNX file holds operators that ONNX opset 17 does not have: TFL_EMBEDDING_LOOKUP (node a;21), TFL_GELU",
    ),
    "onnx2tf-int8-fill": (
        "onnx2tf-tflite",
        "raised",
        "RuntimeError: fast path failed. (StrictFullIntegerQuantizationError: Unsupported op: op_type=FILL)",
    ),
    "onnx2torch-opset": (
        "onnx2torch",
        "unsupported",
        "Converter is not implemented (OperationDescription(domain='', operation_type='Gelu', version=20))",
    ),
    "tflite-reverse-axes": (
        "tflite-savedmodel",
        "raised",
        "RuntimeError: Non-contiguous `axes` not supportedNode number 0 (REVERSE_V2) failed to invoke.",
    ),
    "tensorflow-61150": (
        "tflite-keras",
        "raised",
        "ConverterError: 'tfl.fully_connected' op expect 'input' num_elements % 2 == 0, expected others",
    ),
    "keras2-groups": (
        "tflite-keras",
        "raised",
        "TypeError: Error when deserializing class 'DepthwiseConv2D': Unrecognized keyword arguments: {'groups': 1}",
    ),
}
"""Bug -> step, kind and message of a failure that shows it."""


# -- the data --------------------------------------------------------------------------------------------------------


def test_every_bug_of_the_data_is_matched_by_a_case_here():
    patterns = {entry.id for entry in entries() if entry.pattern is not None}
    failures = {entry.id for entry in entries() if entry.failure is not None}
    assert patterns == set(CASES)
    assert failures == set(FAILURES)


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.id)
def test_every_bug_says_what_a_user_needs(entry):
    assert len(entry.summary) > 40
    assert not entry.summary.endswith("."), "it stands inside other sentences"
    assert len(entry.cure) > 15
    assert not entry.cure.endswith(".")
    assert entry.package
    tools = {steps()[name].tool for name in entry.steps}
    assert entry.package in {*tools, "onnxscript", "keras", "onnxruntime"} or tools & {"keras", "tf_keras"}
    if entry.seen is not None and entry.affects:
        assert within(entry.seen, entry.affects), "it was seen in a version that has it not"
    if not entry.reported:
        assert entry.url.endswith("/issues"), "the tool's tracker"


GOOD = textwrap.dedent(
    """
    [[issue]]
    id = "a"
    url = "https://example.org/1"
    summary = "s"
    cure = "c"
    package = "p"
    steps = ["torch-dynamo"]
    [issue.pattern]
    target = ["Conv"]
    """
)


def test_a_sound_entry_is_read():
    (entry,) = parse(GOOD)
    assert entry.steps == ("torch-dynamo",)
    assert entry.pattern.target == ("Conv",)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('cure = "c"', 'cures = "c"', "unknown keys"),
        ('cure = "c"', "", "is missing"),
        ("torch-dynamo", "torch-static", "torch-static"),
        ('target = ["Conv"]', 'targets = ["Conv"]', "unknown keys"),
        ('target = ["Conv"]', 'causes = ["structure"]', "matches everything"),
        ('target = ["Conv"]', 'target = ["Conv"]\ncauses = ["gremlins"]', "gremlins"),
        ('target = ["Conv"]', 'target = ["Conv"]\nkinds = ["odd"]', "odd"),
        ('[issue.pattern]\ntarget = ["Conv"]', "", "neither a pattern nor a failure"),
        ('[issue.pattern]\ntarget = ["Conv"]', '[issue.failure]\nkinds = ["raised"]', "is missing"),
        ('[issue.pattern]\ntarget = ["Conv"]', '[issue.failure]\ntext = "x"\nkinds = ["sad"]', "sad"),
        ('steps = ["torch-dynamo"]', "steps = []", "neither steps nor formats"),
        ("https://", "http://", "https"),
        ('cure = "c"', 'cure = "c"\naffects = "before 3"', "no range"),
        ('cure = "c"', 'cure = "c"\naffects = "<=2.0"\nfixed_in = "2.0"', "still contains"),
        ("[[issue]]", "[other]\n[[issue]]", "only"),
    ],
)
def test_a_wrong_entry_is_refused(old, new, words):
    assert old in GOOD
    with pytest.raises(ValueError, match=words):
        parse(GOOD.replace(old, new))


def test_an_id_given_twice_is_refused():
    with pytest.raises(ValueError, match="twice: a"):
        parse(GOOD + GOOD)


def test_the_file_ships_with_the_package():
    assert parse(resources.files("trueport").joinpath(FILE).read_text(encoding="utf-8")) == entries()


@pytest.mark.parametrize(
    ("version", "affects", "inside"),
    [
        ("0.5.6", ">=0.5.0,<0.5.7", True),
        ("0.5.7", ">=0.5.0,<0.5.7", False),
        ("0.5", ">=0.5.0,<0.5.7", True),
        ("0.5.0", ">0.5", False),
        ("2.13.0+cpu", "<=2.13.0", True),
        ("2.13.1", "<=2.13", False),
        ("2.9.0", "<2.10", True),
        ("2.10.0", "<2.9", False),
        ("0.7.0rc1", "<0.7.0", True),
        ("0.7.0.dev20260101", "<0.7.0", True),
        ("1.0.post1", ">=1.0", True),
        ("1.0", "!=1.0", False),
        ("1.1", "==1.1.0", True),
        ("3.1", "", True),
    ],
)
def test_ranges_of_versions(version, affects, inside):
    assert within(version, affects) is inside


# -- what matches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_diagnosis_that_shows_a_bug_names_it(name):
    case = CASES[name]
    entry = next(entry for entry in entries() if entry.id == name)
    maker = case.maker if case.step else known.Maker(runtime={entry.package: entry.seen or "3.15.0"})
    found = case.match(maker=maker)
    assert found is not None
    assert found.id == name
    assert (found.url, found.fixed_in, found.cure) == (entry.url, entry.fixed_in, entry.cure)
    assert found.summary == entry.summary, "the version is known"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cause", [Cause.INPUTS, Cause.TOOL])
def test_another_cause_at_the_same_place_is_another_fault(name, cause):
    case = CASES[name]
    if cause is case.cause:
        cause = Cause.PARAMETERS
    assert case.match(suspect=replace(case.suspect, cause=cause)) is None


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.step])
def test_another_tool_has_another_bug(name):
    case = CASES[name]
    others = [step for step in steps().values() if step.target_format == case.formats[1]]
    entry = next(entry for entry in entries() if entry.id == name)
    for step in others:
        if step.name not in entry.steps:
            found = case.match(maker=known.Maker(steps=(step.name,), packages=case.packages))
            assert found is None or found.id != name


@pytest.mark.parametrize(
    "entry", [entry for entry in entries() if entry.fixed_in and entry.pattern], ids=lambda e: e.id
)
def test_a_version_with_the_cure_is_not_blamed(entry):
    case = CASES[entry.id]
    assert case.match(maker=replace(case.maker, packages={entry.package: entry.fixed_in})) is None
    assert case.match(maker=replace(case.maker, packages={entry.package: "99.0"})) is None


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.step])
def test_an_unknown_version_is_told_with_care(name):
    case = CASES[name]
    found = case.match(maker=replace(case.maker, packages={}))
    assert found is not None
    assert found.summary.startswith("probably: ")
    assert not case.match().summary.startswith("probably: ")


def test_a_version_newer_than_any_that_was_seen_is_told_with_care():
    case = CASES["pytorch-105349"]
    found = case.match(maker=replace(case.maker, packages={"torch": "2.20.0"}))
    assert found.summary.startswith("probably: ")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.formats == ("pytorch", "onnx")])
def test_the_file_s_own_words_tell_the_tool(name):
    """Two bare files: the producer stands in the target, its version too."""
    case = CASES[name]
    told = signature(producer="pytorch", producer_version="2.13.0")
    maker = known.Maker.of(artifact("onnx"), told)
    assert case.match(maker=maker).id == name
    other = known.Maker.of(artifact("onnx"), signature(producer="tf2onnx", producer_version="1.17.0 None"))
    found = case.match(maker=other)
    assert found is None or found.id.startswith(("tf2onnx-", "tensorflow-onnx-")), "the same slip, made by tf2onnx"


def artifact(format, **made_by):
    return Artifact(path=None, format=format, sha256="", size=0, made_by=made_by)


def test_nothing_known_of_the_tool_leaves_what_the_formats_allow():
    assert CASES["pytorch-105349"].match(maker=known.Maker()).summary.startswith("probably: ")
    assert CASES["onnxscript-2553"].match(maker=known.Maker()).id == "onnxscript-2553"
    case = replace(CASES["pytorch-105349"], formats=("keras", "onnx"))
    assert case.match(maker=known.Maker()) is None


def test_a_pass_leaves_the_name_of_the_tool_before_it():
    """An optimised ONNX file still says that PyTorch made it."""
    told = known.Maker.of(artifact("onnx"), signature(producer="pytorch", producer_version="2.9.1"))
    assert CASES["onnxscript-2553"].match(maker=told).id == "onnxscript-2553"
    assert CASES["onnx-optimizer-259"].match(maker=told).id == "onnx-optimizer-259"


def test_what_converted_a_model_is_read_from_how_it_came_to_be():
    made = artifact("onnx", step="torch-dynamo", versions={"torch": "2.9.1", "onnxscript": "0.5.6"})
    maker = known.Maker.of(
        made, signature(producer="pytorch", producer_version="2.9.1"), {"target.onnxruntime": "1.31"}
    )
    assert maker.steps == ("torch-dynamo",)
    assert maker.version("onnxscript") == "0.5.6"
    assert maker.runtime == {"onnxruntime": "1.31"}
    assert replace(CASES["onnxscript-2553"], formats=("pytorch", "onnx")).match(maker=maker).id == "onnxscript-2553"


def test_versions_beside_a_model_that_no_step_made_are_not_those_of_a_converter():
    """A user's live PyTorch model carries the versions of the caller's process."""
    assert known.Maker.of(artifact("pytorch", versions={"torch": "2.13"})).packages == {}


def test_tensorflow_is_one_package_under_two_names():
    maker = known.Maker(packages={"tensorflow-cpu": "2.21.0"})
    assert maker.version("tensorflow") == "2.21.0"
    assert maker.version("torch") is None


# -- what is near and does not match ---------------------------------------------------------------------------------


def near(name, **more):
    return replace(CASES[name], **more).match()


def test_convolutions_with_a_bias_each_do_not_show_the_shared_bias():
    assert near("onnxscript-2553", target=OWN_BIAS) is None


def test_a_bias_that_the_source_shares_too_is_no_collision():
    tied = graph(
        node("c1", "Conv", "x w1 k", "a"),
        node("b1", "BatchNormalization", "a s o m v", "b"),
        node("c2", "Conv", "x w2 k", "c"),
        node("add", "Add", "b c", "y"),
        constants="w1 w2 k s o m v",
    )
    assert near("onnxscript-2553", source=tied) is None


def test_a_shared_bias_without_a_batchnorm_in_the_source_was_not_fused():
    plain = graph(node("c1", "Conv", "x w1 k1", "b"), node("c2", "Conv", "x w2 k2", "y"), constants="w1 w2 k1 k2")
    assert near("onnxscript-2553", source=plain) is None


def test_an_average_pool_without_a_divisor_has_lost_none():
    for set_to in ({}, {"divisor_override": None}):
        source = graph(node("p", "AveragePool", native="aten.avg_pool2d.default", **set_to))
        assert near("pytorch-105349", source=source) is None


def test_a_scatter_with_reduction_sums():
    good = graph(node("s", "ScatterND", reduction="add"))
    assert near("tf2onnx-scatter", target=good) is None
    assert near("tf2onnx-scatter", target=graph(node("s", "ScatterND", reduction="none"))).id == "tf2onnx-scatter"


def test_a_put_without_accumulate_needs_no_reduction():
    source = graph(node("ip", "index_put", native="aten.index_put.default", accumulate=False))
    assert near("pytorch-61034", source=source) is None


def test_a_floor_after_the_division_is_a_floor_division():
    target = graph(node("floordiv", "Div", "x two", "d"), node("f", "Floor", "d", "y"))
    assert near("tensorflow-onnx-2174", target=target, blamed=("floordiv", "f")) is None


def test_a_plain_division_is_no_floor_division():
    assert near("tensorflow-onnx-2174", source=graph(node("div", "Div", native="RealDiv"))) is None


@pytest.mark.parametrize("shape", [(1, 3, 8, 6), (None, None), (1, 5), None])
def test_sizes_that_tell_the_layout_apart_are_not_confused(shape):
    assert near("onnx2tf-concat-layout", source_signature=signature(shape)) is None


def test_opset_23_has_its_own_attention():
    assert near("onnxscript-2479", target_signature=signature(opset=23)) is None
    assert near("onnxscript-2479", target_signature=signature()) is None, "an opset that is not known"


@pytest.mark.parametrize("name", [entry.id for entry in entries() if entry.pattern and entry.pattern.hidden])
def test_what_ordinary_data_shows_is_another_fault(name):
    """A softmax over the wrong axis inside an attention is no matter of masked rows."""
    case = CASES[name]
    assert case.match(ordinary=False).id == name
    assert case.match(ordinary=None).id == name, "the user's own inputs may hold what it takes"
    assert case.match(ordinary=True) is None


def verified(origin, **ratios):
    """A verification with these ratios by case; a case called `probe...` is none of ordinary data."""
    output = SimpleNamespace(cases={name: {"ratio": ratio} for name, ratio in ratios.items()})
    kinds = [{"name": name, "kind": "probe" if name.startswith("probe") else "data"} for name in ratios]
    comparison = SimpleNamespace(outputs=(output,))
    return SimpleNamespace(inputs={"origin": origin, "cases": kinds}, comparison=comparison)


def test_ordinary_data_is_what_is_no_probe():
    assert known.ordinary(verified("generated", data=2.0, probe_masked=1e6)) is False
    assert known.ordinary(verified("generated", data=1e3, probe_masked=1e6)) is True
    assert known.ordinary(verified("generated", data=float("nan"))) is True
    assert known.ordinary(verified("photos", data=1e3)) is None


def test_nearest_without_half_pixels_is_torch_s():
    target = graph(node("1:r", "Resize", native="RESIZE_NEAREST_NEIGHBOR", half_pixel_centers=False))
    assert near("litert-torch-nearest", target=target) is None
    source = graph(node("u", "Resize", native="aten.upsample_bilinear2d.vec"))
    assert near("litert-torch-nearest", source=source) is None


@pytest.mark.parametrize(
    ("issue", "source"),
    [
        ("tvm-torch-alpha", node("a", "Add", "x b", native="aten.add.Tensor", alpha=1)),
        ("tvm-torch-divisor", node("p", "AveragePool", native="aten.avg_pool2d.default")),
        ("tvm-torch-nearest", node("u", "Resize", native="aten.upsample_bilinear2d.vec")),
        ("tvm-antialias", node("r", "Resize", antialias=0)),
        ("openvino-35893", node("r", "Resize", antialias=0)),
        ("openvino-resize-outside", node("r", "Resize", exclude_outside=0)),
        ("openvino-resize-aspect", node("r", "Resize")),
        ("executorch-22851", node("g", "Gelu", approximate="none")),
    ],
)
def test_a_source_that_asks_for_what_was_made_shows_no_bug(issue, source):
    assert near(issue, source=graph(source)) is None


def test_a_top_k_that_keeps_the_order_of_equal_values_is_right():
    assert near("openvino-topk-stable", target=graph(node("y", "TopK", stable=1))) is None


def test_an_index_that_the_kernel_counts_from_the_front_is_right():
    assert near("tvm-torch-negative-index", target=graph(node("y", "Gather", mode="wrap", axis=1))) is None


def test_one_reshape_alone_was_not_merged():
    source = graph(node("y", "Reshape", "x second", "y"), constants="second")
    assert near("onnx-optimizer-259", source=source) is None


def test_int8_weights_that_are_wrong_are_no_matter_of_calibration():
    assert near("litert-torch-int8-calibration", cause=Cause.PARAMETERS) is None
    assert near("litert-torch-int8-calibration", precision="float16") is None
    case = CASES["litert-torch-int8-calibration"]
    assert case.match(maker=known.Maker(named=("litert-torch",))) is None, "how a bare file was calibrated is not known"


def test_gemm_with_beta_1_loses_nothing():
    source = graph(
        node("g", "Gemm", "x w k", "c", beta=1.0),
        node("b", "BatchNormalization", "c s o m v", "y"),
        constants="w k s o m v",
    )
    assert near("onnxscript-3027", source=source) is None


def test_a_layer_without_a_bias_has_lost_none():
    source = graph(node("64:fc", "Gemm", "x w", "y", native="FULLY_CONNECTED"), constants="w")
    assert near("tf2onnx-fully-connected-bias", source=source) is None
    added = graph(node("fc", "MatMul", "x w", "f"), node("add", "Add", "f k", "y"), constants="w k")
    assert near("tf2onnx-fully-connected-bias", target=added, blamed=("fc", "add")) is None


def test_a_bug_of_a_loader_needs_both_formats_and_one_of_a_runtime_only_the_target_s():
    of_keras = replace(CASES["keras-hard-sigmoid"], formats=("savedmodel", "keras"))
    assert of_keras.match(maker=known.Maker(runtime={"keras": "3.15.0"})) is None
    of_onnx = replace(CASES["onnxruntime-pad-fusion"], formats=("pytorch", "onnx"))
    assert of_onnx.match(maker=known.Maker(runtime={"onnxruntime": "1.31.1"})).id == "onnxruntime-pad-fusion"


def test_no_suspect_no_bug():
    case = CASES["pytorch-105349"]
    side = known.Side(format="onnx", graph=case.target)
    assert known.match([], side, side, case.maker) is None


def test_the_first_suspect_that_shows_a_bug_is_taken():
    case = CASES["pytorch-105349"]
    stranger = replace(case.suspect, target_nodes=("?",), source_nodes=(), operator="Relu")
    sides = (
        known.Side(format="pytorch", graph=case.source, signature=signature()),
        known.Side(format="onnx", graph=case.target, signature=signature()),
    )
    assert known.match([stranger, case.suspect], *sides, case.maker).id == "pytorch-105349"


def test_nodes_of_a_finer_view_stand_for_the_node_they_are_part_of():
    """The localisation may name a part of an attention; the bug names the attention."""
    case = CASES["onnxscript-2479"]
    whole = case.source.nodes[0]
    part = node(f"{FINE}softmax", "Softmax", native="aten.softmax.int", origin=whole.name)
    finding = Finding(
        kind="struct",
        target="p",
        source=f"{FINE}p",
        relation=None,
        region=("s",),
        source_region=(part.name,),
        accumulated=1.0,
        local=1.0,
        causal=1.0,
        confirmed=True,
    )
    suspect = replace(case.suspect, source_nodes=(), finding=finding)
    assert replace(case, source=graph(whole, part)).match(suspect=suspect).id == "onnxscript-2479"


def test_overloads_and_spellings_of_an_operator_are_one():
    assert known.operator("aten.index_put.default") == known.operator("IndexPut")
    assert known.operator("RESIZE_NEAREST_NEIGHBOR") == known.operator("ResizeNearestNeighbor")
    assert known.operator("Conv") != known.operator("ConvTranspose")


# -- failures --------------------------------------------------------------------------------------------------------


def failure(kind, message, log=""):
    return Failure(stage=Stage.CONVERT, kind=Kind(kind), message=message, log=log)


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_that_shows_a_bug_names_it(name):
    step, kind, message = FAILURES[name]
    entry = next(entry for entry in entries() if entry.id == name)
    version = {entry.package: entry.seen or "2.21.0" if entry.package != "keras" else "3.15.0"}
    assert known.match_failure(failure(kind, message), step, version).id == name
    assert known.match_failure(failure(kind, "it failed", log=message), step, version).id == name


@pytest.mark.parametrize("name", FAILURES)
def test_other_words_or_another_step_show_no_bug(name):
    step, kind, message = FAILURES[name]
    assert known.match_failure(failure(kind, "No space left on device"), step) is None
    assert known.match_failure(failure("timed-out", message), step) is None
    assert known.match_failure(failure(kind, message), "fake-copy") is None


def test_a_failing_run_names_the_bug_by_its_words_and_the_target_s_format():
    text = FAILURES["tflite-reverse-axes"][2]
    assert known.match_text(text, format="tflite").summary.startswith("probably: ")
    assert known.match_text(text, format="onnx") is None


def test_a_failure_of_a_version_without_the_bug_is_another():
    _, kind, message = FAILURES["onnxscript-onnx-ir-1.1"]
    assert known.match_failure(failure(kind, message), "onnxscript-optimizer", {"onnxscript": "0.7.2"}) is None

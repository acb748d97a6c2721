"""TVM: files are read without running anything, run as onnx computes them, are cut and edited; the converters' replies."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from trueport.artifact import sniff
from trueport.errors import UsageError
from trueport.frameworks import _tvm_file, tvm
from trueport.outcome import Failure, Kind, Ok, Stage

MODULE = "trueport.frameworks.tvm"
HERE = str(Path(__file__).parent)
NOISE = 5e-6
"""Float32 sums of at most a few dozen products of the size of one, in another order."""


def call(pool, env, module, function, arguments, *, emit=False):
    return pool.call(env("tvm"), module, function, arguments, stage=Stage.TRACE, emit=emit, paths=[HERE])


def done(outcome):
    assert isinstance(outcome, Ok), outcome
    return outcome.value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tvm")


@pytest.fixture(scope="module")
def models(pool, env, folder):
    return done(call(pool, env, "tvm_models", "write", {"folder": str(folder)})).value


@pytest.fixture(scope="module")
def ask(pool, env, models):
    """ask(function, model, ...) -> the Reply of that function of the framework file."""

    def run(function, model, *, emit=False, **more):
        path = models[model]["tvm"] if model in models else str(model)
        return done(call(pool, env, MODULE, function, {"path": path, "trust": False, **more}, emit=emit))

    return run


@pytest.fixture(scope="module")
def expected(pool, env, models):
    """expected(model, inputs, names) -> what onnx's own evaluator computes."""

    def evaluate(model, inputs, wanted):
        arguments = {"path": models[model]["onnx"], "inputs": inputs, "wanted": wanted}
        return done(call(pool, env, "tvm_models", "evaluate", arguments)).value

    return evaluate


def random(*shape):
    return np.random.default_rng(11).normal(size=shape).astype(np.float32)


INPUTS = {
    "cnn": {"image": random(3, 2, 3, 8, 9)},
    "parts": {"x": random(3, 2, 8)},
    "words": {"x": random(3, 1, 2, 4, 3), "index": np.array([[0, 5], [1, 2], [3, 3]])},
}
OUTPUTS = {"cnn": ["odds", "m"], "parts": ["y", "again", "same"], "words": ["leaky", "joined", "resized", "rows"]}


def run_of(ask, model, inputs, variant="default"):
    arguments = {"cases": {"data": inputs}, "precision": "float32", "variant": variant}
    return ask("run", model, **arguments).value["data"]


# -- files


def test_a_file_is_recognised_by_its_first_member(models, tmp_path):
    assert sniff(Path(models["cnn"]["tvm"])) == "tvm"
    other = tmp_path / "other.tvm"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("something.json", "{}")
    with pytest.raises(UsageError):
        sniff(other)
    assert tvm.sniff(b"PK\3\4" + b"\0" * 5, other) is None


def test_a_file_can_be_read_without_tvm(models):
    with zipfile.ZipFile(models["cnn"]["tvm"]) as archive:
        facts = json.loads(archive.read(_tvm_file.HEADER))
        assert b"R.nn.conv2d(image, kernel" in archive.read(_tvm_file.TEXT)
        stored = {item["name"]: np.load(archive.open(item["file"]), allow_pickle=False) for item in facts["parameters"]}
    assert facts["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["n", 3, 8, 9]}]
    assert {name: array.shape for name, array in stored.items()}["dense"] == (4, 5)


def test_the_same_model_makes_the_same_bytes(pool, env, models, folder):
    again = folder / "again.tvm"
    done(call(pool, env, "tvm_models", "convert", {"source": models["parts"]["onnx"], "out": str(again)}))
    assert again.read_bytes() == Path(models["parts"]["tvm"]).read_bytes()
    assert not list(folder.glob("*.partial"))


@pytest.mark.parametrize(
    ("what", "said"), [("version", "trueport/tvm/99"), ("module", "damaged"), ("missing", "0.npy")]
)
def test_a_damaged_file_is_named(pool, env, models, folder, what, said):
    bad = str(folder / f"{what}.tvm")
    arguments = {"path": models["cnn"]["tvm"], "out": bad, "what": what}
    done(call(pool, env, "tvm_models", "damaged", arguments))
    with pytest.raises(UsageError, match=said):
        call(pool, env, MODULE, "signature", {"path": bad, "trust": False})


def test_a_module_that_calls_by_name_needs_trust(pool, env, folder):
    from trueport.errors import UntrustedError

    path = str(folder / "calling.tvm")
    done(call(pool, env, "tvm_models", "calling", {"path": "", "out": path}))
    with pytest.raises(UntrustedError, match="calls functions of libraries by name"):
        call(pool, env, MODULE, "signature", {"path": path, "trust": False})
    signature = done(call(pool, env, MODULE, "signature", {"path": path, "trust": True})).value
    assert "relax.call_dps_packed" in signature["meta"]["calls_by_name"]


@pytest.mark.parametrize(
    ("node", "called"),
    [
        ({"type": "ir.Op", "data": "tirx.call_extern"}, True),
        ({"type": "ir.Op", "data": "relax.call_pure_packed"}, True),
        ({"type": "ffi.String", "data": "pragma_import_llvm"}, True),
        ({"type": "relax.expr.ExternFunc", "data": {}}, True),
        ({"type": "ffi.Module", "data": {}}, True),
        ({"type": "ir.Op", "data": "relax.call_tir"}, False),
        ({"type": "ir.Op", "data": "relax.nn.conv2d"}, False),
        ({"type": "ffi.String", "data": "call_extern"}, False),
        ({"type": "ir.IRModule", "data": {}}, False),
    ],
)
def test_what_counts_as_a_call_by_name(node, called):
    assert bool(_tvm_file.foreign([node])) is called


# -- description and runs


def test_the_signature_keeps_names_open_sizes_and_ranges(ask):
    signature = ask("signature", "cnn").value
    assert [spec["name"] for spec in signature["outputs"]] == ["odds", "m"]
    assert signature["outputs"][0]["shape"] == ["n", 4]
    assert signature["meta"]["parameters"] == 184
    index = ask("signature", "words").value["inputs"][1]
    assert (index["minimum"], index["maximum"], index["dtype"]) == (0, 5, "int64")


@pytest.mark.parametrize("model", list(INPUTS))
def test_runs_are_what_onnx_computes(ask, expected, model):
    got = run_of(ask, model, INPUTS[model])
    wanted = expected(model, INPUTS[model], OUTPUTS[model])
    assert list(got) == OUTPUTS[model]
    for name in OUTPUTS[model]:
        np.testing.assert_allclose(got[name], wanted[name], rtol=0, atol=NOISE)


@pytest.mark.parametrize("variant", tvm.VARIANTS[1:])
def test_every_variant_computes_the_same(ask, expected, variant):
    got = run_of(ask, "cnn", INPUTS["cnn"], variant)
    for name, array in expected("cnn", INPUTS["cnn"], OUTPUTS["cnn"]).items():
        np.testing.assert_allclose(got[name], array, rtol=0, atol=NOISE)


def test_an_open_batch_takes_any_size(ask, expected):
    inputs = {"image": random(1, 7, 3, 8, 9)}
    got = run_of(ask, "cnn", inputs)["odds"]
    np.testing.assert_allclose(got, expected("cnn", inputs, ["odds"])["odds"], rtol=0, atol=NOISE)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "needs a value for its input 'image'"),
        ({"image": random(1, 2, 3, 8, 8)}, "has the shape"),
        ({"image": random(1, 2, 3, 8, 9), "other": random(1, 2)}, "has no input 'other'"),
    ],
)
def test_unfit_inputs_are_refused_with_a_sentence(pool, env, models, inputs, said):
    arguments = {"path": models["cnn"]["tvm"], "cases": {"data": inputs}, "trust": False}
    got = call(pool, env, MODULE, "run", {**arguments, "precision": "float32", "variant": "default"})
    assert isinstance(got, Failure)
    assert said in got.message


def test_another_precision_is_unsupported(pool, env, models):
    arguments = {"path": models["cnn"]["tvm"], "cases": {"data": INPUTS["cnn"]}, "trust": False}
    got = call(pool, env, MODULE, "run", {**arguments, "precision": "float64", "variant": "default"})
    assert isinstance(got, Failure)
    assert got.kind is Kind.UNSUPPORTED


# -- inside


def node(ask, model, operator):
    (found,) = (item for item in ask("graph", model).value["nodes"] if item["op"] == operator)
    return found


def test_the_graph_speaks_onnx(ask):
    shown = ask("graph", "cnn").value
    assert [item["op"] for item in shown["nodes"]][:6] == [
        "Conv",
        "Reshape",
        "Add",
        "BatchNormalization",
        "Relu",
        "MaxPool",
    ]
    assert shown["outputs"] == ["odds", "m"]
    assert set(shown["constants"]) == {"kernel", "bias", "gamma", "beta", "mean", "var", "dense", "offset"}
    convolution = node(ask, "cnn", "Conv")
    assert convolution["inputs"] == ["image", "kernel"]
    assert convolution["attributes"] == {
        "strides": [2, 1],
        "pads": [1, 0, 1, 2],
        "dilations": [1, 1],
        "group": 1,
        "kernel_shape": [3, 3],
    }
    assert node(ask, "cnn", "ReduceMean")["attributes"]["axes"] == [2, 3]
    assert node(ask, "cnn", "BatchNormalization")["attributes"]["epsilon"] == pytest.approx(1e-3)


SHOWN = {
    "Slice": {"axes": [3], "starts": [1], "ends": [6], "steps": [2]},
    "Transpose": {"perm": [0, 2, 3, 1]},
    "LeakyRelu": {"alpha": pytest.approx(0.3)},
    "ConvTranspose": {"strides": [2, 2], "pads": [1, 1, 0, 0], "output_padding": [0, 0], "kernel_shape": [3, 3]},
    "Resize": {"mode": "linear", "coordinate_transformation_mode": "half_pixel", "sizes": [8, 6]},
    "Concat": {"axis": 1},
}


@pytest.mark.parametrize("operator", SHOWN)
def test_attributes_are_those_of_onnx(ask, operator):
    given = node(ask, "words", operator)["attributes"]
    assert {name: given.get(name) for name in SHOWN[operator]} == SHOWN[operator]


def test_kernels_of_the_module_go_by_what_they_compute(ask):
    found = {item["native_op"]: item["op"] for item in ask("graph", "words").value["nodes"]}
    assert (found["call_tir:pad"], found["call_tir:maximum"]) == ("Pad", "Max")


def test_parameters_are_the_sources(ask, models):
    emitted = ask("parameters", "parts", emit=True).emitted
    with zipfile.ZipFile(models["parts"]["tvm"]) as archive:
        stored = np.load(archive.open("parameters/0.npy"))
    np.testing.assert_array_equal(emitted["shared"], stored)


@pytest.mark.parametrize("model", list(INPUTS))
def test_every_named_value_is_traced(ask, model):
    listed = ask("names", model).value
    assert len(set(listed)) == len(listed)
    got = ask("trace", model, emit=True, inputs=INPUTS[model], wanted=listed, budget=200)
    assert got.value["skipped"] == {}
    assert set(got.emitted) == set(listed)
    outputs = run_of(ask, model, INPUTS[model])
    for name in OUTPUTS[model]:
        np.testing.assert_allclose(got.emitted[name], outputs[name], rtol=0, atol=NOISE)


def test_values_inside_are_what_onnx_computes(ask, expected):
    pairs = {"Relu": "r", "MaxPool": "p", "BatchNormalization": "n"}
    wanted = {operator: node(ask, "cnn", operator)["outputs"][0] for operator in pairs}
    got = ask("trace", "cnn", emit=True, inputs=INPUTS["cnn"], wanted=list(wanted.values()), budget=2**20).emitted
    known = expected("cnn", INPUTS["cnn"], list(pairs.values()))
    for operator, name in pairs.items():
        np.testing.assert_allclose(got[wanted[operator]], known[name], rtol=0, atol=NOISE)


def test_a_value_put_in_is_what_its_readers_see(ask):
    """y = a * s - (c + s), computed from an `a` that is put in; `a` itself is what the split makes of x."""
    split = node(ask, "parts", "Split")["outputs"][0]
    shared = ask("parameters", "parts", emit=True).emitted["shared"]
    x, other = INPUTS["parts"]["x"], random(3, 2, 3) + 5
    arguments = {"inputs": {"x": x}, "given": {split: other}, "variant": "", "budget": 2**20}
    got = ask("replay", "parts", emit=True, wanted=["y", "again", split, "same"], **arguments).emitted
    np.testing.assert_allclose(got["y"], other * shared - (x[..., 5:] + shared), rtol=0, atol=NOISE)
    np.testing.assert_array_equal(got["again"], got["y"])
    np.testing.assert_array_equal(got[split], x[..., :3])
    np.testing.assert_array_equal(got["same"], x)


def test_a_part_needs_only_what_it_reads_and_takes_other_shapes(ask):
    """The head of the network alone, for nine rows, without the image."""
    parameters = ask("parameters", "cnn", emit=True).emitted
    means = random(2, 9, 5)
    given = {"inputs": {}, "given": {"m": means}, "variant": "unfused", "budget": 2**20}
    got = ask("replay", "cnn", emit=True, wanted=["odds"], **given).emitted["odds"]
    logits = means @ parameters["dense"].T + parameters["offset"]
    odds = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(got, odds, rtol=0, atol=NOISE)


def test_a_shape_that_does_not_fit_is_skipped_with_the_reason(ask):
    given = {"inputs": {}, "given": {"m": random(1, 2, 6)}, "variant": "", "budget": 2**20}
    got = ask("replay", "cnn", emit=True, wanted=["odds"], **given)
    assert "cannot be computed from these shapes" in got.value["skipped"]["odds"]
    assert not got.emitted


# -- edits


def edited(pool, env, models, model, out, edits, **arrays):
    arguments = {"path": models[model]["tvm"], "edits": edits, "arrays": arrays, "out": str(out), "trust": False}
    return call(pool, env, MODULE, "edit", arguments)


def test_a_weight_is_changed_and_nothing_else(pool, env, ask, models, folder):
    out = folder / "weight.tvm"
    new = random(4, 5)
    change = {"kind": "set-parameter", "node": weight_reader(ask, "dense"), "parameter": "dense", "array": "w"}
    done(edited(pool, env, models, "cnn", out, [change], w=new))
    before, after = (ask("parameters", path, emit=True).emitted for path in ("cnn", out))
    np.testing.assert_array_equal(after["dense"], new)
    assert all(np.array_equal(before[name], after[name]) for name in before if name != "dense")
    assert ask("graph", out).value == ask("graph", "cnn").value
    np.testing.assert_array_equal(run_of(ask, out, INPUTS["cnn"])["m"], run_of(ask, "cnn", INPUTS["cnn"])["m"])


def weight_reader(ask, name):
    return next(item["name"] for item in ask("graph", "cnn").value["nodes"] if name in item["inputs"])


def test_a_shared_weight_stays_for_its_other_readers(pool, env, ask, models, folder):
    out = folder / "shared.tvm"
    product, x = node(ask, "parts", "Mul")["name"], INPUTS["parts"]["x"]
    change = {"kind": "set-parameter", "node": product, "parameter": "shared", "array": "w"}
    done(edited(pool, env, models, "parts", out, [change], w=np.array([1, 2, 3], np.float32)))
    shared = ask("parameters", "parts", emit=True).emitted["shared"]
    wanted = x[..., :3] * np.array([1, 2, 3], np.float32) - (x[..., 5:] + shared)
    np.testing.assert_allclose(run_of(ask, out, INPUTS["parts"])["y"], wanted, rtol=0, atol=NOISE)
    assert [item["name"] for item in ask("graph", out).value["nodes"]] == [
        item["name"] for item in ask("graph", "parts").value["nodes"]
    ]


@pytest.mark.parametrize(
    ("operator", "attribute", "value", "output", "effect"),
    [
        ("LeakyRelu", "alpha", 1.0, "leaky", lambda x: np.full((), -0.5)),
        ("Resize", "coordinate_transformation_mode", "align_corners", "resized", lambda x: x[..., -1, -1].min()),
    ],
)
def test_an_attribute_is_changed(pool, env, ask, models, folder, operator, attribute, value, output, effect):
    """With a slope of one the smallest value is the lower bound; aligned corners keep the corners."""
    out = folder / f"{operator}.tvm"
    change = {"kind": "set-attribute", "node": node(ask, "words", operator)["name"]}
    done(edited(pool, env, models, "words", out, [{**change, "attribute": attribute, "value": value}]))
    assert node(ask, out, operator)["attributes"][attribute] == value
    inputs = INPUTS["words"]
    got, before = (run_of(ask, path, inputs)[output] for path in (out, "words"))
    assert not np.allclose(got, before, atol=1e-3)
    if operator == "LeakyRelu":
        assert got.min() == pytest.approx(float(effect(inputs["x"])))
    else:
        assert got[..., -1, -1].min() == pytest.approx(float(effect(inputs["x"])), abs=NOISE)


def test_operands_that_onnx_has_as_attributes_are_changed(pool, env, ask, models, folder):
    """Every other column of five from the first on, rather than from the second: as many, so that all else fits."""
    out = folder / "slice.tvm"
    name = node(ask, "words", "Slice")["name"]
    changes = [{"kind": "set-attribute", "node": name, "attribute": "starts", "value": [0]}]
    changes.append({"kind": "set-attribute", "node": name, "attribute": "ends", "value": [5]})
    done(edited(pool, env, models, "words", out, changes))
    assert node(ask, out, "Slice")["attributes"] == {"axes": [3], "starts": [0], "ends": [5], "steps": [2]}
    (padded,) = node(ask, out, "Slice")["inputs"]
    wanted = [padded, name]
    got = ask("trace", out, emit=True, inputs=INPUTS["words"], wanted=wanted, budget=2**20).emitted
    np.testing.assert_array_equal(got[name], got[padded][..., 0:5:2])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "set-attribute", "attribute": "beta", "value": 1}, "has no attribute 'beta'"),
        ({"kind": "set-attribute", "attribute": "alpha", "value": None}, "cannot be taken away"),
        ({"kind": "set-parameter", "parameter": "nothing", "array": "w"}, "reads no constant 'nothing'"),
        ({"kind": "remove-node"}, "cannot be written into a TVM module"),
    ],
)
def test_what_cannot_be_written_is_said(pool, env, ask, models, folder, change, said):
    name = node(ask, "words", "LeakyRelu")["name"]
    got = edited(pool, env, models, "words", folder / "no.tvm", [{**change, "node": name}], w=np.ones(2, np.float32))
    assert isinstance(got, Failure)
    assert got.kind is Kind.UNSUPPORTED
    assert said in got.message
    assert not (folder / "no.tvm").exists()


# -- converters


@pytest.mark.parametrize(
    "kind", ["residual", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("depthwise", "encoder", "mixed"))]
)
def test_a_pytorch_program_converts_and_is_the_source(pool, env, folder, kind):
    source, feeds, reference = zoo(pool, env, folder, kind)
    path = converted(pool, env, source, folder / f"{kind}.tvm")
    got = done(call(pool, env, MODULE, "run", run_arguments(path, feeds))).value["data"]
    assert list(got) == list(reference)
    for name, array in reference.items():
        np.testing.assert_allclose(got[name], array, rtol=0, atol=5e-5)  # as the other converters of the zoo


def zoo(pool, env, folder, kind):
    """A model of the zoo, inputs, and what PyTorch computes."""

    def torch(function, **arguments):
        module = "torch_models" if function in ("save", "inputs") else "trueport.frameworks.torch"
        return done(pool.call(env("torch"), module, function, arguments, stage=Stage.LOAD, paths=[HERE])).value

    made = torch("save", kind=kind, folder=str(folder), seed=0)
    source = made if isinstance(made, str) else made["pytorch"]
    feeds = torch("inputs", kind=kind, seed=0, batch=2, runs=3)
    return source, feeds, torch("run", **run_arguments(source, feeds))["data"]


def run_arguments(path, feeds):
    return {"path": str(path), "cases": {"data": feeds}, "precision": "float32", "variant": "default", "trust": False}


def converted(pool, env, source, out):
    where = {"path": str(source), "trust": False}
    signature = done(pool.call(env("torch"), "trueport.frameworks.torch", "signature", where, stage=Stage.LOAD)).value
    context = {"signature": signature, "example": {}, "calibration": {}, "trust": False}
    arguments = {"step": "tvm-torch", "source": str(source), "out": str(out), "options": {}, "context": context}
    done(pool.call(env("tvm-torch"), "trueport.converters.tvm", "convert", arguments, stage=Stage.CONVERT))
    return out


def test_an_operator_that_the_frontend_lacks_is_unsupported(pool, env, folder):
    path, out = str(folder / "celu.onnx"), str(folder / "celu.tvm")
    done(call(pool, env, "tvm_models", "one", {"operator": "Celu", "path": path}))
    got = call(pool, env, "tvm_models", "convert", {"source": path, "out": out})
    assert isinstance(got, Failure)
    assert got.kind is Kind.UNSUPPORTED
    assert "Celu" in got.message
    assert not Path(out).exists()

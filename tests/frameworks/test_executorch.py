"""ExecuTorch: files run as PyTorch computes them, are looked into, cut and edited; the converter for both backends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueport.artifact import sniff
from trueport.errors import UsageError
from trueport.frameworks import _executorch_ops as ops
from trueport.outcome import Failure, Kind, Ok, Stage

MODULE = "trueport.frameworks.executorch"
MAKER = "executorch_models"
HERE = str(Path(__file__).parent)
NOISE = 5e-6
"""Float32 sums of at most a few dozen products of the size of one, in another order."""
KINDS = ("cnn", "parts", "words", "alpha")


def call(pool, env, module, function, arguments, *, emit=False):
    return pool.call(env("executorch"), module, function, arguments, stage=Stage.TRACE, emit=emit, paths=[HERE])


def done(outcome):
    assert isinstance(outcome, Ok), outcome
    return outcome.value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("executorch")


@pytest.fixture(scope="module")
def make(pool, env):
    """make(function, ...) -> what that function of the models' module returns."""

    def run(function, **arguments):
        return done(call(pool, env, MAKER, function, arguments)).value

    return run


@pytest.fixture(scope="module")
def models(make, folder):
    return make("write", folder=str(folder))


@pytest.fixture(scope="module")
def ask(pool, env, models):
    """ask(function, model, ...) -> the Reply; a model is "cnn", "cnn.xnnpack" or a path."""

    def run(function, model, *, emit=False, **more):
        return done(
            call(pool, env, MODULE, function, {"path": path_of(models, model), "trust": False, **more}, emit=emit)
        )

    return run


def path_of(models, model):
    kind, _, backend = str(model).partition(".")
    return models[kind][backend or "portable"] if kind in models else str(model)


def run_of(ask, model, inputs):
    return ask("run", model, cases={"data": inputs}, precision="float32", variant="default").value["data"]


def node(ask, model, operator):
    (found,) = (item for item in ask("graph", model).value["nodes"] if item["op"] == operator)
    return found


# -- files


def test_a_file_is_recognised_by_its_identifier(models, tmp_path):
    assert sniff(Path(models["cnn"]["portable"])) == "executorch"
    other = tmp_path / "other.pte"
    other.write_bytes(b"\0\0\0\0ET99" + b"\0" * 100)
    with pytest.raises(UsageError, match="not a model"):
        sniff(other)


@pytest.mark.parametrize("keep", [40, 2000])
def test_a_file_that_is_cut_off_is_damaged(pool, env, models, tmp_path, keep):
    bad = tmp_path / "bad.pte"
    bad.write_bytes(Path(models["cnn"]["portable"]).read_bytes()[:keep])
    with pytest.raises(UsageError, match="damaged"):
        call(pool, env, MODULE, "signature", {"path": str(bad), "trust": False})


def test_the_signature_counts_positions(ask):
    signature = ask("signature", "words").value
    assert signature["inputs"] == [
        {"name": "input_0", "dtype": "float32", "shape": [1, 2, 4, 3]},
        {"name": "input_1", "dtype": "int64", "shape": [2]},
    ]
    assert [spec["shape"] for spec in signature["outputs"]] == [[1, 8, 3, 2], [1, 3, 8, 6], [2, 4], [1, 2, 4, 3]]
    assert signature["meta"]["parameters"] == 2 * 3 * 9 + 3 + 6 * 4
    assert ask("signature", "words.xnnpack").value["meta"]["backends"] == ["XnnpackBackend"]


# -- runs


@pytest.mark.parametrize("backend", ["portable", "xnnpack"])
@pytest.mark.parametrize("kind", KINDS)
def test_runs_are_what_pytorch_computes(ask, make, kind, backend):
    inputs = make("example", kind=kind, runs=3, seed=1)
    got = run_of(ask, f"{kind}.{backend}", inputs)
    expected = make("reference", kind=kind, inputs=inputs)
    assert set(got) == set(expected)
    for name, array in expected.items():
        if (kind, backend, name) != ("words", "xnnpack", "output_3"):  # the test below
            np.testing.assert_allclose(got[name], array, rtol=0, atol=NOISE)


def test_xnnpack_takes_the_tanh_form_of_gelu_for_the_exact_one(ask, make):
    """A live fault of the XNNPACK backend: it must reach us."""
    inputs = make("example", kind="words", runs=20, seed=1)
    portable, other = (run_of(ask, model, inputs)["output_3"] for model in ("words", "words.xnnpack"))
    assert 1e-4 < np.abs(portable - other).max() < 1e-3


def test_runs_do_not_see_what_runs_before_them_left(ask, make):
    inputs = make("example", kind="counter", runs=3, seed=1)
    assert ask("signature", "counter").value["meta"]["writes_state"] is True
    for backend in ("portable", "xnnpack"):
        np.testing.assert_array_equal(run_of(ask, f"counter.{backend}", inputs)["output_0"], inputs["input_0"])


def test_outputs_of_one_run_outlive_the_next(ask, make):
    inputs = make("example", kind="alpha", runs=4, seed=2)
    got = run_of(ask, "alpha", inputs)["output_0"]
    for run in range(4):
        alone = run_of(ask, "alpha", {name: array[run : run + 1] for name, array in inputs.items()})["output_0"]
        np.testing.assert_array_equal(got[run], alone[0])


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "needs a value for its input 'input_0'"),
        ({"input_0": np.zeros((1, 3, 3, 8, 9), np.float32)}, "has the shape"),
        ({"input_0": np.zeros((1, 2, 3, 8, 9), np.float32), "x": np.zeros((1, 1), np.float32)}, "has no input 'x'"),
    ],
)
def test_unfit_inputs_are_refused_with_a_sentence(pool, env, models, inputs, said):
    arguments = {"path": models["cnn"]["portable"], "cases": {"data": inputs}, "trust": False}
    got = call(pool, env, MODULE, "run", {**arguments, "precision": "float32", "variant": "default"})
    assert isinstance(got, Failure)
    assert said in got.message


# -- inside


def test_the_graph_speaks_onnx(ask):
    shown = ask("graph", "cnn").value
    assert [item["op"] for item in shown["nodes"]] == [
        "Conv",
        "BatchNormalization",
        "Relu",
        "MaxPool",
        "ReduceMean",
        "Transpose",
        "Gemm",
        "Softmax",
    ]
    assert shown["outputs"] == ["output_0", "output_1"]
    assert sorted(tuple(facts["shape"]) for facts in shown["constants"].values())[-1] == (6, 1, 3, 3)


SHOWN = {
    ("cnn", "Conv"): {"strides": [2, 1], "pads": [1, 0, 1, 0], "dilations": [1, 1], "group": 3, "kernel_shape": [3, 3]},
    ("cnn", "BatchNormalization"): {"epsilon": pytest.approx(1e-3)},
    ("cnn", "MaxPool"): {
        "kernel_shape": [2, 2],
        "strides": [2, 2],
        "pads": [1, 1, 1, 1],
        "dilations": [1, 1],
        "ceil_mode": 0,
    },
    ("cnn", "ReduceMean"): {"axes": [2, 3], "keepdims": 0},
    ("cnn", "Softmax"): {"axis": 1},
    ("parts", "Split"): {"split": [3, 2, 3], "axis": 1},
    ("parts", "Concat"): {"axis": 1},
    ("words", "Pad"): {"pads": [0, 0, 1, 2, 0, 0, 3, 4], "mode": "constant", "value": 2.0},
    ("words", "Slice"): {"axes": [3], "starts": [1], "ends": [6], "steps": [2]},
    ("words", "Transpose"): {"perm": [0, 2, 3, 1]},
    ("words", "Clip"): {"min": -0.5, "max": 0.75},
    ("words", "LeakyRelu"): {"alpha": pytest.approx(0.3)},
    ("words", "ConvTranspose"): {
        "strides": [2, 2],
        "pads": [1, 1, 1, 1],
        "dilations": [1, 1],
        "output_padding": [1, 1],
        "group": 1,
        "kernel_shape": [3, 3],
    },
    ("words", "Gelu"): {"approximate": "tanh"},
    ("alpha", "Add"): {"alpha": 3},
}


@pytest.mark.parametrize(("model", "operator"), SHOWN)
def test_attributes_are_those_of_onnx(ask, model, operator):
    assert node(ask, model, operator)["attributes"] == SHOWN[model, operator]


def test_a_delegate_is_one_node(ask):
    nodes = ask("graph", "cnn.xnnpack").value["nodes"]
    assert [item["op"] for item in nodes] == ["XnnpackBackend", "ReduceMean", "XnnpackBackend"]
    assert nodes[0]["native_op"] == "delegate.XnnpackBackend"
    assert nodes[0]["outputs"] == nodes[1]["inputs"]


def test_a_state_is_read_and_has_no_producer(ask):
    for backend in ("portable", "xnnpack"):
        nodes = ask("graph", f"counter.{backend}").value["nodes"]
        written = [name for item in nodes for name in item["outputs"]]
        assert len(set(written)) == len(written)
        (copy,) = (item for item in nodes if item["native_op"] == "aten::copy_")
        state = copy["inputs"][0]
        assert state in nodes[0]["inputs"]
        assert state not in written


@pytest.mark.parametrize(
    ("native", "settings", "name"),
    [
        ("aten::permute_copy.out", {}, "Transpose"),
        ("aten::convolution.out", {"transposed": True}, "ConvTranspose"),
        ("aten::convolution.out", {"transposed": False}, "Conv"),
        ("aten::pow.Tensor_Scalar_out", {}, "Pow"),
        ("executorch_prim::et_view.default", {}, "Reshape"),
        ("dim_order_ops::_to_dim_order_copy.out", {}, "Cast"),
        ("mine::something.out", {}, "something"),
    ],
)
def test_names_of_kernels_in_onnx_vocabulary(native, settings, name):
    assert ops.onnx_name(native, settings) == name


def test_parameters_are_the_sources(ask):
    """The two weights of the addition and the multiplication are one."""
    emitted = ask("parameters", "parts", emit=True).emitted
    product, total = node(ask, "parts", "Mul"), node(ask, "parts", "Add")
    assert set(product["inputs"]) & set(total["inputs"]) == set(emitted)
    (values,) = emitted.values()
    assert values.shape == (3,)


@pytest.mark.parametrize("model", [*KINDS, "cnn.xnnpack", "words.xnnpack", "counter"])
def test_every_named_value_is_traced(ask, make, model):
    listed = ask("names", model).value
    assert len(set(listed)) == len(listed)
    inputs = make("example", kind=model.partition(".")[0], runs=3, seed=1)
    got = ask("trace", model, emit=True, inputs=inputs, wanted=listed, budget=300)
    assert got.value["skipped"] == {}
    assert set(got.emitted) == set(listed)
    for name, array in run_of(ask, model, inputs).items():
        np.testing.assert_array_equal(got.emitted[name], array)


def test_values_inside_are_what_pytorch_computes(ask, make):
    """In the shipped file the convolution's memory is used again before the end: a part gives each its own."""
    inputs = make("example", kind="cnn", runs=3, seed=5)
    stages = make("stages", inputs=inputs)
    firsts = {name: node(ask, "cnn", name)["outputs"][0] for name in stages}
    got = ask("trace", "cnn", emit=True, inputs=inputs, wanted=list(firsts.values()), budget=2**20).emitted
    for name, value in firsts.items():
        np.testing.assert_allclose(got[value], stages[name], rtol=0, atol=NOISE)


def test_a_value_put_in_is_what_its_readers_see(ask, make):
    """y = a * s - (c + s), computed from an `a` that is put in; `a` itself is what the split makes of x."""
    split = node(ask, "parts", "Split")["outputs"][0]
    (shared,) = ask("parameters", "parts", emit=True).emitted.values()
    inputs = make("example", kind="parts", runs=3, seed=6)
    x, other = inputs["input_0"], np.random.default_rng(0).normal(size=(3, 2, 3)).astype(np.float32)
    arguments = {"inputs": inputs, "given": {split: other}, "variant": "", "budget": 2**20}
    wanted = ["output_0", "output_1", split, "output_2", "output_3"]
    got = ask("replay", "parts", emit=True, wanted=wanted, **arguments).emitted
    np.testing.assert_allclose(got["output_0"], other * shared - (x[..., 5:] + shared), rtol=0, atol=NOISE)
    np.testing.assert_array_equal(got["output_1"], got["output_0"])
    np.testing.assert_array_equal(got[split], x[..., :3])
    np.testing.assert_array_equal(got["output_2"], x)
    np.testing.assert_array_equal(got["output_3"][..., :3], other)


def test_a_part_needs_only_what_it_reads(ask):
    """The head of the network alone, without the image; of other sizes it is refused, for memory is planned."""
    emitted = ask("parameters", "cnn", emit=True).emitted
    weight, bias = (next(a for a in emitted.values() if a.shape == shape) for shape in ((4, 6), (4,)))
    means = np.random.default_rng(0).normal(size=(2, 2, 6)).astype(np.float32)
    arguments = {"inputs": {}, "wanted": ["output_0"], "variant": "", "budget": 2**20}
    got = ask("replay", "cnn", emit=True, given={"output_1": means}, **arguments).emitted["output_0"]
    logits = means @ weight.T + bias
    np.testing.assert_allclose(got, np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), rtol=0, atol=NOISE)
    with pytest.raises(AssertionError, match="has the shape"):
        ask("replay", "cnn", emit=True, given={"output_1": means[:, :1]}, **arguments)


# -- edits


def edited(pool, env, models, model, out, edits, **arrays):
    arguments = {"path": path_of(models, model), "edits": edits, "arrays": arrays, "out": str(out), "trust": False}
    return call(pool, env, MODULE, "edit", arguments)


def test_a_shared_weight_is_changed_for_one_reader(pool, env, ask, make, models, folder):
    product = node(ask, "parts", "Mul")
    (name,) = (item for item in product["inputs"] if item.startswith("constant"))
    change = {"kind": "set-parameter", "node": product["name"], "parameter": name, "array": "w"}
    new = np.array([1, 2, 3], np.float32)
    done(edited(pool, env, models, "parts", folder / "shared.pte", [change], w=new))
    (shared,) = ask("parameters", "parts", emit=True).emitted.values()
    inputs = make("example", kind="parts", runs=2, seed=1)
    x = inputs["input_0"]
    got = run_of(ask, folder / "shared.pte", inputs)
    np.testing.assert_allclose(got["output_0"], x[..., :3] * new - (x[..., 5:] + shared), rtol=0, atol=NOISE)
    np.testing.assert_array_equal(got["output_3"], run_of(ask, "parts", inputs)["output_3"])
    before, after = (ask("graph", model).value["nodes"] for model in ("parts", folder / "shared.pte"))
    assert [item["name"] for item in before] == [item["name"] for item in after]


def test_settings_are_changed(pool, env, ask, make, models, folder):
    out = folder / "settings.pte"
    addition = {"kind": "set-attribute", "node": node(ask, "alpha", "Add")["name"], "attribute": "alpha", "value": 1}
    done(edited(pool, env, models, "alpha", out, [addition]))
    inputs = make("example", kind="alpha", runs=2, seed=1)
    np.testing.assert_array_equal(run_of(ask, out, inputs)["output_0"], inputs["input_0"] + inputs["input_1"])
    assert node(ask, out, "Add")["attributes"] == {"alpha": 1}


@pytest.mark.parametrize(
    ("operator", "attribute", "value"),
    [
        ("Pad", "pads", [0, 0, 2, 3, 0, 0, 2, 3]),
        ("Slice", "starts", [2]),
        ("LeakyRelu", "alpha", 0.5),
        ("Gelu", "approximate", "none"),
        ("ConvTranspose", "pads", [1, 1, 1, 1]),
    ],
)
def test_a_setting_is_shown_as_it_was_set(pool, env, ask, make, models, folder, operator, attribute, value):
    out = folder / f"{operator}.pte"
    name = node(ask, "words", operator)["name"]
    changes = [{"kind": "set-attribute", "node": name, "attribute": attribute, "value": value}]
    if operator == "Slice":
        changes.append({"kind": "set-attribute", "node": name, "attribute": "ends", "value": [7]})
    done(edited(pool, env, models, "words", out, changes))
    assert node(ask, out, operator)["attributes"][attribute] == value
    inputs = make("example", kind="words", runs=2, seed=1)
    same = np.array_equal(*(trace_of(ask, path, inputs, name) for path in ("words", out)))
    assert same is (operator == "ConvTranspose")


def trace_of(ask, model, inputs, name):
    return ask("trace", model, emit=True, inputs=inputs, wanted=[name], budget=2**20).emitted[name]


@pytest.mark.parametrize(
    ("model", "operator", "change", "said"),
    [
        ("words", "LeakyRelu", {"kind": "set-attribute", "attribute": "beta", "value": 1}, "has no setting 'beta'"),
        ("cnn", "Conv", {"kind": "set-attribute", "attribute": "pads", "value": [1, 0, 0, 0]}, "pads both ends"),
        ("cnn", "Conv", {"kind": "set-parameter", "parameter": "constant_0", "array": "w"}, "planned for no other"),
        ("cnn", "Relu", {"kind": "set-parameter", "parameter": "constant_0", "array": "w"}, "reads no constant"),
        ("cnn.xnnpack", "ReduceMean", {"kind": "remove-node"}, "cannot be written into an ExecuTorch file"),
    ],
)
def test_what_cannot_be_written_is_said(pool, env, ask, models, folder, model, operator, change, said):
    out = folder / "no.pte"
    name = node(ask, model, operator)["name"]
    got = edited(pool, env, models, model, out, [{**change, "node": name}], w=np.ones(2, np.float32))
    assert isinstance(got, Failure)
    assert got.kind is Kind.UNSUPPORTED
    assert said in got.message
    assert not out.exists()


def test_what_a_backend_computes_cannot_be_edited(pool, env, ask, models, folder):
    first = ask("graph", "cnn.xnnpack").value["nodes"][0]["name"]
    change = {"kind": "set-attribute", "node": first, "attribute": "pads", "value": [0, 0, 0, 0]}
    got = edited(pool, env, models, "cnn.xnnpack", folder / "no.pte", [change])
    assert isinstance(got, Failure)
    assert "whose bytes are its own" in got.message


# -- the converter


def test_the_reply_tells_which_position_has_which_name(make, models, folder):
    reply = make("convert", source=models["words"]["pytorch"], out=str(folder / "names.pte"), backend="portable")
    assert reply["names"]["x"] == "input_0"
    assert reply["names"]["index"] == "input_1"
    assert list(reply["names"].values())[2:] == ["output_0", "output_1", "output_2", "output_3"]
    assert reply["notes"] == []


def test_open_sizes_are_fixed_to_the_example(ask, make, folder):
    source, out = str(folder / "open.pt2"), str(folder / "open.pte")
    make("open_batch", path=source)
    image = np.zeros((5, 3, 8, 9), np.float32)
    reply = make("convert", source=source, out=out, backend="xnnpack", example=image)
    assert reply["notes"] == ["open sizes are fixed to the example's"]
    assert ask("signature", out).value["inputs"][0]["shape"] == [5, 3, 8, 9]


def test_an_unknown_backend_is_refused(pool, env, models, folder):
    arguments = {"source": models["cnn"]["pytorch"], "out": str(folder / "no.pte"), "backend": "gpu"}
    got = call(pool, env, MAKER, "convert", arguments)
    assert isinstance(got, Failure)
    assert "give portable or xnnpack" in got.message

"""The fake framework computes what it says, and each of its faults is the fault that it is named after."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from trueport.artifact import sniff
from trueport.frameworks import _fake_faults as faults
from trueport.frameworks import fake
from trueport.frameworks._base import BadModel, InvalidOutput, Unsupported, Untrusted
from trueport.outcome import Failure, Kind, Stage
from trueport.worker.pool import Pool

PYTHON = Path(sys.executable)


@pytest.fixture
def save(tmp_path):
    """save(**network arguments) -> path of the file."""

    def save(model=None, **more):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.fake"
        path.write_text(fake.text_of(model or fake.network(**more)), encoding="utf-8")
        return str(path)

    return save


def feed(runs=3, batch=2, features=6, inputs=1, seed=1):
    random = np.random.default_rng(seed)
    return {f"x{index}": random.standard_normal((runs, batch, features)).astype(np.float32) for index in range(inputs)}


def run(path, inputs=None, *, precision="float32", variant="default", trust=False):
    cases = {"data": inputs or feed()}
    return fake.run(path, cases, precision=precision, variant=variant, trust=trust)["data"]


def by_hand(model, inputs, dtype=np.float64):
    constants = {name: np.array(item["data"], item["dtype"]).astype(dtype) for name, item in model["constants"].items()}
    x = sum(inputs[name].astype(dtype) for name in inputs)
    hidden = np.maximum(x @ constants["w1"] + constants["b1"], 0)
    scores = hidden @ constants["w2"] + constants["b2"]
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return {"scores": scores, "chances": powers / powers.sum(-1, keepdims=True)}


# -- honest behaviour -----------------------------------------------------------------------------------------------


def test_it_is_told_by_its_bytes(save, tmp_path):
    assert sniff(Path(save())) == "fake"
    assert fake.sniff(b'{"other": 1}', tmp_path) is None
    assert fake.sniff(b'"trueport-fake"', tmp_path) is None
    reordered = {"inputs": [], **fake.network()}
    assert fake.sniff(fake.text_of(reordered).encode()[:100], tmp_path) == "fake"


def test_signature(save):
    signature = fake.signature(save(inputs=2, features=5, classes=3), trust=False)
    assert [(one["name"], one["dtype"], one["shape"]) for one in signature["inputs"]] == [
        ("x0", "float32", ["batch", 5]),
        ("x1", "float32", ["batch", 5]),
    ]
    assert [(one["name"], one["shape"]) for one in signature["outputs"]] == [
        ("scores", ["batch", 3]),
        ("chances", ["batch", 3]),
    ]
    assert signature["meta"]["operators"] == {"Add": 3, "MatMul": 2, "Relu": 1, "Softmax": 1}
    assert signature["meta"]["parameters"] == 5 * 8 + 8 + 8 * 3 + 3


@pytest.mark.parametrize("inputs", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 4])
def test_it_computes_the_network(save, inputs, batch):
    model, given = fake.network(inputs=inputs, seed=7), feed(inputs=inputs, batch=batch)
    found, wanted = run(save(model), given), by_hand(model, given)
    assert set(found) == {"scores", "chances"}
    for name in found:
        assert found[name].shape == (3, batch, 4)
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-5, atol=2e-6)  # float32 sums of 8 products


def test_float64_is_exact_and_the_variants_give_a_floor(save):
    model, given = fake.network(features=64, hidden=64), feed(features=64)
    path, exact = save(model), by_hand(model, feed(features=64))
    wide = run(path, given, precision="float64")["scores"]
    assert wide.dtype == np.float64
    np.testing.assert_allclose(wide, exact["scores"], rtol=1e-12)
    errors = [np.abs(run(path, given, variant=variant)["scores"] - wide).max() for variant in fake.VARIANTS]
    assert all(0 < error < 1e-4 for error in errors)
    assert errors[0] != errors[1], "the variants round differently"


def test_simulated_float16_rounds_the_weights(save):
    path = save()
    error = np.abs(run(path, precision="float16")["scores"] - run(path)["scores"]).max()
    assert 1e-5 < error < 2e-2  # half a unit in the last place is 2^-11 = 5e-4 of each weight


def test_runs_of_different_shape_come_as_a_list(save):
    model = fake.network()
    model["nodes"].append(
        {"name": "t", "op": "Gather", "inputs": ["scores", "rows"], "outputs": ["picked"], "attributes": {}}
    )
    model["inputs"].append({"name": "rows", "dtype": "int64", "shape": ["n"]})
    model["outputs"].append({"name": "picked", "dtype": "float32", "shape": ["n", 4]})
    found = run(save(model), {**feed(), "rows": np.array([[0], [1], [0]])})
    assert found["picked"].shape == (3, 1, 4)
    np.testing.assert_array_equal(found["picked"][1, 0], found["scores"][1, 1])


OPS = {
    "MatMul": ([[[1.0, 2.0]], [[3.0], [4.0]]], {}, [[11.0]]),
    "ReduceMean": ([[[1.0, 3.0]]], {}, [[2.0]]),
    "Add": ([[1.0], [2.0]], {}, [3.0]),
    "Sub": ([[1.0], [2.0]], {}, [-1.0]),
    "Mul": ([[3.0], [2.0]], {}, [6.0]),
    "Relu": ([[-1.0, 2.0]], {}, [0.0, 2.0]),
    "Tanh": ([[0.0]], {}, [0.0]),
    "Sigmoid": ([[0.0]], {}, [0.5]),
    "Softmax": ([[[1e4, 1e4]]], {}, [[0.5, 0.5]]),
    "Concat": ([[[1.0]], [[2.0]]], {"axis": 1}, [[1.0, 2.0]]),
    "Transpose": ([[[1.0, 2.0]]], {"perm": [1, 0]}, [[1.0], [2.0]]),
    "Flatten": ([[[[1.0], [2.0]]]], {}, [[1.0, 2.0]]),
    "Cast": ([[1.7]], {"to": "int64"}, [1]),
    "Identity": ([[1.7]], {}, [1.7]),
}


@pytest.mark.parametrize("variant", fake.VARIANTS)
@pytest.mark.parametrize("op", OPS)
def test_operators(op, variant):
    given, attributes, wanted = OPS[op]
    assert fake.OPS[op](variant, attributes, *map(np.array, given)).tolist() == wanted


def test_every_operator_is_tested():
    assert set(fake.OPS) == set(OPS) | {"Gather"}


@pytest.mark.parametrize("budget", [1, 400, 10**9])
def test_trace_gives_every_value_whatever_the_budget(save, budget):
    path, given, found = save(), feed(), {}
    names = fake.names(path, trust=False)
    assert names == ["product_1", "affine_1", "hidden", "product_2", "scores", "chances"]
    fake.trace(path, given, names, found.__setitem__, budget=budget, trust=False)
    assert list(found) == names
    assert found["hidden"].shape == (3, 2, 8)
    assert found["hidden"].min() == 0
    np.testing.assert_array_equal(found["scores"], run(path, given)["scores"])
    with pytest.raises(BadModel, match="nothing_like_it"):
        fake.trace(path, given, ["nothing_like_it"], found.__setitem__, budget=1, trust=False)


def test_graph_and_parameters_agree(save):
    path, found = save(), {}
    graph = fake.graph(path, trust=False)
    fake.parameters(path, found.__setitem__, trust=False)
    assert {name: (item["dtype"], tuple(item["shape"])) for name, item in graph["constants"].items()} == {
        name: (array.dtype.name, array.shape) for name, array in found.items()
    }
    known = set(graph["inputs"]) | set(graph["constants"])
    for node in graph["nodes"]:
        assert set(node["inputs"]) <= known
        known |= set(node["outputs"])
    assert set(graph["outputs"]) <= known


# -- files that are not models --------------------------------------------------------------------------------------


def test_damaged_files_are_bad_models(save, tmp_path):
    text = fake.text_of(fake.network())
    unknown = json.loads(text)
    unknown["nodes"][0]["op"] = "Conjure"
    lost = json.loads(text)
    lost["nodes"].pop()
    early = json.loads(text)
    early["nodes"].reverse()
    misspelt = {**json.loads(text), "faults": {"run": ["crahs"]}}
    bad = [text[:200], "", "[]", "{}", *(json.dumps(model) for model in (unknown, lost, early, misspelt))]
    for index, content in enumerate(bad):
        path = tmp_path / f"bad{index}.fake"
        path.write_text(content, encoding="utf-8")
        with pytest.raises(BadModel):
            fake.signature(str(path), trust=False)
    with pytest.raises(BadModel, match="No such file"):
        fake.signature(str(tmp_path / "absent"), trust=False)


def test_a_file_that_runs_code_needs_trust(save):
    path = save(runs_code=True)
    with pytest.raises(Untrusted):
        fake.signature(path, trust=False)
    assert fake.signature(path, trust=True)["outputs"]


# -- lying results --------------------------------------------------------------------------------------------------


def lie(save, *asked):
    honest = run(save())
    return honest, run(save(faults={"run": list(asked)}))


def test_lies_about_values(save):
    honest, told = lie(save, "perturb:1")
    np.testing.assert_allclose(told["scores"], honest["scores"] * 1.01, rtol=1e-6)
    honest, told = lie(save, "nan")
    assert np.isnan(told["scores"]).sum() == 1
    path = save(faults={"run": ["random:1"]})
    assert not np.array_equal(run(path)["scores"], run(path)["scores"])
    np.testing.assert_allclose(run(path)["scores"], honest["scores"], rtol=0.08)


def test_lies_about_outputs(save):
    honest, told = lie(save, "drop-output")
    assert list(told) == ["scores"]
    _, told = lie(save, "extra-output")
    assert list(told) == ["scores", "chances", "extra"]
    _, told = lie(save, "rename-outputs")
    assert list(told) == ["renamed_0", "renamed_1"]
    _, told = lie(save, "swap-outputs")
    np.testing.assert_array_equal(told["scores"], honest["chances"])
    np.testing.assert_array_equal(told["chances"], honest["scores"])
    _, told = lie(save, "dtype")
    assert told["scores"].dtype == np.float64
    _, told = lie(save, "shape")
    assert told["scores"].shape == (3, 2, 4, 1)


# -- the converter --------------------------------------------------------------------------------------------------


@pytest.fixture
def convert(tmp_path):
    """convert(source, misbehave="", **options) -> path of what the step left."""

    def convert(source, misbehave="", **options):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}.fake"
        context = {"signature": fake.signature(source, trust=True), "example": {}, "calibration": {}, "trust": False}
        fake.convert("fake-copy", source, str(out), {"misbehave": misbehave, **options}, context)
        return out

    return convert


def test_an_honest_copy_is_the_model_without_its_faults(save, convert):
    source = save(faults={"convert": ["slow:0.01"]})
    copy = convert(source)
    assert "faults" not in json.loads(copy.read_text())
    np.testing.assert_array_equal(run(str(copy))["scores"], run(source)["scores"])


def test_float16_is_declared_and_done(save, convert):
    source = save()
    copy = str(convert(source, precision="float16"))
    assert fake.signature(copy, trust=False)["meta"]["precision"] == "float16"
    np.testing.assert_array_equal(run(copy)["scores"], run(source, precision="float16")["scores"])


def test_wrong_models(save, convert):
    source = save()
    honest = run(source)
    perturbed = run(str(convert(source, "perturb:20")))
    assert 1e-3 < np.abs(perturbed["scores"] - honest["scores"]).max() < 10
    assert np.isnan(run(str(convert(source, "nan")))["scores"]).any()
    assert (np.abs(run(str(convert(source, "drop-activation")))["scores"] - honest["scores"]) > 1e-3).any()


def outputs(path):
    return [(one["name"], one["dtype"]) for one in fake.signature(str(path), trust=False)["outputs"]]


def test_wrong_outputs(save, convert):
    source = save()
    honest = run(source)
    assert outputs(convert(source, "drop-output")) == [("scores", "float32")]
    extra = convert(source, "extra-output")
    assert [name for name, _ in outputs(extra)] == ["scores", "chances", "extra"]
    np.testing.assert_array_equal(run(str(extra))["extra"], honest["chances"])
    renamed = convert(source, "rename-outputs")
    assert [name for name, _ in outputs(renamed)] == ["renamed_0", "renamed_1"]
    np.testing.assert_array_equal(run(str(renamed))["renamed_1"], honest["chances"])
    swapped = convert(source, "swap-outputs")
    assert outputs(swapped) == outputs(source)
    np.testing.assert_array_equal(run(str(swapped))["scores"], honest["chances"])
    assert outputs(convert(source, "reorder-outputs")) == outputs(source)[::-1]
    doubled = convert(source, "dtype")
    assert outputs(doubled) == [("scores", "float64"), ("chances", "float64")]
    np.testing.assert_array_equal(run(str(doubled))["chances"], honest["chances"].astype(np.float64))


def test_renamed_inputs(save, convert):
    source, given = save(inputs=2), feed(inputs=2)
    renamed = str(convert(source, "rename-inputs"))
    found = run(renamed, {"given_0": given["x0"], "given_1": given["x1"]})
    np.testing.assert_array_equal(found["scores"], run(source, given)["scores"])


def test_the_copy_can_be_made_to_misbehave_later(save, convert):
    copy = convert(save(), "then:run=raise,then:run=noise")
    assert json.loads(copy.read_text())["faults"] == {"run": ["raise", "noise"]}
    with pytest.raises(ValueError, match="on demand"):
        run(str(copy))


def test_bad_files_left_with_success(save, convert):
    source = save()
    whole = convert(source).read_text()
    assert convert(source, "half-written").read_text() == whole[: len(whole) // 2]
    assert convert(source, "empty").read_bytes() == b""
    assert not convert(source, "nothing").exists()
    assert convert(source, "folder").is_dir()
    garbage = convert(source, "garbage")
    assert fake.sniff(garbage.read_bytes(), garbage) is None
    with pytest.raises(BadModel):
        fake.signature(str(convert(source, "half-written")), trust=False)


def test_a_misspelt_behaviour_is_refused(save, convert):
    with pytest.raises(BadModel, match="crahs"):
        convert(save(), "crahs")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("raise", ValueError),
        ("unsupported", Unsupported),
        ("invalid-output", InvalidOutput),
        ("missing-package", ModuleNotFoundError),
        ("memory-error", MemoryError),
        ("sys-exit", SystemExit),
    ],
)
def test_the_converter_can_fail_in_words(save, convert, fault, error):
    with pytest.raises(error):
        convert(save(), fault)
    with pytest.raises(error):
        convert(save(faults={"convert": [fault]}))


CONVERT_FAULTS = {
    "crash": Kind.CRASHED,
    "abort": Kind.CRASHED,
    "hang-with-family": Kind.TIMED_OUT,
    "hog-at-once": Kind.OUT_OF_MEMORY,
    "corrupt-reply": Kind.INVALID_OUTPUT,
    "missing-package": Kind.UNAVAILABLE,
    "unsupported": Kind.UNSUPPORTED,
}


def test_faults_at_convert_time_through_a_worker(save, tmp_path):
    source = save()
    context = {"signature": {}, "example": feed(), "calibration": {}, "trust": False}
    with Pool(folder=tmp_path / "pool", timeout=1.5, memory=1e9) as pool:
        for fault, kind in CONVERT_FAULTS.items():
            arguments = {
                "step": "fake-copy",
                "source": source,
                "out": str(tmp_path / f"{fault}.fake"),
                "options": {"misbehave": fault},
                "context": context,
            }
            outcome = pool.call(PYTHON, fake.__name__, "convert", arguments, stage=Stage.CONVERT)
            assert isinstance(outcome, Failure), fault
            assert (outcome.kind, outcome.stage) == (kind, Stage.CONVERT)
            if fault != "corrupt-reply":  # that one goes on to write a file, which the failure tells nobody to trust
                assert not os.path.lexists(arguments["out"])


def test_every_behaviour_has_one_meaning():
    """A name in two tables would do two things at once; only lies that a model and a result can both tell are shared."""
    assert not set(faults.PROCESS) & (set(faults.MODEL) | set(faults.RESULT) | set(faults.FILE))
    assert not set(faults.FILE) & (set(faults.MODEL) | set(faults.RESULT))

"""The ONNX framework on models made here and on real ones. Expected values are computed in NumPy, or recorded by others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueport.errors import UsageError
from trueport.frameworks import _onnx_run
from trueport.frameworks import onnx as framework
from trueport.frameworks._base import Unsupported
from trueport.outcome import Failure, Kind, Stage

MODULE = "trueport.frameworks.onnx"
HERE = [str(Path(__file__).parent)]


@pytest.fixture(scope="module")
def made(pool, env, tmp_path_factory):
    """made(name) -> path of a model of onnx_models.py, built once."""
    folder = tmp_path_factory.mktemp("onnx")

    def get(name: str) -> str:
        home = folder / name
        path = home / f"{name}.onnx"
        if not path.exists():
            home.mkdir()
            arguments = {"name": name, "out": str(path)}
            outcome = pool.call(env("onnx"), "onnx_models", "build", arguments, stage=Stage.LOAD, paths=HERE)
            assert not isinstance(outcome, Failure), outcome
        return str(path)

    return get


@pytest.fixture
def call(pool, env):
    """call(function, path, **arguments) -> Reply or Failure."""

    def do(function: str, path: str, **arguments):
        emit = arguments.pop("emit", False)
        outcome = pool.call(
            env("onnx"), MODULE, function, {"path": path, "trust": False, **arguments}, stage=Stage.RUN, emit=emit
        )
        return outcome if isinstance(outcome, Failure) else outcome.value

    return do


@pytest.fixture
def run(call):
    """run(path, inputs) -> outputs by name, or a Failure."""

    def do(path: str, inputs, *, precision: str = "float32", variant: str = "default"):
        reply = call("run", path, cases={"only": inputs}, precision=precision, variant=variant)
        return reply if isinstance(reply, Failure) else reply.value["only"]

    return do


def changed(pool, env, path: str, out: Path, edit: str) -> str:
    arguments = {"path": path, "out": str(out), "edit": edit}
    outcome = pool.call(env("onnx"), "onnx_models", "change", arguments, stage=Stage.LOAD, paths=HERE)
    assert not isinstance(outcome, Failure), outcome
    return str(out)


def samples(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Root mean square of the difference, relative to the first."""
    one, two = np.asarray(first, np.float64), np.asarray(second, np.float64)
    return float(np.sqrt(np.mean((one - two) ** 2)) / np.sqrt(np.mean(one**2)))


# -- sniffing ---------------------------------------------------------------------------------------------------------


def head(path: Path | str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(64 * 1024)


@pytest.mark.parametrize("name", ["residual", "old_style", "external", "with_function", "many"])
def test_a_model_is_known_by_its_bytes_whatever_its_suffix(made, name):
    assert framework.sniff(head(made(name)), Path("model.bin")) == "onnx"


def test_every_real_model_is_recognised_and_its_twins_in_other_formats_are_not(corpus):
    for path in sorted((corpus / "models").rglob("*")):
        if path.is_file():
            expected = "onnx" if path.suffix == ".onnx" else None
            assert framework.sniff(head(path), path) == expected, path.name


@pytest.mark.parametrize(
    "data",
    [
        b"just some text, not a model at all\n",
        b"\x08",
        b"\x08\x08",
        b"\x08\x08\x12\xff",  # a producer's name longer than the file
        b"PK\x03\x04" + bytes(60),
        b"\x80\x02}q\x00X\x05\x00\x00\x00state",
        b"\x1c\x00\x00\x00TFL3" + bytes(60),
        b"\x89HDF\r\n\x1a\n" + bytes(60),
        b"\x08\x01\x12\x04\x0a\x02\x12\x00" + bytes(16),  # a SavedModel's protobuf: a message where ONNX has a name
        b"\x08\x63\x12\x04abcd\x3a\x02\x0a\x00",  # IR version 99
        b"\x08\x08\x12\x04abcd\x4a\x02\x0a\x00",  # field 9 is none of ModelProto's
        b"\x08\x08\x12\x04abcd\x3a\x02\x08\x00",  # a graph that starts with a number
        bytes(100),
    ],
)
def test_other_bytes_are_not_claimed_even_under_the_right_suffix(data):
    assert framework.sniff(data, Path("model.onnx")) is None


def test_a_cut_model_is_still_recognised_so_that_loading_can_say_what_is_wrong(made):
    data = head(made("residual"))
    assert framework.sniff(data[: len(data) // 2], Path("x")) == "onnx"


# -- signature --------------------------------------------------------------------------------------------------------


def test_signature_gives_names_dtypes_and_symbolic_sizes(made, call):
    value = call("signature", made("many")).value
    assert value["inputs"] == [
        {"name": "a", "dtype": "float32", "shape": ["n", 3]},
        {"name": "b", "dtype": "int32", "shape": ["n", 3]},
        {"name": "text", "dtype": "str", "shape": [2]},
    ]
    assert [(item["name"], item["dtype"]) for item in value["outputs"]] == [
        ("sum", "float32"),
        ("best", "int64"),
        ("more", "bool"),
        ("echo", "str"),
    ]


def test_meta_says_who_made_it_and_what_is_in_it(made, call):
    meta = call("signature", made("residual")).value["meta"]
    assert (meta["opset"], meta["ir_version"], meta["producer"], meta["producer_version"]) == (17, 8, "tests", "1")
    assert meta["operators"] == {
        "Conv": 2, "BatchNormalization": 2, "Relu": 2, "Add": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1,
    }  # fmt: skip
    assert meta["parameters"] == 8 * 27 + 8 * 72 + 2 * 4 * 8 + 5 * 8 + 5
    assert meta["external_data"] == []


def test_initialisers_listed_as_inputs_are_no_inputs(made, call):
    value = call("signature", made("old_style")).value
    assert [item["name"] for item in value["inputs"]] == ["x"]
    assert call("graph", made("old_style")).value["inputs"] == ["x"]


def test_the_range_of_indices_comes_from_the_smallest_table_even_inside_a_branch(made, call):
    inputs = {item["name"]: item for item in call("signature", made("embedding")).value["inputs"]}
    assert (inputs["ids"]["minimum"], inputs["ids"]["maximum"]) == (0, 4)
    assert "maximum" not in inputs["pick"]  # it indexes data, not a table
    assert "maximum" not in inputs["data"]


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("dense", "float32"),
        ("dense_half", "float16"),
        ("qdq", "int8"),
        ("dynamic_int8", "int8-dynamic"),
        ("external", "float32"),
    ],
)
def test_the_declared_precision_is_read_from_the_graph(made, call, name, precision):
    assert call("signature", made(name)).value["meta"]["precision"] == precision


@pytest.mark.parametrize("name", ["sequence"])
def test_outputs_that_are_no_tensors_are_refused_by_name(made, call, name):
    outcome = call("signature", made(name))
    assert isinstance(outcome, Failure)
    assert outcome.kind is Kind.UNSUPPORTED
    assert "'both'" in outcome.message


# -- damaged, foreign and dangerous files ------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_cut_file_is_the_users_error(made, call, tmp_path, share):
    data = Path(made("residual")).read_bytes()
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UsageError, match="cut short or damaged"):
        call("signature", str(cut))


def test_a_file_without_a_graph_is_the_users_error(pool, env, made, call, tmp_path):
    with pytest.raises(UsageError, match="no ONNX graph"):
        call("signature", changed(pool, env, made("dense"), tmp_path / "x.onnx", "no-graph"))


@pytest.mark.parametrize("edit", ["new-opset", "new-ir"])
def test_a_model_newer_than_the_runtime_is_unsupported(pool, env, made, call, tmp_path, edit):
    outcome = call("signature", changed(pool, env, made("dense"), tmp_path / "x.onnx", edit))
    assert isinstance(outcome, Failure)
    assert outcome.kind is Kind.UNSUPPORTED
    assert "newer than this ONNX Runtime" in outcome.message


def test_a_custom_operator_is_unsupported_and_named(pool, env, made, call, tmp_path):
    outcome = call("signature", changed(pool, env, made("dense"), tmp_path / "x.onnx", "foreign-op"))
    assert isinstance(outcome, Failure)
    assert outcome.kind is Kind.UNSUPPORTED
    assert "my.company::Magic" in outcome.message


def test_external_data_are_found_beside_the_model(made, call, run):
    assert call("signature", made("external")).value["meta"]["external_data"] == ["weights.bin"]
    inputs = {"x": samples(2, 3, 6)}
    np.testing.assert_array_equal(run(made("external"), inputs)["y"], run(made("dense"), inputs)["y"])


def test_external_data_serve_every_function(made, call, run):
    path, inputs = made("external"), {"x": samples(2, 3, 6)}
    plain = run(made("dense"), inputs)["y"]
    assert distance(plain, run(path, inputs, variant="reference")["y"]) < 1e-6
    assert distance(plain, run(path, inputs, precision="float64")["y"]) < 1e-6
    assert 1e-4 < distance(plain, run(path, inputs, precision="int8")["y"]) < 0.1
    traced = call("trace", path, inputs=inputs, wanted=["y"], budget=2**20, emit=True).emitted
    np.testing.assert_array_equal(traced["y"], run(path, inputs, variant="no-optimization")["y"])
    assert set(call("parameters", path, emit=True).emitted) == {"w", "b", "v"}


def test_missing_cut_and_escaping_external_data_are_the_users_error(pool, env, made, call, tmp_path):
    model = Path(made("external"))
    (tmp_path / "sub").mkdir()
    copy = tmp_path / "sub" / "m.onnx"
    copy.write_bytes(model.read_bytes())
    with pytest.raises(UsageError, match=r"'weights\.bin', which is missing"):
        call("signature", str(copy))
    weights = (model.parent / "weights.bin").read_bytes()
    (tmp_path / "sub" / "weights.bin").write_bytes(weights[:-1])
    with pytest.raises(UsageError, match="cut short"):
        call("signature", str(copy))
    (tmp_path / "weights.bin").write_bytes(weights)
    escaping = changed(pool, env, str(model), tmp_path / "sub" / "e.onnx", "escape")
    with pytest.raises(UsageError, match="outside the model's folder"):
        call("signature", escaping)


def test_external_data_behind_a_link_out_of_the_folder_are_refused(made, call, tmp_path):
    model = Path(made("external"))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "m.onnx").write_bytes(model.read_bytes())
    (tmp_path / "secret").write_bytes((model.parent / "weights.bin").read_bytes())
    (tmp_path / "sub" / "weights.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(UsageError, match="outside the model's folder"):
        call("signature", str(tmp_path / "sub" / "m.onnx"))


# -- running ----------------------------------------------------------------------------------------------------------

VARIANTS = pytest.mark.parametrize("variant", framework.VARIANTS)


@VARIANTS
def test_outputs_of_every_dtype_equal_numpy(made, run, variant):
    a, b = samples(4, 2, 3), np.random.default_rng(1).integers(-2, 3, (4, 2, 3)).astype(np.int32)
    total = a + b.astype(np.float32)
    text = np.array([["ab", "ç"]] * 4)
    got = run(made("many"), {"a": a, "b": b, "text": text}, variant=variant)
    np.testing.assert_array_equal(got["sum"], total)
    np.testing.assert_array_equal(got["best"], np.argmax(total, axis=2))
    np.testing.assert_array_equal(got["more"], a > b)
    assert got["more"].dtype == bool
    np.testing.assert_array_equal(got["echo"], text)


@VARIANTS
def test_loops_and_branches_equal_numpy(made, run, variant):
    x = np.float32([[1, 2, 3], [-1, -2, -3]])
    got = run(made("branch"), {"x": x}, variant=variant)["y"]
    np.testing.assert_array_equal(got, np.stack([2 * x[0] * np.float32([1, 2, 3]), 2 * x[1] - 2]))
    state, bias = samples(2, 4), samples(2, 4, seed=1)
    got = run(made("loop"), {"x": state, "bias": bias}, variant=variant)["y"]
    for _ in range(3):
        state = state / 2 + 2 * bias
    np.testing.assert_allclose(got, state, rtol=1e-6, atol=1e-6)


@VARIANTS
def test_old_batch_normalisation_uses_the_stored_statistics_in_every_variant(made, call, run, variant):
    """onnx's own evaluator takes the batch's statistics below opset 14; ours replaces that kernel."""
    x = samples(2, 1, 2, 6, 6)
    weights = call("parameters", made("old_style"), emit=True).emitted
    padded = np.pad(x[:, 0], ((0, 0), (0, 0), (1, 1), (1, 1)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3)).astype(np.float64)
    h = np.einsum("rchwij,ocij->rohw", patches, weights["w"])
    shape = (1, -1, 1, 1)
    scale = weights["bn.scale"] / np.sqrt(weights["bn.var"] + 1e-5)
    expected = (h - weights["bn.mean"].reshape(shape)) * scale.reshape(shape) + weights["bn.bias"].reshape(shape)
    got = run(made("old_style"), {"x": x}, variant=variant)["y"][:, 0]
    assert distance(expected, got) < 1e-6  # a few roundings of float32, 6e-8 each


def test_wrong_statistics_would_have_shown(made, call, run):
    """The test above can fail: with the batch's statistics the result is off by more than a hundredth."""
    x = samples(2, 1, 2, 6, 6)
    traced = call("trace", made("old_style"), inputs={"x": x}, wanted=["h", "y"], budget=2**20, emit=True).emitted
    h = np.asarray(traced["h"], np.float64)[:, 0]
    weights = call("parameters", made("old_style"), emit=True).emitted
    shape = (1, -1, 1, 1)
    own = (h - h.mean((2, 3), keepdims=True)) / np.sqrt(h.var((2, 3), keepdims=True) + 1e-5)
    wrong = own * weights["bn.scale"].reshape(shape) + weights["bn.bias"].reshape(shape)
    assert distance(traced["y"][:, 0], wrong) > 0.01


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_recurrent_nets_agree_between_variants(made, run, name):
    inputs = {"x": samples(3, 6, 2, 4)}
    plain = run(made(name), inputs)
    for variant in framework.VARIANTS[1:]:
        assert distance(plain["h"], run(made(name), inputs, variant=variant)["h"]) < 1e-5
    exact = run(made(name), inputs, precision="float64")["h"]
    assert exact.dtype == np.float64
    assert 0 < distance(exact, plain["h"]) < 1e-5


@pytest.mark.parametrize(
    ("factor", "shift", "accepted"),
    [(1, 1e-4, True), (1, 0.5, False), (0, 0, False), (1.001, 0, True), (np.nan, 0, True)],
)
def test_a_grossly_different_second_opinion_is_no_measure_of_noise(factor, shift, accepted):
    """NaN everywhere on one side leaves nothing to compare: that is the verdict's business, not this check's."""
    expected = samples(2, 3, 4)
    got = expected * factor + shift
    if accepted:
        _onnx_run.check_reference({"y": expected}, {"y": got})
        return
    with pytest.raises(Unsupported, match="'y'"):
        _onnx_run.check_reference({"y": expected}, {"y": got})


def test_the_effort_is_counted_from_the_real_sizes(pool, env, made):
    outcome = pool.call(
        env("onnx"),
        MODULE,
        "_multiplications",
        {"path": made("residual"), "arrays": {"x": samples(2, 3, 3, 16, 16)}},
        stage=Stage.RUN,
    )
    each = 256 * 8 * 3 * 9 + 256 * 8 * 8 * 9 + 5 * 8
    assert outcome.value.value == 2 * 3 * each


def test_too_much_effort_is_refused_before_it_is_spent(pool, env, made, tmp_path):
    (tmp_path / "hurried.py").write_text(
        "from trueport.frameworks import _onnx_run, onnx\n"
        "def run(path, arrays):\n"
        "    kept, _onnx_run.MAX_MULTIPLICATIONS = _onnx_run.MAX_MULTIPLICATIONS, 1e3\n"
        "    try:\n"
        "        onnx.run(path, {'c': arrays}, precision='float64', variant='default', trust=False)\n"
        "    finally:\n"
        "        _onnx_run.MAX_MULTIPLICATIONS = kept\n"
    )
    arguments = {"path": made("residual"), "arrays": {"x": samples(2, 3, 3, 16, 16)}}
    outcome = pool.call(env("onnx"), "hurried", "run", arguments, stage=Stage.RUN, paths=[str(tmp_path)])
    assert isinstance(outcome, Failure)
    assert outcome.kind is Kind.UNSUPPORTED
    assert "give fewer samples" in outcome.message


def test_a_second_opinion_of_another_shape_or_with_other_labels_is_refused():
    labels = np.arange(20).reshape(2, 10)
    _onnx_run.check_reference({"y": labels}, {"y": np.where(labels == 3, 4, labels)})
    for wrong in (labels[:, :5], labels[:1], labels + 1):
        with pytest.raises(Unsupported):
            _onnx_run.check_reference({"y": labels}, {"y": wrong})


def test_dynamic_batch_sizes_give_each_sample_the_same(made, run):
    x = samples(6, 3, 16, 16)
    one_by_one = run(made("residual"), {"x": x[:, None]})["logits"][:, 0]
    together = run(made("residual"), {"x": x[None]})["logits"][0]
    assert distance(one_by_one, together) < 1e-5


def test_outputs_whose_shape_depends_on_the_data_come_as_a_list(made, run):
    x = np.float32([[1, -1, 1, -1, 1], [-1, -1, -1, -1, 5]])
    got = run(made("ragged"), {"x": x})["places"]
    assert [item.tolist() for item in got] == [[[0, 2, 4]], [[4]]]


def test_functions_stored_in_the_model_run(made, run):
    x = samples(2, 3)
    for precision in ("float32", "float64", "int8"):
        assert distance(3 * x, run(made("with_function"), {"x": x}, precision=precision)["y"]) < 0.02


def test_the_reference_evaluator_is_a_second_opinion_on_a_known_optimiser_bug(made, run):
    """Pad, then MaxPool, on negative data (CASES: R1): without its optimiser ONNX Runtime gives 0 on the rim."""
    x = -1 - np.abs(samples(1, 1, 2, 4, 4))
    right = run(made("pad_pool"), {"x": x}, variant="no-optimization")["y"]
    assert right[0, 0, :, 0].tolist() == [[0, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(right, run(made("pad_pool"), {"x": x}, variant="reference")["y"])
    assert not np.array_equal(right, run(made("pad_pool"), {"x": x}, variant="default")["y"]), (
        "ONNX Runtime has mended Pad_Fusion: say so where the variants are described"
    )


def test_a_missing_or_unknown_input_is_named(made, run):
    outcome = run(made("dense"), {"z": samples(1, 1, 6)})
    assert isinstance(outcome, Failure)
    assert "missing: ['x']" in outcome.message
    assert "unknown: ['z']" in outcome.message


def test_unknown_variants_and_precisions_are_unsupported(made, run):
    for wrong in ({"variant": "gpu"}, {"precision": "int4"}):
        outcome = run(made("dense"), {"x": samples(1, 1, 6)}, **wrong)
        assert isinstance(outcome, Failure)
        assert outcome.kind is Kind.UNSUPPORTED


def test_a_file_that_changes_is_loaded_anew(made, run, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(Path(made("with_function")).read_bytes())
    x = {"x": samples(1, 3)}
    first = run(str(path), x)["y"]
    path.write_bytes(Path(made("constants")).read_bytes())
    second = run(str(path), x)["y"]
    assert not np.array_equal(first, second)


# -- precisions -------------------------------------------------------------------------------------------------------


def exact_dense(weights, x) -> np.ndarray:
    w, b, v = (np.asarray(weights[name], np.float64) for name in ("w", "b", "v"))
    return np.maximum(x.astype(np.float64) @ w + b, 0) @ v


def test_float64_is_exact_where_float32_is_not(made, call, run):
    x = samples(3, 2, 6)
    exact = exact_dense(call("parameters", made("dense"), emit=True).emitted, x)
    got = run(made("dense"), {"x": x}, precision="float64")["y"]
    assert got.dtype == np.float64
    assert distance(exact, got) < 1e-14
    assert distance(exact, run(made("dense"), {"x": x})["y"]) > 1e-9


def test_float64_reaches_constants_casts_and_layer_normalisation(made, call, run):
    x = samples(2, 2, 6)
    gain = np.asarray(call("parameters", made("normalised"), emit=True).emitted["gain"], np.float64)
    wide = x.astype(np.float64)
    mean = wide.mean(-1, keepdims=True)
    s = (wide - mean) / np.sqrt(((wide - mean) ** 2).mean(-1, keepdims=True) + np.float64(np.float32(1e-5))) * gain
    got = run(made("normalised"), {"x": x}, precision="float64")["y"]
    assert np.abs(got - (s - np.trunc(s))).max() < 1e-12


def test_convolutions_in_float64_come_from_the_reference_evaluator(made, run):
    x = {"x": samples(2, 2, 3, 16, 16)}
    got = run(made("residual"), x, precision="float64")["logits"]
    assert got.dtype == np.float64
    assert 0 < distance(got, run(made("residual"), x)["logits"]) < 1e-5


def test_a_quantised_model_has_no_float64(made, run):
    outcome = run(made("qdq"), {"x": samples(1, 1, 6)}, precision="float64")
    assert isinstance(outcome, Failure)
    assert outcome.kind is Kind.UNSUPPORTED


def test_float16_rounds_the_weights_and_nothing_else(made, call, run):
    x = samples(3, 2, 6)
    weights = {
        name: array.astype(np.float16) for name, array in call("parameters", made("dense"), emit=True).emitted.items()
    }
    got = run(made("dense"), {"x": x}, precision="float16")["y"]
    assert distance(exact_dense(weights, x), got) < 1e-6
    assert distance(run(made("dense"), {"x": x})["y"], got) > 1e-5


def test_dynamic_int8_rounds_each_output_channel_to_its_own_grid(made, call, run):
    x = samples(3, 2, 6)
    weights = dict(call("parameters", made("dense"), emit=True).emitted)
    for name in ("w", "v"):
        scale = np.abs(weights[name]).max(axis=0) / 127
        weights[name] = np.round(weights[name] / scale) * scale
    got = run(made("dense"), {"x": x}, precision="int8-dynamic")["y"]
    assert distance(exact_dense(weights, x), got) < 1e-6
    assert distance(run(made("dense"), {"x": x})["y"], got) > 1e-4


def test_int8_puts_every_activation_on_a_grid_of_256_steps(made, run):
    got = run(made("dense"), {"x": samples(200, 2, 6)}, precision="int8")["y"]
    step = (got.max() - got.min()) / 255
    places = (got - got.min()) / step
    # The ends are rounded to the grid themselves, so the step seen here may be off by one part in 255.
    assert len(np.unique(got)) <= 257
    assert len(np.unique(got)) > 50
    assert np.isin(0.0, got)
    assert np.abs(places).max() <= 256


def test_the_int8_grid_belongs_to_its_case(made, call):
    """A probe with huge inputs must not make the grid of ordinary data coarse."""
    x = samples(8, 2, 6)
    alone = call("run", made("dense"), cases={"data": {"x": x}}, precision="int8", variant="default").value
    both = call(
        "run", made("dense"), cases={"data": {"x": x}, "probe": {"x": x * 1000}}, precision="int8", variant="default"
    ).value
    np.testing.assert_array_equal(alone["data"]["y"], both["data"]["y"])


@pytest.mark.parametrize("name", ["residual", "branch", "old_style", "lstm", "loop", "embedding"])
def test_coarser_arithmetic_costs_more(made, run, name):
    inputs = {
        "residual": {"x": samples(3, 2, 3, 16, 16)},
        "branch": {"x": samples(3, 3)},
        "old_style": {"x": samples(3, 1, 2, 6, 6)},
        "lstm": {"x": samples(3, 6, 2, 4)},
        "loop": {"x": samples(3, 4), "bias": samples(3, 4, seed=1)},
        "embedding": {
            "ids": np.int32([[0, 4], [1, 2]]),
            "flag": np.array([True, False]),
            "data": samples(2, 2, 9),
            "pick": np.int64([[1], [8]]),
        },
    }[name]
    plain = run(made(name), inputs)
    half, whole = (run(made(name), inputs, precision=precision) for precision in ("float16", "int8"))
    output = next(iter(plain))
    assert distance(plain[output], half[output]) < 2e-3  # float16 weights: 2**-11 each
    assert 0 < distance(plain[output], whole[output]) < 0.3
    assert distance(plain[output], half[output]) < distance(plain[output], whole[output])


# -- looking inside ---------------------------------------------------------------------------------------------------


def test_every_value_can_be_traced_and_tracing_changes_nothing(made, call, run):
    path, x = made("residual"), {"x": samples(3, 2, 3, 16, 16)}
    names = call("names", path).value
    assert names == ["h0", "n0", "r0", "h1", "n1", "sum", "r1", "pooled", "flat", "logits"]
    traced = call("trace", path, inputs=x, wanted=names, budget=2**30, emit=True).emitted
    np.testing.assert_array_equal(traced["logits"], run(path, x, variant="no-optimization")["logits"])
    np.testing.assert_array_equal(traced["r0"], np.maximum(traced["n0"], 0))
    np.testing.assert_array_equal(traced["sum"], traced["n1"] + traced["r0"])
    assert traced["h0"].shape == (3, 2, 8, 16, 16)


def test_values_inside_and_around_control_flow(made, call):
    x = {"x": samples(2, 3)}
    traced = call("trace", made("branch"), inputs=x, wanted=["double", "y"], budget=2**20, emit=True).emitted
    np.testing.assert_array_equal(traced["double"], 2 * x["x"])
    assert call("names", made("branch")).value == ["double", "total", "positive", "y"]


def test_sequences_on_the_way_are_left_out_of_the_names(made, call):
    assert call("names", made("sequence_inside")).value == ["r", "y"]


@pytest.mark.parametrize(("budget", "windows"), [(10**6, 1), (130_000, 2), (1000, 3)])
def test_windows_keep_to_the_budget(made, call, budget, windows):
    x = {"x": samples(2, 10000)}
    reply = call("trace", made("sizes"), inputs=x, wanted=["a", "b", "y"], budget=budget, emit=True)
    # a and b are 40 kB in each of two runs, and one run's results stand beside the stack: 120 kB each.
    assert reply.value["windows"] == windows
    np.testing.assert_array_equal(reply.emitted["b"], -np.maximum(x["x"], 0))
    np.testing.assert_array_equal(reply.emitted["a"], np.maximum(x["x"], 0))


def test_values_whose_shape_differs_between_runs_are_reported_not_emitted(made, call):
    x = {"x": np.float32([[1, -1, 1, -1, 1], [-1, -1, -1, -1, 5]])}
    reply = call("trace", made("ragged"), inputs=x, wanted=["r", "places"], budget=2**20, emit=True)
    assert reply.value["skipped"] == ["places"]
    assert set(reply.emitted) == {"r"}


def test_an_unknown_value_is_refused(made, call):
    outcome = call("trace", made("dense"), inputs={"x": samples(1, 1, 6)}, wanted=["nope"], budget=2**20, emit=True)
    assert isinstance(outcome, Failure)
    assert "'nope'" in outcome.message


def test_the_graph_names_its_nodes_and_counts_captures_as_inputs(made, call):
    graph = call("graph", made("branch")).value
    choice = next(node for node in graph["nodes"] if node["op"] == "If")
    assert choice["name"] == "choice"
    assert choice["inputs"][0] == "positive"
    assert set(choice["inputs"][1:]) == {"double", "w", "two"}
    assert graph["nodes"][0]["name"] == "double"  # nameless: its first output
    assert choice["attributes"]["then_branch"] == {"graph": "yes", "nodes": 1}
    loop = next(node for node in call("graph", made("loop")).value["nodes"] if node["op"] == "Loop")
    assert loop["inputs"] == ["count", "", "x", "half", "shift"]


def test_omitted_inputs_keep_their_place_and_omitted_outputs_vanish(made, call):
    cell = call("graph", made("gru")).value["nodes"][0]
    assert cell["inputs"] == ["x", "w", "r", "b"]
    assert cell["outputs"] == ["h"]
    assert cell["attributes"] == {"hidden_size": 5, "linear_before_reset": 1}
    clip = call("graph", made("constants")).value["nodes"][-1]
    assert clip["inputs"] == ["b", "", "top"]


def test_constants_are_described_and_emitted_wherever_they_are_kept(made, call, run):
    described = call("graph", made("constants")).value["constants"]
    assert described == {
        "shift": {"dtype": "float32", "shape": []},
        "factor": {"dtype": "float32", "shape": [3]},
        "top": {"dtype": "float32", "shape": []},
    }
    emitted = call("parameters", made("constants"), emit=True).emitted
    assert emitted["shift"] == 1.5
    assert emitted["factor"].tolist() == [1, 2, 3]
    x = samples(2, 3)
    np.testing.assert_allclose(run(made("constants"), {"x": x})["y"], (x + 1.5) * np.float32([1, 2, 3]), rtol=1e-6)
    nodes = call("graph", made("constants")).value["nodes"]
    assert nodes[1]["attributes"]["value"] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("name", ["residual", "two_conv_bn", "gru", "old_style"])
def test_graph_parameters_and_trace_use_the_same_names(made, call, name):
    graph = call("graph", made(name)).value
    assert set(graph["constants"]) == set(call("parameters", made(name), emit=True).emitted)
    known = {*graph["inputs"], *graph["constants"], *call("names", made(name)).value, ""}
    for node in graph["nodes"]:
        assert set(node["inputs"]) <= known
        assert set(node["outputs"]) <= known


# -- real models ------------------------------------------------------------------------------------------------------


def test_mnist_reproduces_its_recorded_outputs(pool, env, corpus, run):
    folder = corpus / "models" / "mnist_cnn" / "mnist_8"
    for index in range(3):
        data = {}
        for what in ("input_0", "output_0"):
            path = str(folder / f"test_data_set_{index}" / f"{what}.pb")
            outcome = pool.call(env("onnx"), "onnx_models", "fetch", {"path": path}, stage=Stage.LOAD, paths=HERE)
            data[what] = np.asarray(outcome.value.value)
        for variant in framework.VARIANTS:
            got = run(str(folder / "model.onnx"), {"Input3": data["input_0"][None]}, variant=variant)
            # Another program recorded them in float32: logits of up to 1e4, so a few units of 2**-24 relative.
            assert distance(data["output_0"], got["Plus214_Output_0"][0]) < 2e-6


SLOW = pytest.mark.slow  # 243 activations of up to 13 MB each
REAL = {
    "angle_net/angle_net.onnx": ({"input": (1, 3, 32, 192)}, 1e-5),
    "dtln/model_1.onnx": ({"input_2": (1, 1, 257), "input_3": (1, 2, 128, 2)}, 1e-5),
    "dtln/model_2.onnx": ({"input_4": (1, 1, 512), "input_5": (1, 2, 128, 2)}, 1e-5),
    "silero_vad/silero_vad.onnx": ({"input": (1, 576), "state": (2, 1, 128), "sr": ()}, 1e-4),
    "silero_vad/silero_vad_16k_op15.onnx": ({"input": (1, 576), "state": (2, 1, 128), "sr": ()}, 1e-4),
    "sinet_portrait/SINet.onnx": ({"data": (1, 3, 320, 320)}, 1e-4),
    "yunet/yunet_n_dynamic.onnx": ({"input": (1, 3, 64, 96)}, 1e-5),
}
"""Model -> input shapes, and what float32 may differ from float64 by, relative to the largest value: ten times what was seen."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW if "SINet" in name else ()) for name in REAL])
def test_real_models_describe_run_and_show_themselves(corpus, call, run, name):
    shapes, bound = REAL[name]
    path = str(corpus / "models" / name)
    inputs = {
        key: np.full((2,), 16000, np.int64) if key == "sr" else np.abs(samples(2, *shape))
        for key, shape in shapes.items()
    }
    signature = call("signature", path).value
    assert [item["name"] for item in signature["inputs"]] == list(shapes)
    plain = run(path, inputs)
    exact = run(path, inputs, precision="float64")
    names = call("names", path).value
    traced = call("trace", path, inputs=inputs, wanted=names, budget=2**28, emit=True)
    assert traced.value["skipped"] == []
    graph = call("graph", path).value
    assert set(graph["outputs"]) <= set(names)
    unoptimised = run(path, inputs, variant="no-optimization")
    for output, value in plain.items():
        largest = np.abs(exact[output]).max()
        assert np.abs(value - exact[output]).max() <= bound * largest + 1e-5
        np.testing.assert_array_equal(traced.emitted[output], unoptimised[output])


@pytest.mark.slow
def test_a_model_of_more_than_two_gigabytes_runs_from_its_path(pool, env, call, run, tmp_path):
    path = str(tmp_path / "huge.onnx")
    arguments = {"out": path, "width": 23_500}
    outcome = pool.call(env("onnx"), "onnx_models", "build_huge", arguments, stage=Stage.LOAD, paths=HERE)
    assert not isinstance(outcome, Failure), outcome
    assert (tmp_path / "huge.data").stat().st_size > 2**31
    x = {"x": samples(1, 1, 23_500)}
    assert call("signature", path).value["meta"]["parameters"] == 23_500**2
    # The weights are zero but for the first row, which is minus one.
    np.testing.assert_array_equal(run(path, x)["y"], np.broadcast_to(x["x"][..., :1], (1, 1, 23_500)))
    traced = call("trace", path, inputs=x, wanted=["h", "y"], budget=2**20, emit=True).emitted
    np.testing.assert_array_equal(traced["y"], -traced["h"])


@pytest.mark.slow
def test_style_transfer_runs_and_names_what_the_reference_lacks(corpus, run):
    path = str(corpus / "models" / "candy_style" / "candy.onnx")
    x = {"inputImage": np.random.default_rng(0).uniform(0, 255, (1, 1, 3, 720, 720)).astype(np.float32)}
    assert distance(run(path, x)["outputImage"], run(path, x, variant="no-optimization")["outputImage"]) < 1e-3
    outcome = run(path, x, variant="reference")
    assert isinstance(outcome, Failure)
    assert outcome.kind is Kind.UNSUPPORTED
    assert "ImageScaler" in outcome.message

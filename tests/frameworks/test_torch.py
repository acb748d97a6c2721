"""The PyTorch framework file: every function of the contract, on models of many architectures and on real weights."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from trueport.errors import UntrustedError, UsageError
from trueport.frameworks import torch as framework
from trueport.outcome import Failure, Kind, Stage

HERE = str(Path(__file__).parent)
ZOO = ("residual", "depthwise", "lstm", "gru", "encoder", "mixed")
SEED = 3


class Torch:
    """Calls into the torch toolchain."""

    def __init__(self, pool, python, folder):
        self.pool, self.python, self.folder = pool, python, folder
        self.saved = {}

    def call(self, function, emit=False, **arguments):
        outcome = self.pool.call(
            self.python,
            "trueport.frameworks.torch",
            function,
            arguments,
            stage=Stage.RUN,
            emit=emit,
            paths=[HERE],
        )
        if isinstance(outcome, Failure):
            return outcome
        return (outcome.value.value, outcome.value.emitted) if emit else outcome.value.value

    def zoo(self, function, **arguments):
        outcome = self.pool.call(self.python, "torch_models", function, arguments, stage=Stage.RUN, paths=[HERE])
        assert not isinstance(outcome, Failure), outcome
        return outcome.value.value

    def model(self, kind):
        if kind not in self.saved:
            self.saved[kind] = self.zoo("save", kind=kind, folder=str(self.folder), seed=SEED)
        return self.saved[kind]

    def odd(self, kind):
        if kind not in self.saved:
            self.saved[kind] = self.zoo("save_odd", kind=kind, folder=str(self.folder))
        return self.saved[kind]

    def run(self, path, feeds, precision="float32", variant="default"):
        result = self.call("run", path=path, cases={"a": feeds}, precision=precision, variant=variant, trust=False)
        return result if isinstance(result, Failure) else result["a"]


@pytest.fixture(scope="module")
def torch(pool, env, tmp_path_factory):
    return Torch(pool, env("torch"), tmp_path_factory.mktemp("torch"))


def feeds_of(torch, kind, batch=2, runs=3):
    return torch.zoo("inputs", kind=kind, seed=SEED, batch=batch, runs=runs)


# ---- telling files apart ----


def head(path):
    with Path(path).open("rb") as file:
        return file.read(64 * 1024)


def test_the_zoo_is_what_the_tests_run(torch):
    assert tuple(torch.zoo("kinds")) == ZOO


def test_sniff_tells_programs_scripts_and_checkpoints_apart(torch, tmp_path):
    paths = torch.model("residual")
    for form, path in paths.items():
        renamed = tmp_path / f"{form}.bin"
        renamed.write_bytes(Path(path).read_bytes())
        assert framework.sniff(head(renamed), renamed) == form
        assert framework.checkpoint_kind(head(renamed), renamed) is None
    for form, kind in {"plain": "zip", "module": "zip", "safetensors": "safetensors"}.items():
        path = tmp_path / form
        torch.zoo("save_checkpoint", path=str(path), kind="residual", seed=SEED, form=form)
        assert framework.sniff(head(path), path) is None
        assert framework.checkpoint_kind(head(path), path) == kind


def test_sniff_leaves_other_files_alone(tmp_path):
    archive = tmp_path / "model.keras"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("config.json", "{}")
        file.writestr("metadata.json", "{}")
    for name, data in {"a": b"", "b": b"PK\x03\x04", "c": b"\x80\x04}.", "d": b"TFL3" * 40}.items():
        (tmp_path / name).write_bytes(data)
    for path in tmp_path.iterdir():
        assert framework.sniff(head(path), path) is None, path
        assert framework.checkpoint_kind(head(path), path) is None, path


def test_a_real_checkpoint_is_known_for_one(corpus):
    for path in (corpus / "models" / "resnet_cifar").glob("*.th"):
        assert framework.sniff(head(path), path) is None
        assert framework.checkpoint_kind(head(path), path) is not None
    script = corpus / "models" / "silero_vad" / "silero_vad.jit"
    assert framework.sniff(head(script), script) == "torchscript"


def test_a_checkpoint_given_as_a_model_says_what_to_do(torch, tmp_path):
    path = tmp_path / "w.pth"
    torch.zoo("save_checkpoint", path=str(path), kind="residual", seed=SEED, form="plain")
    with pytest.raises(UsageError, match=r"package\.module:factory.*--checkpoint"):
        torch.call("signature", path=str(path), trust=False)


@pytest.mark.parametrize(("form", "keep"), [("pytorch", 0.9), ("pytorch", 0.3), ("torchscript", 0.9)])
def test_a_truncated_file_is_the_users_fault_and_says_so(torch, tmp_path, form, keep):
    data = Path(torch.model("residual")[form]).read_bytes()
    path = tmp_path / "cut.pt2"
    path.write_bytes(data[: int(len(data) * keep)])
    assert framework.sniff(head(path), path) == form
    with pytest.raises(UsageError, match="truncated or damaged"):
        torch.call("signature", path=str(path), trust=False)


def test_a_damaged_program_is_the_users_fault(torch, tmp_path):
    path = tmp_path / "bad.pt2"
    with zipfile.ZipFile(torch.model("residual")["pytorch"]) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith("models/model.json"):
                data = data.replace(b'"inputs"', b'"unputs"')
            target.writestr(entry.filename, data)
    with pytest.raises(UsageError, match="cannot be read"):
        torch.call("signature", path=str(path), trust=True)


def rewritten(torch, path, change):
    """A copy of an honest program with its JSON changed by `change` (text -> text)."""
    with zipfile.ZipFile(torch.model("residual")["pytorch"]) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith("models/model.json"):
                data = change(data.decode()).encode()
            target.writestr(entry.filename, data)
    return str(path)


HOSTILE = {
    "expression": lambda text: text.replace("Symbol('s", "print('x') or Symbol('s"),
    "dunder": lambda text: text.replace("Symbol('s", "().__class__ and Symbol('s"),
    "operator": lambda text: text.replace("torch.ops.aten.relu.default", "torch.serialization.os.system"),
    "library": lambda text: text.replace("torch.ops.aten.relu.default", "torch.ops.load_library"),
    "getter": lambda text: text.replace("torch.ops.aten.relu.default", "_operator.attrgetter"),
    "alias": lambda text: text.replace("torch.ops.aten.relu.default", "torchx.os.system"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_program_that_would_run_code_needs_trust(torch, tmp_path, kind):
    honest = Path(torch.model("residual")["pytorch"])
    path = rewritten(torch, tmp_path / "hostile.pt2", HOSTILE[kind])
    with zipfile.ZipFile(path) as bad, zipfile.ZipFile(honest) as good:
        name = next(name for name in good.namelist() if name.endswith("models/model.json"))
        assert bad.read(name) != good.read(name)
    with pytest.raises(UntrustedError, match="can run code"):
        torch.call("signature", path=path, trust=False)


def test_pickled_parts_need_trust(torch, tmp_path):
    path = tmp_path / "pickle.pt2"
    with zipfile.ZipFile(torch.model("residual")["pytorch"]) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith("weights_config.json"):
                data = data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
                assert data != source.read(entry)
            target.writestr(entry.filename, data)
    with pytest.raises(UntrustedError, match="pickles"):
        torch.call("signature", path=str(path), trust=False)


def test_a_program_of_another_version_names_it_and_the_cure(torch, tmp_path):
    def older(text):
        return text.replace('"torch_version": "2.', '"torch_version": "1.').replace('"inputs"', '"unputs"')

    failure = torch.call("signature", path=rewritten(torch, tmp_path / "old.pt2", older), trust=True)
    assert isinstance(failure, Failure)
    assert failure.kind is Kind.UNSUPPORTED
    assert "belongs to its torch version" in failure.message
    assert "--with torch==1." in failure.message


# ---- signature ----


def test_signature_of_several_inputs_and_outputs(torch):
    signature = torch.call("signature", path=torch.model("mixed")["pytorch"], trust=False)
    features, words, gate = signature["inputs"]
    batch = features["shape"][0]
    assert isinstance(batch, str)
    assert [spec["name"] for spec in (features, words, gate)] == ["features", "words", "gate"]
    assert features["shape"] == [batch, 5]
    assert words == {"name": "words", "dtype": "int64", "shape": [batch, 3], "minimum": 0, "maximum": 10}
    assert gate["dtype"] == "float32"
    assert [spec["name"] for spec in signature["outputs"]] == ["output_0", "output_1", "output_2"]
    assert signature["outputs"][2]["shape"] == [batch]
    assert signature["meta"]["parameters"] == 11 * 6 + 5 * 6 + 6 + 6 * 6 + 6 + 6 + 6
    assert signature["meta"]["operators"]["aten.linear"] == 2
    assert signature["meta"]["constraints"][batch] == [1, None]
    assert signature["meta"]["precision"] == "float32"
    assert signature["meta"]["torch"][0].isdigit()


@pytest.mark.parametrize("form", ["pytorch", "torchscript"])
def test_outputs_that_a_model_returns_by_name_keep_it(torch, form):
    signature = torch.call("signature", path=torch.model("encoder")[form], trust=False)
    assert [spec["name"] for spec in signature["outputs"]] == ["logits", "hidden"]
    (tokens,) = signature["inputs"]
    assert (tokens["dtype"], tokens["minimum"], tokens["maximum"]) == ("int64", 0, 39)


def test_signature_of_torchscript_knows_what_the_file_knows(torch):
    signature = torch.call("signature", path=torch.model("mixed")["torchscript"], trust=False)
    assert [spec["shape"] for spec in signature["inputs"]] == [["batch", 5], ["batch", 3], ["batch", 6]]
    assert [spec["dtype"] for spec in signature["inputs"]] == ["float32", "int64", "float32"]
    assert signature["meta"]["example_shapes"]["words"] == [2, 3]
    assert [spec["shape"] for spec in signature["outputs"]] == [["batch", 6], ["batch", 6], ["batch"]]
    fixed = torch.call("signature", path=torch.odd("fixed")["torchscript"], trust=False)
    assert [spec["shape"] for spec in (*fixed["inputs"], *fixed["outputs"])] == [[2, 3], [6]]


# ---- run ----


@pytest.mark.parametrize("form", ["pytorch", "torchscript"])
@pytest.mark.parametrize("kind", ZOO)
def test_run_gives_what_the_module_gives(torch, kind, form):
    feeds = feeds_of(torch, kind)
    expected = torch.zoo("reference", kind=kind, seed=SEED, feeds=feeds)
    got = torch.run(torch.model(kind)[form], feeds)
    assert len(got) == len(expected)
    for value, reference in zip(got.values(), expected, strict=True):
        assert value.dtype == reference.dtype
        np.testing.assert_allclose(value, reference, rtol=0, atol=2e-6)  # same kernels; threads may split sums


@pytest.mark.parametrize("batch", [1, 5])
def test_an_open_batch_axis_takes_other_sizes(torch, batch):
    feeds = feeds_of(torch, "residual", batch=batch, runs=2)
    (value,) = torch.run(torch.model("residual")["pytorch"], feeds).values()
    assert value.shape == (2, batch, 10)


@pytest.mark.parametrize("form", ["pytorch", "torchscript"])
@pytest.mark.parametrize("kind", ZOO)
def test_float64_is_float64_all_the_way(torch, kind, form):
    feeds = feeds_of(torch, kind)
    expected = torch.zoo("reference", kind=kind, seed=SEED, feeds=feeds, double=True)
    got = torch.run(torch.model(kind)[form], feeds, precision="float64")
    if isinstance(got, Failure):  # a list of weights inside a TorchScript constant cannot be widened
        assert (kind, form, got.kind) in {(k, "torchscript", Kind.UNSUPPORTED) for k in ("lstm", "gru")}
        return
    for value, reference in zip(got.values(), expected, strict=True):
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, reference, rtol=0, atol=1e-13)  # float32 anywhere would leave 1e-8


@pytest.mark.parametrize("form", ["pytorch", "torchscript"])
def test_float64_rewrites_casts_and_constants_inside(torch, form):
    x = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
    path = torch.odd("casts")[form]
    (single,) = torch.run(path, {"x": x}).values()
    (double,) = torch.run(path, {"x": x}, precision="float64").values()
    _, parameters = torch.call("parameters", emit=True, path=path, trust=False)
    weight = np.asarray(parameters["weight"], np.float64)
    constant = np.array([0.1, 0.2, 0.3, 0.4], np.float32).astype(np.float64)  # the file holds float32 constants
    expected = x.astype(np.float64) @ weight / 3 + constant + np.arange(4)
    assert double.dtype == np.float64
    np.testing.assert_allclose(double, expected, rtol=0, atol=1e-14)
    assert np.abs(single - expected).max() > 1e-9  # so the test would notice float32 arithmetic


@pytest.mark.parametrize("variant", framework.VARIANTS)
def test_variants_agree_to_rounding(torch, variant):
    feeds = feeds_of(torch, "residual")
    expected = torch.zoo("reference", kind="residual", seed=SEED, feeds=feeds, double=True)
    (value,) = torch.run(torch.model("residual")["pytorch"], feeds, variant=variant).values()
    np.testing.assert_allclose(value, expected[0], rtol=0, atol=1e-5)


def test_simulated_precisions_are_as_coarse_as_they_say(torch):
    feeds = feeds_of(torch, "residual", batch=8)
    path = torch.model("residual")["pytorch"]
    exact = torch.run(path, feeds)["output_0"]
    spread = exact.std()
    error = {
        precision: np.sqrt(np.mean((torch.run(path, feeds, precision=precision)["output_0"] - exact) ** 2)) / spread
        for precision in ("float16", "int8-dynamic", "int8")
    }
    assert 1e-5 < error["float16"] < 5e-3
    assert error["float16"] < error["int8-dynamic"] < 0.2
    assert error["int8-dynamic"] < error["int8"] < 0.5


def unit_feeds():
    """Unit vectors and a zero vector as features, and a gate so large that its sigmoid is one."""
    features = np.concatenate([np.eye(5, dtype=np.float32), np.zeros((1, 5), np.float32)])[None]
    return {
        "features": features,
        "words": np.zeros((1, 6, 3), np.int64),
        "gate": np.full((1, 6, 6), 50, np.float32),
    }


@pytest.mark.parametrize("precision", ["float64", "int8-dynamic"])
def test_int8_weights_lie_on_a_grid_of_127_steps_per_channel(torch, precision):
    value = np.asarray(
        torch.run(torch.model("mixed")["pytorch"], unit_feeds(), precision=precision)["output_1"], np.float64
    )
    # output_1 is BatchNorm(W e_i + c): differences to the zero vector's row are the weights times a factor per channel.
    weights = value[0, :5] - value[0, 5]
    steps = weights / np.abs(weights).max(axis=0) * 127
    off = np.abs(steps - np.round(steps)).max()
    if precision == "float64":
        assert off > 0.2  # the stored weights lie on no such grid
    else:
        assert off < 2e-3  # float32 rounding of values around one


def test_a_traced_value_is_what_the_operator_gives(torch):
    path = torch.model("mixed")["pytorch"]
    _, values = torch.call(
        "trace", emit=True, path=path, inputs=unit_feeds(), wanted=["linear"], budget=1 << 20, trust=False
    )
    _, parameters = torch.call("parameters", emit=True, path=path, trust=False)
    weight, bias = np.asarray(parameters["left.weight"]), np.asarray(parameters["left.bias"])
    expected = unit_feeds()["features"][0] @ weight.T + bias
    np.testing.assert_allclose(np.asarray(values["linear"])[0], expected, rtol=0, atol=1e-6)


def test_wrong_feeds_name_the_input(torch):
    path = torch.model("mixed")["pytorch"]
    good = feeds_of(torch, "mixed")
    bad = {
        "'words' takes int64, the feed is int32": {**good, "words": good["words"].astype(np.int32)},
        "'features' takes float32, the feed is float64": {**good, "features": good["features"].astype(np.float64)},
        "'gate' has shape": {**good, "gate": good["gate"][..., :5]},
        "missing: \\['gate'\\]": {"features": good["features"], "words": good["words"]},
        "'words' has shape .* one run of the feed has \\[1, 3\\]": {**good, "words": good["words"][:, :1]},
        "different numbers of runs": {**good, "gate": good["gate"][:1]},
    }
    for message, feeds in bad.items():
        failure = torch.run(path, feeds)
        assert isinstance(failure, Failure), message
        assert failure.kind is Kind.RAISED
        assert re.search(message, failure.message), failure.message


def test_unknown_precision_and_variant(torch):
    path, feeds = torch.model("residual")["pytorch"], feeds_of(torch, "residual")
    assert torch.run(path, feeds, precision="int4").kind is Kind.UNSUPPORTED
    assert "fast" in torch.run(path, feeds, variant="fast").message


@pytest.mark.parametrize("form", ["pytorch", "torchscript"])
def test_every_run_begins_from_the_stored_state(torch, form, tmp_path):
    path = torch.odd("stateful")["pytorch"]
    if form == "torchscript":
        path = str(tmp_path / "state.pt")
        torch.zoo("scripted_state", path=path)
    x = np.zeros((3, 2, 3), np.float32)
    for _ in range(2):
        (value,) = torch.run(path, {"x": x}).values()
        np.testing.assert_array_equal(value, np.ones((3, 2, 3)))


def test_outputs_that_repeat_or_pass_an_input_through(torch):
    x = np.random.default_rng(0).normal(size=(2, 2, 3)).astype(np.float32)
    path = torch.odd("twice")["pytorch"]
    got = torch.run(path, {"x": x})
    np.testing.assert_array_equal(got["output_0"], np.maximum(x, 0))
    np.testing.assert_array_equal(got["output_1"], x)
    np.testing.assert_array_equal(got["output_2"], np.maximum(x, 0))
    assert consistent(torch.call("graph", path=path, trust=False))["outputs"] == list(got)
    np.testing.assert_array_equal(torch.run(torch.odd("identity")["pytorch"], {"x": x})["output_0"], x)


# ---- looking inside ----


def consistent(graph):
    """Every value that a node reads was made before it."""
    known = {*graph["inputs"], *graph["constants"]}
    for node in graph["nodes"]:
        assert set(node["inputs"]) <= known, (node, set(node["inputs"]) - known)
        assert not known & set(node["outputs"]), node
        known |= set(node["outputs"])
    assert set(graph["outputs"]) <= known
    return graph


@pytest.mark.parametrize("kind", ZOO)
def test_graph_and_trace_agree(torch, kind):
    path = torch.model(kind)["pytorch"]
    graph = consistent(torch.call("graph", path=path, trust=False))
    names = torch.call("names", path=path, trust=False)
    made = [name for node in graph["nodes"] for name in node["outputs"]]
    assert set(names) <= set(made)
    assert set(graph["outputs"]) <= set(names)
    feeds = feeds_of(torch, kind)
    about, values = torch.call("trace", emit=True, path=path, inputs=feeds, wanted=names, budget=1 << 16, trust=False)
    assert about["skipped"] == {}
    assert list(values) == names
    plain = torch.run(path, feeds)
    for name, value in plain.items():
        np.testing.assert_array_equal(values[name], value)  # looking inside changes nothing


def test_trace_in_windows_gives_the_same_as_at_once(torch):
    path, feeds = torch.model("residual")["pytorch"], feeds_of(torch, "residual")
    names = torch.call("names", path=path, trust=False)
    few, one = torch.call("trace", emit=True, path=path, inputs=feeds, wanted=names, budget=1, trust=False)
    all_, many = torch.call("trace", emit=True, path=path, inputs=feeds, wanted=names, budget=1 << 30, trust=False)
    assert few["windows"] == len(names)
    assert all_["windows"] == 1
    for name in names:
        np.testing.assert_array_equal(one[name], many[name])


def test_trace_says_what_it_cannot_give(torch):
    path, feeds = torch.model("residual")["pytorch"], feeds_of(torch, "residual")
    about, values = torch.call(
        "trace", emit=True, path=path, inputs=feeds, wanted=["nothing", "output_0"], budget=1 << 20, trust=False
    )
    assert list(about["skipped"]) == ["nothing"]
    assert list(values) == ["output_0"]


def test_operators_with_several_outputs_keep_their_users(torch):
    graph = torch.call("graph", path=torch.model("encoder")["pytorch"], trust=False)
    split = next(node for node in graph["nodes"] if node["native_op"] == "aten.chunk.default")
    assert split["outputs"] == [f"{split['name']}#{i}" for i in range(3)]
    assert split["op"] == "Split"
    users = {name for node in graph["nodes"] for name in node["inputs"]}
    assert set(split["outputs"]) <= users
    assert not any("getitem" in node["native_op"] for node in graph["nodes"])


def test_graph_speaks_onnx_and_keeps_attributes_and_constants(torch):
    graph = torch.call("graph", path=torch.model("residual")["pytorch"], trust=False)
    ops = [node["op"] for node in graph["nodes"]]
    assert (ops.count("Conv"), ops.count("BatchNormalization"), ops.count("Gemm")) == (5, 4, 1)
    first = graph["nodes"][0]
    assert first["inputs"] == ["image", "stem.0.weight"]
    assert first["attributes"]["pads"] == [1, 1, 1, 1]
    assert graph["constants"]["b.1.running_mean"] == {"dtype": "float32", "shape": [12]}


@pytest.mark.parametrize("form", ["pytorch", "torchscript"])
def test_parameters_are_the_modules_own(torch, form, tmp_path):
    path = torch.model("mixed")[form]
    about, values = torch.call("parameters", emit=True, path=path, trust=False)
    graph = torch.call("graph", path=path, trust=False)
    assert about["count"] == len(values)
    assert set(values) == set(graph["constants"])
    assert values["words.weight"].shape == (11, 6)
    # The statistics come from a data pass, so they are not the initial zeros and ones.
    assert np.abs(np.asarray(values["norm.running_mean"])).min() > 1e-4
    assert np.abs(np.asarray(values["norm.running_var"]) - 1).min() > 1e-3


def test_torchscript_shows_its_inlined_graph_and_traces_its_outputs(torch):
    path = torch.model("residual")["torchscript"]
    graph = torch.call("graph", path=path, trust=False)
    assert sum(node["op"] == "Conv" for node in graph["nodes"]) == 5
    assert graph["nodes"][0]["inputs"][:2] == ["image", "stem.0.weight"]
    assert graph["outputs"] == ["output_0"]
    names = torch.call("names", path=path, trust=False)
    feeds = feeds_of(torch, "residual")
    _, values = torch.call("trace", emit=True, path=path, inputs=feeds, wanted=names, budget=1 << 20, trust=False)
    np.testing.assert_array_equal(values["output_0"], torch.run(path, feeds)["output_0"])


# ---- module:factory and a checkpoint ----


def materialise(torch, folder, factory, *, checkpoint=None, example=None, trust=True):
    return torch.call(
        "materialise",
        factory=f"torch_models:{factory}",
        checkpoint=checkpoint,
        example=example or {},
        out=str(folder / "model.pt2"),
        paths=[HERE],
        trust=trust,
    )


def test_a_factory_needs_trust(torch, tmp_path):
    with pytest.raises(UntrustedError, match="--trust"):
        materialise(torch, tmp_path, "encoder", trust=False)


def test_a_factory_with_its_own_example_is_exported_with_an_open_batch(torch, tmp_path):
    signature = materialise(torch, tmp_path, "encoder")
    assert signature["meta"]["notes"] == []
    path = signature["meta"]["path"]
    assert path == str(tmp_path / "model.pt2")
    assert isinstance(signature["inputs"][0]["shape"][0], str)
    tokens = np.arange(24, dtype=np.int64).reshape(1, 3, 8)
    got = torch.run(path, {"tokens": tokens})
    expected = torch.zoo("reference", kind="encoder", seed=5, feeds={"tokens": tokens})
    np.testing.assert_allclose(got["logits"], expected[0], rtol=0, atol=2e-6)
    assert [item.name for item in tmp_path.iterdir()] == ["model.pt2"]  # nothing half-written is left


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("form", ["plain", "wrapped", "module", "safetensors"])
def test_checkpoints_of_every_kind(torch, tmp_path, form, by_name):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    torch.zoo("save_checkpoint", path=str(path), kind="mixed", seed=9, form=form)
    feeds = torch.zoo("inputs", kind="mixed", seed=9, batch=2, runs=1)
    example = {name: np.asarray(value)[0] for name, value in feeds.items()}
    signature = materialise(
        torch, tmp_path, "mixed", checkpoint=str(path), example=example if by_name else list(example.values())
    )
    got = torch.run(signature["meta"]["path"], feeds)
    expected = torch.zoo("reference", kind="mixed", seed=9, feeds=feeds)  # the factory's own seed is another
    np.testing.assert_allclose(got["output_0"], expected[0], rtol=0, atol=2e-6)


def test_a_checkpoint_that_does_not_fit_names_the_keys(torch, tmp_path):
    path = tmp_path / "w.pth"
    torch.zoo("save_checkpoint", path=str(path), kind="encoder", seed=1, form="short")
    with pytest.raises(UsageError, match=r"missing: head\.weight, head\.bias"):
        materialise(torch, tmp_path, "encoder", checkpoint=str(path))
    torch.zoo("save_checkpoint", path=str(path), kind="residual", seed=1, form="plain")
    with pytest.raises(UsageError, match=r"not in the model: stem\.0\.weight.*of another shape: head\.weight"):
        materialise(torch, tmp_path, "encoder", checkpoint=str(path))


def test_a_pickle_that_needs_code_needs_trust(torch, tmp_path, pool):
    path = tmp_path / "w.pth"
    torch.zoo("save_checkpoint", path=str(path), kind="mixed", seed=1, form="module")
    with pytest.raises(UntrustedError, match="more than weights"):
        pool.call(
            torch.python,
            "trueport.frameworks._torch_factory",
            "load_checkpoint",
            {"path": str(path), "trust": False},
            stage=Stage.LOAD,
        )
    path.write_bytes(b"no checkpoint at all")
    with pytest.raises(UsageError, match="not a readable checkpoint"):
        materialise(torch, tmp_path, "encoder", checkpoint=str(path))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("wrong", "must return an nn.Module"),
        ("absent", "has no attribute 'absent'"),
        ("mixed", "gives no example arguments"),
    ],
)
def test_a_wrong_factory_says_what_it_should_be(torch, tmp_path, factory, message):
    with pytest.raises(UsageError, match=message):
        materialise(torch, tmp_path, factory)


def test_a_missing_module_is_named(torch, tmp_path):
    with pytest.raises(UsageError, match="no module 'nowhere'"):
        torch.call(
            "materialise",
            factory="nowhere:x",
            checkpoint=None,
            example={},
            out=str(tmp_path / "m.pt2"),
            paths=[],
            trust=True,
        )


def test_what_cannot_be_exported_is_traced_and_says_so(torch, tmp_path):
    signature = materialise(torch, tmp_path, "branch")
    assert signature["meta"]["path"] == str(tmp_path / "model.pt")
    assert "traced to TorchScript instead" in signature["meta"]["notes"][-1]
    (value,) = torch.run(signature["meta"]["path"], {"x": np.ones((1, 2, 3), np.float32)}).values()
    np.testing.assert_array_equal(value, np.full((1, 2, 3), 2))


# ---- real models ----


def cifar(corpus, count):
    """(images [count, 3, 32, 32] with ImageNet's mean and deviation, labels)."""
    from PIL import Image

    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    files = sorted((corpus / "images" / "cifar10").glob("*_00*.jpg"))
    files = [path for path in files if int(path.stem.rpartition("_")[2]) < count // 10]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in files]) / 255.0
    pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    labels = np.array([names.index(path.stem.rpartition("_")[0]) for path in files])
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32), labels


@pytest.mark.parametrize(
    ("factory", "weights", "least"),
    # 91.8 % and 92.8 % on the lossless test set; the corpus has JPEG copies, on which every CIFAR model loses about ten
    # points (the manifest's ResNet-8 too). Zeros padded on one side only would give 15 % and 6 %, BGR 70 % and 74 %.
    [("resnet20", "resnet20-12fca82f.th", 0.79), ("resnet32", "resnet32-d509ac18.th", 0.83)],
)
def test_real_cifar_weights_classify_real_images(torch, corpus, tmp_path, factory, weights, least):
    images, labels = cifar(corpus, 500)
    example = [] if factory == "resnet20" else [images[:1]]
    signature = materialise(
        torch, tmp_path, factory, checkpoint=str(corpus / "models" / "resnet_cifar" / weights), example=example
    )
    assert signature["meta"]["notes"] == []
    (logits,) = torch.run(signature["meta"]["path"], {"image": images[None]}).values()
    accuracy = float(np.mean(np.argmax(logits[0], axis=1) == labels))
    assert len(labels) == 500
    assert accuracy > least, accuracy


def test_real_torchscript_with_state(torch, corpus):
    path = str(corpus / "models" / "silero_vad" / "silero_vad.jit")
    signature = torch.call("signature", path=path, trust=False)
    assert [(spec["name"], spec["dtype"]) for spec in signature["inputs"]] == [("x", "float32"), ("sr", "int64")]
    assert signature["meta"]["stateful"] is True
    x = np.random.default_rng(0).normal(scale=0.1, size=(2, 1, 512)).astype(np.float32)
    x[1] = x[0]
    (value,) = torch.run(path, {"x": x, "sr": np.array([16000, 16000])}).values()
    assert value.shape == (2, 1, 1)
    assert value[0] == value[1]  # the second call does not see the first one's state
    assert 0 < value[0, 0, 0] < 1
    failure = torch.run(path, {"x": x[..., :500], "sr": np.array([16000, 16000])})
    assert failure.kind is Kind.RAISED  # the model's own check of the window's length
    graph = torch.call("graph", path=path, trust=False)
    assert "If" in {node["op"] for node in graph["nodes"]}

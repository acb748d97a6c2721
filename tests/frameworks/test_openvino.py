"""OpenVINO models: recognised, described, run in every variant, looked into and cut, on models of a few layers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from trueport import artifact
from trueport.errors import UsageError
from trueport.frameworks import openvino
from trueport.outcome import Failure, Kind, Stage

MODULE = "trueport.frameworks.openvino"
HERE = [str(Path(__file__).parent)]
RNG = np.random.default_rng


class Worker:
    """Calls into OpenVINO's toolchain."""

    def __init__(self, pool, python, folder):
        self.pool, self.python, self.folder = pool, python, folder

    def model(self, kind):
        place = self.folder / kind / f"{kind}.xml"
        if not place.exists():
            place.parent.mkdir(exist_ok=True)
            self.done("save", module="openvino_models", kind=kind, out=str(place))
        return place

    def call(self, function, *, module=MODULE, **arguments):
        return self.pool.call(self.python, module, function, arguments, stage=Stage.LOAD, paths=HERE)

    def done(self, function, **arguments):
        outcome = self.call(function, **arguments)
        assert not isinstance(outcome, Failure), outcome
        return outcome.value.value

    def emitted(self, function, path, **arguments):
        """(answer, name -> array) of a function that hands over arrays."""
        outcome = self.pool.call(
            self.python, MODULE, function, {"path": str(path), "trust": False, **arguments}, stage=Stage.LOAD, emit=True
        )
        assert not isinstance(outcome, Failure), outcome
        return outcome.value.value, {name: np.asarray(array) for name, array in outcome.value.emitted.items()}

    def signature(self, path):
        return self.done("signature", path=str(path), trust=False)

    def run(self, path, variant="default", precision="float32", **inputs):
        given = {
            "path": str(path),
            "cases": {"one": inputs},
            "precision": precision,
            "variant": variant,
            "trust": False,
        }
        return self.done("run", **given)["one"]

    def graph(self, path):
        return self.done("graph", path=str(path), trust=False)

    def failed(self, function, path, **arguments):
        given = {"path": str(path), "trust": False, **arguments}
        emit = function in ("trace", "replay")
        outcome = self.pool.call(self.python, MODULE, function, given, stage=Stage.LOAD, emit=emit)
        assert isinstance(outcome, Failure), outcome
        return outcome


@pytest.fixture(scope="module")
def ov(pool, env, tmp_path_factory):
    return Worker(pool, env("openvino"), tmp_path_factory.mktemp("openvino"))


def images(runs=2, batch=2, seed=0):
    return RNG(seed).normal(size=(runs, batch, 3, 8, 8)).astype(np.float32)


def net_by_numpy(x, kernel, bias, grouped, dense):
    """What the model `net` computes for one run [N, 3, 8, 8], in float64."""

    def conv(data, weights, stride):
        padded = np.pad(data, ((0, 0), (0, 0), (1, 1), (1, 1)))
        size = (data.shape[2] + 2 - 3) // stride + 1
        out = np.zeros((len(data), len(weights), size, size))
        for i in range(size):
            for j in range(size):
                window = padded[:, :, i * stride : i * stride + 3, j * stride : j * stride + 3]
                out[:, :, i, j] = np.einsum("nchw,ochw->no", window, weights)
        return out

    y = np.maximum(conv(x.astype(np.float64), kernel, 1) + bias, 0)
    half = len(grouped) // 2
    y = np.concatenate([conv(y[:, :2], grouped[:half], 2), conv(y[:, 2:], grouped[half:], 2)], 1)
    means = y.mean((2, 3))
    scores = means @ dense
    exp = np.exp(scores - scores.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True), means


# -- recognising ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b'<?xml version="1.0"?>\n<net name="model" version="11">\n<layers>',
        b'\xef\xbb\xbf<?xml version="1.0"?><net name="m" version="10">',
        b'<net name="m" version="11">',
    ],
)
def test_what_a_model_begins_with(head):
    assert openvino.sniff(head, Path("anything.bin")) == "openvino"


@pytest.mark.parametrize(
    "head",
    [b"<?xml version='1.0'?><html><body>net</body></html>", b"<network/>", b"\x08\x07", b"", b"<svg><net/></svg>"],
)
def test_what_is_no_model(head):
    assert openvino.sniff(head, Path("model.xml")) is None


def test_a_model_is_opened_with_its_weights_as_a_part_of_it(ov, tmp_path):
    place = ov.model("net")
    one = artifact.Artifact.open(place)
    assert one.format == "openvino"
    assert one.size == place.stat().st_size + place.with_suffix(".bin").stat().st_size
    copy = tmp_path / "copy.xml"
    shutil.copy(place, copy)
    weights = bytearray(place.with_suffix(".bin").read_bytes())
    copy.with_suffix(".bin").write_bytes(weights)
    assert artifact.Artifact.open(copy).sha256 == one.sha256
    weights[5] ^= 1
    copy.with_suffix(".bin").write_bytes(weights)
    assert artifact.Artifact.open(copy).sha256 != one.sha256


def test_weights_that_are_not_there_are_named_with_the_cure(ov, tmp_path):
    copy = tmp_path / "lonely.xml"
    shutil.copy(ov.model("net"), copy)
    with pytest.raises(UsageError, match=r"lonely\.bin, which is not there; put it beside it"):
        ov.signature(copy)


def test_weights_that_are_cut_off_are_named_with_the_cure(ov, tmp_path):
    copy = tmp_path / "short.xml"
    shutil.copy(ov.model("net"), copy)
    whole = ov.model("net").with_suffix(".bin").read_bytes()
    copy.with_suffix(".bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"short\.bin is shorter than short\.xml says"):
        ov.signature(copy)


def test_xml_that_breaks_off_is_a_bad_model(ov, tmp_path):
    broken = tmp_path / "broken.xml"
    broken.write_bytes(ov.model("net").read_bytes()[:900])
    with pytest.raises(UsageError, match=r"broken\.xml is no OpenVINO model that can be read"):
        ov.signature(broken)


# -- describing -------------------------------------------------------------------------------------------------------


def test_signature_gives_names_shapes_and_what_is_inside(ov):
    found = ov.signature(ov.model("net"))
    assert found["inputs"] == [{"name": "image", "dtype": "float32", "shape": [None, 3, 8, 8]}]
    assert [spec["name"] for spec in found["outputs"]] == ["classes", "means"]
    assert [spec["shape"] for spec in found["outputs"]] == [[None, 5], [None, 6]]
    meta = found["meta"]
    assert meta["precision"] == "float32"
    assert meta["operators"]["GroupConvolution"] == 1
    assert meta["parameters"] == 4 * 27 + 4 + 6 * 2 * 9 + 30


@pytest.mark.parametrize(("kind", "precision"), [("half", "float16"), ("quantised", "int8"), ("recurrent", "float32")])
def test_the_precision_that_a_model_declares(ov, kind, precision):
    assert ov.signature(ov.model(kind))["meta"]["precision"] == precision


def test_indices_into_a_table_have_their_range(ov):
    (spec,) = ov.signature(ov.model("table"))["inputs"]
    assert (spec["minimum"], spec["maximum"], spec["dtype"]) == (0, 10, "int64")


def test_text_is_not_supported_and_said_so(ov):
    failure = ov.failed("signature", ov.model("text"))
    assert failure.kind is Kind.UNSUPPORTED
    assert "'words' holds string" in failure.message


# -- running ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", openvino.VARIANTS)
def test_every_variant_computes_the_model(ov, variant):
    x = images()
    _, arrays = ov.emitted("parameters", ov.model("net"))
    found = ov.run(ov.model("net"), variant, image=x)
    for number in range(2):
        classes, means = net_by_numpy(x[number], arrays["kernel"], arrays["bias"], arrays["grouped"], arrays["dense"])
        np.testing.assert_allclose(found["classes"][number], classes, atol=1e-5)
        np.testing.assert_allclose(found["means"][number], means, atol=1e-5)


def test_float16_rounds_the_weights_alone(ov):
    x = images()
    single, rounded = (ov.run(ov.model("net"), precision=name, image=x)["means"] for name in ("float32", "float16"))
    stored = ov.run(ov.model("half"), image=x)["means"]
    assert 1e-6 < np.abs(single - rounded).max() < 5e-3
    np.testing.assert_allclose(stored, rounded, atol=1e-6)


def test_another_precision_is_not_supported(ov):
    outcome = ov.call("run", path=str(ov.model("net")), cases={}, precision="float64", variant="default", trust=False)
    assert isinstance(outcome, Failure)
    assert outcome.kind is Kind.UNSUPPORTED


def test_a_state_begins_anew_with_every_run(ov):
    x = np.arange(6, dtype=np.float32).reshape(3, 1, 2)
    np.testing.assert_array_equal(ov.run(ov.model("counter"), x=x)["y"], x)
    assert ov.signature(ov.model("counter"))["meta"]["writes_state"]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "needs a value for its input 'image'"),
        ({"image": np.zeros((1, 1, 3, 8, 8), np.float32), "more": np.zeros((1, 1), np.float32)}, "has no input 'more'"),
        ({"image": np.zeros((1, 3, 8, 8), np.float32)}, "input 'image' takes"),
    ],
)
def test_inputs_that_do_not_fit_are_said(ov, inputs, said):
    outcome = ov.call(
        "run", path=str(ov.model("net")), cases={"one": inputs}, precision="float32", variant="default", trust=False
    )
    assert isinstance(outcome, Failure)
    assert said in outcome.message


def test_a_wrong_size_is_said(ov):
    wrong = {"one": {"image": np.zeros((1, 1, 4, 8, 8), np.float32)}}
    outcome = ov.call(
        "run", path=str(ov.model("net")), cases=wrong, precision="float32", variant="default", trust=False
    )
    assert isinstance(outcome, Failure)
    assert "shape" in outcome.message


# -- looking inside ---------------------------------------------------------------------------------------------------


def test_graph_in_onnx_vocabulary(ov):
    graph = ov.graph(ov.model("net"))
    nodes = {node["name"]: node for node in graph["nodes"]}
    assert [(node["op"], node["native_op"]) for node in graph["nodes"]] == [
        ("Conv", "Convolution"),
        ("Add", "Add"),
        ("Relu", "Relu"),
        ("Conv", "GroupConvolution"),
        ("ReduceMean", "ReduceMean"),
        ("MatMul", "MatMul"),
        ("Softmax", "Softmax"),
    ]
    assert nodes["conv"]["attributes"]["pads"] == [1, 1, 1, 1]
    assert nodes["conv"]["attributes"]["group"] == 1
    assert nodes["group"]["attributes"]["group"] == 2
    assert nodes["group"]["attributes"]["kernel_shape"] == [3, 3]
    assert nodes["mean"]["attributes"] == {"keepdims": 0, "axes": [2, 3]}
    assert nodes["softmax"]["outputs"] == ["classes"]
    assert nodes["scores"]["inputs"] == ["means", "dense"]
    assert (graph["inputs"], graph["outputs"]) == (["image"], ["classes", "means"])


def test_a_grouped_kernel_is_shown_as_onnx_has_it(ov):
    graph = ov.graph(ov.model("net"))
    assert graph["constants"]["grouped"] == {"dtype": "float32", "shape": [6, 2, 3, 3]}
    _, arrays = ov.emitted("parameters", ov.model("net"))
    raw = ov.done("stored", module="openvino_models", path=str(ov.model("net")))["constants"]["grouped"]["values"]
    np.testing.assert_array_equal(arrays["grouped"], np.asarray(raw).reshape(6, 2, 3, 3))


def test_parameters_are_those_that_the_graph_names(ov):
    for kind in ("net", "half", "recurrent", "quantised"):
        answer, arrays = ov.emitted("parameters", ov.model(kind))
        facts = ov.graph(ov.model(kind))["constants"]
        assert answer == {"unreadable": []}
        assert {name: (array.dtype.name, list(array.shape)) for name, array in arrays.items()} == {
            name: (fact["dtype"], fact["shape"]) for name, fact in facts.items()
        }


def test_what_only_widens_a_weight_is_left_out_of_the_graph(ov):
    graph = ov.graph(ov.model("half"))
    assert [node["op"] for node in graph["nodes"]].count("Cast") == 0
    data, kernel = next(node for node in graph["nodes"] if node["name"] == "conv")["inputs"]
    assert data == "image"
    assert graph["constants"][kernel] == {"dtype": "float16", "shape": [4, 3, 3, 3]}


def test_names_that_are_repeated_get_numbers(ov):
    graph = ov.graph(ov.model("twice"))
    assert [node["name"] for node in graph["nodes"]] == ["same", "same#1", "same#2"]
    signature = ov.signature(ov.model("twice"))
    names = [spec["name"] for spec in signature["outputs"]]
    assert len(set(names)) == 2
    x = RNG(0).normal(size=(1, 1, 3)).astype(np.float32)
    found = ov.run(ov.model("twice"), x=x)
    np.testing.assert_allclose(found[names[0]], -np.exp(np.maximum(x, 0)), rtol=1e-5)
    np.testing.assert_allclose(found[names[1]], np.maximum(x, 0), rtol=1e-6)


def test_a_layer_of_several_results_has_ports(ov):
    graph = ov.graph(ov.model("split"))
    parts = next(node for node in graph["nodes"] if node["op"] == "Split")
    assert parts["outputs"] == ["parts:0", "parts:2"]
    assert parts["attributes"]["axis"] == 1
    x = RNG(0).normal(size=(1, 2, 6)).astype(np.float32)
    _, shown = ov.emitted("trace", ov.model("split"), inputs={"x": x}, wanted=["parts:2"], budget=1 << 20)
    np.testing.assert_array_equal(shown["parts:2"], x[..., 4:])


def test_trace_shows_every_value_within_the_budget(ov):
    x = images()
    path = ov.model("net")
    names = ov.done("names", path=str(path), trust=False)
    whole, found = ov.emitted("trace", path, inputs={"image": x}, wanted=names, budget=1 << 30)
    assert whole == {"windows": 1, "skipped": {}}
    small, again = ov.emitted("trace", path, inputs={"image": x}, wanted=names, budget=8_000)
    assert small["windows"] > 2
    assert list(found) == names == list(again)
    for name in names:
        np.testing.assert_allclose(again[name], found[name], atol=1e-6)
    np.testing.assert_array_equal(found["relu"], np.maximum(found["biased"], 0))
    np.testing.assert_allclose(found["classes"], ov.run(path, image=x)["classes"], atol=1e-6)


def test_trace_gives_inputs_too_and_refuses_strangers(ov):
    x = images()
    _, found = ov.emitted("trace", ov.model("net"), inputs={"image": x}, wanted=["image"], budget=1 << 20)
    np.testing.assert_array_equal(found["image"], x)
    failure = ov.failed("trace", ov.model("net"), inputs={"image": x}, wanted=["nothing"], budget=1)
    assert "nothing" in failure.message


# -- cutting ----------------------------------------------------------------------------------------------------------


def replayed(ov, kind, inputs, given, wanted, variant=""):
    arguments = {"inputs": inputs, "given": given, "wanted": wanted, "variant": variant, "budget": 1 << 24}
    return ov.emitted("replay", ov.model(kind), **arguments)


def test_replay_puts_values_in_and_leaves_the_rest_out(ov):
    x = images()
    _, shown = ov.emitted("trace", ov.model("net"), inputs={"image": x}, wanted=["relu", "means"], budget=1 << 24)
    answer, found = replayed(ov, "net", {}, {"relu": shown["relu"] * 2}, ["means"])
    assert answer["skipped"] == {}
    np.testing.assert_allclose(found["means"], shown["means"] * 2, atol=1e-5)


def test_replay_gives_what_the_producer_of_a_given_value_makes(ov):
    x = images()
    _, shown = ov.emitted("trace", ov.model("net"), inputs={"image": x}, wanted=["relu"], budget=1 << 24)
    _, found = replayed(ov, "net", {"image": x}, {"relu": np.zeros_like(shown["relu"])}, ["relu", "means"])
    np.testing.assert_allclose(found["relu"], shown["relu"], atol=1e-6)
    np.testing.assert_array_equal(found["means"], np.zeros_like(found["means"]))


@pytest.mark.parametrize("variant", openvino.VARIANTS)
def test_replay_runs_in_every_variant(ov, variant):
    given = RNG(1).normal(size=(2, 3, 6)).astype(np.float32)
    _, found = replayed(ov, "net", {}, {"means": given}, ["scores", "classes"], variant)
    _, arrays = ov.emitted("parameters", ov.model("net"))
    np.testing.assert_allclose(found["scores"], given @ arrays["dense"], atol=1e-5)


def test_replay_takes_other_shapes_where_the_model_does(ov):
    given = RNG(1).normal(size=(1, 1, 4, 12, 12)).astype(np.float32)
    _, found = replayed(ov, "net", {}, {"relu": given}, ["group"])
    assert found["group"].shape == (1, 1, 6, 6, 6)


def test_what_cannot_be_computed_from_a_given_shape_is_skipped(ov):
    given = RNG(1).normal(size=(1, 1, 7)).astype(np.float32)
    answer, found = replayed(ov, "net", {}, {"means": given}, ["scores"])
    assert list(answer["skipped"]) == ["scores"]
    assert "scores" not in found


def test_replay_needs_the_inputs_that_it_reaches(ov):
    arguments = {"inputs": {}, "given": {}, "wanted": ["relu"], "variant": "", "budget": 1 << 20}
    assert "needs a value for its input 'image'" in ov.failed("replay", ov.model("net"), **arguments).message


def test_a_part_with_a_state_is_not_cut(ov):
    arguments = {
        "inputs": {"x": np.ones((1, 1, 2), np.float32)},
        "given": {},
        "wanted": ["y"],
        "variant": "",
        "budget": 1,
    }
    failure = ov.failed("replay", ov.model("counter"), **arguments)
    assert failure.kind is Kind.UNSUPPORTED
    assert "state" in failure.message


# -- naming a place -------------------------------------------------------------------------------------------------------


def test_a_result_is_named_with_the_suffix_by_which_weights_are_found(tmp_path):
    from trueport import publish

    with pytest.raises(UsageError, match=r"NAME\.xml with NAME\.bin"):
        publish.check_model(tmp_path / "model.ov", tmp_path / "source.onnx", "openvino", folder=False)
    publish.check_model(tmp_path / "model.xml", tmp_path / "source.onnx", "openvino", folder=False)


def test_published_weights_go_by_the_name_of_the_model(tmp_path):
    from trueport import publish

    made, out = tmp_path / "made" / "a.xml", tmp_path / "out" / "b.xml"
    made.parent.mkdir()
    made.write_text("<net/>")
    made.with_suffix(".bin").write_bytes(b"first")
    publish.model(made, out)
    assert out.with_suffix(".bin").read_bytes() == b"first"
    made.with_suffix(".bin").write_bytes(b"second")
    publish.model(made, out)  # an earlier model of ours is replaced, weights and all
    assert out.with_suffix(".bin").read_bytes() == b"second"
    stranger = tmp_path / "out" / "c.xml"
    stranger.with_suffix(".bin").write_bytes(b"of another tool")
    with pytest.raises(UsageError, match="in the way"):
        publish.model(made, stranger)
    assert stranger.with_suffix(".bin").read_bytes() == b"of another tool"

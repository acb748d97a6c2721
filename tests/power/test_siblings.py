"""A PyTorch sibling computes what its Keras model computes, of all its weights, and the benchmark can use it as a target."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from trueport.artifact import Artifact
from trueport.compare.types import Verdict
from trueport.errors import TrueportError
from trueport.session import Session, Settings
from trueport.verification import verify

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import power_pairs  # noqa: E402

import power  # noqa: E402

PAIR = next(pair for pair in power_pairs.PAIRS if pair.sibling)
ZOO = "architectures_keras"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siblings")
    with Session(Settings(timeout=300)) as session:
        yield power.Bench(session, power_pairs.Workshop(session, folder / "models"), folder / "cases.jsonl")


@pytest.fixture(scope="module")
def residual(bench):
    made = bench.ground(PAIR, ZOO, "residual")
    assert not isinstance(made, str), made
    return made


def names(signature):
    return {spec.name for spec in (*signature.inputs, *signature.outputs)}


def test_the_pair_is_clean_though_nothing_is_shared(bench, residual):
    source, target = (bench.session.signature(Artifact.open(path)).value for path in paths(residual))
    assert [spec.shape[1:] for spec in source.inputs] == [(24, 32, 3)]
    assert [spec.shape[1:] for spec in target.inputs] == [(3, 24, 32)]
    assert not names(source) & names(target)
    assert dict(residual.target.made_by) == {}
    bench.clean(residual)
    case = bench.cases[f"clean|{PAIR.name}|residual"]
    assert (case["verdict"], case["suspects"]) == ("faithful", [])


def test_a_fault_in_the_sibling_is_found(bench, residual):
    assert bench.single(residual, "activation_changed", 0)
    case = bench.cases[f"single|{PAIR.name}|residual|activation_changed|0"]
    assert case["detected"]
    assert case["top1"]
    assert case["spurious"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["depthwise", "transformer", "unet"])
def test_every_sibling_is_faithful(bench, kind):
    made = bench.ground(PAIR, ZOO, kind)
    assert not isinstance(made, str), made
    bench.clean(made)
    case = bench.cases[f"clean|{PAIR.name}|{kind}"]
    assert (case["verdict"], case["suspects"]) == ("faithful", [])


def test_a_weight_that_the_port_forgets_is_an_error(bench, residual, tmp_path):
    kept = Path(paths(residual)[0]).with_name("weights.npz")
    with np.load(kept) as arrays:
        np.savez(tmp_path / "more.npz", **arrays, **{"forgotten/kernel": np.zeros(3, np.float32)})
    with pytest.raises(TrueportError, match="does not use forgotten/kernel"):
        bench.workshop._call(
            "torch",
            "siblings_torch",
            "save",
            {"kind": "residual", "weights": str(tmp_path / "more.npz"), "folder": str(tmp_path)},
        )


@pytest.mark.parametrize("name", ["stem_bn/moving_variance", "block2_a/kernel", "classes/kernel"])
def test_every_weight_counts(bench, residual, tmp_path, name):
    """The faithful verdict above rests on these very weights: one of them changed, the outputs move."""
    kept = Path(paths(residual)[0]).with_name("weights.npz")
    with np.load(kept) as arrays:
        np.savez(tmp_path / "other.npz", **{**arrays, name: arrays[name][..., ::-1]})
    given = {"kind": "residual", "weights": str(tmp_path / "other.npz"), "folder": str(tmp_path)}
    other = Artifact.open(Path(bench.workshop._call("torch", "siblings_torch", "save", given)))
    assert verify(residual.source, other, residual.feeds).verdict is Verdict.DEVIATES


def test_other_models_have_no_sibling(bench):
    assert bench.ground(PAIR, ZOO, "inception") == "no sibling of it is written"
    assert bench.workshop.target(PAIR, "keras_models", "residual") == "no sibling of it is written"


def paths(ground):
    home = ground.target.path.parent
    return home / "source.keras", ground.target.path


# -- padding ------------------------------------------------------------------------------------------------------------


def around():
    """`around` of the siblings, read without running the file: PyTorch is not here."""
    text = (power_pairs.FOLDERS["siblings_torch"] / "siblings_torch.py").read_text()
    start = text.index("def around(")
    module = ModuleType("padding")
    exec(text[start : text.index("\n\n\n", start)], module.__dict__)
    return module.around


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (24, 3, 1, (1, 1)),
        (24, 3, 2, (0, 1)),
        (15, 3, 2, (1, 1)),
        (24, 1, 2, (0, 0)),
        (7, 4, 1, (1, 2)),
        (3, 5, 4, (1, 1)),
        (9, 2, 3, (0, 0)),
    ],
)
def test_the_greater_part_of_an_uneven_padding_lies_behind(size, kernel, stride, expected):
    assert around()(size, kernel, stride) == expected

"""Faults of a runtime, on the fake framework: cutting models open, the observer's effect, and finding a wrong kernel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueport.frameworks import fake

RUNS = 4


@pytest.fixture
def save(tmp_path):
    """save(**network arguments) -> path of the file."""

    def save(**more) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.fake"
        path.write_text(fake.text_of(fake.network(**more)), encoding="utf-8")
        return path

    return save


def feed(seed: int = 1, inputs: int = 1) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {f"x{index}": random.standard_normal((RUNS, 2, 6)).astype(np.float32) for index in range(inputs)}


# -- cutting the fake framework's models open ---------------------------------------------------------------------------


def values(path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    names = fake.names(str(path), trust=False)
    fake.trace(str(path), inputs, names, found.__setitem__, budget=10**9, trust=False)
    return found


def replay(path: Path, inputs, given, wanted, variant: str = ""):
    found: dict[str, np.ndarray] = {}
    reply = fake.replay(str(path), inputs, given, wanted, found.__setitem__, variant=variant, budget=1, trust=False)
    return found, reply["skipped"]


def test_all_values_put_in_at_once_are_all_made_again(save):
    path = save(inputs=2)
    inputs = feed(inputs=2)
    whole = values(path, inputs)
    found, skipped = replay(path, inputs, {**inputs, **whole}, [*whole, "x0", "w1"])
    assert skipped == {}
    assert all(np.array_equal(found[name], whole[name]) for name in whole)
    assert np.array_equal(found["x0"], inputs["x0"])
    assert found["w1"].shape == (RUNS, 6, 8)


def test_a_value_put_in_changes_what_reads_it_and_not_what_makes_it(save):
    path = save()
    mine, other = values(path, feed(1)), values(path, feed(2))
    found, _ = replay(path, feed(1), {"hidden": other["hidden"]}, ["scores", "hidden"])
    assert np.array_equal(found["scores"], other["scores"])
    assert np.array_equal(found["hidden"], mine["hidden"])
    alone, _ = replay(path, {}, {"hidden": other["hidden"]}, ["chances"])
    assert np.array_equal(alone["chances"], other["chances"])
    constant, _ = replay(path, feed(1), {"b2": np.zeros((RUNS, 4), np.float32)}, ["scores"])
    assert np.array_equal(constant["scores"], mine["product_2"])


def test_what_the_given_shapes_do_not_allow_is_skipped_and_a_missing_input_is_refused(save):
    path = save()
    found, skipped = replay(path, feed(), {"hidden": np.zeros((RUNS, 5, 3), np.float32)}, ["scores", "hidden"])
    assert list(found) == ["hidden"]
    assert "shapes" in skipped["scores"]
    larger, _ = replay(path, {}, {"hidden": np.ones((RUNS, 7, 8), np.float32)}, ["scores"])
    assert larger["scores"].shape == (RUNS, 7, 4)
    with pytest.raises(ValueError, match="'x0' is needed"):
        replay(path, {}, {}, ["scores"])
    with pytest.raises(ValueError, match="no value named nowhere"):
        replay(path, feed(), {"nowhere": np.zeros(RUNS)}, ["scores"])


def test_wrong_kernels_are_wrong_by_default_alone_and_wrong_fusions_only_where_nothing_parts_them(save):
    faults = {"run": ["wrong-kernel:Relu_hidden"], "replay": ["wrong-kernel:Relu_hidden", "wrong-fusion:Add_scores"]}
    path = save(faults=faults)
    whole = values(path, feed())
    for variant in ("", "reversed-sum"):
        found, _ = replay(path, feed(), {}, ["hidden"], variant)
        np.testing.assert_allclose(found["hidden"], whole["hidden"], rtol=1e-5, atol=1e-6)
    found, _ = replay(path, feed(), {}, ["hidden"], "default")
    np.testing.assert_array_equal(found["hidden"], whole["hidden"] + 1)
    parted, _ = replay(path, feed(), {"product_2": whole["product_2"]}, ["scores"], "default")
    np.testing.assert_array_equal(parted["scores"], whole["scores"])
    fused, _ = replay(path, feed(), {"hidden": whole["hidden"]}, ["scores"], "default")
    np.testing.assert_array_equal(fused["scores"], whole["scores"] + 1)
    run = fake.run(str(path), {"data": feed()}, precision="float32", variant="default", trust=False)["data"]
    assert not np.allclose(run["scores"], whole["scores"])

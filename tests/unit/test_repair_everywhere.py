"""Repair of weights that are nearly the source's all over the model: all layers at once, and nothing that is right."""

from __future__ import annotations

import numpy as np
import pytest
from diagnosis_cases import Model, normal
from repair_scenes import proposals, refused, same, written
from test_repair_parameters import LAYOUTS, conv, dense

from trueport.diagnosis.region import Inside
from trueport.repairs.rules import everywhere

KERNELS = [normal(8, 4, 3, 3, seed=seed) for seed in range(4)]
BIASES = [normal(8, seed=10 + seed) for seed in range(4)]
NAMES = ["a", "b", "c", "d"]


def rounded(array):
    step = np.abs(array).max() / 127
    return (np.round(array / step) * step).astype(np.float32)


def net(change, *, biases=lambda bias: bias, format="pytorch"):
    """Four convolutions side by side. change: what becomes of each kernel, by place."""
    last = format in ("tflite", "keras", "savedmodel")
    model = Model(format, x=(1, 6, 6, 4) if last else (1, 4, 6, 6))
    for place, name in enumerate(NAMES):
        kernel = np.asarray(change(place, KERNELS[place]), np.float32)
        out = "y" if place == 3 else f"y_{name}"
        conv(kernel, biases(BIASES[place]), format=format, model=model, name=name, out=out)
    return model


def plain(**facts):
    return net(lambda place, kernel: kernel, **facts)


@pytest.mark.parametrize("format", LAYOUTS)
def test_weights_on_a_silent_grid_become_the_sources_in_every_layer_at_once(format):
    target = net(lambda place, kernel: rounded(kernel), format=format)
    (proposal,) = proposals(everywhere, plain(), target)
    found = written(proposal)
    assert set(found) == {(name, f"{name}.weight") for name in NAMES}, "biases were right and are left alone"
    for name, kernel in zip(NAMES, KERNELS, strict=True):
        assert same(found[name, f"{name}.weight"], np.transpose(kernel, LAYOUTS[format][1]))


def test_only_the_layers_that_differ_are_set():
    target = net(lambda place, kernel: kernel if place == 2 else rounded(kernel))
    (proposal,) = proposals(everywhere, plain(), target)
    assert {node for node, _ in written(proposal)} == {"a", "b", "d"}


def test_weights_that_are_merely_near_are_another_trainings():
    """A fine-tuned model is no faulty conversion: nothing tells how its numbers came of the source's."""
    tuned = net(lambda place, kernel: kernel + 0.02 * normal(*kernel.shape, seed=70 + place))
    assert "0 layers" in refused(everywhere, plain(), tuned)
    assert recognised(plain(), tuned) == 0.0


def test_a_layer_that_does_not_tell_shares_the_fault_of_most():
    target = net(
        lambda place, kernel: kernel + 0.02 * normal(*kernel.shape, seed=70) if place == 1 else rounded(kernel)
    )
    (proposal,) = proposals(everywhere, plain(), target)
    assert {node for node, _ in written(proposal)} == set(NAMES)
    assert same(written(proposal)["b", "b.weight"], KERNELS[1])


def test_a_grid_of_float16_is_recognised_too():
    target = net(lambda place, kernel: kernel.astype(np.float16))
    (proposal,) = proposals(everywhere, plain(), target)
    assert len(written(proposal)) == 4
    assert "float16" in proposal.edits[0].reason


def recognised(source, target):
    return everywhere.recognised(Inside(source.build("y")), Inside(target.build("y")))


def test_a_target_is_recognised_by_layers_that_are_equal_or_rounded():
    assert recognised(plain(), plain()) == 1.0
    assert recognised(plain(), net(lambda place, kernel: rounded(kernel))) == 1.0
    half = net(lambda place, kernel: rounded(kernel) if place < 2 else normal(*kernel.shape, seed=90 + place))
    assert recognised(plain(), half) == 0.5


def test_an_equal_model_is_left_alone():
    assert "0 layers" in refused(everywhere, plain(), plain())


def test_two_layers_are_two_faults_and_not_the_models():
    target = net(lambda place, kernel: rounded(kernel) if place < 2 else kernel)
    assert "2 layers" in refused(everywhere, plain(), target)


def test_other_weights_are_never_replaced():
    """Another training of the same network comes near none of the source's layers."""
    target = net(lambda place, kernel: normal(*kernel.shape, seed=50 + place))
    assert "0 layers" in refused(everywhere, plain(), target)


def test_a_layer_near_two_of_the_sources_is_left_alone():
    """Layers that differ from each other as little as the target's from both: nobody can tell which is meant."""
    near = [KERNELS[0] * (1 + 0.02 * place) for place in range(4)]
    source = net(lambda place, kernel: near[place])
    target = net(lambda place, kernel: near[0] * 1.01)
    assert "0 layers" in refused(everywhere, source, target)


def test_a_layer_that_stands_twice_in_the_source_is_no_riddle():
    source = net(lambda place, kernel: KERNELS[0], biases=lambda bias: BIASES[0])
    target = net(lambda place, kernel: rounded(KERNELS[0]), biases=lambda bias: BIASES[0])
    (proposal,) = proposals(everywhere, source, target)
    assert len(written(proposal)) == 4


@pytest.mark.parametrize("precision", ["float16", "int8-dynamic", "int8"])
def test_a_declared_precision_explains_the_grid(precision):
    target = net(lambda place, kernel: rounded(kernel))
    assert "declared" in refused(everywhere, plain(), target, precision=precision)


def test_a_fold_with_another_epsilon_becomes_the_sources_with_its_shifts():
    gamma = [1 + 0.3 * normal(8, seed=20 + place) for place in range(4)]
    beta, mean = ([normal(8, seed=seed + place) for place in range(4)] for seed in (30, 40))
    var = [np.abs(normal(8, seed=60 + place)) + 0.2 for place in range(4)]
    source, target = Model("pytorch", x=(1, 4, 6, 6)), Model("tflite", x=(1, 6, 6, 4))
    wanted = {}
    for place, name in enumerate(NAMES):
        out = "y" if place == 3 else f"y_{name}"
        conv(KERNELS[place], None, model=source, name=name, out=f"raw_{name}")
        slots = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
        reads = [source.const(f"{name}.bn.{slot}", array[place]) for slot, array in slots.items()]
        source.add("BatchNormalization", f"raw_{name}", *reads, out=out, name=f"{name}_bn", shape=(1, 8, 6, 6),
                   native="aten.batch_norm.default", epsilon=1e-5)  # fmt: skip
        for epsilon in (1e-5, 1e-2):
            scale = gamma[place].astype(np.float64) / np.sqrt(var[place].astype(np.float64) + epsilon)
            folded = KERNELS[place] * scale.reshape(-1, 1, 1, 1), beta[place] - mean[place] * scale
            wanted.setdefault(name, folded)
        kernel, bias = (array.astype(np.float32) for array in folded)
        conv(kernel, bias, format="tflite", model=target, name=name, out=out)
    (proposal,) = proposals(everywhere, source, target)
    found = written(proposal)
    assert len(found) == 8
    for name, (kernel, bias) in wanted.items():
        assert same(found[name, f"{name}.weight"], kernel.transpose(0, 2, 3, 1))
        assert same(found[name, f"{name}.bias"], bias)


def test_a_normalisation_that_is_a_product_and_a_sum_is_folded_in_as_well():
    source, target = Model("savedmodel", x=(1, 6, 6, 4)), Model("tflite", x=(1, 6, 6, 4))
    scales = [1 + 0.3 * normal(8, seed=20 + place) for place in range(4)]
    for place, name in enumerate(NAMES):
        out = "y" if place == 3 else f"y_{name}"
        conv(KERNELS[place], None, format="savedmodel", model=source, name=name, out=f"raw_{name}")
        scale, shift = source.const(f"{name}.scale", scales[place]), source.const(f"{name}.shift", BIASES[place])
        shape = (1, 6, 6, 8)
        source.add("Mul", f"raw_{name}", scale, out=f"mul_{name}", name=f"{name}_mul", native="Mul", shape=shape)
        source.add("Add", f"mul_{name}", shift, out=out, name=f"{name}_add", native="AddV2", shape=shape)
        kernel = rounded(KERNELS[place] * scales[place].reshape(-1, 1, 1, 1))
        conv(kernel, BIASES[place], format="tflite", model=target, name=name, out=out)
    (proposal,) = proposals(everywhere, source, target)
    found = written(proposal)
    assert set(found) == {(name, f"{name}.weight") for name in NAMES}
    wanted = KERNELS[2].astype(np.float64) * scales[2].astype(np.float64).reshape(-1, 1, 1, 1)
    assert same(found["c", "c.weight"], wanted.transpose(0, 2, 3, 1))


def test_matrices_of_dense_layers_belong_to_it():
    source, target = (
        dense(normal(6, 5, seed=1), normal(5, seed=2)),
        dense(rounded(normal(6, 5, seed=1)), normal(5, seed=2)),
    )
    assert "1 layers" in refused(everywhere, source, target), "found, and one alone is no fault of the whole model"

"""MIL kernels against two implementations that are not ours: coremltools' own constant folding, and PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueport.outcome import Failure, Kind, Ok, Stage

HERE = str(Path(__file__).parent)


@pytest.fixture(scope="module")
def ask(pool, env):
    """ask(function of the probe, **arguments) -> (value, emitted arrays)."""

    def run(function, **arguments):
        outcome = pool.call(env("coreml"), "mil_probe", function, arguments, stage=Stage.RUN, emit=True, paths=[HERE])
        assert isinstance(outcome, Ok), outcome
        emitted = outcome.value.emitted
        return outcome.value.value, [np.array(emitted[str(place)]) for place in range(len(emitted))]

    return run


def noise(*shape, seed=0, low=-2.0, high=2.0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def ints(*values):
    return np.array(values, np.int32)


X = noise(3, 4)
POSITIVE = noise(3, 4, low=0.1, high=3.0)
SMALL = noise(3, 4, low=-0.9, high=0.9)
WHOLE = np.arange(-6, 6, dtype=np.int32).reshape(3, 4)
CUBE = noise(2, 3, 4, seed=3)
IMAGE = noise(1, 4, 4, 6, seed=4)

FOLDED = [
    *[
        (kind, {"x": X})
        for kind in ("abs", "ceil", "cos", "erf", "exp", "exp2", "floor", "sign", "sin", "square", "tanh")
    ],
    *[(kind, {"x": X}) for kind in ("relu", "relu6", "sigmoid", "softsign", "sinh", "cosh", "atan", "tan", "softmax")],
    *[(kind, {"x": SMALL}) for kind in ("acos", "asin", "atanh", "softplus")],
    ("sqrt", {"x": POSITIVE}),
    ("round", {"x": np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 2.4], np.float32)}),
    ("log", {"x": POSITIVE, "epsilon": 0.5}),
    ("log", {"x": np.zeros(2, np.float32)}),
    ("rsqrt", {"x": POSITIVE, "epsilon": 0.25}),
    ("inverse", {"x": POSITIVE, "epsilon": 0.125}),
    ("inverse", {"x": POSITIVE}),
    ("clip", {"x": X, "alpha": -0.5, "beta": 0.75}),
    ("threshold", {"x": X, "alpha": 0.25}),
    ("elu", {"x": X, "alpha": 0.7}),
    ("leaky_relu", {"x": X, "alpha": 0.2}),
    ("prelu", {"x": IMAGE, "alpha": noise(4, seed=8)}),
    ("scaled_tanh", {"x": X, "alpha": 1.5, "beta": 0.6}),
    ("sigmoid_hard", {"x": X, "alpha": 0.3, "beta": 0.4}),
    ("linear_activation", {"x": X, "alpha": 1.5, "beta": -0.6}),
    ("thresholded_relu", {"x": X, "alpha": 0.5}),
    ("softplus_parametric", {"x": IMAGE, "alpha": noise(4, seed=5), "beta": noise(4, seed=6)}),
    ("logical_not", {"x": np.array([True, False])}),
    *[
        (kind, {"x": X, "y": noise(4, seed=9)})
        for kind in ("add", "sub", "mul", "real_div", "maximum", "minimum", "mod", "floor_div")
    ],
    *[
        (kind, {"x": WHOLE, "y": ints(2, -3, 4, 5)})
        for kind in ("add", "sub", "mul", "maximum", "minimum", "mod", "floor_div", "real_div")
    ],
    ("pow", {"x": POSITIVE, "y": noise(4, seed=9)}),
    *[
        (kind, {"x": WHOLE, "y": ints(-3, 0, 1, 2)})
        for kind in ("equal", "not_equal", "greater", "greater_equal", "less", "less_equal")
    ],
    *[
        (kind, {"x": np.array([True, True, False, False]), "y": np.array([True, False, True, False])})
        for kind in ("logical_and", "logical_or", "logical_xor")
    ],
    ("select", {"cond": X > 0, "a": X, "b": noise(3, 4, seed=2)}),
    ("cast", {"x": X, "dtype": "int32"}),
    ("cast", {"x": WHOLE, "dtype": "bool"}),
    ("cast", {"x": WHOLE, "dtype": "fp32"}),
    ("cumsum", {"x": CUBE, "axis": 1}),
    ("cumsum", {"x": CUBE, "axis": 2, "reverse": True}),
    ("band_part", {"x": CUBE, "lower": 1, "upper": 0}),
    ("band_part", {"x": CUBE, "lower": -1, "upper": 1}),
    ("reshape", {"x": CUBE, "shape": ints(4, -1)}),
    ("reshape", {"x": CUBE, "shape": ints(0, 4, -1)}),
    ("expand_dims", {"x": CUBE, "axes": ints(0, -1)}),
    ("squeeze", {"x": noise(1, 3, 1, 2), "axes": ints(2)}),
    ("squeeze", {"x": noise(1, 3, 1, 2)}),
    ("transpose", {"x": CUBE, "perm": ints(2, 0, 1)}),
    ("reverse", {"x": CUBE, "axes": ints(0, 2)}),
    ("reverse", {"x": CUBE}),
    ("tile", {"x": X, "reps": ints(2, 3)}),
    ("flatten2d", {"x": CUBE, "axis": -1}),
    ("flatten2d", {"x": CUBE, "axis": 2}),
    ("shape", {"x": CUBE}),
    ("split", {"x": CUBE, "axis": 2, "num_splits": 2}),
    ("split", {"x": CUBE, "axis": 1, "split_sizes": ints(1, 2)}),
    ("slice_by_index", {"x": CUBE, "begin": ints(0, 2, -1), "end": ints(2, 0, -5), "stride": ints(1, -1, -2)}),
    ("slice_by_size", {"x": CUBE, "begin": ints(0, 1, 2), "size": ints(-1, 2, 1)}),
    ("gather", {"x": CUBE, "indices": ints(2, 0, 2), "axis": 1}),
    ("gather", {"x": CUBE, "indices": np.array([[1, 0], [0, 1]], np.int32), "axis": 0}),
    ("gather_along_axis", {"x": X, "indices": np.array([[0, 1, 2, 0]], np.int32), "axis": 0}),
    ("fill", {"shape": ints(2, 3), "value": 1.5}),
    ("range_1d", {"start": 1, "end": 9, "step": 3}),
    ("range_1d", {"start": 0.5, "end": 2.0, "step": 0.25}),
    ("non_zero", {"x": ints(0, 3, 0, 4)}),
    ("pad", {"x": X, "pad": ints(1, 2, 0, 1), "mode": "constant", "constant_val": 3.5}),
    ("pad", {"x": X, "pad": ints(1, 2, 2, 1), "mode": "reflect"}),
    ("pad", {"x": X, "pad": ints(1, 2), "mode": "replicate"}),
    *[
        (kind, {"x": CUBE, "axes": ints(0, 2), "keep_dims": True})
        for kind in ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod", "reduce_l1_norm")
    ],
    ("reduce_argmax", {"x": CUBE, "axis": 1}),
    ("reduce_argmin", {"x": CUBE, "axis": -1, "keep_dims": True}),
    ("argsort", {"x": X, "axis": 0, "ascending": True}),
    ("topk", {"x": X, "k": 2, "axis": 1}),
    ("topk", {"x": X, "k": 2, "axis": 0, "ascending": True}),
    ("linear", {"x": X, "weight": noise(5, 4, seed=6), "bias": noise(5, seed=7)}),
    ("matmul", {"x": CUBE, "y": noise(5, 4, seed=6), "transpose_y": True}),
]


@pytest.mark.parametrize(("kind", "inputs"), FOLDED, ids=[f"{number}-{item[0]}" for number, item in enumerate(FOLDED)])
def test_what_coremltools_folds(ask, kind, inputs):
    dtypes, wanted = ask("inferred", kind=kind, inputs=inputs, target="iOS16")
    if not dtypes:
        pytest.skip("this version of coremltools does not fold it")
    types = [{"int64": "int32", "float64": "float32"}.get(dtype, dtype) for dtype in dtypes]
    _, found = ask("operator", kind=kind, inputs=inputs, types=types)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-6)


def test_most_of_the_table_is_folded(ask):
    """The comparison above must not fade away by skipping."""
    folds = [bool(ask("inferred", kind=kind, inputs=inputs, target="iOS16")[0]) for kind, inputs in FOLDED]
    assert sum(folds) > 0.85 * len(folds)


JOINED = [
    ("concat", {"values": [X, noise(2, 4, seed=1)], "axis": 0}, ("values",)),
    ("concat", {"values": [X, noise(3, 4, seed=1)], "axis": 1, "interleave": True}, ("values",)),
    ("concat", {"values": [X, noise(3, 4, seed=1)], "axis": -2, "interleave": True}, ("values",)),
    ("stack", {"values": [X, noise(3, 4, seed=1)], "axis": 1}, ("values",)),
]


@pytest.mark.parametrize(("kind", "inputs", "lists"), JOINED, ids=[str(number) for number in range(len(JOINED))])
def test_joining(ask, kind, inputs, lists):
    _, (found,) = ask("operator", kind=kind, inputs=inputs, types=["float32"], lists=lists)
    first, second = inputs["values"]
    axis = inputs["axis"]
    if kind == "stack":
        wanted = np.stack([first, second], axis)
    elif inputs.get("interleave"):
        size = first.shape[axis]
        order = [place for pair in zip(range(size), range(size, 2 * size), strict=True) for place in pair]
        wanted = np.take(np.concatenate([first, second], axis), order, axis)
    else:
        wanted = np.concatenate([first, second], axis)
    np.testing.assert_array_equal(found, wanted)


SIGNAL = noise(2, 4, 6, 6, seed=11)

AGAINST_TORCH = [
    ("gelu", {"x": X, "mode": "EXACT"}, "nn.functional.gelu", [X], {}),
    ("gelu", {"x": X, "mode": "TANH_APPROXIMATION"}, "nn.functional.gelu", [X], {"approximate": "tanh"}),
    ("silu", {"x": X}, "nn.functional.silu", [X], {}),
    ("softplus", {"x": X * 50}, "nn.functional.softplus", [X * 50], {}),
    ("softmax", {"x": CUBE, "axis": 1}, "softmax", [CUBE], {"dim": 1}),
    ("pixel_shuffle", {"x": SIGNAL, "upscale_factor": 2}, "pixel_shuffle", [SIGNAL], {"upscale_factor": 2}),
    ("pixel_unshuffle", {"x": SIGNAL, "downscale_factor": 3}, "pixel_unshuffle", [SIGNAL], {"downscale_factor": 3}),
    (
        "upsample_bilinear",
        {"x": SIGNAL, "scale_factor_height": 2.0, "scale_factor_width": 1.5, "align_corners": True},
        "nn.functional.interpolate",
        [SIGNAL],
        {"scale_factor": [2.0, 1.5], "mode": "bilinear", "align_corners": True, "recompute_scale_factor": True},
    ),
    (
        "upsample_bilinear",
        {"x": SIGNAL, "scale_factor_height": 0.5, "scale_factor_width": 1.5, "align_corners": False},
        "nn.functional.interpolate",
        [SIGNAL],
        {"scale_factor": [0.5, 1.5], "mode": "bilinear", "align_corners": False, "recompute_scale_factor": True},
    ),
    (
        "upsample_nearest_neighbor",
        {"x": SIGNAL, "scale_factor_height": 2, "scale_factor_width": 3},
        "nn.functional.interpolate",
        [SIGNAL],
        {"scale_factor": [2.0, 3.0], "mode": "nearest"},
    ),
]


@pytest.mark.parametrize(
    ("kind", "inputs", "function", "arguments", "settings"),
    AGAINST_TORCH,
    ids=[f"{number}-{item[0]}" for number, item in enumerate(AGAINST_TORCH)],
)
def test_what_pytorch_has(ask, kind, inputs, function, arguments, settings):
    _, (wanted,) = ask("torch_function", name=function, arguments=arguments, settings=settings)
    _, (found,) = ask("operator", kind=kind, inputs=inputs, types=["float32"])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize(
    ("padding", "corners", "theirs"),
    [
        ("constant", True, "zeros"),
        ("constant", False, "zeros"),
        ("border", True, "border"),
        ("border", False, "border"),
        ("reflection", True, "reflection"),
        ("symmetric", False, "reflection"),
    ],
)
def test_resample_reads_as_grid_sample(ask, mode, padding, corners, theirs):
    grid = noise(2, 3, 5, 2, seed=12, low=-2.5, high=2.5)
    options = {"mode": mode, "padding_mode": theirs, "align_corners": corners}
    _, (wanted,) = ask("torch_function", name="nn.functional.grid_sample", arguments=[SIGNAL, grid], settings=options)
    inputs = {"x": SIGNAL, "coordinates": grid, "sampling_mode": mode, "padding_mode": padding, "padding_value": 0.0}
    inputs.update(coordinates_mode="normalized_minus_one_to_one", align_corners=corners)
    _, (found,) = ask("operator", kind="resample", inputs=inputs, types=["float32"])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_affine_is_a_grid_of_pytorch(ask):
    matrix = np.array([[0.9, 0.2, -0.1, -0.3, 1.1, 0.2]], np.float32)
    settings = {"size": [2, 4, 5, 7], "align_corners": True}
    both = matrix.reshape(1, 2, 3).repeat(2, axis=0)
    _, (grid,) = ask("torch_function", name="nn.functional.affine_grid", arguments=[both], settings=settings)
    options = {"align_corners": True}
    _, (wanted,) = ask("torch_function", name="nn.functional.grid_sample", arguments=[SIGNAL, grid], settings=options)
    inputs = {"x": SIGNAL, "transform_matrix": matrix, "output_height": 5, "output_width": 7}
    inputs.update(sampling_mode="bilinear", padding_mode="constant", padding_value=0.0, align_corners=True)
    inputs["coordinates_mode"] = "normalized_minus_one_to_one"
    _, (found,) = ask("operator", kind="affine", inputs=inputs, types=["float32"])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_attention(ask, mask):
    query, key, value = noise(2, 3, 4, seed=1), noise(2, 5, 4, seed=2), noise(2, 5, 6, seed=3)
    inputs = {"query": query, "key": key, "value": value}
    arguments = [query, key, value]
    if mask:
        held = noise(3, 5, seed=4)
        inputs["attn_mask"] = (held > -1) if mask == "bool" else held
        arguments.append(inputs["attn_mask"])
    name = "nn.functional.scaled_dot_product_attention"
    _, (wanted,) = ask("torch_function", name=name, arguments=arguments, settings={})
    _, (found,) = ask("operator", kind="scaled_dot_product_attention", inputs=inputs, types=["float32"])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


# -- recurrent layers, step by step in NumPy


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_numpy(x, h, c, weights, *, peephole=None, clip=None, activation=np.tanh):
    w_input, w_hidden, bias = weights
    size = h.shape[-1]
    p = peephole.reshape(3, size) if peephole is not None else np.zeros((3, size))
    rows = []
    for step in x:
        i, f, o, z = np.split(step @ w_input.T + h @ w_hidden.T + bias, 4, axis=-1)
        i, f = sigmoid(i + p[0] * c), sigmoid(f + p[1] * c)
        c = f * c + i * np.tanh(z)
        c = np.clip(c, -clip, clip) if clip else c
        h = sigmoid(o + p[2] * c) * activation(c)
        rows.append(h)
    return np.stack(rows), h, c


def lstm_weights(size, features, seed):
    return noise(4 * size, features, seed=seed), noise(4 * size, size, seed=seed + 1), noise(4 * size, seed=seed + 2)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("sequence", [True, False])
def test_lstm(ask, direction, sequence):
    x, size = noise(4, 2, 3, seed=20), 5
    both = direction == "bidirectional"
    h, c = (noise(2, size * (1 + both), seed=seed) for seed in (21, 22))
    ahead, back = lstm_weights(size, 3, 30), lstm_weights(size, 3, 40)
    peephole = noise(3 * size, seed=50)
    inputs = {"x": x, "initial_h": h, "initial_c": c, "direction": direction, "output_sequence": sequence}
    inputs.update(zip(("weight_ih", "weight_hh", "bias"), ahead, strict=True), peephole=peephole, clip=0.5)
    if both:
        inputs.update(zip(("weight_ih_back", "weight_hh_back", "bias_back"), back, strict=True))
        first = lstm_numpy(x, h[:, :size], c[:, :size], ahead, peephole=peephole, clip=0.5)
        second = lstm_numpy(x[::-1], h[:, size:], c[:, size:], back, clip=0.5)
        states = [np.concatenate([a, b], -1) for a, b in zip(first[1:], second[1:], strict=True)]
        rows = np.concatenate([first[0], second[0][::-1]], -1)
        rows = rows if sequence else states[0][None]
    else:
        rows, *states = lstm_numpy(x if direction == "forward" else x[::-1], h, c, ahead, peephole=peephole, clip=0.5)
        rows = rows if sequence else rows[-1:]
    _, found = ask("operator", kind="lstm", inputs=inputs, types=["float32"] * 3)
    for ours, theirs in zip(found, [rows, *states], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_gru(ask, after, direction):
    x, h = noise(4, 2, 3, seed=20), noise(2, 5, seed=21)
    w_input, w_hidden = noise(15, 3, seed=22), noise(15, 5, seed=23)
    bias, own = noise(15, seed=24), noise(15, seed=25)
    inputs = {"x": x, "initial_h": h, "weight_ih": w_input, "weight_hh": w_hidden, "bias": bias, "direction": direction}
    inputs.update(output_sequence=True, **({"reset_after": True, "input_bias": own} if after else {}))
    wr, wo, wz = np.split(w_input, 3)
    rr, ro, rz = np.split(w_hidden, 3)
    br, bo, bz = np.split(bias, 3)
    ir, io, iz = np.split(own, 3) if after else (0, 0, 0)
    rows, state = [], h
    for step in x if direction == "forward" else x[::-1]:
        reset = sigmoid(step @ wr.T + ir + state @ rr.T + br)
        update = sigmoid(step @ wz.T + iz + state @ rz.T + bz)
        inner = reset * (state @ ro.T + bo) if after else (reset * state) @ ro.T + bo
        state = (1 - update) * np.tanh(step @ wo.T + io + inner) + update * state
        rows.append(state)
    _, found = ask("operator", kind="gru", inputs=inputs, types=["float32"] * 2)
    np.testing.assert_allclose(found[0], np.stack(rows), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("tanh", np.tanh),
        ("relu", lambda x: np.maximum(x, 0)),
        ("sigmoid", sigmoid),
        ("linear", lambda x: x),
        ("sigmoid_hard", lambda x: np.clip(0.2 * x + 0.5, 0, 1)),
        ("scaled_tanh", np.tanh),  # its factors are 1 where they cannot be given
    ],
)
def test_rnn(ask, name, function):
    x, h = noise(3, 2, 3, seed=20) / 2, noise(2, 4, seed=21)
    weights = {"weight_ih": noise(4, 3, seed=22), "weight_hh": noise(4, 4, seed=23) / 2, "bias": noise(4, seed=24)}
    state = h
    for step in x:
        state = function(step @ weights["weight_ih"].T + state @ weights["weight_hh"].T + weights["bias"])
    inputs = {"x": x, "initial_h": h, **weights, "activation": name}
    _, found = ask("operator", kind="rnn", inputs=inputs, types=["float32"] * 2)
    np.testing.assert_allclose(found[0], state[None], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], state, rtol=1e-4, atol=1e-5)


def test_an_unknown_activation_is_refused_by_name(pool, env):
    x, h = noise(3, 2, 3), noise(2, 4)
    inputs = {"x": x, "initial_h": h, "weight_ih": noise(4, 3), "weight_hh": noise(4, 4), "activation": "gelu"}
    arguments = {"kind": "rnn", "inputs": inputs, "types": ["float32"] * 2}
    outcome = pool.call(env("coreml"), "mil_probe", "operator", arguments, stage=Stage.RUN, emit=True, paths=[HERE])
    assert isinstance(outcome, Failure)
    assert outcome.kind is Kind.UNSUPPORTED
    assert "gelu" in outcome.message

"""MIL kernels against NumPy written here from the operators' documentation, over generated settings."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trueport.outcome import Failure, Ok, Stage

HERE = str(Path(__file__).parent)
FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def op(pool, env):
    """op(kind, inputs, types) -> list of results, or the Failure."""

    def run(kind, inputs, types=("float32",), **options):
        arguments = {"kind": kind, "inputs": inputs, "types": list(types), **options}
        outcome = pool.call(env("coreml"), "mil_probe", "operator", arguments, stage=Stage.RUN, emit=True, paths=[HERE])
        if isinstance(outcome, Failure):
            return outcome
        assert isinstance(outcome, Ok)
        return [np.array(outcome.value.emitted[str(place)]) for place in range(len(types))]

    return run


def noise(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# -- convolution


def correlate(x, weight, strides, pads, dilations, groups):
    """Direct sum over one sample's windows, any number of spatial axes."""
    x = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *pads])
    rank = x.ndim - 2
    out_channels, per_group = weight.shape[:2]
    sizes = [(x.shape[2 + a] - (weight.shape[2 + a] - 1) * dilations[a] - 1) // strides[a] + 1 for a in range(rank)]
    found = np.zeros((x.shape[0], out_channels, *sizes))
    for place in itertools.product(*map(range, sizes)):
        for tap in itertools.product(*map(range, weight.shape[2:])):
            at = tuple(p * s + t * d for p, s, t, d in zip(place, strides, tap, dilations, strict=True))
            for channel in range(out_channels):
                first = channel // (out_channels // groups) * per_group
                values = x[(slice(None), slice(first, first + per_group), *at)]
                found[(slice(None), channel, *place)] += values @ weight[(channel, slice(None), *tap)]
    return found


@st.composite
def convolutions(draw):
    rank = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 2]))
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    dilations = [draw(st.integers(1, 2)) for _ in range(rank)]
    sizes = [draw(st.integers((k - 1) * d + 1, (k - 1) * d + 4)) for k, d in zip(kernel, dilations, strict=True)]
    return {
        "sizes": sizes,
        "kernel": kernel,
        "dilations": dilations,
        "groups": groups,
        "strides": [draw(st.integers(1, 3)) for _ in range(rank)],
        "pad": [draw(st.integers(0, 2)) for _ in range(2 * rank)],
        "pad_type": draw(st.sampled_from(["valid", "same", "same_lower", "custom"])),
    }


def same_pads(sizes, reach, strides, lower):
    """TensorFlow's SAME: as many windows as strides fit into the input; the odd element after it, or before it."""
    pads = []
    for size, width, stride in zip(sizes, reach, strides, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + width - size, 0)
        half = total // 2
        pads.append((total - half, half) if lower else (half, total - half))
    return pads


@given(case=convolutions(), seed=st.integers(0, 99))
@FEW
def test_conv(op, case, seed):
    rank, groups = len(case["sizes"]), case["groups"]
    x, weight = noise((2, 2 * groups, *case["sizes"]), seed), noise((2 * groups, 2, *case["kernel"]), seed + 1)
    bias = noise((2 * groups,), seed + 2)
    reach = [(k - 1) * d + 1 for k, d in zip(case["kernel"], case["dilations"], strict=True)]
    pads = {
        "valid": [(0, 0)] * rank,
        "custom": [(case["pad"][2 * a], case["pad"][2 * a + 1]) for a in range(rank)],
        "same": same_pads(case["sizes"], reach, case["strides"], False),
        "same_lower": same_pads(case["sizes"], reach, case["strides"], True),
    }[case["pad_type"]]
    inputs = {
        "x": x,
        "weight": weight,
        "bias": bias,
        **{key: case[key] for key in ("strides", "pad_type", "dilations")},
    }
    inputs["groups"] = groups
    if case["pad_type"] == "custom":
        inputs["pad"] = case["pad"]
    (found,) = op("conv", inputs)
    wanted = correlate(x, weight, case["strides"], pads, case["dilations"], groups)
    np.testing.assert_allclose(found, wanted + bias.reshape([-1] + [1] * rank), rtol=1e-4, atol=1e-4)


def spread(x, weight, strides, dilations, groups):
    """Every input element adds its scaled kernel to the result: [N, C_out, *full]."""
    rank = x.ndim - 2
    per_group = weight.shape[1]
    sizes = [(x.shape[2 + a] - 1) * strides[a] + (weight.shape[2 + a] - 1) * dilations[a] + 1 for a in range(rank)]
    found = np.zeros((x.shape[0], per_group * groups, *sizes))
    share = x.shape[1] // groups
    for place in itertools.product(*map(range, x.shape[2:])):
        for tap in itertools.product(*map(range, weight.shape[2:])):
            at = tuple(p * s + t * d for p, s, t, d in zip(place, strides, tap, dilations, strict=True))
            for channel in range(x.shape[1]):
                first = channel // share * per_group
                found[(slice(None), slice(first, first + per_group), *at)] += np.outer(
                    x[(slice(None), channel, *place)], weight[(channel, slice(None), *tap)]
                )
    return found


@given(case=convolutions(), seed=st.integers(0, 99), extra=st.integers(0, 1))
@FEW
def test_conv_transpose(op, case, seed, extra):
    rank, groups = len(case["sizes"]), case["groups"]
    x, weight = noise((1, 2 * groups, *case["sizes"]), seed), noise((2 * groups, 2, *case["kernel"]), seed + 1)
    bias = noise((2 * groups,), seed + 2)
    full = spread(x, weight, case["strides"], case["dilations"], groups)
    kind = "same" if case["pad_type"] == "same_lower" else case["pad_type"]
    inputs = {"x": x, "weight": weight, "bias": bias, "groups": groups, "pad_type": kind}
    inputs.update({key: case[key] for key in ("strides", "dilations")})
    window = []
    for axis in range(rank):
        size = full.shape[2 + axis]
        if kind == "same":
            wanted = case["sizes"][axis] * case["strides"][axis]
            window.append(((size - wanted) // 2, wanted))
        else:
            before, after = (min(item, (size - 1) // 2) for item in case["pad"][2 * axis : 2 * axis + 2])
            before, after = (before, after) if kind == "custom" else (0, 0)
            window.append((before, size - before - after))
    if kind == "custom":
        inputs["pad"] = [
            item
            for (before, wanted), size in zip(window, full.shape[2:], strict=True)
            for item in (before, size - before - wanted)
        ]
        if extra:  # what PyTorch calls output padding: rows behind what the kernels reach hold the bias alone
            window = [(before, wanted + 1) for before, wanted in window]
            inputs["output_shape"] = [1, 2 * groups, *[wanted for _, wanted in window]]
    room = np.pad(full, [(0, 0), (0, 0), *[(9, 9)] * rank])
    cut = tuple(slice(9 + before, 9 + before + wanted) for before, wanted in window)
    (found,) = op("conv_transpose", inputs)
    expected = room[(slice(None), slice(None), *cut)] + bias.reshape([-1] + [1] * rank)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


# -- pools


@st.composite
def pools(draw):
    rank = draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    symmetric = [draw(st.integers(0, k // 2)) for k in kernel]
    ceil = draw(st.booleans())
    pad = [item for amount in symmetric for item in (amount, amount)]
    if not ceil and draw(st.booleans()):
        pad[-1] = draw(st.integers(0, kernel[-1] - 1))
    return {
        "sizes": [draw(st.integers(k, k + 5)) for k in kernel],
        "kernel_sizes": kernel,
        "strides": [draw(st.integers(1, 3)) for _ in range(rank)],
        "pad": pad,
        "ceil_mode": ceil,
        "exclude_padding_from_average": draw(st.booleans()),
    }


def windows(case):
    """For each axis the windows [(first, last)] in input coordinates; a last partial one must begin before the end of the
    input (or of what is put before it)."""
    found = []
    for axis, (size, width, stride) in enumerate(
        zip(case["sizes"], case["kernel_sizes"], case["strides"], strict=True)
    ):
        before, after = case["pad"][2 * axis : 2 * axis + 2]
        starts = []
        start = -before
        while True:
            complete = start + width <= size + after
            if not complete and not (case["ceil_mode"] and start < size and start + width - stride < size + after):
                break
            starts.append(start)
            start += stride
        found.append([(s, s + width) for s in starts])
    return found


def pooled(x, case, kind):
    axes = windows(case)
    found = np.zeros((*x.shape[:2], *map(len, axes)))
    for place in itertools.product(*(range(len(item)) for item in axes)):
        spans = [axes[axis][number] for axis, number in enumerate(place)]
        inside = tuple(slice(max(a, 0), min(b, size)) for (a, b), size in zip(spans, case["sizes"], strict=True))
        values = x[(slice(None), slice(None), *inside)].reshape(*x.shape[:2], -1).astype(np.float64)
        if kind == "max_pool":
            value = values.max(-1)
        elif kind == "l2_pool":
            value = np.sqrt((values**2).sum(-1))
        else:
            whole = math.prod(b - a for a, b in spans)
            value = values.sum(-1) / (values.shape[-1] if case["exclude_padding_from_average"] else whole)
        found[(slice(None), slice(None), *place)] = value
    return found


@pytest.mark.parametrize("kind", ["max_pool", "avg_pool", "l2_pool"])
@given(case=pools(), seed=st.integers(0, 99))
@FEW
def test_pools(op, kind, case, seed):
    x = noise((1, 2, *case["sizes"]), seed) - 3  # what is put around must not win over negative values
    inputs = {"x": x, "pad_type": "custom", **{k: case[k] for k in ("kernel_sizes", "strides", "pad", "ceil_mode")}}
    if kind == "avg_pool":
        inputs["exclude_padding_from_average"] = case["exclude_padding_from_average"]
    (found,) = op(kind, inputs)
    np.testing.assert_allclose(found, pooled(x, case, kind), rtol=1e-4, atol=1e-5)


def test_average_in_ceil_mode_counts_what_a_window_reaches_beyond_the_end(op):
    """The numbers that Core ML was measured to give (coremltools pull request 2844), where PyTorch gives 9.5 and 48."""
    x = np.arange(49, dtype=np.float32).reshape(1, 1, 7, 7)
    inputs = {
        "x": x,
        "kernel_sizes": [2, 2],
        "strides": [3, 3],
        "pad_type": "custom",
        "pad": [0] * 4,
        "ceil_mode": True,
    }
    counted = [[4, 7, 4.75], [25, 28, 15.25], [21.25, 22.75, 12]]
    assert op("avg_pool", inputs)[0][0, 0].tolist() == counted
    without = op("avg_pool", {**inputs, "exclude_padding_from_average": True})[0][0, 0]
    assert without.tolist() == [[4, 7, 9.5], [25, 28, 30.5], [42.5, 45.5, 48]]
    assert op("avg_pool", {**inputs, "ceil_mode": False})[0][0, 0].tolist() == [[4, 7], [25, 28]]


@given(sizes=st.lists(st.integers(3, 7), min_size=1, max_size=2), stride=st.integers(1, 3), lower=st.booleans())
@FEW
def test_pools_with_same_padding(op, sizes, stride, lower):
    x = noise((1, 1, *sizes), 7)
    rank = len(sizes)
    pads = same_pads(sizes, [3] * rank, [stride] * rank, lower)
    flat = [item for pair in pads for item in pair]
    base = {"x": x, "kernel_sizes": [3] * rank, "strides": [stride] * rank, "exclude_padding_from_average": True}
    same = op("avg_pool", {**base, "pad_type": "same_lower" if lower else "same"})[0]
    case = {"sizes": sizes, "pad": flat, "ceil_mode": False, **{k: base[k] for k in base if k != "x"}}
    np.testing.assert_allclose(same, pooled(x, case, "avg_pool"), rtol=1e-5, atol=1e-6)
    assert same.shape[2:] == tuple(math.ceil(size / stride) for size in sizes)


# -- resizing


def grid(size, count, mode):
    """Sampling points of the documentation of resize_bilinear."""
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if count == 1:
            return [(size - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0]
        points = [i * (size - 1) / (count - 1) for i in range(count)]
    elif mode == "DEFAULT":
        points = [i * (size - size / count) / (count - 1) if count > 1 else 0.0 for i in range(count)]
    elif mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / count
        points = [0.5 * delta + i * delta for i in range(count)]
    else:
        points = [i * size / count + 0.5 * size / count - 0.5 for i in range(count)]
    return [min(size - 1, max(0, point)) for point in points]


def lines(values, points):
    """Linear interpolation along the last axis."""
    return np.stack([np.array([np.interp(p, range(len(row)), row) for p in points]) for row in values])


MODES = ["STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS"]


@pytest.mark.parametrize("mode", MODES)
@given(before=st.tuples(st.integers(1, 6), st.integers(1, 6)), after=st.tuples(st.integers(1, 9), st.integers(1, 9)))
@FEW
def test_resize_bilinear(op, mode, before, after):
    x = noise((1, 1, *before), 3)
    rows = lines(x[0, 0], grid(before[1], after[1], mode))
    wanted = lines(rows.T, grid(before[0], after[0], mode)).T
    inputs = {"target_size_height": after[0], "target_size_width": after[1], "sampling_mode": mode}
    np.testing.assert_allclose(op("resize_bilinear", {"x": x, **inputs})[0][0, 0], wanted, rtol=1e-4, atol=1e-5)
    inputs = {"shape": list(after), "resized_dims": 2, "sampling_mode": mode, "interpolation_mode": "LINEAR"}
    np.testing.assert_allclose(op("resize", {"x": x, **inputs})[0][0, 0], wanted, rtol=1e-4, atol=1e-5)


@given(before=st.integers(1, 9), after=st.integers(1, 20))
@FEW
def test_nearest_pixel_is_that_of_the_centre(op, before, after):
    x = noise((1, 1, 1, before), 3)
    wanted = [math.floor((i + 0.5) * before / after + 1e-9) for i in range(after)]
    (found,) = op("resize_nearest_neighbor", {"x": x, "target_size_height": 1, "target_size_width": after})
    np.testing.assert_array_equal(found[0, 0, 0], x[0, 0, 0, wanted])


def test_resize_keeps_an_axis_whose_size_is_zero(op):
    x = noise((1, 2, 3, 4), 1)
    inputs = {"x": x, "shape": [0, 8], "resized_dims": 2, "interpolation_mode": "NEAREST_NEIGHBOR"}
    np.testing.assert_array_equal(op("resize", inputs)[0], x.repeat(2, axis=-1))


def test_a_nearest_mode_that_nothing_documents_is_refused(op):
    inputs = {"x": noise((1, 1, 2, 2), 0), "shape": [4, 4], "resized_dims": 2, "interpolation_mode": "NEAREST_NEIGHBOR"}
    outcome = op("resize", {**inputs, "sampling_mode": "ALIGN_CORNERS"})
    assert isinstance(outcome, Failure)
    assert "not documented" in outcome.message


# -- slices


@st.composite
def slices(draw):
    shape = [draw(st.integers(1, 5)) for _ in range(draw(st.integers(1, 3)))]
    begin, end, stride, masks = [], [], [], []
    for size in shape:
        first = draw(st.integers(-size, size - 1))
        step = draw(st.sampled_from([1, 2, -1, -2]))
        last = draw(st.integers(-size - 1, size + 2))
        begin.append(first)
        end.append(last)
        stride.append(step)
        masks.append([draw(st.booleans()) for _ in range(3)])
    return shape, begin, end, stride, masks


@given(case=slices())
@FEW
def test_slice_by_index(op, case):
    shape, begin, end, stride, masks = case
    x = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    places = []
    for axis, (from_start, to_end, index) in enumerate(masks):
        if index:
            places.append(0 if from_start else begin[axis])
        else:
            places.append(slice(None if from_start else begin[axis], None if to_end else end[axis], stride[axis]))
    inputs = {"x": x, "begin": begin, "end": end, "stride": stride}
    for place, name in enumerate(("begin_mask", "end_mask", "squeeze_mask")):
        inputs[name] = [mask[place] for mask in masks]
    (found,) = op("slice_by_index", inputs)
    np.testing.assert_array_equal(found, x[tuple(places)])


@given(case=slices())
@FEW
def test_slice_update(op, case):
    shape, begin, end, stride, _ = case
    x = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    places = tuple(slice(*item) for item in zip(begin, end, stride, strict=True))
    update = -1 - np.arange(x[places].size, dtype=np.float32).reshape(x[places].shape)
    wanted = x.copy()
    wanted[places] = update
    (found,) = op("slice_update", {"x": x, "update": update, "begin": begin, "end": end, "stride": stride})
    np.testing.assert_array_equal(found, wanted)


# -- norms and reductions


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    picks=st.lists(st.booleans(), min_size=4, max_size=4),
    keep=st.booleans(),
    absent=st.booleans(),
)
@FEW
def test_reductions(op, shape, picks, keep, absent):
    x = np.abs(noise(shape, 5)) + 0.5
    axes = tuple(axis for axis in range(len(shape)) if picks[axis]) or (0,)
    over = tuple(range(len(shape))) if absent else axes
    inputs = {"x": x, "keep_dims": keep, **({} if absent else {"axes": [axis - len(shape) for axis in axes]})}
    wide = x.astype(np.float64)
    wanted = {
        "reduce_sum": wide.sum(over, keepdims=keep),
        "reduce_mean": wide.mean(over, keepdims=keep),
        "reduce_max": wide.max(over, keepdims=keep),
        "reduce_min": wide.min(over, keepdims=keep),
        "reduce_prod": wide.prod(over, keepdims=keep),
        "reduce_l1_norm": np.abs(wide).sum(over, keepdims=keep),
        "reduce_l2_norm": np.sqrt((wide**2).sum(over, keepdims=keep)),
        "reduce_sum_square": (wide**2).sum(over, keepdims=keep),
        "reduce_log_sum": np.log(wide.sum(over, keepdims=keep)),
        "reduce_log_sum_exp": np.log(np.exp(wide).sum(over, keepdims=keep)),
    }
    for kind, value in wanted.items():
        (found,) = op(kind, inputs)
        assert found.shape == value.shape, kind
        np.testing.assert_allclose(found, value, rtol=1e-5, err_msg=kind)


@given(
    shape=st.lists(st.integers(2, 4), min_size=2, max_size=4),
    picks=st.lists(st.booleans(), min_size=4, max_size=4),
    affine=st.booleans(),
)
@FEW
def test_layer_norm(op, shape, picks, affine):
    x = noise(shape, 8)
    axes = [axis for axis in range(len(shape)) if picks[axis]] or [len(shape) - 1]
    wide = x.astype(np.float64)
    mean, variance = wide.mean(tuple(axes), keepdims=True), wide.var(tuple(axes), keepdims=True)
    wanted = (wide - mean) / np.sqrt(variance + 1e-3)
    inputs = {"x": x, "axes": axes, "epsilon": 1e-3}
    if affine:
        inner = [shape[axis] for axis in axes]
        inputs.update(gamma=noise(inner, 9), beta=noise(inner, 10))
        spread_over = [size if axis in axes else 1 for axis, size in enumerate(shape)]
        wanted = wanted * inputs["gamma"].reshape(spread_over) + inputs["beta"].reshape(spread_over)
    np.testing.assert_allclose(op("layer_norm", inputs)[0], wanted, rtol=1e-4, atol=1e-4)


@given(size=st.integers(1, 6), channels=st.integers(1, 6))
@FEW
def test_local_response_norm(op, size, channels):
    x = noise((2, channels, 3), 2) * 4
    wanted = np.zeros_like(x, dtype=np.float64)
    for channel in range(channels):
        near = range(max(0, channel - size // 2), min(channels, channel + (size - 1) // 2 + 1))
        total = sum(x[:, other].astype(np.float64) ** 2 for other in near)
        wanted[:, channel] = x[:, channel] / (1.5 + 0.3 / size * total) ** 0.6
    inputs = {"x": x, "size": size, "alpha": 0.3, "beta": 0.6, "k": 1.5}
    np.testing.assert_allclose(op("local_response_norm", inputs)[0], wanted, rtol=1e-4)


def test_norms_of_channels_and_of_everything(op):
    x = noise((2, 3, 4, 5), 4)
    gamma, beta, mean, variance = noise(3, 5), noise(3, 6), noise(3, 7), np.abs(noise(3, 8))
    each = [-1, 1, 1]
    inputs = {"gamma": gamma, "beta": beta, "epsilon": 0.01}
    wanted = (x - mean.reshape(each)) / np.sqrt(variance.reshape(each) + 0.01) * gamma.reshape(each) + beta.reshape(
        each
    )
    (found,) = op("batch_norm", {"x": x, "mean": mean, "variance": variance, **inputs})
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    own = (x - x.mean((2, 3), keepdims=True)) / np.sqrt(x.var((2, 3), keepdims=True) + 0.01)
    (found,) = op("instance_norm", {"x": x, **inputs})
    np.testing.assert_allclose(found, own * gamma.reshape(each) + beta.reshape(each), rtol=1e-4, atol=1e-5)
    (found,) = op("l2_norm", {"x": x, "epsilon": 0.5})
    np.testing.assert_allclose(found, x / np.sqrt((x**2).sum((1, 2, 3), keepdims=True) + 0.5), rtol=1e-5)


# -- order and places


@given(
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=8),
    ascending=st.booleans(),
    data=st.data(),
)
@FEW
def test_equal_values_keep_their_order(op, values, ascending, data):
    count = data.draw(st.sampled_from([-1, 1, len(values)]))
    x = np.array([values], dtype=np.float32)
    order = sorted(range(len(values)), key=lambda place: values[place] if ascending else -values[place])
    inputs = {"x": x, "axis": -1, "ascending": ascending}
    assert op("argsort", inputs, ["int32"])[0][0].tolist() == order
    kept = order if count == -1 else order[:count]
    best, indices = op("topk", {**inputs, "k": count}, ["float32", "int32"])
    assert indices[0].tolist() == kept
    assert best[0].tolist() == [values[place] for place in kept]


COMBINE = {
    "update": lambda old, new: new,
    "add": lambda old, new: old + new,
    "sub": lambda old, new: old - new,
    "mul": lambda old, new: old * new,
    "div": lambda old, new: old / new,
    "max": max,
    "min": min,
}


@pytest.mark.parametrize("mode", sorted(COMBINE))
@given(indices=st.lists(st.integers(-4, 3), min_size=1, max_size=6))
@FEW
def test_scatter_counts_every_update_of_one_place(op, mode, indices):
    data = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]], np.float32)
    updates = noise((len(indices), 2), 1) + 4
    wanted = data.astype(np.float64)
    for row, place in zip(updates, indices, strict=True):
        wanted[place] = [COMBINE[mode](float(old), float(new)) for old, new in zip(wanted[place], row, strict=True)]
    where = np.array(indices, np.int32)
    base = {"data": data, "updates": updates, "mode": mode}
    (found,) = op("scatter", {**base, "indices": where, "axis": 0})
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    (found,) = op("scatter_nd", {**base, "indices": where.reshape(-1, 1)})
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    (found,) = op("scatter_along_axis", {**base, "indices": np.stack([where, where], 1), "axis": 0})
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_scatter_without_a_mode_is_refused(op):
    data = np.zeros((2, 2), np.float32)
    outcome = op("scatter", {"data": data, "updates": data[:1], "indices": np.array([0], np.int32)})
    assert isinstance(outcome, Failure)
    assert "mode" in outcome.message


@pytest.mark.parametrize(
    ("opset", "index", "value"), [("CoreML6", -1, 2.0), ("CoreML7", -1, None), ("CoreML6", 2, None)]
)
def test_an_index_for_which_nothing_is_defined_gives_no_value(op, opset, index, value):
    inputs = {"x": np.array([1, 2], np.float32), "indices": np.array([index], np.int32), "axis": 0}
    outcome = op("gather", inputs, opset=opset)
    if value is not None:
        assert outcome[0].tolist() == [value]
    else:
        assert isinstance(outcome, Failure)
        assert "defines no result" in outcome.message


@pytest.mark.parametrize(
    ("before", "asked", "after"),
    [((2, 3), [1, 0, -1, 0], (1, 1, 2, 3)), ((2, 3, 4), [6, 0], (6, 4)), ((2, 3, 4), [0, 4, -1], (2, 4, 3))],
)
def test_a_zero_in_a_shape_counts_from_the_end(op, before, asked, after):
    x = noise(before, 0)
    (found,) = op("reshape", {"x": x, "shape": asked})
    assert found.shape == after
    np.testing.assert_array_equal(found.ravel(), x.ravel())


# -- float16


@given(seed=st.integers(0, 99))
@FEW
def test_a_declared_half_is_rounded_after_the_operator_and_only_there(op, seed):
    x, y = noise((5,), seed).astype(np.float16), noise((5,), seed + 1).astype(np.float16)
    (found,) = op("mul", {"x": x, "y": y}, ["float16"])
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, x * y)  # NumPy's own half product is rounded once as well
    (exact,) = op("mul", {"x": x, "y": y}, ["float16"], rounding=False)
    np.testing.assert_array_equal(exact, x.astype(np.float32) * y.astype(np.float32))
    (double,) = op("mul", {"x": x, "y": y}, ["float16"], precision="float64")
    np.testing.assert_array_equal(double, x.astype(np.float64) * y.astype(np.float64))


def test_a_half_overflows_as_it_does_on_a_device(op):
    big = np.array([60000.0], np.float16)
    assert op("add", {"x": big, "y": big}, ["float16"])[0][0] == np.inf
    assert op("add", {"x": big, "y": big}, ["float16"], rounding=False)[0][0] == 120000.0

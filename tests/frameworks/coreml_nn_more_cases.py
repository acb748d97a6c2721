"""Cases for the layers of Core ML's neural networks that are no window and no plane; see `coreml_nn_cases`."""

from __future__ import annotations

import itertools
import math

import numpy as np
from coreml_nn_cases import distinct, eighths, weight

ERF = np.vectorize(math.erf)


def channel(values):
    return values.reshape(-1, 1, 1)


# -- normalisation, products, arrangement


def classic_cases():
    x = eighths(2, 3, 4, 5)
    gamma, beta, mean, variance = eighths(3), eighths(3), eighths(3), eighths(3, low=1)
    stored = {"gamma": weight(gamma), "beta": weight(beta), "mean": weight(mean), "variance": weight(variance)}
    plain = channel(gamma) * (x - channel(mean)) / np.sqrt(channel(variance) + 0.25) + channel(beta)
    yield "batchnorm", {"channels": 3, "epsilon": 0.25, **stored}, [x], plain
    default = channel(gamma) * (x - channel(mean)) / np.sqrt(channel(variance) + 1e-5) + channel(beta)
    yield "batchnorm", {"channels": 3, **stored}, [x], default
    for instance, axes in ((True, (2, 3)), (False, (0, 2, 3))):
        centred = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 0.25)
        fields = {"channels": 3, "epsilon": 0.25, "computeMeanVar": True, "instanceNormalization": instance}
        yield (
            "batchnorm",
            {**fields, "gamma": weight(gamma), "beta": weight(beta)},
            [x],
            channel(gamma) * centred + channel(beta),
        )
    for across, axes in ((True, (1, 2, 3)), (False, (2, 3))):
        centred = x - x.mean(axes, keepdims=True)
        yield "mvn", {"acrossChannels": across}, [x], centred
        scaled = centred / np.sqrt(x.var(axes, keepdims=True) + 0.5)
        yield "mvn", {"acrossChannels": across, "normalizeVariance": True, "epsilon": 0.5}, [x], scaled
    length = np.sqrt((x**2).sum((1, 2, 3), keepdims=True) + 0.5)
    yield "l2normalize", {"epsilon": 0.5}, [x], x / length
    yield "l2normalize", {}, [x], x / np.sqrt((x**2).sum((1, 2, 3), keepdims=True) + 1e-6)
    wide = eighths(1, 6, 2, 3)
    energy = np.stack([(wide[:, max(0, c - 1) : c + 2] ** 2).sum(1) for c in range(6)], 1)
    yield "lrn", {"alpha": 0.75, "beta": 0.5, "localSize": 3, "k": 2.0}, [wide], wide / (2 + 0.25 * energy) ** 0.5
    yield "lrn", {"alpha": 0.75, "beta": 2, "localSize": 3}, [wide], wide / (1 + 0.25 * energy) ** 2
    g, b = eighths(4, 5), eighths(4, 5)
    normal = (x - x.mean((2, 3), keepdims=True)) / np.sqrt(x.var((2, 3), keepdims=True) + 0.25)
    fields = {"normalizedShape": [4, 5], "eps": 0.25, "gamma": weight(g), "beta": weight(b)}
    yield "layerNormalization", fields, [x], normal * g + b
    share = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    yield "softmax", {}, [x], share
    yield "softmaxND", {"axis": -1}, [x], np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    yield from _product_cases()
    yield from _arrangement_cases()


def _product_cases():
    w, b = eighths(4, 6), eighths(4)
    fields = {"inputChannels": 6, "outputChannels": 4, "hasBias": True, "weights": weight(w), "bias": weight(b)}
    for shape in ((6,), (2, 6), (2, 3, 6)):
        x = eighths(*shape)
        yield "innerProduct", fields, [x], x @ w.T + b
    for shape in ((2, 3, 2, 1), (2, 1, 1, 2, 3)):
        x = eighths(*shape)
        flat = x.reshape(*shape[:-3], 6) @ w.T + b
        yield "innerProduct", fields, [x], flat[..., None, None]
    unbiased = {**fields, "hasBias": False}  # a bias that is stored and switched off does not count
    x = eighths(2, 6)
    yield "innerProduct", unbiased, [x], x @ w.T
    m, v = eighths(6, 4), eighths(4)
    fields = {"weightMatrixFirstDimension": 6, "weightMatrixSecondDimension": 4, "hasBias": True}
    x = eighths(2, 3, 6)
    # Stored in column-major order: the columns one after the other.
    yield "batchedMatmul", {**fields, "weights": weight(m.T), "bias": weight(v)}, [x], x @ m + v
    a, c = eighths(2, 1, 3, 4), eighths(5, 4, 2)
    yield "batchedMatmul", {}, [a, c], np.matmul(a, c)
    yield "batchedMatmul", {"transposeA": True}, [a.swapaxes(-1, -2), c], np.matmul(a, c)
    yield "batchedMatmul", {"transposeB": True}, [a, c.swapaxes(-1, -2)], np.matmul(a, c)
    vector = eighths(4)
    yield "batchedMatmul", {}, [vector, c], np.matmul(vector[None], c)
    table, offset = eighths(3, 7), eighths(3)
    ids = np.array([[2.0], [6.0], [0.0], [2.0]])
    fields = {"inputDim": 7, "outputChannels": 3, "hasBias": True, "weights": weight(table), "bias": weight(offset)}
    rows = table.T[[2, 6, 0, 2]] + offset
    yield "embedding", fields, [ids[:, :, None, None]], rows[:, :, None, None]
    yield "embedding", fields, [ids.reshape(2, 2, 1, 1, 1)], rows.reshape(2, 2, 3, 1, 1)
    fields = {"vocabSize": 7, "embeddingSize": 3, "hasBias": True, "weights": weight(table), "bias": weight(offset)}
    yield "embeddingND", fields, [ids.reshape(2, 2, 1)], rows.reshape(2, 2, 3)
    x, y = eighths(2, 5, 1, 1, low=1), eighths(2, 5, 1, 1)
    yield "dot", {}, [x, y], (x * y).sum(1, keepdims=True)
    cosine = (x * y).sum(1, keepdims=True) / np.sqrt((x**2).sum(1, keepdims=True) * (y**2).sum(1, keepdims=True))
    yield "dot", {"cosineSimilarity": True}, [x, y], cosine
    x = eighths(2, 3, 4, 5)
    for shape in ((1,), (3,), (1, 4, 5), (3, 4, 5)):
        s, t = eighths(*shape), eighths(3)
        spread = s.reshape(-1, 1, 1) if len(shape) == 1 else s
        fields = {"shapeScale": list(shape), "scale": weight(s), "hasBias": True, "shapeBias": [3], "bias": weight(t)}
        yield "scale", fields, [x], x * spread + channel(t)
        yield "bias", {"shape": list(shape), "bias": weight(s)}, [x], x + spread


def _arrangement_cases():
    x = eighths(2, 3, 4, 5)
    yield "flatten", {"mode": "CHANNEL_FIRST"}, [x], x.reshape(2, 60, 1, 1)
    yield "flatten", {"mode": "CHANNEL_LAST"}, [x], x.transpose(0, 2, 3, 1).reshape(2, 60, 1, 1)
    deep = eighths(2, 1, 3, 4, 5)
    yield "reshape", {"targetShape": [6, 2, 5]}, [deep], deep.reshape(2, 1, 6, 2, 5)
    yield "reshape", {"targetShape": [4, 3, 2, 5]}, [deep], deep.reshape(4, 1, 3, 2, 5)
    last = deep.transpose(0, 1, 3, 4, 2).reshape(2, 1, 2, 5, 6).transpose(0, 1, 4, 2, 3)
    yield "reshape", {"targetShape": [6, 2, 5], "mode": "CHANNEL_LAST"}, [deep], last
    deep = eighths(2, 6, 3, 4, 5)
    for axis, order in (([0, 3, 1, 2], (0, 1, 4, 2, 3)), ([3, 1, 2, 0], (4, 1, 2, 3, 0)), ([], (0, 1, 2, 3, 4))):
        yield "permute", {"axis": axis}, [deep], deep.transpose(order)
    y, z = eighths(2, 2, 4, 5), eighths(3, 6, 3, 4, 5)
    yield "concat", {}, [x, y], np.concatenate([x, y], 1)
    yield "concat", {"sequenceConcat": True}, [deep, z], np.concatenate([deep, z], 0)
    wide = eighths(2, 6, 4, 5)
    yield "split", {"nOutputs": 3}, [wide], np.split(wide, 3, 1)
    yield "sequenceRepeat", {"nRepetitions": 3}, [deep], np.concatenate([deep] * 3, 0)
    yield "sequenceRepeat", {}, [deep], deep
    yield "slice", {"startIndex": 1, "endIndex": -1, "stride": 2, "axis": "WIDTH_AXIS"}, [x], x[..., 1:-1:2]
    yield "slice", {"startIndex": 0, "endIndex": 2, "stride": 1, "axis": "CHANNEL_AXIS"}, [x], x[:, 0:2]
    yield "slice", {"startIndex": -3, "endIndex": 4, "stride": 1, "axis": "HEIGHT_AXIS"}, [x], x[:, :, -3:4]
    positive = eighths(2, 3, 4, 5, low=1)
    modes = {
        "SUM": np.sum,
        "AVG": np.mean,
        "PROD": np.prod,
        "SUMSQUARE": lambda v, axis, keepdims: (v**2).sum(axis, keepdims=keepdims),
        "L1": lambda v, axis, keepdims: np.abs(v).sum(axis, keepdims=keepdims),
        "L2": lambda v, axis, keepdims: np.sqrt((v**2).sum(axis, keepdims=keepdims)),
        "MAX": np.max,
        "MIN": np.min,
    }
    axes = {"CHW": (1, 2, 3), "HW": (2, 3), "C": (1,), "H": (2,), "W": (3,)}
    for (mode, function), axis in itertools.product(modes.items(), ("CHW", "HW", "C")):
        yield "reduce", {"mode": mode, "axis": axis}, [x], function(x, axis=axes[axis], keepdims=True)
    logs = np.log(positive + 0.5).sum(3, keepdims=True)
    yield "reduce", {"mode": "LOGSUM", "axis": "W", "epsilon": 0.5}, [positive], logs
    order = distinct(2, 3, 4, 5)
    for axis, number in (("C", 1), ("H", 2), ("W", 3)):
        yield "reduce", {"mode": "ARGMAX", "axis": axis}, [order], order.argmax(number, keepdims=True).astype(float)


# -- every element


def elementwise_cases():
    x = eighths(2, 3, 4, 5)
    a, b = 0.25, 0.5
    alpha, beta = eighths(3), eighths(3)
    spread_a, spread_b = channel(alpha), channel(beta)
    activations = {
        "linear": ({"alpha": a, "beta": b}, a * x + b),
        "ReLU": ({}, np.where(x > 0, x, 0)),
        "leakyReLU": ({"alpha": a}, np.where(x >= 0, x, a * x)),
        "thresholdedReLU": ({"alpha": b}, np.where(x >= b, x, 0)),
        "PReLU": ({"alpha": weight(alpha)}, np.where(x >= 0, x, spread_a * x)),
        "tanh": ({}, np.tanh(x)),
        "scaledTanh": ({"alpha": a, "beta": b}, a * np.tanh(b * x)),
        "sigmoid": ({}, 1 / (1 + np.exp(-x))),
        "sigmoidHard": ({"alpha": a, "beta": b}, np.clip(a * x + b, 0, 1)),
        "ELU": ({"alpha": a}, np.where(x >= 0, x, a * (np.exp(x) - 1))),
        "softsign": ({}, x / (1 + np.abs(x))),
        "softplus": ({}, np.log(1 + np.exp(x))),
        "parametricSoftplus": (
            {"alpha": weight(alpha), "beta": weight(beta)},
            spread_a * np.log(1 + np.exp(spread_b * x)),
        ),
    }
    for name, (fields, expected) in activations.items():
        yield "activation", {name: fields}, [x], expected
    yield "activation", {"PReLU": {"alpha": weight([0.5])}}, [x], np.where(x >= 0, x, 0.5 * x)
    yield "activation", {"PReLU": {"alpha": weight(alpha)}}, [x[0]], np.where(x[0] >= 0, x[0], spread_a * x[0])
    flat = eighths(2, 3)
    yield "activation", {"PReLU": {"alpha": weight(alpha)}}, [flat], np.where(flat >= 0, flat, alpha * flat)
    big = np.array([[-800.0, 0.0, 800.0]])
    yield "activation", {"softplus": {}}, [big], np.array([[0.0, math.log(2), 800.0]])
    p = eighths(2, 3, 4, low=1)
    unary = {
        "SQRT": np.sqrt(p),
        "RSQRT": 1 / np.sqrt(p + 0.5),
        "INVERSE": 1 / (p + 0.5),
        "POWER": p**1.5,
        "EXP": np.exp(p),
        "LOG": np.log(p),
        "ABS": np.abs(p),
        "THRESHOLD": np.maximum(p, 1.5),
    }
    for name, expected in unary.items():
        yield "unary", {"type": name, "alpha": 1.5, "epsilon": 0.5}, [p], expected
    yield "unary", {"type": "ABS", "shift": -1.0, "scale": 0.5}, [x], np.abs(0.5 * x - 1)
    yield "unary", {"type": "INVERSE"}, [p], 1 / (p + 1e-6)
    yield "clampedReLU", {"alpha": -2.0, "beta": 1.0}, [x], np.minimum(np.where(x >= 0, x, -2 * x), 1)
    yield "gelu", {"mode": "EXACT"}, [x], 0.5 * x * (1 + ERF(x / math.sqrt(2)))
    tanh = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    yield "gelu", {"mode": "TANH_APPROXIMATION"}, [x], tanh
    yield "gelu", {"mode": "SIGMOID_APPROXIMATION"}, [x], x / (1 + np.exp(-1.702 * x))
    yield "clip", {"minVal": -0.5, "maxVal": 1.25}, [x], np.clip(x, -0.5, 1.25)
    functions = ["ceil", "floor", "sign", "sin", "cos", "tan", "sinh", "cosh", "tanh", "exp2"]
    for name in functions:
        yield name, {}, [x], getattr(np, name)(x)
    yield "round", {}, [x + 0.0625], np.round(x + 0.0625)
    inside = eighths(2, 3, low=-7, high=8)
    for name, numpy_name in (("asin", "arcsin"), ("acos", "arccos"), ("atan", "arctan"), ("atanh", "arctanh")):
        yield name, {}, [inside], getattr(np, numpy_name)(inside)
    yield "asinh", {}, [x], np.arcsinh(x)
    yield "acosh", {}, [p + 1], np.arccosh(p + 1)
    yield "erf", {}, [x], ERF(x)
    yield from _pair_cases()


def _pair_cases():
    x, y, z = eighths(2, 3, 4), eighths(3, 1), eighths(2, 1, 4)
    several = {"add": x + y + z, "multiply": x * y * z, "average": (x + y + z) / 3}
    several.update(max=np.maximum(np.maximum(x, y), z), min=np.minimum(np.minimum(x, y), z))
    for name, expected in several.items():
        yield name, {}, [x, y, z], expected
    yield "add", {"alpha": 1.5}, [x], x + 1.5
    yield "multiply", {"alpha": 1.5}, [x], x * 1.5
    divisor = np.where(y == 0, 0.5, y)
    pairs = {
        "addBroadcastable": x + y,
        "subtractBroadcastable": x - y,
        "multiplyBroadcastable": x * y,
        "maxBroadcastable": np.maximum(x, y),
        "minBroadcastable": np.minimum(x, y),
    }
    for name, expected in pairs.items():
        yield name, {}, [x, y], expected
    yield "divideBroadcastable", {}, [x, divisor], x / divisor
    yield "floorDivBroadcastable", {}, [x, divisor], np.floor(x / divisor)
    yield "modBroadcastable", {}, [x, divisor], np.mod(x, divisor)
    yield "powBroadcastable", {}, [np.abs(x) + 0.5, y], (np.abs(x) + 0.5) ** y
    comparisons = {
        "equal": np.equal,
        "notEqual": np.not_equal,
        "lessThan": np.less,
        "lessEqual": np.less_equal,
        "greaterThan": np.greater,
        "greaterEqual": np.greater_equal,
    }
    near = np.round(x)
    for name, function in comparisons.items():
        yield name, {}, [near, np.round(y)], function(near, np.round(y)).astype(float)
        yield name, {"alpha": 1.0}, [near], function(near, 1).astype(float)
    p, q = np.round(x), np.round(y)
    for name, function in (("And", np.logical_and), ("Or", np.logical_or), ("Xor", np.logical_xor)):
        yield f"logical{name}", {}, [p, q], function(p, q).astype(float)
    yield "logicalNot", {}, [p], (p == 0).astype(float)
    yield "whereBroadcastable", {}, [p, y, z], np.where(p != 0, y, z)


# -- places


def index_cases():
    x = eighths(4, 5, 6)
    ids = np.array([[3.0, -1.0], [0.0, 2.0], [1.0, 1.0]])
    for axis in (0, -2, 2):
        yield "gather", {"axis": axis}, [x, ids], np.take(x, ids.astype(int), axis)
    at = np.array([[3.0, -1.0], [0.0, 2.0], [1.0, 1.0]])
    yield "gatherND", {}, [x, at], np.stack([x[3, 4], x[0, 2], x[1, 1]])
    yield "gatherND", {}, [x, np.array([[3.0, 1.0, 0.0]])], np.array([x[3, 1, 0]])
    along = np.random.default_rng(3).integers(-5, 5, (4, 2, 6)).astype(float)
    yield "gatherAlongAxis", {"axis": 1}, [x, along], np.take_along_axis(x, along.astype(int) % 5, 1)
    yield from _scatter_cases()
    values = distinct(3, 6, 4)
    order = np.argsort(values, 1)
    top = order[:, ::-1][:, :2]
    yield "topK", {"axis": 1, "K": 2}, [values], [np.take_along_axis(values, top, 1), top.astype(float)]
    bottom = order[:, :3]
    fields = {"axis": -2, "K": 9, "useBottomK": True}
    yield "topK", fields, [values, np.array([3.0])], [np.take_along_axis(values, bottom, 1), bottom.astype(float)]
    yield "argSort", {"axis": 1}, [values], order.astype(float)
    yield "argSort", {"axis": 1, "descending": True}, [values], order[:, ::-1].astype(float)
    for name in ("argMax", "argMin"):
        found = getattr(np, name.lower())(values, 1)
        yield name, {"axis": -2}, [values], found[:, None].astype(float)
        yield name, {"axis": 1, "removeDim": True}, [values], found.astype(float)
    yield "argMax", {"axis": 0, "removeDim": True}, [values[0, :, 0]], np.array([float(values[0, :, 0].argmax())])
    marks = np.array([[1.0, 0.0, 2.0], [0.0, 0.0, -1.0]])
    yield "whereNonZero", {}, [marks], np.array([[0.0, 0.0], [0.0, 2.0], [1.0, 2.0]])
    hot = np.full((2, 4), -1.0)
    hot[0, 2] = 5
    fields = {"oneHotVectorSize": 4, "axis": -1, "onValue": 5, "offValue": -1}
    yield "oneHot", fields, [np.array([2.0, -1.0])], hot
    yield "oneHot", {**fields, "axis": 0, "oneHotVectorSize": 9}, [np.array([2.0, -1.0]), np.array([4.0])], hot.T
    x = eighths(3, 4)
    yield "cumSum", {"axis": 1}, [x], x.cumsum(1)
    yield "cumSum", {"axis": 1, "excludeFinalSum": True}, [x], x.cumsum(1) - x
    yield "cumSum", {"axis": 0, "reverse": True}, [x, np.array([1.0])], x[:, ::-1].cumsum(1)[:, ::-1]
    yield "cumSum", {"axis": 0, "reverse": True, "excludeFinalSum": True}, [x], x[::-1].cumsum(0)[::-1] - x
    yield from _box_cases()


def _scatter_cases():
    """Each mode of each scatter, one update after the other."""
    steps = {
        "UPDATE": lambda old, new: new,
        "ADD": lambda old, new: old + new,
        "SUB": lambda old, new: old - new,
        "MUL": lambda old, new: old * new,
        "DIV": lambda old, new: old / new,
        "MAX": max,
        "MIN": min,
    }
    box = eighths(4, 3)
    for mode, step in steps.items():
        ids, updates = np.array([2.0, -4.0, 2.0]), eighths(4, 3, low=1)[:, :3]
        found = box.copy()
        for row, place in itertools.product(range(4), range(3)):
            target = (row, int(ids[place]) % 3 if ids[place] >= 0 else 0)
            found[target] = step(found[target], updates[row, place])
        ids[1] = -3.0  # an index below 0 counts from the end: the first of three
        yield "scatter", {"axis": 1, "mode": f"SCATTER_{mode}"}, [box, ids, updates], found
        found, at, news = box.copy(), [(0, 1), (3, 2), (0, 1)], eighths(3, low=1)
        for target, new in zip(at, news, strict=True):
            found[target] = step(found[target], new)
        yield "scatterND", {"mode": f"SCATTER_{mode}"}, [box, np.array(at, float), news], found
        found, rows, news = box.copy(), np.array([[1, 3, 0], [1, 0, 0]]), eighths(2, 3, low=1)
        for i, j in itertools.product(range(2), range(3)):
            found[rows[i, j], j] = step(found[rows[i, j], j], news[i, j])
        yield "scatterAlongAxis", {"axis": -2, "mode": f"SCATTER_{mode}"}, [box, rows.astype(float), news], found


def _box_cases():
    """Boxes whose survivors are worked out by hand; two batches, the second with nothing above the threshold."""
    boxes = np.array([[2.0, 2, 2, 2], [2.25, 2, 2, 2], [6, 6, 2, 2], [2, 2.25, 2, 2], [9, 9, 1, 1]])
    scores = np.array([[0.5, 0.25], [0.75, 0.125], [0.625, 0.25], [0.25, 0.6875], [0.0625, 0.125]])
    batch, weak = np.stack([boxes, boxes]), np.stack([scores, scores / 64])
    fields = {"iouThreshold": 0.5, "scoreThreshold": 0.25, "maxBoxes": 4}

    def padded(kept):
        count = len(kept)
        found = [np.zeros((4, 4)), np.zeros((4, 2)), np.full(4, -1.0)]
        found[0][:count], found[1][:count], found[2][:count] = boxes[kept], scores[kept], kept
        return found

    # Best first: box 1 (0.75) hides 0 and 3, which overlap it; 2 stands alone; 4 is too weak.
    for per_class, first in ((False, [1, 2]), (True, [1, 3, 2])):  # box 3 is the other class
        best = padded([1])
        best[1] = np.where(best[1] != 0, best[1] / 64, 0)
        pairs = [np.stack(pair) for pair in zip(padded(first), best, strict=True)]
        expected = [*pairs, np.array([float(len(first)), 1.0])]
        yield "NonMaximumSuppression", {**fields, "perClassSuppression": per_class}, [batch, weak], expected
    one = padded([1])
    expected = [part[:1][None] for part in one] + [np.array([1.0])]
    limits = [np.array([0.5]), np.array([0.25]), np.array([1.0])]
    yield "NonMaximumSuppression", fields, [boxes[None], scores[None], *limits], expected

"""Cases for the layers of Core ML's neural networks that change shapes, fill, reduce, or run over a sequence; see `coreml_nn_cases`."""

from __future__ import annotations

import itertools

import numpy as np
from coreml_nn_cases import eighths, weight


def shape_cases():
    x = eighths(2, 6, 5)
    yield "copy", {}, [x], x
    yield "transpose", {"axes": [2, 0, 1]}, [x], x.transpose(2, 0, 1)
    yield "reshapeStatic", {"targetShape": [3, -1, 2]}, [x], x.reshape(3, 10, 2)
    yield "reshapeLike", {}, [x, np.zeros((4, 15))], x.reshape(4, 15)
    yield "reshapeDynamic", {}, [x, np.array([4.0, -1.0])], x.reshape(4, 15)
    deep = eighths(2, 3, 8)
    yield "rankPreservingReshape", {"targetShape": [4, 0, -1]}, [deep], deep.reshape(4, 3, 4)
    yield "expandDims", {"axes": [0, 2]}, [x[0]], x[0][None, :, None, :]
    yield "expandDims", {"axes": [-2, -1]}, [x[0]], x[0][:, :, None, None]
    thin = eighths(1, 3, 1, 2)
    yield "squeeze", {"axes": [0, -2]}, [thin], thin.reshape(3, 2)
    yield "squeeze", {"squeezeAll": True}, [thin], thin.reshape(3, 2)
    yield "squeeze", {"axes": [0]}, [np.array([2.5])], np.array([2.5])
    for axis, shape in ((-1, (12, 5)), (0, (1, 60)), (-2, (2, 30)), (3, (60, 1))):
        yield "flattenTo2D", {"axis": axis}, [x], x.reshape(shape)
    yield from _slice_cases()
    yield from _join_cases()
    yield from _fill_cases()
    yield from _reduction_cases()


def _slice_cases():
    x = eighths(5, 5, 5)
    # The two examples of the format's own text.
    fields = {
        "beginIds": [1, 2, 3],
        "beginMasks": [True, False, True],
        "endIds": [3, -3, 2],
        "endMasks": [False, True, True],
        "strides": [2, 2, 2],
        "squeezeMasks": [False, False, False],
    }
    yield "sliceStatic", fields, [x], x[:3:2, 2::2, ::2]
    squeezed = {**fields, "squeezeMasks": [False, True, False]}
    yield "sliceStatic", squeezed, [x], x[:3:2, 2, ::2]
    back = {
        **fields,
        "beginIds": [-1, 4, 3],
        "endIds": [1, 0, 0],
        "strides": [-1, -2, 1],
        "endMasks": [False, False, True],
    }
    yield "sliceStatic", {**back, "beginMasks": [False] * 3}, [x], x[-1:1:-1, 4:0:-2, 3:]
    rest = {name: value for name, value in fields.items() if name != "beginIds"}
    begin, end, strides = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 5.0]), np.array([1.0, 2.0, 1.0])
    yield "sliceDynamic", rest, [x, begin], x[:3:2, 2::2, ::2]
    plain = {"endIds": [9, 9, 9], "strides": [1, 1, 1]}
    yield "sliceDynamic", plain, [x, begin, end, strides], x[1:4, 2:5:2, 3:5]
    masks = [np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0])]
    yield "sliceDynamic", plain, [x, begin, end, strides, *masks], x[:4, 2, 3:]
    yield "sliceBySize", {"size": 2, "axis": 1}, [x, np.array([2.0])], x[:, 2:4]
    windows = np.stack([x[:, i : i + 3] for i in (0, 2)], 1)
    yield "slidingWindows", {"axis": -2, "windowSize": 3, "step": 2}, [x], windows


def _join_cases():
    x, y = eighths(3, 4, 2), eighths(3, 4, 2)
    yield "splitND", {"axis": -2, "numSplits": 2}, [x], np.split(x, 2, 1)
    yield "splitND", {"axis": 1, "numSplits": 7, "splitSizes": [1, 3]}, [x], [x[:, :1], x[:, 1:]]
    yield "concatND", {"axis": -2}, [x, y, x], np.concatenate([x, y, x], 1)
    turns = np.empty((3, 8, 2))
    turns[:, ::2], turns[:, 1::2] = x, y
    yield "concatND", {"axis": -2, "interleave": True}, [x, y], turns
    yield "stack", {"axis": 3}, [x, y], np.stack([x, y], 3)
    yield "stack", {"axis": -2}, [x, y], np.stack([x, y], -2)
    yield "tile", {"reps": [1, 2, 3]}, [x], np.tile(x, (1, 2, 3))
    yield "tile", {"reps": [3]}, [x], np.tile(x, (1, 1, 3))
    yield "tile", {"reps": [9]}, [x, np.array([2.0, 1.0, 2.0])], np.tile(x, (2, 1, 2))
    yield "reverse", {"reverseDim": [True, False, True]}, [x], x[::-1, :, ::-1]
    # The examples of the format's own text.
    rows = np.arange(8.0).reshape(2, 4)
    turned = np.array([[2.0, 1, 0, 3], [4, 5, 6, 7]])
    yield "reverseSeq", {"batchAxis": 0, "sequenceAxis": 1}, [rows, np.array([3.0, 0.0])], turned
    deep = np.arange(12.0).reshape(2, 3, 2)
    turned = np.array([[[2.0, 3], [0, 1], [4, 5]], [[10, 11], [8, 9], [6, 7]]])
    yield "reverseSeq", {"batchAxis": 0, "sequenceAxis": 1}, [deep, np.array([2.0, 3.0])], turned
    x = eighths(3, 4)
    padded = np.pad(x, [(0, 1), (4, 0)], constant_values=1.5)
    yield "constantPad", {"value": 1.5, "padAmounts": [0, 1, 4, 0]}, [x], padded
    yield "constantPad", {"value": 1.5}, [x, np.array([0.0, 1.0, 4.0, 0.0])], padded
    fields = {"value": 1.5, "padAmounts": [0, 4, 8, 0], "padToGivenOutputSizeMode": True}
    yield "constantPad", fields, [x], padded
    row = eighths(1, 4)
    wide = np.broadcast_to(row, (2, 3, 4))
    yield "broadcastToLike", {}, [row, np.zeros((2, 3, 4))], wide
    yield "broadcastToStatic", {"targetShape": [2, 3, 4]}, [row], wide
    yield "broadcastToDynamic", {}, [row, np.array([2.0, 3.0, 4.0])], wide


def _fill_cases():
    x = eighths(3, 4)
    yield "fillLike", {"value": 1.5}, [x], np.full((3, 4), 1.5)
    yield "fillStatic", {"value": 1.5, "targetShape": [2, 5]}, [], np.full((2, 5), 1.5)
    yield "fillDynamic", {"value": 1.5}, [np.array([2.0, 5.0])], np.full((2, 5), 1.5)
    yield "rangeStatic", {"endValue": 5.25, "startValue": -1, "stepSizeValue": 1.5}, [], np.arange(-1, 5.25, 1.5)
    yield "rangeDynamic", {"startValue": 1, "stepSizeValue": 2}, [np.array([8.0])], np.arange(1.0, 8, 2)
    three = [np.array([-4.0]), np.array([2.0]), np.array([-1.5])]
    yield "rangeDynamic", {"startValue": 9, "stepSizeValue": 9}, three, np.arange(2.0, -4, -1.5)
    yield "getShape", {}, [eighths(3, 1, 4)], np.array([3.0, 1.0, 4.0])
    yield "loadConstantND", {"shape": [3, 4], "data": weight(x)}, [], x
    yield "loadConstant", {"shape": [2, 2, 3], "data": weight(x)}, [], x.reshape(1, 1, 2, 2, 3)
    x = eighths(2, 4, 5, low=1)
    for lower, upper in ((1, 2), (-1, 0), (0, -1), (-1, -1)):
        keep = np.array(
            [[(lower < 0 or m - n <= lower) and (upper < 0 or n - m <= upper) for n in range(5)] for m in range(4)]
        )
        yield "matrixBandPart", {"numLower": lower, "numUpper": upper}, [x], x * keep
    for k in (-1, 0, 2):
        yield "lowerTriangular", {"k": k}, [x], np.stack([np.tril(m, k) for m in x])
        yield "upperTriangular", {"k": k}, [x], np.stack([np.triu(m, k) for m in x])


def _reduction_cases():
    x = eighths(2, 3, 4, low=1)
    functions = {
        "Sum": np.sum,
        "Mean": np.mean,
        "Max": np.max,
        "Min": np.min,
        "Prod": np.prod,
        "L1": lambda v, axis, keepdims: np.abs(v).sum(axis, keepdims=keepdims),
        "L2": lambda v, axis, keepdims: np.sqrt((v**2).sum(axis, keepdims=keepdims)),
        "SumSquare": lambda v, axis, keepdims: (v**2).sum(axis, keepdims=keepdims),
        "LogSum": lambda v, axis, keepdims: np.log(v.sum(axis, keepdims=keepdims)),
        "LogSumExp": lambda v, axis, keepdims: np.log(np.exp(v).sum(axis, keepdims=keepdims)),
    }
    for name, function in functions.items():
        kept = function(x, axis=(0, 2), keepdims=True)
        yield f"reduce{name}", {"axes": [0, -1], "keepDims": True}, [x], kept
        yield f"reduce{name}", {"axes": [0, -1]}, [x], kept.reshape(3)
        everything = function(x, axis=(0, 1, 2), keepdims=False)
        yield f"reduce{name}", {"axes": [0], "reduceAll": True}, [x], np.array([everything])


# -- sequences


def _sigmoid(v):
    return 1 / (1 + np.exp(-v))


def _clipped(function):
    return lambda v: function(np.clip(v, -50, 50))


SIGMOID, TANH = {"sigmoid": {}}, {"tanh": {}}
HARD = {"sigmoidHard": {"alpha": 0.25, "beta": 0.5}}
SIZE, STATE, BATCH, LENGTH = 3, 2, 2, 4
_GATES = ("inputGate", "forgetGate", "blockInput", "outputGate")
_PEEPS = ("inputGate", "forgetGate", "outputGate")


def column(values):
    return values[..., None, None]


def _lstm(x, p, state, *, functions, forget_bias=0.0, coupled=False, limit=50.0):
    """One direction, one batch element and one step at a time. p: gate -> (W, R, b, peephole)."""
    f, g, h = functions
    y, c = state
    outputs = []
    for step in x:
        rows_y, rows_c = [], []
        for row in range(len(step)):
            act = {gate: w @ step[row] + r @ y[row] + b for gate, (w, r, b, _) in p.items()}
            peep = {gate: p[gate][3] for gate in p}
            i = f(act["inputGate"] + peep["inputGate"] * c[row])
            forget = 1 - i if coupled else f(act["forgetGate"] + peep["forgetGate"] * c[row] + forget_bias)
            cell = np.clip(c[row] * forget + i * g(act["blockInput"]), -limit, limit)
            rows_c.append(cell)
            rows_y.append(h(cell) * f(act["outputGate"] + peep["outputGate"] * cell))
        y, c = np.array(rows_y), np.array(rows_c)
        outputs.append(y)
    return np.array(outputs), y, c


def _lstm_weights():
    p = {gate: (eighths(STATE, SIZE), eighths(STATE, STATE), eighths(STATE), eighths(STATE)) for gate in _GATES}
    fields = {}
    for gate, (w, r, b, peep) in p.items():
        fields.update({f"{gate}WeightMatrix": weight(w), f"{gate}RecursionMatrix": weight(r)})
        fields[f"{gate}BiasVector"] = weight(b)
        if gate in _PEEPS:
            fields[f"{gate}PeepholeVector"] = weight(peep)
    p["blockInput"] = (*p["blockInput"][:3], 0.0)
    return p, fields


def _without(p, *, bias=True, peep=True):
    return {g: (w, r, b if bias else 0.0, v if peep else 0.0) for g, (w, r, b, v) in p.items()}


def lstm_cases():
    x = eighths(LENGTH, BATCH, SIZE)
    zero = np.zeros((BATCH, STATE))
    p, stored = _lstm_weights()
    usual = (_clipped(_sigmoid), _clipped(np.tanh), np.tanh)
    base = {
        "inputVectorSize": SIZE,
        "outputVectorSize": STATE,
        "weightParams": stored,
        "activations": [SIGMOID, TANH, TANH],
    }
    params = {"sequenceOutput": True, "hasBiasVectors": True}
    for bias, peep in itertools.product((True, False), (True, False)):
        flags = {**params, "hasBiasVectors": bias, "hasPeepholeVectors": peep}
        steps, _, _ = _lstm(x, _without(p, bias=bias, peep=peep), (zero, zero), functions=usual)
        yield "uniDirectionalLSTM", {**base, "params": flags}, [column(x)], column(steps)
    plain = _without(p, peep=False)
    start = (eighths(BATCH, STATE), eighths(BATCH, STATE))
    steps, y, c = _lstm(x, plain, start, functions=usual, forget_bias=1.0)
    flags = {**params, "forgetBias": True}
    states = [column(value[None]) for value in start]
    yield (
        "uniDirectionalLSTM",
        {**base, "params": flags},
        [column(x), *states],
        [column(steps), column(y[None]), column(c[None])],
    )
    steps, y, c = _lstm(x, plain, start, functions=usual, coupled=True, limit=0.25)
    flags = {**params, "sequenceOutput": False, "coupledInputAndForgetGate": True, "cellClipThreshold": 0.25}
    expected = [column(value[None]) for value in (y, y, c)]
    yield "uniDirectionalLSTM", {**base, "params": flags}, [column(x), *states], expected
    _, y, c = _lstm(x[::-1], plain, (zero, zero), functions=usual)
    flags = {**params, "sequenceOutput": False}
    yield "uniDirectionalLSTM", {**base, "params": flags, "reverseInput": True}, [column(x)], column(y[None])
    hard = (_clipped(lambda v: np.clip(0.25 * v + 0.5, 0, 1)), _clipped(lambda v: np.maximum(v, 0)), np.tanh)
    steps, _, _ = _lstm(x, plain, (zero, zero), functions=hard)
    odd = {**base, "activations": [HARD, {"ReLU": {}}, TANH], "params": params}
    yield "uniDirectionalLSTM", odd, [column(x)], column(steps)
    yield from _both_ways(x, p, stored, usual)


def _both_ways(x, p, stored, usual):
    q, stored_back = _lstm_weights()
    ahead, back = _without(p, peep=False), _without(q, peep=False)
    fields = {
        "inputVectorSize": SIZE,
        "outputVectorSize": STATE,
        "activationsForwardLSTM": [SIGMOID, TANH, TANH],
        "activationsBackwardLSTM": [SIGMOID, TANH, TANH],
        "weightParams": [stored, stored_back],
    }
    start = [eighths(BATCH, STATE) for _ in range(4)]
    states = [column(value[None]) for value in start]
    steps, y, c = _lstm(x, ahead, start[:2], functions=usual)
    reverse, y_back, c_back = _lstm(x[::-1], back, start[2:], functions=usual)
    last = [column(value[None]) for value in (y, c, y_back, c_back)]
    params = {"sequenceOutput": True, "hasBiasVectors": True}
    joined = column(np.concatenate([steps, reverse[::-1]], -1))
    yield "biDirectionalLSTM", {**fields, "params": params}, [column(x), *states], [joined, *last]
    ends = column(np.concatenate([y, y_back], -1)[None])
    params = {"sequenceOutput": False, "hasBiasVectors": True}
    yield "biDirectionalLSTM", {**fields, "params": params}, [column(x), *states], [ends, *last]


def recurrent_cases():
    x = eighths(LENGTH, BATCH, SIZE)
    w, r, b = eighths(STATE, SIZE), eighths(STATE, STATE), eighths(STATE)
    fields = {"inputVectorSize": SIZE, "outputVectorSize": STATE, "activation": TANH, "hasBiasVector": True}
    fields.update(weightMatrix=weight(w), recursionMatrix=weight(r), biasVector=weight(b), sequenceOutput=True)
    y, steps = np.zeros((BATCH, STATE)), []
    for step in x:
        y = np.tanh(step @ w.T + y @ r.T + b)
        steps.append(y)
    yield "simpleRecurrent", fields, [column(x)], column(np.array(steps))
    yield "simpleRecurrent", {**fields, "sequenceOutput": False}, [column(x)], column(y[None])
    gates = {
        gate: (eighths(STATE, SIZE), eighths(STATE, STATE), eighths(STATE)) for gate in ("update", "reset", "output")
    }
    fields = {"inputVectorSize": SIZE, "outputVectorSize": STATE, "activations": [SIGMOID, TANH]}
    fields.update(hasBiasVectors=True, sequenceOutput=True)
    for gate, (w, r, b) in gates.items():
        fields[f"{gate}GateWeightMatrix"], fields[f"{gate}GateRecursionMatrix"] = weight(w), weight(r)
        fields[f"{gate}GateBiasVector"] = weight(b)
    for start in (np.zeros((BATCH, STATE)), eighths(BATCH, STATE)):
        y, steps = start, []
        for step in x:
            part = {gate: step @ w.T + b for gate, (w, _, b) in gates.items()}
            z = _sigmoid(part["update"] + y @ gates["update"][1].T)
            reset = _sigmoid(part["reset"] + y @ gates["reset"][1].T)
            y = (1 - z) * np.tanh(part["output"] + (y * reset) @ gates["output"][1].T) + z * y
            steps.append(y)
        given = [column(x), column(start[None])] if start.any() else [column(x)]
        expected = [column(np.array(steps)), column(y[None])] if start.any() else column(np.array(steps))
        yield "gru", fields, given, expected

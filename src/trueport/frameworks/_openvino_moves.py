"""How OpenVINO writes ONNX's normalisations, windows, and operators that move elements; fills `RULES`. Runs in a worker."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from trueport.frameworks._base import Unsupported
from trueport.frameworks._openvino_emit import (
    RULES,
    Attributes,
    Emitter,
    Operand,
    Rule,
    channelwise,
    number,
    scalar,
    whole,
)
from trueport.frameworks._openvino_rules import auto_pad, window

FAR = 2**31 - 1


# -- normalisation and pooling ------------------------------------------------------------------------------------------


def _batch_normalization(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    data = e.port(operands[0])
    slots = [e.port(item, data) for item in operands[1:5]]
    node = e.ops.batch_norm_inference(data, *slots, float(given.get("epsilon", 1e-5)))
    return e.made(node)


def _scaled(e: Emitter, result: Any, operands: Sequence[Operand]) -> Any:
    for name, operand in zip(("multiply", "add"), operands):
        result = e.op(name, result, operand)
    return result


def _mvn(e: Emitter, data: Any, axes: Sequence[int], epsilon: float) -> Any:
    return e.op("mvn", data, np.asarray(axes, np.int64), normalize_variance=True, eps=epsilon, eps_mode="inside_sqrt")


def _layer_normalization(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    rank = e.rank(operands[0])
    axes = list(range(int(given.get("axis", -1)) % rank, rank))
    return _scaled(e, _mvn(e, operands[0], axes, float(given.get("epsilon", 1e-5))), operands[1:3])


def _instance_normalization(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    rank = e.rank(operands[0])
    result = _mvn(e, operands[0], list(range(2, rank)), float(given.get("epsilon", 1e-5)))
    return _scaled(e, result, [channelwise(e, item, rank) for item in operands[1:3]])


def _group_normalization(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    data = e.port(operands[0])
    slots = [e.port(item, data) for item in operands[1:3]]
    return e.made(e.ops.group_normalization(data, *slots, int(given["num_groups"]), float(given.get("epsilon", 1e-5))))


def _rms_normalization(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    rank = e.rank(operands[0])
    axes = np.arange(int(given.get("axis", -1)) % rank, rank)
    mean = e.op("reduce_mean", e.op("multiply", operands[0], operands[0]), axes, keep_dims=True)
    root = e.op("sqrt", e.op("add", mean, scalar(float(given.get("epsilon", 1e-5)))))
    return _scaled(e, e.op("divide", operands[0], root), operands[1:2])


def _lp_normalization(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    axes = np.array([int(given.get("axis", -1)) % e.rank(operands[0])])
    name = {1: "reduce_l1", 2: "reduce_l2"}.get(int(given.get("p", 2)))
    if name is None:
        raise Unsupported(f"a norm of order {given['p']} has no operator")
    return e.op("divide", operands[0], e.op(name, operands[0], axes, keep_dims=True))


def _pool(e: Emitter, operands: list[Any], given: Attributes) -> tuple[Any, dict[str, Any]]:
    rank = e.rank(operands[0]) - 2
    spread = window(e, given, rank)
    more = {
        "kernel_shape": [int(value) for value in np.ravel(given["kernel_shape"])],
        "rounding_type": "ceil" if given.get("ceil_mode") else "floor",
        "auto_pad": auto_pad(given),
    }
    return e.port(operands[0]), {**spread, **more}


def _max_pool(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    data, window = _pool(e, operands, given)
    return e.made(e.ops.max_pool(data, **window))


def _average_pool(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    data, window = _pool(e, operands, given)
    if any(size != 1 for size in window.pop("dilations")):
        raise Unsupported("OpenVINO's AvgPool has no dilations")
    return e.made(e.ops.avg_pool(data, **window, exclude_pad=not given.get("count_include_pad", 0)))


def _global(name: str) -> Rule:
    return lambda e, operands, given: e.op(name, operands[0], np.arange(2, e.rank(operands[0])), keep_dims=True)


# -- shapes -------------------------------------------------------------------------------------------------------------


def _transpose(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    perm = [int(axis) for axis in given.get("perm", range(e.rank(operands[0]))[::-1])]
    return e.op("transpose", operands[0], np.asarray(perm, np.int64))


def _reshape(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    shape = whole(e, operands, given, 1, "shape")
    return e.op("reshape", operands[0], np.asarray(shape, np.int64), special_zero=not given.get("allowzero", 0))


def _flatten(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    axis = int(given.get("axis", 1))
    if axis not in (0, 1):
        sizes = [e.size(operands[0], place) for place in range(axis)]
        return e.op("reshape", operands[0], np.array([math.prod(sizes), -1]), special_zero=False)
    return e.op("reshape", operands[0], np.array([0, -1] if axis else [1, -1]), special_zero=bool(axis))


def _axes(name: str) -> Rule:
    def write(e: Emitter, operands: list[Any], given: Attributes) -> Any:
        axes = whole(e, operands, given, 1, "axes")
        return e.op(name, operands[0], *([] if axes is None else [np.asarray(axes, np.int64)]))

    return write


def _concat(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    like = next((item for item in operands if not isinstance(item, np.ndarray)), None)
    return e.made(e.ops.concat([e.port(item, like) for item in operands], int(given["axis"])))


def _split(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    axis = e.ints(int(given.get("axis", 0)))
    parts = whole(e, operands, given, 1, "split")
    if parts is None:
        node = e.ops.split(e.port(operands[0]), axis, int(given.get("num_outputs", 2)))
    else:
        node = e.ops.variadic_split(e.port(operands[0]), axis, e.ints(parts))
    node.set_friendly_name(e.name())
    return list(node.outputs())


def _slice(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    starts, ends = whole(e, operands, given, 1, "starts"), whole(e, operands, given, 2, "ends")
    if starts is None or ends is None:
        raise Unsupported("a Slice needs 'starts' and 'ends'")
    axes = whole(e, operands, given, 3, "axes") or list(range(len(starts)))
    steps = whole(e, operands, given, 4, "steps") or [1] * len(starts)
    bounds = [np.clip(np.asarray(item, np.int64), -FAR, FAR) for item in (starts, ends, steps)]
    return e.op("slice", operands[0], *bounds, np.asarray(axes, np.int64))


def _gather(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    return e.op("gather", operands[0], operands[1], np.array(int(given.get("axis", 0)), np.int64))


def _pad(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    pads = whole(e, operands, given, 1, "pads")
    rank, mode = e.rank(operands[0]), str(given.get("mode", "constant"))
    if pads is None or len(pads) != 2 * rank:
        raise Unsupported(f"a Pad of {rank} axes needs {2 * rank} numbers")
    ends = [np.asarray(item, np.int64) for item in (pads[:rank], pads[rank:])]
    value = [scalar(number(e, operands, given, 2, "value", 0.0))] if mode == "constant" else []
    data = e.port(operands[0])
    return e.made(e.ops.pad(data, *[e.port(item) for item in ends], mode, *[e.port(item, data) for item in value]))


def _expand(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    shape = np.asarray(whole(e, operands, given, 1, "shape"), np.int64)
    return e.made(e.ops.broadcast(e.port(operands[0]), e.ints(shape), broadcast_spec="BIDIRECTIONAL"))


def _tile(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    return e.op("tile", operands[0], np.asarray(whole(e, operands, given, 1, "repeats"), np.int64))


def _resize(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    rank = e.rank(operands[0])
    sizes = given.get("sizes", e.array(operands[3]) if len(operands) > 3 else None)
    scales = given.get("scales", e.array(operands[2]) if len(operands) > 2 else None)
    by = "sizes" if sizes is not None and np.size(sizes) else "scales"
    values = sizes if by == "sizes" else scales
    if values is None or not np.size(values):
        raise Unsupported("a Resize needs constant sizes or scales")
    axes = [int(axis) for axis in given.get("axes", range(rank)[rank - np.size(values) :])]
    mode = {"linear": "linear_onnx"}.get(str(given.get("mode", "nearest")), str(given.get("mode", "nearest")))
    node = e.ops.interpolate(
        e.port(operands[0]),
        e.port(np.asarray(values, np.int64 if by == "sizes" else np.float32)),
        mode,
        by,
        axes=e.ints(axes),
        coordinate_transformation_mode=str(given.get("coordinate_transformation_mode", "half_pixel")),
        nearest_mode=str(given.get("nearest_mode", "round_prefer_floor")),
        antialias=bool(given.get("antialias", 0)),
        cube_coeff=float(given.get("cubic_coeff_a", -0.75)),
    )
    return e.made(node)


def _best(mode: str) -> Rule:
    """ArgMax and ArgMin through TopK; of equal values the first counts."""

    def write(e: Emitter, operands: list[Any], given: Attributes) -> Any:
        if given.get("select_last_index"):
            raise Unsupported("of equal values OpenVINO's TopK cannot take the last")
        axis = int(given.get("axis", 0))
        node = e.ops.topk(e.port(operands[0]), e.ints(1), axis, mode, "value", index_element_type="i64", stable=True)
        node.set_friendly_name(e.name())
        found = node.output(1)
        return found if given.get("keepdims", 1) else e.op("squeeze", found, np.array([axis], np.int64))

    return write


def _top(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    k = whole(e, operands, given, 1, "k")
    if k is None:
        raise Unsupported("a TopK needs a constant 'k'")
    mode = "max" if given.get("largest", 1) else "min"
    axis = int(given.get("axis", -1)) % e.rank(operands[0])
    node = e.ops.topk(e.port(operands[0]), e.ints(k[0]), axis, mode, "value", index_element_type="i64", stable=True)
    node.set_friendly_name(e.name())
    return list(node.outputs())


def _cum_sum(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    axis = int(number(e, operands, given, 1, "axis", 0))
    node = e.ops.cum_sum(
        e.port(operands[0]), e.ints(axis), bool(given.get("exclusive", 0)), bool(given.get("reverse", 0))
    )
    return e.made(node)


def _depth_to_space(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    mode = "depth_first" if given.get("mode", "DCR") == "CRD" else "blocks_first"
    return e.made(e.ops.depth_to_space(e.port(operands[0]), mode, int(given["blocksize"])))


def _space_to_depth(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    return e.made(e.ops.space_to_depth(e.port(operands[0]), "blocks_first", int(given["blocksize"])))


def _einsum(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    return e.made(e.ops.einsum([e.port(item) for item in operands], str(given["equation"])))


def _scatter_nd(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    from openvino import opset15

    way = {"add": "sum", "mul": "prod"}.get(str(given.get("reduction", "none")), str(given.get("reduction", "none")))
    data = e.port(operands[0])
    node = opset15.scatter_nd_update(data, e.port(operands[1]), e.port(operands[2], data), reduction=way)
    return e.made(node)


def _scatter_elements(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    way = {"add": "sum", "mul": "prod"}.get(str(given.get("reduction", "none")), str(given.get("reduction", "none")))
    data, axis = e.port(operands[0]), e.ints(int(given.get("axis", 0)))
    places, updates = e.port(operands[1]), e.port(operands[2], data)
    return e.made(e.ops.scatter_elements_update(data, places, updates, axis, reduction=way))


RULES.update(
    {
        "ArgMax": _best("max"),
        "ArgMin": _best("min"),
        "AveragePool": _average_pool,
        "BatchNormalization": _batch_normalization,
        "Concat": _concat,
        "CumSum": _cum_sum,
        "DepthToSpace": _depth_to_space,
        "Einsum": _einsum,
        "Expand": _expand,
        "Flatten": _flatten,
        "Gather": _gather,
        "GlobalAveragePool": _global("reduce_mean"),
        "GlobalMaxPool": _global("reduce_max"),
        "GroupNormalization": _group_normalization,
        "InstanceNormalization": _instance_normalization,
        "LayerNormalization": _layer_normalization,
        "LpNormalization": _lp_normalization,
        "MaxPool": _max_pool,
        "Pad": _pad,
        "RMSNormalization": _rms_normalization,
        "Reshape": _reshape,
        "Resize": _resize,
        "ScatterElements": _scatter_elements,
        "ScatterND": _scatter_nd,
        "Slice": _slice,
        "SpaceToDepth": _space_to_depth,
        "Split": _split,
        "Squeeze": _axes("squeeze"),
        "Tile": _tile,
        "TopK": _top,
        "Transpose": _transpose,
        "Unsqueeze": _axes("unsqueeze"),
    }
)

"""Sets attributes of TFLite operators under the names that `graph` shows, or ONNX's. Runs in a worker.

An attribute may be an option of the operator, a constant operand, the type or grid of its result, or, where TFLite has no
such option (explicit padding, another axis of Softmax), one more operator beside it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Callable

import numpy as np

from trueport.frameworks import _tflite_constants as constants
from trueport.frameworks._base import Unsupported
from trueport.frameworks._tflite_editor import Editor, Node, text
from trueport.frameworks._tflite_emit import FAR, Emitter, Operand, Window, ints, padded, strided, transposed
from trueport.frameworks._tflite_model import DTYPES, snake
from trueport.frameworks._tflite_ops import _OPERANDS

WINDOWS = ("CONV_2D", "DEPTHWISE_CONV_2D", "AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D")
POOLS = WINDOWS[2:]
PADS = ("PAD", "PADV2", "MIRROR_PAD")
RESIZES = ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR")
CLIPS = {"RELU": (0, math.inf), "RELU6": (0, 6), "RELU_N1_TO_1": (-1, 1), "RELU_0_TO_1": (0, 1)}
LAST_AXIS = {"SOFTMAX": "Softmax", "LOG_SOFTMAX": "LogSoftmax"}
BEHIND = ("Relu", "Relu6", "Tanh", "Sigmoid", "Elu", "Selu", "Swish", "Silu", "Gelu", "Mish", "Softplus", "Softsign",
          "HardSwish", "Exp", "Softmax")  # fmt: skip
"""Activations that may follow an operator which does not fuse them."""
ACTIVATIONS = ("none", "relu", "relun1to1", "relu6", "tanh", "signbit")
_EITHER = {
    "strides": ("strideD", "strideH", "strideW"),
    "dilations": ("dilationDFactor", "dilationHFactor", "dilationWFactor"),
    "kernel_shape": ("filterDepth", "filterHeight", "filterWidth"),
}
"""Attribute -> the options that hold it, outermost first."""
_OPTIONS = {
    "keepdims": "keepDims", "keep_dims": "keepDims", "blocksize": "blockSize", "epsilon": "epsilon", "transpose_a": "adjX",
    "transpose_b": "adjY",
}  # fmt: skip
_SHAPED = {"perm", "axes", "shape", "repeats", "sizes"}


def set_attribute(edit: Editor, node: Node, name: str, value: Any) -> None:
    """Set one attribute of a node. Raises Unsupported, with the reason, when TFLite has no such thing there."""
    name = {"fused_activation_function": "activation", "padding": "auto_pad", "begin": "starts", "end": "ends",
            "dim": "axis", "alpha_": "alpha"}.get(name, name)  # fmt: skip
    for fits, write in _WAYS:
        if fits(edit, node, name):
            write(edit, node, name, value)
            return
    raise Unsupported(f"{node.code} has no attribute '{name}' in a TFLite file that could be set")


def _emitter(edit: Editor, node: Node) -> Emitter:
    return Emitter(edit, node.graph, text(edit.result(node).name))


def _before(edit: Editor, node: Node, slot: int, e: Emitter, made: Operand) -> None:
    """Let a node read what an emitter made, at `slot`."""
    edit.put_before(node, e.items)
    edit.rewire(node, slot, e.place(made))


# -- options --------------------------------------------------------------------------------------------------------


def _activation(edit: Editor, node: Node, name: str, value: Any) -> None:
    """What TFLite does not fuse follows as an operator of its own."""
    wanted = str(value or "none").replace("_", "").lower()
    fusing = hasattr(node.item.builtinOptions, "fusedActivationFunction")
    if fusing:
        node.item.builtinOptions.fusedActivationFunction = ACTIVATIONS.index(wanted) if wanted in ACTIVATIONS else 0
    if wanted == "none" or (fusing and wanted in ACTIVATIONS):
        return
    operator = next((name for name in BEHIND if name.lower() == wanted), None)
    if operator is None:
        raise Unsupported(f"TFLite fuses no activation '{value}'; it has {', '.join(ACTIVATIONS[1:5])}")
    if edit.quantised(edit.result(node)):
        raise Unsupported(f"the grid of the result is that of another activation than '{value}'")
    _behind(edit, node, lambda e, whole: e.emit(operator, [whole], {})[0])


def _list(edit: Editor, node: Node, name: str, value: Any) -> None:
    keys = [key for key in _EITHER[name] if hasattr(node.item.builtinOptions, key)]
    values = [int(item) for item in np.ravel(1 if value is None else value)]
    values = values * len(keys) if len(values) == 1 else values
    if len(values) != len(keys) or min(values) < 1:
        raise Unsupported(f"'{name}' of {node.code} takes {len(keys)} numbers from 1 on, and got {value}")
    for key, item in zip(keys, values):
        setattr(node.item.builtinOptions, key, item)


def _has_list(edit: Editor, node: Node, name: str) -> bool:
    return name in _EITHER and any(hasattr(node.item.builtinOptions, key) for key in _EITHER[name])


def _option(node: Node, name: str) -> str | None:
    """The option that an attribute is."""
    options = node.item.builtinOptions
    names = {snake(key): key for key in vars(options)} if options is not None else {}
    key = _OPTIONS.get(name, names.get(name))
    return key if key is not None and hasattr(options, key) else None


def _plain(edit: Editor, node: Node, name: str, value: Any) -> None:
    key = _option(node, name)
    old = getattr(node.item.builtinOptions, str(key))
    if value is None:
        value = getattr(type(node.item.builtinOptions)(), str(key))
    if isinstance(old, (bool, int, float)):
        value = type(old)(value[0] if isinstance(value, list) and len(value) == 1 else value)
        setattr(node.item.builtinOptions, str(key), value)
        return
    setattr(node.item.builtinOptions, str(key), value)


def _gelu(edit: Editor, node: Node, name: str, value: Any) -> None:
    node.item.builtinOptions.approximate = value in ("tanh", True)


def _lrn(edit: Editor, node: Node, name: str, value: Any) -> None:
    """TFLite has the radius for the size, and does not divide alpha by the size."""
    options = node.item.builtinOptions
    size = 2 * int(options.radius) + 1
    if name == "size":
        if int(value) % 2 == 0:
            raise Unsupported("a window of TFLite's local response normalisation has an odd size")
        options.alpha, options.radius = float(options.alpha) * size / int(value), int(value) // 2
    else:
        options.alpha = float(value) / size


def _squeeze(edit: Editor, node: Node, name: str, value: Any) -> None:
    rank = len(edit.shape(edit.tensor(node, 0)))
    node.item.builtinOptions.squeezeDims = [int(axis) % rank for axis in np.ravel(value)]


# -- windows --------------------------------------------------------------------------------------------------------


def _padding(edit: Editor, node: Node, name: str, value: Any) -> None:
    """VALID and SAME are options; other padding is a PAD before the operator. Where one stands already, it gets no second."""
    options = node.item.builtinOptions
    kernel = (
        [options.filterHeight, options.filterWidth] if node.code in POOLS else edit.shape(edit.tensor(node, 1))[1:3]
    )
    given: dict[str, Any] = {"strides": [options.strideH, options.strideW], name: "VALID" if value is None else value}
    if name == "pads" and value is None:
        given = {**given, "pads": [0, 0, 0, 0]}
    if hasattr(options, "dilationHFactor"):
        given["dilations"] = [options.dilationHFactor, options.dilationWFactor]
    if name == "pads" and len(given["pads"]) == 8:
        begins_ends = [int(pad) for pad in given["pads"]]
        given["pads"] = [*begins_ends[1:3], *begins_ends[5:7]]
    if node.code in POOLS:
        _pool_again(edit, node, {**given, "kernel_shape": kernel})
        return
    e = _emitter(edit, node)
    data = int(node.item.inputs[0])
    same, pads = Window.of(kernel, given).placed(e, data)
    options.padding = 0 if same else 1
    if pads is not None:
        _before(edit, node, 0, e, padded(e, data, [0, pads[0], pads[1], 0, 0, pads[2], pads[3], 0]))


def _pool_again(edit: Editor, node: Node, given: Mapping[str, Any]) -> None:
    e, fused = _emitter(edit, node), int(node.item.builtinOptions.fusedActivationFunction)
    if node.code == "L2_POOL_2D":
        raise Unsupported("the padding of an L2 pooling is not written")
    operator = "AveragePool" if node.code == "AVERAGE_POOL_2D" else "MaxPool"
    made = e.emit(operator, [int(node.item.inputs[0])], given)[0]
    if fused and len(e.items) > 1 and node.code == "AVERAGE_POOL_2D":
        made = e.emit("Relu6" if fused == 3 else "Relu", [made], {})[0]
    e.instead_of(node, made)
    if fused and node.code in edit.code(node.item):
        node.item.builtinOptions.fusedActivationFunction = fused


def _counted(edit: Editor, node: Node, name: str, value: Any) -> None:
    """An average that counts its padding: pads written out, where there are any."""
    options = node.item.builtinOptions
    if not value or int(options.padding) == 1:
        raise Unsupported("an average of TFLite leaves its padding out, and this one has none" if value else
                          "an average of TFLite leaves its padding out already")  # fmt: skip
    window = [options.filterHeight, options.filterWidth]
    steps = [options.strideH, options.strideW]
    e = _emitter(edit, node)
    sizes = e.fixed(int(node.item.inputs[0]), [1, 2], "padding that counts")
    totals = [max(0, (-(-size // step) - 1) * step + width - size) for size, step, width in zip(sizes, steps, window)]
    pads = [total // 2 for total in totals] + [total - total // 2 for total in totals]
    _pool_again(edit, node, {"kernel_shape": window, "strides": steps, "pads": pads, "count_include_pad": 1})


def _rounded(edit: Editor, node: Node, name: str, value: Any) -> None:
    """Sizes rounded up are padding at the end; rounded down they are TFLite's VALID."""
    options = node.item.builtinOptions
    if int(options.padding) == 0 or not value:
        raise Unsupported(f"the size of the result is rounded {'up' if int(options.padding) == 0 else 'down'} already")
    window, steps = [options.filterHeight, options.filterWidth], [options.strideH, options.strideW]
    _pool_again(edit, node, {"kernel_shape": window, "strides": steps, "pads": [0, 0, 0, 0], "ceil_mode": 1})


def _transposed_conv(edit: Editor, node: Node, name: str, value: Any) -> None:
    """The full result has (in - 1) * stride + kernel rows; `pads` are cut off it, `output_shape` asks for so many."""
    e, options = _emitter(edit, node), node.item.builtinOptions
    data = int(node.item.inputs[2])
    batch, rows, columns, _ = e.shape(data)
    e.fixed(data, [1, 2], "a transposed convolution")
    kernel, steps = edit.shape(edit.tensor(node, 1)), [int(options.strideH), int(options.strideW)]
    full = [(size - 1) * step + width for size, step, width in zip((rows, columns), steps, kernel[1:3])]
    if name in ("output_shape", "auto_pad"):
        way = str(value).upper() if name == "auto_pad" else ""
        if way and way not in ("SAME", "SAME_UPPER", "VALID"):
            raise Unsupported(f"a transposed convolution of TFLite is padded SAME or VALID, not {value}")
        same = [size * step for size, step in zip((rows, columns), steps)]
        sizes = (full if way == "VALID" else same) if way else [int(size) for size in np.ravel(value)]
        sizes = sizes[1:3] if len(sizes) == 4 else sizes
        options.padding = 1 if sizes == full else 0
        constants.set_constant(edit, node, 0, ints([batch, *sizes, kernel[0]]), "keep")
        return
    pads = [int(pad) for pad in np.ravel(value)]
    if len(pads) != 4:
        raise Unsupported(f"'pads' of {node.code} takes four numbers, and got {value}")
    sizes = [size - pads[axis] - pads[2 + axis] for axis, size in enumerate(full)]
    totals = [pads[axis] + pads[2 + axis] for axis in (0, 1)]
    if pads == [total // 2 for total in totals] + [total - total // 2 for total in totals]:
        options.padding = 0 if any(pads) else 1
        constants.set_constant(edit, node, 0, ints([batch, *sizes, kernel[0]]), "keep")
        return
    options.padding = 1
    constants.set_constant(edit, node, 0, ints([batch, *full, kernel[0]]), "keep")
    ends = [FAR, pads[0] + sizes[0], pads[1] + sizes[1], FAR]
    _behind(edit, node, lambda e, whole: strided(e, whole, [0, pads[0], pads[1], 0], ends, [1, 1, 1, 1]))


def _behind(edit: Editor, node: Node, write: Callable[[Emitter, int], int]) -> None:
    """Let a node's result be what `write` makes of it, before anybody reads it."""
    result = int(node.item.outputs[0])
    whole = edit.like(node.graph, result, edit.fresh_name(node.graph, text(edit.result(node).name) + "/whole"))
    node.item.outputs = [whole, *[int(index) for index in node.item.outputs[1:]]]
    edit.rewritten(node.graph)
    edit.complete(node.graph, node.item)
    e = Emitter(edit, node.graph, text(node.graph.tensors[result].name))
    e.write_to(write(e, whole), result)
    e.put_in()


# -- constant operands ----------------------------------------------------------------------------------------------


def _operand(edit: Editor, node: Node, name: str, value: Any) -> None:
    """The constant behind an attribute, of the same type; a number stays a number where the operand is one."""
    slot, _ = _OPERANDS[node.code]
    found = edit.stored(node, slot)
    if found is None:
        raise Unsupported(f"'{name}' of {node.code} is computed in this file")
    values = np.asarray(value, edit.dtype(found[0]))
    shape = edit.shape(found[0])
    if values.size == 1 and int(np.prod(shape)) == 1:
        values = values.reshape(shape)
    elif values.ndim == 0:
        values = values.reshape(1)
    if name == "sizes" and values.size == 4:
        values = values[1:3]
    constants.set_constant(edit, node, slot, values, "keep")


def _is_operand(edit: Editor, node: Node, name: str) -> bool:
    known = _OPERANDS.get(node.code, (0, ""))[1]
    return known != "" and (name == known or {name, known} == {"axis", "axes"})


def _pad(edit: Editor, node: Node, name: str, value: Any) -> None:
    if name == "pads":
        pads = np.asarray(value, np.int64).reshape(2, -1).T
        found = edit.stored(node, 1)
        if found is None or len(pads) != len(edit.shape(edit.tensor(node, 0))):
            raise Unsupported(f"'pads' of {node.code} takes a begin and an end for every axis")
        if np.any(pads < 0):
            _again(edit, node, "Pad", {**_padded_with(edit, node), "pads": list(value)})
            return
        constants.set_constant(edit, node, 1, pads.astype(edit.dtype(found[0])), "keep")
        return
    given = _padded_with(edit, node)
    given[name] = value if value is not None else {"mode": "constant", "value": 0.0}[name]
    _again(edit, node, "Pad", given)


def _padded_with(edit: Editor, node: Node) -> dict[str, Any]:
    pads = edit.array(node, 1)
    if pads is None:
        raise Unsupported("the pads are computed in this file")
    mode, value = "constant", edit.array(node, 2) if node.code == "PADV2" else None
    if node.code == "MIRROR_PAD":
        mode = ("reflect", "symmetric")[int(node.item.builtinOptions.mode)]
    return {"pads": pads.T.ravel().tolist(), "mode": mode, "value": 0.0 if value is None else float(value.ravel()[0])}


def _again(edit: Editor, node: Node, operator: str, given: Mapping[str, Any]) -> None:
    """Write an operator of one operand anew, with other attributes."""
    e = _emitter(edit, node)
    e.instead_of(node, e.emit(operator, [int(node.item.inputs[edit.computed(node)[0]])], given)[0])


def _sliced(edit: Editor, node: Node, name: str, value: Any) -> None:
    """Begins, ends and steps as `graph` shows them; dropped axes stay dropped."""
    rank = len(edit.shape(edit.tensor(node, 0)))
    options = node.item.builtinOptions
    masks = {key: int(getattr(options, key, 0) or 0) for key in
             ("beginMask", "endMask", "shrinkAxisMask", "ellipsisMask", "newAxisMask")}  # fmt: skip
    if node.code == "STRIDED_SLICE" and (masks["ellipsisMask"] or masks["newAxisMask"]):
        raise Unsupported("a slice with an ellipsis or new axes is not changed")
    parts = _slice_parts(edit, node, rank, masks)
    if name == "window":
        for axis, (low, high, step) in dict(value).items():
            for key, item in zip(("starts", "ends", "steps"), (low, high, step)):
                parts[key][int(axis) % rank] = FAR if item is None else int(item)
            for key in ("beginMask", "endMask"):
                masks[key] &= ~(1 << (int(axis) % rank))
    elif len(value) != len(parts[name]):
        raise Unsupported(f"'{name}' of {node.code} takes {len(parts[name])} numbers, and got {len(value)}")
    else:
        parts[name] = [int(item) for item in value]
        key = {"starts": "beginMask", "ends": "endMask"}.get(name, "")
        masks[key] = 0
    if node.code == "STRIDED_SLICE" and masks["shrinkAxisMask"]:
        for slot, key in ((1, "starts"), (2, "ends"), (3, "steps")):
            found = edit.stored(node, slot)
            kind = "int32" if found is None else edit.dtype(found[0])
            constants.set_constant(edit, node, slot, ints(parts[key]).astype(kind), "keep")
        options.beginMask, options.endMask = masks["beginMask"], masks["endMask"]
        return
    _again(edit, node, "Slice", {**parts, "axes": list(range(len(parts["starts"])))})


def _slice_parts(edit: Editor, node: Node, rank: int, masks: Mapping[str, int]) -> dict[str, list[int]]:
    tables = [edit.array(node, slot) for slot in ((1, 2, 3) if node.code == "STRIDED_SLICE" else (1, 2))]
    if any(table is None for table in tables):
        raise Unsupported("the bounds of the slice are computed in this file")
    first, second, *rest = [[int(item) for item in table.ravel()] for table in tables if table is not None]
    if node.code == "SLICE":
        ends = [FAR if size < 0 else start + size for start, size in zip(first, second)]
        return {"starts": first, "ends": ends, "steps": [1] * rank}
    parts = {"starts": first, "ends": second, "steps": rest[0]}
    for axis, step in enumerate(rest[0]):
        if masks["beginMask"] >> axis & 1:
            parts["starts"][axis] = 0 if step > 0 else FAR
        if masks["endMask"] >> axis & 1 and not masks["shrinkAxisMask"] >> axis & 1:
            parts["ends"][axis] = FAR if step > 0 else -FAR
    return parts


# -- operators of another kind --------------------------------------------------------------------------------------


def _clip(edit: Editor, node: Node, name: str, value: Any) -> None:
    low, high = CLIPS[node.code]
    limits = {"min": low, "max": high}
    limits[name] = value if value is not None else {"min": -math.inf, "max": math.inf}[name]
    _again(edit, node, "Clip", limits)


def _last_axis(edit: Editor, node: Node, name: str, value: Any) -> None:
    beta = float(getattr(node.item.builtinOptions, "beta", 1.0)) if node.code == "SOFTMAX" else 1.0
    _again(edit, node, LAST_AXIS[node.code], {"axis": -1 if value is None else value, "beta": beta})


def _elu(edit: Editor, node: Node, name: str, value: Any) -> None:
    _again(edit, node, "Elu", {"alpha": value})


def _resize(edit: Editor, node: Node, name: str, value: Any) -> None:
    """The mode is the kind of operator, the coordinates are two flags."""
    options = node.item.builtinOptions
    flags = {"alignCorners": bool(options.alignCorners), "halfPixelCenters": bool(options.halfPixelCenters)}
    nearest = node.code == "RESIZE_NEAREST_NEIGHBOR"
    if name == "coordinate_transformation_mode":
        ways = {"asymmetric": (False, False), "align_corners": (True, False), "half_pixel": (False, True),
                "pytorch_half_pixel": (False, True), "tf_half_pixel_for_nn": (False, True)}  # fmt: skip
        way = str(value).split(",")[0]
        if way not in ways:
            raise Unsupported(f"TFLite does not know the coordinates '{value}'")
        flags["alignCorners"], flags["halfPixelCenters"] = ways[way]
    elif name == "mode":
        if value not in ("nearest", "linear", "bilinear"):
            raise Unsupported(f"TFLite does not resize in mode '{value}'")
        nearest = value == "nearest"
    else:
        half = flags["halfPixelCenters"] and not flags["alignCorners"]
        ways_there = ("floor", "round_prefer_ceil") if half else (
            ("round_prefer_ceil",) if flags["alignCorners"] else ("floor",))  # fmt: skip
        if nearest and value not in ways_there:
            raise Unsupported(f"TFLite takes the nearest pixel by '{ways_there[0]}' with these coordinates")
    kind = ("NEAREST_NEIGHBOR", "NearestNeighbor") if nearest else ("BILINEAR", "Bilinear")
    edit.turn_into(node.item, f"RESIZE_{kind[0]}", f"Resize{kind[1]}Options", **flags)


def _cast(edit: Editor, node: Node, name: str, value: Any) -> None:
    if value not in DTYPES:
        raise Unsupported(f"TFLite knows no type '{value}'")
    edit.result(node).type = DTYPES.index(value)
    if node.item.builtinOptions is not None:
        node.item.builtinOptions.outDataType = DTYPES.index(value)


def _grid(edit: Editor, node: Node, name: str, value: Any) -> None:
    """The grid of a result. Biases of those that read it follow."""
    tensor = edit.result(node)
    if not edit.quantised(tensor):
        raise Unsupported(f"the result of {node.code} is not quantised")
    made = copy.copy(tensor.quantization)
    if name == "y_scale":
        made.scale = np.asarray(value, np.float32).ravel()
    else:
        made.zeroPoint = np.asarray(value, np.int64).ravel()
    made.min = made.max = None
    tensor.quantization = made
    for reader in edit.readers(node.graph, int(node.item.outputs[0])):
        constants.settle_bias(edit, reader)


def _weights_turned(edit: Editor, node: Node, name: str, value: Any) -> None:
    """FULLY_CONNECTED reads its weights transposed; the other way, the weights themselves are."""
    weights = edit.array(node, 1)
    if value:
        return
    if weights is None:
        e = _emitter(edit, node)
        _before(edit, node, 1, e, transposed(e, int(node.item.inputs[1]), [1, 0]))
        return
    constants.set_constant(edit, node, 1, np.ascontiguousarray(weights.T), "keep")


def _is(codes: tuple[str, ...] | Mapping[str, Any], *names: str) -> Callable[[Editor, Node, str], bool]:
    return lambda edit, node, name: node.code in codes and name in names


_WAYS: tuple[tuple[Callable[[Editor, Node, str], bool], Callable[[Editor, Node, str, Any], None]], ...] = (
    (lambda edit, node, name: name == "activation", _activation),
    (_is(WINDOWS, "pads", "auto_pad"), _padding),
    (_is(("AVERAGE_POOL_2D",), "count_include_pad"), _counted),
    (_is(("AVERAGE_POOL_2D", "MAX_POOL_2D"), "ceil_mode"), _rounded),
    (_is(("TRANSPOSE_CONV",), "pads", "output_shape", "auto_pad"), _transposed_conv),
    (_has_list, _list),
    (_is(PADS, "pads", "mode", "value"), _pad),
    (_is(("SLICE", "STRIDED_SLICE"), "starts", "ends", "steps", "window"), _sliced),
    (_is(("SQUEEZE",), "axes"), _squeeze),
    (_is(CLIPS, "min", "max"), _clip),
    (_is(LAST_AXIS, "axis"), _last_axis),
    (_is(("ELU",), "alpha"), _elu),
    (_is(("GELU",), "approximate"), _gelu),
    (_is(("LOCAL_RESPONSE_NORMALIZATION",), "size", "alpha"), _lrn),
    (_is(RESIZES, "mode", "coordinate_transformation_mode", "nearest_mode"), _resize),
    (_is(("CAST",), "to"), _cast),
    (_is(("FULLY_CONNECTED",), "transB"), _weights_turned),
    (lambda edit, node, name: name in ("y_scale", "y_zero_point"), _grid),
    (_is_operand, _operand),
    (lambda edit, node, name: _option(node, name) is not None, _plain),
)  # fmt: skip
"""(whether it fits an attribute of a node, what sets it), the first that fits counts."""

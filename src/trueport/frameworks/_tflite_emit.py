"""Writes operators of ONNX's vocabulary as TFLite's, in the layout of the file. Runs in a worker.

`Emitter` makes operators and tensors one after the other; `Emitter.emit` looks an operator up in `RULES`. Operands are
numbers of tensors or arrays. Where the data lies on a grid, operators that only move values keep it; all others compute
in float32 between a DEQUANTIZE and a QUANTIZE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple, Union

import numpy as np

from trueport.frameworks._base import Unsupported
from trueport.frameworks._tflite_editor import PACKED, Editor, Node
from trueport.frameworks._tflite_model import DTYPES

Operand = Union[int, np.ndarray]
"""A tensor of the graph, or a constant that is not in it yet."""
Attributes = Mapping[str, Any]
FAR = 2**31 - 1


class Emitter:
    """Operators under construction for one graph. `items` are they, in the order in which they run."""

    def __init__(self, edit: Editor, graph: Any, name: str) -> None:
        self.edit, self.graph, self.prefix = edit, graph, name
        self.items: list[Any] = []
        self._real: dict[int, int] = {}

    # -- tensors

    def place(self, operand: Operand) -> int:
        """The tensor of an operand; an array becomes a constant."""
        if isinstance(operand, np.ndarray):
            narrow = {"float64": "float32", "float16": "float32"}.get(operand.dtype.name)
            return self.edit.constant(self.graph, operand.astype(narrow) if narrow else operand, self.prefix)
        return int(operand)

    def array(self, operand: Operand) -> np.ndarray | None:
        """The real values of an operand that is constant, else None."""
        if isinstance(operand, np.ndarray):
            return operand
        writer = self.edit.writer(self.graph, operand)
        if writer is not None and writer.code == "DEQUANTIZE":
            return self.array(int(writer.item.inputs[0]))
        tensor = self.graph.tensors[operand]
        made = any(int(index) == operand for item in self.items for index in item.outputs)
        inputs = [int(index) for index in self.graph.inputs]
        if writer is not None or made or operand in inputs or tensor.isVariable or tensor.sparsity is not None:
            return None
        if self.edit.dtype(tensor) in (*PACKED, "str") or not self.edit.model.buffer(int(tensor.buffer)).size:
            return None
        return self.edit.values(tensor)

    def tensor(self, operand: int) -> Any:
        """The tensor itself."""
        return self.graph.tensors[operand]

    def shape(self, operand: Operand) -> list[int]:
        """Recorded shape."""
        return list(operand.shape) if isinstance(operand, np.ndarray) else self.edit.shape(self.tensor(operand))

    def fixed(self, operand: Operand, axes: Sequence[int], what: str) -> list[int]:
        """The sizes along these axes, which have to be fixed. Raises Unsupported."""
        sizes, free = self.shape(operand), [False] * 9
        if not isinstance(operand, np.ndarray):
            free = self.edit.free(self.tensor(operand))
        if any(free[axis] for axis in axes):
            raise Unsupported(f"{what} needs sizes that are free in this file")
        return [sizes[axis] for axis in axes]

    def dtype(self, operand: Operand) -> str:
        """NumPy's name of a type."""
        return operand.dtype.name if isinstance(operand, np.ndarray) else self.edit.dtype(self.tensor(operand))

    def quantised(self, operand: Operand) -> bool:
        """Whether an operand holds steps of a grid."""
        return not isinstance(operand, np.ndarray) and self.edit.quantised(self.tensor(operand))

    def real(self, operand: Operand) -> Operand:
        """The operand in float32 where it lies on a grid."""
        if isinstance(operand, np.ndarray) or not (self.quantised(operand) or self.dtype(operand) == "float16"):
            return operand
        if operand not in self._real:
            self._real[operand] = self.op("DEQUANTIZE", [operand], "DequantizeOptions", dtype="float32")
        return self._real[operand]

    def on_grid_of(self, operand: int, pattern: Any) -> int:
        """The operand in the type and on the grid of another tensor, as far as both hold real numbers."""
        tensor = self.tensor(operand)
        if self.edit.same_grid(tensor, pattern):
            return operand
        if self.edit.quantised(pattern) and (self.dtype(operand) == "float32" or self.edit.quantised(tensor)):
            return self.op("QUANTIZE", [operand], "QuantizeOptions", dtype=self.edit.dtype(pattern), grid=pattern)
        if self.edit.dtype(pattern) == "float32" and self.edit.quantised(tensor):
            return self.place(self.real(operand))
        return operand

    # -- operators

    def op(self, code: str, inputs: Sequence[Operand], options: str = "", **more: Any) -> int:
        """Add a TFLite operator of one result and return the result's tensor; see `ops`."""
        return self.ops(code, inputs, options, **more)[0]

    def ops(
        self,
        code: str,
        inputs: Sequence[Operand],
        options: str = "",
        *,
        dtype: str = "",
        grid: Any = None,
        results: int = 1,
        known: tuple[list[int], list[int] | None] | None = None,
        **values: Any,
    ) -> list[int]:
        """Add a TFLite operator; results get the type and grid of its first data, or `dtype` and the grid of tensor `grid`.

        known: shape, and signature, of a result whose shape depends on values, so that LiteRT cannot tell it beforehand.
        """
        places = [self.place(operand) for operand in inputs]
        data = next((place for place in places if place >= 0 and self.array(place) is None), places[0])
        outputs = []
        for _ in range(results):
            made = self.edit.schema.TensorT()
            made.name = self.edit.fresh_name(self.graph, f"{self.prefix}/{code.lower()}")
            made.type = DTYPES.index(dtype) if dtype else self.tensor(data).type
            pattern = grid if grid is not None else self.tensor(data) if not dtype else None
            made.quantization = None if pattern is None else pattern.quantization
            made.buffer, made.hasRank, made.shape = 0, True, self.edit.shape(self.tensor(data))
            outputs.append(self.edit.add_tensor(self.graph, made))
        item = self.edit.operator(code, places, outputs, options, **values)
        if known is None:
            self.edit.complete(self.graph, item)
        else:
            self.tensor(outputs[0]).shape, self.tensor(outputs[0]).shapeSignature = known
        self.items.append(item)
        return outputs

    def emit(self, operator: str, operands: Sequence[Operand], attributes: Attributes) -> list[int]:
        """Add an ONNX operator and return its results. Raises Unsupported, naming what TFLite has not."""
        rule = RULES.get(operator)
        if rule is None:
            raise Unsupported(f"there is no way to write the operator {operator} into a TFLite file")
        if not operands:
            raise Unsupported(f"the operator {operator} reads nothing")
        given = {key: value for key, value in attributes.items() if value is not None}
        kept = rule.keeps_grid and self._one_grid(operands)
        made = rule.write(self, list(operands) if kept else [self.real(operand) for operand in operands], given)
        return [self.place(operand) for operand in (made if isinstance(made, list) else [made])]

    # -- into the graph

    def copied(self, operand: int) -> int:
        """The operand once more, computed by an operator that moves nothing."""
        rank = len(self.shape(operand))
        if not rank:
            return self.op("RESHAPE", [operand, ints([])], "ReshapeOptions", newShape=[])
        return self.op("TRANSPOSE", [operand, ints(range(rank))], "TransposeOptions")

    def write_to(self, made: int, index: int) -> None:
        """Let the operator that computes `made` compute tensor `index` instead, which keeps its name alone."""
        item = next(item for item in self.items if made in [int(other) for other in item.outputs])
        item.outputs = [index if int(other) == made else int(other) for other in item.outputs]
        for other in self.items:
            other.inputs = [index if int(place) == made else int(place) for place in other.inputs]
        source, target = self.tensor(made), self.tensor(index)
        for field in ("type", "shape", "shapeSignature", "quantization", "hasRank"):
            setattr(target, field, getattr(source, field))
        if made == len(self.graph.tensors) - 1:
            self.graph.tensors.pop()

    def instead_of(self, node: Node, made: int) -> None:
        """Let the operators stand in the place of one of the graph, with `made` as its first result."""
        if not any(made in [int(index) for index in item.outputs] for item in self.items):
            made = self.copied(made)
        result = int(node.item.outputs[0])
        made = self.on_grid_of(made, self.tensor(result))
        self.write_to(made, result)
        last = next(item for item in self.items if result in [int(index) for index in item.outputs])
        others = [item for item in self.items if item is not last]
        self.edit.put_before(node, others)
        vars(node.item).update(vars(last))
        self.edit.rewritten(self.graph)
        self.items = []

    def put_in(self) -> None:
        """Place the operators behind what they read."""
        made = {int(index) for item in self.items for index in item.outputs}
        read = {int(index) for item in self.items for index in item.inputs} - made
        places = [
            number for number, item in enumerate(self.graph.operators) if read & {int(index) for index in item.outputs}
        ]
        start = max(places, default=-1) + 1
        self.graph.operators[start:start] = self.items
        self.edit.rewritten(self.graph)
        self.items = []

    def _one_grid(self, operands: Sequence[Operand]) -> bool:
        tensors = [self.tensor(operand) for operand in operands if not isinstance(operand, np.ndarray) and operand >= 0]
        found = [tensor for tensor in tensors if self.edit.quantised(tensor)]
        return all(self.edit.same_grid(found[0], other) for other in found)


class Rule(NamedTuple):
    """How one operator is written. `keeps_grid`: it may do so in steps of the data's grid."""

    write: Callable[[Emitter, list[Any], Attributes], Any]
    keeps_grid: bool = False


# -- parts that several rules use ---------------------------------------------------------------------------------


def ints(values: Any) -> np.ndarray:
    """A constant of int32, as TFLite takes shapes and axes."""
    return np.asarray(np.clip(np.asarray(values, np.int64), -FAR - 1, FAR), np.int32)


def whole(e: Emitter, operands: list[Any], given: Attributes, slot: int, name: str) -> list[int] | None:
    """Integers that are an attribute, or a constant operand at `slot`. None when neither."""
    if name in given:
        return [int(value) for value in np.ravel(given[name])]
    if slot < len(operands):
        found = e.array(operands[slot])
        if found is None:
            raise Unsupported(f"'{name}' has to be constant in a TFLite file")
        return [int(value) for value in found.ravel()]
    return None


def number(e: Emitter, operands: list[Any], given: Attributes, slot: int, name: str, default: float) -> float:
    """A number that is an attribute, or a constant operand at `slot`."""
    if name in given:
        return float(np.ravel(given[name])[0])
    if slot < len(operands):
        found = e.array(operands[slot])
        if found is None or found.size != 1:
            raise Unsupported(f"'{name}' has to be one constant number in a TFLite file")
        return float(found.ravel()[0])
    return default


def axis_of(e: Emitter, operand: Any, given: Attributes, default: int, name: str = "axis") -> int:
    """An axis, counted from the front. Raises Unsupported when the data has fewer axes."""
    rank, axis = len(e.shape(operand)), int(given.get(name, default))
    if not -rank <= axis < rank:
        raise Unsupported(f"the data has {rank} axes, and axis {axis} is asked for")
    return axis % rank


def binary(code: str, options: str = "") -> Callable[[Emitter, list[Any], Attributes], int]:
    """An operator of two operands; more are folded in from the left."""

    def write(e: Emitter, operands: list[Any], given: Attributes) -> int:
        if len(operands) < 2:
            raise Unsupported(f"{code} takes two operands, and got {len(operands)}")
        result = operands[0]
        for other in operands[1:]:
            result = e.op(code, _alike(e, result, other), options)
        return int(result)

    return write


def _alike(e: Emitter, left: Operand, right: Operand) -> list[Operand]:
    """Two operands of one type: a constant array takes the other one's."""
    if isinstance(right, np.ndarray) and not isinstance(left, np.ndarray):
        return [left, right.astype(e.dtype(left))]
    if isinstance(left, np.ndarray) and not isinstance(right, np.ndarray):
        return [left.astype(e.dtype(right)), right]
    return [left, right]


def compare(code: str, options: str) -> Callable[[Emitter, list[Any], Attributes], int]:
    """A comparison."""
    return lambda e, operands, given: e.op(code, _alike(e, operands[0], operands[1]), options, dtype="bool")


def unary(code: str, options: str = "") -> Callable[[Emitter, list[Any], Attributes], int]:
    """An operator of one operand without settings."""
    return lambda e, operands, given: e.op(code, operands[:1], options)


def add(e: Emitter, left: Operand, right: Operand | float) -> int:
    """left + right."""
    return e.op("ADD", [left, _float(right)], "AddOptions")


def mul(e: Emitter, left: Operand, right: Operand | float) -> int:
    """left * right."""
    return e.op("MUL", [left, _float(right)], "MulOptions")


def sub(e: Emitter, left: Operand | float, right: Operand | float) -> int:
    """left - right."""
    return e.op("SUB", [_float(left), _float(right)], "SubOptions")


def div(e: Emitter, left: Operand | float, right: Operand | float) -> int:
    """left / right."""
    return e.op("DIV", [_float(left), _float(right)], "DivOptions")


def least(e: Emitter, left: Operand, right: float) -> int:
    """min(left, right)."""
    return e.op("MINIMUM", [left, _float(right)], "MaximumMinimumOptions")


def most(e: Emitter, left: Operand, right: float) -> int:
    """max(left, right)."""
    return e.op("MAXIMUM", [left, _float(right)], "MaximumMinimumOptions")


def _float(value: Any) -> Operand:
    return np.array(value, np.float32) if isinstance(value, float) else value


def transposed(e: Emitter, operand: Operand, perm: Sequence[int]) -> int:
    """The operand with its axes in another order."""
    if sorted(perm) != list(range(len(e.shape(operand)))):
        raise Unsupported(f"{list(perm)} is no order of {len(e.shape(operand))} axes")
    return e.op("TRANSPOSE", [operand, ints(perm)], "TransposeOptions")


def padded(e: Emitter, operand: Operand, pads: Sequence[int], value: float = 0.0, mode: str = "constant") -> Operand:
    """The operand with `pads`, all begins and then all ends; negative ones cut off."""
    rank = len(e.shape(operand))
    if len(pads) != 2 * rank:
        raise Unsupported(f"{len(pads)} pads were given for {rank} axes")
    pairs = np.array([pads[:rank], pads[rank:]], np.int64).T
    if np.any(pairs < 0):
        begin, end = np.maximum(-pairs[:, 0], 0), np.where(pairs[:, 1] < 0, pairs[:, 1], FAR)
        operand = strided(e, operand, begin.tolist(), end.tolist(), [1] * rank)
        pairs = np.maximum(pairs, 0)
    if not np.any(pairs):
        return operand
    if mode in ("reflect", "symmetric"):
        kind = ("reflect", "symmetric").index(mode)
        return e.op("MIRROR_PAD", [operand, ints(pairs)], "MirrorPadOptions", mode=kind)
    if mode != "constant":
        raise Unsupported(f"TFLite does not pad in mode '{mode}'")
    if value == 0:
        return e.op("PAD", [operand, ints(pairs)], "PadOptions")
    filled = np.full((1,), value).astype(e.dtype(operand))
    if e.quantised(operand):
        filled = e.edit.steps(e.tensor(int(e.place(operand))), np.full((1,), value))
    place = e.place(filled)
    e.tensor(place).quantization = e.tensor(e.place(operand)).quantization
    return e.op("PADV2", [operand, ints(pairs), place], "PadV2Options")


def strided(e: Emitter, operand: Operand, starts: list[int], ends: list[int], steps: list[int]) -> int:
    """A slice as Python takes it; ends beyond the data are masked, so that free sizes stay free."""
    masks = [0, 0]
    for axis, (start, end, step) in enumerate(zip(starts, ends, steps)):
        size = e.shape(operand)[axis]
        if (start == 0 and step > 0) or (step < 0 and (start == -1 or start >= size)):
            masks[0] |= 1 << axis
        if (end >= FAR // 2 and step > 0) or (step < 0 and end < -size):
            masks[1] |= 1 << axis
    tables = [ints(np.clip(part, -FAR, FAR)) for part in (starts, ends, steps)]
    return e.op("STRIDED_SLICE", [operand, *tables], "StridedSliceOptions", beginMask=masks[0], endMask=masks[1])


def reduced(e: Emitter, code: str, operand: Operand, axes: Sequence[int], keep: bool = True) -> int:
    """A reduction over axes."""
    return e.op(code, [operand, ints(axes)], "ReducerOptions", keepDims=keep)


def clipped(e: Emitter, operand: Operand, low: float, high: float) -> Operand:
    """The operand between two numbers, as one operator where TFLite has it."""
    code = {(0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1", (0.0, 1.0): "RELU_0_TO_1", (0.0, math.inf): "RELU"}
    if (low, high) in code and e.dtype(operand) == "float32":
        return e.op(code[low, high], [operand])
    result = operand if low == -math.inf or low <= -3e38 else most(e, operand, low)
    return result if high == math.inf or high >= 3e38 else least(e, result, high)


def same_pads(size: int, kernel: int, stride: int, dilation: int, *, lower: bool = False) -> tuple[int, int]:
    """Begin and end of "same" padding along one axis."""
    total = max(0, (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size)
    less, more = total // 2, total - total // 2
    return (more, less) if lower else (less, more)


class Window(NamedTuple):
    """How a window moves over a picture; `pads` explicit (top, left, bottom, right), or None for `auto`."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[int] | None
    auto: str

    @staticmethod
    def of(kernel: Sequence[int], given: Attributes) -> Window:
        """From ONNX's attributes. Raises Unsupported when they are not those of a picture."""
        spread = {}
        for name in ("strides", "dilations"):
            values = [int(value) for value in np.ravel(given.get(name, 1))]
            spread[name] = values * 2 if len(values) == 1 else values
        pads = given.get("pads")
        auto = str(given.get("auto_pad", "NOTSET")).upper()
        explicit = [int(value) for value in np.ravel(pads)] if pads is not None else None
        if explicit is not None and len(explicit) in (1, 2):
            explicit = explicit * (4 // len(explicit))
        if explicit is None and auto in ("NOTSET", ""):
            explicit = [0, 0, 0, 0]
        if auto.startswith("SAME") or auto == "VALID":
            explicit = None
        found = Window([int(size) for size in kernel], spread["strides"], spread["dilations"], explicit, auto)
        if any(len(part) != 2 for part in found[:3]) or (explicit is not None and len(explicit) != 4):
            raise Unsupported("windows over anything but pictures (two axes) are not written")
        return found

    def placed(self, e: Emitter, data: Operand) -> tuple[bool, list[int] | None]:
        """(whether TFLite's SAME does it, explicit pads where neither SAME nor VALID does)."""
        if self.auto in ("SAME", "SAME_UPPER"):
            return True, None
        if self.auto == "VALID" or (self.pads is not None and not any(self.pads)):
            return False, None
        even = [same_pads(10**6, k, 1, d) for k, d in zip(self.kernel, self.dilations)]
        pads = self.pads
        free = [False] * 4 if isinstance(data, np.ndarray) else e.edit.free(e.tensor(data))
        if self.strides == [1, 1] and not any(size < 1 for size in e.shape(data)[1:3]):
            same = [even[0][0], even[1][0], even[0][1], even[1][1]]
        elif any(free[1:3]):
            same = None
        else:
            lower = self.auto == "SAME_LOWER"
            found = [
                same_pads(*sizes, lower=lower)
                for sizes in zip(e.shape(data)[1:3], self.kernel, self.strides, self.dilations)
            ]
            if lower:
                pads = [found[0][0], found[1][0], found[0][1], found[1][1]]
            upper = [same_pads(*sizes) for sizes in zip(e.shape(data)[1:3], self.kernel, self.strides, self.dilations)]
            same = [upper[0][0], upper[1][0], upper[0][1], upper[1][1]]
        if pads is None:
            if self.strides != [1, 1]:
                raise Unsupported("SAME_LOWER needs sizes that are free in this file")
            pads = [even[0][1], even[1][1], even[0][0], even[1][0]]
        return (True, None) if pads == same else (False, pads if any(pads) else None)


RULES: dict[str, Rule] = {}
"""ONNX operator -> how it is written; filled by the modules of operators."""

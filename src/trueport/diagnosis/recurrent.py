"""The weights of recurrent operators, one matrix per gate, so that packings of different formats are compared gate by gate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from trueport.diagnosis import precision
from trueport.diagnosis.operators import kind, native
from trueport.diagnosis.region import Parameter

_Name = TypeVar("_Name")

KINDS = ("LSTM", "GRU", "RNN")

_ORDERS: Mapping[tuple[str, str], str] = {
    ("LSTM", "onnx"): "iofc",
    ("LSTM", "openvino"): "fico",
    ("LSTM", "torch"): "ifco",
    ("LSTM", "keras"): "ifco",
    ("LSTM", "tflite"): "ifco",
    ("LSTM", "coreml"): "ifoc",
    ("GRU", "coreml"): "rhz",
    ("RNN", "coreml"): "h",
    ("GRU", "onnx"): "zrh",
    ("GRU", "openvino"): "zrh",
    ("GRU", "torch"): "rzh",
    ("GRU", "keras"): "zrh",
    ("RNN", "onnx"): "h",
    ("RNN", "openvino"): "h",
    ("RNN", "torch"): "h",
    ("RNN", "keras"): "h",
}
"""Gates in the order in which a format packs them: i input, f forget, c cell, o output; z update, r reset, h hidden."""

_TRAINED = ("keras", "tflite", "torch")
"""Families whose models may come as cells that are computed step by step; the others pack anew when they are converted to."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One layer in one direction. `blocks`: (part, gate) -> array; part W (input), R (recurrent), Wb and Rb (their biases).

    Matrices are [hidden, in], biases [hidden]. `names`: the stored parameters they come from.
    """

    label: str
    blocks: Mapping[tuple[str, str], np.ndarray]
    order: str
    names: tuple[str, ...]
    slots: Mapping[str, str] = field(default_factory=dict)
    """Part -> the parameter that holds it."""

    def bias(self, gate: str) -> np.ndarray:
        """Both biases of a gate added; zeros where there is none."""
        size = len(next(iter(self.blocks.values())))
        return sum((self.blocks[part, gate] for part in ("Wb", "Rb") if (part, gate) in self.blocks), np.zeros(size))


def cells(parameters: Sequence[Parameter]) -> tuple[Cell, ...]:
    """Take apart the parameters of one recurrent node; nothing when they are packed in a way that is not known."""
    floats = [item for item in parameters if item.real and item.array.ndim >= 1 and item.array.size > 1]
    if not floats or kind(floats[0].node) not in KINDS:
        return ()
    family = _family(floats[0])
    order = _ORDERS.get((kind(floats[0].node), family))
    if order is None:
        return ()
    try:
        return _READERS[family](floats, order)
    except (ValueError, IndexError, KeyError):
        return ()


def _family(parameter: Parameter) -> str:
    name = native(parameter.node)
    if name.startswith("aten."):
        return "torch"
    if name in ("lstm", "gru", "rnn"):
        return "coreml"
    if name.endswith("Sequence"):
        return "openvino"
    if "SEQUENCE" in name or (name.isupper() and name not in KINDS):
        return "tflite"
    return "onnx" if parameter.array.ndim == 3 else "keras"


def _blocks(part: str, packed: np.ndarray, order: str) -> dict[tuple[str, str], np.ndarray]:
    """Split [gates * hidden, ...] into one block per gate."""
    return {
        (part, gate): np.asarray(block, np.float64)
        for gate, block in zip(order, np.split(packed, len(order)), strict=True)
    }


def _torch(floats: Sequence[Parameter], order: str) -> tuple[Cell, ...]:
    matrices = [item for item in floats if item.array.ndim == 2 and item.slot > 0]
    matrices = [item for item in matrices if item.array.shape[0] % len(order) == 0]
    vectors = [item for item in floats if item.array.ndim == 1]
    found = []
    for place in range(len(matrices) // 2):
        parts = {"W": matrices[2 * place], "R": matrices[2 * place + 1]}
        if vectors:
            parts |= {"Wb": vectors[2 * place], "Rb": vectors[2 * place + 1]}
        blocks: dict[tuple[str, str], np.ndarray] = {}
        for part, item in parts.items():
            blocks |= _blocks(part, item.array, order)
        slots = {part: item.stored for part, item in parts.items()}
        found.append(Cell(f"cell {place}", blocks, order, tuple(slots.values()), slots))
    return tuple(found)


def _keras(floats: Sequence[Parameter], order: str) -> tuple[Cell, ...]:
    matrices = [item for item in floats if item.array.shape[-1] % len(order) == 0]
    kernel, recurrent = matrices[0], matrices[1]
    blocks = _blocks("W", kernel.array.T, order) | _blocks("R", recurrent.array.T, order)
    slots = {"W": kernel.stored, "R": recurrent.stored}
    if len(matrices) > 2:
        bias = matrices[2]
        rows = np.atleast_2d(bias.array)
        blocks |= _blocks("Wb", rows[0], order)
        if len(rows) == 2:
            blocks |= _blocks("Rb", rows[1], order)
        slots["Wb"] = bias.stored
    return (Cell("cell 0", blocks, order, tuple(slots.values()), slots),)


def _onnx(floats: Sequence[Parameter], order: str) -> tuple[Cell, ...]:
    by_slot = {item.slot: item for item in floats}
    kernel, recurrent, bias = by_slot[1], by_slot[2], by_slot.get(3)
    found = []
    for direction in range(len(kernel.array)):
        blocks = _blocks("W", kernel.array[direction], order) | _blocks("R", recurrent.array[direction], order)
        slots = {"W": kernel.stored, "R": recurrent.stored}
        if bias is not None:
            first, second = np.split(bias.array[direction], 2)
            blocks |= _blocks("Wb", first, order) | _blocks("Rb", second, order)
            slots["Wb"] = bias.stored
        label = f"direction {direction}" if len(kernel.array) > 1 else "cell 0"
        found.append(Cell(label, blocks, order, tuple(slots.values()), slots))
    return tuple(found)


def _tflite(floats: Sequence[Parameter], order: str) -> tuple[Cell, ...]:
    matrices = [item for item in floats if item.array.ndim == 2 and item.slot > 0]
    hidden = matrices[0].array.shape[0]
    matrices = [item for item in matrices if item.array.shape[0] == hidden][: 2 * len(order)]
    vectors = [item for item in floats if item.array.shape == (hidden,)]
    if len(matrices) != 2 * len(order) or len(vectors) != len(order):
        return ()
    blocks: dict[tuple[str, str], np.ndarray] = {}
    slots: dict[str, str] = {}
    count = len(order)
    for part, items in (("W", matrices[:count]), ("R", matrices[count:]), ("Wb", vectors)):
        for gate, item in zip(order, items, strict=True):
            blocks[part, gate] = np.asarray(item.array, np.float64)
            slots.setdefault(part, item.stored)
    return (Cell("cell 0", blocks, order, tuple(item.stored for item in (*matrices, *vectors)), slots),)


def _coreml(floats: Sequence[Parameter], order: str) -> tuple[Cell, ...]:
    matrices = [item for item in floats if item.array.ndim == 2]
    rows = max(len(item.array) for item in matrices)  # states are smaller
    matrices = [item for item in matrices if len(item.array) == rows]
    vectors = [item for item in floats if item.array.shape == (rows,)]
    found = []
    for place in range(len(matrices) // 2):
        parts = {"W": matrices[2 * place], "R": matrices[2 * place + 1]}
        if len(vectors) == len(matrices) // 2:
            parts["Wb"] = vectors[place]
        blocks: dict[tuple[str, str], np.ndarray] = {}
        for part, item in parts.items():
            blocks |= _blocks(part, item.array, order)
        slots = {part: item.stored for part, item in parts.items()}
        found.append(Cell(f"cell {place}", blocks, order, tuple(slots.values()), slots))
    return tuple(found)


def _openvino(floats: Sequence[Parameter], order: str) -> tuple[Cell, ...]:
    """[directions, gates * hidden, in]; one bias, both added up, and behind it the hidden gate's second one where it has its own."""
    kernel, recurrent = [item for item in floats if item.array.ndim == 3][-2:]
    biases = [item for item in floats if item.array.ndim == 2 and item.slot > recurrent.slot]
    found = []
    for direction in range(len(kernel.array)):
        blocks = _blocks("W", kernel.array[direction], order) | _blocks("R", recurrent.array[direction], order)
        slots = {"W": kernel.stored, "R": recurrent.stored}
        if biases:
            hidden = recurrent.array.shape[-1]
            row = np.asarray(biases[0].array[direction], np.float64)
            blocks |= _blocks("Wb", row[: hidden * len(order)], order)
            if row.size > hidden * len(order):
                blocks["Rb", order[-1]] = row[-hidden:]
            slots["Wb"] = biases[0].stored
        label = f"direction {direction}" if len(kernel.array) > 1 else "cell 0"
        found.append(Cell(label, blocks, order, tuple(slots.values()), slots))
    return tuple(found)


_READERS = {
    "coreml": _coreml,
    "torch": _torch,
    "keras": _keras,
    "onnx": _onnx,
    "openvino": _openvino,
    "tflite": _tflite,
}


@dataclass(frozen=True, slots=True)
class GateFault:
    """What is wrong with one part of a cell. `names`: of the source's parameters; `grid`: the narrow type that the source's
    weights were rounded to, where that is all; `far`: distance as a share of the size."""

    part: str
    what: str
    source_value: str
    target_value: str
    names: tuple[str, ...]
    parameter: str | None
    grid: str | None = None
    far: float = 1.0


def _close(target: np.ndarray, source: np.ndarray) -> bool:
    return target.shape == source.shape and bool(
        np.max(np.abs(target - source), initial=0.0) <= 1e-5 * np.max(np.abs(source), initial=1e-12)
    )


def differing(target: Cell, source: Cell) -> list[tuple[str, str]]:
    """The (part, gate) blocks of a target cell that are not the source's. Biases of a gate are compared added up, except
    the hidden gate of a GRU whose two biases do different things."""
    wrong = [
        (part, gate)
        for part in ("W", "R")
        for gate in target.order
        if not _close(target.blocks[part, gate], source.blocks.get((part, gate), np.zeros(0)))
    ]
    for gate in target.order:
        split = gate == "h" and all(
            ("Rb", "h") in cell.blocks and np.any(cell.blocks["Rb", "h"]) for cell in (target, source)
        )
        if split:
            wrong += [
                (part, gate)
                for part in ("Wb", "Rb")
                if not _close(target.blocks[part, gate], source.blocks[part, gate])
            ]
        elif not _close(target.bias(gate), source.bias(gate)):
            wrong.append(("bias", gate))
    return wrong


def compare(targets: Sequence[Cell], sources: Sequence[Cell]) -> list[GateFault]:
    """Compare every cell of a target node with the source cell that is most like it."""
    found: list[GateFault] = []
    used: set[int] = set()
    for position, cell in enumerate(targets):
        fitting = alike(cell, sources)
        if not fitting:
            continue
        best = min(fitting, key=lambda item: len(differing(cell, item)))
        if id(best) in used and len(fitting) >= len(targets):
            expected = fitting[position] if position < len(fitting) else best
            what = f"{cell.label} holds the weights of another direction ({best.label}) once more"
            found.append(GateFault("W", what, expected.label, best.label, expected.names, cell.slots.get("W")))
            continue
        used.add(id(best))
        wrong = differing(cell, best)
        if wrong:
            found.append(_fault(cell, best, wrong))
    return found


def alike(cell: Cell, sources: Sequence[Cell]) -> list[Cell]:
    """The source's cells with the same gates and sizes."""
    first = ("W", cell.order[0])
    same = [item for item in sources if set(item.order) == set(cell.order)]
    return [item for item in same if item.blocks[first].shape == cell.blocks[first].shape]


def _fault(cell: Cell, source: Cell, wrong: list[tuple[str, str]]) -> GateFault:
    parts = [part for part, _ in wrong]
    main = "W" if "W" in parts else parts[0]
    slot = {"bias": "Wb", "Rb": "Wb"}.get(main, main)
    names = (source.slots.get(slot, source.slots["W"]),)
    parameter = cell.slots.get(slot) or cell.slots.get("W")
    swapped = {}
    for part, gate in wrong:
        if part in ("W", "R"):
            swapped[gate] = next(
                (other for other in source.order if _close(cell.blocks[part, gate], source.blocks[part, other])), None
            )
    if swapped and all(other is not None for other in swapped.values()):
        order = "".join(swapped.get(gate) or gate for gate in cell.order)
        return GateFault(
            main,
            f"gates are packed in the order {order} where this operator reads {cell.order}",
            cell.order,
            order,
            names,
            parameter,
        )
    gates = ", ".join(f"{part} of gate {gate}" for part, gate in wrong[:4])
    more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
    ours, theirs = _values(cell, source, wrong[0])
    if not np.any(theirs):
        return GateFault(main, f"{gates}{more}: all zeros in the target", _shown(ours), "all zeros", names, parameter)
    far = _far(theirs, ours)
    grid = _grid(cell, source, dict.fromkeys(parts))
    if grid is not None:
        what = f"{gates}{more} are the source's rounded to {grid}"
        theirs_shown = f"{_shown(theirs)}, on a {grid} grid, off by {far:.2g} of its size"
        return GateFault(main, what, _shown(ours), theirs_shown, names, parameter, grid, far)
    what = f"{gates}{more} differ by {far:.3g} of their size"
    return GateFault(main, what, _shown(ours), _shown(theirs), names, parameter, None, far)


def _far(target: np.ndarray, source: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(target - source))) / max(float(np.sqrt(np.mean(np.square(source)))), 1e-30))


def _grid(cell: Cell, source: Cell, parts: Iterable[str]) -> str | None:
    """The grid to which all gates of these parts were rounded; None where it is not one and the same."""
    found: set[str | None] = set()
    for part in parts:
        for packed in ("Wb", "Rb") if part == "bias" else (part,):
            if any((packed, gate) not in item.blocks for item in (cell, source) for gate in cell.order):
                continue
            ours, theirs = (
                np.concatenate([item.blocks[packed, gate] for gate in cell.order]) for item in (source, cell)
            )
            if not _close(theirs, ours):
                found.add(precision.grid_of(theirs, ours))
    return found.pop() if len(found) == 1 else None


# -- cells that the source computes step by step ---------------------------------------------------------------------------


def judged(
    target: Sequence[Parameter], sources: Iterable[Sequence[Parameter]], arrays: Mapping[str, np.ndarray]
) -> list[GateFault] | None:
    """What is wrong with the cells of a target node; None where they are packed in a way that is not known.

    sources: the parameters of each node of the source. arrays: all of them, by name, for a source that computes its
    cells step by step.
    """
    theirs = cells(target)
    if not theirs:
        return None
    ours = [cell for parameters in sources for cell in cells(parameters)]
    if ours:
        return compare(theirs, ours)
    found = [scattered(cell, arrays) for cell in theirs]
    return None if all(item is None for item in found) else [fault for item in found for fault in item or ()]


def scattered(cell: Cell, arrays: Mapping[str, np.ndarray]) -> list[GateFault] | None:
    """Compare a cell with matrices that hold its gates in any order and packing, as an unrolled or looping source has them.

    arrays: parameter -> [m, n] or [n]. None when less than half of the gates' matrices are found there: not this cell's.
    """
    matrices = {name: array for name, array in arrays.items() if array.ndim == 2}
    found: list[GateFault] = []
    known = 0
    for part in ("W", "R"):
        places: dict[str, tuple[str, int]] = {}
        for gate in cell.order:
            block = cell.blocks[part, gate]
            near = min(cut_out(block, matrices), key=lambda item: _far(block, item[2]), default=None)
            if near is None or _far(block, near[2]) > UNLIKE:
                found.append(_unknown(cell, part, gate, block))
                continue
            known += 1
            name, place, ours = near
            places[gate] = name, place
            if not _close(block, ours):
                far, grid = _far(block, ours), precision.grid_of(block, ours)
                how = f"is the source's rounded to {grid}" if grid else f"differs by {far:.3g} of its size"
                what = f"{part} of gate {gate} {how}"
                told = f"{_shown(block)}, off by {far:.2g} of its size"
                found.append(GateFault(part, what, _shown(ours), told, (name,), cell.slots.get(part), grid, far))
        found += _misplaced(cell, part, places)
    if known < len(cell.order):
        return None
    vectors = {name: array for name, array in arrays.items() if array.ndim == 1}
    return found + [fault for gate in cell.order if (fault := _loose_bias(cell, gate, vectors)) is not None]


def nearest(block: np.ndarray, arrays: Mapping[_Name, np.ndarray]) -> tuple[_Name, np.ndarray] | None:
    """The part of the arrays that is most like a matrix or a vector; None where none has its size."""
    return min(alike_parts(block, arrays), key=lambda item: _far(block, item[1]), default=None)


def alike_parts(block: np.ndarray, arrays: Mapping[_Name, np.ndarray]) -> list[tuple[_Name, np.ndarray]]:
    """All parts of the arrays that have the shape of a matrix or a vector, transposed ones too."""
    if block.ndim == 1:  # a GRU of Keras has both biases in one parameter
        arrays = {name: array.ravel() if len(array) == 2 else array for name, array in arrays.items() if array.ndim}
    arrays = {name: array for name, array in arrays.items() if array.ndim == block.ndim}
    return [(name, part) for name, _, part in cut_out(block, arrays)]


def packing(gates: str) -> str | None:
    """The order in which sources that compute cells step by step pack these gates; None where they do not agree."""
    usual = packings(gates)
    return usual[0] if len(usual) == 1 else None


def packings(gates: str) -> list[str]:
    """The orders in which sources that compute cells step by step pack these gates: those of the frameworks that train."""
    return sorted({order for (_, family), order in _ORDERS.items() if family in _TRAINED and set(order) == set(gates)})


def _misplaced(cell: Cell, part: str, places: Mapping[str, tuple[str, int]]) -> list[GateFault]:
    """Gates that lie in the source's packed matrix in an order that no format has. places: gate -> (array, block)."""
    usual = packing(cell.order)
    if len({name for name, _ in places.values()}) != 1 or len(set(places.values())) != len(cell.order):
        return []
    if usual is None or sorted(place for _, place in places.values()) != list(range(len(cell.order))):
        return []
    order = "".join(usual[places[gate][1]] for gate in cell.order)
    if order == cell.order:
        return []
    what = f"gates are packed in the order {order} where this operator reads {cell.order}"
    names = (places[cell.order[0]][0],)
    return [GateFault(part, what, cell.order, order, names, cell.slots.get(part))]


def _loose_bias(cell: Cell, gate: str, vectors: Mapping[str, np.ndarray]) -> GateFault | None:
    """A gate's bias that the source's vectors hold neither added up nor as two."""
    added = cell.bias(gate)
    blocks = [(name, part) for name, array in vectors.items() for part in _parts(array, added.size)]
    if not np.any(added) or not blocks:
        return None
    two = [cell.blocks[part, gate] for part in ("Wb", "Rb") if (part, gate) in cell.blocks]
    two = [array for array in two if np.any(array)]
    if any(_close(added, block) for _, block in blocks):
        return None
    if all(any(_close(array, block) for _, block in blocks) for array in two):
        return None
    wanted = next((array for array in two if not any(_close(array, block) for _, block in blocks)), added)
    name, ours = min(blocks, key=lambda item: _far(wanted, item[1]))
    far = _far(wanted, ours)
    what = f"bias of gate {gate} differs by {far:.3g} of its size"
    return GateFault("Wb", what, _shown(ours), _shown(wanted), (name,), cell.slots.get("Wb"), None, far)


def _parts(array: np.ndarray, size: int) -> list[np.ndarray]:
    step = size if array.size % size == 0 else math.gcd(size, array.size)
    return [array[begin : begin + size] for begin in range(0, array.size - size + 1, step)]


UNLIKE = 0.7
"""Distance from which on a block is none of the source's: unrelated blocks are 1.4 times their size apart."""


def _unknown(cell: Cell, part: str, gate: str, block: np.ndarray) -> GateFault:
    what = f"{part} of gate {gate} is none of the source's matrices here"
    return GateFault(part, what, "no matrix like it", _shown(block), (), cell.slots.get(part))


def cut_out(block: np.ndarray, arrays: Mapping[_Name, np.ndarray]) -> Iterator[tuple[_Name, int, np.ndarray]]:
    """Every part of the arrays that a gate's matrix [hidden, in] or vector [hidden] may be: as it lies and transposed,
    alone or packed with others, with its number among them."""
    rows, columns = np.atleast_2d(block.T).T.shape
    for name, array in arrays.items():
        if block.ndim == 1:
            yield from ((name, place, part) for place, part in enumerate(_parts(array, rows)))
            continue
        for turned in (array, array.T):
            if turned.shape[0] < rows or turned.shape[1] < columns:
                continue
            step = rows if turned.shape[0] % rows == 0 else math.gcd(rows, turned.shape[0])  # two gates of three
            for left in sorted({0, turned.shape[1] - columns}):
                for top in range(0, turned.shape[0] - rows + 1, step):
                    yield name, top // rows, turned[top : top + rows, left : left + columns]


def _values(cell: Cell, source: Cell, place: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    part, gate = place
    if part == "bias":
        return source.bias(gate), cell.bias(gate)
    return source.blocks[part, gate], cell.blocks[part, gate]


def _shown(array: np.ndarray) -> str:
    shape = "x".join(map(str, array.shape))
    return f"{shape}, rms {float(np.sqrt(np.mean(np.square(array)))):.4g}"

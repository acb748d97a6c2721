"""The weights of recurrent operators, one matrix per gate, so that packings of different formats are compared gate by gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trueport.diagnosis.operators import kind, native
from trueport.diagnosis.region import Parameter

KINDS = ("LSTM", "GRU", "RNN")

_ORDERS: Mapping[tuple[str, str], str] = {
    ("LSTM", "onnx"): "iofc",
    ("LSTM", "torch"): "ifco",
    ("LSTM", "keras"): "ifco",
    ("LSTM", "tflite"): "ifco",
    ("GRU", "onnx"): "zrh",
    ("GRU", "torch"): "rzh",
    ("GRU", "keras"): "zrh",
    ("RNN", "onnx"): "h",
    ("RNN", "torch"): "h",
    ("RNN", "keras"): "h",
}
"""Gates in the order in which a format packs them: i input, f forget, c cell, o output; z update, r reset, h hidden."""


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


_READERS = {"torch": _torch, "keras": _keras, "onnx": _onnx, "tflite": _tflite}


@dataclass(frozen=True, slots=True)
class GateFault:
    """What is wrong with one part of a cell: the gate -> what the source has there. `names`: of the source's parameters."""

    part: str
    what: str
    source_value: str
    target_value: str
    names: tuple[str, ...]
    parameter: str | None


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
        fitting = [item for item in sources if set(item.order) == set(cell.order)]
        fitting = [
            item for item in fitting if item.blocks["W", cell.order[0]].shape == cell.blocks["W", cell.order[0]].shape
        ]
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
    far = float(np.sqrt(np.mean(np.square(theirs - ours))) / max(float(np.sqrt(np.mean(np.square(ours)))), 1e-30))
    return GateFault(
        main, f"{gates}{more} differ by {far:.3g} of their size", _shown(ours), _shown(theirs), names, parameter
    )


def _values(cell: Cell, source: Cell, place: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    part, gate = place
    if part == "bias":
        return source.bias(gate), cell.bias(gate)
    return source.blocks[part, gate], cell.blocks[part, gate]


def _shown(array: np.ndarray) -> str:
    shape = "x".join(map(str, array.shape))
    return f"{shape}, rms {float(np.sqrt(np.mean(np.square(array)))):.4g}"

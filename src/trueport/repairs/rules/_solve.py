"""A missing operator that NumPy finds: which one, on which values of the target, gives the mended value.

From the mended value at the place of the fault the values that its operands should have are solved for, upwards through
arithmetic. Where such a value is what one operator makes of the one in the file, and of another that the target has,
that operator is missing; where it is another value of the target, the operand is the wrong one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from trueport.align.info import numbers, rms
from trueport.diagnosis.operators import ACTIVATIONS, kind
from trueport.diagnosis.structure import Stretch
from trueport.graph import Node
from trueport.repairs.scene import Scene

BINARY: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "Mul": np.multiply,
    "Add": np.add,
    "Sub": np.subtract,
    "Div": np.divide,
}
"""Operators of two operands."""

UNARY: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "Abs": np.abs,
    "Exp": np.exp,
    "Neg": np.negative,
    "Reciprocal": lambda array: 1 / array,
    "Relu": lambda array: np.maximum(array, 0),
    "Sigmoid": lambda array: 1 / (1 + np.exp(-array)),
    "Sqrt": np.sqrt,
    "Tanh": np.tanh,
}
"""Operators of one operand."""


def _sigmoid(array: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-array)))


def _ratio(wanted: np.ndarray, given: np.ndarray) -> float:
    """The factor that fits best where `given` is negative; 0 where it never is."""
    low = given < 0
    power = float(np.sum(given[low] ** 2))
    return float(np.sum(wanted[low] * given[low])) / power if power else 0.0


FITTED: Mapping[str, Callable[[np.ndarray, np.ndarray], tuple[dict[str, float], np.ndarray]]] = {
    "Relu": lambda x, y: ({}, np.maximum(x, 0)),
    "Sigmoid": lambda x, y: ({}, _sigmoid(x)),
    "Tanh": lambda x, y: ({}, np.tanh(x)),
    "Softplus": lambda x, y: ({}, np.logaddexp(x, 0)),
    "Softsign": lambda x, y: ({}, x / (1 + np.abs(x))),
    "HardSigmoid": lambda x, y: ({"alpha": 1 / 6, "beta": 0.5}, np.clip(x / 6 + 0.5, 0, 1)),
    "HardSwish": lambda x, y: ({}, x * np.clip(x / 6 + 0.5, 0, 1)),
    "Swish": lambda x, y: ({}, x * _sigmoid(x)),
    "Clip": lambda x, y: ({"min": float(y.min()), "max": float(y.max())}, np.clip(x, y.min(), y.max())),
    "LeakyRelu": lambda x, y: ({"alpha": (a := _rounded(_ratio(y, x)))}, np.where(x > 0, x, a * x)),
    "Elu": lambda x, y: (
        {"alpha": (a := _rounded(_ratio(y, np.expm1(np.minimum(x, 0)))))},
        np.where(x > 0, x, a * np.expm1(np.minimum(x, 0))),
    ),
}
"""Activation -> (its attributes, what it gives) for what it reads and what it should give."""


def _rounded(value: float) -> float:
    """A setting as somebody would have written it."""
    short = float(f"{value:.3g}")
    return short if abs(short - value) <= 1e-4 * abs(value) else value


LEVELS = 4
"""Operators upwards from the place of the fault through which values are solved for."""

AROUND = 40
"""Values of the target that are tried as the other operand."""


@dataclass(frozen=True, slots=True)
class Need:
    """What `value` should be for `reader` (for all its readers where None), [R, *shape]."""

    value: str
    reader: Node | None
    array: np.ndarray


@dataclass(frozen=True, slots=True)
class Solved:
    """`operator` of the value and of `other` gives what is needed; "" where `other` itself is it. idle: nobody reads `other`."""

    need: Need
    operator: str
    other: str = ""
    idle: bool = False


class Solver:
    """The search for one scene."""

    def __init__(self, scene: Scene, stretch: Stretch) -> None:
        self.scene, self.stretch = scene, stretch
        self.graph, self.values = scene.pair.target.graph, scene.pair.target.values
        self.below = set(self.graph.downward([scene.finding.target]))
        consumers = self.graph.consumers
        self.idle = [
            name
            for node in self.graph.nodes
            for name in node.outputs
            if name and name not in consumers and name not in self.graph.outputs and self._usable(name)
        ]

    def _usable(self, name: str) -> bool:
        value = self.values.get(name)
        computed = name in self.stretch.target.dynamic and name not in self.below
        return computed and value is not None and value.dtype.kind == "f"

    def solve(self) -> Iterator[Solved]:
        """Everything that fits; values that nobody reads first."""
        needs = list(self.needs())
        around = self._around()
        for need in needs:
            for operator, unary in UNARY.items():
                if self._fits(need, _computed(unary, self._own(need))):
                    yield Solved(need, operator)
        for other in [*self.idle, *around]:
            for need in needs:
                array = _aligned(self.values[other], need.array)
                if array is None or other == need.value:
                    continue
                if self._fits(need, array) and need.reader is not None:
                    yield Solved(need, "", other, other in self.idle)
                for operator, binary in BINARY.items():
                    if self._fits(need, _computed(binary, self._own(need), array)):
                        yield Solved(need, operator, other, other in self.idle)

    def fitted(self) -> Iterator[tuple[Node, str, dict[str, float]]]:
        """Activations of the region, and the other one that gives what they should."""
        for need in self.needs():
            node = self.graph.producer(need.value)
            if node is None or kind(node) not in {*ACTIVATIONS, "Clip"} or need.reader is not None:
                continue
            given = self._operand(node, 0)
            if given is None or given.shape != need.array.shape:
                continue
            for operator, fit in FITTED.items():
                if operator == kind(node) and operator not in ("Clip", "LeakyRelu", "Elu"):
                    continue
                with np.errstate(all="ignore"):
                    attributes, array = fit(given.astype(np.float64), need.array.astype(np.float64))
                if self._fits(need, array):
                    yield node, operator, attributes
                    break

    def exchanged(self, found: Solved) -> Node | None:
        """The difference whose negative is needed, or the quotient whose inverse is: its operands are exchanged."""
        node = self.graph.producer(found.need.value) if found.operator in ("Neg", "Reciprocal") else None
        while node is not None and kind(node) in ("Identity", "Reshape"):
            node = self.graph.producer(node.inputs[0])
        wanted = {"Neg": "Sub", "Reciprocal": "Div"}.get(found.operator)
        return node if node is not None and kind(node) == wanted and len(node.inputs) == 2 else None

    def _own(self, need: Need) -> np.ndarray:
        return numbers(np.asarray(self.values[need.value]))

    def _fits(self, need: Need, array: np.ndarray) -> bool:
        if array.shape != need.array.shape:
            return False
        spread = rms(need.array - need.array.mean(axis=0)) or rms(need.array)
        with np.errstate(all="ignore"):
            gap = rms(array - need.array)
        return bool(np.isfinite(gap) and gap <= 10 * self.scene.pair.tolerance * max(spread, 1e-30))

    def _around(self) -> list[str]:
        """The values that the region computes and reads, and what those are computed from."""
        front = [name for node in self.stretch.theirs for name in (*node.outputs, *node.inputs)]
        found = dict.fromkeys(front)
        for name in front:
            found |= dict.fromkeys(self.graph.parents(name))
        return [name for name in found if self._usable(name) and name not in self.idle][:AROUND]

    # -- what the operands should be

    def needs(self) -> Iterator[Need]:
        """The mended value, and what follows from it for the operands before it."""
        finding = self.scene.finding
        wanted = self.scene.pair.theirs.values.get(finding.target)
        own = self.values.get(finding.target)
        if finding.kind == "missing" or wanted is None or own is None or own.dtype.kind != "f":
            return
        if wanted.shape != own.shape:
            return
        front = [Need(finding.target, None, numbers(np.asarray(wanted)))]
        region = {node.name for node in self.stretch.theirs}
        for _ in range(LEVELS):
            yield from front
            front = [
                need
                for before in front
                if (node := self.graph.producer(before.value)) is not None and node.name in region
                for need in self._operands(node, before.array)
            ]

    def _operands(self, node: Node, wanted: np.ndarray) -> Iterator[Need]:
        """What each operand of a node should be, the other one as it is in the file."""
        if kind(node) in ("Reshape", "Neg") and self._operand(node, 0) is not None:
            before = self.values[node.inputs[0]]
            if before.size == wanted.size:
                array = -wanted if kind(node) == "Neg" else wanted.reshape(before.shape)
                yield Need(node.inputs[0], node, array)
        if kind(node) not in BINARY or len(node.inputs) != 2 or node.attributes.get("activation"):
            return
        for slot, name in enumerate(node.inputs):
            own, other = self._operand(node, slot), self._operand(node, 1 - slot)
            if own is None or other is None or name not in self.stretch.target.dynamic:
                continue
            with np.errstate(all="ignore"):
                solved = _collapsed(_inverse(kind(node), slot, wanted, other), own.shape, self.scene.pair.tolerance)
            if solved is not None:
                yield Need(name, node, solved)

    def _operand(self, node: Node, slot: int) -> np.ndarray | None:
        """An operand in the file, [R or 1, *shape]; None where it was not traced or holds no floats."""
        value = self.values.get(node.inputs[slot])
        if value is None:
            constant = self.stretch.target.array(node.inputs[slot])
            value = None if constant is None else constant[None]
        return None if value is None or value.dtype.kind != "f" else numbers(np.asarray(value))


def _computed(operator: Callable[..., np.ndarray], *operands: np.ndarray) -> np.ndarray:
    """Apply an operator; what it is not defined for becomes infinite or NaN, which fits nothing."""
    with np.errstate(all="ignore"):
        return operator(*operands)


def _inverse(operator: str, slot: int, wanted: np.ndarray, other: np.ndarray) -> np.ndarray:
    """What operand `slot` must be for the operator to give `wanted` with `other` as the second one."""
    aligned = _aligned(other, wanted)
    known = np.full_like(wanted, np.nan) if aligned is None else aligned
    forms = {
        "Add": (wanted - known, wanted - known),
        "Mul": (wanted / known, wanted / known),
        "Sub": (wanted + known, known - wanted),
        "Div": (wanted * known, known / wanted),
    }
    return np.asarray(forms[operator][slot])


def _aligned(array: np.ndarray, like: np.ndarray) -> np.ndarray | None:
    """An array [R, *shape] broadcast behind the run axis to another one; None where that cannot be."""
    if array.ndim > like.ndim:
        return None
    shaped = np.reshape(array, (array.shape[0], *(1,) * (like.ndim - array.ndim), *array.shape[1:]))
    try:
        return np.broadcast_to(numbers(np.asarray(shaped)), like.shape)
    except ValueError:
        return None


def _collapsed(array: np.ndarray, shape: tuple[int, ...], tolerance: float) -> np.ndarray | None:
    """An array that was broadcast from `shape`, in that shape; None where it varies along what was broadcast."""
    if not np.isfinite(array).all() or len(shape) > array.ndim:
        return None
    full = (shape[0], *(1,) * (array.ndim - len(shape)), *shape[1:])
    axes = tuple(axis for axis, size in enumerate(full) if size == 1 and array.shape[axis] != 1)
    mean = np.asarray(array.mean(axis=axes, keepdims=True))
    if mean.shape != full or rms(array - mean) > 100 * tolerance * max(rms(mean), 1e-30):
        return None
    return mean.reshape(shape)

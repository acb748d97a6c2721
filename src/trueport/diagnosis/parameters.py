"""Whether each parameter of a stretch of the target is one of the source's, as it is or derived; and what is wrong with those that are not.

Only the parameters of the *source region* explain: over the whole model, a parameter that was mixed up with another
layer's would look explained. A weight must have the layout that its operator prescribes (or that the other weights of
the model agree on): else a transposed kernel would look equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from trueport.align.types import Alignment
from trueport.diagnosis import differences, folding, layouts, pool, precision, recurrent
from trueport.diagnosis.operators import kind
from trueport.diagnosis.pool import Known, Norm, Pool
from trueport.diagnosis.region import Inside, Parameter
from trueport.diagnosis.types import Cause
from trueport.graph import FINE, Node

WEIGHTED = frozenset({
    "Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LayerNormalization", "Einsum", "PRelu"
})  # fmt: skip
"""Kinds whose parameters count even when they have only two or three elements."""

UNEXPLAINED, SLOT, MISSING, ON_GRID = 2.0, 2.5, 1.2, 2.6
"""Weights of evidence; an unexplained parameter weighs up to 1 more, by how far off it is."""

_DECLARED_SLACK = {"float16": 2e-3, "bfloat16": 1e-2, "int8-dynamic": 2e-2, "int8": 2e-2}
"""Relative distance up to which a declared precision explains a vector (its grid is that of its input and weight)."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a parameter that `node` reads."""

    node: Node
    cause: Cause
    what: str
    source_value: Any
    target_value: Any
    weight: float
    source_nodes: tuple[str, ...] = ()
    parameter: str | None = None


@dataclass
class Region:
    """A finding's stretch of both models. `ours`: source nodes (all granularities), `theirs`: target nodes."""

    source: Inside
    target: Inside
    ours: tuple[Node, ...]
    theirs: tuple[Node, ...]
    alignment: Alignment
    declared: str = "float32"
    named: frozenset[str] = frozenset()
    """The source nodes that the finding names; `ours` holds their finer parts and the layers they belong to as well."""
    partners: dict[str, frozenset[str]] = field(default_factory=dict)
    """Target node -> the source nodes that have its parameters; known once `faults` has been asked for."""
    _taken: list[Known] = field(default_factory=list)

    @cached_property
    def pool(self) -> Pool:
        """What the source region gives."""
        made = pool.pool_of(self.source, self.ours)
        weights, scales = folding.unfolded(self.target, self.theirs, made.raw)
        made.raw += weights
        made.vectors += scales
        return made

    @cached_property
    def wide(self) -> Pool:
        """What it gives with the scale and the shift right behind it, which a converter folds into what is before them."""
        return pool.pool_of(self.source, (*self.ours, *pool.linear_behind(self.source, self.ours)))

    # -- faults ---------------------------------------------------------------------------------------------------

    def faults(self) -> list[Fault]:
        """Everything wrong with the parameters that the target region reads."""
        found: list[Fault] = []
        self._taken.clear()
        open_ones: list[tuple[Parameter, np.ndarray]] = []
        for node in self.theirs:
            if not self.target.runs(node):
                continue
            packed = self._recurrent(node)
            if packed is not None:
                found += packed
                continue
            swapped = self._slots(node)
            found += swapped
            for item in () if swapped else self.target.parameters(node):
                if not counts(item):
                    continue
                known = self.explain(item)
                if known is None:
                    open_ones.append((item, pool.raw_of(item).array))
                else:
                    self._taken.append(known)
                    if known.parameter is not None and layouts.tight(item.array).ndim > 1:
                        before = self.partners.get(node.name, frozenset())
                        self.partners[node.name] = before | {known.parameter.node.name}
        for item, array in open_ones:
            fault = self._diagnosed(item, array)
            if fault is not None:
                found.append(fault)
        absent = None if open_ones else self.missing_bias()
        if absent is not None and absent[1].parameter is not None:
            host, known = absent
            what = f"the bias '{known.label}' of the source is missing"
            names = (absent[1].parameter.node.name,)
            found.append(Fault(host, Cause.PARAMETERS, what, _shown(known), "no bias", MISSING, names))
        return found

    def explain(self, item: Parameter) -> Known | None:
        """The array of the source region that a target parameter is, or None. Zeros and ones explain themselves where
        the source has nothing else to put there."""
        mine = pool.raw_of(item)
        if kind(item.node) == "Loop" and layouts.tight(mine.array).ndim in (1, 2):
            near = self._in_loop(mine)
            if near is not None and pool.close(mine.array, near.array):
                return near
        for known in self._expected(item, mine):
            if self._equal(mine, known):
                return known
        for known in self.pool.raw:
            folded = self._folded(mine, known, self.pool.scales) or self._folded(mine, known, self.wide.scales)
            if folded is not None:
                return folded
        return pool.joined(mine, self.pool.raw) or self._plain(item, mine) or self._behind(mine)

    def _behind(self, mine: Known) -> Known | None:
        """A shift that stands in the source right behind the region."""
        vectors = [known for known in (*self.wide.raw, *self.wide.vectors) if layouts.tight(known.array).ndim == 1]
        flat = layouts.tight(mine.array)
        fitting = (known for known in vectors if flat.ndim == 1 and pool.close(flat, known.array.ravel(), known.terms))
        return next(fitting, None)

    def _in_loop(self, mine: Known) -> Known | None:
        """The part of a source parameter most like one inside a loop's body, which may hold a layer's gates in any order,
        transposed, alone or packed."""
        arrays = {place: layouts.tight(known.array) for place, known in enumerate(self.pool.raw)}
        near = recurrent.nearest(layouts.tight(mine.array), arrays)
        if near is None:
            return None
        place, part = near
        known = self.pool.raw[place]
        return Known(part.reshape(mine.array.shape), known.names, parameter=known.parameter)

    def _expected(self, item: Parameter, mine: Known) -> Iterator[Known]:
        """Arrays of the source region of the same size, those of the same role first."""
        size = mine.array.size
        fitting = [known for known in self.pool.everything if known.array.size == size]
        yield from sorted(fitting, key=lambda known: 0 if known.parameter and known.parameter.slot == item.slot else 1)

    def _equal(self, mine: Known, known: Known) -> bool:
        """Equal in the layout that both operators prescribe, or that the rest of the model agrees on."""
        t, s = mine.array, known.array
        if mine.axes and known.axes:
            if pool.close(layouts.tight(t), layouts.tight(s), known.terms) and _alike(t, s):
                return True
            return bool(np.any(t.shape != s.shape)) and self._same_matrix(t, s)
        if max(layouts.tight(t).ndim, layouts.tight(s).ndim) <= 1:
            return pool.close(t, s, known.terms)
        return self._by_votes(mine, known)

    @staticmethod
    def _same_matrix(t: np.ndarray, s: np.ndarray) -> bool:
        """A 1x1 convolution and a matrix, or a Gemm after a Flatten and a convolution of the whole picture."""
        flat_t, flat_s = t.reshape(len(t), -1), s.reshape(len(s), -1)
        return flat_t.shape == flat_s.shape and pool.close(flat_t, flat_s)

    def _by_votes(self, mine: Known, known: Known) -> bool:
        if known.parameter is None or mine.parameter is None:
            return pool.close(mine.array, known.array, known.terms)
        t, s = mine.parameter.array, known.parameter.array
        if not layouts.same_elements(layouts.print_of(t), layouts.print_of(s)):
            return False
        fitting = [
            way for way, a, b in layouts.readings(t, s) if pool.close(np.asarray(a, float), np.asarray(b, float))
        ]
        if not fitting:
            return False
        plain = any(list(way.permutation) == sorted(way.permutation) for way in fitting)
        others = self.votes(layouts.key_of(mine.parameter), layouts.key_of(known.parameter))
        if others:
            most = max(others.values())
            return any(others.get(way, 0) == most for way in fitting)
        rank = layouts.tight(s).ndim
        natural = self.alignment.consensus.get(rank)
        if plain or (natural is not None and layouts.Moved("source", tuple(natural)) in fitting):
            return True
        return (
            kind(mine.parameter.node) in ("Einsum", "MatMul", "Gemm", "Attention", "MultiHeadAttention")
            and t.ndim != s.ndim
        )

    def votes(self, target_key: tuple[str, int], source_key: tuple[str, int]) -> dict[layouts.Moved, int]:
        """How weights of the same kinds of operators outside the region are laid out, where the target agrees."""
        inside = {node.name for node in self.theirs}
        targets = [
            item
            for node in self.target.graph.nodes
            if node.name not in inside and any(self.alignment.ok(name) for name in node.outputs)
            for item in self.target.parameters(node)
            if item.real and item.array.ndim > 1 and layouts.key_of(item) == target_key
        ]
        if not targets:
            return {}
        sources = [
            item
            for node in self.source.graph.nodes
            for item in self.source.parameters(node)
            if item.real and item.array.ndim > 1 and layouts.key_of(item) == source_key
        ]
        return dict(layouts.votes(targets[:24], sources))

    @staticmethod
    def _folded(mine: Known, known: Known, scales: Sequence[Known]) -> Known | None:
        """A weight times a known scale, per output or input channel."""
        if mine.array.ndim < 2 or not scales or mine.array.size != known.array.size:
            return None
        t, s = mine.array, known.array
        if t.shape != s.shape:
            t, s = layouts.tight(t), layouts.tight(s)
        for axis in (0, 1):
            factor = pool.factors_between(t, s, axis)
            scale = None if factor is None else pool.known_factor(factor, scales)
            if scale is not None:
                names = (*known.names, *scale.names)
                return Known(t, names, "folded weights", axes=known.axes, parameter=known.parameter)
        return None

    def _plain(self, item: Parameter, mine: Known) -> Known | None:
        """An array of one value throughout: a scalar that was spread, or the zeros and ones of an absent parameter."""
        flat = mine.array.ravel()
        if np.any(flat != flat[0]):
            return None
        inner = kind(item.node) == "Loop"  # whose biases are operands of another loop, or of a layer
        for known in () if inner and flat[0] == 0 else self.pool.raw:
            if np.all(known.array == known.array.flat[0]) and abs(known.array.flat[0] - flat[0]) <= 1e-6 * abs(flat[0]):
                return Known(mine.array, known.names, "spread")
        if float(flat[0]) not in (0.0, 1.0) or (mine.array.ndim > 1 and mine.axes):
            return None
        wanted = [
            known
            for known in [*self.pool.raw, *self.pool.vectors]
            if known.array.size == flat.size and np.any(known.array) and (inner or pool.is_bias(known))
        ]
        if flat[0] == 0 and wanted and not self._satisfied(item, wanted):
            return None
        return Known(mine.array, (), "nothing")

    def _satisfied(self, item: Parameter, wanted: Sequence[Known]) -> bool:
        """Whether another parameter of the target region is one of those that could belong here."""
        arrays = [
            np.asarray(other.array, np.float64).ravel()
            for node in self.theirs
            for other in self.target.parameters(node)
            if other.real and other.name != item.name and other.array.size == wanted[0].array.size
        ]
        return any(pool.close(array, known.array.ravel(), known.terms) for array in arrays for known in wanted)

    # -- what is wrong --------------------------------------------------------------------------------------------

    def _diagnosed(self, item: Parameter, array: np.ndarray) -> Fault | None:
        """Say what an unexplained parameter is. None when the declared precision explains it."""
        mine = pool.raw_of(item)
        nearest = self._nearest(item, mine)
        if nearest is not None:
            grid = self._grid(mine, nearest)
            if grid is not None:
                return None if precision.covered(grid, self.declared) else self._on_grid(item, nearest, grid)
            slack = _DECLARED_SLACK.get(self.declared, 0.0)
            if array.size == nearest.array.size and differences.distance(array, nearest.array) < slack:
                return None
        absorbed = None if nearest is None else folding.absorbed(self.target, item.node, mine, nearest)
        if absorbed is not None:
            return self._folded_in(absorbed)
        epsilon = folding.wrong_epsilon(mine, self.pool.raw, self._norms())
        if epsilon is not None:
            return self._fault(item, epsilon[0], epsilon[1], epsilon[2], nearest, 1.0)
        foreign = None if not np.any(array) else self.foreign(mine)
        label = f"{_role(item)} '{item.stored}'"
        own = f"{item.stored}: {differences.shown(item.array)}"
        if foreign is not None:
            owner = foreign.parameter.node.shown if foreign.parameter is not None else ""
            shared = self._shared(item)
            what = f"{label} is that of another layer: {foreign.label}{f' of {owner!r}' if owner else ''}{shared}"
            return self._fault(item, what, _shown(nearest), f"{own} = {foreign.label}", nearest, 1.0)
        if nearest is None:
            what = f"{label} is none of the source's parameters here, as they are or derived{self._shared(item)}"
            return self._fault(item, what, "no parameter of that size", own, None, 0.3)
        if array.size == nearest.array.size and pool.close(array.ravel(), nearest.array.ravel()):
            what = f"{label} is laid out unlike the other weights that operators of its kind read"
            return self._fault(item, what, _shown(nearest), own, nearest, 1.0)
        how = differences.between(array, nearest.array, weight=bool(mine.axes and nearest.axes))
        target_value = f"{own}, {how.detail}" if how.detail else own
        return self._fault(
            item, f"{label} {how.what}{self._shared(item)}", _shown(nearest), target_value, nearest, min(1.0, how.far)
        )

    def _fault(
        self, item: Parameter, what: str, source_value: Any, target_value: Any, nearest: Known | None, far: float
    ) -> Fault:
        names = (nearest.parameter.node.name,) if nearest is not None and nearest.parameter is not None else ()
        return Fault(
            item.node, Cause.PARAMETERS, what, source_value, target_value, UNEXPLAINED + far, names, item.stored
        )

    @staticmethod
    def _folded_in(found: folding.Absorbed) -> Fault | None:
        """The fault of an operator whose constant the source added to its bias; None where both constants are equal."""
        if found.equal:
            return None
        cause = Cause.HYPERPARAMETERS if found.attribute else Cause.PARAMETERS
        return Fault(found.node, cause, found.what, found.source_value, found.target_value, SLOT)

    def _on_grid(self, item: Parameter, nearest: Known, grid: str) -> Fault:
        what = f"{_role(item)} '{item.stored}' is the source's rounded to {grid}, which nobody declared"
        far = differences.distance(pool.raw_of(item).array, nearest.array)
        target_value = f"{item.stored}: {differences.shown(item.array)}, on a {grid} grid, off by {far:.2g} of its size"
        names = (nearest.parameter.node.name,) if nearest.parameter is not None else ()
        return Fault(item.node, Cause.PRECISION, what, _shown(nearest), target_value, ON_GRID, names, item.stored)

    @staticmethod
    def _grid(mine: Known, nearest: Known) -> str | None:
        t, s = mine.array, nearest.array
        if t.shape != s.shape:
            t, s = layouts.tight(t), layouts.tight(s)
        return precision.grid_of(t, s) if t.shape == s.shape else None

    def _nearest(self, item: Parameter, mine: Known) -> Known | None:
        return next(iter(self._ranked(item, mine)), None)

    def candidates(self, item: Parameter) -> list[Known]:
        """What the source region may have in the place of a parameter: of equal size, the closest first, then the same
        slot. What other parameters of the target already are comes later."""
        return self._ranked(item, pool.raw_of(item))

    def _ranked(self, item: Parameter, mine: Known) -> list[Known]:
        if kind(item.node) == "Loop" and layouts.tight(mine.array).ndim in (1, 2):
            inner = self._in_loop(mine)
            return [] if inner is None else [inner]
        candidates = list(self._expected(item, mine))
        if mine.array.ndim >= 2:
            for known in list(candidates):
                for scale in self.pool.scales:
                    if known.array.ndim >= 2 and scale.array.size == len(known.array):
                        shape = (-1, *[1] * (known.array.ndim - 1))
                        folded = known.array * scale.array.reshape(shape)
                        names = (*known.names, *scale.names)
                        candidates.append(
                            Known(folded, names, "folded weights", axes=known.axes, parameter=known.parameter)
                        )

        def rank(known: Known) -> tuple[float, int, int]:
            flat = layouts.tight(known.array).ravel()
            tied = (
                known.parameter is not None
                and known.parameter.slot == item.slot
                and kind(known.parameter.node) == kind(item.node)
            )
            far = differences.distance(mine.array, flat)
            taken = any(known.array is other.array for other in self._taken)
            mixed = layouts.same_elements(layouts.print_of(mine.array), layouts.print_of(known.array))
            return (0.0 if mixed else min(far, 1.0) if far < 0.9 else 1.0, int(taken), 0 if tied else 1)

        return sorted(candidates, key=rank)

    def _norms(self) -> list[Norm]:
        return [norm for node in self.ours if (norm := pool.norm_of(self.source, node)) is not None]

    def foreign(self, mine: Known) -> Known | None:
        """A parameter of the source outside the region that this one is."""
        inside = {node.name for node in self.ours}
        for node in self.source.graph.nodes:
            if node.name in inside or node.name.startswith(FINE) or not self.source.runs(node):
                continue
            for item in self.source.parameters(node):
                if item.real and item.array.size == mine.array.size > 1 and np.any(item.array != item.array.flat[0]):
                    known = pool.raw_of(item)
                    if pool.close(layouts.tight(mine.array), layouts.tight(known.array)):
                        return known
            norm = pool.norm_of(self.source, node)
            if norm is not None and norm.slots["var"].size == mine.array.size:
                nearby = self.source.graph.producer(node.inputs[0])
                derived = pool.pool_of(self.source, (nearby, node) if nearby is not None else (node,))
                for known in [*derived.vectors, *derived.scales]:
                    if pool.close(mine.array, known.array, known.terms):
                        label = Parameter(node, 0, known.names[0], known.names[0], known.array)
                        return Known(known.array, known.names, known.how, known.terms, parameter=label)
        return None

    def _shared(self, item: Parameter) -> str:
        readers = [node for node in self.target.graph.nodes if item.stored in node.inputs]
        return f"; {len(readers)} nodes share this constant" if len(readers) > 1 else ""

    # -- whole nodes ------------------------------------------------------------------------------------------------

    def _recurrent(self, node: Node) -> list[Fault] | None:
        """The faults of a recurrent node; None when it is none, or packed in a way that is not known."""
        if kind(node) not in recurrent.KINDS:
            return None
        sources = [self.source.parameters(item) for item in self.ours]
        arrays = {", ".join(known.names): layouts.tight(known.array) for known in self.pool.raw}
        found = recurrent.judged(self.target.parameters(node), sources, arrays)
        names = tuple(item.name for item in self.ours if kind(item) in recurrent.KINDS)
        return (
            None if found is None else [self._of_gate(node, fault, names) for fault in found if self._undeclared(fault)]
        )

    def _undeclared(self, fault: recurrent.GateFault) -> bool:
        """Whether the declared precision does not explain what is wrong with a gate."""
        if fault.grid is not None and precision.covered(fault.grid, self.declared):
            return False
        return fault.far >= _DECLARED_SLACK.get(self.declared, 0.0)

    @staticmethod
    def _of_gate(node: Node, fault: recurrent.GateFault, names: tuple[str, ...]) -> Fault:
        cause = Cause.PARAMETERS if fault.grid is None else Cause.PRECISION
        ours, theirs = f"{', '.join(fault.names)}: {fault.source_value}", f"{fault.parameter}: {fault.target_value}"
        return Fault(node, cause, fault.what, ours, theirs, UNEXPLAINED + 1, names, fault.parameter)

    def _slots(self, node: Node) -> list[Fault]:
        """Parameters of a normalisation that stand in each other's place."""
        if not kind(node).endswith("Normalization"):
            return []
        for other in self.ours:
            if kind(other) != kind(node):
                continue
            named = pool.slots_of(self.target, node), pool.slots_of(self.source, other)
            mine, its = named
            if set(mine) != set(its) or len(mine) < 2:
                continue
            crossed = pool.exchanged(mine, its)
            if crossed is not None:
                ours, theirs = ([differences.shown(slots[name]) for name in crossed] for slots in (its, mine))
                words = {"var": "variance", "gamma": "scale", "beta": "shift"}
                what = f"{' and '.join(words.get(name, name) for name in crossed)} are exchanged"
                return [Fault(node, Cause.PARAMETERS, what, ours, theirs, SLOT + 0.5, (other.name,))]
        return []

    def missing_bias(self) -> tuple[Node, Known] | None:
        """A bias of the source that no parameter of the target region is, and the operator that has none. Holds after
        `faults`, where it has found every parameter explained."""
        taken = {name.removeprefix(FINE) for known in self._taken for name in known.names}
        hosts = [
            node
            for node in self.theirs
            if kind(node) in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")
            and not any(other.array.ndim == 1 for other in self.target.parameters(node))
        ]
        if len(hosts) != 1 or any(kind(node) in ("Add", "BatchNormalization", "Sub") for node in self.theirs):
            return None
        for known in self.pool.raw:
            item = known.parameter
            if item is None or not pool.is_bias(known) or known.array.size < 2 or item.node.name.startswith(FINE):
                continue
            if (self.named and item.node.name not in self.named) or item.stored.removeprefix(FINE) in taken:
                continue
            if np.any(known.array) and not any(
                pool.close(other.array.ravel(), known.array.ravel()) for other in self._taken
            ):
                return hosts[0], known
        return None


def counts(item: Parameter) -> bool:
    """Whether a parameter is one that must be explained by itself, and not a scalar, a shape or an axis."""
    least = 1 if kind(item.node) in WEIGHTED or kind(item.node) in ("Add", "Sub", "Mul", "Div") else 3
    return item.real and item.array.size > least


def _alike(t: np.ndarray, s: np.ndarray) -> bool:
    return layouts.tight(t).shape == layouts.tight(s).shape


def _role(item: Parameter) -> str:
    axes = layouts.axes_of(item)
    if axes is not None:
        return "weights"
    name = kind(item.node)
    if layouts.tight(item.array).ndim <= 1 and name in ("Conv", "ConvTranspose", "Gemm", "Add"):
        return "bias"
    return "constant" if name not in WEIGHTED else "parameter"


def _shown(known: Known | None) -> str:
    if known is None:
        return "no parameter of that size"
    array = known.parameter.array if known.parameter is not None and not known.how else known.array
    return f"{known.label}: {differences.shown(array)}"

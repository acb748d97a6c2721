"""Which target input gets which source input, in which layout and dtype. Nothing is done without saying so.

Order of belief: what the converter declared, equal names, names equal but for decoration, then position. A layout is
changed only when the converter declared it, or when the shapes allow the channel move and forbid everything else.

A quantised tensor crosses as real values where its file tells the grid, and as bare integers where it does not (an ONNX
model with int8 inputs). Of two such twins the one that tells the grid speaks for both, if the integers are of one type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from trueport.artifact import Signature, TensorSpec
from trueport.dtypes import value_dtype
from trueport.errors import UsageError
from trueport.frameworks._base import Dim

if TYPE_CHECKING:
    from trueport.feeds.types import Case, Feeds


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The integers of a quantised tensor and what they stand for: real = (integer - zero_point) * scale."""

    scale: float
    zero_point: int
    dtype: np.dtype

    @classmethod
    def between(cls, told: TensorSpec, bare: TensorSpec) -> Self | None:
        """The grid that `told`'s file tells, where `bare` holds plain integers of that very type; else None."""
        facts = told.quantization or {}
        scale = facts.get("scale")
        if bare.quantization or not isinstance(scale, float) or not 0.0 < scale < float("inf"):
            return None
        if facts.get("dtype") != bare.dtype or np.dtype(bare.dtype).kind not in "iu":
            return None
        return cls(scale=scale, zero_point=int(facts.get("zero_point", 0)), dtype=np.dtype(bare.dtype))

    def integers(self, array: np.ndarray) -> np.ndarray:
        """Real values on the grid, as a runtime puts them there: half to even, clipped, NaN to the zero point."""
        limits = np.iinfo(self.dtype)
        steps = np.rint(array.astype(np.float64) / self.scale) + self.zero_point
        steps = np.where(np.isnan(steps), self.zero_point, np.clip(steps, limits.min, limits.max))
        return np.asarray(steps.astype(self.dtype))

    def reals(self, array: np.ndarray) -> np.ndarray:
        """What integers on the grid stand for, float32."""
        steps = array.astype(np.int64) - self.zero_point
        return np.asarray(steps.astype(np.float32) * np.float32(self.scale))

    def __str__(self) -> str:
        return f"{self.dtype} steps of {self.scale:.6g}, zero point {self.zero_point}"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRule:
    """One target input: np.transpose(source array without run axis, permutation), as `shape`, in `dtype` (None: as it is).

    `grid`: the change of dtype is one between real values and integers on this grid, not a cast.
    """

    target: str
    source: str
    permutation: tuple[int, ...] | None = None
    dtype: np.dtype | None = None
    grid: Grid | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InputMap:
    """How source feeds become target feeds. Usable only when `problems` is empty; `notes` tells every decision."""

    rules: tuple[InputRule, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def reconcile_inputs(
    source: Signature,
    target: Signature,
    renames: Mapping[str, str] | None = None,
    layout: Mapping[str, Mapping[str, Any]] | None = None,
) -> InputMap:
    """Match the inputs of two models.

    renames: source name -> target name; layout: target name -> {"source", "permutation"}, both as the converter declared them.
    Never raises: what cannot be matched stands in `problems`, one sentence each.
    """
    declared = {name: entry for name, entry in (layout or {}).items() if _find(target, name)}
    pairs, how = _pair(source, target, renames or {}, declared)
    rules, problems, notes = [], [], []
    for spec in target.inputs:
        if spec.name not in pairs:
            problems.append(_unmatched(spec, source))
            continue
        origin = pairs[spec.name]
        if how[spec.name] != "equal names":
            notes.append(f"target input {spec.name} is fed from source input {origin.name} (by {how[spec.name]})")
        given = declared.get(spec.name, {}).get("permutation")
        permutation, said, problem = _layout(
            origin, spec, None if given is None else tuple(int(axis) for axis in given)
        )
        dtype, cast, refused = _dtype(origin, spec)
        notes += [sentence for sentence in (said, cast) if sentence]
        problems += [sentence for sentence in (problem, refused) if sentence]
        rules.append(
            InputRule(
                target=spec.name,
                source=origin.name,
                permutation=permutation,
                dtype=dtype,
                grid=None if dtype is None else grid_of(origin, spec),
                shape=_scalar(origin, spec),
            )
        )
    used = {rule.source for rule in rules}
    notes += [
        f"source input {spec.name} has no counterpart in the target" for spec in source.inputs if spec.name not in used
    ]
    return InputMap(rules=tuple(rules), problems=tuple(problems), notes=tuple(notes))


def apply(mapping: InputMap, feeds: Feeds) -> tuple[Case, ...]:
    """The cases of `feeds` as the target takes them: same names and kinds, target input names, layouts and dtypes.

    Raises UsageError when the map has problems, or a value does not survive a cast.
    """
    if mapping.problems:
        raise UsageError(f"the inputs cannot be matched: {'; '.join(mapping.problems)}")
    return tuple(
        replace(case, inputs={rule.target: _moved(rule, case) for rule in mapping.rules}) for case in feeds.cases
    )


def _moved(rule: InputRule, case: Case) -> np.ndarray:
    array = case.inputs[rule.source]
    if rule.permutation is not None:
        array = array.transpose(0, *(axis + 1 for axis in rule.permutation))
    if rule.shape is not None:
        array = array.reshape(array.shape[0], *rule.shape)
    if rule.dtype is None or array.dtype == rule.dtype:
        return array
    if rule.grid is not None:
        return rule.grid.reals(array) if array.dtype == rule.grid.dtype else rule.grid.integers(array)
    with np.errstate(over="ignore"):
        cast = array.astype(rule.dtype)
    lost = np.isinf(cast) & np.isfinite(array) if cast.dtype.kind == "f" else cast != array
    if bool(np.any(lost)):
        raise UsageError(
            f"a value of input {rule.source} ({array[lost].ravel()[0]} in case {case.name}) does not fit the {rule.dtype} of target input {rule.target}"
        )
    return cast


# Pairing


def _find(signature: Signature, name: str | None) -> TensorSpec | None:
    return next((spec for spec in signature.inputs if spec.name == name), None)


Pairs = dict[str, TensorSpec]


def _pair(
    source: Signature, target: Signature, renames: Mapping[str, str], layout: Mapping[str, Mapping[str, Any]]
) -> tuple[Pairs, dict[str, str]]:
    """Target name -> source spec, and how each was found. Every rule sees only what the rules before it left."""
    pairs: Pairs = {}
    how: dict[str, str] = {}
    rules: tuple[tuple[str, Callable[[list[TensorSpec], list[TensorSpec]], Iterable[tuple[str, str]]]], ...] = (
        (
            "the layout that the converter declared",
            lambda s, t: [(name, str(e.get("source"))) for name, e in layout.items()],
        ),
        ("the renaming that the converter declared", lambda s, t: [(new, old) for old, new in renames.items()]),
        ("equal names", lambda s, t: [(spec.name, spec.name) for spec in t]),
        ("similar names", _similar),
        ("position", _positions),
        ("shape", _shapes),
    )
    for reason, rule in rules:
        left = [spec for spec in source.inputs if spec.name not in {pair.name for pair in pairs.values()}]
        open_ = [spec for spec in target.inputs if spec.name not in pairs]
        for new, old in rule(left, open_):
            match = next((spec for spec in left if spec.name == old), None)
            free = match is not None and match.name not in {pair.name for pair in pairs.values()}
            if match is not None and free and new not in pairs and any(spec.name == new for spec in open_):
                pairs[new], how[new] = match, reason
    return pairs, how


def _plain(name: str) -> str:
    """A name without what converters add: output index, scope, serving prefix, punctuation, case."""
    name = re.sub(r":\d+$", "", name).split("/")[-1].lower()
    return re.sub(r"[^a-z0-9]", "", name.removeprefix("serving_default_"))


def _similar(left: list[TensorSpec], open_: list[TensorSpec]) -> list[tuple[str, str]]:
    def unique(specs: list[TensorSpec]) -> dict[str, str]:
        names = [_plain(spec.name) for spec in specs]
        return {name: spec.name for name, spec in zip(names, specs, strict=True) if name and names.count(name) == 1}

    ours, theirs = unique(left), unique(open_)
    return [(theirs[name], ours[name]) for name in theirs if name in ours]


def _positions(left: list[TensorSpec], open_: list[TensorSpec]) -> list[tuple[str, str]]:
    """In order, only when as many are left on either side and every pair can be one tensor."""
    if len(left) != len(open_) or not all(map(_possible, left, open_)):
        return []
    return [(theirs.name, ours.name) for ours, theirs in zip(left, open_, strict=True)]


def _shapes(left: list[TensorSpec], open_: list[TensorSpec]) -> list[tuple[str, str]]:
    """Pairs that are each other's only possibility."""
    found = []
    for theirs in open_:
        mates = [ours for ours in left if _possible(ours, theirs)]
        if len(mates) == 1 and sum(_possible(mates[0], other) for other in open_) == 1:
            found.append((theirs.name, mates[0].name))
    return found


def _possible(ours: TensorSpec, theirs: TensorSpec) -> bool:
    return _layout(ours, theirs, None)[2] is None and _dtype(ours, theirs)[2] is None


def _unmatched(spec: TensorSpec, source: Signature) -> str:
    names = ", ".join(item.name for item in source.inputs) or "none"
    return f"target input {spec.name} ({spec.dtype}, shape {show(spec.shape)}) has no counterpart among the source's inputs ({names})"


# Layout and dtype


def _layout(
    ours: TensorSpec, theirs: TensorSpec, declared: tuple[int, ...] | None
) -> tuple[tuple[int, ...] | None, str | None, str | None]:
    """(permutation or None, note, problem)."""
    if ours.shape is None or theirs.shape is None:
        return declared, None, None
    shapes = f"source {ours.name} {show(ours.shape)}, target {theirs.name} {show(theirs.shape)}"
    rank = len(ours.shape)
    if _scalar(ours, theirs) is not None and declared in (None, tuple(range(rank))):
        return None, f"a scalar is handed over with another number of axes ({shapes})", None
    if declared is not None and rank != len(theirs.shape):
        return None, None, f"the inputs differ in rank ({shapes})"
    if declared is not None:
        if sorted(declared) != list(range(rank)) or not fits([ours.shape[axis] for axis in declared], theirs.shape):
            return (
                None,
                None,
                f"the converter declared the axes {list(declared)}, which do not fit the shapes ({shapes})",
            )
        if declared == tuple(range(rank)):
            return None, None, None
        return (
            declared,
            f"target input {theirs.name}: axes {list(declared)} of the source, as the converter declared",
            None,
        )
    if rank != len(theirs.shape):
        return None, None, f"the inputs differ in rank ({shapes})"
    if fits(ours.shape, theirs.shape):
        return None, None, None
    moves = [(0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))] if rank in (3, 4, 5) else []
    works = {move for move in moves if fits([ours.shape[axis] for axis in move], theirs.shape)}
    if len(works) == 1:
        move = works.pop()
        way = "channels last" if move[-1] == 1 else "channels first"
        return (
            move,
            f"target input {theirs.name} takes {way}: axes {list(move)} of the source, the only way the shapes fit",
            None,
        )
    return None, None, f"the shapes do not fit ({shapes})"


def _scalar(ours: TensorSpec, theirs: TensorSpec) -> tuple[int, ...] | None:
    """The target's shape, where one side takes a scalar and the other a vector of exactly one element: one number."""
    pair = (ours.shape, theirs.shape)
    return () if pair == ((1,), ()) else (1,) if pair == ((), (1,)) else None


def fits(shape: Iterable[Dim], wanted: tuple[Dim, ...]) -> bool:
    """Whether one tensor can have both shapes: sizes that both sides fix are equal."""
    pairs = zip(tuple(shape), wanted, strict=True)
    return all(have == want for have, want in pairs if isinstance(have, int) and isinstance(want, int))


def show(shape: tuple[Dim, ...] | None) -> str:
    """A shape for people."""
    return (
        "of unknown rank" if shape is None else "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
    )


def _dtype(ours: TensorSpec, theirs: TensorSpec) -> tuple[np.dtype | None, str | None, str | None]:
    """(dtype to cast to or None, note, problem). Whole numbers and booleans may change width, never turn into fractions."""
    have, want = value_dtype(ours), value_dtype(theirs)
    if have is None or want is None:
        same = ours.dtype == theirs.dtype
        return (
            None,
            None,
            None if same else f"input {theirs.name} is {theirs.dtype}, source {ours.name} is {ours.dtype}",
        )
    if have == want:
        return None, None, None
    grid = grid_of(ours, theirs)
    if grid is not None:
        how = "the source's grid" if ours.quantization else "the target's grid"
        return want, f"target input {theirs.name}: {have} values are handed over as {want} ({how}: {grid})", None
    families = ("fc", "iub", "U")
    if have.kind == "c" or not any(have.kind in family and want.kind in family for family in families):
        return (
            None,
            None,
            f"target input {theirs.name} takes {want}, source input {ours.name} is {have}: the values mean different things",
        )
    return want, f"target input {theirs.name}: {have} values are handed over as {want}", None


def grid_of(ours: TensorSpec, theirs: TensorSpec) -> Grid | None:
    """The grid between two sides of which one holds real values and the other the bare integers; else None."""
    return Grid.between(ours, theirs) or Grid.between(theirs, ours)

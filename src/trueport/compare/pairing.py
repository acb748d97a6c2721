"""Which output of the target answers to which output of the source. Decided by declarations, names and positions,
never by content: content that fits elsewhere is reported by the verdict, not used to make a pair look good.

Order of rules: declared by the converter; equal names; names equal once decoration is taken off, when that is unique;
the only output on both sides; position, when no name is shared at all and the counts, shapes and dtypes allow it.
What is left on either side stays unpaired, and anything unpaired forbids FAITHFUL.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trueport.artifact import Signature
from trueport.compare.types import RunSet
from trueport.compare.values import Value, dtypes, kind_of, normalise, run_shapes
from trueport.outcome import Failure

Layout = Mapping[str, Mapping[str, Any]]
"""Target output -> {"source": name, "permutation": [...]} (see ConvertReply)."""

_SCOPES = ("statefulpartitionedcall", "partitionedcall", "serving_default", "model", "functional", "main")
"""Scopes that exporters put in front of a name, or instead of it."""

LAYOUTS: Mapping[int, tuple[tuple[int, ...], ...]] = {
    3: ((0, 2, 1),),
    4: ((0, 2, 3, 1), (0, 3, 1, 2)),
    5: ((0, 2, 3, 4, 1), (0, 4, 1, 2, 3)),
}
"""Rank (batch included) -> channel first to channel last, and back: the only layouts taken from shapes alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One output on both sides. np.transpose(source run, permutation) has the target's layout; None: as it is."""

    source: str
    target: str
    how: str
    permutation: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """All outputs of both sides: each is in exactly one pair, or listed as unpaired."""

    pairs: tuple[Pair, ...]
    unpaired_source: tuple[str, ...]
    unpaired_target: tuple[str, ...]
    notes: tuple[str, ...] = ()


def pair_outputs(
    source: Signature,
    target: Signature,
    source_runs: RunSet,
    target_runs: RunSet,
    renames: Mapping[str, str],
    layout: Layout,
) -> Pairing:
    """Pair the outputs of two models. `renames`: source name -> target name, as the converter declared."""
    left, right = output_names(source, source_runs), output_names(target, target_runs)
    declared = {str(entry["source"]): name for name, entry in layout.items() if "source" in entry} | dict(renames)
    found: dict[str, tuple[str, str]] = {}
    notes: list[str] = []
    _add(found, [(a, b) for a, b in declared.items() if a in left and b in right], "declared by the converter")
    notes += [
        f"the converter says that output '{a}' became '{b}', which the target does not have"
        for a, b in declared.items()
        if a in left and b not in right and b not in layout and a not in right
    ]
    _add(found, [(name, name) for name in left if name in right], "name")
    named = bool({bare(name) for name in left} & {bare(name) for name in right})
    _add(found, _unique_by_bare_name(_free(left, found), _free(right, _targets(found))), "name without decoration")
    if len(left) == len(right) == 1:
        _add(found, [(left[0], right[0])], "only output")
    elif not named and not found and len(left) == len(right):
        misfit = [
            (a, b)
            for a, b in zip(left, right, strict=True)
            if not _fits(_values(source_runs, a), _values(target_runs, b))
        ]
        if misfit:
            listed = ", ".join(f"'{a}' with '{b}'" for a, b in misfit)
            notes.append(f"no output name is shared, and by position the shapes or dtypes do not allow {listed}")
        else:
            _add(found, list(zip(left, right, strict=True)), "position")
            notes.append("no output name is shared: outputs were paired by position")
    pairs = tuple(_pair(name, *found[name], source_runs, target_runs, layout, notes) for name in left if name in found)
    return Pairing(
        pairs=pairs,
        unpaired_source=tuple(_free(left, found)),
        unpaired_target=tuple(_free(right, _targets(found))),
        notes=tuple(notes),
    )


def output_names(signature: Signature, runs: RunSet) -> list[str]:
    """All outputs of a model in order: those of its signature, then those that only its runs show."""
    shown = {name for outputs in runs.values() if not isinstance(outputs, Failure) for name in outputs}
    names = dict.fromkeys(spec.name for spec in signature.outputs)
    return [*names, *sorted(shown - set(names))]


def _add(found: dict[str, tuple[str, str]], pairs: Iterable[tuple[str, str]], how: str) -> None:
    """Record pairs whose two sides are both still free."""
    for source, target in pairs:
        if source not in found and target not in _targets(found):
            found[source] = (target, how)


def _targets(found: Mapping[str, tuple[str, str]]) -> set[str]:
    return {target for target, _ in found.values()}


def _free(names: Sequence[str], taken: Iterable[str]) -> list[str]:
    gone = set(taken)
    return [name for name in names if name not in gone]


def bare(name: str) -> str:
    """Take decoration off a name: ":0", exporter scopes, case, and the character used between words."""
    words = [word for word in re.sub(r":\d+$", "", name).lower().split("/") if word]
    while len(words) > 1 and re.sub(r"_\d+$", "", words[0]) in _SCOPES:
        words = words[1:]
    return re.sub(r"[^a-z0-9]+", "_", "/".join(words)).strip("_")


def _unique_by_bare_name(left: Sequence[str], right: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names with the same bare form, where only one name of each side has it."""
    pairs = []
    for name in left:
        same_left = [other for other in left if bare(other) == bare(name)]
        same_right = [other for other in right if bare(other) == bare(name)]
        if len(same_left) == len(same_right) == 1 and bare(name):
            pairs.append((name, same_right[0]))
    return pairs


def _values(runs: RunSet, name: str) -> dict[str, Value]:
    """Case -> value of one output, where the case ran and gave it."""
    return {case: normalise(out[name]) for case, out in runs.items() if not isinstance(out, Failure) and name in out}


def _fits(source: Mapping[str, Value], target: Mapping[str, Value]) -> bool:
    """Tell whether two outputs can be one: equal dtype kinds and equal shapes, or a forced layout, in every shared case."""
    for case in source.keys() & target.keys():
        kinds = {kind_of(dtype) for value in (source[case], target[case]) for dtype in dtypes(value)}
        if len(kinds) > 1:
            return False
    return _same_shapes(source, target) or forced_permutation(source, target) is not None


def _same_shapes(source: Mapping[str, Value], target: Mapping[str, Value]) -> bool:
    return all(run_shapes(source[case]) == run_shapes(target[case]) for case in source.keys() & target.keys())


def forced_permutation(source: Mapping[str, Value], target: Mapping[str, Value]) -> tuple[int, ...] | None:
    """The one channel-first/channel-last permutation that the shapes force, if identity is impossible; else None."""
    shapes = {
        shapes
        for case in source.keys() & target.keys()
        for shapes in zip(run_shapes(source[case]), run_shapes(target[case]), strict=False)
    }
    ranks = {len(shape) for both in shapes for shape in both}
    if len(ranks) != 1 or all(left == right for left, right in shapes):
        return None
    fitting = [
        permutation
        for permutation in LAYOUTS.get(ranks.pop(), ())
        if all(tuple(left[axis] for axis in permutation) == right for left, right in shapes)
    ]
    return fitting[0] if len(fitting) == 1 else None


def _pair(
    source: str,
    target: str,
    how: str,
    source_runs: RunSet,
    target_runs: RunSet,
    layout: Layout,
    notes: list[str],
) -> Pair:
    """Build a pair with its permutation: the declared one, else the one that shapes force."""
    declared = layout.get(target, {}).get("permutation")
    if declared is not None:
        permutation = tuple(int(axis) for axis in declared)
        identity = permutation == tuple(range(len(permutation)))
        return Pair(source=source, target=target, how=how, permutation=None if identity else permutation)
    forced = forced_permutation(_values(source_runs, source), _values(target_runs, target))
    if forced is not None:
        notes.append(
            f"output '{source}' has another layout in the target: axes {list(forced)} of the source, from the shapes"
        )
    return Pair(source=source, target=target, how=how, permutation=forced)

"""Which conversion steps exist, and every way to get from one format to another with them.

    plan(onnx → tflite) = [onnx2tf-tflite], [onnx2tf-savedmodel, tflite-savedmodel], [onnx2torch, litert-torch], …

A route visits no format twice, so the search over all steps is finite; routes are ranked by number of hops, then by
the known reliability of their steps. Passes within one format (optimisers, opset conversion) are no way to get
anywhere: they appear when the source already has the target's format, when `--route` names them, and, for the opset
conversion, in front of a step that cannot read a newer opset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trueport.errors import UsageError
from trueport.frameworks._base import Step
from trueport.plugins import converters

MAX_HOPS = 3
"""A fourth hop has never been the only way between two formats that we know, and every hop can lose something."""

HISTORIC = 900
"""Steps of this rank and above are converters of the past, kept for studies: they run where `--route` names them."""

OPSET_STEP = "opset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One step of a route with the options it gets."""

    step: Step
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Steps whose formats chain. Checked when built."""

    hops: tuple[Hop, ...]

    def __post_init__(self) -> None:
        if not self.hops:
            raise UsageError("a route needs at least one step")
        for before, after in zip(self.hops, self.hops[1:], strict=False):
            if before.step.target_format != after.step.source_format:
                raise UsageError(
                    f"the route does not chain: {before.step.name} gives {before.step.target_format}, "
                    f"{after.step.name} takes {after.step.source_format}"
                )

    @property
    def name(self) -> str:
        """`STEP,STEP`, as `--route` takes it."""
        return ",".join(hop.step.name for hop in self.hops)

    @property
    def source_format(self) -> str:
        """The format it takes."""
        return self.hops[0].step.source_format

    @property
    def target_format(self) -> str:
        """The format it gives."""
        return self.hops[-1].step.target_format

    @property
    def cost(self) -> tuple[int, int]:
        """Fewest hops first, then the steps' known reliability."""
        return len(self.hops), sum(hop.step.rank for hop in self.hops)


def steps() -> Mapping[str, Step]:
    """Every step by name."""
    return {step.name: step for module in converters().values() for step in module.STEPS}


def plan(
    source_format: str,
    target_format: str,
    *,
    legacy_keras: bool = False,
    precision: str = "float32",
    options: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[Route, ...]:
    """Return every route, best first; empty when there is none.

    legacy_keras: the source is a Keras 2 file, which only the tf_keras steps take (and they take nothing else).
    precision: what the result shall be declared as; a route qualifies when one of its steps can give it.
    """
    available = [step for step in steps().values() if step.rank < HISTORIC]
    found = []
    for chain in _chains(source_format, target_format, available):
        first_keras = chain[0].source_format == "keras"
        if any(step.legacy_keras for step in chain[1:]) or (first_keras and chain[0].legacy_keras != legacy_keras):
            continue
        hops = _with_precision(chain, precision, options or {})
        if hops is not None:
            found.append(Route(hops=hops))
    return tuple(sorted(found, key=lambda route: (*route.cost, route.name)))


def parse_route(
    text: str, *, precision: str = "float32", options: Mapping[str, Mapping[str, str]] | None = None
) -> Route:
    """Read `STEP,STEP`. Raises UsageError for an unknown step, one that does not chain, or an impossible precision."""
    known = steps()
    chain = []
    for name in (part.strip() for part in text.split(",")):
        if name not in known:
            raise UsageError(f"there is no conversion step '{name}'; `trueport routes` lists them")
        chain.append(known[name])
    hops = _with_precision(chain, precision, options or {})
    if hops is None:
        raise UsageError(f"no step of the route {text} can give the precision '{precision}'")
    return Route(hops=hops)


def parse_options(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read `STEP.key=value` items. Raises UsageError for an unknown step or an option that the step does not take."""
    known = steps()
    parsed: dict[str, dict[str, str]] = {}
    for text in texts:
        left, equals, value = text.partition("=")
        name, dot, key = left.rpartition(".")
        if not (equals and dot and name and key):
            raise UsageError(f"--option takes STEP.key=value, not '{text}'")
        if name not in known:
            raise UsageError(f"there is no conversion step '{name}'; `trueport routes` lists them")
        takes = [option for option, _ in known[name].options]
        takes += ["precision"] if len(known[name].precisions) > 1 else []
        if key not in takes:
            raise UsageError(f"{name} takes no option '{key}'; it takes {', '.join(takes) or 'none'}")
        if key == "precision" and value not in known[name].precisions:
            raise UsageError(
                f"{name} cannot give the precision '{value}'; it gives {', '.join(known[name].precisions)}"
            )
        parsed.setdefault(name, {})[key] = value
    return parsed


def lower_opset(hop: Hop, opset: Any) -> Hop | None:
    """Return the opset conversion that has to run before `hop` when its input is at `opset`, if it needs one."""
    limit = hop.step.max_opset
    if limit is None or not isinstance(opset, int) or opset <= limit:
        return None
    return Hop(step=steps()[OPSET_STEP], options={"opset": str(limit)})


def _chains(source: str, target: str, available: Sequence[Step]) -> Iterator[list[Step]]:
    if source == target:
        yield from ([step] for step in available if step.source_format == step.target_format == source)
        return

    def extend(chain: list[Step], visited: frozenset[str]) -> Iterator[list[Step]]:
        here = chain[-1].target_format if chain else source
        if here == target:
            yield chain
            return
        if len(chain) == MAX_HOPS:
            return
        for step in available:
            if step.source_format == here and step.target_format not in visited:
                yield from extend([*chain, step], visited | {step.target_format})

    yield from extend([], frozenset([source]))


def _with_precision(
    chain: Sequence[Step], precision: str, options: Mapping[str, Mapping[str, str]]
) -> tuple[Hop, ...] | None:
    """Attach options; the last step that can give `precision` gets it. None when no step can."""
    wanted = [dict(options.get(step.name, {})) for step in chain]
    if precision != "float32" and not any("precision" in chosen for chosen in wanted):
        able = [index for index, step in enumerate(chain) if precision in step.precisions]
        if not able:
            return None
        wanted[able[-1]]["precision"] = precision
    return tuple(Hop(step=step, options=chosen) for step, chosen in zip(chain, wanted, strict=True))

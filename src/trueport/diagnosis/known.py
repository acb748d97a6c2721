"""Which bug upstream a diagnosis or a failed conversion shows. The bugs are data, in `known_issues.toml`.

A match needs the whole pattern of a bug: the tool and its version, the operators on both sides, the cause, and what the
graphs show beside them. Where the tool's version is not known, or is newer than any in which the bug was seen, the
match says "probably". A diagnosis that only shares an operator with a bug matches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trueport.artifact import Artifact, Signature
from trueport.compare.types import Verification
from trueport.diagnosis.known_data import Entry, Pattern, entries, within
from trueport.diagnosis.types import KnownIssue, Suspect
from trueport.frameworks._base import Step
from trueport.graph import FINE, Graph, Node
from trueport.outcome import Failure
from trueport.routes import steps

PRODUCERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"pytorch\b", ("torch", "onnxscript")),
    (r"tf2onnx\b", ("tf2onnx",)),
    (r"onnx2tf\b", ("onnx2tf",)),
    (r"OpenVINO\b", ("openvino",)),
    (r"MLIR Converted", ("tensorflow", "keras", "litert-torch")),
)
"""How a file names the tool that made it -> the packages that write so. The first one's version stands beside it."""

WITHIN = 10.0
"""Ratio of a deviation to the noise floor that the verdict accepts."""

SAME_PACKAGE = {"tensorflow": ("tensorflow", "tensorflow-cpu"), "keras": ("keras", "tf_keras", "tf-keras")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One model of the pair. Of the target: `precision` is what it is declared to be, `ordinary` whether data that is no
    probe shows the deviation (None: not known)."""

    format: str
    graph: Graph
    signature: Signature | None = None
    precision: str = "float32"
    ordinary: bool | None = None


def ordinary(verification: Verification) -> bool | None:
    """Whether ordinary data shows a deviation; None where the inputs are the user's own, which hold what they hold."""
    inputs = verification.inputs
    if not str(inputs.get("origin", "")).startswith("generated"):
        return None
    data = {case["name"] for case in inputs.get("cases", ()) if case["kind"] == "data"}
    ratios = [
        float(numbers.get("ratio", 0.0))
        for output in verification.comparison.outputs
        for name, numbers in output.cases.items()
        if name in data
    ]
    return any(not ratio <= WITHIN for ratio in ratios)


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """What is known of the tool that made a target.

    steps: our conversion steps, when they are known; packages: name -> version; named: the packages one of which the
    file says it was made by (empty: it does not say); runtime: versions of what ran the target.
    """

    steps: tuple[str, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)
    named: tuple[str, ...] = ()
    runtime: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(target: Artifact, signature: Signature | None = None, versions: Mapping[str, str] | None = None) -> Maker:
        """Read it from how the target came to be, from what its file says, and from a verification's `versions`."""
        made = target.made_by
        step = made.get("step")
        named, told = _producer(signature.meta if signature is not None else {})
        packages = {**told, **(made.get("versions", {}) if step is not None else {})}
        prefix = "target."
        runtime = {name.removeprefix(prefix): of for name, of in (versions or {}).items() if name.startswith(prefix)}
        return Maker(steps=() if step is None else (step,), packages=packages, named=named, runtime=runtime)

    def version(self, package: str) -> str | None:
        """Return the version of a package, under any of its names."""
        names = SAME_PACKAGE.get(package, (package,))
        return next((self.packages[name] for name in names if name in self.packages), None)


def _producer(meta: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the packages that a file's own words point to, and the version that it gives for the first."""
    words = str(meta.get("producer") or "")
    version = str(meta.get("producer_version") or "").split(" ")[0]
    for pattern, packages in PRODUCERS:
        if re.match(pattern, words):
            return packages, {packages[0]: version} if re.match(r"\d", version) else {}
    return (), {}


def match(suspects: Sequence[Suspect], source: Side, target: Side, maker: Maker) -> KnownIssue | None:
    """Return the bug that the first suspect that shows one shows; of several bugs the one whose version is known."""
    for suspect in suspects:
        look = _Look(suspect, source, target)
        shown = [
            (entry, sure)
            for entry in entries()
            if entry.pattern is not None
            and (sure := _made_by(entry, source.format, target.format, maker)) is not None
            and (bool(maker.steps) or not entry.pattern.converted_here)
            and _fits(entry.pattern, look)
        ]
        if shown:
            return _told(*max(shown, key=lambda pair: pair[1]))
    return None


def steps_of(issue: KnownIssue | None) -> tuple[str, ...]:
    """The conversion steps that have a bug; none without one."""
    return next((entry.steps for entry in entries() if issue is not None and entry.id == issue.id), ())


def match_failure(
    failure: Failure, step: str = "", versions: Mapping[str, str] | None = None, *, format: str = ""
) -> KnownIssue | None:
    """Return the bug that made a conversion step, or a run of what it gave, fail.

    step: the conversion step, if known; versions: of its packages; format: the target's, where the step is not known.
    """
    return match_text(f"{failure.message}\n{failure.log}", str(failure.kind), step, versions, format=format)


def match_text(
    text: str, kind: str = "", step: str = "", versions: Mapping[str, str] | None = None, *, format: str = ""
) -> KnownIssue | None:
    """The same from what was printed; a `kind` that is not known may be left empty."""
    maker = Maker(steps=(step,) if step else (), packages=versions or {})
    for entry in entries():
        wanted = entry.failure
        if wanted is None or (kind and wanted.kinds and kind not in wanted.kinds) or not wanted.text.search(text):
            continue
        known = steps()
        source = known[step].source_format if step else ""
        sure = _made_by(entry, source, known[step].target_format if step else format, maker)
        if sure is not None:
            return _told(entry, sure)
    return None


def _told(entry: Entry, sure: bool) -> KnownIssue:
    issue = KnownIssue(id=entry.id, url=entry.url, fixed_in=entry.fixed_in, summary=entry.summary, cure=entry.cure)
    return issue if sure else replace(issue, summary=f"probably: {entry.summary}")


def _made_by(entry: Entry, source: str, target: str, maker: Maker) -> bool | None:
    """Whether this bug's tool can have made the target: True for sure, False as far as is known, None not at all."""
    if not entry.steps:
        if target not in entry.formats or (entry.source_formats and source not in entry.source_formats):
            return None
        return _in_range(entry, replace(maker, packages=maker.runtime))
    if maker.steps:
        return _in_range(entry, maker) if set(entry.steps) & set(maker.steps) else None
    able = [step for step in map(steps().__getitem__, entry.steps) if step.target_format == target]
    if not able or not (_is_named(entry, maker) or any(_may_be(step, source, maker) for step in able)):
        return None
    in_range = _in_range(entry, maker)
    return None if in_range is None else False


def _is_named(entry: Entry, maker: Maker) -> bool:
    return entry.package in maker.named


def _may_be(step: Step, source: str, maker: Maker) -> bool:
    """Whether a step that the file does not name can have made it: a pass keeps the name of the tool before it."""
    is_pass = step.source_format == step.target_format
    return source in ("", step.source_format) and (is_pass or not maker.named)


def _in_range(entry: Entry, maker: Maker) -> bool | None:
    """Whether the version has the bug: None when it has not, False when that is not known."""
    version = maker.version(entry.package)
    if version is None:
        return False
    if not within(version, entry.affects):
        return None
    return entry.fixed_in is not None or entry.seen is None or within(version, f"<={entry.seen}")


class _Look:
    """What a pattern asks about: the suspect's nodes on both sides."""

    def __init__(self, suspect: Suspect, source: Side, target: Side) -> None:
        self.suspect, self.source, self.target = suspect, source, target
        finding = suspect.finding
        self.there = _nodes(target.graph, suspect.target_nodes)
        self.blamed = self.there[: len(_nodes(target.graph, suspect.target_nodes[:1]))]
        extra = finding.source_region if finding is not None else ()
        self.here = _nodes(source.graph, (*suspect.source_nodes, *extra))


def _nodes(graph: Graph, names: Iterable[str]) -> tuple[Node, ...]:
    """Return the nodes under the names that users see, and of a finer view the nodes that they were made of."""
    found: dict[str, Node] = {}
    for name in names:
        for key in (name, FINE + name):
            node = graph.by_name.get(key)
            if node is not None:
                found[node.name] = node
                if node.origin is not None and node.origin in graph.by_name:
                    found[node.origin] = graph.by_name[node.origin]
    return tuple(found.values())


def _fits(pattern: Pattern, look: _Look) -> bool:
    return all(test(pattern, look) for test in _TESTS)


def operator(name: str) -> str:
    """Return an operator's name without its library, overload and spelling: "aten.index_put.default" is "indexput"."""
    name = name.removeprefix("aten.").removesuffix(".default")
    return name.replace("_", "").casefold()


def _operators(nodes: Iterable[Node]) -> set[str]:
    found = set()
    for node in nodes:
        for name in (node.op, node.native_op):
            found.add(operator(name))
            if name.startswith("aten."):  # any overload of it
                found.add(operator(name.split(".")[1]))
    return found - {""}


def _one_of(wanted: Iterable[str], present: set[str]) -> bool:
    return bool({operator(name) for name in wanted} & present)


def _is_set(value: Any) -> bool:
    return value not in (None, False, "", "none", "None")


def _some_value(nodes: Sequence[Node], wanted: Mapping[str, Sequence[Any]]) -> bool:
    return any(node.attributes.get(key) in list(values) for node in nodes for key, values in wanted.items())


def _causes(pattern: Pattern, look: _Look) -> bool:
    return not pattern.causes or str(look.suspect.cause) in pattern.causes


def _kinds(pattern: Pattern, look: _Look) -> bool:
    finding = look.suspect.finding
    return not pattern.kinds or (finding is not None and finding.kind in pattern.kinds)


def _target(pattern: Pattern, look: _Look) -> bool:
    blamed = _operators(look.blamed) | {operator(look.suspect.operator)}
    return not pattern.target or _one_of(pattern.target, blamed)


def _region(pattern: Pattern, look: _Look) -> bool:
    present = _operators(look.there)
    return all(operator(name) in present for name in pattern.region) and not _one_of(pattern.without, present)


def _source(pattern: Pattern, look: _Look) -> bool:
    wanted = [node for node in look.here if _one_of(pattern.source, _operators([node]))]
    enough = any(len(node.inputs) >= pattern.source_operands and all(node.inputs) for node in wanted)
    return not pattern.source or enough


def _whole_source(pattern: Pattern, look: _Look) -> bool:
    present = _operators(look.source.graph.nodes) if pattern.whole_source else set()
    return all(operator(name) in present for name in pattern.whole_source)


def _source_attributes(pattern: Pattern, look: _Look) -> bool:
    if not all(any(_is_set(node.attributes.get(key)) for node in look.here) for key in pattern.source_has):
        return False
    for key, values in pattern.source_excludes.items():
        set_to = [node.attributes[key] for node in look.here if key in node.attributes]
        if not any(value not in list(values) for value in set_to):
            return False
    return not pattern.source_values or _some_value(look.here, pattern.source_values)


def _target_attributes(pattern: Pattern, look: _Look) -> bool:
    if any(_is_set(node.attributes.get(key)) for node in look.blamed for key in pattern.target_lacks):
        return False
    return not pattern.target_values or _some_value(look.blamed, pattern.target_values)


def _source_chain(pattern: Pattern, look: _Look) -> bool:
    """Whether the source has these operators one right after the other, the last of them in the suspect's region."""
    if not pattern.source_chain:
        return True
    graph = look.source.graph
    for node in look.here:
        current: Node | None = node
        for name in reversed(pattern.source_chain):
            if current is None or not _one_of([name], _operators([current])):
                break
            current = graph.producer(current.inputs[0]) if current.inputs else None
        else:
            return True
    return False


def _shared(pattern: Pattern, look: _Look) -> bool:
    place = pattern.shared_operand
    if place is None:
        return True
    if not any(_shares(look.target.graph, node, place) for node in look.blamed):
        return False
    if pattern.source_shared is None:
        return True
    return any(_shares(look.source.graph, node, place) for node in look.here) == pattern.source_shared


def _shares(graph: Graph, node: Node, place: int) -> bool:
    """Whether an operand is a constant that another node with the same operator reads at the same place."""
    if len(node.inputs) <= place or node.inputs[place] not in graph.constants:
        return False
    name = node.inputs[place]
    readers = [graph.nodes[position] for position in graph.consumers.get(name, ())]
    return any(
        other.name != node.name and other.op == node.op and other.inputs[place : place + 1] == (name,)
        for other in readers
    )


def _opset(pattern: Pattern, look: _Look) -> bool:
    if pattern.opset_below is None:
        return True
    signature = look.target.signature
    opset = None if signature is None else signature.meta.get("opset")
    return isinstance(opset, int) and opset < pattern.opset_below


def _equal_axes(pattern: Pattern, look: _Look) -> bool:
    if not pattern.equal_axes:
        return True
    signature = look.source.signature
    shapes = [] if signature is None else [spec.shape for spec in signature.inputs]
    return any(
        shape is not None and len(shape) >= 3 and isinstance(shape[1], int) and shape[1] in (*shape[2:],)
        for shape in shapes
    )


def _hidden(pattern: Pattern, look: _Look) -> bool:
    return not (pattern.hidden and look.target.ordinary)


def _precision(pattern: Pattern, look: _Look) -> bool:
    return pattern.precision is None or look.target.precision == pattern.precision


_TESTS: tuple[Callable[[Pattern, _Look], bool], ...] = (
    _causes,
    _kinds,
    _target,
    _region,
    _source,
    _whole_source,
    _source_attributes,
    _target_attributes,
    _source_chain,
    _shared,
    _opset,
    _equal_axes,
    _precision,
    _hidden,
)

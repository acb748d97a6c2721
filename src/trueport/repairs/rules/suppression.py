"""CG: the runtime's non-maximum suppression is another than the source's.

LiteRT's own operator gives as many indices as are allowed, the rest zeros; it gives a box without area again and again,
because such a box does not overlap itself; and of equal scores it takes any. Rewrite: `recompute` in words that LiteRT has:
pick the best box, drop what it overlaps, and so on. The list then ends where no box is left, each box is taken once, and of
equal scores the first one wins.
Does not apply where the number of boxes is open, or there are too many to be picked one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from trueport.diagnosis.operators import kind
from trueport.diagnosis.pair import Pair
from trueport.diagnosis.types import Cause
from trueport.frameworks._base import EditDict
from trueport.graph import Node
from trueport.repairs.scene import Scene
from trueport.repairs.types import Edit, Proposal

NAME = "CG suppression"
CAUSES = frozenset({Cause.STRUCTURE})

OPERATORS = ("NON_MAX_SUPPRESSION_V4",)
"""TFLite's operators of five operands: boxes [n, 4], scores [n], indices at most, overlap allowed, score from which on."""

MOST = 128
"""Boxes that may be picked at most: each takes six operators."""

PAIRS = 2**22
"""Pairs of boxes at most: the overlap of each with each is held at once, 16 MiB."""

FAR = 2**31 - 1
"""End of a slice that takes all."""


def propose(scene: Scene) -> list[Proposal] | str:
    """The suppressions of the region, written out."""
    return of_nodes(scene.pair, [node for node in scene.pair.target.graph.nodes if node in scene.blamed])


def of_nodes(pair: Pair, nodes: Iterable[Node]) -> list[Proposal] | str:
    """One proposal: every suppression among these operators of the target written out; else why there is none."""
    shapes = {name: tuple(held.shape[1:]) for name, held in pair.theirs.values.items()}
    edits = []
    for node in nodes:
        if node.native_op not in OPERATORS:
            continue
        written = written_out(node, shapes, pair.target.constants)
        if isinstance(written, str):
            return written
        words, arrays = written
        change: EditDict = {"kind": "recompute", "value": node.outputs[0], "nodes": words}
        edit = Edit(
            rule=NAME,
            kind="recompute",
            where=node.shown,
            before=kind(node),
            after=f"one box after the other, in {len(words)} operators",
            reason="the runtime's own fills the list up with zeros, and repeats boxes without area",
            change=change,
            arrays=arrays,
        )
        edits.append(edit)
    return [Proposal(edits=tuple(edits), doubt=0.15)] if edits else "no suppression of LiteRT's stands here"


class _Words:
    """Operators under construction, in ONNX vocabulary. `prefix`: of the names of their results."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[dict[str, Any]] = []
        self.arrays: dict[str, np.ndarray] = {}

    def array(self, values: Any, dtype: Any = np.float32) -> str:
        """A constant."""
        name = f"stored {len(self.arrays)}"
        self.arrays[name] = np.asarray(values, dtype)
        return name

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator; gives the name of its result."""
        name = f"{self.prefix}_{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(
            {"op": operator, "name": name, "inputs": list(inputs), "outputs": [name], "attributes": attributes}
        )
        return name


def written_out(
    node: Node, shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, np.ndarray]
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]] | str:
    """The operators that compute the first result of `node`, and their constants; else why it cannot be written out.

    shapes: of values, without the run axis. stored: constants of the file.
    """
    boxes, scores, most, overlap, least = node.inputs[:5]
    form = shapes.get(boxes, ())
    if len(form) != 2 or form[1] != 4 or shapes.get(scores) != form[:1]:
        return "the number of boxes is not known"
    if any(name not in stored or stored[name].size != 1 for name in (most, overlap, least)):
        return "how many boxes are picked, and from which overlap and score on, is computed"
    count = min(int(np.ravel(stored[most])[0]), form[0])
    if not 0 < count <= MOST or form[0] ** 2 > PAIRS:
        return f"{count} of {form[0]} boxes are too many to be picked one by one"
    words = _Words(f"{node.outputs[0]}_picked")
    stays = _stays(words, boxes, form[0], float(np.ravel(stored[overlap])[0]))
    _picks(words, scores, stays, form[0], count, float(np.ravel(stored[least])[0]))
    return words.nodes, words.arrays


def _stays(words: _Words, boxes: str, count: int, allowed: float) -> str:
    """[n, n]: 1 where the box of the column stays when that of the row is picked, which itself never does."""
    down: list[str] = []
    for place in range(4):
        ends = words.array([0, place], np.int64), words.array([FAR, place + 1], np.int64)
        down.append(words("Slice", boxes, *ends))  # [n, 1]
    low = [words("Min", down[axis], down[axis + 2]) for axis in (0, 1)]  # the corners may be in any order
    high = [words("Max", down[axis], down[axis + 2]) for axis in (0, 1)]
    area = words("Mul", *(words("Sub", high[axis], low[axis]) for axis in (0, 1)))
    nothing = words.array(0.0)
    sides = []
    for axis in (0, 1):
        end = words("Min", high[axis], words("Transpose", high[axis], perm=[1, 0]))
        begin = words("Max", low[axis], words("Transpose", low[axis], perm=[1, 0]))
        sides.append(words("Max", words("Sub", end, begin), nothing))
    common = words("Mul", *sides)
    both = words("Sub", words("Add", area, words("Transpose", area, perm=[1, 0])), common)
    over = words("Greater", words("Div", common, both), words.array(allowed))  # 0 / 0, no area, is not greater
    free = words("Sub", words.array(1.0), words("Cast", over, to="float32"))
    return words("Mul", free, words.array(1.0 - np.eye(count)))


def _picks(words: _Words, scores: str, stays: str, boxes: int, count: int, least: float) -> str:
    """The indices of the boxes that are picked, best first, int32, as many as there are."""
    row = words("Reshape", scores, words.array([1, boxes], np.int64))
    left = words("Cast", words("Greater", row, words.array(least)), to="float32")
    gone, zero = words.array(np.full((1, boxes), -np.inf)), words.array(0.0)
    found, real = [], []
    for number in range(count):
        standing = words("Where", words("Greater", left, zero), row, gone)
        best = words("ArgMax", standing, axis=1, keepdims=0)  # [1]
        found.append(best)
        real.append(words("ReduceMax", left, words.array([1], np.int64), keepdims=0))  # 0 once no box is left
        if number < count - 1:
            left = words("Mul", left, words("Gather", stays, best, axis=0))
    number_of = words("ReduceSum", _joined(words, real), words.array([0], np.int64), keepdims=0)
    indices = words("Cast", _joined(words, found), to="int32")
    return words("Slice", indices, words.array([0], np.int64), words("Cast", number_of, to="int32"))


def _joined(words: _Words, parts: list[str]) -> str:
    return words("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]

"""Decides how a frozen TensorFlow graph is run with values put in: every value is read through a tap that can be fed.

A tap is a `PlaceholderWithDefault` between a value and all that read it. Feeding the tap gives the readers another
array, of any shape, while the value itself can still be fetched as its own producer computes it. TensorFlow runs only
what a fetch needs, so a cut costs what lies behind it. Sessions are kept, because most replays differ in little.
A session would keep a copy of the weights for every set of feeds and fetches, so that large weights are fed as well,
except to an optimiser, which folds them.

Modes: "plain" (one kernel for each operator, as `trace`), "optimised" (by TensorFlow's graph optimiser), "xla".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from trueport.frameworks import _tf_graph as graphs
from trueport.frameworks._base import Arrays, Emit, Unsupported
from trueport.frameworks._tf_graph import Frozen, full

KEPT = 2
"""Tapped graphs of each mode that stay in memory."""
LIMIT = 2**29
"""Bytes of weights after which an optimised session starts anew: it keeps them for every set of feeds and fetches."""
_PREFIX = "trueport_tap_"


class Needed(NamedTuple):
    """What some fetches depend on: model inputs, tensors put in, and names of large constants."""

    inputs: list[str]
    given: list[str]
    constants: list[str]


class Tapped:
    """A frozen graph with taps behind these tensors, and what runs it."""

    def __init__(self, frozen: Frozen, shapes: Mapping[str, Any], mode: str) -> None:
        """`shapes`: tensor to tap -> static shape of the tap (a list with None), or None for any shape."""
        import tensorflow as tf

        self.frozen, self.mode = frozen, mode
        self.nodes = {node.name: node for node in frozen.graph_def.node}
        bare = graphs.built(frozen.graph_def)
        self.dtypes = {tensor.name: tensor.dtype for op in bare.get_operations() for tensor in op.outputs}
        self.weights = {node.name: node for node in frozen.graph_def.node if graphs.is_large(node)}
        self.fed: dict[str, np.ndarray] = {}
        self.taps = {tensor: f"{_PREFIX}{place}" for place, tensor in enumerate(shapes)}
        tapped = self._tapped(shapes)
        self.graph = tf.Graph()
        try:
            with self.graph.as_default():
                tf.graph_util.import_graph_def(tapped, name="")
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            raise Unsupported(f"TensorFlow does not take the graph with values put in: {_line(error)}") from error
        if mode != "plain":  # the weights went through several hands
            del tapped
            graphs.tidy()
        self.session: Any = None
        self.seen: dict[tuple[Any, ...], int] = {}
        self.compiled: dict[tuple[Any, ...], Any] = {}

    def _tapped(self, shapes: Mapping[str, Any]) -> Any:
        import tensorflow as tf

        graph_def = type(self.frozen.graph_def)()
        graph_def.CopyFrom(graphs.skeleton(self.frozen.graph_def) if self.mode == "plain" else self.frozen.graph_def)
        for node in graph_def.node:
            reads = [item for item in node.input if not item.startswith("^")]  # orders nothing in a graph without state
            del node.input[:]
            node.input.extend(self.taps.get(full(item), item) for item in reads)
        for tensor, name in self.taps.items():
            tap = graph_def.node.add(name=name, op="PlaceholderWithDefault", input=[tensor])
            tap.attr["dtype"].type = self.dtypes[tensor].as_datatype_enum
            tap.attr["shape"].shape.CopyFrom(tf.TensorShape(shapes[tensor]).as_proto())
            size = graph_def.node.add(name=f"{name}_size", op="Size", input=[tensor])
            size.attr["T"].type = self.dtypes[tensor].as_datatype_enum
            size.attr["out_type"].type = tf.int64.as_datatype_enum
        return graph_def

    def needed(self, tensors: Sequence[str], given: Mapping[str, Any]) -> Needed:
        """Walk back from `tensors` to the tensors in `given`, constants and model inputs."""
        fed = {tensor: name for name, tensor in self.frozen.inputs.items()}
        inputs: dict[str, None] = {}
        cuts: dict[str, None] = {}
        constants: dict[str, None] = {}
        seen: set[str] = set()
        pending = list(tensors)
        while pending:
            tensor = pending.pop()
            name = tensor.split(":")[0]
            if tensor in fed:
                inputs[fed[tensor]] = None
            if name in seen:
                continue
            seen.add(name)
            if name in self.weights:
                constants[name] = None
            reads = [full(item) for item in self.nodes[name].input if not item.startswith("^")]
            cuts.update((item, None) for item in reads if item in given)
            pending += [item for item in reads if item not in given]
        return Needed(list(inputs), sorted(cuts), list(constants))

    def fetch(self, feeds: Mapping[str, Any], tensors: Sequence[str], constants: Sequence[str]) -> list[np.ndarray]:
        """Run the graph. `constants`: the large ones that these fetches read."""
        import tensorflow as tf

        key = (tuple(feeds), tuple(tensors))
        if self.mode == "xla":
            return self._by_xla(key, feeds)
        kept = sum(self.weights[name].ByteSize() for name in constants) if self.mode == "optimised" else 0
        if self.session is None or (key not in self.seen and sum(self.seen.values()) + kept > LIMIT):
            self.close()
            self.session = self._open()
        self.seen[key] = kept
        weights = {f"{name}:0": self._weight(name) for name in constants} if self.mode == "plain" else {}
        try:
            return [np.asarray(value) for value in self.session.run(list(tensors), {**feeds, **weights})]
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
            raise Unsupported(f"the model does not run on these values: {_line(error)}") from error

    def _weight(self, name: str) -> np.ndarray:
        """A large constant, laid out so that TensorFlow reads it where it is (it copies what does not start at 64 bytes)."""
        from tensorflow.python.framework import tensor_util

        if name not in self.fed:
            array = np.asarray(tensor_util.MakeNdarray(self.weights[name].attr["value"].tensor))
            room = np.empty(array.nbytes + 64, np.uint8)
            start = -room.ctypes.data % 64
            self.fed[name] = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
            self.fed[name][...] = array
        return self.fed[name]

    def _by_xla(self, key: tuple[Any, ...], feeds: Mapping[str, Any]) -> list[np.ndarray]:
        import tensorflow as tf

        try:
            if key not in self.compiled:
                self.compiled.clear()
                graph_def = self.graph.as_graph_def()
                whole = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph_def, name=""), [])
                fed, fetched = ([whole.graph.get_tensor_by_name(name) for name in names] for names in key)
                self.compiled[key] = tf.function(whole.prune(fed, fetched), jit_compile=True, autograph=False)
            return [np.asarray(value) for value in self.compiled[key](*(tf.constant(v) for v in feeds.values()))]
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
            raise Unsupported(f"XLA does not compile this part of the model: {_line(error)}") from error

    def _open(self) -> Any:
        import tensorflow as tf

        config = tf.compat.v1.ConfigProto()
        config.graph_options.rewrite_options.disable_meta_optimizer = self.mode == "plain"
        if self.mode == "plain":
            config.graph_options.optimizer_options.opt_level = -1
        return tf.compat.v1.Session(graph=self.graph, config=config)

    def close(self) -> None:
        """Free the session."""
        if self.session is not None:
            self.session.close()
        self.session = None
        self.seen = {}


_tapped: OrderedDict[tuple[Any, ...], Tapped] = OrderedDict()


def tapped(frozen: Frozen, known: Mapping[str, str], given: Arrays, mode: str) -> Tapped:
    """The tapped graph, kept for the next replay.

    In "plain" mode every value has a tap. No optimiser fuses operators across a tap, so with one only what is given
    has a tap, of the shape that the graph gives it where the array has that shape too.
    """
    shapes: dict[str, Any] = dict.fromkeys([*frozen.inputs.values(), *known.values()])
    if mode != "plain":
        bare = graphs.built(frozen.graph_def)
        own = {tensor.name: tensor.shape for op in bare.get_operations() for tensor in op.outputs}
        places = {**frozen.inputs, **known}
        shapes = {places[name]: own[places[name]] for name in given}
        for name, array in given.items():
            if not shapes[places[name]].is_compatible_with(array.shape[1:]):
                shapes[places[name]] = None
    key = (id(frozen.graph_def), mode, tuple((tensor, str(shape)) for tensor, shape in shapes.items()))
    if key not in _tapped:
        _tapped[key] = Tapped(frozen, shapes, mode)
    _tapped.move_to_end(key)
    for old in [other for other in _tapped if other[1] == mode][:-KEPT]:
        _tapped.pop(old).close()
    return _tapped[key]


def replay(
    frozen: Frozen,
    known: Mapping[str, str],
    inputs: Arrays,
    given: Arrays,
    wanted: Sequence[str],
    emit: Emit,
    *,
    mode: str,
    budget: int,
) -> dict[str, dict[str, str]]:
    """Emit wanted values with the given ones put in; see `replay` in `_base.py`. `known`: value name -> tensor.

    Raises Unsupported for unknown names and for shapes that an operator does not take, ValueError for a missing input.
    """
    places = {**frozen.inputs, **known}
    unknown = [name for name in [*given, *wanted] if name not in places]
    if unknown:
        raise Unsupported(f"the model has no value '{unknown[0]}'")
    cut = tapped(frozen, known, given, mode)
    by_tensor = {places[name]: array for name, array in given.items()}
    tensors = {name: places[name] for name in wanted}
    needs = cut.needed(list(tensors.values()), by_tensor)
    missing = [name for name in needs.inputs if name not in inputs]
    if missing:
        raise ValueError(f"no value for input {', '.join(missing)}, on which {', '.join(list(wanted)[:3])} depends")
    feeds = {frozen.inputs[name]: (frozen.inputs[name], inputs[name]) for name in needs.inputs}
    feeds.update({f"{cut.taps[tensor]}:0": (tensor, by_tensor[tensor]) for tensor in needs.given})
    count = _runs([array for _, array in feeds.values()], inputs, given)

    def once(run: int, fetches: Sequence[str]) -> list[np.ndarray]:
        now = {fed: np.asarray(array[run], cut.dtypes[own].as_numpy_dtype) for fed, (own, array) in feeds.items()}
        return cut.fetch(now, fetches, needs.constants)

    need = dict.fromkeys(tensors, 0)
    if len(tensors) > 1 and mode == "plain":
        counted = once(0, [f"{cut.taps[tensor]}_size:0" for tensor in tensors.values()])
        need = {name: int(c) * cut.dtypes[t].size * count for (name, t), c in zip(tensors.items(), counted)}
    elif len(tensors) > 1:  # to fetch less changes what the optimiser fuses
        need = {name: value.nbytes * count for name, value in zip(tensors, once(0, list(tensors.values())))}
    skipped: dict[str, str] = {}
    for window in graphs.windows(need, budget):
        rows = [once(run, [tensors[name] for name in window]) for run in range(count)]
        for place, name in enumerate(window):
            stacked = graphs.stack([row[place] for row in rows])
            if isinstance(stacked, list):
                skipped[name] = "its shape differs between runs"
            else:
                emit(name, stacked)
    return {"skipped": skipped}


def _runs(fed: Sequence[np.ndarray], inputs: Arrays, given: Arrays) -> int:
    """How many runs: as many as what is fed has; a model that reads nothing runs as often as the rest says."""
    counts = {len(array) for array in fed} or {len(array) for array in [*inputs.values(), *given.values()]} or {1}
    if len(counts) > 1:
        raise ValueError(f"the given arrays have different numbers of runs: {', '.join(map(str, sorted(counts)))}")
    return counts.pop()


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:240] if lines else type(error).__name__

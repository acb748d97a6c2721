"""Decides how TensorFlow computations are frozen, run and traced: one GraphDef without variables, in a TF1 session.

Shared by `keras.py` and `tensorflow.py`. A value is named as TensorFlow's GraphDef names it: `node` for a node's
first output, `node:1` for its second. Control flow stays functional (While and If are single nodes) and the
meta-optimiser is off, so that every tensor of the frozen graph can be fetched and keeps its name.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable, NamedTuple

import numpy as np

from trueport.frameworks._base import Arrays, RunResult, Unsupported


class Frozen(NamedTuple):
    """A computation with its weights inside. `inputs` and `outputs`: the model's own name -> tensor name in the graph."""

    graph_def: Any
    inputs: dict[str, str]
    outputs: dict[str, str]


def freeze(concrete: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Frozen:
    """Freeze a ConcreteFunction whose flat arguments and flat results carry these names, in this order.

    Raises Unsupported when it holds state that cannot become a constant (lookup tables, mutable resources).
    """
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    try:
        frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False)
    except (ValueError, TypeError, KeyError) as error:
        raise Unsupported(f"the computation cannot be frozen: {_first_line(error)}") from error
    feeds = [tensor.name for tensor in frozen.inputs]
    fetches = [tensor.name for tensor in frozen.outputs]
    if len(feeds) != len(inputs) or len(fetches) != len(outputs):
        raise Unsupported(
            f"the frozen computation has {len(feeds)} inputs and {len(fetches)} outputs, "
            f"expected {len(inputs)} and {len(outputs)}: it holds state beside its weights"
        )
    graph_def = frozen.graph.as_graph_def()
    del frozen  # it holds the weights several times over, in cycles
    tidy()
    return Frozen(graph_def, dict(zip(inputs, feeds)), dict(zip(outputs, fetches)))


def tidy() -> None:
    """Give memory that TensorFlow no longer uses back to the system, where its allocator knows how."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


LARGE = 4096
"""Bytes of a constant node from which on `skeleton` leaves its value out: no operator's shape hangs on so large a one."""


def skeleton(graph_def: Any) -> Any:
    """The same graph with placeholders for large constants: enough to know every tensor's dtype and shape."""
    bare = type(graph_def)()
    bare.library.CopyFrom(graph_def.library)
    bare.versions.CopyFrom(graph_def.versions)
    for node in graph_def.node:
        if not is_large(node):
            bare.node.add().CopyFrom(node)
            continue
        held = bare.node.add(name=node.name, op="Placeholder")
        held.attr["dtype"].type = node.attr["dtype"].type
        held.attr["shape"].shape.CopyFrom(node.attr["value"].tensor.tensor_shape)
    return bare


def is_large(node: Any) -> bool:
    """Whether a node is a constant of numbers that `skeleton` leaves out."""
    return bool(node.op == "Const" and node.ByteSize() > LARGE and node.attr["dtype"].type != 7)  # 7: DT_STRING


def built(graph_def: Any) -> Any:
    """A tf.Graph of the skeleton, to ask for dtypes and shapes."""
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(skeleton(graph_def), name="")
    return graph


class Runner:
    """A session over a frozen graph."""

    def __init__(self, frozen: Frozen, *, optimise: bool = False) -> None:
        import tensorflow as tf

        self.frozen = frozen
        self.graph = tf.Graph()
        with self.graph.as_default():
            tf.graph_util.import_graph_def(frozen.graph_def, name="")
        config = tf.compat.v1.ConfigProto()
        config.graph_options.rewrite_options.disable_meta_optimizer = not optimise
        if not optimise:
            config.graph_options.optimizer_options.opt_level = -1
        self.session = tf.compat.v1.Session(graph=self.graph, config=config)

    def fetch(self, inputs: Mapping[str, np.ndarray], tensors: Sequence[str]) -> list[np.ndarray]:
        """One call: model inputs by their own names, without run axis; returns the tensors of these graph names."""
        feeds = {self.frozen.inputs[name]: value for name, value in inputs.items() if name in self.frozen.inputs}
        return [np.asarray(value) for value in self.session.run(list(tensors), feeds)]

    def close(self) -> None:
        """Free the session."""
        self.session.close()


@contextlib.contextmanager
def running(frozen: Frozen, *, optimise: bool = False) -> Iterator[Runner]:
    """Open a Runner and close it again. Raises Unsupported when TensorFlow refuses the graph."""
    import tensorflow as tf

    try:
        runner = Runner(frozen, optimise=optimise)
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        raise Unsupported(f"TensorFlow does not take the changed graph: {_first_line(error)}") from error
    try:
        yield runner
    finally:
        runner.close()


Call = Callable[[Arrays], Mapping[str, Any]]
"""Inputs of one run (no run axis) to outputs by name."""


def run_cases(call: Call, cases: Mapping[str, Arrays]) -> dict[str, RunResult]:
    """Call once per run of every case and stack what came out along the run axis."""
    results: dict[str, RunResult] = {}
    for case, inputs in cases.items():
        count = next(iter(inputs.values())).shape[0] if inputs else 1
        runs = [dict(call({name: np.ascontiguousarray(a[r]) for name, a in inputs.items()})) for r in range(count)]
        names = list(runs[0]) if runs else []
        results[case] = {name: stack([np.asarray(run[name]) for run in runs]) for name in names}
    return results


def stack(values: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
    """Join equal shapes along a new first axis; leave different shapes as a list."""
    return np.stack(values) if len({value.shape for value in values}) == 1 else values


def run_frozen(frozen: Frozen, cases: Mapping[str, Arrays], *, optimise: bool = False) -> dict[str, RunResult]:
    """Evaluate the frozen graph on every case. Inputs are cast to the dtype of their placeholder."""
    with running(frozen, optimise=optimise) as runner:
        dtypes = {
            name: runner.graph.get_tensor_by_name(tensor).dtype.as_numpy_dtype for name, tensor in frozen.inputs.items()
        }

        def call(inputs: Arrays) -> Mapping[str, Any]:
            feeds = {name: np.asarray(value, dtypes[name]) for name, value in inputs.items() if name in dtypes}
            return dict(zip(frozen.outputs, runner.fetch(feeds, list(frozen.outputs.values()))))

        return run_cases(call, cases)


def short(tensor: str) -> str:
    """TensorFlow's short form of a tensor name: `node` for `node:0`."""
    return tensor[:-2] if tensor.endswith(":0") else tensor


def full(tensor: str) -> str:
    """The tensor name of a short form or of a node input; a control input stays as it is."""
    return tensor if ":" in tensor or tensor.startswith("^") else f"{tensor}:0"


def labels(frozen: Frozen) -> Callable[[str], str]:
    """Return what shows a tensor's name: a model input's own name, else the short form.

    What only reads a stored constant is shown as that constant. A tensor whose short form is the name of another input
    or output of the model is shown with `graph/` before it.
    """
    given = {tensor: name for name, tensor in frozen.inputs.items()}
    taken = {**frozen.outputs, **frozen.inputs}
    reads = constant_reads(frozen)

    def label(tensor: str) -> str:
        tensor = full(tensor)
        tensor = full(reads.get(tensor[:-2], tensor))
        name = given.get(tensor, short(tensor))
        return f"graph/{name}" if taken.get(name, tensor) != tensor else name

    return label


def constant_reads(frozen: Frozen) -> dict[str, str]:
    """Node that only reads a constant (what freezing leaves of a variable's read) -> that constant."""
    kept = {tensor.split(":")[0] for tensor in frozen.outputs.values()}
    constants = {node.name: node.name for node in frozen.graph_def.node if node.op == "Const"}
    reads: dict[str, str] = {}
    for node in ordered(frozen.graph_def):
        if node.op == "Identity" and node.name not in kept and short(node.input[0]) in constants:
            reads[node.name] = constants[node.name] = constants[short(node.input[0])]
    return reads


_known: OrderedDict[int, tuple[Any, dict[str, str]]] = OrderedDict()
"""Values of the last graphs asked for; the graph is held, so that its id stays its own."""


def values(frozen: Frozen) -> dict[str, str]:
    """Name -> tensor of all that can be fetched as arrays, in execution order, then of the outputs; constants left out."""
    key = id(frozen.graph_def)
    if key not in _known:
        _known[key] = (frozen.graph_def, _values(frozen))
    _known.move_to_end(key)
    while len(_known) > 2:
        _known.popitem(last=False)
    return _known[key][1]


def _values(frozen: Frozen) -> dict[str, str]:
    import tensorflow as tf

    graph = built(frozen.graph_def)
    fed = set(frozen.inputs.values())
    label = labels(frozen)
    reads = constant_reads(frozen)
    found = {}
    for node in ordered(frozen.graph_def):
        operation = graph.get_operation_by_name(node.name)
        if node.op in ("Const", "NoOp", "Placeholder") or node.name in reads:
            continue
        for tensor in operation.outputs:
            if tensor.dtype not in (tf.resource, tf.variant, tf.string) and tensor.name not in fed:
                found[label(tensor.name)] = tensor.name
    found.update(frozen.outputs)
    return found


def ordered(graph_def: Any) -> list[Any]:
    """Return the nodes so that every node follows its inputs; the file's own order breaks ties."""
    nodes = {node.name: node for node in graph_def.node}
    done: set[str] = set()
    result = []
    for start in graph_def.node:
        pending = [start.name]
        while pending:
            name = pending[-1]
            if name in done:
                pending.pop()
                continue
            missing = [item for item in sources(nodes[name]) if item not in done and item in nodes]
            if missing and not any(item in pending for item in missing):
                pending += missing
                continue
            done.add(name)
            result.append(nodes[name])
            pending.pop()
    return result


def sources(node: Any) -> list[str]:
    """Names of the nodes that this node reads, control inputs included."""
    return [item.lstrip("^").split(":")[0] for item in node.input]


def windows(need: Mapping[str, int], budget: int) -> Iterator[list[str]]:
    """Group names in order so that the bytes they need stay within the budget."""
    group: list[str] = []
    held = 0
    for name, size in need.items():
        if group and held + size > budget:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__

"""The contract of a framework file and of a converter file. Standard library and NumPy only, Python 3.9 and later.

A *framework* module knows one family of formats: it recognises, loads, runs and looks inside models.
A *converter* module knows one conversion tool: it turns a file of one format into a file of another.
Both are plain modules. Their constants and `sniff` are read in the parent; every other function runs only
inside a worker, where the framework may be imported (inside the function, never at module level).

What crosses the process boundary is JSON plus NumPy arrays (see `worker/wire.py`): the `TypedDict`s below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple, Protocol, TypedDict, Union

import numpy as np

Dim = Union[int, str, None]
"""A fixed size, the name of a symbolic size, or None where the format gives neither."""

Arrays = dict[str, np.ndarray]
"""Tensor name to array. In feeds and results the FIRST axis is the run axis R, the rest is the tensor's own shape."""


class Unsupported(Exception):
    """Raised by a framework or converter file: this tool does not do this. Becomes Failure(kind=unsupported)."""


class InvalidOutput(Exception):
    """Raised by a converter file: the tool claimed success, its output is unusable. Becomes Failure(kind=invalid-output)."""


class Untrusted(Exception):
    """Raised when loading would run code from the file and `trust` is false. Becomes UntrustedError in the parent."""


class BadModel(Exception):
    """Raised when the file itself is damaged or not what it claims to be. Becomes UsageError for a user's file."""


class _SpecBase(TypedDict):
    name: str
    dtype: str
    shape: list[Dim] | None


class SpecDict(_SpecBase, total=False):
    """One input or output. `dtype` is NumPy's name ("float32", "int64", "bool", "str"); `shape` None means unknown rank.

    `minimum`/`maximum`: inclusive range of legal integer values (an embedding's size), where the graph shows one.
    `quantization`: {"scale", "zero_point", "dtype"} when the stored tensor is quantised; values always cross dequantised.
    """

    minimum: int
    maximum: int
    quantization: dict[str, Any]


class SignatureDict(TypedDict):
    """What a model takes and gives. `meta`: opset, producer, declared `precision`, `operators` (name -> count),
    `parameters` (number of), anything else worth showing in `trueport inspect`."""

    inputs: list[SpecDict]
    outputs: list[SpecDict]
    meta: dict[str, Any]


class _NodeBase(TypedDict):
    name: str
    op: str
    native_op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]


class NodeDict(_NodeBase, total=False):
    """One operator. `op` in ONNX vocabulary where one exists, `native_op` as the format calls it.

    `origin`: in a finer granularity than the native one, the name of the native node that this one is a part of.
    """

    origin: str


class GraphDict(TypedDict):
    """A read-only view. Nodes in execution order; `constants`: name -> {"dtype", "shape"}; subgraph captures count as inputs."""

    nodes: list[NodeDict]
    inputs: list[str]
    outputs: list[str]
    constants: dict[str, dict[str, Any]]


RunResult = dict[str, Union[np.ndarray, list[np.ndarray]]]
"""Output name -> array [R, *shape], or a list of R arrays when the shape differs between runs."""

Emit = Callable[[str, np.ndarray], None]
"""Hand over one array [R, *shape]; it is on disk when the call returns, so the caller can drop it."""


class Step(NamedTuple):
    """One conversion that a converter file can do."""

    name: str
    """Unique, shown to users and taken by `--route`: "tf2onnx-keras"."""
    source_format: str
    target_format: str
    toolchain: str
    """Key in toolchains.toml of the environment in which it runs."""
    tool: str
    """Distribution name of the package that converts: "tf2onnx"."""
    rank: int = 50
    """Known reliability; the planner prefers the smaller number among routes of equal length."""
    precisions: tuple[str, ...] = ("float32",)
    """Declared precisions that option `precision` may ask for; the first is the default."""
    options: tuple[tuple[str, str], ...] = ()
    """(name, help) of every option it takes besides `precision`."""
    max_opset: int | None = None
    """Highest ONNX opset it can read; the planner puts an opset conversion before it."""
    dynamic_shapes: bool = True
    """False: every dimension of the result is fixed (a batch size is baked in)."""
    legacy_keras: bool = False
    """True: takes Keras 2 files (through tf_keras) rather than Keras 3 files."""
    note: str = ""
    """A known limit in one sentence, for `trueport routes`."""


class ConvertContext(TypedDict):
    """What a converter may need besides the file.

    signature: of the source; example: input name -> one run's array (native shape, batch included);
    calibration: input name -> [R, *shape]; trust: the user allowed code from the file to run.
    """

    signature: SignatureDict
    example: Arrays
    calibration: Arrays
    trust: bool


class ConvertReply(TypedDict, total=False):
    """notes: sentences worth showing. layout: target input or output name -> {"source": name, "permutation": [..]}
    when the tool changed a layout: np.transpose(source array without run axis, permutation) has the target's layout.
    names: source name -> target name of inputs and outputs the tool renamed."""

    notes: list[str]
    layout: dict[str, dict[str, Any]]
    names: dict[str, str]


class EditDict(TypedDict, total=False):
    """One change to a model's file, which leaves all else in it as it is. `kind` decides which other keys count.

    Names of nodes, values and parameters are those that `graph` gives for the file to be changed; edits are applied in
    order, and a later one may name what an earlier one made. Operators and attributes that are added are in ONNX
    vocabulary, and axes and layouts in those of the file. An array is named by its key in `arrays`.

    - "set-parameter": `node` reads `array` as its constant `parameter` (a name among the node's inputs in `graph`, or
      among its inner constants). Other nodes that share the constant keep the old one. Values are real ones: where the
      constant is stored on a grid or in a narrower type, it stays so (`grid`: "keep"), or gets the type and scales that
      suit the new values best ("new"). The shape may differ where the format allows it.
    - "add-parameter": `node` gets the operand `role` ("bias") that it does not have, holding `array`.
    - "set-attribute": `attribute` of `node`, under the name that `graph` shows, gets `value`; None takes it away.
    - "set-operator": `node` becomes `operator` with `attributes` (and no others), and reads `constants` behind its data.
      Its name, its data operands and its results stay.
    - "remove-node": whoever reads the result of `node` reads its operand number `slot` instead (default: its first that
      is no constant).
    - "insert": between `value` and its readers (`readers`: names of nodes, "" stands for the model's output; all when
      absent) come `steps`, one behind the other, each {"operator", "attributes", "constants", "others", "slot"}: the
      constants, or other values of the model, are its further operands, the data stands at `slot` (default 0).
    - "reorder-inputs": the operands of `node` in the order `order` (old places).
    - "set-input": operand number `slot` of `node` is `value`.
    - "set-dimensions": input `value` takes `shape` (numbers; a text or None for a free size); what is baked in behind
      it is freed as far as the format shows it.
    - "set-outputs": the model gives `outputs` (names of outputs or values), in this order and no others.
    - "set-precision": `node` computes in `dtype` ("float32"); `parameters` (name -> key in `arrays`) are its constants
      from then on.
    - "recompute": `value` is from now on what `nodes` make of it: NodeDicts in ONNX vocabulary whose operands are values
      of the model, keys of `arrays`, or results of nodes before; the last one's first result is the value. What
      computed it before and serves nothing else goes away.
    """

    kind: str
    node: str
    parameter: str
    array: str
    grid: str
    role: str
    attribute: str
    value: Any
    operator: str
    attributes: dict[str, Any]
    constants: list[str]
    slot: int
    readers: list[str]
    steps: list[dict[str, Any]]
    order: list[int]
    shape: list[Dim]
    outputs: list[str]
    dtype: str
    parameters: dict[str, str]
    nodes: list[dict[str, Any]]


EDIT_KINDS = (
    "set-parameter",
    "add-parameter",
    "set-attribute",
    "set-operator",
    "remove-node",
    "insert",
    "reorder-inputs",
    "set-input",
    "set-dimensions",
    "set-outputs",
    "set-precision",
    "recompute",
)


class Framework(Protocol):
    """What a module in `frameworks/` offers.

    A module may list finer views of a model in GRANULARITIES (("native", "decomposed"), the native one first). Then
    `names`, `trace`, `graph` and `parameters` take a keyword `granularity`; inputs and outputs keep their names.
    """

    NAME: str
    FORMATS: Mapping[str, str]
    """format -> toolchain that runs it by default."""
    SUFFIXES: Mapping[str, str]
    """format -> file suffix that a converted artifact gets ("" for a folder)."""
    VARIANTS: tuple[str, ...]
    """Equally right ways to run a model in this framework (kernels, threads, optimisation levels); the first is the default."""
    PRECISIONS: tuple[str, ...]
    """Arithmetic in which `run` can evaluate: "float32" always, perhaps "float64", and simulated "float16",
    "int8-dynamic", "int8" (weights, and for int8 activations too, rounded to that grid, computed in float32)."""

    def sniff(self, head: bytes, path: Path) -> str | None:
        """Return the format if these are its first 64 KiB (or this is its folder), else None. Standard library only, never executes."""

    def signature(self, path: str, *, trust: bool) -> SignatureDict:
        """Load the model and describe it. Raises BadModel, Untrusted, Unsupported."""

    def run(
        self, path: str, cases: Mapping[str, Arrays], *, precision: str, variant: str, trust: bool
    ) -> dict[str, RunResult]:
        """Run every case (name -> inputs [R, *native shape], same R for all inputs of a case), R calls each."""

    def names(self, path: str, *, trust: bool) -> list[str]:
        """Names of all values inside the model that `trace` can give, in execution order, outputs included."""

    def trace(
        self, path: str, inputs: Arrays, wanted: Sequence[str], emit: Emit, *, budget: int, trust: bool
    ) -> dict[str, Any]:
        """Run R calls and emit each wanted value [R, *shape], holding at most `budget` bytes of them at a time."""

    def replay(
        self,
        path: str,
        inputs: Arrays,
        given: Arrays,
        wanted: Sequence[str],
        emit: Emit,
        *,
        variant: str,
        budget: int,
        trust: bool,
    ) -> dict[str, Any]:
        """Run R calls in which every consumer of a value named in `given` reads that array [R, *shape] instead.

        Emits what each `wanted` value is *computed* as: a name that stands in `given` too gives what its own producer
        makes of its inputs. `given` may name graph inputs and any value that `trace` gives. Only the part of the model
        on which `wanted` depends is run, cut off at `given`; an input that is not needed may be absent from `inputs`.
        `variant`: as for `run`; "" means the kernels that `trace` uses. Shapes in `given` may differ from those that
        the model would compute, where the format allows it.
        Returns {"skipped": name -> why}. Raises Unsupported where this format or model cannot be cut.
        """

    def graph(self, path: str, *, trust: bool) -> GraphDict:
        """The read-only view of the graph."""

    def parameters(self, path: str, emit: Emit, *, trust: bool) -> dict[str, Any]:
        """Emit every constant array under its name in `graph` (no run axis)."""

    EDITS: tuple[str, ...]
    """Kinds of `EditDict` that can be written into a file of this framework."""
    EDIT_FILES: tuple[str, ...]
    """Names of the modules beside this one that write edits, in order of import, the last one with a function
    `apply(path, edits, arrays, out)`. They need the framework's library, NumPy and each other, nothing else of ours but
    `_base`: a patch script carries them with it."""

    def edit(self, path: str, edits: Sequence[EditDict], arrays: Arrays, out: str, *, trust: bool) -> dict[str, Any]:
        """Write a copy of the model at `out` with the edits applied, in the same format.

        What no edit names is byte for byte (where the format is packed anew: value for value) what it was.
        Returns {"notes": [...]}. Raises Unsupported, with the reason, when an edit cannot be written at its place.
        """


class Converter(Protocol):
    """What a module in `converters/` offers."""

    STEPS: tuple[Step, ...]

    def convert(
        self, step: str, source: str, out: str, options: Mapping[str, Any], context: ConvertContext
    ) -> ConvertReply:
        """Write the converted model at `out` (a fresh path; file or folder) or raise. `options` holds strings as typed by
        the user, and `precision` when the step lists several. Never trusts an exit code: the parent loads the result after."""

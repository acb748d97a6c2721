"""Runs a TFLite file in LiteRT: which kernels, what goes into tensors and comes out of them, and values in bounded windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Callable

import numpy as np

from trueport.frameworks._base import Emit, Unsupported

if TYPE_CHECKING:
    from trueport.frameworks._tflite_model import Model, Tensor

RESOLVERS = {
    "default": ("AUTO", None),
    "builtin": ("BUILTIN_WITHOUT_DEFAULT_DELEGATES", None),
    "reference": ("BUILTIN_REF", None),
    "single-thread": ("AUTO", 1),
}
"""Variant -> (resolver of LiteRT, number of threads)."""
NO_KERNEL = ("unresolved custom op", "not currently supported", "supported currently", "currently not supported")
"""What LiteRT says of an operator, or of a type in one, that it has no kernel for; the file itself may be right."""


class Session:
    """One interpreter over one file, fed by tensor index. `tensors` are the file's, `inputs` those of them that are fed."""

    def __init__(
        self, source: str | bytes, tensors: Sequence[Tensor], inputs: Sequence[int], variant: str, *, keep_all: bool
    ) -> None:
        from ai_edge_litert import interpreter as litert

        resolver, threads = RESOLVERS[variant]
        self.tensors = tensors
        self.variant = variant
        self.interpreter = litert.Interpreter(
            **({"model_path": source} if isinstance(source, str) else {"model_content": source}),
            num_threads=threads,
            experimental_op_resolver_type=litert.OpResolverType[resolver],
            experimental_preserve_all_tensors=keep_all,
            experimental_disable_delegate_node_fusion=keep_all,
        )
        self.shapes = {index: tensors[index].shape for index in inputs}
        self.interpreter.allocate_tensors()

    @staticmethod
    def of(model: Model, variant: str, *, keep_all: bool = False) -> Session:
        """Open a whole file."""
        content = model.content()
        return Session(
            model.path if content is None else content, model.tensors, model.inputs, variant, keep_all=keep_all
        )

    def resize(self, wanted: Mapping[int, tuple[int, ...]]) -> None:
        """Give the inputs these shapes; sizes that the file fixes have been checked before."""
        changed = {index: shape for index, shape in wanted.items() if shape != self.shapes[index]}
        for index, shape in changed.items():
            self.interpreter.resize_tensor_input(index, shape)
        if changed:
            self.interpreter.allocate_tensors()
            self.shapes.update(changed)

    def call(self, inputs: Mapping[int, np.ndarray]) -> None:
        """Run once from the initial state; `inputs` are stored values by tensor index, resized to where they differ."""
        self.resize({index: value.shape for index, value in inputs.items()})
        self.interpreter.reset_all_variables()
        for index, value in inputs.items():
            if value.size:
                self.interpreter.set_tensor(index, value)
        self.interpreter.invoke()

    def value(self, index: int) -> np.ndarray:
        """Return a copy of one tensor, dequantised."""
        from trueport.frameworks._tflite_model import dequantize

        try:
            stored = self.interpreter.get_tensor(index)
        except ValueError:  # a tensor of no elements has no data to point at
            if self.elements(index):
                raise
            shape = self.interpreter._get_tensor_details(index, 0)["shape"]
            stored = np.zeros(tuple(shape), self.tensors[index].dtype)
        return dequantize(self.tensors[index], stored)

    def elements(self, index: int) -> int:
        """Count the elements that a tensor has since the last call."""
        return int(np.prod(self.interpreter._get_tensor_details(index, 0)["shape"], dtype=np.int64))

    def size(self, index: int) -> int:
        """Bytes of `value(index)`."""
        tensor = self.tensors[index]
        return self.elements(index) * np.dtype("float32" if tensor.quantization else tensor.dtype).itemsize


def carries_state(model: Model) -> bool:
    """Whether resource variables would carry values from run to run, whatever is reset."""
    return any(operator.code in ("VAR_HANDLE", "HASHTABLE") for operator in model.all_operators())


def refuse_missing_kernels(model: Model) -> None:
    """Raise Unsupported, naming them, when LiteRT has no kernel for custom or Flex operators of the file."""
    custom = sorted({operator.code for operator in model.all_operators() if operator.custom})
    if not custom:
        return
    try:
        Session.of(model, "builtin")
    except RuntimeError as error:
        if any(word in str(error) for word in ("custom op", "Select TensorFlow op", "Custom", "not registered")):
            raise Unsupported(f"LiteRT has no kernel for the operators {', '.join(custom)}") from error


def check_shape(tensor: Tensor, name: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError when the file fixes other sizes for an input."""
    wanted = tensor.dims
    if wanted is not None and (
        len(wanted) != len(shape) or any(size is not None and size != given for size, given in zip(wanted, shape))
    ):
        taken = "×".join("?" if size is None else str(size) for size in wanted) or "a scalar"
        raise ValueError(f"input '{name}' takes {taken}, and {'×'.join(map(str, shape)) or 'a scalar'} was given")


def stored(tensor: Tensor, name: str, value: np.ndarray) -> np.ndarray:
    """Turn one run's value into what the tensor stores. Raises ValueError when integers would change."""
    from trueport.frameworks._tflite_model import quantize

    value = np.asarray(value)
    if value.dtype.kind not in "fiub" and value.dtype.kind != np.dtype(tensor.dtype).kind:
        raise ValueError(f"input '{name}' is {tensor.dtype}, and {value.dtype} was given")
    if tensor.quantization is not None:
        return quantize(tensor, value)
    wanted = np.dtype(tensor.dtype)
    if wanted.kind in "iub" and value.dtype != wanted:
        cast = value.astype(wanted)
        if value.dtype.kind == "f" or not np.array_equal(cast, value):
            raise ValueError(f"input '{name}' is {tensor.dtype}, and the {value.dtype} values given do not fit it")
        value = cast
    return np.ascontiguousarray(value, dtype=wanted).reshape(value.shape)


def stack(values: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
    """Stack the runs' values, or leave them a list where their shapes differ."""
    return np.stack(values) if len({value.shape for value in values}) == 1 else values


def collect(
    calls: Callable[[], Iterator[Session]], runs: int, wanted: Sequence[tuple[str, int]], budget: int, emit: Emit
) -> list[str]:
    """Emit (name, tensor) values stacked over the runs, as many at a time as `budget` bytes hold, one at least.

    `calls` starts all runs afresh and yields the session after each; sizes are read after the first run of a window.
    Returns the names whose shape differs between runs; those are not emitted.
    """
    uneven: list[str] = []
    left = list(wanted) if runs else []
    while left:
        held: dict[str, list[np.ndarray]] = {}
        for session in calls():
            if not held:
                taken = _fitting([session.size(index) * runs for _, index in left], budget)
                held = {name: [] for name, _ in left[:taken]}
            for name, index in left[: len(held)]:
                held[name].append(session.value(index))
        left = left[len(held) :]
        for name in list(held):
            stacked = stack(held.pop(name))
            if isinstance(stacked, list):
                uneven.append(name)
            else:
                emit(name, stacked)
    return uneven


def _fitting(sizes: list[int], budget: int) -> int:
    fits = np.cumsum(sizes) <= budget
    return max(1, int(fits.sum()))

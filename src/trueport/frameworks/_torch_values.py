"""Between NumPy and PyTorch: dtype names, checked feeds, and weights or activations rounded to a coarser grid.

Conversions are explicit: a feed of another dtype, rank or fixed size is an error that names the input, never a cast.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trueport.frameworks._base import Arrays, Dim, RunResult, SpecDict, Unsupported

VARIANTS = ("default", "single-thread", "no-mkldnn")
PRECISIONS = ("float32", "float64", "float16", "int8-dynamic", "int8")
_CROSS_AS = {"bfloat16": "float32", "float8_e4m3fn": "float32", "float8_e5m2": "float32"}
"""dtypes that NumPy lacks, and in which dtype their values are given and taken."""


def dtype_name(dtype: Any) -> str:
    """NumPy's name of a torch dtype; those that NumPy lacks keep torch's name."""
    return str(dtype).replace("torch.", "")


def to_numpy(value: Any) -> np.ndarray | None:
    """Copy a tensor or Python number into an array; None for everything else."""
    import torch

    if isinstance(value, torch.Tensor):
        value = value.detach()
        if value.is_quantized:
            value = value.dequantize()
        if value.layout is not torch.strided:
            value = value.to_dense()
        if dtype_name(value.dtype) in _CROSS_AS:
            value = value.float()
        return np.array(value.cpu().resolve_conj().resolve_neg().numpy())
    if isinstance(value, (bool, int, float)):
        return np.asarray(value)
    return None


def stand_in(value: Any) -> np.ndarray | None:
    """An array without memory that tells only the shape and the size of an element; None for what is no tensor."""
    import torch

    if not isinstance(value, torch.Tensor):
        return None
    return np.broadcast_to(np.zeros((), dtype=f"V{value.element_size()}"), tuple(value.shape))


def check_feeds(specs: Sequence[SpecDict], inputs: Arrays, ranges: Mapping[str, Sequence[int | None]]) -> int:
    """Check the feeds of one case against the signature and return R. Raises ValueError naming the input at fault."""
    names = [spec["name"] for spec in specs]
    missing, surplus = [n for n in names if n not in inputs], [n for n in inputs if n not in names]
    if missing or surplus:
        raise ValueError(f"the model's inputs are {names}; missing: {missing}, not an input: {surplus}")
    runs = {np.shape(array)[0] if np.ndim(array) else None for array in inputs.values()}
    if len(runs) > 1 or None in runs:
        raise ValueError("the inputs have different numbers of runs (the first axis of every array)")
    sizes: dict[str, int] = {}
    for spec in specs:
        _check_feed(spec, inputs[spec["name"]], sizes)
    for symbol, (low, high) in ranges.items():
        size = sizes.get(symbol)
        if size is not None and ((low is not None and size < low) or (high is not None and size > high)):
            raise ValueError(f"the size {symbol} = {size} is outside [{low}, {high}], for which the model was exported")
    return int(next(iter(runs))) if runs else 1  # type: ignore[arg-type]


def _check_feed(spec: SpecDict, array: np.ndarray, sizes: dict[str, int]) -> None:
    name, wanted = spec["name"], _CROSS_AS.get(spec["dtype"], spec["dtype"])
    if array.dtype.name != wanted:
        raise ValueError(f"input '{name}' takes {wanted}, the feed is {array.dtype.name}; convert it first")
    shape, given = spec["shape"], array.shape[1:]
    if shape is None:
        return
    wrong = len(shape) != len(given) or any(isinstance(w, int) and w != g for w, g in zip(shape, given))
    symbols = [(dim, size) for dim, size in zip(shape, given) if isinstance(dim, str)]
    if wrong or any(sizes.setdefault(dim, size) != size for dim, size in symbols):
        known = {dim: sizes[dim] for dim, _ in symbols if dim in sizes}
        also = f" with {known}" if known else ""
        raise ValueError(f"input '{name}' has shape {_show(shape)}{also}, one run of the feed has {_show(given)}")


def _show(shape: Sequence[Dim]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def tensor_of(array: np.ndarray, dtype: str, *, double: bool = False) -> Any:
    """A fresh tensor of the model's dtype (float64 instead of any float if `double`) from one run's array."""
    import torch

    value = torch.from_numpy(np.array(array))
    if value.is_floating_point():
        return value.to(torch.float64 if double else getattr(torch, dtype))
    return value


def collect(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> RunResult:
    """Stack the outputs of R runs: [R, *shape], or a list where shapes differ."""
    result: RunResult = {}
    for index, name in enumerate(names):
        arrays = [array for array in (to_numpy(row[index]) for row in rows) if array is not None]
        if len(arrays) != len(rows):
            raise Unsupported(f"output '{name}' is neither a tensor nor a number")
        same = len({array.shape for array in arrays}) == 1
        result[name] = np.stack(arrays) if same else arrays
    return result


@contextlib.contextmanager
def settings(variant: str, *, double: bool = False) -> Iterator[None]:
    """Run without gradients under one of VARIANTS, with deterministic kernels where there are any; restores everything."""
    import torch

    if variant not in VARIANTS:
        raise ValueError(f"there is no variant '{variant}' of torch; known are {', '.join(VARIANTS)}")
    threads, default = torch.get_num_threads(), torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        if variant == "single-thread":
            torch.set_num_threads(1)
        if double:
            torch.set_default_dtype(torch.float64)
        with torch.inference_mode(), torch.backends.mkldnn.flags(enabled=variant != "no-mkldnn"):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(default)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def rounded_weight(tensor: Any, precision: str, *, axis: int = 0) -> Any:
    """The tensor on the grid of `precision`, still float32: float16, or int8 with one symmetric scale per output channel.

    axis: the output channels (1 for transposed convolutions). Vectors and integers stay as they are under int8.
    """
    if not tensor.is_floating_point():
        return tensor
    if precision == "float16":
        return tensor.half().to(tensor.dtype)
    if precision in ("int8", "int8-dynamic") and tensor.dim() >= 2:
        others = [dim for dim in range(tensor.dim()) if dim != axis]
        scale = tensor.abs().amax(dim=others, keepdim=True) / 127
        scale = scale.masked_fill(scale == 0, 1)
        return (tensor / scale).round().clamp(-127, 127) * scale
    return tensor


class Grid:
    """The range of one activation over all runs of a case, and the rounding to its 8-bit affine grid."""

    def __init__(self) -> None:
        self.low = self.high = 0.0  # zero is always representable, as in every 8-bit runtime

    def see(self, tensor: Any) -> None:
        """Widen the range by the finite values of one run."""
        finite = tensor[tensor.isfinite()]
        if finite.numel():
            self.low = min(self.low, float(finite.min()))
            self.high = max(self.high, float(finite.max()))

    def apply(self, tensor: Any) -> Any:
        """Round one run's values to the 256 steps of the range."""
        if self.high == self.low:
            return tensor
        scale = (self.high - self.low) / 255
        zero = round(-128 - self.low / scale)
        return ((tensor / scale).round() + zero).clamp(-128, 127).sub(zero).mul(scale).to(tensor.dtype)


def is_float(value: Any) -> bool:
    """Whether the value is a tensor of floats."""
    import torch

    return isinstance(value, torch.Tensor) and value.is_floating_point()


def native_name(node: Any) -> str:
    """ "aten.conv2d" of aten.conv2d.default; a Python operator keeps its name ("mul")."""
    target = node.target
    packet = getattr(target, "overloadpacket", None)
    return str(packet) if packet is not None else getattr(target, "__name__", str(target))

"""Which axis of an input is the batch, and what size an open dimension gets when inputs are generated.

The rules are conventions, not knowledge: a format only says that a size is open. A size that a model refuses is
mended by the caller (`sizes`), never by guessing on.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from trueport.artifact import Signature, TensorSpec
from trueport.errors import UsageError
from trueport.frameworks._base import Dim

BATCH_NAME = re.compile(r"batch|^n$|^b$|^bs$|^bsz$", re.IGNORECASE)
SEQUENCE_NAME = re.compile(r"seq|len|time|token|frame|sample|step|point|node|edge|^t$|^s$|^l$", re.IGNORECASE)
HEIGHT_NAME = re.compile(r"height|width|^h$|^w$|size|spatial", re.IGNORECASE)
CHANNEL_NAME = re.compile(r"chan|^c$|depth", re.IGNORECASE)

RATE_NAME = re.compile(r"^(sr|rate|sample_?rate|sampling_?rate)$", re.IGNORECASE)

NAMELESS = ("", "?", "-1", "None", "none", "unk")
"""What some converters write where a size has no name; two such sizes need not be equal."""

LENGTH = 24
"""Sequence length where it is open: long enough for two windows of common kernels, divisible by 2, 3, 4 and 8."""
AUDIO = 512
"""Samples where a length is open beside a sample rate: 32 ms at 16 kHz, the window of common speech models."""
FEATURES = 16
IMAGE = 64
"""Image side where it is open: survives the five halvings of common backbones."""
CHANNELS = 3


def batch_axes(signature: Signature) -> dict[str, int | None]:
    """Input name -> axis of the open batch dimension, or None where the input has none (fixed, or shared by a batch).

    Axis 0 when it is open and not called a sequence; else an axis with the batch's symbol or name; else axis 1 of
    a tensor [layers, open, features] beside batched inputs, which is how recurrent states look.
    """
    inputs = tuple(map(_named_only, signature.inputs))
    first = {spec.name: _open_first(spec) for spec in inputs}
    symbols = {spec.shape[0] for spec in inputs if first[spec.name] and spec.shape} - {None}
    found: dict[str, int | None] = {}
    for spec in inputs:
        shape = spec.shape or ()
        named = [axis for axis, dim in enumerate(shape) if isinstance(dim, str) and _is_batch(dim, symbols)]
        if first[spec.name]:
            found[spec.name] = 0
        elif named:
            found[spec.name] = named[0]
        elif len(shape) >= 3 and isinstance(shape[0], int) and shape[1] is None and any(first.values()):
            found[spec.name] = 1
        else:
            found[spec.name] = None
    return found


def _named_only(spec: TensorSpec) -> TensorSpec:
    """The spec with None for every open size that has no real name."""
    if spec.shape is None:
        return spec
    return replace(spec, shape=tuple(None if dim in NAMELESS else dim for dim in spec.shape))


def _open_first(spec: TensorSpec) -> bool:
    if not spec.shape or isinstance(spec.shape[0], int):
        return False
    return spec.shape[0] is None or BATCH_NAME.search(spec.shape[0]) is not None or not _is_sequence(spec.shape)


def _is_sequence(shape: tuple[Dim, ...]) -> bool:
    return isinstance(shape[0], str) and SEQUENCE_NAME.search(shape[0]) is not None


def _is_batch(dim: str, symbols: set[Dim]) -> bool:
    return dim in symbols or BATCH_NAME.search(dim) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Concrete shapes for one batch size. `axes` is `batch_axes`; `assumed` says which sizes were chosen, for the report."""

    shapes: Mapping[str, tuple[int, ...]]
    axes: Mapping[str, int | None]
    assumed: tuple[str, ...]


def resolve(
    signature: Signature,
    *,
    batch: int = 1,
    length: int = LENGTH,
    image: int = IMAGE,
    sizes: Mapping[str, int] | None = None,
) -> Sizes:
    """Give every open dimension a size; the same symbol gets the same size everywhere.

    sizes: symbol, or "input:axis", -> size, which wins over every convention.
    Raises UsageError for an input of unknown rank.
    """
    signature = replace(signature, inputs=tuple(map(_named_only, signature.inputs)))
    axes = batch_axes(signature)
    if length == LENGTH and any(RATE_NAME.search(spec.name) for spec in signature.inputs):
        length = AUDIO
    vectors_only = all(len(spec.shape or ()) <= 1 for spec in signature.inputs)
    known: dict[str, int] = dict(sizes or {})
    shapes: dict[str, tuple[int, ...]] = {}
    assumed: dict[str, int] = {}
    # Plain symbols first, so that an expression such as "past + 1" finds its terms.
    for spec in sorted(signature.inputs, key=lambda item: sum(_is_expression(dim) for dim in item.shape or ())):
        if spec.shape is None:
            raise UsageError(
                f"input {spec.name} has an unknown rank, so inputs cannot be generated; give them with --inputs"
            )
        shape = []
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, int) and dim >= 0:
                shape.append(dim)
                continue
            symbol = dim if isinstance(dim, str) else f"{spec.name}:{axis}"
            if symbol not in known:
                size = _evaluate(symbol, known) if _is_expression(dim) else None
                if size is None and axis == axes[spec.name] and not vectors_only:
                    size = batch
                known[symbol] = _convention(spec, axis, length=length, image=image) if size is None else size
                if axis != axes[spec.name] or vectors_only:
                    assumed[symbol] = known[symbol]
            shape.append(known[symbol])
        shapes[spec.name] = tuple(shape)
    return Sizes(
        shapes={spec.name: shapes[spec.name] for spec in signature.inputs},
        axes=axes,
        assumed=tuple(f"the open size {name} was taken as {size}" for name, size in assumed.items()),
    )


def channel_axis(shape: tuple[Dim, ...]) -> int | None:
    """Axis of the colour channels of an image batch [N, C, H, W] or [N, H, W, C] (or one image without N), else None.

    A leading 1 of three axes is a batch ([1, time, features]), not one grey channel.
    """
    if len(shape) not in (3, 4):
        return None
    front, back = len(shape) - 3, len(shape) - 1
    first, last = shape[front] in ((3, 4) if front == 0 else (1, 3, 4)), shape[back] in (1, 3, 4)
    if last and (not first) and not (front == 0 and shape[0] == 1):
        return back
    return front if first else None


def _convention(spec: TensorSpec, axis: int, *, length: int, image: int) -> int:
    shape = spec.shape or ()
    name = shape[axis] if isinstance(shape[axis], str) else ""
    by_name = ((CHANNEL_NAME, CHANNELS), (HEIGHT_NAME, image), (SEQUENCE_NAME, length))
    for pattern, size in by_name:
        if name and pattern.search(str(name)):
            return size
    if len(shape) == 4:
        fixed_channel = channel_axis(tuple(dim if isinstance(dim, int) else IMAGE for dim in shape)) is not None
        channels_last = isinstance(shape[1], int) and isinstance(shape[2], int)
        return CHANNELS if not fixed_channel and (axis == 1 or (axis == 3 and channels_last)) else image
    if len(shape) == 5:
        return CHANNELS if axis == 1 else FEATURES
    return FEATURES if len(shape) == 3 and axis == 2 and not isinstance(shape[1], int) else length


_OPERATORS: Mapping[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def _is_expression(dim: Dim) -> bool:
    return isinstance(dim, str) and re.search(r"[+*/-]", dim) is not None and _parse(dim) is not None


def _parse(text: str) -> ast.expr | None:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError:
        return None


def _evaluate(text: str, known: Mapping[str, int]) -> int | None:
    """Compute a size such as "past + 1" from known symbols, None when a term is unknown or it is no plain arithmetic."""

    def value(node: ast.expr | None) -> int | None:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name):
            return known.get(node.id)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = value(node.left), value(node.right)
            if left is None or right is None or (isinstance(node.op, ast.FloorDiv) and right == 0):
                return None
            return _OPERATORS[type(node.op)](left, right)
        return None

    found = value(_parse(text))
    return found if found is not None and found >= 0 else None

"""Generated inputs: structured data at several scales, another batch size, and probes for faults that data hides.

A model's own input range is seldom written down, so data come centred, in 0..1 and in 0..255. Probes are apart
(kind "probe"): a fault that only zeros or huge values show must not decide how good the port is on data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from trueport.artifact import Signature, TensorSpec
from trueport.dtypes import value_dtype
from trueport.errors import UsageError
from trueport.feeds import fields
from trueport.feeds.dims import IMAGE, LENGTH, RATE_NAME, Sizes, batch_axes, channel_axis, resolve
from trueport.feeds.types import Case, Feeds

MASK_NAME = re.compile(r"mask", re.IGNORECASE)
SEGMENT_NAME = re.compile(r"token_?type|segment", re.IGNORECASE)
POSITION_NAME = re.compile(r"position", re.IGNORECASE)
LENGTH_NAME = re.compile(r"len(gth)?s?$|_len(gth)?s?\b", re.IGNORECASE)

SAMPLE_RATE = 16000
"""What speech models take where an input is called a sample rate."""
FREE_IDS = (0, 9)
"""Integers of an input whose legal range the graph does not show."""
WORDS = ("the", "film", "was", "good", "a", "bad", "story", "of", "two", "ships", "", "Été 2020!", "x" * 40)

DECISION_RUNS = 4
"""Times as many runs for a model whose outputs are labels alone: a shifted score moves few of them."""

GAINS = (1.0, 0.5, 2.0, 4.0)
"""Gain of run 0, 1, 2, 3, ... of centred data; the last reaches past ±8, into every branch of common activations."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """One input to be filled for one run. `known`: the graph shows its legal integers."""

    spec: TensorSpec
    dtype: np.dtype
    shape: tuple[int, ...]
    batch: int | None
    length: int
    ids: int = FREE_IDS[1]

    @property
    def low(self) -> int:
        """Smallest legal integer; a range with only an upper end starts at 0, as an embedding's does."""
        if self.spec.minimum is not None:
            return self.spec.minimum
        return FREE_IDS[0] if self.spec.maximum is None or self.spec.maximum >= 0 else self.spec.maximum

    @property
    def high(self) -> int:
        """Largest legal integer, or `ids` above the smallest where the graph shows no end."""
        return self.low + self.ids if self.spec.maximum is None else self.spec.maximum

    @property
    def may_be_negative(self) -> bool:
        """Whether negative integers stay within what the graph shows, and the name does not forbid them."""
        if self.dtype.kind != "i" or _named(self.spec.name) is not None:
            return False
        return self.spec.minimum < 0 if self.spec.minimum is not None else self.spec.maximum is None


Fill = Callable[[_Slot, np.random.Generator, int], np.ndarray]
"""Values of one run: slot, generator, number of the run. Cast to the slot's dtype by the caller."""


def generate(
    signature: Signature,
    *,
    seed: int,
    runs: int = 8,
    batch: int = 3,
    length: int = LENGTH,
    image: int = IMAGE,
    sizes: Mapping[str, int] | None = None,
    ids: int = FREE_IDS[1],
) -> Feeds:
    """Generate inputs for a model; the same arguments give the same bytes on every platform.

    runs: of the case "data"; the cases at other scales get half of them, at least two. A model that gives nothing but
    a few decisions (labels, flags) gets four times as many: each says little.
    batch: the other batch size, where the batch is open. length, image, sizes: see `feeds.dims.resolve`.
    ids: span of the integers of an input whose legal range the graph does not show.
    Raises UsageError for an input of unknown rank or of a dtype that cannot be generated.
    """
    if runs < 1 or batch < 1:
        raise UsageError(f"the number of runs and the batch size must be at least 1, not {runs} and {batch}")
    runs = runs * DECISION_RUNS if _gives_decisions(signature) else runs
    one = resolve(signature, batch=1, length=length, image=image, sizes=sizes)
    cases = [
        _case(signature, one, name, "data", fill, runs if name == "data" else max(2, runs // 2), seed, ids)
        for name, fill in _data_fills(signature).items()
    ]
    if batch > 1 and any(axis is not None for axis in batch_axes(signature).values()):
        many = resolve(signature, batch=batch, length=length, image=image, sizes=sizes)
        if many.shapes != one.shapes:
            cases.append(_case(signature, many, f"batch-{batch}", "batch", _centred, 2, seed, ids))
    cases += [
        _case(signature, one, f"probe-{name}", "probe", fill, count, seed, ids)
        for name, (fill, count, needed) in PROBES.items()
        if any(needed(slot) for slot in _slots(signature, one))
    ]
    samples = [_samples(case, one) for case in cases if case.kind == "data"]
    return Feeds.of(cases, origin="generated", seed=seed, count=sum(samples), notes=one.assumed)


def continued(case: Case, given: Feeds, signature: Signature, *, runs: int) -> Case:
    """More runs of the kind of a generated case, which begin with its own: what int8 is calibrated on.

    Returned as it is: a case that was not generated by `generate`, one of so many runs, one of other sizes.
    """
    fill = _data_fills(signature).get(case.name)
    if not given.origin.startswith("generated") or fill is None or case.runs >= runs:
        return case
    one = resolve(signature, batch=1, length=LENGTH, image=IMAGE)
    for ids in range(FREE_IDS[1], -1, -1):  # the source was asked what span it takes
        own = _case(signature, one, case.name, case.kind, fill, case.runs, given.seed, ids)
        if all(np.array_equal(own.inputs[name], values) for name, values in case.inputs.items()):
            return _case(signature, one, case.name, case.kind, fill, runs, given.seed, ids)
    return case


def _gives_decisions(signature: Signature) -> bool:
    dtypes = [value_dtype(spec) for spec in signature.outputs]
    few = all(spec.shape is not None and len(spec.shape) <= 2 for spec in signature.outputs)
    return bool(dtypes) and few and all(dtype is not None and dtype.kind in "iubU" for dtype in dtypes)


def _samples(case: Case, sizes: Sizes) -> int:
    for name, axis in sizes.axes.items():
        if axis is not None:
            return case.runs * sizes.shapes[name][axis]
    return case.runs


def has_free_integers(signature: Signature) -> bool:
    """Tell whether some input takes integers of whose legal range neither the graph nor the input's name says anything."""
    return any(
        (dtype := value_dtype(spec)) is not None
        and dtype.kind in "iu"
        and spec.maximum is None
        and _named(spec.name) is None
        for spec in signature.inputs
    )


def _slots(signature: Signature, sizes: Sizes, ids: int = FREE_IDS[1]) -> list[_Slot]:
    lengths = [shape[1] for shape in sizes.shapes.values() if len(shape) >= 2]
    found = []
    for spec in signature.inputs:
        dtype = value_dtype(spec)
        if dtype is None:
            raise UsageError(
                f"input {spec.name} has dtype {spec.dtype}, which cannot be generated; give it with --inputs"
            )
        shape = sizes.shapes[spec.name]
        found.append(_Slot(spec, dtype, shape, sizes.axes[spec.name], max(lengths, default=1), ids))
    return found


def _case(signature: Signature, sizes: Sizes, name: str, kind: str, fill: Fill, runs: int, seed: int, ids: int) -> Case:
    """Fill every input of one case. Each input of each case has a stream of its own, so that adding one changes no other."""
    inputs = {}
    for number, slot in enumerate(_slots(signature, sizes, ids)):
        rng = np.random.Generator(np.random.PCG64([seed, number, *name.encode()]))
        values = [_legal(slot, fill(slot, rng, run)) for run in range(runs)]
        inputs[slot.spec.name] = np.stack(values)
    return Case(name=name, kind=kind, inputs=inputs)


def _legal(slot: _Slot, values: np.ndarray) -> np.ndarray:
    """Cast to the slot's dtype; a shown range, a quantised tensor's range and the dtype's own are never left."""
    if slot.dtype.kind in "iu":
        info = np.iinfo(slot.dtype)
        low = info.min if slot.spec.minimum is None else max(info.min, slot.spec.minimum)
        high = min(info.max if slot.spec.maximum is None else min(info.max, slot.spec.maximum), np.iinfo(np.int64).max)
        if slot.spec.maximum is not None and slot.spec.minimum is None:
            low = slot.low
        whole: np.ndarray = (values if values.dtype.kind in "biu" else np.rint(values)).astype(np.int64)
        bounded: np.ndarray = np.clip(whole, low, high).astype(slot.dtype)
        return bounded
    if slot.dtype.kind == "f":
        bounds = _quantised_range(slot.spec)
        return (values if bounds is None else np.clip(values, *bounds)).astype(slot.dtype)
    return np.asarray(values).astype(slot.dtype)


def _quantised_range(spec: TensorSpec) -> tuple[float, float] | None:
    """Smallest and largest real value that a quantised input can hold, where it has one scale."""
    facts = spec.quantization or {}
    scale = np.asarray(facts.get("scale", 0.0), dtype=np.float64).ravel()
    if scale.size != 1 or not scale[0] > 0:
        return None
    zero = float(np.asarray(facts.get("zero_point", 0)).ravel()[0])
    try:
        info = np.iinfo(str(facts.get("dtype", "int8")))
    except (TypeError, ValueError):
        return None
    return (info.min - zero) * float(scale[0]), (info.max - zero) * float(scale[0])


# Data


def _data_fills(signature: Signature) -> dict[str, Fill]:
    """The data cases: three scales for pictures, two for other numbers, one where all is integers or the range is known."""
    floats = [spec for spec in signature.inputs if (dtype := value_dtype(spec)) is not None and dtype.kind in "fc"]
    if not floats:
        return {"data": _centred}
    if all(_quantised_range(spec) for spec in floats):
        return {"data": _representable}
    pictures = any(len(spec.shape or ()) >= 3 and channel_axis(spec.shape or ()) is not None for spec in floats)
    return {"data": _centred, "data-unit": _unit} | ({"data-wide": _wide} if pictures else {})


def _named(name: str) -> str | None:
    """What an input's name says about its integers, None where it says nothing."""
    table = (
        ("mask", MASK_NAME),
        ("segment", SEGMENT_NAME),
        ("position", POSITION_NAME),
        ("rate", RATE_NAME),
        ("length", LENGTH_NAME),
    )
    last = name.split(":")[0].split("/")[-1]
    return next((kind for kind, pattern in table if pattern.search(last)), None)


def _discrete(slot: _Slot, rng: np.random.Generator, run: int) -> np.ndarray:
    """Values of a boolean, integer or text input."""
    meaning = _named(slot.spec.name)
    shape = slot.shape
    if slot.dtype.kind == "U":
        return np.array(WORDS)[rng.integers(0, len(WORDS), size=shape)]
    if meaning == "mask":
        return fields.prefix(rng, shape)
    if slot.dtype.kind == "b":
        return rng.random(shape) < 0.5
    if meaning == "segment":
        return ~fields.prefix(rng, shape)
    if meaning == "position" and shape:
        return np.broadcast_to(np.arange(shape[-1]), shape)
    if meaning == "rate":
        return np.full(shape, SAMPLE_RATE)
    if meaning == "length" and slot.spec.maximum is None:
        return rng.integers(max(1, slot.length // 2), slot.length, size=shape, endpoint=True)
    if slot.dtype == np.uint8 and slot.spec.maximum is None and len(shape) >= 3:
        return _wide(replace(slot, dtype=np.dtype(np.float32)), rng, run)
    return fields.skewed(rng, shape, slot.low, slot.high)


def _field(slot: _Slot, rng: np.random.Generator) -> np.ndarray:
    """Structured values in 0..1: a smooth field where the tensor has room for one, else independent numbers."""
    channel = channel_axis(slot.shape) if len(slot.shape) >= 3 else None
    axes = fields.smooth_axes(slot.shape, slot.batch if slot.batch is not None else 0, channel)
    rank = len(slot.shape)
    if not axes or (rank <= 2 and slot.shape[axes[-1]] < 64):  # a short vector is a row of unrelated features
        return rng.random(slot.shape)
    return fields.field(rng, slot.shape, axes)


def _is_structured(slot: _Slot) -> bool:
    return len(slot.shape) >= 3 or (len(slot.shape) == 2 and slot.shape[-1] >= 64)


def _centred(slot: _Slot, rng: np.random.Generator, run: int) -> np.ndarray:
    if slot.dtype.kind not in "fc":
        return _discrete(slot, rng, run)
    values = (_field(slot, rng) - 0.5) * 4 if _is_structured(slot) else fields.normal(rng, slot.shape)
    values = values * GAINS[run % len(GAINS)]
    return values + 1j * fields.normal(rng, slot.shape) if slot.dtype.kind == "c" else values


def _unit(slot: _Slot, rng: np.random.Generator, run: int) -> np.ndarray:
    return _field(slot, rng) if slot.dtype.kind in "fc" else _discrete(slot, rng, run)


def _wide(slot: _Slot, rng: np.random.Generator, run: int) -> np.ndarray:
    return np.rint(_field(slot, rng) * 255) if slot.dtype.kind in "fc" else _discrete(slot, rng, run)


def _representable(slot: _Slot, rng: np.random.Generator, run: int) -> np.ndarray:
    bounds = _quantised_range(slot.spec)
    if bounds is None:
        return _centred(slot, rng, run)
    return bounds[0] + _field(slot, rng) * (bounds[1] - bounds[0])


# Probes


def _zeros(slot: _Slot, rng: np.random.Generator, run: int) -> np.ndarray:
    if slot.dtype.kind in "iub":
        return _constant_ids(slot, rng, run) if _named(slot.spec.name) or slot.low > 0 else np.zeros(slot.shape)
    return np.zeros(slot.shape) if slot.dtype.kind in "fc" else _discrete(slot, rng, run)


def _large(slot: _Slot, rng: np.random.Generator, run: int) -> np.ndarray:
    """Run 0: structured, ±1000; run 1: independent, ±200, where naive exp and log overflow; integers: both ends of the range."""
    if slot.dtype.kind in "fc":
        return (_field(slot, rng) - 0.5) * 2000 if run == 0 else (rng.random(slot.shape) - 0.5) * 400
    if slot.dtype.kind in "iu" and slot.spec.maximum is not None and _named(slot.spec.name) is None:
        return np.where(rng.random(slot.shape) < 0.5, slot.low, slot.high)
    return _discrete(slot, rng, run)


def _negative(slot: _Slot, rng: np.random.Generator, run: int) -> np.ndarray:
    """Strictly below zero everywhere, from -0.25 to -8 (a padded maximum shows its zeros here)."""
    return -(0.25 + _field(slot, rng) * 7.75) if slot.dtype.kind in "fc" else _discrete(slot, rng, run)


def _constant(slot: _Slot, rng: np.random.Generator, run: int) -> np.ndarray:
    return np.full(slot.shape, 0.75) if slot.dtype.kind in "fc" else _constant_ids(slot, rng, run)


def _constant_ids(slot: _Slot, rng: np.random.Generator, run: int) -> np.ndarray:
    """One legal value everywhere: duplicate indices, a mask that hides nothing."""
    if slot.dtype.kind == "b":
        return np.ones(slot.shape, dtype=bool)
    if slot.dtype.kind == "U" or _named(slot.spec.name) in ("position", "rate", "length"):
        return _discrete(slot, rng, run)
    return np.full(slot.shape, min(max(1, slot.low), slot.high))


def _spike(slot: _Slot, rng: np.random.Generator, run: int) -> np.ndarray:
    """Zero but for one element of 100: a squared maximum that swallows an epsilon shows here."""
    if slot.dtype.kind not in "fc":
        return _discrete(slot, rng, run)
    values = np.zeros(slot.shape)
    if values.size:
        values.flat[int(rng.integers(values.size))] = 100.0
    return values


def _negative_integers(slot: _Slot, rng: np.random.Generator, run: int) -> np.ndarray:
    """Run 0: ..., -2, -1, 0, 1, ... around zero in order; run 1: at random (signed shift, floor division, modulo)."""
    if not slot.may_be_negative:
        return _centred(slot, rng, run)
    size = int(np.prod(slot.shape, dtype=np.int64))
    if run == 0:
        return ((np.arange(size) % 15) - min(7, max(1, size // 2))).reshape(slot.shape)
    return rng.integers(-9, 9, size=slot.shape, endpoint=True)


def _masked(slot: _Slot, rng: np.random.Generator, run: int) -> np.ndarray:
    """Run 0: a mask that hides everything, as of a fully padded row; run 1: one padded on the left, whose first
    positions a causal model leaves with nothing to look at."""
    if not _is_mask(slot):
        return _centred(slot, rng, run)
    valid = fields.prefix(rng, slot.shape)
    return np.zeros(slot.shape) if run == 0 or not slot.shape else np.flip(valid, axis=-1)


def _is_mask(slot: _Slot) -> bool:
    return slot.dtype.kind in "biu" and _named(slot.spec.name) == "mask"


def _duplicates(slot: _Slot, rng: np.random.Generator, run: int) -> np.ndarray:
    """Every index twice or more often: 0, 0, 1, 1, 0, 0, ... in run 0, all 0 but the last in run 1."""
    if not slot.may_be_negative:
        return _centred(slot, rng, run)
    place = np.arange(int(np.prod(slot.shape, dtype=np.int64)))
    return (place // 2 % 2 if run == 0 else place == place.size - 1).reshape(slot.shape)


def _negative_indices(slot: _Slot, rng: np.random.Generator, run: int) -> np.ndarray:
    """-1 among small indices, which counts from the end. A case of its own, because many a model refuses it."""
    if not slot.may_be_negative:
        return _centred(slot, rng, run)
    place = np.arange(int(np.prod(slot.shape, dtype=np.int64)))
    values: np.ndarray = place // 2 % 2 - (place % 3 == 0)
    return values.reshape(slot.shape)


def _large_integers(slot: _Slot, rng: np.random.Generator, run: int) -> np.ndarray:
    """Up to 1000, far from the small integers of the data: still harmless where an integer is a size."""
    if not slot.may_be_negative:
        return _centred(slot, rng, run)
    return rng.integers(0, min(1000, np.iinfo(slot.dtype).max), size=slot.shape, endpoint=True)


PROBES: Mapping[str, tuple[Fill, int, Callable[[_Slot], bool]]] = {
    "zeros": (_zeros, 1, lambda slot: slot.dtype.kind in "fciu"),
    "large": (_large, 2, lambda slot: slot.dtype.kind in "fc" or slot.spec.maximum is not None),
    "negative": (_negative, 2, lambda slot: slot.dtype.kind in "fc"),
    "constant": (_constant, 1, lambda slot: slot.dtype.kind in "fciub"),
    "spike": (_spike, 1, lambda slot: slot.dtype.kind in "fc"),
    "negative-integers": (_negative_integers, 2, lambda slot: slot.may_be_negative),
    "large-integers": (_large_integers, 2, lambda slot: slot.may_be_negative),
    "masked": (_masked, 2, _is_mask),
    "duplicates": (_duplicates, 2, lambda slot: slot.may_be_negative and len(slot.shape) >= 1),
    "negative-indices": (_negative_indices, 1, lambda slot: slot.may_be_negative and len(slot.shape) >= 1),
}
"""Name -> (values, runs, whether an input calls for it)."""

"""Inputs and outputs of a Core ML model as its source has them: names that Core ML takes, types, open axes with bounds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trueport.frameworks._base import ConvertContext, ConvertReply, InvalidOutput, SignatureDict, SpecDict, Unsupported

Sizes = Mapping[str, Sequence[int]]
"""Input of the source -> its axes that are open."""
_TYPES = {
    "float16": np.float16,
    "float32": np.float32,
    "float64": np.float32,
    "int64": np.int32,
    "int32": np.int32,
    "int16": np.int32,
    "uint8": np.int32,
    "int8": np.int32,
}
"""Type of the source's input or output -> the one that Core ML has for it."""


class Interface(NamedTuple):
    """Inputs and outputs in order: the source's name -> a name that Core ML takes.

    written: the source's name of an output -> the name under which coremltools writes it, where it cannot be told.
    """

    inputs: dict[str, str]
    outputs: dict[str, str]
    written: dict[str, str]

    @classmethod
    def of(cls, signature: SignatureDict) -> Interface:
        """Names for both sides, each used once."""
        used: set[str] = set()
        inputs = {spec["name"]: _safe(spec["name"], used) for spec in signature["inputs"]}
        outputs = {spec["name"]: _safe(spec["name"], used) for spec in signature["outputs"]}
        return cls(inputs, outputs, {})

    def output_types(self, context: ConvertContext) -> list[Any]:
        """What `coremltools.convert` takes as outputs: names and types, in order."""
        import coremltools

        specs = context["signature"]["outputs"]
        return [coremltools.TensorType(name=self.outputs[spec["name"]], dtype=dtype_of(spec)) for spec in specs]


def _safe(name: str, used: set[str]) -> str:
    plain = re.sub(r"[^A-Za-z0-9_]", "_", name)
    plain = plain if re.match(r"[A-Za-z]", plain) else f"x{plain}"  # TensorFlow takes no underscore in front
    fresh, count = plain, 0
    while fresh in used:
        count += 1
        fresh = f"{plain}_{count}"
    used.add(fresh)
    return fresh


def dtype_of(spec: SpecDict) -> Any:
    """NumPy's type of an input or output in Core ML; None (coremltools decides) for outputs of other types."""
    return _TYPES.get(spec["dtype"])


def open_axes(signature: SignatureDict) -> dict[str, tuple[int, ...]]:
    """Which axes of each input have no fixed size."""
    return {
        spec["name"]: tuple(axis for axis, size in enumerate(spec["shape"] or []) if not isinstance(size, int))
        for spec in signature["inputs"]
    }


def tensor_type(name: str, spec: SpecDict, context: ConvertContext, open_ones: Sizes, largest: int) -> Any:
    """One input for `coremltools.convert`: sizes of the example, a range for those that are open."""
    import coremltools

    dtype = dtype_of(spec)
    if dtype is None:
        raise Unsupported(f"input '{spec['name']}' is {spec['dtype']}; Core ML takes floats and 32-bit integers")
    shape: list[Any] = [int(size) for size in context["example"][spec["name"]].shape]
    if not shape:
        raise Unsupported(f"input '{spec['name']}' is a single number; Core ML takes arrays of at least one axis")
    for axis in open_ones.get(spec["name"], ()):
        shape[axis] = coremltools.RangeDim(1, max(largest, shape[axis]), default=shape[axis])
    return coremltools.TensorType(name=name, shape=tuple(shape), dtype=dtype)


_MISSING = (
    "convert function for op",
    "Conversion for TF op",
    "not implemented",
    "not supported",
    "Unsupported",
    "doesn't support",
    "does not support",
)


def refused(error: BaseException) -> BaseException:
    """An exception of coremltools in our terms: what it does not convert is Unsupported; others stay as they are."""
    text = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if isinstance(error, Unsupported):
        return error
    if isinstance(error, NotImplementedError) or any(word in str(error) for word in _MISSING):
        return Unsupported(f"coremltools: {text[:300]}")
    return error


def finish(model: Any, interface: Interface, out: str, notes: list[str]) -> ConvertReply:
    """Give the model the source's names and write it. Raises InvalidOutput when inputs or outputs are missing."""
    import coremltools

    spec = model.get_spec()
    renamed: dict[str, str] = {}
    for side, wanted in ((spec.description.input, interface.inputs), (spec.description.output, interface.outputs)):
        made = [item.name for item in side]
        if len(made) != len(wanted):
            raise InvalidOutput(f"the source has {', '.join(wanted)}; coremltools wrote {', '.join(made) or 'nothing'}")
        places = dict(zip(wanted, made))
        if wanted is interface.outputs and interface.written:
            places = {name: now for name, now in interface.written.items() if now in made}
            if len(places) != len(made):
                raise InvalidOutput(f"the outputs {', '.join(made)} of coremltools cannot be told apart")
        for name, safe in wanted.items():
            final = _rename(spec, places[name], safe)
            if final != name:
                renamed[name] = final
    kept = coremltools.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)
    place = Path(out)
    if place.suffix == ".mlmodel" or spec.WhichOneof("Type") == "mlProgram":
        kept.save(str(place))
    else:
        package = place if place.suffix == ".mlpackage" else place.with_suffix(".mlpackage")
        kept.save(str(package))
        if package != place:
            package.rename(place)
    return ConvertReply(notes=notes, names=renamed)


def _rename(spec: Any, now: str, wanted: str) -> str:
    """Call an input or output `wanted` where nothing else has that name and Core ML takes it; returns its name."""
    import coremltools

    if now == wanted or wanted in names_of(spec):
        return now
    try:
        coremltools.utils.rename_feature(spec, now, wanted)
    except ValueError:  # a reserved word
        return now
    return wanted


def names_of(spec: Any) -> set[str]:
    """All names of values in a model."""
    found = {item.name for item in [*spec.description.input, *spec.description.output]}
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            found |= {output.name for operation in block.operations for output in operation.outputs}
    network = getattr(spec, spec.WhichOneof("Type"))
    for layer in getattr(network, "layers", ()):
        found.update(layer.output)
    return found

"""Core ML models (`.mlpackage`, `.mlmodel`): recognise, describe, evaluate on any system, trace every value, replay.

ML programs and neural networks are evaluated operation by operation with their documented semantics, with PyTorch's CPU
kernels. On macOS the variant "native" runs the same model in Core ML itself. Node and value names are the program's own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trueport.frameworks import _coreml_edit
from trueport.frameworks._base import Arrays, EditDict, Emit, GraphDict, RunResult, SignatureDict, Unsupported

if TYPE_CHECKING:
    from trueport.frameworks._coreml_file import Opened
    from trueport.frameworks._coreml_program import Evaluator

NAME = "coreml"
FORMATS = {"coreml": "coreml"}
SUFFIXES = {"coreml": ".mlpackage"}
VARIANTS = (
    "default",
    "float32",
    "plain-kernels",
    "single-thread",
    *(("native",) if sys.platform == "darwin" else ()),
)
"""default: a value that the program declares float16 is rounded to it after every operation; float32: nothing is rounded
between operations; plain-kernels: without oneDNN; single-thread: default on one thread; native: Core ML itself, on macOS."""
PRECISIONS = ("float32", "float64", "float16")

EDITS = _coreml_edit.EDITS
EDIT_FILES = _coreml_edit.EDIT_FILES


def sniff(head: bytes, path: Path) -> str | None:
    """Recognise a package by its manifest, and a file by its suffix and the version number that it begins with."""
    if path.is_dir():
        manifest = path / "Manifest.json"
        try:
            text = manifest.read_bytes()[:65536]
        except OSError:
            return None
        return "coreml" if b"rootModelIdentifier" in text and b"com.apple.CoreML" in text else None
    return "coreml" if path.suffix.lower() == ".mlmodel" and head[:1] == b"\x08" else None


def signature(path: str, *, trust: bool) -> SignatureDict:
    """Describe inputs, outputs and what the file says about itself. Raises BadModel, Unsupported."""
    one = _open(path)
    return {"inputs": list(one.inputs), "outputs": list(one.outputs), "meta": dict(one.meta)}


def _open(path: str) -> Opened:
    from trueport.frameworks._coreml_file import opened

    return opened(path)


# -- running


def run(path: str, cases: Mapping[str, Arrays], *, precision: str, variant: str, trust: bool) -> dict[str, RunResult]:
    """Run every case, R calls each, from states of zeros.

    Raises ValueError when an input is missing, unknown, or of a shape or type that the model does not take; Unsupported
    for operators without a kernel, naming all of them, and for the variant "native" outside of macOS.
    """
    if precision not in PRECISIONS:
        raise Unsupported(f"Core ML models are evaluated in {', '.join(PRECISIONS)}; not in {precision}")
    one = _open(path)
    if variant == "native":
        from trueport.frameworks._coreml_native import run_case

        return {name: run_case(one, arrays, precision) for name, arrays in cases.items()}
    _known(variant)
    names = [item["name"] for item in one.outputs]
    evaluator = _evaluator(one, names, (), precision, variant)
    results = {}
    with _kernels(variant):
        for case, arrays in cases.items():
            found: dict[str, list[np.ndarray]] = {name: [] for name in names}
            for inputs in _rows(one, arrays):
                evaluator.run(inputs, emit=_into(found))
            results[case] = {name: _stack(_declared(one, name, found[name], precision)) for name in names}
    return results


def _into(held: dict[str, list[np.ndarray]]) -> Emit:
    """An `emit` that collects the values of every run by name."""

    def emit(name: str, value: np.ndarray) -> None:
        held[name].append(value)

    return emit


def _known(variant: str) -> None:
    if variant not in ("", *VARIANTS):
        raise ValueError(f"there is no variant '{variant}'; known are {', '.join((*VARIANTS, 'native'))}")


def _evaluator(one: Opened, wanted: Sequence[str], given: Sequence[str], precision: str, variant: str) -> Evaluator:
    from trueport.frameworks._coreml_program import Evaluator

    return Evaluator(
        one.program, one.kernels, wanted=wanted, given=given, precision=precision, rounding=variant != "float32"
    )


class _kernels:
    """The kernels of a variant, for the time of a `with` block."""

    def __init__(self, variant: str) -> None:
        self.variant = variant

    def __enter__(self) -> None:
        import torch

        self.threads, self.fast = torch.get_num_threads(), torch.backends.mkldnn.is_available()
        if self.variant == "single-thread":
            torch.set_num_threads(1)
        if self.variant == "plain-kernels":
            torch._C._set_mkldnn_enabled(False)

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_num_threads(self.threads)
        if self.variant == "plain-kernels":
            torch._C._set_mkldnn_enabled(self.fast)


def _declared(one: Opened, name: str, values: list[np.ndarray], precision: str) -> list[np.ndarray]:
    """Outputs in the type that the model declares, except for floats in another arithmetic than float32."""
    dtype = next(item["dtype"] for item in one.outputs if item["name"] == name)
    if precision == "float64" and dtype.startswith("float"):
        return values
    return [value.astype(dtype, copy=False) for value in values]


def _stack(values: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
    return np.stack(values) if len({value.shape for value in values}) == 1 else values


def _rows(one: Opened, arrays: Arrays, needed: Sequence[str] | None = None) -> Iterator[dict[str, np.ndarray]]:
    """Yield the inputs run by run. Raises ValueError with one sentence. `needed`: names that must be there (default all)."""
    from trueport.frameworks._coreml_file import check_shape

    label, kinds = Path(one.path).name, {item["name"]: item["dtype"] for item in one.inputs}
    required = list(kinds) if needed is None else needed
    unknown, missing = sorted(set(arrays) - set(kinds)), [name for name in required if name not in arrays]
    if unknown or missing:
        problem = f"has no input '{unknown[0]}'" if unknown else f"needs a value for its input '{missing[0]}'"
        raise ValueError(f"{label} {problem}; its inputs are {', '.join(kinds) or 'none'}")
    counts = {len(array) for array in arrays.values()} or {1}
    if len(counts) > 1:
        raise ValueError(f"the inputs of {label} hold different numbers of runs: {sorted(counts)}")
    for name, array in arrays.items():
        check_shape(one, name, array.shape[1:])
    for number in range(counts.pop()):
        yield {name: _taken(name, array[number], kinds[name]) for name, array in arrays.items()}


def _taken(name: str, value: np.ndarray, dtype: str) -> np.ndarray:
    """One run's value in the type of the input. Raises ValueError when integers would change."""
    value = np.asarray(value)
    if value.dtype == dtype or (dtype.startswith("float") and value.dtype.kind in "fiub"):
        return value
    if dtype == "str" or value.dtype.kind not in "fiub":
        raise ValueError(f"input '{name}' is {dtype}, and {value.dtype} was given")
    cast = value.astype(dtype)
    if value.dtype.kind == "f" or not np.array_equal(cast, value):
        raise ValueError(f"input '{name}' is {dtype}, and the {value.dtype} values given do not fit it")
    return cast


# -- looking inside


def names(path: str, *, trust: bool) -> list[str]:
    """Names of all tensors that the operations outside of nested blocks write, in execution order, outputs included."""
    return _traceable(_open(path))


def _traceable(one: Opened) -> list[str]:
    opaque = ("list", "state", "tuple", "dict", "str")
    return [
        name
        for operation in one.program.block.operations
        for name, declared in zip(operation.outputs, operation.types)
        if declared.dtype not in opaque
    ]


def trace(path: str, inputs: Arrays, wanted: Sequence[str], emit: Emit, *, budget: int, trust: bool) -> dict[str, Any]:
    """Run R calls and emit each wanted value [R, *shape], holding at most `budget` bytes of them (one value at least).

    Values whose shape differs between runs are listed under "uneven" in the result, and not emitted.
    """
    one = _open(path)
    return {"uneven": _emit_runs(one, list(_rows(one, inputs)), None, wanted, emit, "default", budget, None)}


def replay(
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
    """Run R calls in which consumers read `given` [R, *shape]; see `Framework.replay`.

    An operation that cannot take what it is given spoils only what depends on it: "skipped" in the result says why.
    """
    one = _open(path)
    if variant == "native":
        raise Unsupported("Core ML itself gives only outputs, and takes no values inside a model")
    _known(variant)
    skipped: dict[str, str] = {}
    counts = {len(array) for array in (*inputs.values(), *given.values())} or {1}
    if len(counts) > 1:
        raise ValueError(f"the values given to {Path(path).name} hold different numbers of runs: {sorted(counts)}")
    fed = {name: array for name, array in inputs.items() if name not in given}
    rows = list(_rows(one, fed, needed=())) if fed else [{} for _ in range(counts.pop())]
    uneven = _emit_runs(one, rows, given, wanted, emit, variant or "default", budget, skipped)
    skipped.update(dict.fromkeys(uneven, "its shape differs between runs"))
    return {"skipped": skipped}


def _emit_runs(
    one: Opened,
    rows: list[dict[str, np.ndarray]],
    given: Arrays | None,
    wanted: Sequence[str],
    emit: Emit,
    variant: str,
    budget: int,
    skipped: dict[str, str] | None,
) -> list[str]:
    """Emit values stacked over the runs, as many at a time as `budget` bytes hold; sizes are those of the first run.

    Returns the names whose shape differs between runs.
    """
    from trueport.frameworks._coreml_file import require

    given = given or {}
    require(one, (*wanted, *given))
    left, uneven = list(dict.fromkeys(wanted)), []
    with _kernels(variant):
        while left and rows:
            group, first = _window(one, rows, given, left, variant, budget, skipped)
            left = [name for name in left if name not in group and name not in (skipped or {})]
            evaluator = _evaluator(one, group, tuple(given), "float32", variant)
            held: dict[str, list[np.ndarray]] = {name: [value] for name, value in first.items()}
            for number in range(1, len(rows)):
                evaluator.run(
                    rows[number],
                    {name: array[number] for name, array in given.items()},
                    emit=_into(held),
                    skipped=skipped,
                )
            for name in group:
                values = held.pop(name)
                if len(values) < len(rows):
                    continue
                stacked = _stack(values)
                if isinstance(stacked, list):
                    uneven.append(name)
                else:
                    emit(name, stacked)
    return uneven


def _window(
    one: Opened,
    rows: list[dict[str, np.ndarray]],
    given: Arrays,
    left: list[str],
    variant: str,
    budget: int,
    skipped: dict[str, str] | None,
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Run the first call; keep of the values as many as fit for all runs, one at least. Returns their names and values."""
    kept: dict[str, np.ndarray] = {}
    used = 0

    def keep(name: str, value: np.ndarray) -> None:
        nonlocal used
        used += value.nbytes * len(rows)
        if not kept or used <= budget:
            kept[name] = np.array(value)

    evaluator = _evaluator(one, left, tuple(given), "float32", variant)
    evaluator.run(rows[0], {name: array[0] for name, array in given.items()}, emit=keep, skipped=skipped)
    return [name for name in left if name in kept], kept


def graph(path: str, *, trust: bool) -> GraphDict:
    """The operations of the program. Compressed weights are shown as what they unpack to."""
    from trueport.frameworks import _coreml_view

    return _coreml_view.graph(_open(path).program)


def parameters(path: str, emit: Emit, *, trust: bool) -> dict[str, Any]:
    """Emit every stored tensor that `graph` lists; compressed ones unpacked."""
    from trueport.frameworks import _coreml_view

    program = _open(path).program
    unreadable = []
    for name, facts in _coreml_view.graph(program)["constants"].items():
        if facts["dtype"] == "str":
            unreadable.append(name)
        else:
            emit(name, np.array(program.constants[name].load()))
    return {"unreadable": unreadable}


def edit(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str, *, trust: bool) -> dict[str, Any]:
    """Write a copy of the model with the edits applied. Raises Unsupported, with the reason."""
    return _coreml_edit.apply(path, edits, arrays, out)

"""What the tests of the MIL evaluator ask inside a worker: one operator on given values, coremltools' own inference, PyTorch."""

from __future__ import annotations

import functools

import numpy as np


def _stored(value):
    if value is None:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, np.ndarray):
        return value.copy()  # coremltools writes into what it is given
    array = np.asarray(value)
    return array.astype({"f": np.float32, "i": np.int32}.get(array.dtype.kind, array.dtype))


def _constant(value):
    from trueport.frameworks._coreml_program import Constant

    held = _stored(value)
    if isinstance(held, str):
        return Constant("str", (), lambda: held)
    return Constant(held.dtype.name, held.shape, lambda: held)


def operator(kind, inputs, types, emit, precision="float32", rounding=True, lists=(), opset=""):
    """Evaluate one operator whose arguments are all stored; emits its results as "0", "1", ... A list of arrays is given as
    a list for the arguments named in `lists`. types: [dtype or [dtype, shape]] of each result."""
    from trueport.frameworks._coreml_program import Block, Operation, Program, Type, evaluate
    from trueport.frameworks._mil_kernels import KERNELS

    constants, bound = {}, {}
    for argument, value in inputs.items():
        items = value if argument in lists else [value]
        bound[argument] = [f"{argument}.{place}" for place in range(len(items))]
        constants.update({name: _constant(item) for name, item in zip(bound[argument], items, strict=True)})
    declared = [Type(item) if isinstance(item, str) else Type(item[0], tuple(item[1])) for item in types]
    names = [str(place) for place in range(len(declared))]
    step = Operation(names[0], kind, bound, names, declared)
    program = Program(
        {}, dict(zip(names, declared, strict=True)), constants, Block([], names, [step]), meta={"opset": opset}
    )
    evaluate(program, KERNELS, {}, wanted=names, emit=emit, precision=precision, rounding=rounding)


@functools.lru_cache(maxsize=1)
def _builder():
    import logging

    logging.disable(logging.WARNING)
    import coremltools  # noqa: F401
    from coremltools.converters.mil.mil import Builder, Function

    return Builder, Function


def inferred(kind, inputs, target, emit, lists=()):
    """What coremltools itself folds the operator to when all arguments are known; emits "0", "1", ... as operator does.

    Returns the dtypes of the results, none when it does not infer values.
    """
    import coremltools

    builder, function = _builder()
    arguments = {
        name: [_stored(item) for item in value] if name in lists else _stored(value) for name, value in inputs.items()
    }
    arguments = {
        name: value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
        for name, value in arguments.items()
    }
    with function({}, opset_version=getattr(coremltools.target, target)):
        made = getattr(builder, kind)(**arguments)
        results = list(made) if isinstance(made, (list, tuple)) else [made]
        values = [item.val for item in results]
    if any(value is None for value in values):
        return []
    for place, value in enumerate(values):
        emit(str(place), np.asarray(value))
    return [np.asarray(value).dtype.name for value in values]


def torch_function(name, arguments, settings, emit):
    """Emit what a function of PyTorch (a dotted name) gives of arrays and settings."""
    import torch

    target = torch
    for part in name.split("."):
        target = getattr(target, part)
    with torch.no_grad():
        made = target(*[torch.from_numpy(np.ascontiguousarray(item)) for item in arguments], **settings)
    for place, value in enumerate(made if isinstance(made, tuple) else (made,)):
        emit(str(place), value.numpy())


def unpacked(kind, inputs, types, emit):
    """Unpack compressed weights; emits "0", "1"."""
    from trueport.frameworks import _mil_constexpr
    from trueport.frameworks._coreml_program import Operation, Type

    constants = {f"w.{name}": _constant(value) for name, value in inputs.items()}
    bound = {name: [f"w.{name}"] for name in inputs}
    step = Operation("w", kind, bound, [str(place) for place in range(len(types))], [Type(item) for item in types])
    for place, value in enumerate(_mil_constexpr.unpack(step, constants)):
        emit(str(place), value)
    return _mil_constexpr.describe(step, constants)


def materialised(kind, target, inputs, emit):
    """What coremltools' own `decompress` of the operator gives; emits "0", "1"."""
    import coremltools  # noqa: F401
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    versions = SSAOpRegistry.core_ops[kind]
    chosen = next(value for key, value in versions.items() if key.name == target)
    made = chosen.decompress(**{name: _stored(value) for name, value in inputs.items()})
    for place, value in enumerate(made if isinstance(made, tuple) else (made,)):
        emit(str(place), np.asarray(value))

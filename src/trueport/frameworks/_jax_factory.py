"""A JAX function that exists only as code: call `package.module:factory`, and export what it returns to a file.

The factory returns `(function, example arguments)`, or the function alone when inputs are given. The first axis of
every argument stays open where JAX can trace the function with a size that it does not know, and all share one; else
the sizes are those of the example. Weights are what the function closes over.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks._base import BadModel, Unsupported, Untrusted


def materialise(
    factory: str, checkpoint: str | None, example: Any, out: str, paths: Sequence[str], *, trust: bool
) -> list[str]:
    """Write the factory's function at `out`; return what could not be had. Raises Untrusted, BadModel, Unsupported.

    example: {} or None, a list of arrays in call order, or {parameter: array}; one run each, batch included.
    """
    if not trust:
        raise Untrusted(f"{factory} is Python code that would run; give --trust if it is yours")
    if checkpoint is not None:
        raise BadModel(f"{factory}: a JAX factory loads its weights itself; leave out --checkpoint")
    function, given = _call(factory, paths)
    args, kwargs = _arguments(example, given, factory)
    data, notes = _export(function, args, kwargs, factory)
    partial = Path(out).with_name(f".{Path(out).name}.partial")
    partial.write_bytes(data)
    partial.replace(out)
    return notes


def _call(factory: str, paths: Sequence[str]) -> tuple[Any, Any]:
    name, _, attribute = factory.partition(":")
    for folder in paths:
        if folder not in sys.path:
            sys.path.append(folder)
    try:
        made = getattr(importlib.import_module(name), attribute)()
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise BadModel(f"{factory}: there is no module '{name}' on the given paths") from error
        raise BadModel(f"{factory}: it needs the package '{error.name}', which this environment lacks") from error
    except AttributeError as error:
        raise BadModel(f"{factory}: {error}") from error
    function, given = made if isinstance(made, tuple) and len(made) == 2 else (made, ())
    if not callable(function):
        raise BadModel(
            f"{factory} returned {type(function).__name__}; it must return a function, or (function, arguments)"
        )
    return function, given


def _arguments(example: Any, given: Any, factory: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping) and example:
        return (), {name: np.asarray(array) for name, array in example.items()}
    if example:
        return tuple(np.asarray(array) for array in example), {}
    if isinstance(given, Mapping) and given:
        return (), dict(given)
    args = tuple(given) if isinstance(given, (list, tuple)) else (given,)
    if not args:
        raise BadModel(f"{factory} gives no example arguments: let it return (function, arguments), or give --inputs")
    return args, {}


def _export(function: Any, args: Any, kwargs: Any, factory: str) -> tuple[bytes, list[str]]:
    import jax
    from jax import export

    compiled = function if hasattr(function, "lower") else jax.jit(function)
    leaves, structure = jax.tree_util.tree_flatten((args, kwargs))
    leaves = [np.asarray(leaf) if not hasattr(leaf, "dtype") else leaf for leaf in leaves]
    sizes = {leaf.shape[0] for leaf in leaves if leaf.ndim}
    problem = "the arguments share no first axis"
    if len(sizes) == 1 and all(leaf.ndim for leaf in leaves):
        (batch,) = export.symbolic_shape("batch")
        try:
            return _written(compiled, structure, leaves, batch), []
        except Exception as error:  # noqa: BLE001 -- whatever the open size breaks, fixed ones are tried
            problem = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    try:
        return _written(compiled, structure, leaves, None), [f"the batch size is fixed ({problem})"]
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise Unsupported(f"{factory}: jax.export does not take this function ({line})") from error


def _written(compiled: Any, structure: Any, leaves: Sequence[Any], batch: Any) -> bytes:
    import jax
    from jax import export

    shapes = [leaf.shape if batch is None else (batch, *leaf.shape[1:]) for leaf in leaves]
    specs = [jax.ShapeDtypeStruct(shape, leaf.dtype) for shape, leaf in zip(shapes, leaves)]
    args, kwargs = jax.tree_util.tree_unflatten(structure, specs)
    return bytes(export.export(compiled, platforms=["cpu"])(*args, **kwargs).serialize())

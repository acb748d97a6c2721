"""A model that exists only as code: call `package.module:factory`, load its weights, export it to a file.

This runs the user's code, so it needs `trust`. The module is put in eval mode and exported with a batch axis that
stays open (axis 0 of every input) when the result then really runs at other batch sizes; else with fixed sizes; and
when `torch.export` cannot take it at all, as a TorchScript trace.
"""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks._base import BadModel, SignatureDict, Unsupported, Untrusted

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts keep the weights inside a checkpoint."""


def materialise(
    factory: str,
    checkpoint: str | None,
    example: Any,
    out: str,
    paths: Sequence[str],
    trust: bool,
) -> SignatureDict:
    """Write the factory's model at `out` (or beside it as `.pt`; `meta["path"]` says) and return its signature.

    factory: "package.module:name"; it returns an `nn.Module` or `(nn.Module, example arguments)`.
    example: {} or None, a list of arrays in call order, or {input name: array}; one run each, batch included.
    `meta["notes"]` tells what could not be had. Raises Untrusted, BadModel, Unsupported.
    """
    from trueport.frameworks import torch as contract

    if not trust:
        raise Untrusted(f"{factory} is Python code that would run; give --trust if it is yours")
    made = _call(factory, paths)
    module, given = made if isinstance(made, tuple) else (made, ())
    if checkpoint is not None:
        load_weights(module, load_checkpoint(checkpoint, trust=trust), checkpoint)
    module.eval()
    args, kwargs = _arguments(example, given, factory)
    path, notes = write(module, args, kwargs, out)
    signature = contract.signature(path, trust=True)
    signature["meta"]["path"] = path
    signature["meta"]["notes"] = notes
    return signature


def _call(factory: str, paths: Sequence[str]) -> Any:
    import torch

    name, _, attribute = factory.partition(":")
    if not name or not attribute:
        raise BadModel(f"{factory}: name the factory as package.module:function")
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
    module = made[0] if isinstance(made, tuple) and made else made
    if not isinstance(module, torch.nn.Module):
        raise BadModel(
            f"{factory} returned {type(module).__name__}; it must return an nn.Module or (module, example arguments)"
        )
    return made


def _arguments(example: Any, given: Any, factory: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    import torch

    def tensor(value: Any) -> Any:
        return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value

    if isinstance(example, Mapping) and example:
        return (), {name: tensor(value) for name, value in example.items()}
    if example:
        return tuple(tensor(value) for value in example), {}
    if isinstance(given, Mapping):
        return (), dict(given)
    if isinstance(given, torch.Tensor):
        return (given,), {}
    if not given:
        raise BadModel(
            f"{factory} gives no example arguments: let it return (module, arguments), or give --inputs (pictures with --preprocess)"
        )
    return tuple(given), {}


def load_checkpoint(path: str, *, trust: bool) -> dict[str, Any]:
    """Return the name -> tensor table of a .safetensors, .pth, .th or .pt file. Raises BadModel, Untrusted."""
    import torch

    if Path(path).suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except Exception as error:
            raise BadModel(f"{path}: not a readable safetensors file ({error})") from error
    with Path(path).open("rb") as file:
        head = file.read(64 * 1024)
    # A whole program or script under a checkpoint's name is left to torch.load, which says what it is.
    if not head.startswith((b"PK", b"\x80")):
        raise BadModel(f"{path}: not a readable checkpoint (.pth, .th, .pt or .safetensors)")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not trust:
            raise Untrusted(
                f"{path} holds more than weights (a pickle that runs code on load); give --trust if you know where it is from"
            ) from error
        try:
            stored = torch.load(path, map_location="cpu", weights_only=False)
        except Exception as again:
            raise BadModel(f"{path}: not a readable checkpoint ({_line(again)})") from again
    except Exception as error:
        raise BadModel(f"{path}: not a readable checkpoint ({_line(error)})") from error
    return unwrap(stored, path)


def unwrap(stored: Any, path: str) -> dict[str, Any]:
    """Find the name -> tensor table inside what a checkpoint holds, without the prefix of DataParallel."""
    import torch

    if isinstance(stored, torch.nn.Module):
        stored = stored.state_dict()
    for _ in range(2):
        key = next(
            (key for key in _WRAPPERS if isinstance(stored, Mapping) and isinstance(stored.get(key), Mapping)), None
        )
        if key is not None:
            stored = stored[key]
    if not isinstance(stored, Mapping) or not any(isinstance(value, torch.Tensor) for value in stored.values()):
        raise BadModel(f"{path}: no table of weights in it (a state_dict, or one under {', '.join(_WRAPPERS)})")
    table = {name: value for name, value in stored.items() if isinstance(value, torch.Tensor)}
    prefix = "module."
    if all(name.startswith(prefix) for name in table):
        table = {name[len(prefix) :]: value for name, value in table.items()}
    return table


def load_weights(module: Any, table: Mapping[str, Any], path: str) -> None:
    """Load strictly. Raises BadModel that lists the first keys that are missing, unexpected or of another shape."""
    own = module.state_dict()
    missing = [name for name in own if name not in table]
    surplus = [name for name in table if name not in own]
    shapes = [
        f"{name} {list(table[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in table and table[name].shape != own[name].shape
    ]
    # BatchNorm's counter is newer than many checkpoints and plays no part in evaluation.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    problems = [
        f"{what}: {', '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}"
        for what, found in (("missing", missing), ("not in the model", surplus), ("of another shape", shapes))
        if found
    ]
    if problems:
        raise BadModel(f"{path} does not fit the model; {'; '.join(problems)}")
    module.load_state_dict(table, strict=False)


def write(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: str) -> tuple[str, list[str]]:
    """Write the module at `out` (.pt2), or beside it as `.pt` when it cannot be exported. Returns (path, notes)."""
    import torch

    exported, notes, problem = export(module, args, kwargs)
    if exported is not None:
        target = Path(out).with_suffix(".pt2")
        _atomic(target, lambda name: torch.export.save(exported, name))
        return str(target), notes
    target = Path(out).with_suffix(".pt")
    try:
        with torch.no_grad():
            traced = torch.jit.trace(module, args or None, example_kwarg_inputs=kwargs or None, check_trace=False)
    except Exception as error:
        raise Unsupported(f"the model can be neither exported ({problem}) nor traced ({_line(error)})") from error
    _atomic(target, lambda name: torch.jit.save(traced, name))
    return str(target), [*notes, f"torch.export refused the model ({problem}); it was traced to TorchScript instead"]


def export(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, open_batch: bool = True
) -> tuple[Any, list[str], str]:
    """(exported program or None, notes, why not). The batch axis is open when that works at other batch sizes."""
    import torch

    batched = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    problem = ""
    if (
        open_batch
        and batched
        and all(value.dim() for value in batched)
        and len({value.shape[0] for value in batched}) == 1
    ):
        two, two_named = _batch(args, 2), dict(zip(kwargs, _batch(tuple(kwargs.values()), 2)))
        for dim in (torch.export.Dim("batch", min=1), torch.export.Dim.AUTO):
            shapes = tuple({0: dim} if isinstance(value, torch.Tensor) else None for value in two)
            named = {name: {0: dim} if isinstance(value, torch.Tensor) else None for name, value in two_named.items()}
            try:
                with torch.no_grad():
                    program = torch.export.export(
                        module, two, two_named, dynamic_shapes=_by_name(module, shapes, named)
                    )
                    if _runs_at(program, module, args, kwargs, (1, 3)):
                        return program, [], ""
                problem = "the exported program does not run at other batch sizes"
            except Exception as error:  # noqa: BLE001 -- whatever it is, the next attempt asks for less
                problem = _line(error)
    try:
        with torch.no_grad():
            program = torch.export.export(module, args, kwargs)
    except Exception as error:  # noqa: BLE001 -- the trace is tried next, and the reason is reported
        return None, [], _line(error)
    if not open_batch:
        return program, [], ""
    return program, [f"the batch size is fixed ({problem or 'the inputs share no batch axis'})"], ""


def _by_name(module: Any, shapes: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    import inspect

    names = list(inspect.signature(module.forward).parameters)
    if any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(module.forward).parameters.values()):
        return {names[0]: shapes, **named}
    return {**dict(zip(names, shapes)), **named}


def _batch(values: tuple[Any, ...], size: int) -> tuple[Any, ...]:
    """The same values with `size` entries on axis 0, repeated as often as needed."""
    import torch

    def one(value: Any) -> Any:
        return torch.cat([value] * (-(-size // value.shape[0])))[:size] if isinstance(value, torch.Tensor) else value

    return tuple(one(value) for value in values)


def _runs_at(program: Any, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], sizes: Sequence[int]) -> bool:
    """Whether the program gives what the module gives, in shape and closely in value, at these batch sizes."""
    import torch
    import torch.utils._pytree as pytree

    call = program.module()
    for size in sizes:
        some, named = _batch(args, size), dict(zip(kwargs, _batch(tuple(kwargs.values()), size)))
        ours, theirs = pytree.tree_leaves(call(*some, **named)), pytree.tree_leaves(module(*some, **named))
        for a, b in zip(ours, theirs):
            if isinstance(b, torch.Tensor) and (a.shape != b.shape or a.dtype != b.dtype):
                return False
    return True


def _atomic(target: Path, save: Any) -> None:
    partial = target.with_name(f".{target.stem}.partial{target.suffix}")
    save(str(partial))
    partial.replace(target)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

"""Architectures of torchvision, timm and transformers as exported programs, with weights that data have scaled.

`make` is what the parent calls, in a worker of the collection's toolchain; `_zoo_vision` and `_zoo_transformers` know how
each collection's constructors are called and what their models take. How weights are scaled is told in `_zoo_scale`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trueport.frameworks import _torch_factory, _zoo_scale
from trueport.frameworks._base import Unsupported
from trueport.frameworks._zoo_names import line

ADDED = ("bias", "beta", "token", "embed", "pos", "query")
"""Words in the names of vectors that are added to something; others multiply."""
TABLE = 0.2
"""Standard deviation of what takes the place of a table (of positions, say) that the constructor fills with zeros."""
WRONG = (0.5, 2.0)
"""A layer whose deviation is outside this after scaling does not use its weight as it stands; it keeps its own."""

PYTORCH = ("aten", "prim", "prims", "higher_order")
"""Families of operators that every build of PyTorch has."""


@dataclass
class Made:
    """A module in eval mode, and data for it: `inputs` by argument name, [N, ...] each, in the order of `forward`."""

    module: Any
    inputs: Mapping[str, np.ndarray]
    trained: bool = False
    notes: list[str] = field(default_factory=list)


Builder = Callable[[str, Mapping[str, Any]], Made]


def make(collection: str, name: str, options: Mapping[str, Any], out: str) -> dict[str, Any]:
    """Write the model at `out` (.pt2, or .pt beside it when torch.export refuses it).

    options: as `trueport.zoo` has read them; absent ones have the collection's defaults.
    Returns {"path", "notes", "variation"}; see `_zoo_scale.variation`. Raises BadModel, Unsupported.
    """
    import torch

    # Attention's fused fast path is an operator that exporters do not know, and hooks switch it off in any case.
    torch.backends.mha.set_fastpath_enabled(False)
    torch.manual_seed(options.get("seed", 0))
    made = _builder(collection)(name, options)
    made.module.eval()
    inputs = {key: torch.from_numpy(value) for key, value in made.inputs.items()}
    if not made.trained:
        try:
            scale(made.module, inputs, options.get("seed", 0))
        except Exception as error:
            raise Unsupported(f"{name} does not run on inputs of this size ({line(error)})") from error
    with torch.no_grad():
        outputs = tensors(made.module(**inputs))
    if not outputs:
        raise Unsupported(f"{name} gives no tensors")
    variation = _zoo_scale.variation(outputs[0].float().numpy())
    batch = options.get("batch")
    shown = {key: value[: batch or 2] for key, value in inputs.items()}
    if batch is None:
        path, notes = _torch_factory.write(made.module, tuple(shown.values()), {}, out)
    else:
        path, notes = _fixed(made.module, tuple(shown.values()), out)
    _check_operators(path, name)
    return {"path": path, "notes": [*made.notes, *notes], "variation": variation}


def names(collection: str) -> list[str]:
    """Every architecture of a collection, sorted."""
    from trueport.frameworks import _zoo_transformers, _zoo_vision

    return _zoo_transformers.names() if collection == "transformers" else _zoo_vision.names(collection)


def _builder(collection: str) -> Builder:
    from trueport.frameworks import _zoo_transformers, _zoo_vision

    return {
        "torchvision": _zoo_vision.torchvision_model,
        "timm": _zoo_vision.timm_model,
        "transformers": _zoo_transformers.model,
    }[collection]


def _fixed(module: Any, args: tuple[Any, ...], out: str) -> tuple[str, list[str]]:
    """Write a program whose batch size is that of `args`."""
    import torch

    program, notes, problem = _torch_factory.export(module, args, {}, open_batch=False)
    if program is None:
        raise Unsupported(f"torch.export refuses the model at a fixed batch size ({problem})")
    torch.export.save(program, out)
    return out, notes


def _check_operators(path: str, name: str) -> None:
    """Refuse a program with operators of a package's own: the environment in which models run does not have them."""
    import torch

    if not path.endswith(".pt2"):
        return
    program = torch.export.load(path)
    targets = [node.target for node in program.graph.nodes if hasattr(node.target, "namespace")]
    foreign = sorted({target.name() for target in targets if target.namespace not in PYTORCH})
    if foreign:
        raise Unsupported(f"{name} uses operators that PyTorch itself does not have ({', '.join(foreign[:5])})")


def tensors(value: Any) -> list[Any]:
    """The floating-point tensors in what a module gave, in order."""
    import torch
    import torch.utils._pytree as pytree

    if isinstance(value, Mapping):
        value = list(value.values())
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def scale(module: Any, inputs: Mapping[str, Any], seed: int) -> None:
    """Give a module in eval mode weights that data have scaled; see `_zoo_scale`. The tensors are changed in place."""
    import torch

    rng = np.random.default_rng([seed, 3])
    with torch.no_grad():
        _vectors(module, rng)
        order = _layers(module, inputs, rng)
        if order:
            _head(module, inputs, order[-1])


def _vectors(module: Any, rng: np.random.Generator) -> None:
    """Factors near 1 and small biases for every channel; tables of zeros get values."""
    import torch

    plain = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    kernels = {id(part.weight) for part in module.modules() if isinstance(part, plain)}
    for name, parameter in module.named_parameters():
        if not parameter.is_floating_point() or parameter.numel() < 2 or id(parameter) in kernels:
            continue
        last = name.rpartition(".")[2]
        if parameter.numel() == max(parameter.shape):
            word = "bias" if any(word in last for word in ADDED) else last
            parameter.copy_(torch.from_numpy(_zoo_scale.vector(parameter.numpy(), word, rng)))
        elif not parameter.any():
            parameter.copy_(torch.from_numpy(rng.normal(0, TABLE, parameter.shape)))


def _layers(module: Any, inputs: Mapping[str, Any], rng: np.random.Generator) -> list[Any]:
    """Scale each layer when it is first executed, in one pass; return those that are the last words of the network.

    The list ends with the last convolution or matrix product, and is empty when a normalisation follows it.
    """
    import torch

    users = _users(module)
    done: list[Any] = []
    hooks = []

    def weighted(part: Any, args: Any, output: Any) -> Any:
        if part in done or not isinstance(output, torch.Tensor):
            return output
        done.append(part)
        return _scaled(part, args, output, rng)

    def normalising(part: Any, args: Any) -> None:
        if part not in done:
            done.append(part)
            _statistics(part, args[0], rng)

    for part in module.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            hooks.append(part.register_forward_pre_hook(normalising))
        elif out_axis(part) is not None and users.get(id(part.weight), 0) == 1:
            hooks.append(part.register_forward_hook(weighted))
    try:
        module(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [] if done and out_axis(done[-1]) is None else done


def _users(module: Any) -> dict[int, int]:
    """How many modules have a tensor as a parameter, by its id: a matrix that embeds tokens as well is not scaled."""
    found: dict[int, int] = {}
    for part in module.modules():
        for parameter in part._parameters.values():
            found[id(parameter)] = found.get(id(parameter), 0) + 1
    return found


def out_axis(part: Any) -> int | None:
    """The axis of a layer's weight that counts output channels; None for what is no plain convolution or product."""
    import torch

    if isinstance(part, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.Linear)):
        return 0 if isinstance(getattr(part, "weight", None), torch.nn.Parameter) else None
    if type(part).__name__ == "Conv1D" and getattr(part, "weight", None) is not None:  # transformers' own: [in, out]
        return 1
    transposed = isinstance(part, (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d))
    return 1 if transposed and part.groups == 1 else None


def _channels_last(part: Any, output: Any) -> Any:
    """[N, ..., C] as NumPy; convolutions of PyTorch give [N, C, ...]."""
    import torch

    convolution = isinstance(part, torch.nn.modules.conv._ConvNd)
    return (output.movedim(1, -1) if convolution else output).numpy()


def _multiply(part: Any, factors: np.ndarray, mean: np.ndarray | None) -> None:
    """Multiply a layer's output channels by `factors` [C]; `mean` [C]: its new bias, where it has one."""
    import torch

    shape = [1] * part.weight.dim()
    shape[out_axis(part) or 0] = -1
    part.weight.mul_(torch.from_numpy(factors).reshape(shape).to(part.weight.dtype))
    if mean is not None and part.bias is not None:
        part.bias.copy_(torch.from_numpy(mean))


def _bare(part: Any, output: Any) -> np.ndarray:
    """A layer's output [N, ..., C] without its bias."""
    values = _channels_last(part, output)
    return np.asarray(values if part.bias is None else values - part.bias.numpy())


def _scaled(part: Any, args: tuple[Any, ...], output: Any, rng: np.random.Generator) -> Any:
    """Scale one layer and return what it gives now."""
    import torch

    if not part.weight.any():  # the constructor means it to be learnt
        fan = part.weight.numel() // part.weight.shape[out_axis(part) or 0]
        part.weight.copy_(torch.from_numpy(rng.normal(0, fan**-0.5, part.weight.shape)))
        output = part.forward(*args)
    before = part.weight.clone()
    bare = _bare(part, output)
    flat = bare.reshape(-1, bare.shape[-1])
    factors, mean = _zoo_scale.channels(flat, rng)
    _multiply(part, factors, mean - factors * flat.mean(0, dtype=np.float64))
    now = part.forward(*args)
    deviation = float(_bare(part, now).std(axis=tuple(range(now.dim() - 1))).mean())
    if not WRONG[0] < deviation < WRONG[1] and flat.std(0).mean() > 0:
        part.weight.copy_(before)
        now = part.forward(*args)
    return now


def _statistics(part: Any, given: Any, rng: np.random.Generator) -> None:
    """Let a BatchNorm hold the statistics of what it is given."""
    import torch

    axes = [axis for axis in range(given.dim()) if axis != 1]
    part.running_mean.copy_(given.mean(axes))
    part.running_var.copy_(given.var(axes, unbiased=False))
    if part.bias is not None:
        part.bias.add_(_zoo_scale.NORMALISED)
    if part.num_batches_tracked is not None:
        part.num_batches_tracked.copy_(torch.tensor(1))


def _head(module: Any, inputs: Mapping[str, Any], part: Any) -> None:
    """Centre and scale the last layer over the inputs."""
    seen: list[np.ndarray] = []
    hook = part.register_forward_hook(lambda part, args, output: seen.append(_bare(part, output)))
    try:
        module(**inputs)
    finally:
        hook.remove()
    factor, centre = _zoo_scale.head(seen[0])
    _multiply(part, np.full(seen[0].shape[-1], factor), -factor * centre)

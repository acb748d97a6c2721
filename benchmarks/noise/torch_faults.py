"""Faults planted in the PyTorch zoo, and its deeper networks. Runs in the torch toolchain, called by name through a worker.

A fault is planted in a copy of the source; converting that copy cleanly gives a target that is wrong in exactly one way.
"""

from __future__ import annotations

import functools
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
import torch_models as zoo
from torch import nn

DEEP = {"resnet20": 3, "resnet32": 5, "resnet56": 9}
"""CIFAR ResNets of depth 6 n + 2, whose floor is higher than that of the small zoo."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)


def make(kind, seed):
    """A zoo model, or a deep network whose BatchNorm statistics come from a data pass."""
    if kind not in DEEP:
        module = zoo.make(kind, seed)
        for layer in module.modules():
            if isinstance(layer, nn.LayerNorm):  # PyTorch starts it with ones and zeros: nothing to drop or to scale
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.uniform_(layer.bias, -0.5, 0.5)
        return module
    torch.manual_seed(seed)
    module = zoo.CifarResNet(DEEP[kind])
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.uniform_(layer.bias, -0.5, 0.5)
        layer.momentum = 0.5
    module.train()
    with torch.no_grad():
        for _ in range(4):
            module(torch.randn(16, 3, 32, 32))
    return module.eval()


def sample(kind):
    """Example inputs of batch 2."""
    return (torch.randn(2, 3, 32, 32),) if kind in DEEP else zoo._ZOO[kind][1](2)


def save(kind, folder, seed):
    """Write the unchanged model; returns the path of its .pt2 file."""
    return _write(make(kind, seed), kind, folder)


def places(kind, seed):
    """Fault -> the places of this model where it can be planted."""
    module = make(kind, seed)
    return {fault: found for fault, (find, _) in FAULTS.items() if (found := find(module))}


def plant(kind, folder, seed, fault, where):
    """Write the model with one fault; returns the path of its .pt2 file."""
    module = make(kind, seed)
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        FAULTS[fault][1](module, where)
    tanh = functools.partial(nn.functional.gelu, approximate="tanh")
    with patch.object(zoo.F, "gelu", tanh) if fault == "tanh GELU" else nullcontext():
        return _write(module, kind, folder)


def _write(module, kind, folder):
    path = Path(folder) / f"{kind}.pt2"
    example = sample(kind)
    names = list(zoo.inspect.signature(module.forward).parameters)[: len(example)]
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(module, example, dynamic_shapes={name: {0: batch} for name in names})
    torch.export.save(program, path)
    return str(path)


# ---- where a fault can be ----


def _weights(module):
    return [name for name, value in module.named_parameters() if value.ndim >= 2]


def _vectors(module):
    return [name for name, value in module.named_parameters() if value.ndim == 1]


def _biases(module):
    return [name for name, _ in module.named_parameters() if name.rpartition(".")[2].startswith("bias")]


def _layers(*types):
    return lambda module: [name for name, layer in module.named_modules() if isinstance(layer, types)]


def _padded(module):
    return [name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d) and any(layer.padding)]


def _gelus(module):
    return ["feed-forward"] if isinstance(module, zoo.Encoder) else []


# ---- what it does there ----


def _noise(module, name):
    value = module.get_parameter(name)
    value.mul_(1 + 0.01 * torch.randn_like(value))


def _scale(module, name):
    module.get_parameter(name).mul_(1.01)


def _drop(module, name):
    module.get_parameter(name).zero_()


def _epsilon(module, name):
    module.get_submodule(name).eps = 1e-3


def _one_weight(module, name):
    value = module.get_parameter(name).view(-1)
    value[torch.randint(value.numel(), ())] += value.square().mean().sqrt()


def _statistics(module, name):
    mean = module.get_submodule(name).running_mean
    mean.copy_(mean.roll(1))


def _no_ceiling(module, name):
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, nn.ReLU())


def _padding(module, name):
    module.get_submodule(name).padding_mode = "replicate"


FAULTS = {
    "1 % noise in a weight": (_weights, _noise),
    "weight scaled by 1.01": (_weights, _scale),
    "1 % noise in a vector": (_vectors, _noise),
    "wrong epsilon": (_layers(*NORMS), _epsilon),
    "dropped bias": (_biases, _drop),
    "tanh GELU": (_gelus, lambda module, where: None),
    "one element of a weight": (_weights, _one_weight),
    "shifted mean statistics": (_layers(nn.BatchNorm1d, nn.BatchNorm2d), _statistics),
    "ReLU for ReLU6": (_layers(nn.ReLU6), _no_ceiling),
    "other padding": (_padded, _padding),
}
"""Fault -> (where it can be, what it does). The tanh GELU replaces the function while the model is exported."""

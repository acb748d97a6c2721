"""PyTorch models of the study. Runs in a worker of the torch toolchain.

Weights are random, but scaled by data: BatchNorm holds the statistics of pictures that passed through, and the last
layer is centred and scaled on them, so that outputs and labels differ from picture to picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from networks import FRONTS, NETWORKS
from torch import nn

SPREAD = 3.0
"""Standard deviation of a logit over pictures: labels differ, and softmax is far from one winner that takes all."""
SHIFT = 0.5
"""Mean shift of a BatchNorm: with most units active, small errors do not grow from layer to layer as in networks of
random weights around zero, which no trained network resembles."""


class Unit(nn.Module):
    """Convolution without bias, BatchNorm, perhaps an activation."""

    def __init__(self, s: dict[str, Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(s["before"], s["out"], s["kernel"], s["stride"], s["pad"], groups=s["groups"], bias=False)
        self.bn = nn.BatchNorm2d(s["out"], eps=s["epsilon"])
        self.act = {"": nn.Identity(), "relu": nn.ReLU(), "relu6": nn.ReLU6()}[s["act"]]

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Network(nn.Module):
    """A network of `networks.py` with a preparation of `FRONTS` in front. Takes [N, 3, H, W]."""

    def __init__(self, kind: str, front: str = "") -> None:
        super().__init__()
        self.ops = NETWORKS[kind]()
        self.prepare = Prepare(front)
        made = {"unit": lambda s: Unit(s), "dense": lambda s: nn.Linear(s["before"], s["out"])}
        self.parts = nn.ModuleDict({op.name: made[op.kind](op.settings) for op in self.ops if op.kind in made})

    def forward(self, image):
        return self.parts["classes"](self.features(image))

    def features(self, image):
        """The pooled features [N, C] in front of the last layer."""
        values = {"image": self.prepare(image)}
        for op in self.ops[:-1]:
            values[op.name] = self._value(op, [values[name] for name in op.inputs])
        return values["pooled"]

    def _value(self, op, given):
        s = op.settings
        if op.kind == "unit":
            return self.parts[op.name](given[0])
        if op.kind == "max":
            return nn.functional.max_pool2d(given[0], s["kernel"], s["stride"], s["pad"])
        if op.kind == "mean":
            return nn.functional.avg_pool2d(given[0], s["kernel"], s["stride"], s["pad"])
        if op.kind == "global":
            return given[0].mean((2, 3))
        if op.kind == "relu":
            return torch.relu(given[0])
        return torch.cat(given, 1) if op.kind == "cat" else given[0] + given[1]


def initialise(kind: str, pictures: str, out: str, seed: int) -> dict[str, Any]:
    """Write weights that fit the pictures (.npy, [N, H, W, 3], 0..255) as an .npz of the state dict."""
    torch.manual_seed(seed)
    net = Network(kind, "torch")
    for op in net.ops:
        if op.kind == "unit":
            part = net.parts[op.name]
            nn.init.kaiming_normal_(part.conv.weight, nonlinearity="relu")
            nn.init.uniform_(part.bn.weight, *((0.3, 0.6) if op.settings["last"] else (0.8, 1.2)))
            nn.init.normal_(part.bn.bias, SHIFT, 0.2)
            part.bn.momentum = 1.0
    images = torch.from_numpy(np.load(pictures).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        net.train()
        net.features(images)
        net.eval()
        weight, bias = head(net.features(images).numpy(), net.parts["classes"].out_features, seed)
        net.parts["classes"].weight.copy_(torch.from_numpy(weight))
        net.parts["classes"].bias.copy_(torch.from_numpy(bias))
    kept = {name: value.numpy() for name, value in net.state_dict().items() if name.startswith("parts.")}
    np.savez(out, **kept)
    return {"parameters": sum(value.numel() for value in net.parameters())}


def head(features: np.ndarray, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random weights [classes, C] and biases of a last layer whose logits have mean 0 and deviation SPREAD over the data."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, 1, (classes, features.shape[1]))
    centre = features.mean(0)
    logits = (features - centre) @ weight.T
    weight *= SPREAD / logits.std()
    return weight.astype(np.float32), (-weight @ centre).astype(np.float32)


class Port(nn.Module):
    """A network of keras.applications, layer by layer as `keras_side.plan` tells; takes [N, 3, H, W]."""

    def __init__(self, told: dict[str, Any], weights: str, front: str) -> None:
        super().__init__()
        self.told, self.prepare = told, Prepare(front)
        self.parts = nn.ModuleDict()
        with np.load(weights) as stored:
            for layer in told["layers"]:
                made = [stored[name] for name in sorted(stored.files) if name.rpartition("/")[0] == layer["name"]]
                if made:
                    self.parts[layer["name"]] = PARTS[layer["kind"]](layer["settings"], *made)

    def forward(self, image):
        values = {self.told["input"]: self.prepare(image)}
        for layer in self.told["layers"]:
            given = [values[name] for name in layer["inputs"]]
            if layer["name"] in self.parts:
                given = [self.parts[layer["name"]](self._padded(layer, given[0]))]
            values[layer["name"]] = self._value(layer, given)
        return values[self.told["layers"][-1]["name"]]

    def _padded(self, layer, x):
        """What Keras' "same" puts around: at even sizes and stride 2 nothing in front and one behind."""
        s = layer["settings"]
        if s.get("padding") != "same":
            return x
        around = []
        for axis in (1, 0):
            size, step, kernel = x.shape[2 + axis], s["strides"][axis], s["kernel_size"][axis]
            total = max((-(-size // step) - 1) * step + kernel - size, 0)
            around += [total // 2, total - total // 2]
        return nn.functional.pad(x, around) if any(around) else x

    def _value(self, layer, given):
        s, x = layer["settings"], given[0]
        if layer["kind"] == "ZeroPadding2D":
            (top, bottom), (left, right) = s["padding"]
            return nn.functional.pad(x, (left, right, top, bottom))
        if layer["kind"] == "MaxPooling2D":
            return nn.functional.max_pool2d(x, s["pool_size"], s["strides"])
        if layer["kind"] == "GlobalAveragePooling2D":
            return x.mean((2, 3))
        if layer["kind"] == "Add":
            return given[0] + given[1]
        if layer["kind"] == "ReLU":
            return nn.functional.relu6(x) if s["max_value"] == 6 else torch.relu(x)
        return {"relu": torch.relu, "softmax": lambda x: x.softmax(-1)}.get(s.get("activation"), lambda x: x)(x)


class Prepare(nn.Module):
    """A preparation of FRONTS on [N, 3, H, W]."""

    def __init__(self, front: str) -> None:
        super().__init__()
        self.given = FRONTS[front]
        for name in ("scale", "shift") if self.given else ():
            self.register_buffer(name, torch.tensor(self.given[name]).reshape(1, 3, 1, 1))

    def forward(self, image):
        if not self.given:
            return image
        image = image.flip(1) if self.given.get("reverse") else image
        return image * self.scale + self.shift


def _convolution(s, kernel, bias=None):
    deep = "depth_multiplier" in s
    weight = torch.from_numpy(kernel.transpose((2, 3, 0, 1) if deep else (3, 2, 0, 1)).copy())
    groups = len(weight) if deep else 1
    made = nn.Conv2d(weight.shape[1] * groups, len(weight), weight.shape[2:], s["strides"], groups=groups,
                     bias=bias is not None)  # fmt: skip
    return _loaded(made, weight=weight, **({} if bias is None else {"bias": torch.from_numpy(bias)}))


def _normalisation(s, weight, bias, mean, variance):
    made = nn.BatchNorm2d(len(weight), eps=s["epsilon"])
    given = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    return _loaded(made, **{name: torch.from_numpy(value) for name, value in given.items()})


def _dense(s, kernel, bias):
    return _loaded(nn.Linear(*kernel.shape), weight=torch.from_numpy(kernel.T.copy()), bias=torch.from_numpy(bias))


def _loaded(made, **given):
    made.load_state_dict({**made.state_dict(), **given})
    return made


PARTS = {
    "Conv2D": _convolution,
    "DepthwiseConv2D": _convolution,
    "BatchNormalization": _normalisation,
    "Dense": _dense,
}


def port(told: dict[str, Any], weights: str, front: str, size: list[int], out: str) -> dict[str, Any]:
    """Write the PyTorch port of a network of keras.applications."""
    return _exported(Port(told, weights, front), size, out)


def save(kind: str, front: str, weights: str, size: list[int], out: str) -> dict[str, Any]:
    """Write an exported program with an open batch for pictures of `size` (height, width)."""
    net = Network(kind, front)
    with np.load(weights) as stored:
        table = {name: torch.from_numpy(stored[name]) for name in stored.files}
    missing, surplus = net.load_state_dict(table, strict=False)
    assert not surplus, surplus
    assert all(name.startswith("prepare.") for name in missing), missing
    return _exported(net, size, out)


def _exported(net: nn.Module, size: list[int], out: str) -> dict[str, Any]:
    net.eval()
    example = torch.rand(2, 3, *size) * 255
    program = torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    torch.export.save(program, out)
    return {"path": out}

"""PyTorch ports of models of the Keras zoo, as one writes them by hand. Runs inside the torch toolchain.

A sibling has the weights of its Keras model and computes the same function, channels first; it shares no name with the
model, and neither its operators nor its layouts come from a converter. Layers that Keras keeps apart may be one here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

EPSILON = 1e-3
"""What the normalisations of Keras add, unless they are told otherwise; PyTorch's own is 1e-5."""


class Weights:
    """The weights of a Keras model by path. Each is taken once: one that is left over is one that the port forgot."""

    def __init__(self, arrays):
        self.arrays = dict(arrays)

    def take(self, layer, *roles):
        """Tensors of a layer's weights as Keras lays them out."""
        return [torch.from_numpy(np.ascontiguousarray(self.arrays.pop(f"{layer}/{role}"))) for role in roles]

    def conv(self, layer, stride=1, same=True, bias=False, groups=1):
        """A convolution: the kernel [height, width, in, out] becomes [out, in, height, width]."""
        kernel, *rest = self.take(layer, "kernel", *(["bias"] if bias else []))
        order = (2, 3, 0, 1) if groups > 1 else (3, 2, 0, 1)  # depthwise: [height, width, channels, 1]
        return Conv(kernel.permute(order).contiguous(), rest[0] if rest else None, stride, same, groups)

    def norm(self, layer):
        """A BatchNorm over channels."""
        gamma, beta, mean, variance = self.take(layer, "gamma", "beta", "moving_mean", "moving_variance")
        norm = nn.BatchNorm2d(len(gamma), eps=EPSILON)
        norm.load_state_dict(
            {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": variance}, strict=False
        )
        return norm

    def unit(self, layer, act=None, **how):
        """Convolution, BatchNorm, and perhaps an activation."""
        return nn.Sequential(self.conv(layer, **how), self.norm(f"{layer}_bn"), *([act] if act else []))

    def dense(self, layer, image=None):
        """A Dense layer: the kernel is transposed, and behind the flattening of an image [height, width, channels] its
        rows are put into the order of [channels, height, width]."""
        kernel, bias = self.take(layer, "kernel", "bias")
        if image is not None:
            kernel = kernel.reshape(*image, -1).permute(2, 0, 1, 3).reshape(kernel.shape)
        return linear(kernel, bias)

    def layer_norm(self, layer):
        """A LayerNorm over the last axis."""
        gamma, beta = self.take(layer, "gamma", "beta")
        norm = nn.LayerNorm(len(gamma), eps=EPSILON)
        norm.load_state_dict({"weight": gamma, "bias": beta})
        return norm


def linear(kernel, bias):
    """nn.Linear from a kernel [in, out]."""
    layer = nn.Linear(*kernel.shape)
    layer.load_state_dict({"weight": kernel.T.contiguous(), "bias": bias})
    return layer


def around(size, kernel, stride):
    """Zeros that TensorFlow's SAME puts before and behind an axis: of an odd number the greater part lies behind."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Conv(nn.Module):
    """A convolution with TensorFlow's padding."""

    def __init__(self, weight, bias, stride, same, groups):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), None if bias is None else nn.Parameter(bias)
        self.stride, self.same, self.groups = stride, same, groups

    def forward(self, x):
        inner = (0, 0)
        if self.same:
            high, wide = (
                around(size, kernel, self.stride)
                for size, kernel in zip(x.shape[2:], self.weight.shape[2:], strict=True)
            )
            if high[0] == high[1] and wide[0] == wide[1]:
                inner = (high[0], wide[0])
            else:
                x = F.pad(x, (*wide, *high))
        return F.conv2d(x, self.weight, self.bias, self.stride, inner, 1, self.groups)


class Residual(nn.Module):
    """`residual`: the uneven padding of its strides stands in a node of its own."""

    shape = (3, 24, 32)

    def __init__(self, weights):
        super().__init__()
        self.m0 = weights.unit("stem", nn.ReLU())
        self.m1 = nn.Sequential(weights.unit("block1_a", nn.ReLU()), weights.unit("block1_b"))
        self.m2 = nn.Sequential(weights.unit("block2_a", nn.ReLU(), stride=2), weights.unit("block2_b"))
        self.m3 = weights.unit("block2_short", stride=2)
        self.m4 = weights.dense("classes", (4, 4, 20))

    def forward(self, x):
        x = self.m0(x)
        x = F.relu(x + self.m1(x))
        x = F.relu(self.m2(x) + self.m3(x))
        return F.softmax(self.m4(F.max_pool2d(x, (3, 4)).flatten(1)), dim=1)


class Inverted(nn.Module):
    """An inverted residual of `depthwise`, with squeeze and excitation where the Keras model has them."""

    def __init__(self, weights, block, stride):
        super().__init__()
        name = f"block{block}"
        self.m0 = weights.unit(f"{name}_expand", nn.ReLU6())
        self.m1 = weights.unit(f"{name}_depth", nn.ReLU6(), stride=stride, groups=24)
        self.m2 = weights.conv("squeeze_in", bias=True) if block == 1 else None
        self.m3 = weights.conv("squeeze_out", bias=True) if block == 1 else None
        self.m4 = weights.unit(f"{name}_project")
        self.stride = stride

    def forward(self, x):
        y = self.m1(self.m0(x))
        if self.m2 is not None:
            y = y * torch.sigmoid(self.m3(F.relu(self.m2(F.adaptive_avg_pool2d(y, 1)))))
        y = self.m4(y)
        return x + y if self.stride == 1 else y


class Depthwise(nn.Module):
    """`depthwise`."""

    shape = (3, 30, 26)

    def __init__(self, weights):
        super().__init__()
        self.m0 = weights.unit("stem", nn.ReLU6(), stride=2, same=False)
        self.m1, self.m2 = Inverted(weights, 1, 1), Inverted(weights, 2, 2)
        self.m3 = weights.dense("logits", (2, 2, 14))

    def forward(self, x):
        x = self.m2(self.m1(self.m0(F.pad(x, (0, 1, 0, 1)))))
        return self.m3(F.avg_pool2d(x, (4, 3)).flatten(1))


class Layer(nn.Module):
    """An encoder block of `transformer`, whose three projections are one Linear."""

    heads = 3

    def __init__(self, weights, block):
        super().__init__()
        parts = [weights.take(f"attention{block}/{part}", "kernel", "bias") for part in ("query", "key", "value")]
        self.m0 = linear(  # kernels [width, heads, depth]
            torch.cat([kernel.flatten(1) for kernel, _ in parts], 1), torch.cat([bias.flatten() for _, bias in parts])
        )
        kernel, bias = weights.take(f"attention{block}/attention_output", "kernel", "bias")
        self.m1 = linear(kernel.flatten(0, 1), bias)
        self.m2, self.m3 = weights.layer_norm(f"norm{block}_a"), weights.layer_norm(f"norm{block}_b")
        self.m4, self.m5 = weights.dense(f"up{block}"), weights.dense(f"down{block}")

    def forward(self, x):
        batch, steps, width = x.shape
        q, k, v = self.m0(x).reshape(batch, steps, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = torch.matmul(q, k.transpose(-2, -1)) / q.shape[-1] ** 0.5
        y = torch.matmul(F.softmax(scores, dim=-1), v).transpose(1, 2).reshape(batch, steps, width)
        x = self.m2(x + self.m1(y))
        return self.m3(x + self.m5(F.gelu(self.m4(x), approximate="tanh")))


class Transformer(nn.Module):
    """`transformer`."""

    shape = (10,)

    def __init__(self, weights):
        super().__init__()
        self.m0 = nn.Embedding.from_pretrained(*weights.take("embed", "embeddings"), freeze=False)
        self.m1, self.m2 = Layer(weights, 1), Layer(weights, 2)
        self.m3 = weights.dense("logits")

    def forward(self, x):
        return self.m3(self.m2(self.m1(self.m0(x))).flatten(1))


class UNet(nn.Module):
    """`unet`: what SAME cuts off a transposed convolution is cut behind."""

    shape = (3, 24, 32)

    def __init__(self, weights):
        super().__init__()
        self.m0, self.m1, self.m2, self.m3, self.m4 = (
            weights.unit(name, nn.ReLU()) for name in ("down1", "down2", "bottom", "merge2", "merge1")
        )
        kernel, bias = weights.take("up1", "kernel", "bias")  # [height, width, out, in]
        self.m5 = nn.ConvTranspose2d(kernel.shape[3], kernel.shape[2], 3, stride=2)
        self.m5.load_state_dict({"weight": kernel.permute(3, 2, 0, 1).contiguous(), "bias": bias})
        self.m6, self.m7 = weights.conv("halve", stride=2, bias=True), weights.conv("mask", bias=True)

    def forward(self, x):
        one = self.m0(x)
        two = self.m1(F.max_pool2d(one, 2))
        x = F.interpolate(self.m2(F.max_pool2d(two, 2)), scale_factor=2.0, mode="bilinear", align_corners=False)
        x = self.m5(self.m3(torch.cat([x, two], 1)))[:, :, :-1, :-1]
        x = F.interpolate(self.m6(self.m4(torch.cat([x, one], 1))), scale_factor=2.0, mode="nearest")
        return torch.sigmoid(self.m7(x))


BUILDERS = {"residual": Residual, "depthwise": Depthwise, "transformer": Transformer, "unet": UNet}


def build(kind, arrays):
    """One sibling in evaluation mode, from the weights of its Keras model by path. Raises ValueError on a rest."""
    weights = Weights(arrays)
    module = BUILDERS[kind](weights)
    if weights.arrays:
        raise ValueError(f"the sibling of {kind} does not use {', '.join(sorted(weights.arrays))}")
    return module.eval()


def save(kind, weights, folder):
    """Write KIND.pt2, with an open batch axis, from an .npz of the Keras model's weights; returns its path."""
    with np.load(weights) as arrays:
        module = build(kind, arrays)
    shape = (2, *BUILDERS[kind].shape)
    example = torch.randint(0, 37, shape) if kind == "transformer" else torch.randn(shape)
    exported = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    path = Path(folder) / f"{kind}.pt2"
    torch.export.save(exported, path)
    return str(path)

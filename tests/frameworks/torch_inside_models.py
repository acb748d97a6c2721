"""Models whose inside the tests look at: many kinds of operators, operators in place, and several outputs at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch_models import Apply


class Composites(nn.Module):
    """One of each composite operator that the finer view takes apart."""

    def __init__(self):
        super().__init__()
        self.prelu, self.group, self.instance = nn.PReLU(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2, padding=1, output_padding=1)
        self.layer = nn.LayerNorm([6], eps=1e-3)
        for part in (self.group, self.instance, self.layer):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)

    def forward(self, x):
        y = self.layer(self.prelu(self.group(x)))
        y = F.silu(y) + F.hardswish(F.elu(y, 0.7))
        y = F.mish(self.instance(y)) + F.leaky_relu(y, 0.2) + F.gelu(y) + F.gelu(y, approximate="tanh")
        wide = F.interpolate(self.up(y), size=(9, 7), mode="bilinear", align_corners=True)
        wide = wide + F.interpolate(y, size=(9, 7), mode="nearest")
        return F.log_softmax(F.softplus(wide), dim=-3), F.softmax(F.selu(y), dim=1)


class Hyperparameters(nn.Module):
    """Operators whose attributes differ from every default and from axis to axis."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
        self.norm = nn.BatchNorm2d(6, eps=1e-2)

    def forward(self, x):
        y = self.norm(self.conv(x)).clamp(-0.5, 4.0)
        y = F.avg_pool2d(y, (2, 3), stride=(1, 2), padding=(1, 1), count_include_pad=False)
        y = F.max_pool2d(F.hardtanh(F.pad(y, (1, 2, 0, 3))), 2, ceil_mode=True)
        y = torch.cat([y, 1 - y], dim=-3).permute(0, 2, 3, 1)
        y = F.adaptive_avg_pool2d(y.transpose(-1, 1), 1)
        return y.flatten(1).mean(-1, keepdim=True), y.squeeze(-1).unsqueeze(1)


class InPlace(nn.Module):
    """Activations and sums in place, which a later operator reads through another name."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        y = self.first(x)
        F.relu_(y)
        part = y[:, 1:]
        part.mul_(2.0)
        z = self.second(y)
        z += y
        return z, y.sum((1, 2, 3))


_MODELS = {
    "composites": (Composites, (1, 4, 5, 6)),
    "hyperparameters": (Hyperparameters, (1, 4, 11, 13)),
    "in-place": (InPlace, (1, 2, 4, 5)),
    "chunks": (lambda: Apply(lambda x: [part.relu() for part in x.chunk(3, 1)][1:] + list(x.split([1, 5], 1))), (1, 6)),
    "named-like-a-part": (lambda: Apply(lambda x: {"expm1": x.relu(), "where": F.elu(x).exp()}), (2, 3)),
}


def save(kind, folder, seed):
    """Write KIND.pt2 and return its path."""
    torch.manual_seed(seed)
    build, shape = _MODELS[kind]
    path = Path(folder) / f"{kind}.pt2"
    torch.export.save(torch.export.export(build().eval(), (torch.randn(shape),)), path)
    return str(path)


def inputs(kind, runs):
    """[runs, *shape] of the only input."""
    return np.random.default_rng(1).normal(size=(runs, *_MODELS[kind][1])).astype(np.float32)

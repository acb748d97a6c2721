"""Small PyTorch models of the usual architectures, to plant faults into. Seeded; runs inside the torch toolchain.

Axes differ in size where the architecture lets them, weights are scaled so that signals neither die nor explode,
BatchNorm has the statistics of data that passed through, and every bias, scale and shift differs from its neutral
value: whatever a converter drops, it shows.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


def unit(before, after, kernel=3, stride=1, groups=1, act=nn.ReLU):
    """Convolution without bias, BatchNorm, and perhaps an activation; `kernel` odd, along one axis or both."""
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = tuple(size // 2 for size in kernel)
    parts = [
        nn.Conv2d(before, after, kernel, stride=stride, padding=padding, groups=groups, bias=False),
        nn.BatchNorm2d(after),
    ]
    return nn.Sequential(*parts, *([act()] if act else []))


class Residual(nn.Module):
    """Two residual blocks with BatchNorm, the second with a projection and a stride of 2, and a max pool."""

    shape = (3, 24, 32)

    def __init__(self):
        super().__init__()
        self.stem = unit(3, 12)
        self.a = nn.Sequential(unit(12, 12), unit(12, 12, act=None))
        self.b = nn.Sequential(unit(12, 20, stride=2), unit(20, 20, act=None))
        self.short = unit(12, 20, 1, stride=2, act=None)
        self.head = nn.Linear(20 * 3 * 4, 7)

    def forward(self, image):
        x = self.stem(image)
        x = F.relu(x + self.a(x))
        x = F.relu(self.b(x) + self.short(x))
        return F.softmax(self.head(F.max_pool2d(x, 4).flatten(1)), dim=1)


class Mixed(nn.Module):
    """Four branches of other kernels and an average pool, joined by concatenation."""

    def __init__(self, before, widths):
        super().__init__()
        a, b, c, d = widths
        self.one = unit(before, a, 1)
        self.three = nn.Sequential(unit(before, b - 2, 1), unit(b - 2, b))
        self.wide = nn.Sequential(unit(before, c - 1, 1), unit(c - 1, c, (1, 7)), unit(c, c, (7, 1)))
        self.mean = unit(before, d, 1)

    def forward(self, x):
        pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return torch.cat([self.one(x), self.three(x), self.wide(x), self.mean(pooled)], dim=1)


class Inception(nn.Module):
    """Two blocks of four branches each behind a strided stem."""

    shape = (3, 28, 20)

    def __init__(self):
        super().__init__()
        self.stem = unit(3, 10, stride=2)
        self.first, self.second = Mixed(10, (4, 6, 5, 3)), Mixed(18, (6, 8, 4, 5))
        self.head = nn.Linear(23 * 4 * 5, 9)

    def forward(self, image):
        x = self.second(self.first(self.stem(image)))
        return self.head(F.avg_pool2d(x, (3, 2), stride=(3, 2)).flatten(1))


class Inverted(nn.Module):
    """An inverted residual with a depthwise convolution and squeeze and excitation."""

    def __init__(self, before, after, stride, act):
        super().__init__()
        wide = 2 * before
        self.expand, self.depth = unit(before, wide, 1, act=act), unit(wide, wide, 3, stride, wide, act=act)
        self.down, self.up = nn.Conv2d(wide, 5, 1), nn.Conv2d(5, wide, 1)
        self.project = unit(wide, after, 1, act=None)
        self.adds = before == after and stride == 1

    def forward(self, x):
        y = self.depth(self.expand(x))
        y = y * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        y = self.project(y)
        return x + y if self.adds else y


class Depthwise(nn.Module):
    """Inverted residuals, with ReLU6 and with hard swish, behind an uneven explicit padding."""

    shape = (3, 30, 26)

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.a, self.b = Inverted(8, 8, 1, nn.ReLU6), Inverted(8, 14, 2, nn.Hardswish)
        self.last = unit(14, 18, 1, act=nn.Hardswish)
        self.head = nn.Linear(18, 6)

    def forward(self, image):
        x = F.max_pool2d(self.b(self.a(self.stem(F.pad(image, (0, 1, 0, 1))))), 2)
        return F.log_softmax(self.head(self.last(x).mean((2, 3))), dim=-1)


class Recurrent(nn.Module):
    """Two recurrent layers over 9 steps, the second in both directions; gives scores per step and for the whole."""

    shape = (9, 6)

    def __init__(self, kind):
        super().__init__()
        layer = {"lstm": nn.LSTM, "gru": nn.GRU}[kind]
        self.into = nn.Linear(6, 8)
        self.first = layer(8, 10, batch_first=True)
        self.second = layer(10, 7, batch_first=True, bidirectional=True)
        self.head = nn.Linear(14, 5)

    def forward(self, sequence):
        x, _ = self.first(torch.tanh(self.into(sequence)))
        x, _ = self.second(x)
        return self.head(x), torch.sigmoid(x[:, -1])


class Attention(nn.Module):
    """A transformer layer whose attention is written out: LayerNorm, four heads, GELU."""

    def __init__(self, width, heads, approximate):
        super().__init__()
        self.heads, self.approximate = heads, approximate
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width, eps=1e-6)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x):
        batch, steps, width = x.shape
        y = self.norm1(x)
        q, k, v = (
            part(y).reshape(batch, steps, self.heads, width // self.heads).permute(0, 2, 1, 3)
            for part in (self.q, self.k, self.v)
        )
        scores = torch.matmul(q, k.transpose(-2, -1)) / (width // self.heads) ** 0.5
        y = torch.matmul(F.softmax(scores, dim=-1), v).permute(0, 2, 1, 3).reshape(batch, steps, width)
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate=self.approximate))


class Transformer(nn.Module):
    """An encoder of two layers over 11 tokens, the second with the approximate GELU."""

    shape = (11,)

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(37, 16), nn.Parameter(torch.randn(1, 11, 16) * 0.4)
        self.first, self.second = Attention(16, 4, "none"), Attention(16, 2, "tanh")
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, tokens):
        x = self.second(self.first(self.tokens(tokens) + self.places))
        return self.head(self.norm(x).mean(1))


class UNet(nn.Module):
    """Encoder and decoder with skips: a transposed convolution, then bilinear and nearest resizing."""

    shape = (3, 32, 24)

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = unit(3, 8), unit(8, 12), unit(12, 16, act=nn.SiLU)
        self.up = nn.ConvTranspose2d(16, 12, 2, stride=2)
        self.d, self.e = unit(24, 10), unit(18, 8)
        self.wide, self.last = nn.Conv2d(8, 6, 3, padding=2, dilation=2), nn.Conv2d(8, 2, 1)

    def forward(self, image):
        a = self.a(image)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.avg_pool2d(b, 2))
        y = self.d(torch.cat([F.elu(self.up(c)), b], dim=1))
        y = self.e(torch.cat([F.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False), a], dim=1))
        half = F.interpolate(torch.tanh(self.wide(y))[:, :2], scale_factor=0.5, mode="bilinear", align_corners=False)
        return self.last(y) + F.interpolate(half, scale_factor=2.0, mode="nearest")


class Branches(nn.Module):
    """Three branches with GroupNorm and InstanceNorm, and with PReLU, LeakyReLU and ELU, joined by concatenation."""

    shape = (4, 18, 22)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 5, stride=(2, 1), padding=2)
        self.a = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.GroupNorm(3, 6), nn.PReLU(6))
        self.b = nn.Sequential(nn.Conv2d(8, 4, (1, 5), padding=(0, 2)), nn.InstanceNorm2d(4, affine=True))
        self.c = nn.Sequential(nn.Conv2d(8, 10, 3, padding=2, dilation=2, groups=2), nn.GroupNorm(5, 10), nn.ELU(0.8))
        self.mix = nn.Conv2d(20, 12, 1)
        self.head = nn.Linear(12 * 9 * 2, 8)

    def forward(self, image):
        x = F.softplus(self.stem(image))
        x = torch.cat([self.a(x), F.leaky_relu(self.b(x), 0.15), self.c(x)], dim=1)
        x = self.mix(x)
        x = F.avg_pool2d(x * torch.sigmoid(x.mean((2, 3), keepdim=True)) - 0.1, (1, 11))
        return self.head(torch.clamp(x, -0.4, 0.3).permute(0, 2, 3, 1).flatten(1))


BUILDERS = {
    "residual": Residual,
    "inception": Inception,
    "depthwise": Depthwise,
    "lstm": lambda: Recurrent("lstm"),
    "gru": lambda: Recurrent("gru"),
    "transformer": Transformer,
    "unet": UNet,
    "branches": Branches,
}
KINDS = tuple(BUILDERS)
NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)


def kinds():
    """Names of the models."""
    return list(KINDS)


def sample(kind, batch):
    """Random data for the only input of a model: tokens, or numbers around 0.2."""
    shape = (batch, *(Recurrent if kind in ("lstm", "gru") else BUILDERS[kind]).shape)
    return torch.randint(0, 37, shape) if kind == "transformer" else torch.randn(shape) + 0.2


def build(kind, seed):
    """One model in evaluation mode, settled."""
    torch.manual_seed(seed)
    module = BUILDERS[kind]()
    settle(module, kind)
    return module.eval()


def settle(module, kind):
    """Move every weight off its neutral value, and give BatchNorm the statistics of data.

    Layers with weights are scaled one after the other so that what they give has a spread of about 1 over the data.
    """
    for layer in module.modules():
        if isinstance(layer, NORMS):
            nn.init.uniform_(layer.weight, 0.6, 1.5)
            nn.init.normal_(layer.bias, 0, 0.2)
        elif isinstance(layer, nn.PReLU):
            nn.init.uniform_(layer.weight, 0.05, 0.4)
        elif isinstance(layer, (nn.LSTM, nn.GRU)):
            for name, weight in layer.named_parameters():
                gain = 2.5 if "_ih_" in name else 1.0  # what a recurrent layer gives is smaller than what it takes
                nn.init.normal_(weight, 0, 0.2 if "bias" in name else gain * weight.shape[1] ** -0.5)
    data = sample(kind, 16)
    module.train()  # so that the layers behind a BatchNorm see what it will give
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                if layer.bias is not None:
                    nn.init.normal_(layer.bias, 0, 0.2)
                spread = _spread(module, layer, data)
                layer.weight.div_(spread)
        for _ in range(40):  # running statistics move by a tenth each time: 40 times leave 1.5 % of the beginning
            module(data)


def _spread(module, layer, data):
    """Spread of a layer's results without its bias."""
    seen = []
    bias = 0 if layer.bias is None else layer.bias.reshape(-1, *([1] * (0 if isinstance(layer, nn.Linear) else 2)))
    handle = layer.register_forward_hook(lambda _, __, value: seen.append((value - bias).std()))
    module(data)
    handle.remove()
    return torch.stack(seen).mean().clamp_min(1e-3)


def save(kind, folder, seed, batch=None):
    """Write KIND.pt2 with an open batch axis, or with a fixed one; returns {"pytorch": path}."""
    module, example = build(kind, seed), sample(kind, batch or 2)
    shapes = None if batch else ({0: torch.export.Dim("batch", min=1)},)
    path = Path(folder) / f"{kind}.pt2"
    torch.export.save(torch.export.export(module, (example,), dynamic_shapes=shapes), path)
    return {"pytorch": str(path)}


def describe(kind, seed):
    """Facts that a test holds against the promises above: spread of outputs and of weights over the model."""
    module, data = build(kind, seed), sample(kind, 32)
    with torch.no_grad():
        outputs = module(data)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    neutral = []
    for name, value in itertools.chain(module.named_parameters(), module.named_buffers()):
        if value.is_floating_point() and (value.eq(0).all() or value.eq(1).all()):
            neutral.append(name)
    return {
        "spreads": [float(one.std(0).mean()) for one in outputs],
        "shapes": [list(one.shape) for one in outputs],
        "neutral": neutral,
        "parameters": sum(one.numel() for one in module.parameters()),
    }

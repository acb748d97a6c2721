"""Small PyTorch models of many architectures, made, saved and evaluated inside the torch toolchain.

Seeded; the running statistics of BatchNorm come from a data pass, so that folding them wrongly shows. The worker calls
`save`, `reference` and the one-operator models of real converter faults; the parent never imports this file.
"""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    """A residual network of 3x3 convolutions, with a strided shortcut."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.a = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
        )
        self.b = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.LeakyReLU(0.1))
        self.short = nn.Conv2d(8, 12, 1, stride=2)
        self.head = nn.Linear(12, 10)

    def forward(self, image):
        y = self.stem(image)
        y = F.relu(y + self.a(y))
        y = self.b(y) + self.short(y)
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


class Depthwise(nn.Module):
    """Inverted residuals with depthwise convolutions, hard swish, squeeze and excitation, and two kinds of pooling."""

    def __init__(self):
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 12, 1, bias=False), nn.BatchNorm2d(12), nn.Hardswish())
        self.depth = nn.Sequential(
            nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU6()
        )
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 4, 1), nn.ReLU(), nn.Conv2d(4, 12, 1), nn.Hardsigmoid()
        )
        self.project = nn.Sequential(nn.Conv2d(12, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8 * 2 * 2, 5)

    def forward(self, image):
        y = self.depth(self.expand(image))
        y = self.project(y * self.squeeze(y))
        y = F.max_pool2d(y, 3, stride=2, padding=1) + F.avg_pool2d(y, 2)
        return F.softmax(self.head(y[:, :, :2, :2].flatten(1)), dim=1)


class Recurrent(nn.Module):
    """A recurrent network over a sequence of 7 steps; gives the sequence and the last state."""

    def __init__(self, kind):
        super().__init__()
        self.rnn = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](6, 9, num_layers=2, batch_first=True)
        self.head = nn.Linear(9, 4)

    def forward(self, sequence):
        y, _ = self.rnn(sequence)
        return self.head(y), y[:, -1]


class Encoder(nn.Module):
    """A transformer encoder over tokens with learned positions, exact GELU and LayerNorm."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(40, 16)
        self.places = nn.Parameter(torch.randn(1, 8, 16) * 0.3)
        self.layers = nn.ModuleList(Block(16, 4) for _ in range(2))
        self.head = nn.Linear(16, 3)

    def forward(self, tokens):
        y = self.tokens(tokens) + self.places
        for layer in self.layers:
            y = layer(y)
        return {"logits": self.head(y.mean(1)), "hidden": y}


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, steps, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (t.reshape(batch, steps, self.heads, width // self.heads).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, steps, width)
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Mixed(nn.Module):
    """Several inputs, one of them indices of an embedding, and several outputs of equal shape."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.left, self.right = nn.Linear(5, 6), nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, features, words, gate):
        meaning = self.words(words).mean(1)
        y = self.norm(self.left(features) * torch.sigmoid(gate) + meaning)
        return torch.tanh(self.right(y)), y, (y - meaning).abs().sum(1)


_ZOO = {
    "residual": (Residual, lambda n: (_normal(n, 3, 16, 16),)),
    "depthwise": (Depthwise, lambda n: (_normal(n, 3, 16, 16),)),
    "lstm": (lambda: Recurrent("lstm"), lambda n: (_normal(n, 7, 6),)),
    "gru": (lambda: Recurrent("gru"), lambda n: (_normal(n, 7, 6),)),
    "encoder": (Encoder, lambda n: (torch.randint(0, 40, (n, 8)),)),
    "mixed": (Mixed, lambda n: (_normal(n, 5), torch.randint(0, 11, (n, 3)), _normal(n, 6))),
}


def _normal(*shape):
    return torch.randn(*shape)


def kinds():
    """Names of the models."""
    return list(_ZOO)


def make(kind, seed):
    """The model in eval mode, its BatchNorm statistics from a data pass."""
    torch.manual_seed(seed)
    build, inputs = _ZOO[kind]
    module = build()
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    module.train()
    with torch.no_grad():
        for _ in range(4):
            module(*inputs(32))
    return module.eval()


def inputs(kind, seed, batch, runs):
    """Input name -> [runs, batch, ...]."""
    torch.manual_seed(seed + 1000)
    sample = _ZOO[kind][1]
    names = list(inspect.signature(make(kind, seed).forward).parameters)
    torch.manual_seed(seed + 1000)
    rows = [sample(batch) for _ in range(runs)]
    return {name: np.stack([row[i].numpy() for row in rows]) for i, name in enumerate(names)}


def reference(kind, seed, feeds, double=False):
    """The outputs of the eager module, flat, [runs, ...] each; in float64 arithmetic if `double`."""
    module = make(kind, seed)
    module = module.double() if double else module
    rows = []
    runs = len(next(iter(feeds.values())))
    with torch.no_grad():
        for run in range(runs):
            values = [torch.from_numpy(np.array(array[run])) for array in feeds.values()]
            values = [v.double() if double and v.is_floating_point() else v for v in values]
            rows.append([t.numpy() for t in torch.utils._pytree.tree_leaves(module(*values))])
    return [np.stack(column) for column in zip(*rows, strict=True)]


def save(kind, folder, seed):
    """Write KIND.pt2 (batch axis open where export allows it) and KIND.pt (TorchScript); returns their paths."""
    module, sample = make(kind, seed), _ZOO[kind][1](2)
    return save_module(module, sample, folder, kind)


def save_module(module, sample, folder, name, dynamic=True):
    """Write one module as .pt2 and, where it can be traced, as .pt; returns {"pytorch": path, "torchscript": path}."""
    folder = Path(folder)
    shapes = None
    if dynamic:
        batch = torch.export.Dim("batch", min=1)
        names = list(inspect.signature(module.forward).parameters)
        shapes = {key: {0: batch} for key in names[: len(sample)]}
    program = torch.export.export(module, sample, dynamic_shapes=shapes)
    torch.export.save(program, folder / f"{name}.pt2")
    paths = {"pytorch": str(folder / f"{name}.pt2")}
    traced = torch.jit.trace(module, sample, strict=False, check_trace=False)
    torch.jit.save(traced, str(folder / f"{name}.pt"))
    paths["torchscript"] = str(folder / f"{name}.pt")
    return paths


# ---- real weights: He et al., Deep Residual Learning, section 4.2 ----


class _CifarBlock(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        stride = 1 if before == after else 2
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.grows = before != after

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.grows:  # option A: every second pixel, and zeros for the new channels, half of them on either side
            more = (y.shape[1] - x.shape[1]) // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more, more))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """The CIFAR-10 ResNet of depth 6 n + 2 with option A shortcuts."""

    def __init__(self, n):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16] * (n + 1) + [32] * n + [64] * n
        blocks = [_CifarBlock(a, b) for a, b in itertools.pairwise(widths)]
        self.layer1, self.layer2, self.layer3 = (nn.Sequential(*blocks[i * n : (i + 1) * n]) for i in range(3))
        self.linear = nn.Linear(64, 10)

    def forward(self, image):
        y = F.relu(self.bn1(self.conv1(image)))
        y = self.layer3(self.layer2(self.layer1(y)))
        return self.linear(y.mean((2, 3)))


def resnet20():
    """Factory: ResNet-20 with an example."""
    return CifarResNet(3), (torch.randn(1, 3, 32, 32),)


def resnet32():
    """Factory: ResNet-32 without an example."""
    return CifarResNet(5)


# ---- odd ones, for the edges of the contract ----


class Stateful(nn.Module):
    """Counts its calls in a buffer: every run must begin from the stored state."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count.add_(1)
        return x + self.count


class Casts(nn.Module):
    """Creates and casts float32 inside: evaluated in float64 this must not lose precision."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        y = (x.to(torch.float32) @ self.weight) / torch.full((4,), 3.0, dtype=torch.float32)
        return y + torch.tensor([0.1, 0.2, 0.3, 0.4]) + torch.arange(4).float()


class Branch(nn.Module):
    """Control flow on values: torch.export refuses it, a trace takes one branch."""

    def forward(self, x):
        return x * 2 if x.sum() > 0 else x - 1


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class MaskedAttention(nn.Module):
    """Attention whose mask forbids everything for one row, as padding does."""

    def forward(self, q, k, v):
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool)
        mask[1] = False
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


_ODD = {
    "stateful": (Stateful, lambda: (torch.randn(2, 3),), True),
    "casts": (Casts, lambda: (torch.randn(2, 4),), True),
    "twice": (lambda: Apply(lambda x: (x.relu(), x, x.relu())), lambda: (torch.randn(2, 3),), True),
    "identity": (lambda: Apply(lambda x: x), lambda: (torch.randn(2, 3),), True),
    "fixed": (lambda: Apply(lambda x: x.reshape(6) * 2), lambda: (torch.randn(2, 3),), False),
    "divisor": (
        lambda: Apply(lambda x: F.avg_pool2d(x, 2, stride=2, divisor_override=3)),
        lambda: (torch.randn(1, 1, 4, 4),),
        False,
    ),
    "bessel": (lambda: Apply(torch.special.bessel_j0), lambda: (torch.randn(4),), False),
    "logsigmoid": (lambda: Apply(F.logsigmoid), lambda: (torch.randn(4),), False),
    "masked": (MaskedAttention, lambda: tuple(torch.randn(1, 1, 3, 4) for _ in range(3)), False),
    "nearest": (
        lambda: Apply(lambda x: F.interpolate(x, (3, 5), mode="nearest")),
        lambda: (torch.randn(1, 1, 7, 8),),
        False,
    ),
}


def save_odd(kind, folder):
    """Write one of the odd models; returns its paths as `save` does."""
    torch.manual_seed(0)
    build, sample, dynamic = _ODD[kind]
    return save_module(build().eval(), sample(), folder, kind, dynamic)


def branch():
    """Factory of a model that cannot be exported."""
    return Branch(), (torch.ones(2, 3),)


def scripted_state(path):
    """Write a scripted model that keeps a running sum."""
    torch.jit.script(Stateful()).save(path)


def encoder():
    """Factory with an example of batch 1."""
    return make("encoder", 5), (torch.randint(0, 40, (1, 8)),)


def mixed():
    """Factory without an example."""
    return make("mixed", 5)


def wrong():
    """A factory that does not return a module."""
    return 7


def save_checkpoint(path, kind, seed, form):
    """Write a model's weights as a plain state_dict, wrapped, with DataParallel's prefix, or a whole pickled module."""
    module = make(kind, seed)
    table = module.state_dict()
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in table.items()}, path)
        return
    stored = {
        "plain": table,
        "wrapped": {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in table.items()}},
        "module": module,
        "short": {name: value for name, value in table.items() if not name.startswith("head")},
    }[form]
    torch.save(stored, path)


def corrupt_expression(path):
    """Write an exported program whose size expression would run code, as a hostile file may."""
    import json
    import zipfile

    good = save("residual", str(Path(path).parent), 0)["pytorch"]
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith("models/model.json"):
                program = json.loads(data)
                text = json.dumps(program).replace("Symbol('s", "print('hostile') or Symbol('s")
                assert "hostile" in text
                data = text.encode()
            target.writestr(entry.filename, data)

"""Sound models with features that tempt a comparison into a false alarm: saturation, ties, tiny and huge scales, masks.

Built inside the torch and tensorflow toolchains by `build(maker, name, out)`; the parent never imports a framework.
"""

from __future__ import annotations

import math


def build(maker, name, out):
    """Write the model `name` of "torch" or "tf" at `out`."""
    {"torch": _torch, "tf": _tf}[maker](name, out)


def _torch(name, out):
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.manual_seed(0)

    class Apply(nn.Module):
        def __init__(self, function, *parts):
            super().__init__()
            self.function, self.parts = function, nn.ModuleList(parts)

        def forward(self, x):
            return self.function(x, *self.parts)

    class Encoder(nn.Module):
        """Embedding, attention with a padding mask (and causal where asked), LayerNorm, GELU."""

        def __init__(self, causal, additive):
            super().__init__()
            self.words, self.qkv, self.out = nn.Embedding(50, 16), nn.Linear(16, 48), nn.Linear(16, 16)
            self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
            self.causal, self.additive = causal, additive

        def forward(self, input_ids, attention_mask):
            x = self.words(input_ids)
            q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
            scores = q @ k.transpose(-1, -2) / math.sqrt(8)
            seen = attention_mask[:, None, None, :].bool()
            if self.causal:
                steps = torch.arange(x.shape[1])
                seen = seen & (steps[None, :] <= steps[:, None])
            if self.additive:
                scores = scores + (~seen).float() * torch.finfo(torch.float32).min
            else:
                scores = scores.masked_fill(~seen, -math.inf)
            y = (F.softmax(scores, -1) @ v).transpose(1, 2).reshape(x.shape)
            x = self.norm(x + self.out(y))
            return x + self.down(F.gelu(self.up(x)))

    class Two(nn.Module):
        def forward(self, a, b):
            return a @ b.transpose(1, 2), a.mean(1), b.amax(1)

    def deep():
        layers = [layer for _ in range(60) for layer in (nn.Linear(24, 24), nn.LayerNorm(24), nn.Tanh())]
        return nn.Sequential(nn.Linear(6, 24), *layers, nn.Linear(24, 4))

    def relu_deep():
        layers = [nn.Linear(64, 64) for _ in range(40)]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        return nn.Sequential(nn.Linear(6, 64), *(item for layer in layers for item in (layer, nn.ReLU())))

    def apply(function, *parts):
        return lambda: Apply(function, *parts)

    linear, wide = nn.Linear(6, 10), nn.Linear(6, 32)
    picture = nn.Conv2d(3, 5, 3, padding=1)
    made = {
        "softmax-saturated": (apply(lambda x, f: F.softmax(f(x) * 50, -1), linear), [2, 6]),
        "log-softmax": (apply(lambda x, f: F.log_softmax(f(x) * 50, -1), linear), [2, 6]),
        "sigmoid-saturated": (apply(lambda x, f: torch.sigmoid(f(x) * 40), linear), [2, 6]),
        "deep": (deep, [2, 6]),
        "deep-relu": (relu_deep, [2, 6]),
        "tiny": (apply(lambda x, f: f(x) * 1e-12, linear), [2, 6]),
        "subnormal": (apply(lambda x, f: f(x) * 1e-39, linear), [2, 6]),
        "huge": (apply(lambda x, f: f(x) * 1e8 + 1e9, linear), [2, 6]),
        "offset": (apply(lambda x, f: torch.tanh(f(x)) * 1e-3 + 1000.0, linear), [2, 6]),
        "argmax": (apply(lambda x, f: f(x).argmax(-1), wide), [2, 6]),
        "argmax-ties": (apply(lambda x, f: f(x).round().argmax(-1), wide), [2, 6]),
        "topk": (apply(lambda x, f: tuple(torch.topk(f(x), 5)), wide), [2, 6]),
        "topk-ties": (apply(lambda x: tuple(torch.topk(x, 3))), [2, 6]),
        "sort": (apply(lambda x: tuple(torch.sort(x, -1))), [2, 6]),
        "where-bool": (apply(lambda x, f: (f(x) > 0, torch.where(x > 0, x, x.exp())), linear), [2, 6]),
        "layer-norm": (lambda: nn.Sequential(nn.LayerNorm(6), linear), [2, 6]),
        "layer-norm-bare": (lambda: nn.LayerNorm(6, eps=1e-12), [2, 6]),
        "instance-norm": (lambda: nn.Sequential(nn.InstanceNorm2d(3), picture), [1, 3, 16, 16]),
        "group-norm": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU()), [1, 3, 16, 16]),
        "standardise": (apply(lambda x: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)), [2, 6]),
        "divide-small": (apply(lambda x, f: f(x) / (x.abs().mean(-1, keepdim=True) + 1e-6), linear), [2, 6]),
        "divide": (apply(lambda x: 1.0 / x), [2, 6]),
        "cosine": (apply(lambda x, f: F.normalize(f(x), dim=-1), linear), [2, 6]),
        "exp": (apply(lambda x: x.exp()), [2, 6]),
        "log": (apply(lambda x: (x.log(), x.sqrt(), x.rsqrt())), [2, 6]),
        "logsumexp": (apply(lambda x: torch.logsumexp(x, -1)), [2, 6]),
        "pow": (apply(lambda x: (x**3, x.abs() ** 0.3, x**-2.0)), [2, 6]),
        "cumsum": (apply(lambda x: x.cumsum(-1)), [2, 200]),
        "bicubic": (apply(lambda x: F.interpolate(x, scale_factor=2, mode="bicubic")), [1, 3, 12, 12]),
        "bilinear": (apply(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")), [1, 3, 12, 12]),
        "gelu": (apply(lambda x: (F.gelu(x), F.gelu(x, approximate="tanh"))), [2, 6]),
        "activations": (apply(lambda x: (F.mish(x), F.silu(x), F.elu(x), F.selu(x), F.hardswish(x))), [2, 6]),
        "round": (apply(lambda x, f: (f(x).round(), f(x).floor(), x.trunc()), linear), [2, 6]),
        "sine-large": (apply(lambda x: torch.sin(x * 30)), [2, 6]),
        "lstm": (lambda: Apply(lambda x, f: f(x)[0], nn.LSTM(6, 8, batch_first=True)), [2, 9, 6]),
        "pool": (apply(lambda x, f: F.max_pool2d(F.avg_pool2d(f(x), 3, 1, 1), 2), picture), [1, 3, 16, 16]),
        "mean-far": (apply(lambda x, f: f(x).mean((2, 3)) * 1e4 + 3e6, picture), [1, 3, 16, 16]),
        "variance": (apply(lambda x: (x**2).mean(-1) - x.mean(-1) ** 2), [2, 64]),
        "float64": (lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double(), [2, 6]),
        "two-batch-axes": (Two, None),
        "encoder": (lambda: Encoder(False, True), None),
        "encoder-causal": (lambda: Encoder(True, True), None),
        "encoder-infinite": (lambda: Encoder(False, False), None),
        "decoder-infinite": (lambda: Encoder(True, False), None),
    }
    make, shape = made[name]
    batch = torch.export.Dim("batch", min=1)
    if name == "two-batch-axes":
        sample, dims = (torch.randn(2, 5, 6), torch.randn(2, 7, 6)), {"a": {0: batch}, "b": {0: batch}}
    elif shape is None:
        steps = torch.export.Dim("sequence", min=2, max=64)
        sample = (torch.randint(0, 50, (2, 7)), torch.ones(2, 7, dtype=torch.int64))
        dims = {"input_ids": {0: batch, 1: steps}, "attention_mask": {0: batch, 1: steps}}
    else:
        sample = (torch.randn(*shape, dtype=torch.float64 if name == "float64" else torch.float32),)
        key = "input" if name.startswith(("deep", "float64", "layer-norm", "instance", "group")) else "x"
        dims = {key: {0: batch}} if shape[0] == 2 else None
    with torch.no_grad():
        program = torch.export.export(make().eval(), sample, dynamic_shapes=dims)
    torch.export.save(program, out)


def _tf(name, out):
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    layers, ops = keras.layers, keras.ops
    x = keras.Input((6,), name="x")
    words = keras.Input((12,), dtype="int32", name="ids")
    picture = keras.Input((16, 16, 3), name="image")
    far = keras.initializers.Constant(np.random.default_rng(0).normal(0, 30, (6, 10)))
    made = {
        "softmax-saturated": lambda: (x, layers.Dense(10, activation="softmax", kernel_initializer=far)(x)),
        "embedding": lambda: (words, layers.Dense(3)(layers.Embedding(40, 8)(words))),
        "layer-norm": lambda: (x, layers.LayerNormalization(epsilon=1e-6)(x)),
        "argmax": lambda: (x, ops.argmax(layers.Dense(9)(x), axis=-1)),
        "top-k": lambda: (x, list(ops.top_k(x, 3))),
        "gru": lambda: (words, layers.GRU(6)(layers.Embedding(40, 8, mask_zero=True)(words))),
        "resize": lambda: (picture, layers.UpSampling2D(2, interpolation="bilinear")(picture)),
        "separable": lambda: (picture, layers.GlobalAveragePooling2D()(layers.SeparableConv2D(8, 3)(picture))),
        "attention": lambda: (lambda e: (words, layers.MultiHeadAttention(2, 4)(e, e)))(layers.Embedding(40, 8)(words)),
        "tiny": lambda: (x, layers.Rescaling(1e-12)(layers.Dense(4)(x))),
        "exp": lambda: (x, ops.exp(x)),
        "cumsum": lambda: (x, ops.cumsum(x, axis=-1)),
    }
    source, result = made[name]()
    keras.Model(source, result).save(out)

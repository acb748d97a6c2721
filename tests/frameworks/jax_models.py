"""Small functions in plain jax.numpy (and one in Flax), exported to files in the environments that have JAX."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def _weights(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=s) / np.sqrt(np.prod(s[:-1]) or 1)).astype(np.float32) for s in shapes]


def mlp():
    import jax

    w1, b1, w2, b2 = _weights(0, (12, 16), (16,), (16, 5), (5,))

    def function(x):
        return jax.nn.softmax(jax.nn.gelu(x @ w1 + b1) @ w2 + b2)

    return function, np.zeros((2, 12), np.float32)


def cnn():
    import jax
    from jax import lax

    first, second, dense, bias, scale = _weights(1, (3, 3, 3, 8), (3, 3, 8, 12), (12, 6), (6,), (8,))
    layout = ("NHWC", "HWIO", "NHWC")

    def function(image):
        x = lax.conv_general_dilated(image, first, (1, 1), "SAME", dimension_numbers=layout) * scale
        x = lax.reduce_window(jax.nn.relu(x), -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = lax.conv_general_dilated(x, second, (2, 2), "SAME", dimension_numbers=layout)
        return jax.nn.silu(x).mean((1, 2)) @ dense + bias

    return function, np.zeros((2, 12, 12, 3), np.float32)


def attention():
    import jax
    from jax import numpy as jnp

    table, query, key, value, up, down = _weights(2, (30, 16), (16, 16), (16, 16), (16, 16), (16, 32), (32, 16))

    def heads(x):
        return x.reshape(*x.shape[:2], 2, 8).transpose(0, 2, 1, 3)

    def function(ids):
        x = jnp.asarray(table)[ids] * 4
        scores = jnp.einsum("bhqd,bhkd->bhqk", heads(x @ query), heads(x @ key)) / np.sqrt(8).astype(np.float32)
        mask = jnp.tril(jnp.ones((scores.shape[-1],) * 2, bool))
        mixed = jax.nn.softmax(jnp.where(mask, scores, -1e9), -1) @ heads(x @ value)
        x = x + mixed.transpose(0, 2, 1, 3).reshape(x.shape)
        centred = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        logits = x + jnp.tanh(centred @ up) @ down
        return {"logits": logits, "best": logits.argmax(-1)}

    return function, np.zeros((2, 5), np.int32)


def flax():
    import jax
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(6, (3, 3))(x))
            x = nn.avg_pool(x, (2, 2), (2, 2))
            return nn.Dense(4)(nn.LayerNorm()(x).reshape(x.shape[0], -1))

    net, example = Net(), np.zeros((2, 8, 8, 3), np.float32)
    weights = net.init(jax.random.PRNGKey(0), example)
    return (lambda x: net.apply(weights, x)), example


def several():
    """Two inputs, one of them unused in part; a loop, a sort, a scatter, and integers."""
    from jax import lax
    from jax import numpy as jnp

    (w,) = _weights(3, (4, 4))

    def function(x, scale):
        looped = lax.fori_loop(0, 3, lambda _, state: jnp.tanh(state @ w), x)
        ordered = jnp.sort(x, axis=-1)
        placed = jnp.zeros_like(x).at[:, 1].add(x[:, 0])
        return looped * scale, ordered[:, ::-1] + placed, jnp.argsort(x, axis=-1)

    return function, (np.zeros((2, 4), np.float32), np.zeros((2, 1), np.float32))


def alone():
    """A factory without example arguments."""
    return mlp()[0]


MODELS = {"mlp": mlp, "cnn": cnn, "attention": attention, "flax": flax, "several": several}


def save(kind, folder, batch="open"):
    """Export one to `folder`; `batch` "open" or a number. Returns the file."""
    import jax
    from jax import export

    function, example = MODELS[kind]()
    given = example if isinstance(example, tuple) else (example,)
    size = export.symbolic_shape("batch")[0] if batch == "open" else int(batch)
    specs = [jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype) for array in given]
    path = Path(folder) / f"{kind}-{batch}.jax"
    path.write_bytes(export.export(jax.jit(function), platforms=["cpu"])(*specs).serialize())
    return str(path)


def expected(kind, feeds):
    """What the function itself gives, not exported: one list of arrays for each run."""
    import jax

    function, _ = MODELS[kind]()
    runs = len(next(iter(feeds.values())))
    return [
        [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(function(*(array[run] for array in feeds.values())))]
        for run in range(runs)
    ]

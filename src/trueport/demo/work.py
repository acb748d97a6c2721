"""The demo's jobs that need a framework; each function runs in a worker of the toolchain that it names.

Data: the 1,797 handwritten digits (8×8 grey levels 0…16) that scikit-learn ships.
"""

from __future__ import annotations

from typing import Any

import numpy as np

CLASSES = 10
HELD_OUT = 500


def digits() -> dict[str, np.ndarray]:
    """In `sklearn`: the digits, scaled to 0…1, in a fixed shuffled order; the last 500 are for testing."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = (data.images[order] / 16).astype(np.float32)
    labels = data.target[order].astype(np.int64)
    return {
        "train_x": images[:-HELD_OUT],
        "train_y": labels[:-HELD_OUT],
        "test_x": images[-HELD_OUT:],
        "test_y": labels[-HELD_OUT:],
    }


def train_keras(train_x: np.ndarray, train_y: np.ndarray, out: str, epochs: int) -> dict[str, Any]:
    """In `tensorflow`: a small CNN with BatchNorm, channels last; writes a `.keras` file."""
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs)  # statistics settle in few epochs: momentum 0.9
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = layers.ReLU(max_value=6.0)(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Conv2D(32, 3, strides=2, padding="same")(x)
    x = layers.Flatten()(layers.ReLU()(x))
    outputs = layers.Dense(CLASSES, name="digit")(x)
    model = keras.Model(inputs, outputs, name="digits_keras")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(3e-3), loss=loss)
    model.fit(np.array(train_x)[..., None], np.array(train_y), batch_size=64, epochs=epochs, verbose=0)
    model.save(out)
    return {"parameters": int(model.count_params())}


def train_torch(train_x: np.ndarray, train_y: np.ndarray, out: str, epochs: int) -> dict[str, Any]:
    """In `torch`: a CNN with two Conv+BatchNorm branches on one input, channels first; writes a `.pt2` file."""
    import torch
    from torch import nn

    torch.manual_seed(0)

    class TwoBranches(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU())
            self.left = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
            self.right = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
            self.head = nn.Sequential(nn.Flatten(), nn.Linear(16 * 16, CLASSES))

        def forward(self, image: Any) -> Any:
            x = self.stem(image)
            x = torch.relu(self.left(x)) - torch.sigmoid(self.right(x))
            return self.head(nn.functional.max_pool2d(x, 2))

    model = TwoBranches()
    x, y = torch.tensor(np.array(train_x))[:, None], torch.tensor(np.array(train_y))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for chunk in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[chunk]), y[chunk]).backward()
            optimizer.step()
    model.eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(model, (x[:2],), dynamic_shapes={"image": {0: batch}})
    torch.export.save(program, out)
    return {"parameters": sum(item.numel() for item in model.parameters())}

"""Numbers for the weights of a zoo's model: what a layer's outputs on data say about the weights that it should have.

A network with its constructor's weights is no fair subject for a comparison: BatchNorm holds the statistics of nothing,
branches that training opens are multiplied by zero or 1e-6, and the outputs for all inputs are nearly the same, so that
a wrong port may look right. So each layer is scaled, in the order of execution, by what it gives for data: every channel
of a convolution or matrix product gets deviation 1 and a small random mean (Krahenbuhl et al., "Data-dependent
initializations of convolutional neural networks", 2016; Salimans and Kingma, "Weight normalization", 2016), BatchNorm
gets the statistics of what it sees, and the last layer is centred and scaled over the inputs.

NumPy alone: the frameworks' own files (`_zoo_keras`, `_zoo_torch`) read and write the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SPREAD = 3.0
"""Standard deviation of a logit over inputs: classes differ, and softmax is far from one winner that takes all."""
SHIFT = 0.2
"""Standard deviation of a channel's mean, where the channel's is 1."""
NORMALISED = 0.5
"""Mean shift of a normalisation over the batch: with most units active, small errors do not grow from layer to layer as
in networks of random weights around zero, which no trained network resembles."""
OPEN = (0.8, 1.2)
"""Range of a factor that multiplies a channel."""
BRANCH = (0.3, 0.6)
"""Range of a factor that the constructor makes (nearly) zero: the end of a residual branch, which training opens."""
CLOSED = 1e-2
"""A factor below this is one of those."""
LEAST = 0.1
"""A channel's deviation counts as at least this share of the mean one: a dead channel is not blown up."""


def pictures(count: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Smooth random fields with edges and noise, float32, [count, *shape], about -2..2; `shape` ends with channels."""
    rng = np.random.default_rng([seed, 1])
    *sides, channels = shape
    axes = [np.linspace(0, 1, size) for size in sides]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)  # [*sides, number of sides]
    made = np.empty((count, *shape))
    for number in range(count):
        for channel in range(channels):
            turns = rng.uniform(-3, 3, (4, len(sides)))
            waves = np.sin(2 * np.pi * (grid @ turns.T + rng.random(4))) @ rng.normal(0, 0.5, 4)
            edge = np.where(grid @ rng.normal(0, 1, len(sides)) > rng.normal(0, 0.5), 0.5, -0.5)
            made[number, ..., channel] = waves + edge + rng.normal(0, 0.4)
    made += rng.normal(0, 0.1, made.shape)
    return np.asarray(np.clip(made, -2, 2), np.float32)


def signals(count: int, length: int, seed: int) -> np.ndarray:
    """Sounds: sums of waves with noise, float32, [count, length], about -2..2."""
    rng = np.random.default_rng([seed, 2])
    time = np.linspace(0, 1, length)
    turns, phase = rng.uniform(4, length / 8, (count, 5, 1)), rng.random((count, 5, 1))
    waves = (np.sin(2 * np.pi * (turns * time + phase)) * rng.normal(0, 0.5, (count, 5, 1))).sum(1)
    return np.asarray(np.clip(waves + rng.normal(0, 0.1, waves.shape), -2, 2), np.float32)


def vector(values: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    """What takes the place of a parameter with one number for each channel: factors near 1, small biases, open branches."""
    if "bias" in name or "beta" in name or "shift" in name:
        return np.asarray(values + rng.normal(0, SHIFT, values.shape), values.dtype)
    low, high = BRANCH if np.abs(values).max(initial=0) < CLOSED else OPEN
    factors = rng.uniform(low, high, values.shape)
    return np.asarray(factors if low == BRANCH[0] else values * factors, values.dtype)


def channels(outputs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(scale [C], mean [C]) for a layer that gives `outputs` [M, C] without its bias: scaled they have deviation 1.

    mean: what the bias has to bring about, small and random. Scale 1 where nothing can be told.
    """
    deviation = outputs.std(0, dtype=np.float64)
    typical = deviation.mean()
    if not np.isfinite(typical) or typical < np.finfo(np.float32).tiny:
        return np.ones_like(deviation), np.zeros_like(deviation)
    return 1 / np.maximum(deviation, LEAST * typical), rng.normal(0, SHIFT, deviation.shape)


def head(outputs: np.ndarray) -> tuple[float, np.ndarray]:
    """(scale, centre [C]) for the last layer: (outputs - centre) * scale has deviation SPREAD over the inputs.

    outputs: [N, ..., C] without bias, N inputs. What counts is how a number changes from input to input.
    """
    flat = outputs.reshape(len(outputs), -1).astype(np.float64)
    deviation = np.sqrt(flat.var(0).mean())
    centre = outputs.reshape(-1, outputs.shape[-1]).mean(0, dtype=np.float64)
    if not np.isfinite(deviation) or deviation < np.finfo(np.float32).tiny:
        return 1.0, np.zeros_like(centre)
    return SPREAD / deviation, centre


def variation(outputs: np.ndarray) -> dict[str, Any]:
    """How much outputs [N, ...] change from input to input: as a share of their size, and how many top classes there are."""
    flat = outputs.reshape(len(outputs), -1).astype(np.float64)
    size = np.sqrt((flat**2).mean())
    return {
        "share": float(flat.std(0).mean() / size) if size > 0 else 0.0,
        "classes": len(set(flat.argmax(1).tolist())),
        "inputs": len(flat),
        "finite": bool(np.isfinite(flat).all()),
    }

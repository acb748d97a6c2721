"""Pictures made by code: gradients, shapes and textures in colour, so that networks see structure and not noise."""

from __future__ import annotations

import numpy as np


def pictures(count: int, size: int, seed: int) -> np.ndarray:
    """`count` pictures [count, size, size, 3], RGB, float32 with whole values from 0 to 255; the same for the same seed."""
    rng = np.random.default_rng((seed, size))
    return np.stack([_picture(size, rng) for _ in range(count)])


def _picture(size: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[0:size, 0:size] / size
    picture = _ground(x, y, rng)
    for _ in range(int(rng.integers(2, 6))):
        inside = _shape(x, y, rng)
        surface = _texture(x, y, rng) if rng.random() < 0.6 else np.ones_like(x)
        colour = rng.uniform(0, 255, 3)
        picture = np.where(inside[..., None], colour * surface[..., None], picture)
    picture = picture + rng.normal(0, rng.uniform(1, 8), picture.shape)  # the grain of a camera
    return np.clip(np.rint(picture), 0, 255).astype(np.float32)


def _ground(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A colour gradient in some direction, half of the time with waves on it."""
    angle = rng.uniform(0, 2 * np.pi)
    along = (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)) / 1.42 + 0.5
    first, second = rng.uniform(0, 255, (2, 3))
    ground = first + (second - first) * along[..., None]
    return ground * _texture(x, y, rng)[..., None] if rng.random() < 0.5 else ground


def _texture(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness from 0.2 to 1: stripes, squares or clouds."""
    kind = rng.integers(3)
    if kind == 0:
        angle, waves = rng.uniform(0, np.pi), rng.uniform(3, 14)
        return 0.6 + 0.4 * np.sin(2 * np.pi * waves * (np.cos(angle) * x + np.sin(angle) * y))
    if kind == 1:
        cells = int(rng.integers(3, 10))
        return np.where((np.floor(x * cells) + np.floor(y * cells)) % 2 == 0, 1.0, 0.3)
    clouds = sum(
        np.sin(2 * np.pi * (a * x + b * y) + phase)
        for a, b, phase in zip(rng.normal(0, 3, 6), rng.normal(0, 3, 6), rng.uniform(0, 6.3, 6), strict=True)
    )
    return 0.6 + 0.4 * np.tanh(clouds / 2)


def _shape(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The points of a disc, a rectangle or a half-plane's corner."""
    (cx, cy), (a, b) = rng.uniform(0.1, 0.9, 2), rng.uniform(0.08, 0.4, 2)
    kind = rng.integers(3)
    if kind == 0:
        return ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 < 1
    if kind == 1:
        return (np.abs(x - cx) < a) & (np.abs(y - cy) < b)
    angle = rng.uniform(0, 2 * np.pi)
    u = np.cos(angle) * (x - cx) + np.sin(angle) * (y - cy)
    v = -np.sin(angle) * (x - cx) + np.cos(angle) * (y - cy)
    return (u > 0) & (np.abs(v) < u * b / a)

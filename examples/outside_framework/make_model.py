"""Write a small .npznet network with random weights: python make_model.py small.npznet"""

from __future__ import annotations

import sys

import numpy as np
from npznet import framework

LAYERS = (
    {"name": "hidden", "op": "MatMul", "inputs": ["x"], "parameters": ["kernel"]},
    {"name": "shifted", "op": "Add", "inputs": ["hidden"], "parameters": ["bias"]},
    {"name": "bent", "op": "Relu", "inputs": ["shifted"]},
    {"name": "scores", "op": "MatMul", "inputs": ["bent"], "parameters": ["head"]},
    {"name": "shares", "op": "Softmax", "inputs": ["scores"]},
)
SIZES = {"kernel": (12, 32), "bias": (32,), "head": (32, 5)}


def main() -> None:
    """Write the file that the command line names."""
    rng = np.random.default_rng(0)
    arrays = {name: (rng.normal(size=size) / np.sqrt(size[0])).astype(np.float32) for name, size in SIZES.items()}
    framework.save(sys.argv[1], LAYERS, arrays)
    print(f"wrote {sys.argv[1]}")


if __name__ == "__main__":
    main()

"""Runs in a worker: models of the zoo with their constructors' own weights, and fetching without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks import _zoo_scale


def unscaled(collection: str, name: str) -> dict[str, Any]:
    """How the outputs vary when the constructor's weights are left as they are."""
    if collection == "keras":
        return _unscaled_keras(name)
    import torch

    from trueport.frameworks import _zoo_torch

    made = _zoo_torch._builder(collection)(name, {"weights": "random"})
    with torch.no_grad():
        output = made.module.eval()(**{key: torch.from_numpy(value) for key, value in made.inputs.items()})
    return _zoo_scale.variation(output.numpy())


def _unscaled_keras(name: str) -> dict[str, Any]:
    from trueport.frameworks import _zoo_keras

    model = _zoo_keras._built(name, {"weights": "random"}, 64, None)
    images = _zoo_keras._pictures(model, {})
    return _zoo_scale.variation(np.asarray(model(images, training=False)))


def without_network(maker: str, collection: str, name: str, out: str, home: str) -> dict[str, Any]:
    """Ask for pretrained weights where no name can be resolved and every cache is the folder `home`."""
    import importlib
    import os
    import socket

    def nobody(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    kept = {key: os.environ.get(key) for key in ("KERAS_HOME", "TORCH_HOME", "HF_HOME")}
    own = socket.getaddrinfo, socket.create_connection
    os.environ.update(dict.fromkeys(kept, home))
    socket.getaddrinfo = socket.create_connection = nobody
    try:
        return importlib.import_module(f"trueport.frameworks.{maker}").make(
            collection=collection, name=name, options={"weights": "hub"}, out=out
        )
    finally:
        socket.getaddrinfo, socket.create_connection = own
        for key, value in kept.items():
            os.environ.pop(key, None) if value is None else os.environ.update({key: value})


def leave_torchvision_weights(name: str, home: str) -> dict[str, Any]:
    """Put weights where torchvision keeps those that it fetched."""
    import torch
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    torch.manual_seed(7)
    table = models.get_model(name, weights=None).state_dict()
    folder = Path(home) / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(table, folder / weights.url.rpartition("/")[2])
    return {key: table[key].numpy() for key in ("fc.weight", "conv1.weight")}


def leave_transformers_weights(name: str, folder: str) -> dict[str, Any]:
    """Put a checkpoint without a head in a folder, and let the row name that folder."""
    import dataclasses

    import transformers

    from trueport.frameworks import _zoo_transformers

    row = _zoo_transformers.ROWS[name]
    transformers.set_seed(7)
    base = transformers.AutoModel.from_config(_zoo_transformers.configured(row, {}))
    base.save_pretrained(folder)
    _zoo_transformers.ROWS[name] = dataclasses.replace(row, hub=folder)
    return {"words": base.get_input_embeddings().weight.detach().numpy()}


def parameters(path: str, words: list[str]) -> dict[str, Any]:
    """Stored tensors of an exported program whose names end with these words."""
    import torch

    table = torch.export.load(path).state_dict
    return {word: next(value.detach().numpy() for key, value in table.items() if key.endswith(word)) for word in words}


def scaled_toys() -> dict[str, Any]:
    """What scaling makes of layers that need care: closed branches, tied, transposed, grouped and unused ones."""
    import torch
    from torch import nn

    from trueport.frameworks import _zoo_torch

    class Toy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.entry = nn.Conv2d(3, 16, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(16)
            self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=16)
            self.up = nn.ConvTranspose2d(16, 12, 2, 2)
            self.closed = nn.Conv2d(12, 12, 1)
            self.gamma = nn.Parameter(torch.full((12, 1, 1), 1e-6))
            self.table = nn.Parameter(torch.zeros(1, 12, 8, 8))
            self.unused = nn.Linear(4, 4)
            self.head = nn.Linear(12, 10)
            nn.init.zeros_(self.closed.weight)
            nn.init.zeros_(self.norm.weight)

        def forward(self, image: Any) -> Any:
            x = self.up(torch.relu(self.grouped(torch.relu(self.norm(self.entry(image))))))
            return self.head((x + self.gamma * self.closed(x + self.table)).mean((2, 3)))

    torch.manual_seed(0)
    toy = Toy().eval()
    image = torch.from_numpy(np.moveaxis(_zoo_scale.pictures(32, (4, 4, 3), 0), -1, 1).copy())
    before = toy.unused.weight.clone()
    seen: dict[str, Any] = {}
    _zoo_torch.scale(toy, {"image": image}, 0)
    for name in ("entry", "norm", "grouped", "up", "closed", "head"):
        getattr(toy, name).register_forward_hook(lambda part, args, output, name=name: seen.update({name: output}))
    with torch.no_grad():
        toy(image)
    return {
        "seen": {name: value.numpy() for name, value in seen.items()},
        "gamma": toy.gamma.detach().numpy(),
        "table": toy.table.detach().numpy(),
        "factors": toy.norm.weight.detach().numpy(),
        "shift": toy.norm.bias.detach().numpy(),
        "unused": bool(torch.equal(before, toy.unused.weight)),
    }


def tied() -> dict[str, Any]:
    """A matrix that embeds tokens and gives the logits keeps what the constructor gave it."""
    import torch
    from torch import nn

    from trueport.frameworks import _zoo_torch

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(20, 8)
            self.inner = nn.Linear(8, 8)
            self.logits = nn.Linear(8, 20, bias=False)
            self.logits.weight = self.words.weight

        def forward(self, tokens: Any) -> Any:
            return self.logits(torch.relu(self.inner(self.words(tokens))))

    torch.manual_seed(0)
    model = Tied().eval()
    before, inner = model.words.weight.clone(), model.inner.weight.clone()
    _zoo_torch.scale(model, {"tokens": torch.randint(0, 20, (16, 5))}, 0)
    return {
        "same": bool(torch.equal(before, model.words.weight)),
        "inner": bool(torch.equal(inner, model.inner.weight)),
    }
